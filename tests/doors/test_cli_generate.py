"""`generate`, its dry run and `demo`, end to end on a tiny random model."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.figures import draw_few
from helpers.tiny import tiny_folder
from wanscope import events
from wanscope.doors.cli import main, options, output, process, progress
from wanscope.errors import NumericalError, StorageRefused
from wanscope.take.store import Take
from wanscope.take.video import video_facts
from wanscope.wan import doctor as doctor_module
from wanscope.workspace import Workspace

SMALL = ("--negative", "", "--width", 32, "--height", 32, "--frames", 5, "--steps", 3)
TEMPLATE = "a [red|blue] (circle)"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", blocks=2, heads=2)


@pytest.fixture
def make(cli, tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    """Return a function that runs `generate` on the small study with more options."""

    def run(*more: object, seeds: str = "2", template: str = TEMPLATE) -> Any:
        given = ["--template", template, "--model", tiny, "--seeds", seeds, "--name", "small", "-o", tmp_path / "out"]
        return cli("generate", *given, *SMALL, *more)

    return run


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


def takes_in(space: Workspace) -> list[Take]:
    return [Take.open(space.take_folder(take)) for take in space.take_ids()]


def event_lines(ran: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ran.out.splitlines()]


def test_a_template_becomes_takes_and_the_same_again_makes_nothing(make, space: Workspace) -> None:
    ran = make("--store-latents")
    assert (ran.status, ran.err) == (0, "")
    takes = takes_in(space)
    assert len(takes) == 4 and all(take.manifest.latents is not None for take in takes)
    assert {take.recipe.prompt for take in takes} == {"a red circle", "a blue circle"}
    for take in takes:
        take.verify()
        assert take.id in ran.out
    assert "\x1b" not in ran.out and "\r" not in ran.out
    assert "4 made" in ran.out and "wanscope compare small" in ran.out
    again = make("--store-latents")
    assert again.status == 0 and "4 complete before" in again.out and "made" not in again.out.splitlines()[-3]
    more = make("--store-latents", seeds="3")
    assert "2 made, 4 complete before" in more.out


def test_json_is_events_and_nothing_else(make) -> None:
    ran = make("--json", seeds="1")
    kinds = [line["event"] for line in event_lines(ran)]
    assert ran.err == ""
    assert kinds.count("StepDone") == 6 and kinds.count("TakeDone") == 2
    assert kinds[-1] == "StudyDone" and "ModelReady" in kinds and "StudyStarted" in kinds


def test_a_take_is_made_again_bit_for_bit(cli, make, space: Workspace, tmp_path: Path) -> None:
    make(seeds="1", template="a red circle")
    (take,) = takes_in(space)
    for source in (take.id[:6], take.folder / "take.json", take.video):
        ran = cli("generate", source, "-o", space.folder)
        assert ran.status == 0 and "the same bits" in ran.out
    ran = cli("generate", take.video, "-o", tmp_path / "other")
    assert ran.status == 0 and "the same bits" in ran.out
    (made,) = takes_in(Workspace(tmp_path / "other"))
    assert made.id == take.id and (made.final == take.final).all()


def test_a_second_pass_starts_from_a_take(cli, make, space: Workspace) -> None:
    make(seeds="5,", template="a red (circle)")
    (first,) = takes_in(space)
    ran = cli("generate", "--from-take", first.id[:8], "--start-step", 2, "-o", space.folder, "--name", "second")
    assert ran.status == 0
    (second,) = (take for take in takes_in(space) if take.id != first.id)
    assert second.recipe.init is not None and second.recipe.init.take == first.id
    assert (second.recipe.prompt, second.recipe.seed, len(second.sigmas)) == ("a red circle", 5, 2)
    refused = cli("generate", "--from-take", first.id, "-o", space.folder)
    assert refused.status == 2 and "start_step" in refused.err


def test_failed_takes_are_listed_and_the_others_made(make, space: Workspace, monkeypatch, tmp_path: Path) -> None:
    from wanscope.study import make_take as making

    true = making.denoise
    calls: list[int] = []

    def fails(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise NumericalError("the latents have NaN", "step 2")
        if len(calls) == 2:
            raise ZeroDivisionError("unforeseen")
        return true(*args, **options)

    monkeypatch.setattr(making, "denoise", fails)
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: tmp_path / "logs")
    ran = make()
    assert ran.status == 1
    assert "2 made, 2 failed" in ran.out
    assert "red_seed00" in ran.err and "the latents have NaN: step 2" in ran.err
    assert "red_seed01" in ran.err and "ZeroDivisionError: unforeseen" in ran.err
    (report,) = (tmp_path / "logs").iterdir()
    assert str(report) in ran.err and "in fails" in report.read_text()
    assert "2 of 4 takes failed" in ran.err and "Traceback" not in ran.err
    rerun = make()
    assert rerun.status == 0 and "2 made, 2 complete before" in rerun.out


def test_failures_with_json_are_events_and_a_status(make, monkeypatch) -> None:
    from wanscope.study import make_take as making

    def fails(*args: Any, **options: Any) -> Any:
        raise NumericalError("the latents have NaN")

    monkeypatch.setattr(making, "denoise", fails)
    ran = make("--json", seeds="1")
    assert ran.status == 1
    assert [line["event"] for line in event_lines(ran)].count("TakeFailed") == 2


class Pressing(progress.Lines):
    """Presses Ctrl-C after a step, or sends another signal."""

    def __init__(self, times: int, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.times, self.steps, self.number = times, 0, number

    def __call__(self, event: events.Event) -> None:
        super().__call__(event)
        if isinstance(event, events.StepDone):
            self.steps += 1
            if self.steps == 5:  # in the middle of the second take
                for _ in range(self.times):
                    signal.raise_signal(self.number)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_keeps_what_is_finished(make, space: Workspace, monkeypatch, times: int) -> None:
    before, said = signal.getsignal(signal.SIGINT), []
    monkeypatch.setattr(process, "_say_stopping", lambda: said.append(1))
    listener = Pressing(times)
    monkeypatch.setattr(progress, "make", lambda json: listener)
    ran = make()
    assert ran.status == 130
    assert "1 of 4 takes complete" in ran.err and "Run it again to continue" in ran.err and "Traceback" not in ran.err
    assert listener.steps == 5
    assert len(said) == 1
    assert len(takes_in(space)) == 1 and not list(space.takes.glob(".*.partial"))
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert "3 made, 1 complete before" in make().out


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_scheduler_or_a_closed_terminal_is_told_what_stays(
    make, space: Workspace, monkeypatch, name: str, status: int
) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    monkeypatch.setattr(progress, "make", lambda json: Pressing(2, number))  # the second one does not cut it short
    ran = make()
    assert ran.status == status
    assert "1 of 4 takes complete" in ran.err and "Run it again to continue" in ran.err and "Traceback" not in ran.err
    assert len(takes_in(space)) == 1 and not list(space.takes.glob(".*.partial"))
    table = next(space.studies.glob("*/index.csv")).read_text()
    assert table.count(",complete,") == 1 and table.count(",missing,") == 3
    assert signal.getsignal(number) is before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_every_command_ends_in_a_sentence_when_it_is_ended(monkeypatch, capsys, name: str, status: int) -> None:
    monkeypatch.setattr(
        sys.modules["wanscope.doors.cli.main"], "_run", lambda arguments: signal.raise_signal(signal.Signals[name])
    )
    assert main(["takes"]) == status
    said = capsys.readouterr().err
    assert name in said and "what was finished before stays" in said


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_signal_that_nohup_ignores_stays_ignored(monkeypatch) -> None:
    def hang_up(arguments: object) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    monkeypatch.setattr(sys.modules["wanscope.doors.cli.main"], "_run", hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["takes"]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("code", "says"), [(errno.EMFILE, "files open"), (errno.ENOMEM, "memory is full"), (errno.EIO, "cannot")]
)
def test_every_command_names_what_the_machine_has_run_out_of(monkeypatch, capsys, code: int, says: str) -> None:
    def fail(arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sys.modules["wanscope.doors.cli.main"], "_run", fail)
    assert main(["takes"]) == 1
    said = capsys.readouterr().err
    assert says in said and "did not foresee" not in said


def test_a_full_disk_is_reported_as_a_sentence(make, monkeypatch, space: Workspace) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    ran = make()
    assert ran.status == StorageRefused.exit_status == 2
    assert "not enough space" in ran.err and "1.0 kB are free" in ran.err


def test_dry_run_reports_what_would_be_made_and_changes_nothing(make, space: Workspace, monkeypatch) -> None:
    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("a dry run loads no model")

    monkeypatch.setattr("wanscope.wan.load.load", never)
    ran = make("--dry-run", "--store-latents")
    assert (ran.status, ran.err) == (0, "")
    for text in ("4 takes", "2 variations x 2 seeds", "0 of 4", "a blue circle", "blue_seed01", "matrix product"):
        assert text in ran.out
    assert not space.folder.exists()
    shown = json.loads(make("--dry-run", "--json").out)
    assert (shown["takes"], shown["complete"], shown["missing"]) == (4, 0, 4)
    assert shown["memory"]["fits"] and shown["seconds"]["a_take"] > 0 and shown["bytes"]["needed"] > 0
    ids = [take["take"] for take in shown["planned"]]
    monkeypatch.undo()
    make(seeds="1")
    assert set(space.take_ids()) < set(ids)
    shown = json.loads(make("--dry-run", "--json").out)
    assert (shown["complete"], shown["missing"]) == (2, 2)
    assert [take["status"] for take in shown["planned"]] == ["complete", "missing"] * 2
    assert "2 earlier takes of this model" in shown["seconds"]["basis"]
    assert shown["seconds"]["total"] == pytest.approx(2 * shown["seconds"]["a_take"])
    assert "nothing to make" in make("--dry-run", seeds="1").out
    mean = sum(take.manifest.seconds["total"] for take in takes_in(space)) / 2
    assert shown["seconds"]["a_take"] == pytest.approx(mean, rel=0.5)


@pytest.mark.parametrize(
    ("seeds", "options", "warned"),
    [
        ("5", ("--store-latents",), "with 5 seeds, no difference between two values can be significant at 5%"),
        ("1", ("--store-latents",), "with 1 seed, no difference"),
        ("6", ("--store-latents",), ""),
        ("5", (), ""),  # no latents: no analysis
    ],
)
def test_dry_run_warns_if_no_test_can_be_significant(make, seeds: str, options: tuple[str, ...], warned: str) -> None:
    shown = json.loads(make("--dry-run", "--json", *options, seeds=seeds).out)
    assert any(warned in note for note in shown["notes"]) if warned else not any("5%" in n for n in shown["notes"])
    assert ("--seeds 6" in make("--dry-run", *options, seeds=seeds).out) == bool(warned)
    assert "--seeds 6" not in make("--dry-run", *options, seeds=seeds, template="a red circle").out


def test_dry_run_counts_scenes_as_units_where_the_design_does(cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "scenes.yaml"
    scenes = "[@where: on the left|on the right|above|below|inside]"
    path.write_text(
        f"model: {tiny}\nprompt: 'a [@color: red|blue] circle {scenes}'\nnegative: ''\ncapture: {{latents: true}}\n"
        "design: {factor: color, blocks: [seed, where]}\nseeds: 8\n"
    )
    shown = cli("generate", path, *SMALL[2:], "--dry-run", "-o", tmp_path / "out").out
    assert "with 5 scenes, no difference between two values" in shown and "6 scenes in the prompt" in shown


def test_a_hypothesis_is_checked_and_shown_before_the_run(cli, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "claims.yaml"

    def ran(metric: str, *more: object) -> Any:
        claim = f"{{text: blue is longer, metric: {metric}, contrast: [blue, red]}}"
        path.write_text(
            f"model: {tiny}\nprompt: 'a [@color: red|blue] circle'\nnegative: ''\ncapture: {{latents: true}}\n"
            f"design: {{factor: color, hypotheses: [{claim}, red is nicer]}}\n"
        )
        return cli("generate", path, *SMALL[2:], "-o", tmp_path / "out", *more)

    for more in ((), ("--dry-run",)):
        refused = ran("path_lenght", *more)
        assert refused.status == 2 and not (tmp_path / "out").exists()
        assert "design.hypotheses.0.metric is 'path_lenght'" in refused.err
        assert "did you mean 'path_length'?" in refused.err
    shown = ran("path_length", "--dry-run").out
    assert "blue is longer (tested: path_length, blue less red)" in shown
    assert "red is nicer (no test answers it: it names no metric)" in shown
    assert "blue is longer (no test answers it: a single seed" in ran("path_length", "--seeds", "1", "--dry-run").out


def test_dry_run_of_a_take_and_of_impossible_requests(cli, make, space: Workspace, monkeypatch) -> None:
    make(seeds="1", template="a red circle")
    (take,) = takes_in(space)
    ran = cli("generate", take.id, "--dry-run", "-o", space.folder)
    assert ran.status == 0 and "made again" in ran.out and take.id in ran.out
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 1000, "available": 1000})())
    ran = make("--dry-run")
    assert ran.status == 2 and "does not fit" in ran.out and "does not fit into memory" in ran.err
    shown = make("--dry-run", "--json")
    assert shown.status == 2 and not json.loads(shown.out)["memory"]["fits"]


def test_dry_run_of_a_model_that_is_not_here(cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", not_here)
    shown = json.loads(cli("generate", "fast_test", "--dry-run", "--json", "-o", tmp_path / "out").out)
    assert (shown["takes"], shown["complete"], shown["missing"]) == (2, None, 2)
    assert shown["planned"][0]["take"] is None and shown["sampler"]["steps"] == 10
    ran = cli("generate", "fast_test", "--dry-run", "-o", tmp_path / "out")
    assert ran.status == 0 and "the weights are not here yet" in ran.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_dry_run_of_a_model_that_needs_a_gpu_where_there_is_none(cli, tmp_path: Path, monkeypatch) -> None:
    def never(*args: Any) -> float:
        raise AssertionError("a model that needs a GPU is not timed on the CPU")

    monkeypatch.setattr("wanscope.wan.speed.matmul_flops", never)
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"total": 1 << 40, "available": 1 << 40})())
    options = ["-t", "a red circle", "--model", "wan2.1-t2v-14b", "--dry-run", "-o", tmp_path / "out"]
    shown = json.loads(cli("generate", *options, "--json").out)
    assert shown["seconds"].keys() == {"a_take", "total", "basis"} and shown["memory"]["fits"]
    assert shown["seconds"]["a_take"] is None and shown["seconds"]["total"] is None
    doctor = next(check for check in json.loads(cli("doctor", "--json").out)["checks"] if check["name"] == "GPU")
    assert "needs a GPU" in shown["seconds"]["basis"] and doctor["detail"] in shown["seconds"]["basis"]
    ran = cli("generate", *options)
    assert ran.status == 0 and "time       no estimate: Wan 2.1 text-to-video 14B needs a GPU" in ran.out

    driver = doctor_module.Check("GPU", "warn", "the CUDA build of torch finds no GPU; check the driver", "nvidia-smi")
    monkeypatch.setattr(doctor_module, "gpu", lambda: driver)
    assert "finds no GPU; check the driver (do: nvidia-smi)" in cli("generate", *options).out


def not_here(*args: Any, local_files_only: bool = False, **options: Any) -> str:
    assert local_files_only, "a dry run asks no network"
    raise FileNotFoundError("not in the cache")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--store-attention", "--template", "a red circle"], "a red (circle)"),
        (["--memory", "lots"], "auto"),
        (["--frames", "18"], "17 or 21"),
        (["--device", "gpu"], "gpu"),
        (["--set", "sampler.start_step=2"], "init"),
    ],
)
def test_what_is_refused_before_any_work(make, space: Workspace, more: list[str], said: str) -> None:
    ran = make(*more)
    assert ran.status == 2 and said in ran.err and ran.err.startswith("wanscope: ")
    assert takes_in(space) == []


def test_demo_makes_a_grid_and_suggests_what_to_do_next(cli, tiny: Path, tmp_path: Path, monkeypatch) -> None:
    from wanscope.doors.cli import demo
    from wanscope.recipe import SamplerSpec, VideoSpec

    assert demo.STUDY.model == "marbles"
    changes = {
        "model": str(tiny),
        "negative": "",
        "video": VideoSpec(width=32, height=32, frames=5, fps=8),
        "sampler": SamplerSpec(steps=2),
    }
    monkeypatch.setattr(demo, "STUDY", demo.STUDY.model_copy(update=changes))
    draw_few(monkeypatch)
    monkeypatch.chdir(tmp_path)
    ran = cli("demo", "--output-dir", tmp_path / "out")
    assert (ran.status, ran.err) == (0, "")
    space = Workspace(tmp_path / "out")
    assert {take.recipe.prompt for take in takes_in(space)} == {
        f"a {color} circle moves {way} on a black background" for color in ("red", "blue") for way in ("left", "right")
    }
    assert all(take.manifest.latents is not None for take in takes_in(space))
    grid = Path("out", "studies", "demo", "side-by-side.mp4")
    assert str(grid) in ran.out and "Next:" in ran.out
    facts = video_facts(grid)
    assert facts["frames"] == 5 and facts["height"] > 1.5 * facts["width"]  # four variations by two seeds
    ran = cli("demo", "--json", "--output-dir", tmp_path / "out")
    video = str(tmp_path / "out" / "studies" / "demo" / "side-by-side.mp4")
    assert event_lines(ran)[-2] == {"event": "GridWritten", "video": video, "rows": 4, "columns": 2}
    report = tmp_path / "out" / "studies" / "demo" / "analysis" / "report.html"
    assert event_lines(ran)[-1] == {"event": "ReportWritten", "report": str(report)}
    page = report.read_text(encoding="utf-8")
    # Eight takes, and the maps of one pair for each of the two contrasts.
    assert page.count("data:video/mp4;base64,") == 8 + 2 and "no test can reach 5%" in page


def test_a_terminal_gets_bars_and_its_cursor_back(make, monkeypatch) -> None:
    import io

    from rich.console import Console

    screen = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False, highlight=False, emoji=False)
    monkeypatch.setattr(output, "console", lambda: screen)
    monkeypatch.setattr(output, "interactive", lambda stream=None: True)
    ran = make(seeds="1")
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    assert ran.status == 0
    assert "step 3/3" in text and "left" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # hidden, and shown again
    assert options.MEMORY == ("auto", "none", "offload")

"""Runs of a study: takes that exist are skipped, extended or replayed; failures, stops, full disks, damage."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.studies import STUDY, Events, model
from helpers.tiny import tiny_folder, tiny_model, video
from wanscope.errors import (
    Interrupted,
    ModelError,
    NumericalError,
    RecipeError,
    ReplayDiffers,
    StorageError,
    TakeNotFound,
)
from wanscope.events import Note, PromptsEncoded, StepDone, TakeDone, TakeFailed, TakeSkipped, TakeStarted
from wanscope.sample.conditioning import Conditioning
from wanscope.sample.loop import denoise, initial_noise
from wanscope.study import make_take, prepare
from wanscope.study.check_texts import check_prompts
from wanscope.study.run import StudyResult, run
from wanscope.take.manifest import Manifest
from wanscope.take.store import Take, latents_sha256
from wanscope.wan.text import encode
from wanscope.workspace import Workspace

LATENTS = {"capture": {"latents": {"dtype": "fp32"}}}


def made(folder: Path, on_event: Any = None, **changes: Any) -> StudyResult:
    return run(
        {**STUDY, **changes}, workspace=folder, model=model(), on_event=Events() if on_event is None else on_event
    )


def stamps(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("takes/*/take.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return made(tmp_path_factory.mktemp("finished"), **LATENTS)


@pytest.fixture
def copy(finished: StudyResult, tmp_path: Path) -> Path:
    """Return a copy of the workspace with the finished study, for tests that damage it."""
    assert finished.folder is not None
    shutil.copytree(finished.folder.parents[1], tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def test_every_take_equals_the_result_of_the_loop(finished: StudyResult) -> None:
    assert (finished.made, len(finished.takes), finished.failed) == (4, 4, ())
    for take in finished.takes:
        take.verify()
        recipe = take.recipe
        cond, uncond = encode(model(), [recipe.prompt, recipe.negative])
        noise = initial_noise(model().latent_shape(recipe.video), recipe.seed)
        result = denoise(model(), Conditioning(cond, uncond), recipe.sampler, noise)
        want = result.latents[0].numpy()
        assert np.array_equal(take.final, want) and take.manifest.latents_sha256 == latents_sha256(want)
        assert np.array_equal(take.latents[-1], want) and np.array_equal(take.latents[0], noise[0].numpy())
        assert take.sigmas.tolist() == list(result.sigmas)
        v = np.diff(take.latents[:].reshape(4, -1).astype(np.float64), axis=0, prepend=0)
        assert np.allclose(take.gram, v @ v.T, rtol=1e-10)
        assert take.frames.shape == (5, 32, 32, 3)


def test_the_records_of_a_take(finished: StudyResult) -> None:
    take = finished.takes[0]
    assert [e["event"] for e in take.events()] == ["TakeStarted", "StepDone", "StepDone", "StepDone"]
    assert {"denoise", "decode", "write", "total"} == set(take.manifest.seconds)
    assert take.manifest.peak_bytes["process"] > 10**7
    assert take.manifest.environment.device == "cpu" and take.manifest.environment.threads >= 1
    assert take.recipe.labels == {"color": "red"} and take.recipe.seed == 0
    assert take.recipe.model.weights.keys() == {"transformer", "vae", "text_encoder", "settings"}


def test_a_second_run_makes_nothing_and_needs_no_model_call(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stamps(copy)
    monkeypatch.setattr("wanscope.study.run.encode_prompts", None)
    events = Events()
    again = made(copy, events, **LATENTS)
    assert (again.made, len(again.takes)) == (0, 4) and stamps(copy) == before
    assert len(events.of(TakeSkipped)) == 4 and not events.of(TakeStarted)


def test_more_seeds_add_takes_and_change_no_other(copy: Path) -> None:
    before = stamps(copy)
    events = Events()
    more = made(copy, events, seeds=3, **LATENTS)
    assert (more.made, len(more.takes)) == (2, 6)
    assert before.items() <= stamps(copy).items()
    assert {take.recipe.seed for take in more.takes} == {0, 1, 2}
    (note,) = [event for event in events.of(Note) if "has changed" in event.text]
    assert "seeds" in note.text


def test_names_lead_to_takes(finished: StudyResult) -> None:
    assert finished.folder is not None
    links = sorted(path.name for path in finished.folder.glob("*.mp4"))
    assert links == [f"{color}_seed0{seed}.mp4" for color in ("blue", "red") for seed in (0, 1)]
    assert Take.open((finished.folder / "blue_seed01.mp4").resolve().parent).recipe.prompt == "a blue circle"


def test_prompts_are_encoded_once_each(tmp_path: Path) -> None:
    events = Events()
    made(tmp_path, events, prompt="a [red|red|blue] circle", seeds=1)
    assert events.of(PromptsEncoded)[0].prompts == 3  # two prompts and the negative prompt
    assert len(events.of(TakeDone)) == 2  # equal prompts are one take


def test_weights_of_words_reach_the_model(tmp_path: Path) -> None:
    plain, heavy = (
        made(tmp_path, prompt=p, seeds=1, name=n).takes[0] for p, n in (("a (red) dog", "a"), ("a (red:3) dog", "b"))
    )
    assert plain.recipe.prompt == heavy.recipe.prompt == "a red dog"
    assert plain.manifest.latents_sha256 != heavy.manifest.latents_sha256
    off = made(tmp_path, prompt="a (red:3) dog", weights="none", seeds=1, name="c")
    assert off.made == 0 and off.takes[0].id == plain.id  # the same video, found by its id


# captures that are added later


def test_a_take_is_made_again_for_more_records_and_has_the_same_bits(tmp_path: Path) -> None:
    first = made(tmp_path, seeds=1)
    assert first.takes[0].manifest.gram is None
    events = Events()
    again = made(tmp_path, events, seeds=1, **LATENTS)
    assert again.made == 2
    assert [t.manifest.latents_sha256 for t in again.takes] == [t.manifest.latents_sha256 for t in first.takes]
    assert len([e for e in events.of(Note) if "the same bits" in e.text]) == 2
    assert again.takes[0].latents.shape[0] == 4
    # Requesting less afterwards keeps the existing records.
    assert made(tmp_path, seeds=1).made == 0
    coarser = made(tmp_path, seeds=1, capture={"latents": {"dtype": "fp16", "every": 2}})
    assert coarser.made == 0 and coarser.takes[0].latents.dtype == np.float32


# damage


@pytest.mark.parametrize("harm", ["remove video.mp4", "cut latents", "break take.json", "remove take.json"])
def test_a_damaged_take_is_made_again(copy: Path, finished: StudyResult, harm: str) -> None:
    victim = copy / "takes" / finished.takes[1].id
    if harm == "remove video.mp4":
        (victim / "video.mp4").unlink()
    elif harm == "cut latents":
        (victim / "latents.zarr" / "c.1.0.0.0.0").write_bytes(b"")
    elif harm == "break take.json":
        (victim / "take.json").write_text("{}")
    else:
        (victim / "take.json").unlink()
    again = made(copy, **LATENTS)
    assert again.made == 1
    again.takes[1].verify()
    assert again.takes[1].manifest.latents_sha256 == finished.takes[1].manifest.latents_sha256


# replay


@pytest.mark.parametrize("file", ["take.json", "video.mp4", "", "id", "start of id"])
def test_a_take_made_again_has_the_same_bits_and_this_is_reported(copy: Path, finished: StudyResult, file: str) -> None:
    take = finished.takes[2]
    source: str = str(copy / "takes" / take.id / file) if "id" not in file else take.id[: 16 if file == "id" else 6]
    before = stamps(copy)
    events = Events()
    again = run(source, workspace=copy, model=model(), on_event=events)
    assert len(events.of(StepDone)) == 3  # it was really made
    assert [e for e in events.of(Note) if "the same bits" in e.text]
    assert (again.made, again.failed, again.folder) == (0, (), None) and stamps(copy) == before


@pytest.mark.parametrize("name", ["video.mp4", "final.npy"])
def test_a_take_made_again_replaces_one_whose_files_are_damaged(copy: Path, finished: StudyResult, name: str) -> None:
    """The sizes are right, so only checksums can detect it."""
    take = finished.takes[2]
    file = copy / "takes" / take.id / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    events = Events()
    again = run(copy / "takes" / take.id / "take.json", workspace=copy, model=model(), on_event=events)
    assert again.made == 1 and again.failed == ()
    again.takes[0].verify()
    (note,) = [e for e in events.of(Note) if "it is replaced" in e.text]
    assert str(file) in note.text and "checksum" in note.text


def test_a_video_alone_is_enough(finished: StudyResult, tmp_path: Path) -> None:
    shutil.copy(finished.takes[0].video, tmp_path / "from a friend.mp4")
    events = Events()
    again = run(tmp_path / "from a friend.mp4", workspace=tmp_path / "mine", model=model(), on_event=events)
    assert again.made == 1 and again.takes[0].manifest.latents_sha256 == finished.takes[0].manifest.latents_sha256
    assert [e for e in events.of(Note) if "the same bits as" in e.text and "from a friend" in e.text]


def rewrite(take: Take, **changes: Any) -> None:
    """Change a take's manifest and update its checksums."""
    manifest = Manifest.model_validate({**take.manifest.model_dump(mode="json"), **changes})
    (take.folder / "take.json").write_text(manifest.dumped())


def test_different_bits_on_the_same_machine_are_an_error_and_the_take_stays(copy: Path, finished: StudyResult) -> None:
    take = Take.open(copy / "takes" / finished.takes[0].id)
    rewrite(take, latents_sha256="0" * 64)
    before = stamps(copy)
    result = run(take.id, workspace=copy, model=model())
    assert isinstance(result.failed[0].exception, ReplayDiffers)
    assert "was not reproduced" in result.failed[0].error and stamps(copy) == before


def test_different_bits_on_another_machine_are_reported_and_recorded(copy: Path, finished: StudyResult) -> None:
    take = Take.open(copy / "takes" / finished.takes[0].id)
    env = take.manifest.environment
    old = env.model_copy(update={"packages": {**env.packages, "torch": "1.0"}})
    rewrite(take, latents_sha256="0" * 64, environment=old.model_dump())
    events = Events()
    result = run(take.id, workspace=copy, model=model(), on_event=events)
    (note,) = events.of(Note)
    assert "differs from" in note.text and "torch 1.0 -> " in note.text
    assert result.failed == () and Take.open(take.folder).manifest.latents_sha256 == "0" * 64  # complete: it stays
    (take.folder / "video.mp4").unlink()
    replaced = made(copy, **LATENTS)
    assert replaced.made == 1
    (earlier,) = replaced.takes[0].manifest.earlier
    assert earlier.latents_sha256 == "0" * 64 and earlier.environment.packages["torch"] == "1.0"


def test_a_recipe_of_other_weights_is_refused(finished: StudyResult, tmp_path: Path) -> None:
    other = tiny_model("2.1", blocks=2, heads=2, seed=5)
    with pytest.raises(ModelError, match=r"its transformer, vae, text_encoder differ from the recorded weights"):
        run(finished.takes[0], workspace=tmp_path, model=other)
    assert not (tmp_path / "takes").exists()


# failing, stopping


def test_one_failing_take_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = make_take.denoise

    def fails_once(model: Any, conditioning: Any, sampler: Any, noise: Any, **options: Any) -> Any:
        if np.array_equal(noise, initial_noise(noise.shape[1:], 1)):
            raise NumericalError("the latents have NaN after step 1") if len(seen) == 0 else ValueError("a bug")
        return real(model, conditioning, sampler, noise, **options)

    seen: list[int] = []
    monkeypatch.setattr(make_take, "denoise", fails_once)
    events = Events()

    def listen(event: Any) -> None:
        events(event)
        seen.extend([1] if isinstance(event, TakeFailed) else [])

    result = made(tmp_path, listen)
    assert [take.recipe.seed for take in result.takes] == [0, 0]
    assert [(f.name, f.seed) for f in result.failed] == [("red_seed01", 1), ("blue_seed01", 1)]
    assert "NaN after step 1" in result.failed[0].error and result.failed[1].error == "ValueError: a bug"
    assert len(events.of(TakeFailed)) == 2
    assert list((tmp_path / "takes").glob(".*.partial")) == []
    index = (tmp_path / "studies" / "small" / "index.csv").read_text()
    assert index.count("failed") == 2 and index.count("complete") == 2
    monkeypatch.undo()
    assert made(tmp_path).made == 2


@pytest.mark.parametrize("how", ["interrupt", "ctrl-c"])
def test_stopping_between_steps_leaves_a_clean_state(tmp_path: Path, how: str) -> None:
    steps: list[Any] = []

    def listen(event: Any) -> None:
        steps.extend([event] if isinstance(event, StepDone) else [])
        if how == "ctrl-c" and len(steps) == 5:
            raise KeyboardInterrupt

    def asked() -> bool:
        return how == "interrupt" and len(steps) >= 5

    with pytest.raises(Interrupted, match="stopped with 1 of 4 takes complete") as stopped:
        run(STUDY, workspace=tmp_path, model=model(), on_event=listen, interrupt=asked)
    assert stopped.value.exit_status == 130 and len(steps) == 5
    assert sorted(p.name for p in (tmp_path / "takes").iterdir() if p.name != ".locks") == list(stamps(tmp_path))
    assert (tmp_path / "studies" / "small" / "index.csv").read_text().count("complete,") == 1
    assert made(tmp_path).made == 3


def test_a_full_disk_ends_the_run_and_leaves_what_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = make_take.write_video
    calls: list[Path] = []

    def fills(path: Path, *rest: Any) -> int:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *rest)

    monkeypatch.setattr(make_take, "write_video", fills)
    with pytest.raises(StorageError, match="is full"):
        made(tmp_path)
    assert len(calls) == 2 and len(stamps(tmp_path)) == 1
    assert list((tmp_path / "takes").glob(".*.partial")) == []


def test_too_little_space_is_an_error_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wanscope.take.disk.free_bytes", lambda _: 1000)
    with pytest.raises(StorageError, match=r"4 takes need about .* and 1\.0 kB are free"):
        made(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be made: .*file is not a folder"):
        made(tmp_path / "file" / "out")


def test_leftovers_of_killed_processes_are_removed_but_not_the_work_of_others(tmp_path: Path) -> None:
    takes = tmp_path / "takes"
    for name in (".aaaa.1.partial", ".bbbb.2.partial"):
        (takes / name).mkdir(parents=True)
    from wanscope.study.lock import held

    with held(takes, "bbbb"):
        made(tmp_path, seeds=1)
    assert [p.name for p in takes.glob(".*.partial")] == [".bbbb.2.partial"]


# what is refused before any work


def test_prompts_that_are_too_long_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"the prompt has .* tokens and the model reads 16"):
        made(tmp_path, prompt="a red circle and " * 10)
    with pytest.raises(RecipeError, match=r"the negative prompt has .* tokens and the model reads 16"):
        made(tmp_path, negative="a red circle and " * 10)
    assert list(tmp_path.iterdir()) == []


def test_words_that_marbles_never_saw_are_named_with_a_real_model() -> None:
    from helpers.takes import recipe

    recipes = [recipe(prompt="a red ñandú and a 猫"), recipe(prompt="a red circle")]
    check_prompts(model().tokenizer, recipes, 16, closed_vocabulary=False)
    with pytest.raises(RecipeError, match=r"(?s)marbles does not know 'ñandú', '猫'.*--model wan2\.1-t2v-1\.3b"):
        check_prompts(model().tokenizer, recipes, 16, closed_vocabulary=True)


def test_a_dtype_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="asks for bf16 and the model that was passed in is fp32"):
        made(tmp_path, dtype="bf16")


@pytest.mark.parametrize(
    ("source", "kind", "says"),
    [
        ("nothing", RecipeError, "no study file or take 'nothing'"),
        ("gone/take.json", TakeNotFound, "no file gone/take.json"),
        ("gone.mp4", TakeNotFound, "no file gone.mp4"),
        ("gone.yaml", RecipeError, "no study file 'gone.yaml'"),
        ([], RecipeError, "nothing to make"),
        ({"promt": "x"}, RecipeError, "did you mean 'prompt'"),
    ],
)
def test_invalid_sources_are_refused(tmp_path: Path, source: Any, kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        run(source, workspace=tmp_path, model=model())
    assert list(tmp_path.iterdir()) == []


# from files: a model folder, a study file


def test_a_study_file_with_a_model_folder_loads_runs_and_is_planned(tmp_path: Path) -> None:
    tiny_folder(tmp_path / "my-wan", "2.1", blocks=2, heads=2)
    path = tmp_path / "first.yaml"
    path.write_text(json.dumps({**{k: v for k, v in STUDY.items() if k != "name"}, "model": "my-wan", "seeds": 1}))
    space = tmp_path / "out"
    plan = prepare.plan(str(path), str(space))
    assert (plan.name, plan.takes, plan.complete) == ("first", 2, 0) and plan.needed_bytes > 1000
    assert not space.exists()
    events = Events()
    result = run(str(path), workspace=space, on_event=events)
    assert (result.name, result.made, result.failed) == ("first", 2, ())
    assert prepare.plan(str(path), str(space)).complete == 2
    for take in result.takes:
        take.verify()
        assert take.recipe.model.weights.keys() >= {"tokenizer", "settings"}
    # The folder is found again by the recipe, wherever the study file is.
    again = run(result.takes[0].video, workspace=space, on_event=events)
    assert again.failed == () and [e for e in events.of(Note) if "the same bits" in e.text]
    # A copy of the model under another name is the same model.
    shutil.copytree(tmp_path / "my-wan", tmp_path / "renamed")
    same = run({**STUDY, "model": str(tmp_path / "renamed"), "seeds": 1, "name": "second"}, workspace=space)
    assert same.made == 0 and [t.id for t in same.takes] == [t.id for t in result.takes]


def test_recipes_run_without_a_study(finished: StudyResult, tmp_path: Path) -> None:
    recipes = [take.recipe for take in finished.takes[:2]]
    result = run(recipes, workspace=tmp_path, model=model())
    assert (result.made, result.folder) == (2, None) and not (tmp_path / "studies").exists()
    assert [t.id for t in result.takes] == [r.id for r in recipes]
    assert run(recipes[0], workspace=tmp_path, model=model()).made == 0


# starting from something


def start(finished: StudyResult, tmp_path: Path, kind: str) -> dict[str, str]:
    take = finished.takes[0]
    if kind == "take":
        return {"take": take.id}
    if kind == "video":
        return {"video": str(take.video)}
    path = tmp_path / f"start.{kind}"
    if kind == "npy":
        np.save(path, take.final)
    else:
        from safetensors.numpy import save_file

        save_file({"latents": take.final[None]}, path)
    return {"latents": str(path)}


@pytest.mark.parametrize("kind", ["take", "npy", "safetensors", "video"])
def test_a_second_pass_starts_from_a_take_latents_or_a_video(
    copy: Path, finished: StudyResult, tmp_path: Path, kind: str
) -> None:
    second = made(
        copy,
        name="second",
        prompt="a blue circle",
        seeds=1,
        init=start(finished, tmp_path, kind),
        sampler={"steps": 4, "start_step": 2},
        **LATENTS,
    )
    assert second.failed == () and second.made == 1
    take = second.takes[0]
    assert take.latents.shape[0] == 3 and len(take.sigmas) == 3
    sigma = take.sigmas[0]
    noise = initial_noise(finished.takes[0].final.shape, 0)[0].numpy()
    implied = (take.latents[0] - sigma * noise) / (1 - sigma)
    if kind == "video":  # the VAE's encoding of a decoded MP4: a random tiny VAE is not invertible
        assert np.isfinite(implied).all()
    else:
        assert np.allclose(implied, finished.takes[0].final, atol=1e-5)
    assert take.recipe.init is not None and len(take.recipe.init.sha256 or "") == 64


def test_the_same_latents_are_the_same_recipe_in_any_file(copy: Path, finished: StudyResult, tmp_path: Path) -> None:
    ids = {
        made(
            copy,
            name=kind,
            seeds=1,
            prompt="a dog",
            init=start(finished, tmp_path, kind),
            sampler={"steps": 3, "denoise": 0.4},
        )
        .takes[0]
        .id
        for kind in ("take", "npy", "safetensors")
    }
    assert len(ids) == 1


def test_initial_latents_that_do_not_fit_are_refused(copy: Path, finished: StudyResult, tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((16, 1, 4, 4), np.float32))
    np.save(tmp_path / "nan.npy", np.full(finished.takes[0].final.shape, np.nan, np.float32))
    (tmp_path / "text.npy").write_text("x")
    half = {"sampler": {"steps": 4, "start_step": 2}, "name": "second"}
    cases: list[tuple[dict[str, str], type[Exception], str]] = [
        ({"take": "zzzz"}, TakeNotFound, "no take zzzz"),
        ({"latents": str(tmp_path / "gone.npy")}, TakeNotFound, "no file"),
        ({"latents": str(tmp_path / "small.npy")}, RecipeError, "16 x 1 x 4 x 4 .* to be made are 16 x 2 x 4 x 4"),
        ({"latents": str(tmp_path / "nan.npy")}, RecipeError, "contains NaN or Inf"),
        ({"latents": str(tmp_path / "text.npy")}, RecipeError, "cannot be read as latents"),
        ({"latents": str(copy / "studies/small/index.csv")}, RecipeError, "not a file of latents"),
        ({"video": str(copy / "studies/small/index.csv")}, Exception, "cannot be read as a video"),
        ({"take": finished.takes[0].id, "sha256": "0" * 64}, RecipeError, "is not what the recipe started from"),
    ]
    for init, kind, says in cases:
        with pytest.raises(kind, match=says):
            made(copy, init=init, **half)
    with pytest.raises(RecipeError, match=r"has 32 x 32 pixels and 5 frames"):
        made(copy, init={"video": str(finished.takes[0].video)}, **{**half, "video": video()})


def test_the_workspace_is_the_variables_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path / "home"))
    result = run({**STUDY, "seeds": 1, "prompt": "a dog"}, model=model())
    assert result.takes[0].folder.parent == Workspace.find().takes == tmp_path / "home" / "takes"

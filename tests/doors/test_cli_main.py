"""Exit statuses, and errors without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import wanscope
from wanscope.doors.cli import output
from wanscope.errors import DamagedTake, Interrupted, RecipeError

HEAVY = ("torch", "numpy", "yaml", "diffusers", "transformers", "zarr", "rich")


def python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [["--help"], [], ["generate", "--help"], ["--version"], ["nosuch"]])
def test_help_and_usage_load_nothing_heavy(arguments: list[str]) -> None:
    # Typer itself reads options with pydantic, but not for the list of commands.
    heavy = (*HEAVY, "pydantic") if arguments in ([], ["--help"]) else HEAVY
    code = (
        "import sys; from wanscope.doors.cli import main; status = main(sys.argv[1:]);"
        f"print(*sorted(set({heavy}) & set(sys.modules)), file=sys.stderr); sys.exit(status)"
    )
    ran = python(code, *arguments)
    assert ran.stderr.splitlines()[-1] == ""
    assert ran.returncode == (2 if arguments == ["nosuch"] else 0)


def test_python_m_wanscope_is_the_same_program() -> None:
    ran = subprocess.run([sys.executable, "-m", "wanscope", "--version"], capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stdout) == (0, f"wanscope {wanscope.__version__}\n")


def test_commands_are_listed_as_a_newcomer_meets_them(cli) -> None:
    lines = cli("--help").out.partition("Commands:")[2].partition("Begin with")[0].splitlines()
    listed = [line.split()[0] for line in lines if line[:2] == "  " and line[2:3].isalpha()]
    assert listed[:4] == ["demo", "generate", "expand", "models"]
    for earlier, later in [("generate", "takes"), ("takes", "show"), ("show", "analyze"), ("analyze", "db")]:
        assert listed.index(earlier) < listed.index(later)
    assert listed.index("db") + 1 == listed.index("index")


def test_without_arguments_the_help_is_shown(cli) -> None:
    assert "Commands:" in cli().out
    assert cli().out == cli("--help").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "--steps", "ten"], "--steps"),
        (["generate", "--stepz", "10"], "--stepz"),
        (["nosuch"], "nosuch"),
        (["show"], "ID"),
        (["expand", "a", "--limit", "0"], "--limit"),
    ],
)
def test_usage_errors_have_the_style_of_other_errors(cli, arguments: list[str], said: str) -> None:
    ran = cli(*arguments)
    assert ran.status == 2
    assert ran.out == ""
    assert ran.err.startswith("wanscope: ") and said in ran.err.splitlines()[0]
    assert ran.err.splitlines()[-1].startswith("Try: wanscope ") and ran.err.rstrip().endswith("--help")


@pytest.mark.parametrize(
    ("error", "status"),
    [(RecipeError("this", "that", "those"), 2), (DamagedTake("this", "that"), 1), (Interrupted("this", "that"), 130)],
)
def test_an_error_is_its_text_on_stderr(cli, monkeypatch, error, status) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("wanscope.doors.cli.models.run_models", lambda json: fail())
    ran = cli("models")
    assert (ran.status, ran.out) == (status, "")
    assert ran.err == f"wanscope: {error}\n"


def test_a_fix_that_is_a_setting_is_shown_as_an_option() -> None:
    text = output.error_text(RecipeError("18 frames cannot be made", "4n + 1", "video.frames=17"))
    assert text.endswith("Try: --set video.frames=17")
    assert output.error_text(RecipeError("x", "", "wanscope takes")).endswith("Try: wanscope takes")


def crash(json: bool) -> int:
    raise ZeroDivisionError("one\ntwo")


def test_an_unexpected_error_is_a_sentence_and_a_report_file(cli, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("wanscope.doors.cli.models.run_models", crash)
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: tmp_path / "logs")
    ran = cli("models")
    assert ran.status == 1
    assert "ZeroDivisionError: one" in ran.err and "Traceback" not in ran.err
    (report,) = (tmp_path / "logs").iterdir()
    assert str(report) in ran.err
    text = report.read_text()
    assert "in crash" in text and "ZeroDivisionError: one" in text


def test_a_crash_report_is_written_elsewhere_if_the_log_folder_is_not_writable(
    cli, monkeypatch, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr("wanscope.doors.cli.models.run_models", crash)
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: blocked / "logs")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    ran = cli("models")
    assert str(tmp_path / "temporary") in ran.err


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), RecipeError("x")])
def test_debug_shows_the_traceback(cli, monkeypatch, error) -> None:
    def fail(json: bool) -> int:
        raise error

    monkeypatch.setattr("wanscope.doors.cli.models.run_models", fail)
    monkeypatch.setenv("WANSCOPE_DEBUG", "0")
    assert cli("models").status in (1, 2)
    with pytest.raises(type(error)):
        cli("--debug", "models")


def test_ctrl_c_outside_of_a_study_is_130(cli, monkeypatch) -> None:
    def stop(json: bool) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("wanscope.doors.cli.models.run_models", stop)
    ran = cli("models")
    assert (ran.status, ran.err) == (130, "wanscope: interrupted.\n")


@pytest.mark.skipif(os.name == "nt", reason="no SIGPIPE there")
def test_a_closed_pipe_is_no_crash() -> None:
    code = "import sys; from wanscope.doors.cli import main; sys.exit(main(sys.argv[1:]))"
    template = "[a|b]" * 14
    with subprocess.Popen(
        [sys.executable, "-c", code, "expand", template], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(120) == 141
        assert process.stderr.read() == b""


def test_a_control_character_of_a_prompt_does_not_reach_the_terminal(cli) -> None:
    ran = cli("expand", "a \x1b[31mred] ball".replace("[", "\\[").replace("]", "\\]"))
    assert ran.status == 0
    assert "\x1b" not in ran.out and "\\x1b" in ran.out


def test_an_encoding_that_lacks_a_character_is_no_crash() -> None:
    code = "import sys; from wanscope.doors.cli import main; sys.exit(main(sys.argv[1:]))"
    ran = python(code, "expand", "色 [a|b]", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert ran.returncode == 0 and "\\u8272 b" in ran.stdout
    ran = python(code, "expand", "--json", "色 \U0001f600", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    import json

    assert json.loads(ran.stdout)["variations"][0]["prompt"] == "色 \U0001f600"


def test_memory_values_match_those_of_the_loader() -> None:
    from wanscope.doors.cli.options import MEMORY
    from wanscope.wan.load import MEMORY as KNOWN

    assert MEMORY == KNOWN

"""Follows sections of CONTRIBUTING.md in a copy of the checkout: writes their code and runs their commands.

A block of code in a section is preceded by a sentence that states where it goes:

    Create `PATH`:                                    a new file with that content
    At the end of [name](PATH), add:                  an existing file; the block goes to its end
    In [name](PATH), add below `LINE`:                the block goes below the one line that reads LINE (or above it),
                                                      indented as it, or one level more where LINE opens a bracket
    Run:                                              commands (a block marked bash)
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = "CONTRIBUTING.md"
WHERE = (
    ("create", re.compile(r"Create `(?P<path>[^`]+)`:$")),
    ("append", re.compile(r"At the end of \[[^]]+\]\((?P<path>[^)]+)\), add:$")),
    ("below", re.compile(r"In \[[^]]+\]\((?P<path>[^)]+)\), add below (?P<ticks>`+)(?P<line>.+?)(?P=ticks):$")),
    ("above", re.compile(r"In \[[^]]+\]\((?P<path>[^)]+)\), add above (?P<ticks>`+)(?P<line>.+?)(?P=ticks):$")),
    ("run", re.compile(r"Run:$")),
)


class PageError(AssertionError):
    """Names the page, the section and what to change there."""

    def __init__(self, section: str, what: str) -> None:
        super().__init__(f"{PAGE}, section {section!r}: {what}. Edit {PAGE}")


@dataclass(frozen=True)
class Step:
    """kind: one of WHERE. path, line: where the code goes; "" where the kind has none."""

    kind: str
    code: str
    path: str = ""
    line: str = ""


def steps(section: str, page: str | None = None) -> list[Step]:
    """Return the steps of a section in order. PageError for a block of code without a stated place."""
    text = (ROOT / PAGE).read_text(encoding="utf-8") if page is None else page
    parts = text.split(f"\n## {section}\n")
    if len(parts) != 2:
        raise PageError(section, "there should be one heading of that name")
    body = parts[1].split("\n## ")[0]
    found = []
    for before, code in re.findall(r"(.*?)^```\w+\n(.*?)^```$", body, re.MULTILINE | re.DOTALL):
        sentence = " ".join(before.strip().rpartition("\n\n")[2].split())
        for kind, pattern in WHERE:
            if place := pattern.search(sentence):
                fields = {name: text for name, text in place.groupdict().items() if name != "ticks"}
                found.append(Step(kind, code, **fields))
                break
        else:
            raise PageError(section, f"no sentence says where this block goes:\n{code}after: {sentence!r}\n")
    return found


def apply(root: Path, section: str, made: list[Step]) -> None:
    """Write the code of the steps below `root`. PageError if the page names a place that does not exist."""
    for step in made:
        file = root / step.path
        if step.kind == "create":
            if file.exists() or not file.parent.is_dir():
                raise PageError(section, f"it creates {step.path}, which is there already or has no folder")
            file.write_text(step.code, encoding="utf-8")
        elif step.kind != "run":
            if not file.is_file():
                raise PageError(section, f"it changes {step.path}, which does not exist")
            text = file.read_text(encoding="utf-8")
            if step.kind == "append":
                file.write_text(f"{text}\n\n{step.code}", encoding="utf-8")
                continue
            lines = text.splitlines()
            places = [i for i, line in enumerate(lines) if line.strip() == step.line]
            if len(places) != 1:
                raise PageError(section, f"{step.path} has {len(places)} lines {step.line!r}, not 1")
            (place,) = places
            deeper = "    " if step.kind == "below" and step.line[-1] in "([{" else ""
            indent = lines[place][: -len(lines[place].lstrip())] + deeper
            lines.insert(place + (step.kind == "below"), textwrap.indent(step.code.rstrip("\n"), indent))
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_of_the_checkout(folder: Path) -> Path:
    """Copy all files that a change could need; large binary files are linked."""

    def skipped(where: str, names: list[str]) -> set[str]:
        return {n for n in names if n in ("__pycache__", "images") or n.endswith(".safetensors")}

    for name in ("src", "tests", "docs", "scripts", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "configs").symlink_to("src/wanscope/configs")
    for file in (ROOT / "src").rglob("*.safetensors"):
        (folder / file.relative_to(ROOT)).symlink_to(file)
    return folder


# One process for all commands: importing torch and diffusers takes longer than they do.
DRIVER = """
import contextlib, io, json, runpy, sys, traceback

def run(words):
    if words[:3] == ["python", "-m", "pytest"]:
        import pytest
        # -o: in this process, whatever the suite's own options are
        return int(pytest.main(["-v", "-p", "no:cacheprovider", "-o", "addopts=", *words[3:]]))
    if words[0] == "python":
        sys.argv = words[1:]
        runpy.run_path(words[1], run_name="__main__")
        return 0
    from wanscope.doors.cli import main
    return main(words[1:])

for words in json.loads(sys.argv[1]):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = run(words)
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            status = traceback.format_exc()
    print(json.dumps([status, said.getvalue()]), file=sys.__stdout__, flush=True)
"""


def commands(made: list[Step]) -> list[list[str]]:
    """Return the commands of a section as lists of words."""
    lines = [line for step in made if step.kind == "run" for line in step.code.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def run(root: Path, wanted: list[list[str]]) -> list[tuple[object, str]]:
    """Run the commands below `root`, one after another in one process; return the exit status and output of each."""
    outer = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment = {**outer, "PYTHONPATH": os.pathsep.join((str(root / "src"), str(root / "tests")))}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(wanted)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(wanted), textwrap.indent(done.stderr + done.stdout, "  ")
    return [(status, said) for status, said in answers]

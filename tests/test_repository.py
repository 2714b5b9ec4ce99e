"""The repository is consistent: commands, versions, links, examples, and the content of the wheel."""

from __future__ import annotations

import ast
import ipaddress
import re
import shlex
import subprocess
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")])
CHECKS = ["ruff check", "ruff format --check", "pyright"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def fences(page: str, *languages: str) -> list[str]:
    """Return the code blocks of a page that are marked with one of these languages."""
    found = re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    return [code for language, code in found if language in languages]


def shell_lines(page: str) -> list[list[str]]:
    """Return the commands in a page's shell blocks as lists of words, without comments, with continued lines joined."""
    blocks = "\n".join(fences(page, "bash", "sh", "console")).replace("\\\n", " ")
    return [words for line in blocks.splitlines() if (words := shlex.split(line, comments=True))]


# ---- pages


def test_every_page_is_listed_once() -> None:
    listed = re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", text_of("docs/README.md"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in ROOT.glob("docs/*.md") if page.name != "README.md")


def test_contributing_shows_the_current_layout() -> None:
    page = text_of("CONTRIBUTING.md")
    layout = page.split("## Find your way")[1].split("\n## ")[0].rpartition("\n```\n")[2]
    parts = [part for part in (ROOT / "src/wanscope").iterdir() if part.suffix == ".py" or part.is_dir()]
    names = {f"{part.name}/" if part.is_dir() else part.name for part in parts} - {"__init__.py", "__pycache__/"}
    assert names - set(re.findall(r"`([^`]+)`", layout)) == set()
    # what was announced for later has come
    assert not re.findall(r"[^.]*(?:not exist yet|arrives? (?:later|with))[^.]*", page)
    for section in re.findall(r"^## (Add .*)$", page, flags=re.MULTILINE):
        links = re.findall(r"\]\(([^)#]+)", page.split(f"## {section}")[1].split("\n## ")[0])
        assert any(link.startswith("src/") for link in links) and any(link.startswith("tests/") for link in links)


# ---- commands


def set_up_commands() -> list[str]:
    section = text_of("README.md").split("## Set up")[1].split("\n## ")[0]
    return [" ".join(words) for words in shell_lines(section)]


def test_readme_sets_up_by_two_commands() -> None:
    assert set_up_commands() == ["python3 scripts/setup.py demo", "python3 scripts/setup.py test"]


@pytest.mark.parametrize("name", [".ci/run", "CONTRIBUTING.md"])
def test_ci_and_contributing_run_the_commands_of_the_readme(name: str) -> None:
    text = text_of(name)
    lines = [" ".join(words) for words in shell_lines(text)] if name.endswith(".md") else text.splitlines()
    plain = [re.sub(r" --pythonpath \S+", "", line.removeprefix(".venv/bin/")) for line in lines]
    wanted = [*set_up_commands(), *CHECKS]
    assert [line for line in plain if line in wanted][-len(wanted) :] == wanted


def test_ci_run_stops_at_the_first_failure() -> None:
    lines = text_of(".ci/run").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in lines


def test_workflows_run_what_ci_runs() -> None:
    for name in ("ci.yml", "release.yml"):
        workflow = yaml.safe_load(text_of(f".github/workflows/{name}"))
        steps = [step.get("run", "") for job in workflow["jobs"].values() for step in job["steps"]]
        assert "bash .ci/run" in steps


def known_commands() -> dict[str, set[str]]:
    from wanscope.doors.cli.app import command

    def options(one: Any) -> set[str]:
        own = {option for parameter in one.params for option in (*parameter.opts, *parameter.secondary_opts)}
        return own.union({"--help", "-h"}, *(options(below) for below in getattr(one, "commands", {}).values()))

    return {name: options(one) for name, one in command().commands.items()}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_shown_exist_with_their_options(page: Path) -> None:
    known = known_commands()
    wrong = []
    for words in shell_lines(page.read_text(encoding="utf-8")):
        if Path(words[0]).name != "wanscope" or len(words) == 1:
            continue
        name, options = words[1], {word.partition("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        if name.startswith("-"):
            continue  # options of wanscope itself
        if name not in known or not options <= known[name]:
            wrong.append(" ".join(words))
    assert not wrong


def test_set_up_options_shown_exist() -> None:
    script = text_of("scripts/setup.py")
    for page in ("README.md", "docs/install.md"):
        shown = set(re.findall(r"`(--(?:torch|installer|find-links|venv)[a-z-]*)", text_of(page)))
        assert shown
        assert all(f'"{option}"' in script for option in shown)


# ---- versions and packaging


def test_version_is_the_same_everywhere() -> None:
    import wanscope

    newest = re.search(r"^## (\S+)", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert newest is not None
    assert {PROJECT["version"], newest.group(1), citation["version"]} == {wanscope.__version__}


def test_extras_exist_and_are_described() -> None:
    extras = PROJECT["optional-dependencies"]
    assert {"web", "cluster", "comfyui", "dev"} <= set(extras)
    assert all(f"| `{name}` |" in text_of("docs/install.md") for name in extras)


def test_torch_has_an_upper_bound() -> None:
    """Without one, installers choose a newer torch with CUDA even if a CPU build is available."""
    (torch,) = [r for r in PROJECT["dependencies"] if re.match(r"torch\b", r)]
    assert re.fullmatch(r"torch>=[\d.]+,<[\d.]+", torch)
    assert torch in text_of("docs/install.md")
    assert torch in text_of(".github/workflows/release.yml")


def test_citation_has_what_the_format_asks_for() -> None:
    citation = yaml.safe_load(text_of("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert citation["license"] == PROJECT["license"]
    for entry in (citation, *citation["references"]):
        assert entry["title"]
        assert all({"name", "alias", "family-names"} & set(author) for author in entry["authors"])


def files_below(folder: str) -> set[str]:
    """Return the files of a folder that belong in the wheel: all except what Python and the system create."""
    base = ROOT / "src"
    return {
        path.relative_to(base).as_posix()
        for path in (base / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_wheel_carries_weights_studies_and_nothing_else(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (built,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert wheel.testzip() is None
    assert names == files_below("wanscope")
    assert {f"wanscope/configs/{path.name}" for path in (ROOT / "configs").glob("*.yaml")} <= names
    parts = ("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json")
    assert {f"wanscope/marbles/weights/{name}" for name in parts} <= names
    assert sum(name.endswith(".safetensors") for name in names) >= 3
    assert "wanscope/py.typed" in names
    assert Path(built).stat().st_size < 25 * 2**20


def test_source_archive_builds_the_same(tmp_path: Path) -> None:
    from hatchling.builders.sdist import SdistBuilder

    (built,) = SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CREDITS.md", "CONTRIBUTING.md"}
    wanted = {*pages, "pyproject.toml", "scripts/setup.py", "docs/install.md"}
    assert wanted <= names
    assert {f"src/{name}" for name in files_below("wanscope")} <= names
    assert "tests/test_repository.py" in names


# ---- pages


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def without_code(page: str) -> str:
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_have_targets(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        if not place.exists():
            broken.append(target)
        elif anchor and place.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", without_code(place.read_text(encoding="utf-8")), flags=re.MULTILINE)
            if anchor not in {slug(heading) for heading in headings}:
                broken.append(target)
    assert not broken


def test_every_docs_page_is_in_the_index() -> None:
    index = text_of("docs/README.md")
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_examples_are_python_and_use_names_that_exist(page: Path) -> None:
    import wanscope

    for code in fences(page.read_text(encoding="utf-8"), "python", "py"):
        tree = ast.parse(code)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ws"
        }
        assert used <= set(wanscope.__all__)


def test_study_files_named_in_the_readme_ship() -> None:
    from wanscope.study.study_file import config_names

    text = text_of("README.md")
    lines = [words for words in shell_lines(text) if words[:2] == ["wanscope", "generate"]]
    shown = {words[2] for words in lines if words[2].isidentifier()}
    shown |= set(re.findall(r'ws\.run\("(\w+)"', text))
    assert shown
    assert shown <= set(config_names())


# ---- what must not be in any file


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def is_private(host: str) -> bool:
    """Return whether a host can only be reached inside some network; localhost and 127.0.0.1 do not count."""
    if host in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]"):
        return False
    try:
        return ipaddress.ip_address(host.strip("[]")).is_private
    except ValueError:
        return "." not in host or host.endswith((".internal", ".local", ".lan", ".corp", ".intranet"))


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the list of tracked files is git's; this is no clone")
def test_no_tracked_file_names_one_machine() -> None:
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" in data[:8192]:
            continue
        text = data.decode("utf-8")
        places = re.findall(r"(?<![\w./<}-])/(?:work|root|opt|srv|mnt|Users)/[\w.-]+", text)
        hosts = [h for h in re.findall(r"https?://([\w.\-\[\]:]*[\w\]])", text) if is_private(re.sub(r":\d+$", "", h))]
        found += [f"{named(path)}: {what}" for what in (*places, *hosts)]
    assert not found

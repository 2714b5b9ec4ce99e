"""`wanscope db` and `wanscope index`: their output for users and as JSON, and the exit status."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from helpers.takes import recipe, write_take
from wanscope.catalog.catalog import Catalog, New


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_take(folder / "takes", recipe(1))
    catalog = Catalog(folder)
    catalog.index()
    rng = np.random.default_rng(0)
    catalog.put_many(
        New(rng.standard_normal((4, 16)).astype(np.float32), prompt=f"a {name}", label=name, encoder="e")
        for name in ("beach", "castle")
    )
    return folder


@pytest.fixture
def space(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "space"))


VERBS = [
    ("stats",),
    ("list",),
    ("show", "beach"),
    ("search", "castle"),
    ("similar", "beach"),
    ("similar", "beach", "castle"),
    ("duplicates",),
    ("duplicates", "--threshold", "0.5"),
    ("ops",),
    ("lineage", "beach"),
    ("analyze", "beach"),
    ("cleanup", "--max-uses", "0"),
    ("check", "--deep"),
    ("sql", "SELECT * FROM embeddings"),
]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_prints_for_people_and_as_json(cli, space: Path, verb: tuple[str, ...]) -> None:
    said = cli("db", *verb, "-o", space)
    assert (said.status, said.err) == (0, "") and said.out.strip()
    data = cli("db", *verb, "-o", space, "--json")
    assert (data.status, data.err) == (0, "")
    json.loads(data.out)


@pytest.mark.parametrize(
    "verb", [v for v in VERBS if v[0] not in ("show", "similar", "lineage", "analyze")], ids=" ".join
)
def test_before_there_is_a_catalog(cli, tmp_path: Path, verb: tuple[str, ...]) -> None:
    said = cli("db", *verb, "-o", tmp_path / "none")
    assert said.status == 0 and said.err == ""
    assert not (tmp_path / "none").exists()
    assert cli("db", *verb, "-o", tmp_path / "none", "--json").status == 0


def test_compute_label_and_lineage(cli, space: Path) -> None:
    made = cli("db", "compute", "beach - 0.5*c", "--name", "c=a castle", "--label", "mix", "-o", space, "--json")
    key = json.loads(made.out)["key"]
    cli("db", "label", "mix", "--tag", "style", "--label", "new", "-o", space)
    assert cli("db", "show", "new", "-o", space).out.count(key) == 2
    tree = cli("db", "lineage", "new", "--recompute", "-o", space)
    assert tree.status == 0 and "beach - 0.5*c" in tree.out and "the stored bytes" in tree.out
    assert json.loads(cli("db", "search", "--tag", "style", "-o", space, "--json").out)[0]["key"] == key
    assert json.loads(cli("db", "ops", "-o", space, "--json").out)[0]["result"] == key


def test_cleanup_lists_first_and_removes_on_request(cli, space: Path) -> None:
    Catalog(space).put(np.ones((1, 3), np.float32), prompt="old")
    assert "1 embedding would be removed" in cli("db", "cleanup", "--max-uses", 0, "-o", space).out
    assert "2 more fit and stay" in cli("db", "cleanup", "--max-uses", 0, "--yes", "-o", space).out
    assert Catalog(space).count("embeddings") == 2
    assert "Say which" in cli("db", "cleanup", "-o", space).out


def test_export_import_merge(cli, space: Path, tmp_path: Path) -> None:
    out, theirs = tmp_path / "out", tmp_path / "theirs"
    assert "2 embeddings" in cli("db", "export", out, "-o", space).out
    assert "2 embeddings" in cli("db", "import", out, "-o", theirs).out
    merged = cli("db", "merge", space, "-o", theirs)
    assert "new: nothing" in merged.out and "there already: 2 embeddings" in merged.out
    assert cli("db", "export", out, "-o", space).status == 0  # the same one again
    assert cli("db", "export", theirs, "-o", space).status == 2


def test_index_reports_what_it_found(cli, space: Path) -> None:
    assert "1 takes (0 new, 0 gone)" in cli("index", "-o", space).out
    (space / "catalog.duckdb").write_bytes(b"no database" * 999)
    refused = cli("db", "stats", "-o", space)
    assert refused.status == 1 and "is damaged" in refused.err and "wanscope index --rebuild" in refused.err
    rebuilt = cli("index", "--rebuild", "-o", space)
    assert rebuilt.status == 0 and "set aside" in rebuilt.out and "2 embeddings were read" in rebuilt.out
    assert cli("db", "check", "--deep", "-o", space).status == 0


def test_a_check_that_finds_something_fails(cli, space: Path) -> None:
    catalog = Catalog(space)
    catalog.files.path(catalog.get("beach").key).unlink()
    found = cli("db", "check", "-o", space)
    assert found.status == 1 and "WRONG: the file of embedding" in found.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sql", "SELEC 1"), "the SQL cannot be read"),
        (("sql", "DROP TABLE takes"), "DROP is not allowed"),
        (("show", "nobody"), "there is no embedding 'nobody'"),
        (("similar", "beach", "--metric", "angle"), "'angle' is not a metric"),
        (("compute", "beach +"), "the expression cannot be used"),
        (("compute", "beach", "--name", "x=castle"), "the expression has no name 'x'"),
        (("search",), "there is nothing to search for"),
        (("label", "beach"), "there is nothing to change"),
        (("import", "nowhere"), "is not an export"),
        (("merge", "nowhere"), "there is no catalog"),
        (("nonsense",), "no such command"),
    ],
)
def test_mistakes_are_reported_as_sentences(cli, space: Path, arguments: tuple[str, ...], said: str) -> None:
    refused = cli("db", *arguments, "-o", space) if arguments[0] != "nonsense" else cli("db", *arguments)
    assert (refused.status, refused.out) == (2, "") and said in refused.err


def test_a_text_that_is_not_stored_is_encoded_by_its_text_encoder_alone(cli, space: Path, monkeypatch) -> None:
    monkeypatch.setattr("wanscope.wan.load._transformer", lambda *_: pytest.fail("the transformer was loaded"))
    said = cli("db", "similar", "a red circle", "--model", "marbles", "--any-encoder", "-o", space)
    assert said.status == 0 and "encoded with marbles" in said.out
    refused = cli("db", "similar", "a red circle", "-o", space)
    assert refused.status == 2 and "which model could encode it" in refused.err


def test_the_verbs_are_quick_to_start() -> None:
    import subprocess
    import sys

    code = (
        "import sys, wanscope.doors.cli.app, wanscope.doors.cli.db;"
        "print({'duckdb', 'pyarrow', 'torch', 'numpy', 'zstandard'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"

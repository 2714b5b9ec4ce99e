"""The catalog's file: created, migrated with a backup, refused if newer, damaged, foreign or locked; a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pytest

from wanscope.catalog import migrations
from wanscope.catalog.catalog import Catalog
from wanscope.catalog.content import Tokens
from wanscope.catalog.embedding_file import Header, pack
from wanscope.errors import CatalogBusy, CatalogDamaged, CatalogNewer, RequestError, StorageError

VALUES = np.arange(12, dtype=np.float32).reshape(3, 4) + 1


def earlier(folder: Path, version: int) -> str:
    """Write a catalog of an earlier version with one embedding and return the embedding's key."""
    catalog = Catalog(folder)
    tokens = Tokens.of(VALUES)
    key = tokens.key("m", "e")
    catalog.files.write({key: pack(tokens, Header("m", "e", prompt="a red circle"))})
    folder.mkdir(exist_ok=True)
    with duckdb.connect(str(catalog.path)) as con:
        con.execute("BEGIN")
        migrations.migrate(con, 0, version)
        con.execute(
            "INSERT INTO embeddings VALUES (?, ?, now()::TIMESTAMP, 'm', 'e', 'text', 'float32', 3, 4, 'a red circle', "
            "'generate', 'kept', ?, 48, ?, 0.5, 3, NULL, '')",
            [key, tokens.content, tokens.pooled[1], catalog.files.size(key)],
        )
        con.execute("INSERT INTO embedding_prompts VALUES ('a red circle', 'e', 'cpu', ?)", [key])
        con.execute("INSERT INTO embedding_tags VALUES (?, 'old')", [key])
        con.execute("COMMIT")
    return key


def schema(con: duckdb.DuckDBPyConnection) -> list[tuple]:
    columns = con.execute(
        "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"
    ).fetchall()
    keys = con.execute(
        "SELECT table_name, constraint_type, constraint_column_names FROM duckdb_constraints() "
        "WHERE constraint_type = 'PRIMARY KEY' ORDER BY ALL"
    ).fetchall()
    return [*columns, *keys]


@pytest.mark.parametrize("version", range(1, migrations.VERSION))
def test_every_earlier_version_is_migrated_with_a_backup(tmp_path: Path, version: int) -> None:
    key = earlier(tmp_path, version)
    catalog = Catalog(tmp_path)
    found = catalog.get("a red circle")
    assert (found.key, found.row["label"], found.row["uses"]) == (key, "kept", 3)
    assert np.array_equal(found.array(), VALUES)
    assert catalog.tags(key) == ["old"] and "a red circle" in catalog.stored(["a red circle"], "e", ["cpu"])
    assert catalog.similar(VALUES)["key"].to_pylist() == [key]  # it has no compact vector yet
    assert catalog.put(VALUES + 1) and catalog.check(deep=True).problems == ()
    with duckdb.connect(str(tmp_path / f"catalog.version-{version}.duckdb"), read_only=True) as con:
        assert migrations.version_of(con) == version
        assert con.execute("SELECT label FROM embeddings").fetchall() == [("kept",)]
    with duckdb.connect(str(catalog.path), read_only=True) as con, duckdb.connect() as fresh:
        migrations.create(fresh)
        assert schema(con) == schema(fresh)
        names = con.execute("SELECT name FROM schema_migrations ORDER BY number").fetchall()
        assert names == [(step.__name__,) for step in migrations.MIGRATIONS]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = earlier(tmp_path, 1)

    def broken(con: duckdb.DuckDBPyConnection) -> None:
        con.execute("CREATE TABLE half (x INTEGER)")
        raise StorageError("the disk is full")

    steps = (*migrations.MIGRATIONS[:2], broken, *migrations.MIGRATIONS[3:])
    with monkeypatch.context() as patch:
        patch.setattr(migrations, "MIGRATIONS", steps)
        with pytest.raises(StorageError):
            Catalog(tmp_path).stats()
    with duckdb.connect(str(tmp_path / "catalog.duckdb"), read_only=True) as con:
        assert migrations.version_of(con) == 1
    assert Catalog(tmp_path).get(key).row["label"] == "kept"


def test_a_newer_file_is_refused_and_not_touched(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.put(VALUES)
    with duckdb.connect(str(catalog.path)) as con:
        con.execute("INSERT INTO schema_migrations VALUES (99, 'from_the_future', now()::TIMESTAMP, '9.0')")
    before = catalog.path.read_bytes()
    for verb in (lambda c: c.stats(), lambda c: c.put(VALUES), lambda c: c.index(rebuild=True)):
        with pytest.raises(CatalogNewer, match=r"newer wanscope.*version 99"):
            verb(Catalog(tmp_path))
    assert catalog.path.read_bytes() == before


def test_another_duckdb_file_is_not_taken_over(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "catalog.duckdb")) as con:
        con.execute("CREATE TABLE somebody_elses (x INTEGER)")
    with pytest.raises(RequestError, match="not a wanscope catalog"):
        Catalog(tmp_path).put(VALUES)


@pytest.mark.parametrize("how", ["text", "empty", "flipped"])
def test_a_damaged_file_is_reported_and_rebuilt_from_takes_and_embeddings(tmp_path: Path, how: str) -> None:
    catalog = Catalog(tmp_path)
    key = catalog.put(VALUES, prompt="a red circle")
    catalog.db.checkpoint()
    data = bytearray(catalog.path.read_bytes())
    for at in (20, 4100, 8200, 12400):
        data[at] ^= 0xFF
    catalog.path.write_bytes({"text": b"hello " * 999, "empty": b"", "flipped": bytes(data)}[how])
    with pytest.raises(CatalogDamaged, match=r"(?s)is damaged.*wanscope index --rebuild"):
        Catalog(tmp_path).stats()
    with pytest.raises(CatalogDamaged):
        Catalog(tmp_path).index()
    found = Catalog(tmp_path).index(rebuild=True)
    assert found.adopted == 1 and found.set_aside and Path(found.set_aside).exists()
    again = Catalog(tmp_path).get(key)
    assert again.prompt == "a red circle" and np.array_equal(again.array(), VALUES)


def test_a_damaged_log_is_reported(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    catalog.put(VALUES)
    log = bytearray(catalog.db.log.read_bytes())
    log[len(log) // 3] ^= 0xFF
    catalog.db.log.write_bytes(bytes(log))
    try:
        rows = Catalog(tmp_path).count("embeddings")
    except CatalogDamaged:
        rows = 0
    assert rows == 0  # never part of a transaction
    Catalog(tmp_path).index(rebuild=True)
    assert Catalog(tmp_path).count("embeddings") == 1


def test_waiting_too_long_is_an_error_that_names_who_holds_the_file(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path, wait_seconds=0.4)
    catalog.put(VALUES)
    code = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, str(catalog.path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        try:
            for verb in (lambda: catalog.count("embeddings"), lambda: catalog.put(VALUES + 1)):
                with pytest.raises(CatalogBusy, match=rf"(?s)is in use.*PID {other.pid}.*0.4 seconds"):
                    verb()
        finally:
            other.kill()
    assert catalog.count("embeddings") == 1


def test_a_second_program_waits_for_its_turn(tmp_path: Path) -> None:
    import threading

    catalog = Catalog(tmp_path)
    catalog.put(VALUES)
    times = {}

    def hold() -> None:
        with Catalog(tmp_path).db.writing():
            times["held"] = time.monotonic()
            time.sleep(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    while "held" not in times:
        time.sleep(0.01)
    assert catalog.count("embeddings") == 1
    assert time.monotonic() - times["held"] >= 0.5
    thread.join()


def test_an_exception_inside_a_transaction_leaves_nothing(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path)
    key = catalog.put(VALUES)

    def interrupted() -> None:
        with catalog.db.writing() as con:
            con.execute("DELETE FROM embeddings")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert catalog.get(key).key == key


FULL = """
import resource, signal, sys
import numpy as np
from wanscope.catalog.catalog import Catalog, New
from wanscope.errors import StorageError
catalog = Catalog(sys.argv[1])
keys = [catalog.put(np.full((2, 64), 1.5, np.float32))]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit = catalog.db.log.stat().st_size + 20_000
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
said = ""
for i in range(200):
    try:
        keys += catalog.put_many([New(np.random.default_rng(i).standard_normal((20, 64)), prompt=str(i))])
    except StorageError as error:
        said = str(error)
        break
print(len(keys))
print(said)
"""


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == 0, ran.stderr
    stored, said = ran.stdout.split("\n", 1)
    assert "is full" in said and "Try: free some space" in said and "are free" not in said
    assert "File too large; everything committed before is safe." in said
    catalog = Catalog(tmp_path)
    assert catalog.check(deep=True).problems == ()
    assert catalog.count("embeddings") == int(stored) > 1
    catalog.put(VALUES)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            "IO Error: Could not write file x: No space left on device",
            "more than the 700.0 kB that are left; everything",
        ),
        (
            "IO Error: Could not write file x: Disk quota exceeded",
            "the system reports: IO Error: .* exceeded; everything",
        ),
    ],
)
def test_a_full_disk_error_does_not_report_free_space(tmp_path: Path, monkeypatch, words: str, why: str) -> None:
    monkeypatch.setattr("wanscope.take.disk.free_bytes", lambda folder: 700_000)
    catalog = Catalog(tmp_path)
    catalog.put(VALUES)

    def fails() -> None:
        with catalog.db.writing():
            raise duckdb.IOException(words)

    with pytest.raises(StorageError, match=why) as full:
        fails()
    assert "is full" in full.value.what and "are free" not in str(full.value)


def test_reading_a_catalog_that_does_not_exist_creates_nothing(tmp_path: Path) -> None:
    catalog = Catalog(tmp_path / "none")
    assert catalog.stats()["embeddings"]["count"] == 0
    assert catalog.sql("SELECT * FROM takes").num_rows == 0
    assert catalog.search("x").num_rows == 0 and catalog.check().problems == ()
    assert not (tmp_path / "none").exists()


def test_a_read_only_folder_can_still_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog(tmp_path)
    catalog.put(VALUES)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert Catalog(tmp_path).count("embeddings") == 1


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_this_process_has_open_is_still_read(tmp_path: Path, read_only: bool) -> None:
    """For example in a notebook, with a connection of the user's own."""
    catalog = Catalog(tmp_path)
    catalog.put(VALUES)
    with duckdb.connect(str(catalog.path), read_only=read_only) as own:
        assert own.execute("SELECT count(*) FROM embeddings").fetchone() == (1,)
        if read_only:
            assert catalog.stats()["embeddings"]["count"] == 1
        else:
            catalog.put(VALUES + 1)
            assert own.execute("SELECT count(*) FROM embeddings").fetchone() == (2,)

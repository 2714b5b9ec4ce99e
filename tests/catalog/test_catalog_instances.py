"""Files attached to database instances that stay in memory: released after each turn, and independent of each other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from wanscope.catalog import instances
from wanscope.catalog.instances import attached


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "it's here.duckdb"  # a quote in the path
    with attached(path) as con:
        con.execute("CREATE TABLE numbers (n INTEGER)")
        con.execute("INSERT INTO numbers VALUES (1)")
    return path


def numbers(path: Path) -> list[int]:
    with attached(path, read_only=True) as con:
        return [n for (n,) in con.execute("SELECT n FROM numbers ORDER BY n").fetchall()]


def test_another_program_can_write_between_two_turns(file: Path) -> None:
    assert numbers(file) == [1]
    code = "import duckdb, sys; duckdb.connect(sys.argv[1]).execute('INSERT INTO numbers VALUES (2)')"
    subprocess.run([sys.executable, "-c", code, str(file)], check=True)
    assert numbers(file) == [1, 2]


def test_an_instance_is_used_again_but_not_after_an_error(file: Path) -> None:
    first = instances._idle[-1]
    assert numbers(file) == [1] and instances._idle[-1] is first
    with pytest.raises(duckdb.CatalogException), attached(file) as con:
        con.execute("BEGIN; INSERT INTO numbers VALUES (2); SELECT * FROM none")
    assert first not in instances._idle
    assert numbers(file) == [1]  # rolled back, and released


def test_nothing_is_left_over_for_the_next_file(file: Path, tmp_path: Path) -> None:
    with attached(file) as con:
        con.execute("CREATE TEMP TABLE own (n INTEGER)")
        con.execute("SET VARIABLE v = 1")
    with attached(tmp_path / "other.duckdb") as con:
        assert con.execute("SELECT count(*) FROM duckdb_tables() WHERE NOT internal").fetchone() == (0,)
        assert con.execute("SELECT getvariable('v')").fetchone() == (None,)
    with attached(None) as con:
        assert con.execute("SELECT count(*) FROM duckdb_tables() WHERE NOT internal").fetchone() == (0,)


def test_read_only_connections_cannot_write(file: Path) -> None:
    with pytest.raises(duckdb.InvalidInputException, match="read-only"), attached(file, read_only=True) as con:
        con.execute("INSERT INTO numbers VALUES (2)")
    assert numbers(file) == [1]


def test_the_log_is_not_merged_at_the_end_of_a_turn(file: Path) -> None:
    log = file.with_name(file.name + ".wal")
    size = log.stat().st_size
    with attached(file) as con:
        con.execute("INSERT INTO numbers VALUES (2)")
    assert log.stat().st_size > size > 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_gets_instances_of_its_own(file: Path) -> None:
    assert instances._idle
    child = os.fork()
    if not child:
        os._exit(0 if not instances._idle and numbers(file) == [1] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert numbers(file) == [1]

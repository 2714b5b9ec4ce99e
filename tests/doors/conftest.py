from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest


class Ran(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Ran]:
    """Run the command line in this process: `cli("takes", "--json")`."""
    from wanscope.doors.cli import main

    monkeypatch.delenv("WANSCOPE_DEBUG", raising=False)
    monkeypatch.delenv("WANSCOPE_HOME", raising=False)
    monkeypatch.setattr("platformdirs.user_log_path", lambda name: tmp_path / "crashes")
    cache = tmp_path_factory.getbasetemp() / "user-cache"  # one for all tests: the machine's speed is measured once
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: cache)

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        got = capsys.readouterr()
        return Ran(status, got.out, got.err)

    return run

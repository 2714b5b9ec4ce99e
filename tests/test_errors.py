"""Errors have what, why and a fix, and the exit status of the command line."""

from __future__ import annotations

import inspect

import pytest

from wanscope import errors
from wanscope.errors import RequestError, TemplateError, WanscopeError, WorkError, nearest


def kinds() -> list[type[WanscopeError]]:
    return [k for _, k in inspect.getmembers(errors, inspect.isclass) if issubclass(k, WanscopeError)]


# Failures with their own status: an interruption, and a disk that is found unusable before any work, like a request.
OWN_STATUS = {errors.Interrupted: 130, errors.StorageRefused: 2}


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_every_error_is_a_wrong_request_or_failed_work_and_is_documented(kind: type[WanscopeError]) -> None:
    assert kind.__doc__
    if kind is WanscopeError:
        return
    assert issubclass(kind, RequestError) != issubclass(kind, WorkError)
    expected = {RequestError: 2, WorkError: 1}[RequestError if issubclass(kind, RequestError) else WorkError]
    assert kind.exit_status == OWN_STATUS.get(kind, expected)


def test_the_text_has_what_why_and_fix() -> None:
    assert str(RequestError("the disk is full")) == "the disk is full."
    assert str(RequestError("the disk is full", "3 GB are needed")) == "the disk is full: 3 GB are needed."
    assert str(RequestError("a", "b", "wanscope doctor")) == "a: b.\nTry: wanscope doctor"
    assert str(RequestError("did that work?")) == "did that work?"


@pytest.mark.parametrize(
    ("template", "position", "line", "column"),
    [("a [red", 2, "a [red", 2), ("first\nse]cond\nthird", 8, "se]cond", 2), ("", 0, "", 0), ("ab", 2, "ab", 2)],
)
def test_a_template_error_points_at_the_character(template: str, position: int, line: str, column: int) -> None:
    lines = str(TemplateError(template, position, "why not")).splitlines()
    caret = next(i for i, text in enumerate(lines) if text.strip().rstrip(".") == "^")
    assert lines[caret - 1] == f"  {line}"
    assert lines[caret].index("^") == 2 + column


def test_the_nearest_name_is_suggested_or_all_are_listed() -> None:
    assert nearest("promt", ["prompt", "seeds"]) == "did you mean 'prompt'?"
    assert nearest("zzz", ["b", "a"]) == "known: a, b"
    assert nearest("zzz", (name for name in ("b", "a"))) == "known: a, b"

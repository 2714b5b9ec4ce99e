"""The script of the pictures in docs/editing.md: its edits are valid, and it draws the frames it is given."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from wanscope.edit.shorthand import parse


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts" / "editing_pictures.py"
    spec = importlib.util.spec_from_file_location("editing_pictures", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_edits_are_edits_of_every_kind(script: ModuleType) -> None:
    assert {parse(line).kind for line in script.KINDS} == {"inject", "bend", "skip", "prompts"}
    assert all(first != second and "red" in first and "red" not in second for first, second in script.PAIRS)


def test_a_picture_shows_its_frames_under_their_labels(script: ModuleType, tmp_path: Path) -> None:
    colors = [(255, 0, 0), (0, 0, 255), (0, 200, 0)]
    frames = [np.full((24, 80, 3), color, np.uint8) for color in colors]
    path = tmp_path / "new" / "x.png"
    size = script.draw([("one", frames[:2]), ("two", frames[1:])], path)
    assert size == path.stat().st_size
    shown = Image.open(path)
    assert shown.mode == "P" and shown.size == (2 * 86 + 6, 2 * (24 + 20 + 6))
    rgb = np.asarray(shown.convert("RGB")).astype(int)
    for row, column, color in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        cell = rgb[row * 50 + 20 : row * 50 + 44, 6 + column * 86 : 86 + column * 86]
        assert np.abs(cell - colors[color]).max() <= 2
    assert (rgb[:20] < 60).all(axis=-1).any()  # a label's ink
    with pytest.raises(SystemExit, match="is wider than"):
        script.draw([("much too long " * 9, frames[:2])], path)


def test_frames_are_picked_from_first_to_last(script: ModuleType) -> None:
    clip = np.arange(17)[:, None, None, None] * np.ones((1, 2, 2, 3))
    assert [int(frame[0, 0, 0]) for frame in script.some(clip)] == [0, 4, 8, 12, 16]

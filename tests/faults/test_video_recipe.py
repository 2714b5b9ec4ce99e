"""A flipped bit in the recipe of an MP4 is reported: the video's own id would be that of another recipe."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from helpers.takes import recipe, write_take
from wanscope.errors import WanscopeError
from wanscope.study.read_request import read_source
from wanscope.take.store import Take
from wanscope.take.video import METADATA_KEY, read_metadata
from wanscope.workspace import Workspace

FLIPS = 400


@pytest.fixture(scope="module")
def take(tmp_path_factory: pytest.TempPathFactory) -> Take:
    return write_take(tmp_path_factory.mktemp("video"), recipe(3, prompt="a red circle moves left"))


def test_every_flip_in_the_recipe_is_reported_or_changes_no_take(take: Take, tmp_path: Path) -> None:
    data = take.video.read_bytes()
    written = read_metadata(take.video)[METADATA_KEY].encode()
    start = data.index(written)
    whole = read_source(str(take.video), Workspace(tmp_path))
    assert whole.recipes[0].id == take.id
    draw = random.Random(0)
    reported: list[str] = []
    for number in range(FLIPS):
        broken = bytearray(data)
        broken[start + draw.randrange(len(written))] ^= 1 << draw.randrange(8)
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(broken)
        try:
            found = read_source(str(path), Workspace(tmp_path))
        except WanscopeError as error:
            reported.append(str(error))
            continue
        # Captures and labels are not part of an id, and the checksum of the latents is compared by the replay.
        assert found.recipes[0].id == take.id, written
    assert len(reported) > FLIPS / 3 and all(len(text) > 20 for text in reported)


def test_an_encoding_that_is_not_text_is_a_plain_error(take: Take, tmp_path: Path) -> None:
    data = bytearray(take.video.read_bytes())
    start = data.index(read_metadata(take.video)[METADATA_KEY].encode())
    data[start + 30] = 0xFF
    (tmp_path / "x.mp4").write_bytes(data)
    with pytest.raises(WanscopeError, match=r"x\.mp4"):
        read_source(str(tmp_path / "x.mp4"), Workspace(tmp_path))

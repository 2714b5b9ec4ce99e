"""Attention on the command line: kept, counted, shown, damaged; and the video of the denoising."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny import tiny_folder
from wanscope.errors import DamagedTake, NotCaptured
from wanscope.take.store import Take
from wanscope.take.video import read_frames
from wanscope.workspace import Workspace

SMALL = ("--negative", "", "--width", 32, "--height", 32, "--frames", 5, "--steps", 3, "--seeds", 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", blocks=2, heads=2)


@pytest.fixture
def make(cli, tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(*more: object, template: str = "a red (circle) (moves left)") -> Any:
        return cli("generate", "--template", template, "--model", tiny, "-o", tmp_path / "out", *SMALL, *more)

    return run


def only_take(tmp_path: Path) -> Take:
    space = Workspace(tmp_path / "out")
    (take,) = space.take_ids()
    return Take.open(space.take_folder(take))


def test_attention_is_counted_kept_verified_and_shown(make, cli, tmp_path: Path) -> None:
    def needed(*more: object) -> int:
        return json.loads(make("--dry-run", "--json", *more).out)["bytes"]["needed"]

    assert needed("--store-attention") - needed() >= 3 * 2 * 5 * (2 * 2 * 2) * 2  # steps, blocks, rows, grid, fp16
    plain = make()
    assert plain.status == 0
    bits = only_take(tmp_path).manifest.latents_sha256
    with pytest.raises(NotCaptured, match="--store-attention"):
        _ = only_take(tmp_path).attention

    assert make("--store-attention").status == 0
    take = only_take(tmp_path)
    assert take.manifest.latents_sha256 == bits
    assert take.attention.words == ("circle", "moves left")
    assert take.attention.names == ("circle", "moves left", "moves", "left", "pad")
    assert take.attention.shape == (3, 2, 5, 2, 2, 2) == take.manifest.attention.shape  # type: ignore[union-attr]
    words = take.attention.word("moves").astype(np.float32) + take.attention.word("left")
    assert np.abs(words - take.attention.word("moves left")).max() <= 2e-3
    take.verify()
    again = make("--store-attention")
    assert again.status == 0 and "1 complete before" in again.out

    shown = cli("show", take.id, "-o", tmp_path / "out")
    assert (
        "attention.zarr/" in shown.out and "probability of circle, moves left: 2 blocks, each of 3 steps" in shown.out
    )
    out = tmp_path / "maps.mp4"
    ran = cli("show", take.id, "-o", tmp_path / "out", "--maps", "all", "--out", out)
    assert (ran.status, ran.err) == (0, "") and len(read_frames(out)) == len(take.frames)
    for more, said in (
        (["--maps", "blue"], "circle, moves left"),
        (["--maps", "circle", "--by", "steps"], "'step'"),
        (["--maps", "circle", "--measure", "gramcol"], "measures=[probability, gramcol]"),
        (["--steps"], "capture.x0=true"),
        (["--maps", "circle", "--out", "maps.gif"], "maps.gif.mp4"),
    ):
        refused = cli("show", take.id, "-o", tmp_path / "out", *more)
        assert refused.status == 2 and said in refused.err


def test_self_attention_of_positions_is_counted_kept_and_shown(make, cli, tmp_path: Path) -> None:
    def needed(*more: object) -> int:
        return json.loads(make("--dry-run", "--json", *more).out)["bytes"]["needed"]

    where = ("--store-self-attention", "0.1,0.9", "--store-self-attention", "0.9,0.1,0")
    assert needed(*where) - needed() == 3 * 2 * 2 * (2 * 2 * 2) * 2  # steps, blocks, rows, grid, fp16
    assert make().status == 0
    bits = only_take(tmp_path).manifest.latents_sha256
    with pytest.raises(NotCaptured, match="--store-self-attention"):
        _ = only_take(tmp_path).self_attention
    assert make("--store-attention").status == 0
    assert make(*where).status == 0
    take = only_take(tmp_path)
    assert take.manifest.latents_sha256 == bits and take.attention.words == ("circle", "moves left")
    maps = take.self_attention
    assert maps.words == ("x0.1 y0.9 t0.5", "x0.9 y0.1 t0") and maps.shape == (3, 2, 2, 2, 2, 2)
    assert [row.columns[0] for row in maps.rows] == [4 + 2, 1]
    assert np.allclose(maps[:].sum((-3, -2, -1)), 1, atol=2e-3)
    take.verify()
    assert "1 complete before" in make(*where).out
    shown = cli("show", take.id, "-o", tmp_path / "out").out
    assert "self-attention.zarr/" in shown and "rows of x0.1 y0.9 t0.5, x0.9 y0.1 t0: 2 blocks, each of 3" in shown
    out = tmp_path / "rows.mp4"
    ran = cli("show", take.id, "-o", tmp_path / "out", "--maps", "all", "--measure", "self", "--out", out)
    assert (ran.status, ran.err) == (0, "") and len(read_frames(out)) == len(take.frames)
    wrong = make("--store-self-attention", "0.5")
    assert wrong.status == 2 and "0.5,0.5,0.5" in wrong.err and "Traceback" not in wrong.err


def test_the_denoising_is_a_video_and_nothing_that_was_kept_is_lost(make, cli, tmp_path: Path) -> None:
    make("--store-attention")
    assert make("--set", "capture.x0=true", template="a (red) circle moves left").status == 0
    take = only_take(tmp_path)
    assert take.attention.words == ("red", "circle", "moves left") and take.x0.shape[0] == 3
    assert {mark.text for mark in take.recipe.marks} == {"red", "circle", "moves left"}
    assert np.isfinite(take.x0[:]).all() and take.manifest.x0.states == (0, 1, 2)  # type: ignore[union-attr]
    ran = cli("show", take.id, "-o", tmp_path / "out", "--steps", "--json")
    shown = json.loads(ran.out)
    frames = read_frames(Path(shown["video"]))
    hold = 4 if take.recipe.video.fps == 8 else round((take.recipe.video.fps or 8) * 0.5)
    assert shown["steps"] == 3 and len(frames) == 2 * hold + len(take.frames)


def test_other_words_are_recorded_again(make, tmp_path: Path) -> None:
    make("--store-attention", template="a red (circle)")
    ran = make("--store-attention", template="a (red) circle")
    assert ran.status == 0 and "1 made" in ran.out
    assert only_take(tmp_path).attention.words == ("red", "circle")


def test_a_flipped_byte_in_a_map_is_found_and_repaired(make, cli, tmp_path: Path) -> None:
    make("--store-attention")
    take = only_take(tmp_path)
    shard = next(path for path in sorted((take.folder / "attention.zarr").rglob("c.*")) if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedTake, match=shard.name):
        _ = only_take(tmp_path).attention
    verified = cli("show", take.id, "--verify", "-o", tmp_path / "out")
    assert verified.status == 1 and shard.name in verified.err
    shard.unlink()
    ran = make("--store-attention")
    assert ran.status == 0 and "1 made" in ran.out
    only_take(tmp_path).verify()


def test_a_prompt_without_marked_words_is_an_error_with_a_fix(make, cli, tmp_path: Path) -> None:
    ran = make("--store-attention", template="a red circle")
    assert ran.status == 2 and "a red (circle)" in ran.err
    assert "tokens=[circle]" in ran.err and not (tmp_path / "out").exists()
    named = make("--set", "capture.attention.tokens=[circle]", template="a red circle")
    assert named.status == 0 and only_take(tmp_path).attention.words == ("circle",)
    refused = cli("show", only_take(tmp_path).id, "--maps", "red", "-o", tmp_path / "out")
    pasted = shlex.split(refused.err.split("Try: ")[1].split(", and run again")[0])
    assert refused.status == 2 and make(*pasted, template="a red circle").status == 0
    assert set(only_take(tmp_path).attention.words) == {"red", "circle"}

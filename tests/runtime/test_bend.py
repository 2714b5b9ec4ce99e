"""Map operations against numpy and scipy, and the corrected output against the full softmax, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from wanscope.errors import NumericalError
from wanscope.runtime import bend
from wanscope.runtime.bend import MapOperation, bend_maps, bent_output, require_mass
from wanscope.runtime.columns import columns, text_rows

GRID = (2, 6, 8)


def maps(seed: int = 0, heads: int = 2, tokens: int = 3, grid: tuple[int, int, int] = GRID) -> torch.Tensor:
    """Return random probabilities [1, H, Q, l] whose sum at each position is below 1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, heads, int(np.prod(grid)), tokens, dtype=torch.float64, generator=generator) / (2 * tokens)


def pictures(p: torch.Tensor, grid: tuple[int, int, int] = GRID) -> np.ndarray:
    """Return maps as [H, l, T, Y, X]."""
    return p[0].permute(0, 2, 1).reshape(p.shape[1], p.shape[3], *grid).numpy()


def bent(operation: MapOperation, strength=1.0, p: torch.Tensor | None = None) -> np.ndarray:
    return pictures(bend_maps(maps() if p is None else p, operation, strength, GRID))


def moved(picture: np.ndarray, down: int, right: int) -> np.ndarray:
    out = np.zeros_like(picture)
    Y, X = picture.shape[-2:]
    out[..., max(down, 0) : Y + min(down, 0), max(right, 0) : X + min(right, 0)] = picture[
        ..., max(-down, 0) : Y - max(down, 0), max(-right, 0) : X - max(right, 0)
    ]
    return out


@pytest.mark.parametrize(("x", "y"), [(0.25, 0), (-0.5, 0), (0, 1 / 3), (0.125, -1 / 6)])
def test_a_whole_number_of_tokens_is_an_exact_shift(x: float, y: float) -> None:
    expected = moved(pictures(maps()), round(y * 6), round(x * 8))
    assert np.abs(bent(bend.translate(x, y, GRID[1:])) - expected).max() < 1e-6


def test_a_part_of_a_token_is_interpolated_linearly() -> None:
    before = pictures(maps())
    half = (moved(before, 0, 0) + moved(before, 0, 1)) / 2
    assert np.abs(bent(bend.translate(1 / 16, 0, GRID[1:])) - half).max() < 1e-6


def test_flips_and_quarter_turns() -> None:
    before = pictures(maps())
    assert np.abs(bent(bend.flip("x", GRID[1:])) - before[..., ::-1]).max() < 1e-6
    assert np.abs(bent(bend.flip("y", GRID[1:])) - before[..., ::-1, :]).max() < 1e-6
    square = (1, 5, 5)
    p = maps(grid=square)
    turned = pictures(bend_maps(p, bend.rotate(90, square[1:]), 1.0, square), square)
    # np.rot90 rotates counterclockwise as the array is printed, rows downward, which is how a picture is seen
    assert np.abs(turned - np.rot90(pictures(p, square), axes=(-2, -1))).max() < 1e-6


@pytest.mark.parametrize(
    ("operation", "matrix"),
    [
        (bend.scale(1.7, GRID[1:]), np.eye(2) / 1.7),
        (bend.scale(0.6, GRID[1:]), np.eye(2) / 0.6),
        # source (row, column) of a (row, column): a rotation by 25 degrees counterclockwise on the screen
        (
            bend.rotate(25, GRID[1:]),
            np.array([[np.cos(a := np.radians(25)), np.sin(a)], [-np.sin(a), np.cos(a)]]),
        ),
    ],
    ids=["larger", "smaller", "turned"],
)
def test_scaling_and_rotating_equal_scipy(operation: MapOperation, matrix: np.ndarray) -> None:
    center = (np.array(GRID[1:]) - 1) / 2
    padded = np.pad(pictures(maps()), [(0, 0)] * 3 + [(1, 1)] * 2)  # one token of zeros on each side, like grid_sample
    offset = center + 1 - matrix @ center
    expected = np.stack(
        [
            ndimage.affine_transform(picture, matrix, offset, output_shape=GRID[1:], order=1, mode="constant")
            for picture in padded.reshape(-1, GRID[1] + 2, GRID[2] + 2)
        ]
    ).reshape(2, 3, *GRID)
    assert np.abs(bent(operation) - expected).max() < 1e-6


@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
def test_blur_equals_scipys_gaussian_inside_the_frame(sigma: float) -> None:
    operation = bend.blur(sigma)
    kernel = operation.tensor[0].double().numpy()
    radius = len(kernel) // 2
    gauss = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    assert radius >= 4 * sigma and np.abs(kernel - gauss / gauss.sum()).max() < 1e-7

    def blurred(picture: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(picture, (0, 0, 0, sigma, sigma), mode="constant", radius=radius)

    before = pictures(maps())
    assert np.abs(bent(operation) - blurred(before) / blurred(np.ones_like(before))).max() < 1e-6
    flat = torch.full_like(maps(), 0.1)
    assert np.abs(bent(operation, p=flat) - 0.1).max() < 1e-7


def test_factors_and_regions() -> None:
    before = pictures(maps())
    assert np.abs(bent(bend.amplify(2.5)) - 2.5 * before).max() < 1e-7
    assert np.abs(bent(bend.suppress(4)) - before / 4).max() < 1e-7
    mask = np.zeros(GRID[1:])
    mask[0:3, 2:4] = 1
    mask[0:3, 4] = 0.4  # 0.55 of 8 columns ends 0.4 into the fifth
    assert np.abs(bent(bend.region((0.25, 0, 0.55, 0.5), GRID[1:])) - before * mask).max() < 1e-7


@given(strength=st.floats(-2, 3), factor=st.floats(0, 4))
@settings(max_examples=30, deadline=None)
def test_strength_goes_part_of_the_way_and_never_below_zero(strength: float, factor: float) -> None:
    before = pictures(maps())
    expected = np.maximum(before * (1 + strength * (factor - 1)), 0)
    assert np.allclose(bent(bend.amplify(factor), strength), expected, atol=1e-7)
    assert np.allclose(bent(bend.amplify(factor), torch.tensor(strength)), expected, atol=1e-6)


def test_heads_are_bent_by_their_own_strength() -> None:
    before = pictures(maps())
    after = bent(bend.flip("x", GRID[1:]), torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert np.array_equal(after[0], before[0])
    assert np.abs(after[1] - before[1][..., ::-1]).max() < 1e-6


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    "operation",
    [bend.amplify(3), bend.translate(0.25, 0, GRID[1:]), bend.blur(1)],
    ids=["amplify", "translate", "blur"],
)
def test_the_corrected_output_equals_that_of_the_full_map(operation: MapOperation, renormalize: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    Q, H, K, L, real = 96, 3, 8, 64, 7
    q = torch.randn(1, Q, H, K, dtype=torch.float64, generator=generator)
    k, v = (torch.randn(1, L, H, K, dtype=torch.float64, generator=generator) for _ in range(2))
    k[:, real:], v[:, real:] = k[:, real : real + 1], v[:, real : real + 1]
    chosen = [1, 4]
    full = torch.softmax(torch.einsum("bqhk,blhk->bhql", q, k) * K**-0.5, -1)
    out = torch.einsum("bhql,blhk->bqhk", full, v)
    p = columns(q, k, text_rows(real, L), torch.tensor(chosen))
    p_new = bend_maps(p, operation, 1.0, GRID)

    replaced = full.clone()
    replaced[..., chosen] = p_new
    if renormalize:
        replaced = replaced / replaced.sum(-1, keepdim=True)
    expected = torch.einsum("bhql,blhk->bqhk", replaced, v)
    found, least = bent_output(out, p, p_new, v[:, chosen], renormalize)
    assert (found - expected).abs().max() < 1e-13
    whole = 1 + (p_new - p).sum(-1)
    assert abs(float(least) - float(whole.min())) < 1e-15
    require_mass(float(least), "in block 0")


def test_nothing_left_to_attend_to_is_an_error() -> None:
    p = torch.ones(1, 1, 96, 1, dtype=torch.float64)
    out = torch.ones(1, 96, 1, 4, dtype=torch.float64)
    found, least = bent_output(out, p, torch.zeros_like(p), torch.ones(1, 1, 1, 4, dtype=torch.float64))
    assert torch.isfinite(found).all()  # reported after the call, by the caller
    with pytest.raises(NumericalError, match="block 3"):
        require_mass(float(least), "in block 3")
    with pytest.raises(NumericalError):
        require_mass(float("nan"), "anywhere")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: bend.amplify(-1),
        lambda: bend.suppress(0),
        lambda: bend.scale(float("nan"), (2, 2)),
        lambda: bend.blur(0),
        lambda: bend.flip("z", (2, 2)),  # type: ignore[arg-type]
        lambda: bend.region((0.5, 0, 0.5, 1), (2, 2)),
        lambda: bend_maps(maps(), bend.amplify(2), 1.0, (1, 2, 3)),
    ],
)
def test_meaningless_parameters_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"number|flip|box|fit"):
        wrong()

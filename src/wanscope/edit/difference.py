"""How far apart two prompts are for the model, measured free of scale and of padding.

The difference of B from A is the relative L2 distance |B - A| / |A| over the union of their real tokens: a token that
one of them lacks counts as zero in raw embeddings, and as the pad context (the projection of a zero row) in projected
ones, because that is what the transformer reads there. Beside it stand the cosine distance 1 - cos(A, B), which no
scale of either changes, and the norm ratio |B| / |A|. All three are given over the whole token matrix, for each token,
and for the mean token of each prompt ("pooled").

Shape suffixes: A, B real tokens of the two prompts, N the larger of both, D text dimension, C context dimension.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wanscope.edit.token_matrix import check_same_dim, exact, padded, real_tokens
from wanscope.errors import RecipeError

TEXT_LENGTH = 512  # rows to which Wan pads every prompt
LEGACY_THRESHOLD = 0.01
LEGACY_NOTE = (
    "legacy figure with two defects: it depends on the scale of the embedding, and padding alone caps it at "
    "{cap:.1%} here ({tokens} real tokens of {length})"
)

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Distance:
    """Of B from A. None where it is not defined: A is zero, or (for the cosine) either is.

    relative_l2: |B - A| / |A|. cosine: 1 - cos(A, B), 0 to 2. norm_ratio: |B| / |A|.
    """

    relative_l2: float | None
    cosine: float | None
    norm_ratio: float | None


@dataclass(frozen=True)
class TokenDistance(Distance):
    """Of one token. share: its part of the squared difference. in_a, in_b: whether the prompt has this token."""

    token: int
    share: float
    in_a: bool
    in_b: bool


@dataclass(frozen=True)
class DimensionDifference:
    """One dimension: root mean square of B - A over the tokens, and its part of the squared difference."""

    dimension: int
    rms: float
    share: float


@dataclass(frozen=True)
class Legacy:
    """`percent changed` of earlier tools, on tensors padded to `text_length`. cap: the most it can ever be here."""

    percent_changed: float
    cap: float
    note: str


@dataclass(frozen=True)
class SpaceDifference:
    """The difference in one space: raw (the encoder's output) or projected (what the blocks read)."""

    matrix: Distance
    pooled: Distance
    tokens: tuple[TokenDistance, ...]
    dimensions: tuple[DimensionDifference, ...]
    legacy: Legacy


@dataclass(frozen=True)
class Difference:
    """How far prompt B is from prompt A. `raw.matrix.relative_l2` is what amplifiers aim at."""

    tokens_a: int
    tokens_b: int
    raw: SpaceDifference
    projected: SpaceDifference | None
    advice: str

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


# Of `wanscope validate edits`; the thresholds below can therefore only say how usual a difference is.
MEASURED = (
    "In marbles what a whole sentence did, injected into all or the middle blocks, followed its strength and not this "
    "figure: where 0.5 does too little, 0.75 or an amplified B did it."
)


@dataclass(frozen=True)
class Thresholds:
    """Relative L2 (projected where it is known) below which a difference is called small, and from which on large.

    `source` says where the numbers come from and is part of the advice. The default ones are the quartiles of the
    projected difference of 200 prompt pairs of marbles (benchmarks/results/validate-edits.md).
    """

    small: float = 0.47
    large: float = 1.09
    source: str = "the quartiles of marbles' prompt pairs"


@torch.no_grad()
def measure_difference(
    a_AD: Tensor,
    b_BD: Tensor,
    projection: Projection | None = None,
    *,
    top: int = 10,
    text_length: int = TEXT_LENGTH,
    thresholds: Thresholds | None = None,
) -> Difference:
    """The difference of prompt B from prompt A.

    a_AD, b_BD: raw embeddings of one prompt each; padding rows of zeros at the end are cut off.
    projection: the transformer's `condition_embedder.text_embedder`, or any callable [L, D] -> [L, C]; without it only
    the raw difference is measured. top: how many dimensions to name.

    Computed in float64. Raises RecipeError for embeddings of different dimensions, empty, all zero or not finite.
    """
    check_same_dim([a_AD, b_BD], ["embedding A", "embedding B"])
    tokens_a, tokens_b = real_tokens(a_AD), real_tokens(b_BD)
    for name, tokens in (("A", tokens_a), ("B", tokens_b)):
        if not tokens:
            raise RecipeError(f"embedding {name} is all zeros", "it has no real token, so nothing can be compared", "")
    if max(tokens_a, tokens_b) > text_length:
        raise RecipeError(
            f"a prompt has {max(tokens_a, tokens_b)} real tokens", f"the model reads {text_length}", "a shorter prompt"
        )
    a_AD, b_BD = a_AD[:tokens_a], b_BD[:tokens_b].to(a_AD.device)
    raw = _space(exact(a_AD), exact(b_BD), None, top, text_length)
    projected = None
    if projection is not None:
        a_AC, b_BC = (exact(project(rows, projection)) for rows in (a_AD, b_BD))
        pad_C = exact(project(torch.zeros_like(a_AD[:1]), projection))[0]
        projected = _space(a_AC, b_BC, pad_C, top, text_length)
    return Difference(
        tokens_a, tokens_b, raw, projected, _advice(raw, projected, tokens_a, tokens_b, thresholds or Thresholds())
    )


@torch.no_grad()
def relative_l2(a_AD: Tensor, b_BD: Tensor, pad_D: Tensor | None = None) -> float:
    """|B - A| / |A| over the union of rows, in float64; missing rows are zeros, or `pad_D`. inf when A is zero."""
    a_ND, b_ND = _union(exact(a_AD), exact(b_BD).to(a_AD.device), pad_D)
    norm, distance = float(a_ND.norm()), float((b_ND - a_ND).norm())
    return distance / norm if norm else math.inf if distance else 0.0


@torch.no_grad()
def project(embedding_LD: Tensor, projection: Projection) -> Tensor:
    """[L, C]: the context that the blocks read for these rows. A module is given them in its own dtype and device.

    Rows are projected one prompt at a time and never change. RecipeError if the result is not one row a token.
    """
    weight = next(projection.parameters(), None) if isinstance(projection, nn.Module) else None
    if weight is not None:
        # An 8-bit weight is only storage; such a module computes in what it is given.
        embedding_LD = embedding_LD.to(weight.device, weight.dtype if weight.dtype.itemsize > 1 else embedding_LD.dtype)
    context_LC = projection(embedding_LD)
    if context_LC.ndim != 2 or context_LC.shape[0] != embedding_LD.shape[0]:
        raise RecipeError(
            f"the projection made {list(context_LC.shape)} of {list(embedding_LD.shape)}",
            "it should make one row for each token",
            "transformer.condition_embedder.text_embedder",
        )
    return context_LC


def _union(a_AD: Tensor, b_BD: Tensor, pad_D: Tensor | None) -> tuple[Tensor, Tensor]:
    length = max(len(a_AD), len(b_BD))
    return padded(a_AD, length, pad_D), padded(b_BD, length, pad_D)


def _space(a_AD: Tensor, b_BD: Tensor, pad_D: Tensor | None, top: int, text_length: int) -> SpaceDifference:
    a_ND, b_ND = _union(a_AD, b_BD, pad_D)
    d_ND = b_ND - a_ND
    squared_N, squared_D = d_ND.square().sum(1), d_ND.square().sum(0)
    total = float(squared_N.sum())
    changed = float((d_ND.abs() > LEGACY_THRESHOLD).sum()) / (text_length * d_ND.shape[1])
    cap = len(d_ND) / text_length
    note = LEGACY_NOTE.format(cap=cap, tokens=len(d_ND), length=text_length)
    order = torch.argsort(squared_D, descending=True, stable=True)[: max(0, top)].tolist()
    return SpaceDifference(
        matrix=_distance(a_ND.flatten(), b_ND.flatten()),
        pooled=_distance(a_AD.mean(0), b_BD.mean(0)),
        tokens=tuple(
            TokenDistance(
                **dataclasses.asdict(_distance(a_ND[i], b_ND[i])),
                token=i,
                share=float(squared_N[i]) / total if total else 0.0,
                in_a=i < len(a_AD),
                in_b=i < len(b_BD),
            )
            for i in range(len(d_ND))
        ),
        dimensions=tuple(
            DimensionDifference(
                i, math.sqrt(float(squared_D[i]) / len(d_ND)), float(squared_D[i]) / total if total else 0.0
            )
            for i in order
        ),
        legacy=Legacy(changed, cap, note),
    )


def _distance(a: Tensor, b: Tensor) -> Distance:
    norm_a, norm_b = float(a.norm()), float(b.norm())
    if not norm_a:
        return Distance(None, None, None)
    # 1 - cos as half the squared distance of the directions: exact for prompts that are nearly equal
    cosine = float((a / norm_a - b / norm_b).square().sum()) / 2 if norm_b else None
    return Distance(float((b - a).norm()) / norm_a, cosine, norm_b / norm_a)


def _advice(
    raw: SpaceDifference, projected: SpaceDifference | None, tokens_a: int, tokens_b: int, thresholds: Thresholds
) -> str:
    where, distance = ("projected", projected.matrix) if projected else ("raw", raw.matrix)
    value = distance.relative_l2
    if not raw.matrix.relative_l2:
        return "The prompts are the same to the model: injecting one into the other changes nothing."
    if value is None:
        return "Nothing can be said: the context of A is zero."
    figure = f"the {where} difference is {value:.2f}"
    basis = f"({thresholds.source})"
    if value < thresholds.small:
        text = f"A small difference: {figure}, under {thresholds.small:g} {basis}."
    elif value < thresholds.large:
        text = f"A moderate difference: {figure}, from {thresholds.small:g} to {thresholds.large:g} {basis}."
    else:
        text = f"A large difference: {figure}, {thresholds.large:g} or more {basis}."
    text += f" {MEASURED}"
    if tokens_b * 2 < tokens_a:
        text += (
            f" B has {tokens_b} tokens and A {tokens_a}: a fragment also takes away what it does not name (in marbles"
            " with `mix` and `tokens` alike), so write B as a whole sentence."
        )
    return text


def render_difference(
    difference: Difference, *, tokens: int = 5, pieces_a: Sequence[str] = (), pieces_b: Sequence[str] = ()
) -> str:
    """The difference as a text of about 20 lines. tokens: how many of those that differ most to list.

    pieces_a, pieces_b: the tokens of the prompts as the tokenizer writes them, to be shown beside their numbers.
    """
    spaces = [difference.raw] + ([difference.projected] if difference.projected else [])
    width = 13

    def row(label: str, cells: list[str]) -> str:
        return f"{label:<22}" + "".join(f"{cell:>{width}}" for cell in cells)

    def figure(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    lines = [
        f"tokens: A {difference.tokens_a}, B {difference.tokens_b} (padding not counted)",
        row("", ["raw", "projected"][: len(spaces)]),
    ]
    for title, level in (("", "matrix"), ("pooled ", "pooled")):
        for name, label in (
            ("relative_l2", "relative L2"),
            ("cosine", "cosine distance"),
            ("norm_ratio", "norm ratio"),
        ):
            lines.append(row(title + label, [figure(getattr(getattr(space, level), name)) for space in spaces]))
    for name, label in (("relative_l2", "per token L2, median"), ("cosine", "per token cosine")):
        lines.append(row(label, [figure(_median(space, name)) for space in spaces]))
    lines.append(row("percent changed, old", [f"{space.legacy.percent_changed:.2%}" for space in spaces]))
    lines.append(f"  {spaces[0].legacy.note}")
    for label, space in zip(("raw", "projected"), spaces, strict=False):
        most = ", ".join(f"{d.dimension} ({d.share:.1%})" for d in space.dimensions)
        lines.append(f"dimensions that differ most, {label}: {most}")
        ordered = sorted(space.tokens, key=lambda token: -token.share)[: max(0, tokens)]
        which = ", ".join(f"{t.token}{_pieces(t.token, pieces_a, pieces_b)} ({t.share:.1%}{_only(t)})" for t in ordered)
        lines.append(f"tokens that differ most, {label}: {which}")
    return "\n".join([*lines, difference.advice])


def _pieces(token: int, *prompts: Sequence[str]) -> str:
    shown = [pieces[token] for pieces in prompts if token < len(pieces)]
    return f" {'|'.join(dict.fromkeys(shown))}" if shown else ""


def _only(token: TokenDistance) -> str:
    return "" if token.in_a and token.in_b else ", only in A" if token.in_a else ", only in B"


def _median(space: SpaceDifference, name: str) -> float | None:
    values = [value for token in space.tokens if (value := getattr(token, name)) is not None]
    return statistics.median(values) if values else None

"""The difference between two prompts as the model sees them, independent of scale and padding.

The difference of B from A is the relative L2 distance |B - A| / |A| over the union of their real tokens. A token that
one of them lacks counts as zero in raw embeddings, and as the projection of a zero row in projected ones, because that
is what the transformer reads there. Two more measures are given: the cosine distance 1 - cos(A, B), which does not
depend on the scale of either, and the norm ratio |B| / |A|. All three are computed over the whole token matrix, for
each token, and for the mean token of each prompt ("pooled").

Shape suffixes: A, B real tokens of the two prompts, N the larger of the two, L tokens of one prompt, D text dimension,
C context dimension.
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

TEXT_LENGTH = 512  # the number of rows to which Wan pads every prompt
LEGACY_THRESHOLD = 0.01
LEGACY_NOTE = (
    "legacy figure with two defects: it depends on the scale of the embedding, and padding alone caps it at "
    "{cap:.1%} here ({tokens} real tokens of {length})"
)

Projection = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Distance:
    """Distance of B from A. A value is None if it is undefined: A is zero, or (for the cosine) either is.

    relative_l2: |B - A| / |A|. cosine: 1 - cos(A, B), 0 to 2. norm_ratio: |B| / |A|.
    """

    relative_l2: float | None
    cosine: float | None
    norm_ratio: float | None


@dataclass(frozen=True)
class TokenDistance(Distance):
    """Distance of one token. share: its fraction of the squared difference. in_a, in_b: whether A and B have it."""

    token: int
    share: float
    in_a: bool
    in_b: bool


@dataclass(frozen=True)
class DimensionDifference:
    """Difference in one dimension: root mean square of B - A over the tokens, and fraction of the squared total."""

    dimension: int
    rms: float
    share: float


@dataclass(frozen=True)
class Legacy:
    """The `percent changed` of earlier tools, on tensors padded to `text_length`. cap: its maximum for the prompts."""

    percent_changed: float
    cap: float
    note: str


@dataclass(frozen=True)
class SpaceDifference:
    """The difference in one space: raw (the encoder's output) or projected (what the blocks read).

    dimensions: those that differ most, the largest difference first.
    """

    matrix: Distance
    pooled: Distance
    tokens: tuple[TokenDistance, ...]
    dimensions: tuple[DimensionDifference, ...]
    legacy: Legacy


@dataclass(frozen=True)
class Difference:
    """The difference of prompt B from prompt A. `raw.matrix.relative_l2` is the quantity that `amplify` sets.

    tokens_a, tokens_b: numbers of real tokens. projected: None if no projection was given. advice: a few sentences.
    """

    tokens_a: int
    tokens_b: int
    raw: SpaceDifference
    projected: SpaceDifference | None
    advice: str

    def as_data(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return dataclasses.asdict(self)


# The result of `wanscope validate edits`. The thresholds below therefore only say how common a difference is.
MARBLES_FINDING = (
    "In marbles, the effect of a whole sentence injected into all or the middle blocks depended on the strength and "
    "not on this difference: where 0.5 was too weak, 0.75 or an amplified B worked."
)


@dataclass(frozen=True)
class Thresholds:
    """The relative L2 (projected, if available) below which a difference is called small, and from which it is large.

    source: where the numbers come from; it is part of the advice. The defaults are the quartiles of the projected
    difference of 200 prompt pairs of marbles (benchmarks/results/validate-edits.md).
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
    """Measure the difference of prompt B from prompt A, in float64.

    a_AD, b_BD: raw embeddings of one prompt each; padding rows of zeros at the end are ignored.
    projection: the transformer's `condition_embedder.text_embedder`, or any callable [L, D] -> [L, C]. Without it, only
    the raw difference is measured. top: the number of dimensions to report. text_length: the padded length, for the
    legacy figure.

    Raises RecipeError for embeddings of different dimensions, and for one that is empty, all zero, not finite, or
    longer than `text_length`.
    """
    check_same_dim([a_AD, b_BD], ["embedding A", "embedding B"])
    tokens_a, tokens_b = real_tokens(a_AD), real_tokens(b_BD)
    for name, tokens in (("A", tokens_a), ("B", tokens_b)):
        if not tokens:
            raise RecipeError(f"embedding {name} is all zeros", "it has no real tokens to compare", "")
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
    """Return |B - A| / |A| over the union of rows, in float64.

    Missing rows are zeros, or `pad_D`. If A is zero, the result is 0 if B is zero too, and inf otherwise.
    """
    a_ND, b_ND = _union(exact(a_AD), exact(b_BD).to(a_AD.device), pad_D)
    norm, distance = float(a_ND.norm()), float((b_ND - a_ND).norm())
    return distance / norm if norm else math.inf if distance else 0.0


@torch.no_grad()
def project(embedding_LD: Tensor, projection: Projection) -> Tensor:
    """Return the context [L, C] that the blocks read for the rows of one prompt's raw embedding.

    A module gets the rows in its own dtype and on its own device. `embedding_LD` is not changed. Raises RecipeError if
    the result does not have one row per token.
    """
    weight = next(projection.parameters(), None) if isinstance(projection, nn.Module) else None
    if weight is not None:
        # 8-bit weights are only storage; such a module computes in the dtype of its input.
        embedding_LD = embedding_LD.to(weight.device, weight.dtype if weight.dtype.itemsize > 1 else embedding_LD.dtype)
    context_LC = projection(embedding_LD)
    if context_LC.ndim != 2 or context_LC.shape[0] != embedding_LD.shape[0]:
        raise RecipeError(
            f"the projection returned shape {list(context_LC.shape)} for {list(embedding_LD.shape)}",
            "it should return one row per token",
            "projection=transformer.condition_embedder.text_embedder",
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
    # 1 - cos as half the squared distance of the unit vectors, which does not cancel for nearly equal prompts
    cosine = float((a / norm_a - b / norm_b).square().sum()) / 2 if norm_b else None
    return Distance(float((b - a).norm()) / norm_a, cosine, norm_b / norm_a)


def _advice(
    raw: SpaceDifference, projected: SpaceDifference | None, tokens_a: int, tokens_b: int, thresholds: Thresholds
) -> str:
    where, distance = ("projected", projected.matrix) if projected else ("raw", raw.matrix)
    value = distance.relative_l2
    if not raw.matrix.relative_l2:
        return "The prompts have the same embedding: injecting one into the other changes nothing."
    if value is None:
        return "The difference is undefined because the context of A is zero."
    figure = f"the {where} difference is {value:.2f}"
    basis = f"({thresholds.source})"
    if value < thresholds.small:
        text = f"A small difference: {figure}, under {thresholds.small:g} {basis}."
    elif value < thresholds.large:
        text = f"A moderate difference: {figure}, from {thresholds.small:g} to {thresholds.large:g} {basis}."
    else:
        text = f"A large difference: {figure}, {thresholds.large:g} or more {basis}."
    text += f" {MARBLES_FINDING}"
    if tokens_b * 2 < tokens_a:
        text += (
            f" B has {tokens_b} tokens and A {tokens_a}: a fragment also removes what it does not mention (in marbles,"
            " with both `mix` and `tokens`), so write B as a whole sentence."
        )
    return text


def render_difference(
    difference: Difference, *, tokens: int = 5, pieces_a: Sequence[str] = (), pieces_b: Sequence[str] = ()
) -> str:
    """Return the difference as a text of about 20 lines. tokens: how many tokens to list, largest difference first.

    pieces_a, pieces_b: the tokens of the prompts as text, shown next to their numbers.
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

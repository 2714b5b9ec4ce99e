"""The legacy nodes for text embeds that need no model: analysis, algebra, sequences, the catalog.

Shape suffixes: L tokens, D text dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import catalog
from wanscope.doors.comfy.base import E, Inputs, Node, boolean, choice, fraction, integer, node_output, number, socket
from wanscope.doors.comfy.embeds import first_only_note, first_prompt, prompts_of, truncate_tokens, with_prompts
from wanscope.edit import embedding_algebra as algebra
from wanscope.edit.amplify import MODES, amplify
from wanscope.edit.difference import relative_l2
from wanscope.errors import RecipeError

SEQUENCE_LENGTH = 8  # prompts in a mixed sequence; the wrapper spreads them evenly over the frames


class EmbeddingAnalyzer(Node):
    TITLE = "Analyze Text Embeds"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Reports figures of a prompt's embedding over its real tokens: shape, norms, and the fraction of variance "
        "along its principal axes. With `store_in_db` the embedding is stored in the catalog."
    )
    REQUIRED: ClassVar[Inputs] = {
        "text_embeds": socket(E, "The embeds to analyze; passed through unchanged."),
        "analysis_type": choice(("statistics", "shape", "pca_preview", "all"), "all", "Which figures to report."),
        "store_in_db": boolean(True, "Store the embedding in the catalog."),
    }
    RETURN_TYPES = ("STRING", E)
    RETURN_NAMES = ("analysis_report", "text_embeds")
    OUTPUT_NODE = True

    def run(self, text_embeds: Any, analysis_type: str, store_in_db: bool) -> dict[str, Any]:
        prompts = prompts_of(text_embeds)
        lines: list[str] = []
        for i, tokens_LD in enumerate(prompts):
            if len(prompts) > 1:
                lines.append(f"prompt {i + 1} of {len(prompts)}")
            if analysis_type in ("shape", "all"):
                dtype = str(tokens_LD.dtype).removeprefix("torch.")
                lines.append(f"{len(tokens_LD)} real tokens of {tokens_LD.shape[1]} dimensions, {dtype}")
            if analysis_type in ("statistics", "all"):
                lines += _statistics(tokens_LD)
            if analysis_type in ("pca_preview", "all"):
                lines.append(_axes(tokens_LD))
        if store_in_db:
            store = catalog.catalog()
            for tokens_LD in prompts:
                key = store.put(tokens_LD.detach().cpu(), encoder=catalog.ENCODER, source="comfyui")
                lines.append(f"stored in the catalog as {key[:12]}")
        report = "\n".join(lines)
        return node_output(report, report, text_embeds)


def _statistics(tokens_LD: Tensor) -> list[str]:
    """Return lines with the mean, spread, range and norms of the values, in float64."""
    x = tokens_LD.double()
    norms = torch.linalg.vector_norm(x, dim=1)
    return [
        f"mean {float(x.mean()):.5f}, standard deviation {float(x.std(correction=0)):.5f}, "
        f"from {float(x.min()):.4f} to {float(x.max()):.4f}",
        f"norm {float(torch.linalg.vector_norm(x)):.4f}; of tokens: mean {float(norms.mean()):.4f}, "
        f"from {float(norms.min()):.4f} to {float(norms.max()):.4f}",
    ]


def _axes(tokens_LD: Tensor) -> str:
    """Return a line with the fractions of variance along the tokens' principal axes, from their Gram matrix."""
    x = tokens_LD.double() - tokens_LD.double().mean(0)
    values = torch.linalg.eigvalsh(x @ x.T).flip(0).clamp_min(0)
    if len(x) < 2 or not float(values.sum()):
        return "principal axes: none, the tokens do not differ"
    shares = values / values.sum()
    ratio = 1 / float(shares.square().sum())
    first = ", ".join(f"{float(s):.1%}" for s in shares[:5])
    return f"principal axes of the tokens: {first} of the variance; participation ratio {ratio:.1f}"


class VectorDifference(Node):
    TITLE = "Difference of Embeds"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Computes A minus B, token by token. The shorter prompt is padded with zeros, like the model's own padding."
    )
    REQUIRED: ClassVar[Inputs] = {
        "text_embeds_a": socket(E, "A."),
        "text_embeds_b": socket(E, "B, which is subtracted from A."),
        "normalize": boolean(False, "Scale every token of the difference to length 1."),
        "scale": number(1.0, -10.0, 10.0, 0.1, "The factor that the difference is multiplied by."),
    }
    RETURN_TYPES = (E,)
    RETURN_NAMES = ("difference_vector",)

    def run(self, text_embeds_a: Any, text_embeds_b: Any, normalize: bool, scale: float) -> dict[str, Any]:
        a, b = first_prompt(text_embeds_a, "text_embeds_a"), first_prompt(text_embeds_b, "text_embeds_b")
        made = algebra.difference(a, b.to(a.device), normalize=normalize, scale=scale)
        parameters = {"normalize": normalize, "scale": scale}
        recorded = catalog.record_operation("difference", [a, b], made.embedding, parameters)
        report = _join(made.note, first_only_note(text_embeds_a, text_embeds_b), recorded)
        return node_output(report, with_prompts(text_embeds_a, [made.embedding]))


class VectorArithmetic(Node):
    TITLE = "Embeds Arithmetic"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "`add`: the base plus each operand times its weight. `weighted_sum`: the same divided by the sum of all "
        "weights; the base has weight 1. `multiply`: the elementwise product of the base and the weighted operands. "
        "`normalize`: the result of `add` with every token scaled to length 1."
    )
    REQUIRED: ClassVar[Inputs] = {
        "base_embeds": socket(E, "The first operand; its negative prompt is kept."),
        "operation": choice(("add", "weighted_sum", "multiply", "normalize"), "add", "The operation."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        name: value
        for i in (1, 2, 3)
        for name, value in (
            (f"operand_{i}", socket(E, f"Operand {i}.")),
            (f"weight_{i}", number(1.0, -10.0, 10.0, 0.1, f"Weight of operand {i}.")),
        )
    }
    RETURN_TYPES = (E,)
    RETURN_NAMES = ("result_embeds",)

    def run(self, base_embeds: Any, operation: str, **operands: Any) -> dict[str, Any]:
        rows, weights = [first_prompt(base_embeds, "base_embeds")], [1.0]
        for i in (1, 2, 3):
            if operands.get(f"operand_{i}") is not None:
                rows.append(first_prompt(operands[f"operand_{i}"], f"operand_{i}").to(rows[0].device))
                weights.append(float(operands.get(f"weight_{i}", 1.0)))
        if operation == "multiply":
            scaled = [algebra.weighted_sum([r], [w]).embedding for r, w in zip(rows, weights, strict=True)]
            made, record = algebra.product(scaled), ("product", scaled, {})
        else:
            total = sum(weights)
            if operation == "weighted_sum":
                if not total:
                    raise RecipeError(
                        "the weights sum to 0", "a weighted sum is divided by their sum", "operation: add"
                    )
                weights = [w / total for w in weights]
            made, record = algebra.weighted_sum(rows, weights), ("weighted_sum", rows, {"weights": weights})
            if operation == "normalize":
                before = made
                made = algebra.Result(algebra.normalize(before.embedding).embedding, before.note)
                record = ("normalize", [before.embedding], {})
        several = first_only_note(base_embeds, *(operands.get(f"operand_{i}") for i in (1, 2, 3)))
        report = _join(made.note, several, catalog.record_operation(record[0], record[1], made.embedding, record[2]))
        return node_output(report, with_prompts(base_embeds, [made.embedding]))


class VectorInterpolation(Node):
    TITLE = "Interpolate Embeds"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Returns prompts along a path from the first to the second, as several prompts in one output; the wrapper "
        "spreads them evenly over the video. `spherical` turns each token at constant speed. `cubic` is the "
        "Catmull-Rom spline, which is a straight line through two prompts."
    )
    REQUIRED: ClassVar[Inputs] = {
        "start_embeds": socket(E, "The start of the path; its negative prompt is kept."),
        "end_embeds": socket(E, "The end of the path."),
        "steps": integer(5, 2, 20, "The number of prompts; at most the video's number of latent frames."),
        "method": choice(("linear", "spherical", "cubic"), "linear", "The kind of path."),
        "include_endpoints": boolean(True, "Whether the path includes the two prompts themselves."),
    }
    RETURN_TYPES = (E,)
    RETURN_NAMES = ("interpolated_sequence",)

    def run(self, start_embeds: Any, end_embeds: Any, steps: int, method: str, include_endpoints: bool) -> Any:
        a, b = first_prompt(start_embeds, "start_embeds"), first_prompt(end_embeds, "end_embeds")
        path = algebra.interpolate(
            [a, b.to(a.device)],
            steps,
            method,  # type: ignore[arg-type]
            include_endpoints=include_endpoints,
        )
        report = f"{steps} prompts at positions {', '.join(f'{p:.2f}' for p in path.positions)}."
        report = _join(report, path.note, first_only_note(start_embeds, end_embeds))
        return node_output(report, with_prompts(start_embeds, path.embeddings))


class EmbeddingDatabase(Node):
    TITLE = "Embedding Catalog"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Shows statistics of the catalog or its newest entries, or cleans it up. A cleanup removes embeddings that "
        "were not used for `cleanup_days` and were used fewer than `cleanup_min_access` times, unless they have a "
        "label or are an input of an embedding that is kept."
    )
    REQUIRED: ClassVar[Inputs] = {
        "action": choice(("stats", "cleanup", "list_recent"), "stats", "The action."),
        "cleanup_days": integer(30, 1, 365, "Remove embeddings that were not used for this many days."),
        "cleanup_min_access": integer(5, 1, 100, "Keep embeddings that were used at least this often."),
    }
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> float:
        return math.nan  # the catalog changes outside the graph

    def run(self, action: str, cleanup_days: int, cleanup_min_access: int) -> dict[str, Any]:
        store = catalog.catalog()
        if not store.exists:
            report = "The catalog is empty; nothing has been stored yet."
        elif action == "stats":
            found = store.stats()
            size = found["bytes"]
            report = "\n".join(
                [
                    f"catalog: {found['catalogue']}",
                    f"{found['embeddings']['count']} embeddings, used {found['embeddings']['uses']} times, "
                    f"{size['files']:,} bytes in files, {size['database']:,} in the database",
                    f"{found['rows']['vector_operations']} recorded operations",
                    *(f"  {op['operation']}: {op['count']}" for op in found["operations"]),
                ]
            )
        elif action == "cleanup":
            done = store.cleanup(unused_days=cleanup_days, max_uses=cleanup_min_access - 1, dry_run=False)
            report = (
                f"Removed {len(done.keys)} embeddings ({done.bytes:,} bytes); {done.kept} others matched and were "
                "kept, because they have a label or are an input of an embedding that is kept."
            )
        else:
            rows = store.list(limit=10).to_pylist()
            lines = [f"{r['key'][:12]}  {r['tokens']} tokens  {r.get('label') or r.get('prompt') or ''}" for r in rows]
            operations = [f"{op.operation} -> {op.result[:12]}" for op in store.operations(10)]
            report = "\n".join(["newest embeddings", *lines, "newest operations", *operations])
        return node_output(report, report)


class EmbeddingAmplifier(Node):
    TITLE = "Amplify Difference"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Moves the injected prompt until its difference from the main prompt is exactly the target: relative L2 over "
        "the real tokens, in percent. If the target cannot be reached, the error states the reachable range."
    )
    REQUIRED: ClassVar[Inputs] = {
        "main_embeds": socket(E, "The main prompt of the video."),
        "injection_embeds": socket(E, "The prompt that is injected; it is the one that is moved."),
        "target_difference": number(60.0, 30.0, 90.0, 5.0, "The difference to reach, in percent."),
        "amplification_mode": choice(MODES, "push_apart", "The line along which it is moved."),
    }
    RETURN_TYPES = (E, "STRING")
    RETURN_NAMES = ("amplified_injection", "info")

    def run(self, main_embeds: Any, injection_embeds: Any, target_difference: float, amplification_mode: Any) -> Any:
        main = first_prompt(main_embeds, "main_embeds")
        donor = first_prompt(injection_embeds, "injection_embeds").to(main.device)
        made = amplify(main, donor, target_difference / 100, amplification_mode)
        tokens, cut = truncate_tokens(made.embedding)
        info = _join(made.describe() + ".", cut, first_only_note(main_embeds, injection_embeds))
        return node_output(info, with_prompts(injection_embeds, [tokens]), info)


EASES: dict[str, Callable[[float], float]] = {
    "linear": lambda s: s,
    "ease_in": lambda s: s * s,
    "ease_out": lambda s: 1 - (1 - s) ** 2,
    "ease_in_out": lambda s: s * s * (3 - 2 * s),
    "step": lambda s: float(s >= 0.5),
}


class SequentialMixer(Node):
    TITLE = "Mix Embeds over the Video"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        f"Goes from the first prompt to the second (and third) over the video: {SEQUENCE_LENGTH} prompts in one "
        "output, which the wrapper spreads evenly over the frames. A transition is centered at its point, and the "
        "sharpness is its width as a fraction of the video; `step` changes at once."
    )
    REQUIRED: ClassVar[Inputs] = {
        "embedding_1": socket(E, "The prompt at the beginning; its negative prompt is kept."),
        "embedding_2": socket(E, "The prompt after the first transition."),
        "mix_schedule": choice(EASES, "linear", "The curve of a transition."),
        "transition_point": fraction(0.5, "The middle of the first transition, as a fraction of the video."),
        "transition_sharpness": number(0.1, 0.01, 1.0, 0.01, "The width of a transition, as a fraction of the video."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "embedding_3": socket(E, "The prompt after the second transition."),
        "transition_point_2": fraction(0.75, "The middle of the second transition, as a fraction of the video."),
    }
    RETURN_TYPES = (E,)
    RETURN_NAMES = ("mixed_sequence",)

    def run(
        self,
        embedding_1: Any,
        embedding_2: Any,
        mix_schedule: str,
        transition_point: float,
        transition_sharpness: float,
        embedding_3: Any = None,
        transition_point_2: float = 0.75,
    ) -> dict[str, Any]:
        rows = [first_prompt(embedding_1, "embedding_1"), first_prompt(embedding_2, "embedding_2")]
        points = [transition_point]
        if embedding_3 is not None:
            rows.append(first_prompt(embedding_3, "embedding_3"))
            points.append(transition_point_2)
            if transition_point_2 < transition_point:
                raise RecipeError(
                    f"the second transition is at {transition_point_2:g}, before the first at {transition_point:g}",
                    "the second transition must not come before the first",
                    f"transition_point_2: {transition_point:g}",
                )
        rows = [row.to(rows[0].device) for row in rows]
        made, note = [], ""
        for i in range(SEQUENCE_LENGTH):
            at = i / (SEQUENCE_LENGTH - 1)
            progress = [_progress(at, point, transition_sharpness, EASES[mix_schedule]) for point in points]
            weights = [1 - progress[0], progress[0]]
            if len(progress) > 1:
                weights = [(1 - progress[1]) * w for w in weights] + [progress[1]]
            mixed = algebra.weighted_sum(rows, weights)
            note = mixed.note
            made.append(mixed.embedding)
        several = first_only_note(embedding_1, embedding_2, embedding_3)
        return node_output(_join(f"{SEQUENCE_LENGTH} prompts.", note, several), with_prompts(embedding_1, made))


def _progress(at: float, middle: float, width: float, ease: Callable[[float], float]) -> float:
    """Return how far a transition is, from 0 to 1, at a fraction of the video."""
    return ease(min(1.0, max(0.0, (at - middle) / width + 0.5)))


def describe_difference(main: Tensor, donor: Tensor) -> str:
    """Return a phrase with the relative L2 difference of two prompts [L, D]."""
    return f"difference of the prompts: {relative_l2(main, donor.to(main.device)):.1%} (raw, real tokens)"


def _join(*parts: str) -> str:
    """Join the sentences that are not empty."""
    return " ".join(part for part in parts if part)

"""The older ids that work on text embeds alone: analysis, algebra, interpolation, amplifier, sequence, noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from wanscope.doors.comfy import catalog
from wanscope.doors.comfy.base import E, Inputs, Node, choice, number, shown, socket, switch, unit, whole
from wanscope.doors.comfy.embeds import at_most, first_prompt, only_first, prompts_of, with_prompts
from wanscope.edit import embedding_algebra as algebra
from wanscope.edit.amplify import MODES, amplify
from wanscope.edit.difference import relative_l2
from wanscope.errors import RecipeError

TRAVEL = 8  # prompts in a mixed sequence; the wrapper spreads them evenly over the frames


class EmbeddingAnalyzer(Node):
    TITLE = "Analyze Text Embeds"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Figures of a prompt's embedding over its real tokens: shape, norms, and the share of variance that its "
        "principal axes hold. With `store_in_db` it is kept in the catalogue."
    )
    REQUIRED: ClassVar[Inputs] = {
        "text_embeds": socket(E, "What is analyzed; handed on unchanged."),
        "analysis_type": choice(("statistics", "shape", "pca_preview", "all"), "all", "Which figures."),
        "store_in_db": switch(True, "Keep the embedding in the catalogue."),
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
                lines.append(f"kept in the catalogue as {key[:12]}")
        report = "\n".join(lines)
        return shown(report, report, text_embeds)


def _statistics(tokens_LD: Tensor) -> list[str]:
    x = tokens_LD.double()
    norms = torch.linalg.vector_norm(x, dim=1)
    return [
        f"mean {float(x.mean()):.5f}, standard deviation {float(x.std(correction=0)):.5f}, "
        f"from {float(x.min()):.4f} to {float(x.max()):.4f}",
        f"norm {float(torch.linalg.vector_norm(x)):.4f}; of tokens: mean {float(norms.mean()):.4f}, "
        f"from {float(norms.min()):.4f} to {float(norms.max()):.4f}",
    ]


def _axes(tokens_LD: Tensor) -> str:
    """The shares of variance of the principal axes of the tokens, from their Gram matrix."""
    x = tokens_LD.double() - tokens_LD.double().mean(0)
    values = torch.linalg.eigvalsh(x @ x.T).flip(0).clamp_min(0)
    if len(x) < 2 or not float(values.sum()):
        return "principal axes: one token has none"
    shares = values / values.sum()
    ratio = 1 / float(shares.square().sum())
    first = ", ".join(f"{float(s):.1%}" for s in shares[:5])
    return f"principal axes of the tokens: {first} of the variance; participation ratio {ratio:.1f}"


class VectorDifference(Node):
    TITLE = "Difference of Embeds"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = "A minus B, token by token. The shorter prompt is filled up with zeros, which is what padding is."
    REQUIRED: ClassVar[Inputs] = {
        "text_embeds_a": socket(E, "A."),
        "text_embeds_b": socket(E, "B, which is subtracted."),
        "normalize": switch(False, "Scale every token of the difference to length 1."),
        "scale": number(1.0, -10.0, 10.0, 0.1, "What the difference is multiplied with."),
    }
    RETURN_TYPES = (E,)
    RETURN_NAMES = ("difference_vector",)

    def run(self, text_embeds_a: Any, text_embeds_b: Any, normalize: bool, scale: float) -> dict[str, Any]:
        a, b = first_prompt(text_embeds_a, "text_embeds_a"), first_prompt(text_embeds_b, "text_embeds_b")
        made = algebra.difference(a, b.to(a.device), normalize=normalize, scale=scale)
        said = catalog.recorded("difference", [a, b], made.embedding, {"normalize": normalize, "scale": scale})
        said = _notes(made.note, only_first(text_embeds_a, text_embeds_b), said)
        return shown(said, with_prompts(text_embeds_a, [made.embedding]))


class VectorArithmetic(Node):
    TITLE = "Embeds Arithmetic"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "`add`: base plus each operand times its weight. `weighted_sum`: the same over the sum of all weights, the "
        "base's being 1. `multiply`: element by element, operands times their weights. `normalize`: the sum of "
        "`add`, every token scaled to length 1."
    )
    REQUIRED: ClassVar[Inputs] = {
        "base_embeds": socket(E, "What the operation begins with; its negative prompt is kept."),
        "operation": choice(("add", "weighted_sum", "multiply", "normalize"), "add", "What is done."),
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
                    raise RecipeError("the weights sum to 0", "a weighted sum divides by their sum", "operation: add")
                weights = [w / total for w in weights]
            made, record = algebra.weighted_sum(rows, weights), ("weighted_sum", rows, {"weights": weights})
            if operation == "normalize":
                before = made
                made = algebra.Result(algebra.normalize(before.embedding).embedding, before.note)
                record = ("normalize", [before.embedding], {})
        several = only_first(base_embeds, *(operands.get(f"operand_{i}") for i in (1, 2, 3)))
        said = _notes(made.note, several, catalog.recorded(record[0], record[1], made.embedding, record[2]))
        return shown(said, with_prompts(base_embeds, [made.embedding]))


class VectorInterpolation(Node):
    TITLE = "Interpolate Embeds"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "A path of prompts from the first to the second, as several prompts in one output: the wrapper spreads them "
        "evenly over the video. `spherical` turns each token at constant speed; `cubic` is the Catmull-Rom spline, "
        "which through two prompts is the straight line."
    )
    REQUIRED: ClassVar[Inputs] = {
        "start_embeds": socket(E, "Where the path begins; its negative prompt is kept."),
        "end_embeds": socket(E, "Where it ends."),
        "steps": whole(5, 2, 20, "How many prompts; at most the video's latent frames."),
        "method": choice(("linear", "spherical", "cubic"), "linear", "How the path runs."),
        "include_endpoints": switch(True, "Whether the first and the last prompt are the two themselves."),
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
        said = f"{steps} prompts at {', '.join(f'{p:.2f}' for p in path.positions)} of the way."
        said = _notes(said, path.note, only_first(start_embeds, end_embeds))
        return shown(said, with_prompts(start_embeds, path.embeddings))


class EmbeddingDatabase(Node):
    TITLE = "Embedding Catalogue"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Figures of the catalogue, its newest entries, or a cleanup: what has not been used for `cleanup_days` and "
        "was used fewer than `cleanup_min_access` times goes; what has a label or is an input of something kept stays."
    )
    REQUIRED: ClassVar[Inputs] = {
        "action": choice(("stats", "cleanup", "list_recent"), "stats", "What to do."),
        "cleanup_days": whole(30, 1, 365, "Remove what was not used for so many days."),
        "cleanup_min_access": whole(5, 1, 100, "Keep what was used at least so often."),
    }
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **given: Any) -> float:
        return math.nan  # the catalogue changes beside the graph

    def run(self, action: str, cleanup_days: int, cleanup_min_access: int) -> dict[str, Any]:
        store = catalog.catalog()
        if not store.exists:
            report = "The catalogue is empty; nothing has been stored yet."
        elif action == "stats":
            found = store.stats()
            size = found["bytes"]
            report = "\n".join(
                [
                    f"catalogue: {found['catalogue']}",
                    f"{found['embeddings']['count']} embeddings, used {found['embeddings']['uses']} times, "
                    f"{size['files']:,} bytes in files, {size['database']:,} in the database",
                    f"{found['rows']['vector_operations']} recorded operations",
                    *(f"  {op['operation']}: {op['count']}" for op in found["operations"]),
                ]
            )
        elif action == "cleanup":
            done = store.cleanup(unused_days=cleanup_days, max_uses=cleanup_min_access - 1, dry_run=False)
            report = (
                f"Removed {len(done.keys)} embeddings ({done.bytes:,} bytes); {done.kept} that fit stay, because they "
                "have a label or something kept was made of them."
            )
        else:
            rows = store.list(limit=10).to_pylist()
            lines = [f"{r['key'][:12]}  {r['tokens']} tokens  {r.get('label') or r.get('prompt') or ''}" for r in rows]
            operations = [f"{op.operation} -> {op.result[:12]}" for op in store.operations(10)]
            report = "\n".join(["newest embeddings", *lines, "newest operations", *operations])
        return shown(report, report)


class EmbeddingAmplifier(Node):
    TITLE = "Amplify Difference"
    CATEGORY = "wanscope/embeddings"
    DESCRIPTION = (
        "Moves the injected prompt until its difference from the main one is exact: relative L2 over the real "
        "tokens, in percent. Where that cannot be reached, the reachable range is said."
    )
    REQUIRED: ClassVar[Inputs] = {
        "main_embeds": socket(E, "The prompt that the video is made from."),
        "injection_embeds": socket(E, "The prompt that is injected; this one is moved."),
        "target_difference": number(60.0, 30.0, 90.0, 5.0, "The difference to reach, in percent."),
        "amplification_mode": choice(MODES, "push_apart", "Along which line it is moved."),
    }
    RETURN_TYPES = (E, "STRING")
    RETURN_NAMES = ("amplified_injection", "info")

    def run(self, main_embeds: Any, injection_embeds: Any, target_difference: float, amplification_mode: Any) -> Any:
        main = first_prompt(main_embeds, "main_embeds")
        donor = first_prompt(injection_embeds, "injection_embeds").to(main.device)
        made = amplify(main, donor, target_difference / 100, amplification_mode)
        tokens, cut = at_most(made.embedding)
        info = _notes(made.describe() + ".", cut, only_first(main_embeds, injection_embeds))
        return shown(info, with_prompts(injection_embeds, [tokens]), info)


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
        f"From the first prompt to the second (and third) along the video: {TRAVEL} prompts in one output, which the "
        "wrapper spreads evenly over the frames. A transition is centered at its point and as wide as the sharpness "
        "says, in shares of the video; `step` changes at once."
    )
    REQUIRED: ClassVar[Inputs] = {
        "embedding_1": socket(E, "At the beginning; its negative prompt is kept."),
        "embedding_2": socket(E, "After the first transition."),
        "mix_schedule": choice(EASES, "linear", "How a transition runs."),
        "transition_point": unit(0.5, "Where the first transition has its middle."),
        "transition_sharpness": number(0.1, 0.01, 1.0, 0.01, "How wide a transition is, in shares of the video."),
    }
    OPTIONAL: ClassVar[Inputs] = {
        "embedding_3": socket(E, "After the second transition."),
        "transition_point_2": unit(0.75, "Where the second transition has its middle."),
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
                    "the prompts follow one another",
                    "transition_point_2: 0.75",
                )
        rows = [row.to(rows[0].device) for row in rows]
        made, note = [], ""
        for i in range(TRAVEL):
            place = i / (TRAVEL - 1)
            shares = [_share(place, point, transition_sharpness, EASES[mix_schedule]) for point in points]
            weights = [1 - shares[0], shares[0]]
            if len(shares) > 1:
                weights = [(1 - shares[1]) * w for w in weights] + [shares[1]]
            mixed = algebra.weighted_sum(rows, weights)
            note = mixed.note
            made.append(mixed.embedding)
        several = only_first(embedding_1, embedding_2, embedding_3)
        return shown(_notes(f"{TRAVEL} prompts.", note, several), with_prompts(embedding_1, made))


def _share(place: float, middle: float, width: float, ease: Callable[[float], float]) -> float:
    return ease(min(1.0, max(0.0, (place - middle) / width + 0.5)))


class NoiseController(Node):
    TITLE = "Structured Noise"
    CATEGORY = "wanscope/sampling"
    DESCRIPTION = (
        "Noise from two seeds, mixed by a pattern: inside the pattern the second seed counts with "
        "`pattern_strength`, and the mix keeps unit variance everywhere. WanVideo Sampler: connect it to `samples`, "
        "with `add_noise_to_samples` off and `denoise_strength` 1. KSampler (Advanced): `add_noise` disable, and the "
        "first sigma 1. For models with 16 latent channels and 8 pixels a latent (all but Wan 2.2 5B)."
    )
    REQUIRED: ClassVar[Inputs] = {
        "width": whole(832, 64, 2048, "Of the video, in pixels.", 8),
        "height": whole(480, 64, 2048, "Of the video, in pixels.", 8),
        "frames": whole(81, 1, 200, "Of the video; latents hold (frames - 1) / 4 + 1."),
        "main_seed": whole(0, 0, 2**63 - 1, "Seed of the noise outside the pattern."),
        "injection_seed": whole(42, 0, 2**63 - 1, "Seed of the noise inside the pattern."),
        "noise_pattern": choice(
            ("uniform", "spatial_blocks", "temporal_blocks", "checkerboard", "radial"), "spatial_blocks", "The pattern."
        ),
        "pattern_strength": unit(0.3, "How much of the second noise there is inside the pattern."),
    }
    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("structured_noise",)

    def run(
        self,
        width: int,
        height: int,
        frames: int,
        main_seed: int,
        injection_seed: int,
        noise_pattern: str,
        pattern_strength: float,
    ) -> dict[str, Any]:
        shape = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
        main, other = (
            torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (main_seed, injection_seed)
        )
        weight_Thw = pattern_strength * noise_mask(noise_pattern, shape[2:])
        mixed = torch.sqrt(1 - weight_Thw**2) * main + weight_Thw * other
        said = (
            "WanVideo Sampler: connect to samples, add_noise_to_samples off, denoise_strength 1. "
            "KSampler (Advanced): add_noise disable."
        )
        return shown(said, {"samples": mixed})


def noise_mask(pattern: str, shape_Thw: tuple[int, ...]) -> Tensor:
    """[T, h, w] from 0 to 1: where the second noise stands."""
    T, h, w = shape_Thw
    t, y, x = torch.meshgrid(torch.arange(T), torch.arange(h), torch.arange(w), indexing="ij")
    if pattern == "uniform":
        return torch.ones(T, h, w)
    if pattern == "spatial_blocks":
        return ((y * 4 // h + x * 4 // w) % 2).float()
    if pattern == "temporal_blocks":
        return (t * 4 // T % 2).float()
    if pattern == "checkerboard":
        return ((y + x) % 2).float()
    radius = torch.sqrt(((y + 0.5) / h - 0.5) ** 2 + ((x + 0.5) / w - 0.5) ** 2)
    return (1 - 2 * radius).clamp(0, 1)


def difference_text(main: Tensor, donor: Tensor) -> str:
    return f"difference of the prompts: {relative_l2(main, donor.to(main.device)):.1%} (raw, real tokens)"


def _notes(*parts: str) -> str:
    return " ".join(part for part in parts if part)

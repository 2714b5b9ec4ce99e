"""Live edits on ComfyUI's own Wan models, through its official patch points only.

    OUTER_SAMPLE     the start and end of a run: its noise levels, and the check that every due edit acted
    DIFFUSION_MODEL  one model call: the branch of each batch row, and the patches below, for this call only
    double_block     patches of the blocks with edits, each chained to a patch that another node has set
    optimized_attention_override   the queries, keys and values of the cross-attention, for mixes, bends and maps

Nothing is left on the model: the block patches are in the options of the one call. A donor's keys and values are
computed by the block's own layers: prompt and donor are concatenated in the context, and separated again before the
attention. LoRAs, offloading and fp8 weights therefore apply to the donor as they do to the prompt.

ComfyUI is not imported: the patch points are given by their names.

Shape suffixes: B batch rows, N video tokens, L context rows, C model width, E heads x head dim, D text dim, T latent
frames, h latent rows, w latent columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from wanscope.edit.sites import Branch
from wanscope.edit.token_matrix import real_tokens
from wanscope.errors import ModelError
from wanscope.runtime.comfy.attention import AttentionChange
from wanscope.runtime.comfy.call import Call
from wanscope.runtime.comfy.live import Live
from wanscope.runtime.comfy.report import log_run

KEY = "wanscope"
BRANCHES: dict[int, Branch] = {0: "cond", 1: "uncond"}


def diffusion_model(model: Any) -> Any:
    """Return the Wan transformer of a ComfyUI MODEL. Raises ModelError for any other model."""
    inner = getattr(getattr(model, "model", None), "diffusion_model", None)
    needed = ("blocks", "text_embedding", "patch_embedding", "head")
    if inner is None or any(not hasattr(inner, name) for name in needed):
        raise ModelError(
            f"the model is {type(inner).__name__}, not a Wan transformer",
            "these nodes edit the blocks of Wan video models",
            "load a Wan 2.1 or 2.2 model with Load Diffusion Model",
        )
    return inner


def depth(model: Any) -> int:
    """Return the model's number of blocks."""
    return len(diffusion_model(model).blocks)


def text_dim(inner: Any) -> int | None:
    """Return the dimensions of the text embeddings that a transformer reads, or None if no layer states them."""
    return next((int(m.in_features) for m in inner.text_embedding.modules() if hasattr(m, "in_features")), None)


def live_of(model: Any) -> Live | None:
    """Return the edits on this copy of a model, or None."""
    return (getattr(model, "model_options", None) or {}).get("transformer_options", {}).get(KEY)


def attach(model: Any, live: Live) -> Any:
    """Return a copy of the model with these edits, which replace those it had; the model passed in is not modified."""
    inner = diffusion_model(model)
    live.check(len(inner.blocks), int(inner.num_heads), text_dim(inner))
    out = model.clone()
    options = out.model_options["transformer_options"] = {**out.model_options.get("transformer_options", {})}
    options[KEY] = live
    for point, wrapper in (("outer_sample", _around_sampling), ("diffusion_model", _around_call)):
        out.remove_wrappers_with_key(point, KEY)
        out.add_wrapper_with_key(point, KEY, _Bound(wrapper, live))
    return out


class _Bound:
    """A wrapper function together with its edits; a deep copy of a model's options does not copy it."""

    def __init__(self, function: Callable[..., Any], live: Live) -> None:
        self.function, self.live = function, live

    def __deepcopy__(self, memo: dict[int, Any]) -> _Bound:
        return self

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.live, executor, *args, **kwargs)


def _around_sampling(live: Live, executor: Any, noise: Tensor, latent: Any, sampler: Any, sigmas: Any, *rest, **kwargs):
    """Wrap one sampling run (OUTER_SAMPLE)."""
    guider = executor.class_obj
    sampling = guider.model_patcher.get_model_object("model_sampling")
    run = live.begin([float(s) for s in sigmas[:-1]], prompt_id())
    run.sigma_at = partial(_sigma_at, sampling)
    try:
        out = executor(noise, latent, sampler, sigmas, *rest, **kwargs)
    finally:
        live.current = None
    try:
        live.finish(run, run.sigma_at, len(guider.model_patcher.model.diffusion_model.blocks))
    finally:
        live.notify(run)
    log_run(live, run)
    return out


def _sigma_at(sampling: Any, fraction: float) -> float:
    return float(sampling.percent_to_sigma(fraction))


def prompt_id() -> str | None:
    """Return the id of the ComfyUI prompt that is being executed, or None if ComfyUI does not provide it."""
    try:
        from comfy_execution.utils import get_executing_context  # type: ignore[import-not-found]
    except ImportError:
        return None
    context = get_executing_context()
    return None if context is None else context.prompt_id


def _around_call(
    live: Live,
    executor: Any,
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    clip_fea: Tensor | None = None,
    time_dim_concat: Tensor | None = None,
    transformer_options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Wrap one call of the transformer (DIFFUSION_MODEL)."""
    options = transformer_options or {}
    inner = executor.class_obj
    run = live.current
    if run is None:  # the sampler bypasses ComfyUI's own
        run = live.begin((), prompt_id())
        run.note("Sampled without ComfyUI's sampler: percentages are fractions of noise removed, 1 - sigma.")
        run.sigma_at = lambda fraction: 1 - fraction
    rest = (x, timestep, context, clip_fea, time_dim_concat)
    sigma = float(options["sigmas"].flatten()[0]) if "sigmas" in options else float(timestep.flatten()[0]) / 1000
    image_rows = 0 if clip_fea is None or inner.img_emb is None else clip_fea.shape[-2]
    call = Call(
        live,
        run,
        sigma,
        _branches(options.get("cond_or_uncond"), x.shape[0]),
        [row[: real_tokens(row)] for row in context],
        len(inner.blocks),
        int(inner.num_heads),
        _grid(x, time_dim_concat, inner.patch_size),
        lambda raw_LD: _project(inner, raw_LD, context),
        run.sigma_at,
    )
    needed = call.blocks
    if not needed:
        return executor(*rest, transformer_options, **kwargs)
    if hasattr(inner, "vace_blocks"):
        run.note("VACE's own blocks read the prompt unedited; the edits act in the model's blocks.")
    replace = options.get("patches_replace", {})
    dit = dict(replace.get("dit", {}))
    for i in needed:
        key = ("double_block", i)
        dit[key] = _BlockPatch(call, i, inner, image_rows, dit.get(key))
    out = executor(*rest, {**options, "patches_replace": {**replace, "dit": dit}}, **kwargs)
    call.finish()
    return out


class _BlockPatch:
    """The patch that ComfyUI calls in place of one block, for one model call. other: another node's patch of it."""

    def __init__(self, call: Call, block: int, inner: Any, image_rows: int, other: Callable | None) -> None:
        self.call, self.block, self.inner, self.image_rows, self.other = call, block, inner, image_rows, other
        self.ran = True

    def __call__(self, args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        context_BLC = args["txt"]
        image_BLC = context_BLC[:, : self.image_rows]
        run = partial(self._run, args, extra, image_BLC)
        out = self.call.block(self.block, args["img"], context_BLC[:, self.image_rows :], run, lambda: self.ran)
        return {"img": out}

    def _run(
        self,
        args: dict[str, Any],
        extra: dict[str, Any],
        image_BLC: Tensor,
        x_BNC: Tensor,
        text_BLC: Tensor,
        change: AttentionChange | None,
        rows: list[int] | None,
    ) -> Tensor:
        options = args.get("transformer_options", {})
        batch = args["img"].shape[0]
        vec, pe = args["vec"], args["pe"]
        if rows is not None:
            image_BLC = image_BLC[rows]
            vec, pe = (t[rows] if t.shape[0] == batch and batch > 1 else t for t in (vec, pe))
        parts = [image_BLC, text_BLC]
        if change is not None:
            parts += [donor.expand(x_BNC.shape[0], -1, -1) for donor in change.donors]
            total = sum(part.shape[1] for part in parts)
            while total in (x_BNC.shape[1], x_BNC.shape[1] + self.image_rows, 2 * self.image_rows):
                # one more row: `_Override` recognizes this attention by its number of keys, which must be unique
                parts.append(text_BLC[:, -1:])
                total += 1
            lengths = (text_BLC.shape[1], total - self.image_rows)
            override = _Override(change, lengths, options.get("optimized_attention_override"))
            options = {**options, "optimized_attention_override": override}
        new = {**args, "img": x_BNC, "txt": torch.cat(parts, 1), "vec": vec, "pe": pe, "transformer_options": options}
        ran: list[bool] = []

        def original(inside: dict[str, Any]) -> dict[str, Any]:
            ran.append(True)
            return extra["original_block"](inside)

        handle = None
        if change is not None and change.silent_rows:
            silent = change.silent_rows
            attention = self.inner.blocks[self.block].cross_attn
            handle = attention.register_forward_hook(lambda module, given, out: _zero_rows(out, silent))
        try:
            out = self.other(new, {**extra, "original_block": original}) if self.other else original(new)
        finally:
            if handle is not None:
                handle.remove()
        if rows is None:
            self.ran = bool(ran)
        return out["img"]


class _Override:
    """Replaces ComfyUI's attention function during one block; only the attention to the text is changed.

    lengths: the number of keys of the prompt, and of prompt and donors together.
    """

    def __init__(self, change: AttentionChange, lengths: tuple[int, int], other: Callable | None) -> None:
        self.change, (self.text, self.total), self.other = change, lengths, other

    def __call__(self, function: Callable, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attend = partial(self.other, function) if self.other else function
        if k.shape[1] != self.total:
            return attend(q, k, v, *args, **kwargs)
        donors, at = [], self.text
        for donor in self.change.donors:
            rows = donor.shape[1]
            donors.append((k[:1, at : at + rows], v[:1, at : at + rows]))
            at += rows
        own = k[:, : self.text], v[:, : self.text]
        return self.change.output(q, *own, donors, lambda q, k, v: attend(q, k, v, *args, **kwargs))


def _zero_rows(out: Tensor, rows: list[int]) -> Tensor:
    """Return a copy of an output [B, ...] with zeros in these batch rows."""
    out = out.clone()
    out[rows] = 0
    return out


def _branches(chunks: Any, batch: int) -> tuple[Branch | None, ...]:
    """Return the branch of every batch row.

    chunks: ComfyUI's `cond_or_uncond`, one number per chunk of rows; without it, all rows are cond.
    """
    chunks = list(chunks) if chunks else [0]
    per = batch // len(chunks)
    return tuple(BRANCHES.get(int(c)) for c in chunks for _ in range(per))


def _grid(x_BCThw: Tensor, time_dim_concat: Tensor | None, patch: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the grid of video tokens (frames, rows, columns)."""
    frames = x_BCThw.shape[2] + (0 if time_dim_concat is None else time_dim_concat.shape[2])
    sizes = (frames, *x_BCThw.shape[3:])
    t, y, x = (math.ceil(size / p) for size, p in zip(sizes, patch, strict=True))
    return t, y, x


def _project(inner: Any, raw_LD: Tensor, context_BLD: Tensor) -> Tensor:
    """Return the context [1, L, C] of a raw text [L, D], projected by the model in a batch of the prompts' shape."""
    length = max(context_BLD.shape[1], len(raw_LD))
    raw_BLD = context_BLD.new_zeros(context_BLD.shape[0], length, context_BLD.shape[2])
    raw_BLD[:, : len(raw_LD)] = raw_LD.to(raw_BLD)
    return inner.text_embedding(raw_BLD)[:1]

"""Live edits on WanVideoWrapper's transformer.

Its sampler does not call ComfyUI's wrappers, and passes a deep copy of the model's options to every call. Therefore one
pair of hooks stays on the transformer and does nothing unless that copy holds our edits. If it does, the hooks replace
the forward of the blocks, for this call only (`compile_model` wraps the blocks again in every run), and hook their
cross-attention. All of this is removed after the call, also after an exception. Nothing else stays on the shared model.

    block, before       hidden states and context are replaced, donors' own passes advance
    cross_attn, after   mixes, appended tokens, bends and maps: the change of the attention's output is passed through
                        the attention's output projection and added
    compiled block      runs uncompiled in the calls in which an edit acts in it: hooks inside would not be called

Only this much of the wrapper's interface is used: the transformer is called with `context` (a list of [L, D]),
`is_uncond`, `t`, `x` and `transformer_options` as keywords; it runs `blocks[i](x, ..., context=[B, 512, C],
grid_sizes=, ...)`, which returns a tuple or a tensor; `cross_attn(x, context, ...)` has q, k, v, norm_q, norm_k, o,
num_heads.

Shape suffixes: B batch rows, N video tokens, L context rows, C model width, E heads x head dim, D text dim.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wanscope.edit.sites import Branch
from wanscope.edit.token_matrix import real_tokens
from wanscope.errors import ModelError
from wanscope.runtime.comfy.attention import AttentionChange
from wanscope.runtime.comfy.call import Call
from wanscope.runtime.comfy.live import Live, Run
from wanscope.runtime.comfy.live_kinds import Guide
from wanscope.runtime.comfy.native import prompt_id, text_dim
from wanscope.runtime.comfy.report import log_run

KEY = "wanscope"
NEGATIVE = "wanscope_negative"
SAMPLING = "wanscope_sampling"
_hooked: weakref.WeakKeyDictionary[torch.nn.Module, _Hook] = weakref.WeakKeyDictionary()


def transformer_of(model: Any) -> Any:
    """Return the transformer of a WANVIDEOMODEL. Raises ModelError for any other model."""
    inner = getattr(getattr(model, "model", None), "diffusion_model", None)
    inner = getattr(inner, "_orig_mod", inner)
    if inner is None or not hasattr(inner, "blocks") or not hasattr(inner, "text_embedding"):
        raise ModelError(
            f"the model is {type(inner).__name__}, not a WanVideoWrapper transformer",
            "these nodes edit the blocks of Wan video models",
            "load the model with WanVideo Model Loader",
        )
    return inner


def depth(model: Any) -> int:
    """Return the model's number of blocks."""
    return len(transformer_of(model).blocks)


def live_of(model: Any) -> Live | None:
    """Return the edits on this copy of a model, or None."""
    return (getattr(model, "model_options", None) or {}).get("transformer_options", {}).get(KEY)


def attach(model: Any, live: Live, negative: list[Tensor] | None = None) -> Any:
    """Return a copy of the model with these edits, which replace those it had; the model passed in is not modified.

    negative: the negative prompt's tensors [L, D]. Some extra passes of the sampler use the negative prompt without
    setting `is_uncond`; they are recognized by these tensors.
    """
    inner = transformer_of(model)
    live.check(len(inner.blocks), int(inner.num_heads), text_dim(inner))
    out = model.clone()
    options = out.model_options["transformer_options"] = {**out.model_options.get("transformer_options", {})}
    options[KEY] = live
    options[SAMPLING] = _Sampling(live)
    if negative:
        options[NEGATIVE] = _Kept(tuple(negative))
    if inner not in _hooked:
        _hooked[inner] = _Hook(inner)
    return out


class _Kept:
    """Tensors that deep copies of the options share."""

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self.tensors = tensors

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


class _Sampling:
    """One sampling run. Its only sign of the end is that the sampler releases its deep copy of the options."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.run: Run | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Sampling:
        return _Sampling(self.live)

    def __del__(self) -> None:
        if self.run is not None:
            self.run.contexts.clear()
            log_run(self.live, self.run)


class _Hook:
    """The hooks that stay on a transformer; they do nothing without our key in `transformer_options`."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.transformer = weakref.ref(transformer)
        self.calls: list[_Hooked] = []
        # if the whole transformer is compiled, the hooks run outside its graph
        disable: Any = torch.compiler.disable
        transformer.register_forward_pre_hook(disable(self.before), with_kwargs=True)
        transformer.register_forward_hook(disable(self.after), with_kwargs=True, always_call=True)

    def before(self, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Place the hooks of a call if its options hold edits."""
        while self.calls:  # left by an interruption that ran no hooks; calls are never nested
            self._pop()
        live = (kwargs.get("transformer_options") or {}).get(KEY)
        if live is not None and live.edits and kwargs.get("context"):
            call = _Hooked(module, live, kwargs)
            self.calls.append(call)
            call.place()

    def _pop(self) -> _Hooked | None:
        call = self.calls.pop() if self.calls else None
        if call is not None:
            call.remove()
        return call

    def after(self, module: Any, args: tuple, kwargs: dict[str, Any], out: Any) -> Any:
        """Remove the hooks of a call, add its second guidance and check its counts."""
        call = self._pop()
        if call is None or out is None:  # not ours, or the call raised
            return None
        out = call.add_guidance(out, args, kwargs)
        call.finish()
        return out


class _Hooked:
    """One call of the transformer with edits, and the hooks placed for it."""

    def __init__(self, module: Any, live: Live, kwargs: dict[str, Any]) -> None:
        self.module, self.live, self.kwargs = module, live, kwargs
        self.undo: list[Callable[[], Any]] = []
        sigma = float(torch.as_tensor(kwargs["t"]).flatten()[0]) / 1000
        run = live.current
        last = next(reversed(run.steps), None) if run is not None else None
        sampling: _Sampling | None = kwargs["transformer_options"].get(SAMPLING)
        # every run has its own copy of the options; sigma decreases within a run
        another = sampling is not None and sampling.run is not run
        if run is None or another or prompt_id() != run.prompt or (last is not None and sigma > last + 1e-6):
            run = live.begin((), prompt_id())
        self.run = run
        if sampling is not None:
            sampling.run = run
        context: list[Tensor] = list(kwargs["context"])
        self.call = Call(
            live,
            run,
            sigma,
            tuple(self._branch(row_LD) for row_LD in context),
            [row_LD[: real_tokens(row_LD)] for row_LD in context],
            len(module.blocks),
            int(module.num_heads),
            (0, 0, 0),
            partial(
                _project, module, len(context)
            ),  # not a method: a cycle would keep the latents until garbage collection
            run.sigma_at,
        )
        run.sigmas = (*run.sigmas, sigma) if sigma not in run.sigmas else run.sigmas
        if kwargs.get("vace_data") is not None:
            run.note("VACE's own blocks read the prompt unedited; the edits act in the model's blocks.")

    def _branch(self, row_LD: Tensor) -> Branch:
        if self.kwargs.get("is_uncond"):
            return "uncond"
        kept = (self.kwargs.get("transformer_options") or {}).get(NEGATIVE)
        for negative_LD in kept.tensors if kept is not None else ():
            if negative_LD.shape == row_LD.shape and torch.equal(negative_LD.to(row_LD), row_LD):
                return "uncond"
        return "cond"

    def place(self) -> None:
        """Replace the forward of the blocks with edits."""
        for i in sorted(self.call.blocks):
            block = self.module.blocks[i]
            inner = getattr(block, "_orig_mod", block)
            if inner is not block:
                self._uncompiled(block, inner)
            patch = _BlockHook(self, i, inner)
            own = inner.__dict__.get("forward")
            plain = inner.forward
            inner.forward = partial(patch, plain)
            self.undo.append(partial(_restore, inner, own))

    def _uncompiled(self, block: Any, inner: Any) -> None:
        own = block.__dict__.get("forward")
        block.forward = torch.compiler.disable(lambda *a, **k: inner(*a, **k))
        self.undo.append(partial(_restore, block, own))
        self.run.note("Compiled blocks run uncompiled in the calls in which an edit acts in them.")

    def remove(self) -> None:
        """Restore everything that was replaced, in reverse order."""
        while self.undo:
            self.undo.pop()()

    def finish(self) -> None:
        """Check the call's counts, add them to the run and notify listeners. Raises EditNotApplied."""
        slg = getattr(self.module, "slg_blocks", None) if self.kwargs.get("is_uncond") else None
        self.call.finish(slg or ())
        live, run = self.live, self.run
        for i, edit in enumerate(live.edits):
            if any(edit.strengths(self.call.depth)):
                run.in_range[i] = run.in_range.get(i, False) or bool(edit.factor(self.call.sigma, run.sigma_at))
        run.finished = True
        live.notify(run)

    def add_guidance(self, out: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Return the call's output with its predictions moved toward those of a second prompt, if an edit does so."""
        for e, edit in enumerate(self.live.edits):
            rows = self.call.acting_rows(e, 0) if isinstance(edit.edit, Guide) else []
            if not rows:
                continue
            weight = self.call.strength(e, self.call.branches[rows[0]], 0)
            self.call.count(self.call.due, e, 0, rows)
            if len(rows) != len(self.call.branches) or edit.donor_LD is None:
                continue
            donor = edit.donor_LD.to(kwargs["context"][0])
            second = self.module.forward(*args, **{**kwargs, "context": [donor] * len(rows), "pred_id": None})
            a, b = out[0], second[0]
            moved = [x + weight * (y - x) for x, y in zip(a, b, strict=True)]
            out = (moved, *out[1:])
            self.call.count(self.call.applied, e, 0, rows)
            self.call.visited.add(0)
        return out


def _project(module: Any, rows: int, raw_LD: Tensor) -> Tensor:
    """Return the context [1, 512, C] of a raw text [L, D], as the transformer projects a context with this many rows.

    rows: the batch size, which affects the rounding.
    """
    dtype = module.text_embedding[0].weight.dtype
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        dtype = module.base_dtype
    moved = bool(getattr(module, "offload_txt_emb", False))
    device = module.main_device if moved else module.text_embedding[0].weight.device
    if moved:
        module.text_embedding.to(device)
    length = int(getattr(module, "text_len", 512))
    raw_LD = raw_LD[:length].to(device, dtype)
    padded = F.pad(raw_LD, (0, 0, 0, length - len(raw_LD))).expand(rows, -1, -1)
    out = module.text_embedding(padded)[:1]
    if moved:
        module.text_embedding.to(module.offload_device)
    return out


def _restore(module: Any, own: Any) -> None:
    """Restore a module's forward. own: the one set on the instance, or None."""
    if own is None:
        del module.forward
    else:
        module.forward = own


class _BlockHook:
    """Replaces one block's forward during one call."""

    def __init__(self, hooked: _Hooked, index: int, block: Any) -> None:
        self.hooked, self.index, self.block = hooked, index, block

    def __call__(self, plain: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
        call = self.hooked.call
        grid = kwargs.get("grid_sizes")
        if grid is not None:
            t, y, w = (int(v) for v in torch.as_tensor(grid).reshape(-1, 3)[0])
            call.grid = (t, y, w)
        rest: list[Any] = []

        def run(x_BNC: Tensor, context_BLC: Tensor, change: AttentionChange | None, rows: list[int] | None) -> Tensor:
            # the block modifies x in place; a donor's pass must not modify the batch's hidden states
            with _cross_attention(self.block.cross_attn, change, call.shared):
                out = plain(x_BNC.clone(), *args, **{**kwargs, "context": context_BLC})
            if rows is None and isinstance(out, tuple):
                rest[:] = out[1:]
            return out[0] if isinstance(out, tuple) else out

        context = kwargs["context"]
        call.shared = x.shape[0] == 1 and len(call.branches) > 1
        out = call.block(self.index, x, context, run, lambda: True)
        if not rest and "x_ip" in kwargs:  # the block was skipped: the other values that it would have returned
            rest = [kwargs.get(name) for name in ("x_ip", "lynx_ref_feature", "x_ovi")]
        return (out, *rest) if rest else out


@contextmanager
def _cross_attention(attention: Any, change: AttentionChange | None, shared: bool) -> Iterator[None]:
    """Hook a block's cross-attention for one run of the block. shared: see `Call`."""
    if change is None:
        yield
        return

    segments = 0

    def after(module: Any, args: tuple, kwargs: dict[str, Any], out: Tensor) -> Tensor:
        nonlocal segments
        x_BNC, context_BLC = args[0], args[1] if len(args) > 1 else kwargs["context"]
        part = change
        if shared:  # the attention is called once per segment of the video, each with its own prompt
            part = change.segment(segments % len(change.rows))
            segments += 1
        return _change_output(module, part, x_BNC, context_BLC, out)

    handle = attention.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _change_output(module: Any, change: AttentionChange, x_BNC: Tensor, context_BLC: Tensor, out_BNC: Tensor) -> Tensor:
    """Return a cross-attention's output [B, N, C] with the change applied.

    The difference between the changed and the original attention is added, so that what the wrapper itself computes
    in the attention (image tokens, adapters) stays as it is.
    """
    heads = int(module.num_heads)

    def normed(layer: Any, norm: Any, rows: Tensor) -> Tensor:
        weight = getattr(norm, "weight", None)
        value = layer(rows)
        return norm(value if weight is None else value.to(weight.dtype)).to(x_BNC.dtype)

    def keys(rows: Tensor) -> tuple[Tensor, Tensor]:
        return normed(module.k, module.norm_k, rows), module.v(rows).to(x_BNC.dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    q = normed(module.q, module.norm_q, x_BNC)
    k, v = keys(context_BLC)
    before = attend(q, k, v)
    after = change.output(q, k, v, [keys(donor.to(context_BLC)) for donor in change.donors], attend)
    delta = (after - before).to(module.o.weight.dtype if module.o.weight.dtype.itemsize > 1 else x_BNC.dtype)
    zero = torch.zeros_like(delta[:1, :1])
    out_BNC = out_BNC + (module.o(delta) - module.o(zero)).to(out_BNC.dtype)
    for r in change.silent_rows:
        out_BNC[r] = 0
    return out_BNC

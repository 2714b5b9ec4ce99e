"""Checks that edits can act on a transformer, and that it does not change while they are attached.

These are refused: a transformer that is compiled as a whole (the wrappers around its blocks would be compiled too),
step caches (they skip blocks silently), other attention processors (ours would replace them), and a nested attach.
LoRA, offload, casting and compile may change before or after `with attach(...)`. Inside it, they would act on modules
that have been moved, and cached keys would be stale; `fingerprint` detects this and the session refuses to continue.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from wanscope.errors import ModelError

# Hooks that diffusers adds and removes in the first forward pass of streamed offload.
TRANSIENT_HOOKS = ("layer_execution_tracker", "lazy_prefetch_group_offloading")
RECOMPILE_LIMIT = 64  # variants of a compiled block in one process
FIX_COMPILE = "transformer.compile_repeated_blocks()"
COMPILED_WHOLE = (
    "the transformer is compiled as a whole",
    "edits wrap its blocks, so the blocks must be compiled one by one",
)


def check(transformer: Any) -> None:
    """Raise ModelError unless edits can be attached to a transformer (a WanTransformer3DModel)."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock

    if (
        not isinstance(transformer, nn.Module)
        or not hasattr(transformer, "blocks")
        or hasattr(transformer, "_orig_mod")
    ):
        raise ModelError(*COMPILED_WHOLE, FIX_COMPILE)
    if getattr(transformer, "_compiled_call_impl", None) is not None:
        raise ModelError(*COMPILED_WHOLE, FIX_COMPILE)
    caches = sorted(set(_caches(transformer)))
    if caches or getattr(transformer, "is_cache_enabled", False):
        names = ", ".join(caches) or type(transformer._cache_config).__name__
        raise ModelError(
            f"a step cache is on ({names})",
            "it skips blocks at some steps, and with them their edits and captures",
            "transformer.disable_cache()",
        )
    blocks: Any = transformer.blocks
    for i, block in enumerate(blocks):
        inner = getattr(block, "_orig_mod", block)
        if inner is not block:
            raise ModelError(
                f"block {i} is compiled by torch.compile(block)", "edits need blocks compiled in place", FIX_COMPILE
            )
        if not isinstance(block, WanTransformerBlock):
            kind = type(block).__name__
            if kind == "EditedBlock":
                raise ModelError(
                    "edits are attached to this model already", "only one set of edits can be attached at a time"
                )
            raise ModelError(f"block {i} is a {kind}", "something has replaced the model's own block")
        processor = block.attn2.processor
        if type(processor) is not WanAttnProcessor:
            raise ModelError(
                f"block {i} has the attention processor {type(processor).__name__}",
                "edits replace it during a call, so it would have no effect",
                "block.attn2.set_processor(WanAttnProcessor())",
            )
        if processor._parallel_config is not None:
            raise ModelError("the transformer runs in parallel on several devices", "edits support one device")


def raise_recompile_limit(transformer: Any) -> None:
    """Allow a compiled block to be compiled for each kind of call that edits make.

    Kinds differ in how many contexts are read, which operations bend, and whether maps are recorded. torch's default
    limit is 8; the ninth kind would end the run (with fullgraph) or run uncompiled. Compiled variants also count for
    runs without edits, so the limit is raised for the whole process and stays raised.
    """
    if any(block._compiled_call_impl is not None for block in transformer.blocks):
        import torch._dynamo

        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, RECOMPILE_LIMIT)


def _caches(transformer: nn.Module) -> Iterator[str]:
    for _, hook in _hooks(transformer):
        if getattr(hook[1], "_is_stateful", False):
            yield hook[0]


def _hooks(transformer: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, Any]]]:
    for module in transformer.modules():
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None:
            for name, hook in registry.hooks.items():
                yield module, (name, hook)


def fingerprint(transformer: nn.Module) -> tuple[Any, ...]:
    """Return a value that stays equal while no module, parameter, dtype, hook, adapter or compiled call changes."""
    parts: list[Any] = []
    for module in transformer.modules():
        registry = module.__dict__.get("_diffusers_hook")
        hooks = () if registry is None else tuple(name for name in registry.hooks if name not in TRANSIENT_HOOKS)
        parts.append(
            (
                id(module),
                hooks,
                id(module._compiled_call_impl) if module._compiled_call_impl is not None else None,
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                tuple((id(p), p.dtype) for p in module._parameters.values() if p is not None),
                tuple(getattr(module, "_active_adapter", ()) or ()),
                tuple(sorted(getattr(module, "scaling", {}).items()))
                if isinstance(getattr(module, "scaling", None), dict)
                else (),
            )
        )
    return tuple(parts)

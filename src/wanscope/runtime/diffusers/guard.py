"""What a transformer must be for edits to act on it, and must stay while they are attached.

Refused: a whole transformer that is compiled (wrappers around its blocks would be compiled in), step caches (they leave
out blocks without saying so), foreign attention processors (ours would take their place), a nested attach.
LoRA, offload, casting and compile may change before or after an attached region. Inside it they would act on modules
that stand elsewhere, and keys that are kept would be stale: `changed` notices and the session refuses to go on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from wanscope.errors import ModelError

# Hooks of diffusers that are put on and taken off in the first forward of streamed offload.
PASSING_HOOKS = ("layer_execution_tracker", "lazy_prefetch_group_offloading")
VARIANTS = 64  # of a compiled block in one process
FIX_COMPILE = "transformer.compile_repeated_blocks() in place of torch.compile(transformer)"


def check(transformer: Any) -> None:
    """ModelError unless edits can be attached to a WanTransformer3DModel."""
    from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock

    if (
        not isinstance(transformer, nn.Module)
        or not hasattr(transformer, "blocks")
        or hasattr(transformer, "_orig_mod")
    ):
        raise ModelError("the transformer is compiled as a whole", "edits wrap its blocks, which must be", FIX_COMPILE)
    if getattr(transformer, "_compiled_call_impl", None) is not None:
        raise ModelError("the transformer is compiled as a whole", "edits wrap its blocks, which must be", FIX_COMPILE)
    caches = sorted(set(_caches(transformer)))
    if caches or getattr(transformer, "is_cache_enabled", False):
        names = ", ".join(caches) or type(transformer._cache_config).__name__
        raise ModelError(
            f"a step cache is on ({names})",
            "it leaves out blocks at some steps, and with them the edits and captures in them",
            "transformer.disable_cache()",
        )
    blocks: Any = transformer.blocks
    for i, block in enumerate(blocks):
        inner = getattr(block, "_orig_mod", block)
        if inner is not block:
            raise ModelError(f"block {i} is compiled by hand", "edits know blocks compiled in place", FIX_COMPILE)
        if not isinstance(block, WanTransformerBlock):
            kind = type(block).__name__
            if kind == "EditedBlock":
                raise ModelError("edits are attached to this model already", "one set of edits at a time", "")
            raise ModelError(f"block {i} is a {kind}", "something has replaced the model's own block", "")
        processor = block.attn2.processor
        if type(processor) is not WanAttnProcessor:
            raise ModelError(
                f"block {i} has the attention processor {type(processor).__name__}",
                "edits put their own in its place for a moment, and its work would be lost",
                "block.attn2.set_processor(WanAttnProcessor())",
            )
        if processor._parallel_config is not None:
            raise ModelError("the transformer runs in parallel on several devices", "edits know one device", "")


def make_room(transformer: Any) -> None:
    """Let compiled blocks be compiled for each kind of call that edits make: how many contexts are read, which
    operations bend, whether maps are recorded.

    torch's own limit is 8; the ninth kind would end the run (fullgraph) or run uncompiled. What was compiled counts for
    runs without edits too, so the limit is raised for the process and stays.
    """
    if any(block._compiled_call_impl is not None for block in transformer.blocks):
        import torch._dynamo

        config: Any = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, VARIANTS)


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
    """Which modules, parameters, dtypes, hooks and compiled calls there are. Equal while nothing of it changes."""
    parts: list[Any] = []
    for module in transformer.modules():
        registry = module.__dict__.get("_diffusers_hook")
        hooks = () if registry is None else tuple(name for name in registry.hooks if name not in PASSING_HOOKS)
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

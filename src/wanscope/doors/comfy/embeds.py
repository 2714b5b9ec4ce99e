"""Prompts as ComfyUI carries them, and as the token matrices [L, D] that `edit/` works on.

WanVideoWrapper: `{"prompt_embeds": [tensor [L, 4096], ...], "negative_prompt_embeds": [...], ...}`, one tensor a prompt
(several where the text had `|`), unpadded or padded. A bare tensor in place of the list is accepted.
Native: CONDITIONING `[[tensor [1, 512, 4096], {...}], ...]`, padded with rows of zeros.

Nothing here changes what it is given: every result is a new container. What wanscope adds to text embeds stands under
one key of its own, so that other nodes pass it on unread.

Shape suffixes: L tokens, D text dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wanscope.edit.embedding_algebra import trim
from wanscope.edit.token_matrix import check_rows
from wanscope.errors import RecipeError

KEY = "wanscope"
TEXT_LENGTH = 512


def prompts_of(embeds: Any, name: str = "text_embeds") -> list[Tensor]:
    """The real tokens of every prompt in text embeds or CONDITIONING, [L, D] each, on the CPU's or their own device.

    Raises RecipeError for anything that is neither.
    """
    if isinstance(embeds, Mapping):
        found = embeds.get("prompt_embeds")
        tensors = [found] if isinstance(found, Tensor) else found
        if not isinstance(tensors, Sequence) or not tensors or not all(isinstance(t, Tensor) for t in tensors):
            raise RecipeError(
                f"{name} holds no prompt_embeds",
                "text embeds are what a WanVideo text encoder makes",
                "connect the output of WanVideo TextEncode",
            )
        rows = [row for tensor in tensors for row in _rows(tensor, name)]
    elif isinstance(embeds, Tensor):
        rows = _rows(embeds, name)
    elif isinstance(embeds, Sequence) and not isinstance(embeds, str):
        rows = []
        for item in embeds:
            if not (isinstance(item, Sequence) and item and isinstance(item[0], Tensor)):
                raise RecipeError(f"{name} is no conditioning", "a part of it holds no tensor", "CLIP Text Encode")
            rows += _rows(item[0], name)
    else:
        rows = []
    if not rows:
        raise RecipeError(f"{name} is empty", "it holds no prompt", "connect a text encoder")
    out = []
    for row in rows:
        check_rows(row, name)
        out.append(trim(row))
    return out


def first_prompt(embeds: Any, name: str = "text_embeds") -> Tensor:
    """The real tokens [L, D] of the first prompt. See `prompts_of`."""
    return prompts_of(embeds, name)[0]


def only_first(*embeds: Any) -> str:
    """A sentence where one of these holds several prompts, of which an operation takes the first."""
    several = any(len(prompts_of(one)) > 1 for one in embeds if one is not None)
    return "Of several prompts in one input the first is taken." if several else ""


def negatives_of(embeds: Any) -> list[Tensor]:
    """The tensors of the negative prompt as they are, [] where there are none."""
    found = embeds.get("negative_prompt_embeds") if isinstance(embeds, Mapping) else None
    if isinstance(found, Tensor):
        found = [found]
    return [row for tensor in found or [] if isinstance(tensor, Tensor) for row in _rows(tensor, "the negative prompt")]


def with_prompts(embeds: Any, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """New text embeds with these prompts and everything else as in `embeds` (a bare tensor or mapping)."""
    out = dict(embeds) if isinstance(embeds, Mapping) else {"negative_prompt_embeds": []}
    out["prompt_embeds"] = [token_LD.clone() for token_LD in tokens]
    return out


def with_setting(embeds: Any, **settings: Any) -> dict[str, Any]:
    """Text embeds that carry wanscope's settings beside what they had."""
    out = dict(embeds) if isinstance(embeds, Mapping) else with_prompts({}, prompts_of(embeds))
    out[KEY] = {**out.get(KEY, {}), **settings}
    return out


def setting(embeds: Any, name: str) -> Any:
    """A setting that rides in text embeds, None where it is not there."""
    return embeds.get(KEY, {}).get(name) if isinstance(embeds, Mapping) else None


def conditioning(tokens_LD: Tensor, like: Any = None) -> list[list[Any]]:
    """CONDITIONING [[tensor [1, 512 or more, D], {...}]] with these tokens, other entries as in the first of `like`."""
    rest = dict(like[0][1]) if like else {}
    length = max(TEXT_LENGTH, len(tokens_LD))
    padded = tokens_LD.new_zeros(1, length, tokens_LD.shape[1])
    padded[0, : len(tokens_LD)] = tokens_LD
    return [[padded, rest]]


def at_most(tokens_LD: Tensor, limit: int = TEXT_LENGTH) -> tuple[Tensor, str]:
    """The tokens the encoder's limit leaves, and a sentence where it cut some."""
    if len(tokens_LD) <= limit:
        return tokens_LD, ""
    return tokens_LD[:limit], f"{len(tokens_LD)} tokens were cut to the encoder's limit of {limit}."


def _rows(tensor: Tensor, name: str) -> list[Tensor]:
    """Token matrices in a tensor [L, D] or [B, L, D]."""
    if tensor.ndim == 2:
        return [tensor]
    if tensor.ndim == 3:
        return list(tensor.unbind(0))
    raise RecipeError(f"{name} holds a tensor of shape {list(tensor.shape)}", "a prompt is [tokens, dimensions]", "")


def same_prompt(a: Tensor, b: Tensor) -> bool:
    """Whether two token matrices, padded or not, are one prompt."""
    a, b = trim(a), trim(b)
    return a.shape == b.shape and torch.equal(a, b.to(a.device, a.dtype))

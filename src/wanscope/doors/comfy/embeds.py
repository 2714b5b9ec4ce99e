"""Conversion between prompts as ComfyUI passes them and the token matrices [L, D] that `edit/` works on.

WanVideoWrapper: `{"prompt_embeds": [tensor [L, 4096], ...], "negative_prompt_embeds": [...], ...}`, one tensor per
prompt (several if the text contained `|`), padded or not. A bare tensor in place of the list is accepted.
Native: CONDITIONING `[[tensor [1, 512, 4096], {...}], ...]`, padded with rows of zeros.

These functions never modify their arguments: every result is a new container. What wanscope adds to text embeds is
stored under a key of its own, which other nodes pass on unread.

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
    """Return the real tokens [L, D] of every prompt in text embeds or CONDITIONING, on the device they are on.

    name: the input's name, for messages. Raises RecipeError for anything that is neither, or holds no prompt.
    """
    if isinstance(embeds, Mapping):
        found = embeds.get("prompt_embeds")
        tensors = [found] if isinstance(found, Tensor) else found
        if not isinstance(tensors, Sequence) or not tensors or not all(isinstance(t, Tensor) for t in tensors):
            raise RecipeError(
                f"{name} holds no prompt_embeds",
                "text embeds are the output of a WanVideo text encoder",
                "connect the output of WanVideo TextEncode",
            )
        rows = [row for tensor in tensors for row in _rows(tensor, name)]
    elif isinstance(embeds, Tensor):
        rows = _rows(embeds, name)
    elif isinstance(embeds, Sequence) and not isinstance(embeds, str):
        rows = []
        for item in embeds:
            if not (isinstance(item, Sequence) and item and isinstance(item[0], Tensor)):
                raise RecipeError(
                    f"{name} is not conditioning", "one of its entries holds no tensor", "CLIP Text Encode"
                )
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
    """Return the real tokens [L, D] of the first prompt. See `prompts_of`."""
    return prompts_of(embeds, name)[0]


def first_only_note(*embeds: Any) -> str:
    """Return a note if one of these inputs holds several prompts, of which the operation uses the first, else ""."""
    several = any(len(prompts_of(one)) > 1 for one in embeds if one is not None)
    return "Of several prompts in one input, the first is used." if several else ""


def negatives_of(embeds: Any) -> list[Tensor]:
    """Return the negative prompt's tensors [L, D], padded as they are; [] if there are none."""
    found = embeds.get("negative_prompt_embeds") if isinstance(embeds, Mapping) else None
    if isinstance(found, Tensor):
        found = [found]
    return [row for tensor in found or [] if isinstance(tensor, Tensor) for row in _rows(tensor, "the negative prompt")]


def with_prompts(embeds: Any, tokens: Sequence[Tensor]) -> dict[str, Any]:
    """Return new text embeds with copies of these prompts [L, D]; everything else is as in `embeds`."""
    out = dict(embeds) if isinstance(embeds, Mapping) else {"negative_prompt_embeds": []}
    out["prompt_embeds"] = [token_LD.clone() for token_LD in tokens]
    return out


def with_settings(embeds: Any, **settings: Any) -> dict[str, Any]:
    """Return a copy of text embeds with these settings of wanscope added."""
    out = dict(embeds) if isinstance(embeds, Mapping) else with_prompts({}, prompts_of(embeds))
    out[KEY] = {**out.get(KEY, {}), **settings}
    return out


def read_setting(embeds: Any, name: str) -> Any:
    """Return a setting of wanscope that text embeds carry, or None."""
    return embeds.get(KEY, {}).get(name) if isinstance(embeds, Mapping) else None


def conditioning(tokens_LD: Tensor, like: Any = None) -> list[list[Any]]:
    """Return CONDITIONING [[tensor [1, 512 or more, D], {...}]] with these tokens [L, D], padded with zeros.

    like: conditioning whose first entry gives the other settings.
    """
    rest = dict(like[0][1]) if like else {}
    length = max(TEXT_LENGTH, len(tokens_LD))
    padded = tokens_LD.new_zeros(1, length, tokens_LD.shape[1])
    padded[0, : len(tokens_LD)] = tokens_LD
    return [[padded, rest]]


def truncate_tokens(tokens_LD: Tensor, limit: int = TEXT_LENGTH) -> tuple[Tensor, str]:
    """Return at most `limit` of the tokens [L, D], and a sentence if some were cut."""
    if len(tokens_LD) <= limit:
        return tokens_LD, ""
    return tokens_LD[:limit], f"{len(tokens_LD)} tokens were cut to the encoder's limit of {limit}."


def _rows(tensor: Tensor, name: str) -> list[Tensor]:
    """Split a tensor [L, D] or [B, L, D] into token matrices [L, D]."""
    if tensor.ndim == 2:
        return [tensor]
    if tensor.ndim == 3:
        return list(tensor.unbind(0))
    raise RecipeError(
        f"{name} holds a tensor of shape {list(tensor.shape)}",
        "a prompt is [tokens, dimensions]",
        "connect the output of a text encoder",
    )


def is_same_prompt(a: Tensor, b: Tensor) -> bool:
    """Return whether two token matrices [L, D] hold the same prompt, ignoring padding."""
    a, b = trim(a), trim(b)
    return a.shape == b.shape and torch.equal(a, b.to(a.device, a.dtype))

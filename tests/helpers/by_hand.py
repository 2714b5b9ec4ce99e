"""Reference model calls with blocks written out by hand, entirely in float64; edits are compared with them.

model = subject("2.2")                      # tiny kinds and "marbles"
found = with_edits(model, Inject(DONOR))    # [calls, C, T, h, w]: two steps of each expert, in one session
expected = reference(model, body)           # the same calls, each block replaced by `body(at, block, x, ...)`

Shape suffixes: B batch, Q video positions, H heads, K head dim, N text positions, D model dim.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from helpers.edited import encoded
from helpers.tiny import tiny_model
from wanscope.capture.moments import Moment
from wanscope.edit.edits import Bend, Edit, Inject
from wanscope.edit.plan import EditPlan, make_plan
from wanscope.edit.planned import Passes
from wanscope.runtime import bend
from wanscope.runtime.diffusers.session import attach
from wanscope.wan.load import load
from wanscope.wan.model import WanModel
from wanscope.wan.text import pad

GRID = (3, 4, 4)
SIGMAS = (0.9, 0.7, 0.5, 0.3)


class At(NamedTuple):
    """Identifies a block in a call. step: counted across both experts."""

    step: int
    expert: int
    block: int


# (where, the block, its inputs) -> its output, in place of the block
Body = Callable[[At, Any, Tensor, Tensor, Tensor, Any], Tensor]
# (where, attn2, normed state, context) -> the attention's output
Attend = Callable[[At, Any, Tensor, Tensor], Tensor]


@functools.cache
def subject(kind: str) -> WanModel:
    """Return a model in float64: a tiny one with random weights, or marbles with its own."""
    model = load("marbles", device="cpu") if kind == "marbles" else tiny_model(kind, seed=5)
    for transformer in model.experts():
        transformer.double()
    model.dtype = torch.float64
    return model


@contextmanager
def nothing_narrowed() -> Iterator[None]:
    """A block casts its state with `float()` several times. In a float64 model a sum that is rounded the other way
    there would be 1e-7 at the end, by chance: here `float()` leaves float64 as it is."""
    narrow = torch.Tensor.float
    with mock.patch.object(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else narrow(x)):
        yield


def calls_of(model: WanModel) -> list[tuple[int, int]]:
    """Return the (step, expert) of each call in a run: two steps of each expert."""
    return [(step, step // 2) for step in range(2 * len(model.experts()))]


def over_blocks(model: WanModel, *values: float) -> list[float]:
    """Repeat the values, one for each block."""
    return [values[block % len(values)] for block in range(model.blocks)]


def call(model: WanModel, step: int, expert: int, text_LD: Tensor) -> Tensor:
    """Make one call of an expert as the loop does, with image tokens if the model takes them."""
    transformer = model.experts()[expert]
    config = transformer.config
    generator = torch.Generator().manual_seed(1 + step)
    x = torch.randn(1, config["in_channels"], *(GRID[0], 2 * GRID[1], 2 * GRID[2]), generator=generator)
    t = torch.full((1, math.prod(GRID)) if model.expand_timesteps else (1,), 1000 * SIGMAS[step])
    image = torch.randn(1, 257, 20, generator=generator).double() if config["image_dim"] else None
    text_1ND = pad(text_LD, model.text_length)[None].double()
    with nothing_narrowed():
        return transformer(x.double(), t, text_1ND, encoder_hidden_states_image=image, return_dict=False)[0]


@torch.no_grad()
def unedited(model: WanModel, *texts_LD: Tensor) -> Tensor:
    """Make all calls with nothing attached, for the prompt or other texts (one, or one for each step)."""
    texts_LD = texts_LD or (encoded(model, []).main,)
    return torch.stack([call(model, step, e, texts_LD[step % len(texts_LD)]) for step, e in calls_of(model)])


def plan_of(model: WanModel, edits: Sequence[Edit]) -> EditPlan:
    """Return the plan of a run with these calls, all conditional."""
    steps = len(calls_of(model))
    passes = Passes(SIGMAS[:steps], (1,) * steps, (frozenset(),) * len(model.experts()))
    heads = model.variant.heads
    return make_plan(edits, encoded(model, edits), passes, blocks=model.blocks, heads=heads, grid=GRID)


@torch.no_grad()
def with_edits(model: WanModel, *edits: Edit) -> Tensor:
    """Make all calls in one session with edits."""
    found, text_LD, calls = [], encoded(model, edits).main, calls_of(model)
    with attach(model, plan_of(model, edits)) as session:
        for step, expert in calls:
            with session.around_call(Moment(step, len(calls), 0, ("cond",), expert, SIGMAS[step])):
                found.append(call(model, step, expert, text_LD))
        session.verify()
    return torch.stack(found)


def least_apart(a: Tensor, b: Tensor) -> float:
    """Return the smallest, over calls, of the largest absolute difference."""
    return float((a - b).abs().flatten(1).amax(1).min())


@contextmanager
def by_hand(model: WanModel, step: int, expert: int, body: Body) -> Iterator[None]:
    """Replace the forward of an expert's blocks by `body`."""
    blocks = list(model.experts()[expert].blocks)
    try:
        for i, block in enumerate(blocks):
            at = At(step, expert, i)
            block.forward = lambda x, c, t, r, at=at, block=block: body(at, block, x, c, t, r)  # type: ignore[method-assign]
        yield
    finally:
        for block in blocks:
            del block.forward


@torch.no_grad()
def reference(model: WanModel, body: Body) -> Tensor:
    """Make all calls for the prompt with `body` in place of every block."""
    found, text_LD = [], encoded(model, []).main
    for step, expert in calls_of(model):
        with by_hand(model, step, expert, body):
            found.append(call(model, step, expert, text_LD))
    return torch.stack(found)


@torch.no_grad()
def contexts_of(model: WanModel, text: str) -> list[Tensor]:
    """Return the context [1, N, D] of a text for each expert, projected by its own layer."""
    raw_ND = pad(encoded(model, [Inject(text)]).raw[text], model.text_length)
    return [expert.condition_embedder.text_embedder(raw_ND[None].double()) for expert in model.experts()]


def columns_of(model: WanModel, prompt: str, *words: str) -> list[int]:
    """Return the token columns of words in a prompt."""
    places = [encoded(model, [Bend([word], "flip", axis="x"), Inject(prompt)]).places[0][prompt] for word in words]
    return sorted(column for found in places for column in found)


# ---- a block and its parts


def with_text(context: Tensor, text_1ND: Tensor) -> Tensor:
    """Return the context with another text after the same image tokens."""
    return torch.cat([context[:, : context.shape[1] - text_1ND.shape[1]], text_1ND], 1)


def plain(block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
    """Run the model's own block."""
    return type(block).forward(block, x, context, t, r)


def with_attention(attend: Attend) -> Body:
    """Return a written-out block whose cross-attention is the function `attend`."""

    def body(at: At, block: Any, x: Tensor, context: Tensor, temb: Tensor, rotary: Any) -> Tensor:
        table = block.scale_shift_table.unsqueeze(0) if temb.ndim == 4 else block.scale_shift_table
        parts = (table + temb.float()).chunk(6, dim=2 if temb.ndim == 4 else 1)
        shift, scale, gate, c_shift, c_scale, c_gate = (p.squeeze(2) if temb.ndim == 4 else p for p in parts)
        normed = (block.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + block.attn1(normed, None, None, rotary) * gate).type_as(x)
        x = x + attend(at, block.attn2, block.norm2(x.float()).type_as(x), context)
        normed = (block.norm3(x.float()) * (1 + c_scale) + c_shift).type_as(x)
        return (x.float() + block.ffn(normed).float() * c_gate).type_as(x)

    return body


def attended(model: WanModel, text: Attend) -> Body:
    """Return a block whose attention to the text is the function `text`."""
    length = model.text_length

    def attend(at: At, attn: Any, x: Tensor, context: Tensor) -> Tensor:
        own = context[:, context.shape[1] - length :]
        return attn.to_out[0](text(at, attn, x, own) + image_attention(attn, x, context, length))

    return with_attention(attend)


def text_attention(
    attn: Any,
    x: Tensor,
    text_BND: Tensor,
    change: Callable[[Tensor], Tensor] = lambda p: p,
    bias_N: Tensor | None = None,
) -> Tensor:
    """Return the attention to the text [B, Q, H * K] from the full softmax [B, H, Q, N], changed by `change`."""
    q_BHQK, k_BHNK, v_BHNK = (
        value.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for value in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(text_BND)), attn.to_v(text_BND))
    )
    logits = q_BHQK @ k_BHNK.transpose(2, 3) * q_BHQK.shape[-1] ** -0.5
    p_BHQN = change((logits if bias_N is None else logits + bias_N).softmax(-1))
    return (p_BHQN @ v_BHNK).transpose(1, 2).flatten(2)


def image_attention(attn: Any, x: Tensor, context: Tensor, length: int) -> Tensor | float:
    if attn.add_k_proj is None:
        return 0.0
    image = context[:, : context.shape[1] - length]
    q, k, v = (
        value.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        for value in (attn.norm_q(attn.to_q(x)), attn.norm_added_k(attn.add_k_proj(image)), attn.add_v_proj(image))
    )
    return ((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)


def softmax_bend(edit: Bend, at: Sequence[int], s: float, p_BHQN: Tensor) -> Tensor:
    """Return the full softmax with the columns `at` bent; the map operation itself has its own tests."""
    operation = bend.map_operation(edit, GRID)
    bent = p_BHQN.clone()
    for column in at:
        moved = bend.bend_maps(p_BHQN[..., column : column + 1], operation, 1.0, GRID)[..., 0]
        for head in range(p_BHQN.shape[1]):
            if not edit.heads or head in edit.heads:
                old = p_BHQN[:, head, :, column]
                bent[:, head, :, column] = (old + s * (moved[:, head] - old)).clamp_min(0)
    return bent / bent.sum(-1, keepdim=True) if edit.renormalize else bent

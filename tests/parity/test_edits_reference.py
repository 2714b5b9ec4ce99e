"""Edits against references written out by hand, in float64: single model calls, attention with its full softmax.

Shape suffixes: B batch, Q video positions, H heads, K head dim, N text positions, D model dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.edited import DONOR, PROMPT, apart, double, encoded
from wanscope.capture.base import Moment
from wanscope.edit.edits import Bend, Edit, Inject, Skip
from wanscope.edit.plan import EditPlan, Passes, make_plan
from wanscope.runtime import bend
from wanscope.runtime.diffusers import attach
from wanscope.wan.model import WanModel
from wanscope.wan.text import pad

GRID = (3, 4, 4)
KINDS = ("2.1", "5b", "i2v", "i2v-2.1")


def subject(kind: str) -> WanModel:
    return double(kind, seed=5)


def call(model: WanModel, text_LD: Tensor) -> Tensor:
    """One call of the first expert, as the loop makes it; with image tokens where the model takes them."""
    config = model.transformer.config
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, config["in_channels"], *(GRID[0], 2 * GRID[1], 2 * GRID[2]), generator=generator)
    tokens = math.prod(GRID)
    t = torch.full((1, tokens), 700.0) if model.expand_timesteps else torch.full((1,), 700.0)
    image = torch.randn(1, 257, 20, generator=generator).double() if config["image_dim"] else None
    return model.transformer(
        x.double(), t, pad(text_LD, model.text_length)[None].double(), encoder_hidden_states_image=image,
        return_dict=False,
    )[0]  # fmt: skip


def plan_of(model: WanModel, edits: Sequence[Edit]) -> EditPlan:
    """Of a run of one step with one conditional call."""
    passes = Passes((0.7,), (1,), (frozenset(),) * len(model.experts()))
    heads = model.variant.heads
    return make_plan(edits, encoded(model, edits), passes, blocks=model.blocks, heads=heads, grid=GRID)


@torch.no_grad()
def with_edits(model: WanModel, *edits: Edit) -> Tensor:
    with attach(model, plan_of(model, edits)) as session:
        with session.around_call(Moment(0, 1, 0, ("cond",), 0, 0.7)):
            out = call(model, encoded(model, edits).main)
        session.verify()
    return out


# (block, its inputs) -> its output, in place of the block
Body = Callable[[int, Any, Tensor, Tensor, Tensor, Any], Tensor]


@contextmanager
def by_hand(model: WanModel, body: Body) -> Iterator[None]:
    """The blocks' forwards replaced by a function of our own."""
    blocks = list(model.transformer.blocks)
    try:
        for i, block in enumerate(blocks):
            block.forward = lambda x, c, t, r, i=i, block=block: body(i, block, x, c, t, r)  # type: ignore[method-assign]
        yield
    finally:
        for block in blocks:
            del block.forward


def context_of(model: WanModel, text: str) -> Tensor:
    """[1, N, D], projected by the model's own layer."""
    raw_ND = pad(encoded(model, [Inject(text)]).raw[text], model.text_length)
    return model.transformer.condition_embedder.text_embedder(raw_ND[None].double())


def with_text(context: Tensor, text_1ND: Tensor) -> Tensor:
    return torch.cat([context[:, : context.shape[1] - text_1ND.shape[1]], text_1ND], 1)


@torch.no_grad()
def reference(model: WanModel, body: Body) -> Tensor:
    with by_hand(model, body):
        return call(model, encoded(model, []).main)


def plain(i: int, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
    return type(block).forward(block, x, context, t, r)


def with_attention(attend: Callable[[int, Any, Tensor, Tensor], Tensor]) -> Body:
    """The block written out, with its cross-attention as a function (block's number, attn2, normed state, context)."""

    def body(i: int, block: Any, x: Tensor, context: Tensor, temb: Tensor, rotary: Any) -> Tensor:
        table = block.scale_shift_table.unsqueeze(0) if temb.ndim == 4 else block.scale_shift_table
        parts = (table + temb.float()).chunk(6, dim=2 if temb.ndim == 4 else 1)
        shift, scale, gate, c_shift, c_scale, c_gate = (p.squeeze(2) if temb.ndim == 4 else p for p in parts)
        normed = (block.norm1(x.float()) * (1 + scale) + shift).type_as(x)
        x = (x.float() + block.attn1(normed, None, None, rotary) * gate).type_as(x)
        x = x + attend(i, block.attn2, block.norm2(x.float()).type_as(x), context)
        normed = (block.norm3(x.float()) * (1 + c_scale) + c_shift).type_as(x)
        return (x.float() + block.ffn(normed).float() * c_gate).type_as(x)

    return body


def text_attention(
    attn: Any,
    x: Tensor,
    text_BND: Tensor,
    change: Callable[[Tensor], Tensor] = lambda p: p,
    bias_N: Tensor | None = None,
) -> Tensor:
    """The output [B, Q, H * K] of the text's part, by the full softmax [B, H, Q, N], changed by `change`."""
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


def attended(model: WanModel, text: Callable[[int, Any, Tensor, Tensor], Tensor]) -> Body:
    """The block with the text's part of its attention by hand."""
    length = model.text_length

    def attend(i: int, attn: Any, x: Tensor, context: Tensor) -> Tensor:
        own = context[:, context.shape[1] - length :]
        return attn.to_out[0](text(i, attn, x, own) + image_attention(attn, x, context, length))

    return with_attention(attend)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_itself_is_the_model(kind: str):
    model = subject(kind)
    own = with_edits(model)
    assert torch.equal(own, call(model, encoded(model, []).main))
    hand = reference(model, attended(model, lambda i, attn, x, text: text_attention(attn, x, text)))
    assert apart(hand, own) <= 1e-10


@pytest.mark.parametrize("kind", ["i2v", "i2v-2.1"])
def test_the_golden_identities_of_models_that_take_an_image(kind: str):
    """Bit for bit, as test_edits_golden.py has them of whole runs; these models make no video from text alone."""
    model, last = subject(kind), subject(kind).blocks - 1
    own, by_donor = with_edits(model), call(model, encoded(model, [Inject(DONOR)]).raw[DONOR])
    assert apart(own, by_donor) > 1e-3
    nothing = [
        Inject(DONOR, strength=0.0),
        Inject(DONOR, on="both", strength=0.0),
        Inject(DONOR, mode="append", strength=0.0),
        Bend(["circle"], "amplify", factor=1.0),
        Bend(["circle"], "rotate", angle=0.0),
        Skip("none"),
    ]
    assert torch.equal(with_edits(model, *nothing), own)
    for mode in ("mix", "tokens"):
        assert torch.equal(with_edits(model, Inject(DONOR, mode=mode)), by_donor)
    hidden = with_edits(model, Inject(DONOR, on="hidden", operation="replace", blocks=[last]))
    assert torch.equal(hidden, with_edits(model, Inject(DONOR, blocks=f"0-{last - 1}")))
    assert torch.equal(with_edits(model, Inject(DONOR, on="both", blocks=f"2-{last}")), by_donor)
    assert torch.equal(call(model, encoded(model, []).main), own)


@pytest.mark.parametrize("mode", ["mix", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_chosen_blocks_are_called_with_the_donors_context(kind: str, mode: str):
    model = subject(kind)
    donor = context_of(model, DONOR)
    chosen = (1, 3)

    def body(i: int, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        return plain(i, block, x, with_text(context, donor) if i in chosen else context, t, r)

    found = with_edits(model, Inject(DONOR, mode=mode, blocks=list(chosen)))
    assert apart(found, reference(model, body)) <= 1e-10
    assert apart(found, with_edits(model)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_mix_sums_the_outputs_of_two_attentions(kind: str):
    model = subject(kind)
    donor, strengths = context_of(model, DONOR), [0.0, 0.3, 0.9, 0.5]

    def text(i: int, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        s = strengths[i]
        return (1 - s) * text_attention(attn, x, own) + s * text_attention(attn, x, donor)

    found = with_edits(model, Inject(DONOR, strength=strengths))
    assert apart(found, reference(model, attended(model, text))) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_blend_place_by_place(kind: str):
    model = subject(kind)
    donor = context_of(model, DONOR)
    expected = reference(
        model, attended(model, lambda i, attn, x, own: text_attention(attn, x, 0.7 * own + 0.3 * donor))
    )
    assert apart(with_edits(model, Inject(DONOR, mode="tokens", strength=0.3)), expected) <= 1e-10
    added = reference(model, attended(model, lambda i, attn, x, own: text_attention(attn, x, own - 2 * donor)))
    assert apart(with_edits(model, Inject(DONOR, mode="tokens", operation="add", strength=-2)), added) <= 1e-10


def columns_of(model: WanModel, prompt: str, word: str) -> list[int]:
    return list(encoded(model, [Bend([word], "flip", axis="x"), Inject(prompt)]).places[0][prompt])


def test_words_limit_tokens_to_their_places():
    model = subject("2.1")
    donor, at = context_of(model, DONOR), columns_of(model, PROMPT, "circle")

    def text(i: int, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        blended = own.clone()
        blended[:, at] = 0.4 * own[:, at] + 0.6 * donor[:, at]
        return text_attention(attn, x, blended)

    found = with_edits(model, Inject(DONOR, mode="tokens", strength=0.6, words=["circle"]))
    assert apart(found, reference(model, attended(model, text))) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_append_puts_the_donors_tokens_behind_with_a_log_weight(kind: str):
    model = subject(kind)
    texts = encoded(model, [Inject("night")])
    first, tokens = len(texts.main), len(texts.raw["night"])
    donor, strengths = context_of(model, "night"), [0.2, 1.0, 0.5, 0.0]

    def text(i: int, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        if not strengths[i]:
            return text_attention(attn, x, own)
        longer, bias_N = own.clone(), torch.zeros(own.shape[1], dtype=torch.float64)
        longer[:, first : first + tokens] = donor[:, :tokens]
        bias_N[first : first + tokens] = math.log(strengths[i])
        return text_attention(attn, x, longer, bias_N=bias_N)

    found = with_edits(model, Inject("night", mode="append", strength=strengths))
    assert apart(found, reference(model, attended(model, text))) <= 1e-7  # the log weights are float32


def test_tokens_and_appended_ones_act_on_every_text_that_is_read():
    """mix, tokens, append, append: each on what those before it left, in the prompt and in the donor."""
    model = subject("2.1")
    edits = [
        Inject(DONOR, strength=0.4),
        Inject("gray", mode="tokens", strength=0.3),
        Inject("night", mode="append", strength=0.5),
        Inject("night", mode="append", strength=0.2),
    ]
    texts = encoded(model, edits)
    donor, gray, night = (context_of(model, text) for text in (DONOR, "gray", "night"))
    tokens = len(texts.raw["night"])

    def appended(attn: Any, x: Tensor, own: Tensor, real: int) -> Tensor:
        longer, bias_N = 0.7 * own + 0.3 * gray, torch.zeros(own.shape[1], dtype=torch.float64)
        for place, s in ((real, 0.5), (real + tokens, 0.2)):
            longer[:, place : place + tokens] = night[:, :tokens]
            bias_N[place : place + tokens] = math.log(s)
        return text_attention(attn, x, longer, bias_N=bias_N)

    def text(i: int, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        main = appended(attn, x, own, len(texts.main))
        return 0.6 * main + 0.4 * appended(attn, x, donor, len(texts.raw[DONOR]))

    found = with_edits(model, *edits)
    assert apart(found, reference(model, attended(model, text))) <= 1e-7  # the log weights are float32


BENDS = (
    {"operation": "amplify", "factor": 5.0},
    {"operation": "suppress", "factor": 4.0, "renormalize": False},
    {"operation": "translate", "x": 0.25, "y": -0.25},
    {"operation": "rotate", "angle": 30.0, "heads": [0, 2]},
    {"operation": "flip", "axis": "x", "renormalize": False},
    {"operation": "scale", "factor": 1.7},
    {"operation": "blur", "sigma": 0.8},
    {"operation": "region", "box": [0.0, 0.0, 0.5, 1.0]},
)


def softmax_bend(edit: Bend, at: Sequence[int], s: float, p_BHQN: Tensor) -> Tensor:
    """The full softmax with the columns `at` bent, by hand but for the map operation itself (tested by itself)."""
    operation = bend.map_operation(edit, GRID)
    bent = p_BHQN.clone()
    for column in at:
        moved = bend.bend_maps(p_BHQN[..., column : column + 1], operation, 1.0, GRID)[..., 0]
        for head in range(p_BHQN.shape[1]):
            if not edit.heads or head in edit.heads:
                old = p_BHQN[:, head, :, column]
                bent[:, head, :, column] = (old + s * (moved[:, head] - old)).clamp_min(0)
    return bent / bent.sum(-1, keepdim=True) if edit.renormalize else bent


@pytest.mark.parametrize("fields", BENDS, ids=lambda fields: fields["operation"])
@pytest.mark.parametrize("kind", KINDS)
def test_bends_are_those_of_the_full_softmax(kind: str, fields: dict[str, Any]):
    model = subject(kind)
    edit = Bend(["red circle", "left"], strength=[0.5, 1.0, 0.0, 0.7], **fields)
    at = sorted(columns_of(model, PROMPT, "red circle") + columns_of(model, PROMPT, "left"))

    def text(i: int, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        s = [0.5, 1.0, 0.0, 0.7][i]
        return text_attention(attn, x, own, lambda p: softmax_bend(edit, at, s, p) if s else p)

    found = with_edits(model, edit)
    assert apart(found, reference(model, attended(model, text))) <= 1e-6  # strengths and maps' kernels are float32
    assert apart(found, with_edits(model)) > 1e-4


def test_bends_one_after_another_and_in_every_text_that_is_read():
    """bend, mix, bend: the second acts on what the first left, and on the donor, which the first did not see."""
    model = subject("2.1")
    first = Bend(["circle", "red"], "amplify", factor=4.0)
    second = Bend(["left", "circle", "square"], "translate", x=0.25)
    donor = context_of(model, DONOR)
    a = sorted(columns_of(model, PROMPT, "circle") + columns_of(model, PROMPT, "red"))
    b = sorted(columns_of(model, PROMPT, "left") + columns_of(model, PROMPT, "circle"))
    c = columns_of(model, DONOR, "square")

    def text(i: int, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        main = text_attention(attn, x, own, lambda p: softmax_bend(second, b, 1, softmax_bend(first, a, 1, p)))
        return 0.6 * main + 0.4 * text_attention(attn, x, donor, lambda p: softmax_bend(second, c, 1, p))

    found = with_edits(model, first, Inject(DONOR, strength=0.4), second)
    assert apart(found, reference(model, attended(model, text))) <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_skip_is_a_model_without_the_block(kind: str):
    model = subject(kind)
    found = with_edits(model, Skip([1]))
    blocks = model.transformer.blocks
    try:
        model.transformer.blocks = torch.nn.ModuleList([block for i, block in enumerate(blocks) if i != 1])
        assert torch.equal(found, call(model, encoded(model, []).main))
    finally:
        model.transformer.blocks = blocks
    assert apart(found, with_edits(model)) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_cross_attention_adds_nothing(kind: str):
    model = subject(kind)
    own = model.transformer.blocks[2].attn2
    body = with_attention(lambda i, attn, x, c: torch.zeros_like(x) if attn is own else attn(x, c, None, None))
    assert apart(with_edits(model, Skip([2], part="cross_attention")), reference(model, body)) <= 1e-10


@pytest.mark.parametrize(("operation", "s"), [("blend", 0.3), ("add", -0.5)])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_of_the_donors_own_pass(kind: str, operation: str, s: float):
    model = subject(kind)
    donor, kept, chosen = context_of(model, DONOR), {}, (1, 3)

    def own_pass(i: int, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        kept[i] = x
        return plain(i, block, x, with_text(context, donor), t, r)

    reference(model, own_pass)

    def body(i: int, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        if i in chosen:
            x = (1 - s) * x + s * kept[i] if operation == "blend" else x + s * kept[i]
        return plain(i, block, x, context, t, r)

    found = with_edits(model, Inject(DONOR, on="hidden", operation=operation, strength=s, blocks=list(chosen)))
    assert apart(found, reference(model, body)) <= 1e-6  # a block begins with a cast to float32, also in float64
    assert apart(found, with_edits(model)) > 1e-3

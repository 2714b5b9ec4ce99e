"""Edits against references written out by hand, in float64: single model calls, attention with its full softmax.

Every model makes two steps with each of its experts, in one session, so that each expert's projection of the donor, its
kept keys, and the step count across both experts are compared.

Shape suffixes: B batch, Q video positions, H heads, K head dim, N text positions, D model dim.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.by_hand import (
    At,
    attended,
    calls_of,
    columns_of,
    contexts_of,
    least_apart,
    over_blocks,
    plain,
    reference,
    softmax_bend,
    subject,
    text_attention,
    unedited,
    with_attention,
    with_edits,
    with_text,
)
from helpers.edited import DONOR, PROMPT, apart, encoded
from helpers.tiny import KINDS as TINY_KINDS
from wanscope.edit.edits import Bend, Inject, Prompts, Skip

KINDS = (*TINY_KINDS, "marbles")
SOME_KINDS = ("2.1", "2.2", "marbles")
TWO_EXPERTS = tuple(kind for kind in KINDS if kind.endswith("2.2"))


@functools.cache
def own_run(kind: str) -> Tensor:
    return unedited(subject(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_without_edits_equals_the_model(kind: str):
    model = subject(kind)
    assert torch.equal(with_edits(model), own_run(kind))
    hand = reference(model, attended(model, lambda at, attn, x, text: text_attention(attn, x, text)))
    assert apart(hand, own_run(kind)) <= 1e-10


@pytest.mark.parametrize("kind", TWO_EXPERTS)
def test_both_experts_run_and_read_the_donor_differently(kind: str):
    """Otherwise the comparisons of two-expert models would show less than they claim."""
    model = subject(kind)
    assert calls_of(model) == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert apart(*contexts_of(model, DONOR)) > 1e-2
    donor = contexts_of(model, DONOR)
    found = with_edits(model, Inject(DONOR, blocks=[1]))

    def exchanged(at: At, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        return plain(block, x, with_text(context, donor[1 - at.expert]) if at.block == 1 else context, t, r)

    assert least_apart(found, reference(model, exchanged)) > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("i2v")])
def test_the_golden_identities_of_models_that_take_an_image(kind: str):
    """Bit for bit in float64; test_i2v_pipeline.py tests them on whole runs."""
    model, last = subject(kind), subject(kind).blocks - 1
    own, by_donor = own_run(kind), unedited(model, encoded(model, [Inject(DONOR)]).raw[DONOR])
    assert least_apart(own, by_donor) > 1e-3
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
    assert torch.equal(unedited(model), own)


@pytest.mark.parametrize("mode", ["mix", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_chosen_blocks_are_called_with_the_donors_context(kind: str, mode: str):
    model = subject(kind)
    donor = contexts_of(model, DONOR)
    chosen = (1, 3, 7)[: 3 if model.blocks > 7 else 2]

    def body(at: At, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        return plain(block, x, with_text(context, donor[at.expert]) if at.block in chosen else context, t, r)

    found = with_edits(model, Inject(DONOR, mode=mode, blocks=list(chosen)))
    assert apart(found, reference(model, body)) <= 1e-10
    assert least_apart(found, own_run(kind)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_mix_sums_the_outputs_of_two_attentions(kind: str):
    model = subject(kind)
    donor, strengths = contexts_of(model, DONOR), over_blocks(model, 0.0, 0.3, 0.9, 0.5)

    def text(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        s = strengths[at.block]
        return (1 - s) * text_attention(attn, x, own) + s * text_attention(attn, x, donor[at.expert])

    found = with_edits(model, Inject(DONOR, strength=strengths))
    assert apart(found, reference(model, attended(model, text))) <= 1e-10


@pytest.mark.parametrize("mode", ["mix", "tokens"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_counts_the_steps_of_both_experts(kind: str, mode: str):
    model = subject(kind)
    donor, over_steps = contexts_of(model, DONOR), [0.9, 0.2, 0.6, 1.0][-len(calls_of(model)) :]

    def strength(at: At) -> float:
        return over_steps[at.step] * (0.5 if at.block == 1 else 1.0)

    def text(at: At, attn: Any, x: Tensor, own: Tensor, of: Any = strength) -> Tensor:
        s, other = of(at), donor[at.expert]
        if mode == "tokens":
            return text_attention(attn, x, (1 - s) * own + s * other)
        return (1 - s) * text_attention(attn, x, own) + s * text_attention(attn, x, other)

    strengths = [0.5 if block == 1 else 1.0 for block in range(model.blocks)]
    keys = {**{str(step): s for step, s in enumerate(over_steps)}, "interpolate": "step"}
    found = with_edits(model, Inject(DONOR, mode=mode, strength=strengths, schedule=keys))
    assert apart(found, reference(model, attended(model, text))) <= 1e-10
    by_expert = functools.partial(text, of=lambda at: strength(at._replace(step=at.step % 2)))
    if kind in TWO_EXPERTS:
        assert apart(found[2:], reference(model, attended(model, by_expert))[2:]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_change_at_their_steps_for_either_expert(kind: str):
    model = subject(kind)
    last, raw = len(calls_of(model)) - 1, encoded(model, [Inject(DONOR), Inject("gray")]).raw
    texts = [raw[PROMPT], *[raw[DONOR]] * (last - 1), raw["gray"]]
    if last == 1:
        assert torch.equal(with_edits(model, Prompts({1: "gray"})), unedited(model, *texts))
    else:
        assert torch.equal(with_edits(model, Prompts({1: DONOR, last: "gray"})), unedited(model, *texts))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_blended_position_by_position(kind: str):
    model = subject(kind)
    donor = contexts_of(model, DONOR)

    def blended(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        return text_attention(attn, x, 0.7 * own + 0.3 * donor[at.expert])

    def added(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        return text_attention(attn, x, own - 2 * donor[at.expert])

    found = with_edits(model, Inject(DONOR, mode="tokens", strength=0.3))
    assert apart(found, reference(model, attended(model, blended))) <= 1e-10
    found = with_edits(model, Inject(DONOR, mode="tokens", operation="add", strength=-2))
    assert apart(found, reference(model, attended(model, added))) <= 1e-10


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_words_limit_tokens_to_their_positions(kind: str):
    model = subject(kind)
    donor, places = contexts_of(model, DONOR), columns_of(model, PROMPT, "circle")

    def text(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        blended = own.clone()
        blended[:, places] = 0.4 * own[:, places] + 0.6 * donor[at.expert][:, places]
        return text_attention(attn, x, blended)

    found = with_edits(model, Inject(DONOR, mode="tokens", strength=0.6, words=["circle"]))
    assert apart(found, reference(model, attended(model, text))) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_append_adds_the_donors_tokens_at_the_end_with_a_log_weight(kind: str):
    model = subject(kind)
    texts = encoded(model, [Inject("gray")])
    first, tokens = len(texts.main), len(texts.raw["gray"])
    donor, strengths = contexts_of(model, "gray"), over_blocks(model, 0.2, 1.0, 0.5, 0.0)

    def text(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        s = strengths[at.block]
        if not s:
            return text_attention(attn, x, own)
        longer, bias_N = own.clone(), torch.zeros(own.shape[1], dtype=torch.float64)
        longer[:, first : first + tokens] = donor[at.expert][:, :tokens]
        bias_N[first : first + tokens] = math.log(s)
        return text_attention(attn, x, longer, bias_N=bias_N)

    found = with_edits(model, Inject("gray", mode="append", strength=strengths))
    assert apart(found, reference(model, attended(model, text))) <= 1e-10
    assert least_apart(found, own_run(kind)) > 1e-5


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_tokens_and_appended_ones_act_on_every_text_that_is_read(kind: str):
    """mix, tokens, append, append: each acts on the result of those before it, in the prompt and in the donor."""
    model = subject(kind)
    edits = [
        Inject(DONOR, strength=0.4),
        Inject("gray", mode="tokens", strength=0.3),
        Inject("cyan", mode="append", strength=0.5),
        Inject("cyan", mode="append", strength=0.2),
    ]
    texts = encoded(model, edits)
    donor, gray, cyan = (contexts_of(model, text) for text in (DONOR, "gray", "cyan"))
    tokens = len(texts.raw["cyan"])

    def appended(at: At, attn: Any, x: Tensor, own: Tensor, real: int) -> Tensor:
        longer, bias_N = 0.7 * own + 0.3 * gray[at.expert], torch.zeros(own.shape[1], dtype=torch.float64)
        for place, s in ((real, 0.5), (real + tokens, 0.2)):
            longer[:, place : place + tokens] = cyan[at.expert][:, :tokens]
            bias_N[place : place + tokens] = math.log(s)
        return text_attention(attn, x, longer, bias_N=bias_N)

    def text(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        main = appended(at, attn, x, own, len(texts.main))
        return 0.6 * main + 0.4 * appended(at, attn, x, donor[at.expert], len(texts.raw[DONOR]))

    found = with_edits(model, *edits)
    assert apart(found, reference(model, attended(model, text))) <= 1e-10


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


@pytest.mark.parametrize("fields", BENDS, ids=lambda fields: fields["operation"])
@pytest.mark.parametrize("kind", KINDS)
def test_bends_equal_those_of_the_full_softmax(kind: str, fields: dict[str, Any]):
    model = subject(kind)
    strengths = over_blocks(model, 0.5, 1.0, 0.0, 0.7)
    edit = Bend(["red circle", "left"], strength=strengths, **fields)
    places = columns_of(model, PROMPT, "red circle", "left")

    def text(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        s = strengths[at.block]
        return text_attention(attn, x, own, lambda p: softmax_bend(edit, places, s, p) if s else p)

    found = with_edits(model, edit)
    assert apart(found, reference(model, attended(model, text))) <= 1e-10
    assert least_apart(found, own_run(kind)) > 1e-4


@pytest.mark.parametrize("kind", SOME_KINDS)
def test_bends_one_after_another_and_in_every_text_that_is_read(kind: str):
    """bend, mix, bend: the second bend acts on the result of the first, and on the donor, which the first does not."""
    model = subject(kind)
    first = Bend(["circle", "red"], "amplify", factor=4.0)
    second = Bend(["left", "circle", "square"], "translate", x=0.25)
    donor = contexts_of(model, DONOR)
    a, b = columns_of(model, PROMPT, "circle", "red"), columns_of(model, PROMPT, "left", "circle")
    c = columns_of(model, DONOR, "square")

    def text(at: At, attn: Any, x: Tensor, own: Tensor) -> Tensor:
        main = text_attention(attn, x, own, lambda p: softmax_bend(second, b, 1, softmax_bend(first, a, 1, p)))
        return 0.6 * main + 0.4 * text_attention(attn, x, donor[at.expert], lambda p: softmax_bend(second, c, 1, p))

    found = with_edits(model, first, Inject(DONOR, strength=0.4), second)
    assert apart(found, reference(model, attended(model, text))) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_skip_equals_a_model_without_the_block(kind: str):
    model = subject(kind)
    found = with_edits(model, Skip([1]))
    kept = [expert.blocks for expert in model.experts()]
    try:
        for expert, blocks in zip(model.experts(), kept, strict=True):
            expert.blocks = torch.nn.ModuleList([block for i, block in enumerate(blocks) if i != 1])
        without = unedited(model)
    finally:
        for expert, blocks in zip(model.experts(), kept, strict=True):
            expert.blocks = blocks
    assert torch.equal(found, without)
    assert least_apart(found, own_run(kind)) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_cross_attention_adds_nothing(kind: str):
    model = subject(kind)

    def attend(at: At, attn: Any, x: Tensor, context: Tensor) -> Tensor:
        return torch.zeros_like(x) if at.block == 2 else attn(x, context, None, None)

    found = with_edits(model, Skip([2], part="cross_attention"))
    assert apart(found, reference(model, with_attention(attend))) <= 1e-10
    assert least_apart(found, own_run(kind)) > 1e-3


@pytest.mark.parametrize(("operation", "s"), [("blend", 0.3), ("add", -0.5)])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_of_the_donors_own_pass(kind: str, operation: str, s: float):
    model = subject(kind)
    donor, kept, chosen = contexts_of(model, DONOR), {}, (1, 3)

    def own_pass(at: At, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        kept[at] = x
        return plain(block, x, with_text(context, donor[at.expert]), t, r)

    reference(model, own_pass)

    def body(at: At, block: Any, x: Tensor, context: Tensor, t: Tensor, r: Any) -> Tensor:
        if at.block in chosen:
            x = (1 - s) * x + s * kept[at] if operation == "blend" else x + s * kept[at]
        return plain(block, x, context, t, r)

    found = with_edits(model, Inject(DONOR, on="hidden", operation=operation, strength=s, blocks=list(chosen)))
    assert apart(found, reference(model, body)) <= 1e-10
    assert least_apart(found, own_run(kind)) > 1e-3

"""The rules: acting order, and which edit overrides which, against the rules written out by hand."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from wanscope.edit.edits import KINDS, Bend, Inject, Prompts, Skip, Steer
from wanscope.edit.rules import acting_order, silenced

L = 3
EDITS: dict[str, Any] = {
    "mix": Inject("d"),
    "append": Inject("d", mode="append"),
    "tokens": Inject("d", mode="tokens"),
    "tokens replaced": Inject("d", mode="tokens", operation="replace"),
    "tokens added": Inject("d", mode="tokens", operation="add"),
    "tokens of words": Inject("d", mode="tokens", words=["w"]),
    "hidden": Inject("d", on="hidden"),
    "both": Inject("d", on="both"),
    "bend": Bend(["w"], "amplify", factor=2.0),
    "steer context": Steer("x.safetensors"),
    "steer hidden": Steer("x.safetensors", on="hidden"),
    "skip": Skip("all"),
    "skip attention": Skip("all", part="cross_attention"),
    "prompts": Prompts({0: "later"}),
}
HIDDEN_ALONE = ("hidden", "steer hidden")
BLOCK_SKIPS = [
    "skip",
]
SKIPS = (*BLOCK_SKIPS, "skip attention")
# at these strengths everything that would be read is replaced
WHOLE = {"mix": (1.0,), "tokens": (1.0,), "both": (1.0,), "tokens replaced": (0.5, 1.0), "prompts": (0.5, 1.0)}


def is_silent(name: str, other: str, strength: float, comes_later: bool) -> bool:
    """Return whether `other`, at this strength, overrides `name`: the three rules written out independently."""
    if name in HIDDEN_ALONE:
        return False
    if other in BLOCK_SKIPS:
        return name not in BLOCK_SKIPS
    if other == "skip attention":
        return name not in SKIPS
    return comes_later and strength in WHOLE.get(other, ()) and name not in (*SKIPS, "both")


def test_every_kind_has_a_case() -> None:
    assert {edit.kind for edit in EDITS.values()} == set(KINDS)


def test_prompts_act_first_and_all_others_in_the_order_written() -> None:
    names = ["mix", "prompts", "skip", "bend", "prompts"]
    assert acting_order([EDITS[name] for name in names]) == [1, 4, 0, 2, 3]


@pytest.mark.parametrize(("first", "second"), product(EDITS, EDITS))
def test_every_pair_of_edits(first: str, second: str) -> None:
    for strength in (0.5, 1.0):
        own = np.array([[0.7, 0.7, 0.0]])
        over = np.array([[strength, 0.0, strength]])
        kinds = [EDITS[first], EDITS[second]]
        before = [{"cond": own, "uncond": own}, {"cond": over}]
        tables, told = silenced(kinds, before)  # type: ignore[arg-type]
        # the second overrides the first, where both act, in their common branches
        gone = is_silent(first, second, strength, True)
        assert tables[0]["cond"].tolist() == [[0.0 if gone else 0.7, 0.7, 0.0]]
        assert tables[0]["uncond"].tolist() == own.tolist()
        # the first overrides the second: only skips act on later edits
        gone_back = is_silent(second, first, 0.7, False)
        assert tables[1]["cond"].tolist() == [[0.0 if gone_back else strength, 0.0, strength]]
        assert {(silence.silent, silence.by) for silence in told} == {
            pair for pair, found in (((0, 1), gone), ((1, 0), gone_back)) if found
        }
        assert before[0]["cond"] is own and own.tolist() == [[0.7, 0.7, 0.0]]


def test_a_silence_names_both_edits_and_why() -> None:
    tables = [{"cond": np.ones((1, L))} for _ in range(2)]
    sentences = {
        "skip": "A does not act where B skips the blocks it acts in",
        "skip attention": "A does not act where B skips the cross-attention it acts in",
        "mix": "A does not act where B leaves nothing of it",
    }
    for name, sentence in sentences.items():
        _, (told,) = silenced([EDITS["append"], EDITS[name]], tables)  # type: ignore[arg-type]
        assert told.sentence("A", "B") == sentence

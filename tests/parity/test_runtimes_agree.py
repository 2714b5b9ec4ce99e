"""One plan, three runtimes: the same weights and edits in diffusers, ComfyUI's interface and the wrapper's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch

from helpers.comfy_fakes import NativeWan, Patcher, WrapperWan
from helpers.edits import WAYS
from helpers.tiny import TEXT_LENGTH, tiny_model
from wanscope.capture.moments import Moment
from wanscope.edit.direction import Direction, DirectionManifest
from wanscope.edit.edits import Bend, Inject, Prompts, Skip, Steer
from wanscope.edit.encoded_texts import DonorTexts
from wanscope.edit.plan import make_plan
from wanscope.edit.planned import Passes
from wanscope.edit.sites import Branch
from wanscope.errors import RecipeError
from wanscope.runtime.comfy import native as comfy_native
from wanscope.runtime.comfy import wrapper as wan_wrapper
from wanscope.runtime.comfy.live import Live, LiveEdit
from wanscope.runtime.diffusers.session import attach

SIGMA = 0.7
GRID = (2, 4, 4)


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, 32, generator=torch.Generator().manual_seed(seed))


MAIN, DONOR, NEGATIVE, LATER = text(4, 1), text(6, 2), text(3, 3), text(5, 4)
X = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
WORDS = (1, 2)

EDITS = {
    "none": [],
    "mix": [Inject("donor", strength=0.4)],
    "mix per block": [Inject("donor", strength=[0.1, 0.9, 0.0, 1.0])],
    "mix of two": [Inject("donor", strength=0.4), Inject("donor", strength=0.5, blocks="1-2")],
    "append": [Inject("donor", mode="append", strength=0.3)],
    "tokens": [Inject("donor", mode="tokens", strength=0.6)],
    "tokens added": [Inject("donor", mode="tokens", operation="add", strength=-0.5)],
    "boost": [Inject("donor", strength=0.5, boost=3.0)],
    "hidden": [Inject("donor", on="hidden", blocks="1-2", strength=0.5)],
    "both": [Inject("donor", on="both", blocks="2-3", strength=0.7)],
    "skip": [Skip("1")],
    "skip attention": [Skip("1-2", part="cross_attention")],
    "mix over a skipped block": [Inject("donor", strength=0.4), Skip("2")],
    "mix over skipped attention": [Inject("donor", strength=0.4), Skip("2", part="cross_attention")],
    "hidden over a skipped block": [Inject("donor", on="hidden", blocks="1-3", strength=0.7), Skip("2")],
    "both over a skipped block": [Inject("donor", on="both", blocks="1-3", strength=0.7), Skip("2")],
    "both over skipped attention": [
        Skip("2", part="cross_attention"),
        Inject("donor", on="both", blocks="1-3", strength=0.7),
    ],
    "amplify": [Bend(["w"], "amplify", factor=3.0)],
    "translate": [Bend(["w"], "translate", x=0.25, blocks="0,3", heads=(1, 2))],
    "raw region": [Bend(["w"], "region", box=(0, 0, 0.5, 1), renormalize=False)],
    "bend, then mix": [Bend(["w"], "suppress", factor=3.0), Inject("donor", strength=0.4)],
    "mix, then bend": [Inject("donor", strength=0.4), Bend(["w"], "suppress", factor=3.0)],
    "append, then bend": [Inject("donor", mode="append", strength=0.3), Bend(["w"], "rotate", angle=90)],
}


@pytest.fixture(scope="module")
def models():
    model = tiny_model("2.1", seed=3)
    source = model.experts()[0]
    return model, Patcher(NativeWan(source)), Patcher(WrapperWan(source))


@dataclass(frozen=True)
class Ran:
    """The result of a runtime: the prediction [branches, C, T, h, w], and how often each (edit, block, branch) was
    planned (in ComfyUI: due) and applied."""

    out: torch.Tensor
    planned: dict[tuple[int, int, str], int]
    applied: dict[tuple[int, int, str], int]


def texts_of(branches: tuple[Branch, ...]) -> torch.Tensor:
    """Return the padded prompt and negative prompt [branches, N, D]."""
    raw = torch.zeros(len(branches), TEXT_LENGTH, 32)
    for row, branch in zip(raw, branches, strict=True):
        own = MAIN if branch == "cond" else NEGATIVE
        row[: len(own)] = own
    return raw


def without_step(counts) -> dict[tuple[int, int, str], int]:
    return {(edit, block, branch): n for (edit, block, branch, _), n in counts.items() if n}


def diffusers_run(model, edits, directions=None, branches: tuple[Branch, ...] = ("cond",)) -> Ran:
    places = {i: {"prompt": WORDS, "negative": WORDS} for i, e in enumerate(edits) if e.named_words()}
    raw = {"donor": DONOR, "later": LATER}
    raw |= {text: LATER if isinstance(edit, Prompts) else DONOR for edit in edits for text in edit.texts()}
    texts = DonorTexts("prompt", "negative", MAIN, NEGATIVE, raw, TEXT_LENGTH, places=places)
    guided = frozenset(range(1)) if "uncond" in branches else frozenset()
    passes = Passes((SIGMA,), (1,), (guided,))
    transformer = model.experts()[0]
    plan = make_plan(edits, texts, passes, blocks=4, heads=4, grid=GRID, directions=directions) if edits else None
    x = X.expand(len(branches), -1, -1, -1, -1)
    with attach(model, plan) if plan else nullcontext() as session:
        around = session.around_call(Moment(0, 1, 0, branches, 0, SIGMA)) if session else nullcontext()
        with around, torch.no_grad():
            t = torch.full((len(branches),), 1000 * SIGMA)
            out = transformer(x, t, texts_of(branches), return_dict=False)[0]
    if session is None or plan is None:
        return Ran(out, {}, {})
    return Ran(out, without_step(plan.planned()), without_step(session.counts()))


def through_diffusers(model, edits, directions=None) -> torch.Tensor:
    return diffusers_run(model, edits, directions).out


def live(edits, direction=None) -> Live:
    return Live(
        LiveEdit(
            edit,
            DONOR if isinstance(edit, Inject) else None,
            columns=(WORDS,) if edit.named_words() else (),
            pairs=((DONOR, NEGATIVE),) if isinstance(edit, Steer) else (),
            direction=direction if isinstance(edit, Steer) else None,
            keyed=((0.0, LATER),) if isinstance(edit, Prompts) else (),
        )
        for edit in edits
    )


def of_run(out: torch.Tensor, found: Live) -> Ran:
    run = found.runs[-1] if found.runs else None
    return Ran(out, without_step(run.due), without_step(run.applied)) if run else Ran(out, {}, {})


def native_run(patcher, edits, direction=None, branches: tuple[Branch, ...] = ("cond",)) -> Ran:
    found = live(edits, direction)
    edited = comfy_native.attach(patcher, found)
    options = {**edited.model_options["transformer_options"], "wrappers": edited.wrappers}
    options |= {"cond_or_uncond": [int(b == "uncond") for b in branches], "sigmas": torch.tensor([SIGMA])}
    x = X.expand(len(branches), -1, -1, -1, -1)
    with torch.no_grad():
        t = torch.full((len(branches),), 1000 * SIGMA)
        out = patcher.model.diffusion_model(x, t, texts_of(branches), None, None, options)
    return of_run(out, found)


def through_native(patcher, edits, direction=None) -> torch.Tensor:
    return native_run(patcher, edits, direction).out


def wrapper_run(patcher, edits, direction=None, branches: tuple[Branch, ...] = ("cond",)) -> Ran:
    """The wrapper makes one call for each branch."""
    found = live(edits, direction)
    attached = wan_wrapper.attach(patcher, found)
    parts = []
    for branch in branches:
        options = attached.model_options["transformer_options"]
        call = {"x": [X[0]], "t": torch.tensor([1000 * SIGMA]), "seq_len": 0, "transformer_options": options}
        call |= {"is_uncond": branch == "uncond", "context": [MAIN if branch == "cond" else NEGATIVE]}
        with torch.no_grad():
            parts.append(patcher.model.diffusion_model(**call)[0][0])
    return of_run(torch.stack(parts), found)


def through_wrapper(patcher, edits, direction=None) -> torch.Tensor:
    return wrapper_run(patcher, edits, direction).out


@pytest.mark.parametrize("name", EDITS)
def test_all_runtimes_agree(models, name):
    model, native, wrapper = models
    edits = EDITS[name]
    expected = through_diffusers(model, edits)
    assert torch.allclose(through_native(native, edits), expected, atol=2e-5)
    assert torch.allclose(through_wrapper(wrapper, edits), expected, atol=2e-5)
    if edits:
        assert not torch.allclose(expected, through_diffusers(model, []), atol=1e-3)


@pytest.mark.parametrize("operation", ["add", "ablate", "rotate"])
def test_steering_agrees_in_both_comfyui_runtimes(models, operation):
    """The directions are learned during sampling, which the diffusers runtime does not do."""
    _, native, wrapper = models
    edits = [Steer("connected", operation=operation, strength=0.6)]
    found = through_native(native, edits)
    assert torch.allclose(through_wrapper(wrapper, edits), found, atol=2e-5)
    assert not torch.allclose(found, through_native(native, []), atol=1e-3)


@pytest.mark.parametrize("operation", ["add", "ablate", "rotate"])
@pytest.mark.parametrize("on", ["context", "hidden"])
def test_stored_directions_agree_on_all_runtimes(models, on, operation):
    model, native, wrapper = models
    direction_ELD = torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(8))
    direction = Direction(direction_ELD, DirectionManifest(on, "tiny", {}, (0, 1, 2, 3), (("a", "b"),)))
    edits = [Steer("file", sha256="known", on=on, operation=operation, strength=0.6, blocks="1-2")]
    expected = through_diffusers(model, edits, {"known": direction})
    assert torch.allclose(through_native(native, edits, direction), expected, atol=2e-5)
    assert torch.allclose(through_wrapper(wrapper, edits, direction), expected, atol=2e-5)
    assert not torch.allclose(expected, through_diffusers(model, []), atol=1e-3)


DIRECTION = Direction(
    torch.randn(1, 4, 48, generator=torch.Generator().manual_seed(8)),
    DirectionManifest("hidden", "tiny", {}, (0, 1, 2, 3), (("a", "b"),)),
)
ON_CONTEXT = Direction(DIRECTION.tensor_ELD, DirectionManifest("context", "tiny", {}, (0, 1, 2, 3), (("a", "b"),)))
DIRECTIONS = {"context": ON_CONTEXT, "hidden": DIRECTION}
BRANCHES_OF_PAIRS = (("cond", "cond"), ("both", "cond"), ("cond", "both"), ("both", "uncond"))


def unless_refused(run: Callable[[], Ran], words: str) -> Ran | None:
    """Return what ran, or None where it is refused; any refusal contains these words."""
    try:
        return run()
    except RecipeError as error:
        if words not in str(error):
            raise
        return None


def refused(run: Callable[[], Ran], words: str) -> bool:
    """Return whether the run is refused; any refusal contains these words."""
    return unless_refused(run, words) is None


def turns() -> list[Any]:
    """Return a way to edit and, for each way that follows it, the branches of both.

    Every ordered pair of ways has one of the four pairs of branches, in turn, and the other three among the slow tests.
    """
    ways, number = list(WAYS), len(BRANCHES_OF_PAIRS)
    return [
        pytest.param(
            first,
            {second: BRANCHES_OF_PAIRS[(i + j + turn) % number] for j, second in enumerate(ways)},
            id=f"{first}-{turn}",
            marks=[pytest.mark.slow] if turn else [],
        )
        for turn in range(number)
        for i, first in enumerate(ways)
    ]


@pytest.mark.parametrize(("first", "branches"), turns())
def test_every_pair_of_edits_is_planned_counted_and_computed_the_same(
    models, first: str, branches: dict[str, tuple[str, str]]
):
    """Also where one edit overrides the other: all runtimes use the same rules."""
    model, native, wrapper = models
    for second, (of_first, of_second) in branches.items():
        edits = [WAYS[first](branch=of_first), WAYS[second](branch=of_second)]
        direction = next((DIRECTIONS[e.sha256] for e in edits if isinstance(e, Steer)), None)
        if {"steer context", "steer hidden"} == {first, second}:
            continue  # the ComfyUI runs here have only one direction
        passes: tuple[Branch, ...] = ("cond", "uncond")
        in_diffusers = partial(diffusers_run, model, edits, DIRECTIONS, passes)
        expected = unless_refused(in_diffusers, "would do nothing in block")
        if expected is None:
            # an edit of words whose texts are all replaced by the other edit
            for run, patcher in ((native_run, native), (wrapper_run, wrapper)):
                assert refused(partial(run, patcher, edits, direction, passes), "finds no text with its words")
            continue
        assert expected.planned == expected.applied, (first, second)
        for name, found in (
            ("native", native_run(native, edits, direction, passes)),
            ("wrapper", wrapper_run(wrapper, edits, direction, passes)),
        ):
            assert found.applied == expected.applied, (name, first, second)
            assert found.planned == expected.planned, (name, first, second)
            assert torch.allclose(found.out, expected.out, atol=3e-5), (name, first, second)


def test_cases_in_which_the_runtimes_once_disagreed(models):
    """An injection on both branches with a skip of one; an injection overridden by a later full one."""
    model, native, wrapper = models
    for edits, absent in (
        ([Inject("donor", branch="both", strength=0.5), Skip("0")], {(0, 0, "cond")}),
        ([Inject("donor", strength=0.5), Inject("donor")], set(product((0,), range(4), ("cond", "uncond")))),
    ):
        for found in (
            diffusers_run(model, edits, branches=("cond", "uncond")),
            native_run(native, edits, branches=("cond", "uncond")),
            wrapper_run(wrapper, edits, branches=("cond", "uncond")),
        ):
            assert not absent & set(found.applied) and found.applied == found.planned
            assert found.applied


def test_appended_tokens_that_do_not_fit_are_refused_in_all_runtimes(models):
    model, native, wrapper = models
    edits = [Inject("donor", mode="append", strength=0.3)] * 3
    for run in (partial(diffusers_run, model), partial(native_run, native), partial(wrapper_run, wrapper)):
        assert refused(partial(run, edits), "the donor's 6 tokens cannot be appended")

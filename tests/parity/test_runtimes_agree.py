"""One plan, three runtimes: the same weights and edits through diffusers, ComfyUI's contract and the wrapper's."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from helpers.comfy_fakes import NativeWan, Patcher, WrapperWan
from helpers.tiny import TEXT_LENGTH, tiny_model
from wanscope.capture.moments import Moment
from wanscope.edit.direction import Direction, DirectionManifest
from wanscope.edit.donors import DonorTexts
from wanscope.edit.edits import Bend, Inject, Skip, Steer
from wanscope.edit.plan import Passes, make_plan
from wanscope.runtime.comfy import native as comfy_native
from wanscope.runtime.comfy import wrapper as wan_wrapper
from wanscope.runtime.comfy.live import Live, LiveEdit
from wanscope.runtime.diffusers.session import attach

SIGMA = 0.7
GRID = (2, 4, 4)


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, 32, generator=torch.Generator().manual_seed(seed))


MAIN, DONOR, NEGATIVE = text(5, 1), text(7, 2), text(3, 3)
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


def through_diffusers(model, edits, directions=None) -> torch.Tensor:
    places = {i: {"prompt": WORDS} for i, e in enumerate(edits) if isinstance(e, Bend)}
    texts = DonorTexts("prompt", "negative", MAIN, NEGATIVE, {"donor": DONOR}, TEXT_LENGTH, places=places)
    passes = Passes((SIGMA,), (1,), (frozenset(),))
    transformer = model.experts()[0]
    plan = make_plan(edits, texts, passes, blocks=4, heads=4, grid=GRID, directions=directions) if edits else None
    raw = torch.zeros(1, TEXT_LENGTH, 32)
    raw[0, : len(MAIN)] = MAIN
    with attach(model, plan) if plan else nullcontext() as session:
        around = session.around_call(Moment(0, 1, 0, ("cond",), 0, SIGMA)) if session else nullcontext()
        with around, torch.no_grad():
            return transformer(X, torch.tensor([1000 * SIGMA]), raw, return_dict=False)[0]


def live(edits, direction=None) -> Live:
    return Live(
        LiveEdit(
            edit,
            DONOR if isinstance(edit, Inject) else None,
            columns=(WORDS,) if isinstance(edit, Bend) else (),
            pairs=((DONOR, NEGATIVE),) if isinstance(edit, Steer) else (),
            direction=direction,
        )
        for edit in edits
    )


def through_native(patcher, edits, direction=None) -> torch.Tensor:
    edited = comfy_native.attach(patcher, live(edits, direction))
    options = {**edited.model_options["transformer_options"], "wrappers": edited.wrappers}
    raw = torch.zeros(1, TEXT_LENGTH, 32)
    raw[0, : len(MAIN)] = MAIN
    options |= {"cond_or_uncond": [0], "sigmas": torch.tensor([SIGMA])}
    with torch.no_grad():
        return patcher.model.diffusion_model(X, torch.tensor([1000 * SIGMA]), raw, None, None, options)


def through_wrapper(patcher, edits, direction=None) -> torch.Tensor:
    options = wan_wrapper.attach(patcher, live(edits, direction)).model_options["transformer_options"]
    call = {"x": [X[0]], "t": torch.tensor([1000 * SIGMA]), "seq_len": 0, "transformer_options": options}
    with torch.no_grad():
        return patcher.model.diffusion_model(context=[MAIN], **call)[0][0][None]


@pytest.mark.parametrize("name", EDITS)
def test_all_runtimes_give_the_same(models, name):
    model, native, wrapper = models
    edits = EDITS[name]
    expected = through_diffusers(model, edits)
    assert torch.allclose(through_native(native, edits), expected, atol=2e-5)
    assert torch.allclose(through_wrapper(wrapper, edits), expected, atol=2e-5)
    if edits:
        assert not torch.allclose(expected, through_diffusers(model, []), atol=1e-3)


@pytest.mark.parametrize("operation", ["add", "ablate", "rotate"])
def test_steering_agrees_on_both_of_comfyuis_runtimes(models, operation):
    """Learned while sampling, which diffusers' are not."""
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

"""Prompts over time, and directions stored in files, on a fake with native ComfyUI's interface."""

from __future__ import annotations

import pytest
import torch

from helpers.comfy_fakes import SIGMAS, NativeWan, Patcher, sample
from helpers.comfy_texts import DONOR, MAIN, NEGATIVE, NOISE, OTHER, padded
from helpers.tiny import tiny_transformer, transformer_config
from wanscope.doors.comfy import NODES
from wanscope.doors.comfy.direction_nodes import direction_path
from wanscope.edit.direction import Direction, DirectionManifest, read_direction
from wanscope.errors import RecipeError
from wanscope.runtime.comfy import native


def conditioning(tokens_LD: torch.Tensor) -> list:
    return [[padded(tokens_LD)[None], {}]]


@pytest.fixture
def model() -> Patcher:
    return Patcher(NativeWan(tiny_transformer(transformer_config(), seed=5)))


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path))


def run(kind: str, /, **inputs):
    node = NODES[kind]
    given = {k: s[1]["default"] for k, s in node.REQUIRED.items() if len(s) > 1 and "default" in s[1]}
    found = node().run(**{**given, **inputs})
    return found if isinstance(found, tuple) else found["result"]


def sampled(model, positive=MAIN, **options) -> torch.Tensor:
    return sample(model, [padded(positive)], [padded(NEGATIVE)], NOISE, **options)


def by_step(model, prompts: list[torch.Tensor]) -> torch.Tensor:
    """Return the result of a plain Euler loop without guidance, with a padded text [16, D] for each step."""
    x = NOISE.clone()
    for sigma, after, prompt in zip(SIGMAS, (*SIGMAS[1:], 0.0), prompts, strict=True):
        options = {"cond_or_uncond": [0], "sigmas": torch.tensor([sigma])}
        out = model.model.diffusion_model(x, torch.tensor([1000 * sigma]), prompt[None], None, None, options)
        x = x + (after - sigma) * out
    return x


def test_a_prompt_from_the_start_equals_that_prompt_bit_for_bit(model):
    (out,) = run("WanscopePromptSchedule", model=model, prompt_1=conditioning(DONOR), begin_1=0.0)
    assert torch.equal(sampled(out), sampled(model, DONOR))
    assert native.live_of(out).runs[-1].applied_in(0) == 4 * 3
    assert native.live_of(model) is None


def test_prompts_change_at_their_times(model):
    """The fake's fraction of the sampling is 1 - sigma: its steps are at 0, 0.25 and 0.6."""
    (out,) = run(
        "WanscopePromptSchedule", model=model, prompt_1=conditioning(DONOR), begin_1=0.2,
        prompt_2=conditioning(OTHER), begin_2=0.6,
    )  # fmt: skip
    expected = by_step(model, [padded(MAIN), padded(DONOR), padded(OTHER)])
    assert torch.allclose(sampled(out, cfg=1.0), expected, atol=1e-6)
    record = native.live_of(out).runs[-1]
    assert record.applied_in(0) == record.due_in(0) == 4 * 2
    assert not torch.allclose(expected, sampled(model, cfg=1.0), atol=1e-3)


@pytest.mark.parametrize("way", ["linear", "spherical"])
def test_prompts_are_interpolated_to_the_next(model, way):
    (out,) = run(
        "WanscopePromptSchedule", model=model, prompt_1=conditioning(DONOR), begin_1=0.0,
        prompt_2=conditioning(OTHER), begin_2=0.5, interpolate=way,
    )  # fmt: skip
    a, b = padded(DONOR).double(), padded(OTHER).double()
    if way == "linear":
        middle = (a + b) / 2
    else:  # the middle of a great circle is in the direction of the sum of both; padding has no direction
        u, v = (torch.nn.functional.normalize(x, dim=1) for x in (a, b))
        length = (a.norm(dim=1, keepdim=True) + b.norm(dim=1, keepdim=True)) / 2
        both = (a.norm(dim=1, keepdim=True) > 0) & (b.norm(dim=1, keepdim=True) > 0)
        middle = torch.where(both, length * torch.nn.functional.normalize(u + v, dim=1), (a + b) / 2)
    expected = by_step(model, [padded(DONOR), middle.float(), padded(OTHER)])
    assert torch.allclose(sampled(out, cfg=1.0), expected, atol=1e-5)


def test_times_must_increase_and_a_second_node_is_refused(model):
    given = {"model": model, "prompt_1": conditioning(DONOR), "prompt_2": conditioning(OTHER)}
    with pytest.raises(RecipeError, match=r"prompt_2 begins at 0\.2, and prompt_1 at 0\.3"):
        run("WanscopePromptSchedule", **given, begin_1=0.3, begin_2=0.2)
    (out,) = run("WanscopePromptSchedule", **given, begin_1=0.3, begin_2=0.6)
    with pytest.raises(RecipeError, match="already"):
        run("WanscopePromptSchedule", model=out, prompt_1=conditioning(DONOR))
    run("WanscopePromptSchedule", model=out, prompt_1=conditioning(DONOR), branch="uncond")


def test_other_edits_act_on_the_prompt_used_at_that_time(model):
    (first,) = run("WanscopeInjectPrompt", model=model, donor=conditioning(OTHER), strength=0.5)
    (out,) = run("WanscopePromptSchedule", model=first, prompt_1=conditioning(DONOR), begin_1=0.0)
    (mixed,) = run("WanscopeInjectPrompt", model=model, donor=conditioning(OTHER), strength=0.5)
    assert torch.equal(sampled(out), sampled(mixed, DONOR))


def test_bending_words_that_the_text_lacks_is_refused(model):
    from wanscope.doors.comfy.prompt_nodes import Words

    words = Words(("w",), ((1, 2),))
    (bent,) = run("WanscopeBendAttention", model=model, words=words)
    (out,) = run("WanscopePromptSchedule", model=bent, prompt_1=conditioning(DONOR), begin_1=0.2)
    with pytest.raises(RecipeError, match="finds no text with its words"):
        sampled(out)
    watched, _ = run("WanscopeWatchAttention", model=model, words=words)
    (out,) = run("WanscopeInjectPrompt", model=watched, donor=conditioning(DONOR), strength=1.0)
    with pytest.raises(RecipeError, match="finds no text with its words"):
        sampled(out)


def learned():
    (direction,) = run("WanscopeLearnDirection", with_1=conditioning(DONOR), without_1=conditioning(OTHER))
    return direction


def test_a_saved_direction_steers_like_one_learned_during_sampling(model):
    given, file = run("WanscopeSaveDirection", direction=learned(), model=model, name="rusty")
    assert file == "rusty.safetensors" and given is not None
    stored, report = run("WanscopeLoadDirection", name="rusty")
    assert "context direction of 1 pair" in report
    outs = [run("WanscopeSteerModel", model=model, direction=d, strength=0.7)[0] for d in (learned(), stored)]
    assert torch.allclose(sampled(outs[0]), sampled(outs[1]), atol=1e-5)
    assert not torch.allclose(sampled(outs[1]), sampled(model), atol=1e-3)


def test_the_file_holds_the_difference_of_mean_tokens_and_how_it_was_learned(model):
    run("WanscopeSaveDirection", direction=learned(), model=model, name="rusty.safetensors", model_2=model)
    found = read_direction(direction_path("rusty"))
    with torch.no_grad():
        parts = [model.model.diffusion_model.text_embedding(t).double().mean(0) for t in (DONOR, OTHER)]
    assert found.tensor_ELD.shape == (2, 4, parts[0].shape[0])
    assert torch.allclose(found.at(1, 3).double(), parts[0] - parts[1], atol=1e-6)
    assert found.manifest.on == "context" and found.manifest.blocks == (0, 1, 2, 3)
    assert all(side.startswith("embedding ") for pair in found.manifest.pairs for side in pair)
    assert len(set(found.manifest.pairs[0])) == 2 and len(found.manifest.weights) == 2


def test_a_direction_saved_on_other_weights_steers_with_a_note(model):
    run("WanscopeSaveDirection", direction=learned(), model=model, name="rusty")
    stored, _ = run("WanscopeLoadDirection", name="rusty")
    other = Patcher(NativeWan(tiny_transformer(transformer_config(), seed=6)))

    def text(on: Patcher, direction: object) -> str:
        node = NODES["WanscopeSteerModel"]()
        given = {"start_percent": 0.0, "end_percent": 1.0, "branch": "cond", "blocks": "all"}
        return str(node.run(on, direction, "add", 1.0, **given)["ui"])

    assert "learned on other weights" not in text(model, stored) + text(other, learned())
    assert "learned on other weights (a Wan model in ComfyUI, 4 blocks of width 48" in text(other, stored)


def test_scalar_weight_scales_of_fp8_layers_can_be_saved(model):
    first = model.model.diffusion_model.text_embedding[0]
    first.scale_weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
    run("WanscopeSaveDirection", direction=learned(), model=model, name="fp8")
    assert direction_path("fp8").is_file()


def test_a_file_of_hidden_states_steers_them(model):
    dim = model.model.diffusion_model.dim
    direction_ELD = torch.zeros(2, 4, dim)
    direction_ELD[1, 2] = torch.randn(dim, generator=torch.Generator().manual_seed(9))
    manifest = DirectionManifest("hidden", "tiny", {}, (2,), (("a", "b"),), (0,), 3)
    direction_path("h").parent.mkdir()
    Direction(direction_ELD, manifest).save(direction_path("h"))
    stored, _ = run("WanscopeLoadDirection", name="h", expert="low noise")
    with pytest.raises(RecipeError, match="was not learned in block 0"):
        run("WanscopeSteerModel", model=model, direction=stored)
    (out,) = run("WanscopeSteerModel", model=model, direction=stored, blocks="2", strength=0.5)
    found = sampled(out, cfg=1.0)
    assert native.live_of(out).runs[-1].applied_in(0) == 3
    block = model.model.diffusion_model.blocks[2]
    handle = block.register_forward_pre_hook(lambda module, args: (args[0] + 0.5 * direction_ELD[1, 2], *args[1:]))
    expected = sampled(model, cfg=1.0)
    handle.remove()
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, sampled(model, cfg=1.0), atol=1e-3)


def test_faults_in_files_are_reported(model):
    with pytest.raises(RecipeError, match="no direction 'rusti'"):
        run("WanscopeLoadDirection", name="rusti")
    for name in ("", "../x", "a/b", ".hidden", "a\\b"):
        with pytest.raises(RecipeError, match="is not a name"):
            run("WanscopeSaveDirection", direction=learned(), model=model, name=name)
    run("WanscopeSaveDirection", direction=learned(), model=model, name="rusty")
    stored, _ = run("WanscopeLoadDirection", name="rusty")
    shallow = Patcher(NativeWan(tiny_transformer(transformer_config() | {"num_layers": 3}, seed=5)))
    with pytest.raises(RecipeError, match="does not fit this model"):
        run("WanscopeSteerModel", model=shallow, direction=stored)
    direction_path("rusty").write_bytes(b"nothing")
    with pytest.raises(RecipeError, match="cannot be read as a direction"):
        run("WanscopeLoadDirection", name="rusty")

"""Check Edits over two stages, and patterns on models of 30 blocks."""

from __future__ import annotations

import pytest
import torch

from helpers.comfy_fakes import NativeWan, Patcher, WrapperWan, sample, wrapper_sample
from helpers.tiny import TEXT_DIM, tiny_transformer, transformer_config
from wanscope.doors.comfy import ALIASES, LEGACY_NODES, NODES, with_aliases
from wanscope.edit.edits import Inject
from wanscope.errors import EditNotApplied, RecipeError
from wanscope.runtime.comfy import native as comfy_native
from wanscope.runtime.comfy import wrapper
from wanscope.runtime.comfy.live import CONNECTED, Live, LiveEdit


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))


MAIN, DONOR, NEGATIVE = text(5, 1), text(9, 2), text(3, 3)
NOISE = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))
EMBEDS = {"prompt_embeds": [MAIN], "negative_prompt_embeds": [NEGATIVE]}
STAGES = ((1.0, 0.75), (0.4,))  # noise levels, which are 1 - share here


@pytest.fixture(params=["native", "wrapper"])
def staged(request):
    """Return (a function that makes an edited copy of a model, a function that samples a stage with a model)."""
    own = tiny_transformer(transformer_config(), seed=5)
    native = request.param == "native"
    model = Patcher(NativeWan(own) if native else WrapperWan(own))
    runtime = comfy_native if native else wrapper

    def edited(**when):
        return runtime.attach(model, Live([LiveEdit(Inject(CONNECTED, strength=0.5), DONOR, **when)]))

    def stage(patcher, sigmas):
        if not native:
            return wrapper_sample(patcher, EMBEDS, NOISE, sigmas=sigmas)
        rows = [torch.cat([t, torch.zeros(16 - len(t), TEXT_DIM)]) for t in (MAIN, NEGATIVE)]
        return sample(patcher, rows[:1], rows[1:], NOISE, sigmas=sigmas)

    return edited, stage


def check_report(**inputs) -> str:
    return NODES["WanscopeCheckEdits"]().run(latent={}, **inputs)["result"][1]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"end": 0.3}, "edit 1 (inject into the context): acted in stage 1, was not due in stage 2"),
        ({"start": 0.5}, "edit 1 (inject into the context): was not due in stage 1, acted in stage 2"),
        ({}, "edit 1 (inject into the context): acted in stage 1, acted in stage 2"),
        (
            {"start": 0.3, "end": 0.5},
            "edit 1 (inject into the context): never acted: it was not due in stage 1, was not due in stage 2",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("models", [1, 2])
def test_the_report_states_for_each_stage_whether_an_edit_was_due_and_acted(staged, when, said, models):
    edited, stage = staged
    first = edited(**when)
    second = first if models == 1 else edited(**when)
    for model, sigmas in zip((first, second), STAGES, strict=True):
        stage(model, sigmas)
    report = check_report(model=first, model_2=second)
    if models == 1:
        assert said in report.splitlines()
        return
    both = [line.partition("): ")[2] for line in report.splitlines() if line.startswith("edit 1")]
    assert len(both) == 2
    for n, line in enumerate(both, 1):
        assert line.removeprefix("never acted: it ") in said and line.endswith(f"stage {n}")


def test_an_edit_that_was_due_in_a_stage_and_did_not_act_fails_even_if_it_acted_before():
    model = Patcher(WrapperWan(tiny_transformer(transformer_config(), seed=5)))
    edited = wrapper.attach(model, Live([LiveEdit(Inject(CONNECTED, strength=0.5), DONOR)]))
    wrapper_sample(edited, EMBEDS, NOISE, sigmas=STAGES[0])
    model.model.diffusion_model.answer_from_cache = True
    wrapper_sample(edited, EMBEDS, NOISE, sigmas=STAGES[1])
    with pytest.raises(EditNotApplied, match=r"model 1, edit 1 .* was due in stage 2 and did not act") as caught:
        check_report(model=edited)
    assert "acted in stage 1, was due in stage 2 and did not act" in str(caught.value)


# patterns on a model with 30 blocks, through every legacy node that reads one


def pattern_nodes() -> list[str]:
    return [name for name in LEGACY_NODES if "block_activations" in {**NODES[name].REQUIRED, **NODES[name].OPTIONAL}]


@pytest.fixture(scope="module")
def thirty_blocks() -> Patcher:
    return Patcher(WrapperWan(tiny_transformer(transformer_config(blocks=30), seed=5)))


def run(name: str, model: Patcher, pattern: str):
    node = NODES[name]
    latent = NODES["WanVideoLatentEncoder"]().run(model, EMBEDS, 3, True)["result"][0]
    donor = {"prompt_embeds": [DONOR], "negative_prompt_embeds": []}
    known = {
        "model": model, "text_embeds": EMBEDS, "injection_embeds": donor, "main_latent": latent,
        "injection_latent": latent, "block_activations": pattern,
    }  # fmt: skip
    given = {}
    for key, spec in {**node.REQUIRED, **node.OPTIONAL}.items():
        if key in known:
            given[key] = known[key]
        elif key in node.REQUIRED:
            given[key] = spec[1]["default"]
    return node().run(**given)


def acting(out) -> int:
    live = wrapper.live_of(out["result"][0])
    return sum(1 for s in live.edits[0].strengths(30) if s) if live and live.edits else 0


def test_five_legacy_nodes_read_a_pattern():
    assert len(pattern_nodes()) == 5 and len(LEGACY_NODES) == 20


@pytest.mark.parametrize("name", pattern_nodes())
def test_forty_bits_on_thirty_blocks(thirty_blocks, name):
    with pytest.raises(RecipeError) as caught:
        run(name, thirty_blocks, "10" * 20)
    assert "30" in str(caught.value) and "40" in str(caught.value)
    if name == "WanVideoBlockActivationViewer":
        assert "30 of 30 blocks" in run(name, thirty_blocks, "1" * 40)["result"][0]
        return
    after = 3 if name == "WanVideoLatentInjector" else 0  # its state exists from block 3 on
    assert acting(run(name, thirty_blocks, "1" * 40)) == 30 - after
    assert acting(run(name, thirty_blocks, "0" * 40)) == 0
    assert acting(run(name, thirty_blocks, "01" * 15)) == 15 - after // 2


# older input names

OLDER_INPUT_NAMES = {
    "activation_pattern": "block_activations",
    "text_embeds_injection": "injection_embeds",
}
BY_ID = {
    "VectorDifference": {"embeddings_a": "text_embeds_a", "embeddings_b": "text_embeds_b"},
    "VectorArithmetic": {"embeddings_1": "base_embeds", "embeddings_2": "operand_1", "embeddings_3": "operand_2"},
    "VectorInterpolation": {"embeddings_a": "start_embeds", "embeddings_b": "end_embeds"},
    "SequentialMixer": {f"embeddings_{i}": f"embedding_{i}" for i in (1, 2, 3)},
}


@pytest.mark.parametrize("name", sorted(LEGACY_NODES))
def test_every_legacy_id_accepts_older_input_names(name):
    inputs = {**NODES[name].REQUIRED, **NODES[name].OPTIONAL}
    expected = {old: new for old, new in OLDER_INPUT_NAMES.items() if new in inputs}
    expected |= BY_ID.get(name.removeprefix("WanVideo"), {})
    for old, new in expected.items():
        assert new in inputs
        prompt = {"1": {"class_type": name, "inputs": {old: ["2", 0]}}}
        assert with_aliases(prompt)["1"]["inputs"] == {new: ["2", 0]}
        assert prompt["1"]["inputs"] == {old: ["2", 0]}
    assert all(new in inputs for new in ALIASES.get(name, {}).values() if new in expected.values())

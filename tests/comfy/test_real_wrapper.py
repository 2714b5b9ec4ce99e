"""The pack together with the real WanVideoWrapper in a real ComfyUI, on a tiny random checkpoint.

It runs with COMFYUI_PATH and WANVIDEOWRAPPER_PATH set: pytest -m comfyui. The wrapper's own loader, model, empty embeds
and sampler are used; its text encoder and VAE are replaced by stubs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.comfy_server import example, message

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1800)]
BLOCKS, STEPS = 30, 3


def texts(done: dict[str, Any]) -> str:
    assert done["status"]["status_str"] == "success", message(done)
    return " ".join("".join(out["text"]) for out in done["outputs"].values() if "text" in out)


def of_class(prompt: dict[str, Any], kind: str) -> str:
    return next(key for key, data in prompt.items() if data["class_type"] == kind)


def latent_of(prompt: dict[str, Any]) -> dict[str, Any]:
    """Return the prompt with the sampler's result saved instead of decoded."""
    sampler = of_class(prompt, "WanVideoSampler")
    out = {k: d for k, d in prompt.items() if d["class_type"] not in ("SaveAnimatedWEBP", "StandInWanDecode")}
    out["90"] = {"class_type": "SaveLatent", "inputs": {"samples": [sampler, 0], "filename_prefix": "test"}}
    return out


def plain(text: str = "") -> dict[str, Any]:
    """Return the simple example without any wanscope node. text: another positive prompt."""
    prompt = latent_of(example("simple_activation"))
    sampler, loader = of_class(prompt, "WanVideoSampler"), of_class(prompt, "WanVideoModelLoader")
    encode = of_class(prompt, "StandInWanText")
    if text:
        prompt[encode]["inputs"]["positive_prompt"] = text
    prompt[sampler]["inputs"] |= {"model": [loader, 0], "text_embeds": [encode, 0]}
    return {k: d for k, d in prompt.items() if not d["class_type"].startswith(("WanVideoBlock", "WanVideoActivation", "Wanscope"))}  # fmt: skip  # noqa: E501


def editor(prompt: dict[str, Any]) -> dict[str, Any]:
    return prompt[of_class(prompt, "WanVideoActivationEditor")]["inputs"]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [("simple_activation", 7), ("amplified_injection", 29), ("features_showcase", 30), ("debug_workflow", 15)],
)
def test_wrapper_examples_run_to_the_end(wrapped, name, blocks):
    said = texts(wrapped.run(example(name)))
    assert f"applied {blocks * STEPS} of {blocks * STEPS} due" in said, said


def test_identities_hold_through_the_wrappers_sampler(wrapped):
    base = wrapped.latent(plain())
    prompt = latent_of(example("simple_activation"))
    donor = plain(prompt[editor(prompt)["injection_embeds"][0]]["inputs"]["positive_prompt"])
    editor(prompt).update(injection_strength=1.0, block_activations="all")
    assert torch.equal(wrapped.latent(prompt), wrapped.latent(donor))
    assert not torch.allclose(wrapped.latent(donor), base, atol=1e-2)
    editor(prompt)["injection_strength"] = 0.0
    assert torch.equal(wrapped.latent(prompt), base)
    half = []
    for strength in (0.5, 0.9, 0.5):
        editor(prompt).update(injection_strength=strength, log_level="basic" if half else "off")
        half.append(wrapped.latent(prompt))
    assert torch.equal(half[0], half[2]) and not torch.equal(half[0], half[1])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"injection_embeds": None}, "has no injection_embeds"),
        ({"block_activations": "10" * 20}, "this model has 30 blocks"),
        ({"block_activations": "30"}, "there is no block 30"),
    ],
    ids=str,
)
def test_faults_are_reported_on_the_node(wrapped, change, said):
    prompt = example("simple_activation")
    inputs = editor(prompt)
    inputs.update(change)
    if "injection_embeds" in change:
        del inputs["injection_embeds"]
    found = message(wrapped.run(prompt))
    assert found.startswith("WanVideoActivationEditor") and said in found, found


def test_older_names_of_inputs_reach_the_model(wrapped):
    prompt = latent_of(example("simple_activation"))
    expected = wrapped.latent(prompt)
    inputs = editor(prompt)
    inputs["activation_pattern"] = inputs.pop("block_activations")
    inputs["text_embeds_injection"] = inputs.pop("injection_embeds")
    inputs["log_level"] = "basic"  # another node, not a cached result
    assert torch.equal(wrapped.latent(prompt), expected)


def test_memory_after_ten_edited_runs_equals_that_after_one(wrapped):
    prompt = latent_of(example("simple_activation", WanVideoSampler={"steps": 2}))
    found = []
    for i in range(11):
        editor(prompt)["injection_strength"] = 0.05 * (i + 1)
        wrapped.latent(prompt)
        found.append(wrapped.get("/stand_ins/memory"))
    first, last = found[0], found[-1]
    print(first, last)
    assert last["tensors"] <= first["tensors"] and last["bytes"] <= first["bytes"]
    assert last["ours"] == first["ours"]
    assert last["rss_kib"] < first["rss_kib"] + 64 * 1024  # tolerance for the allocator

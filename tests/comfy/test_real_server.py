"""The pack in a real ComfyUI, on tiny random checkpoints: COMFYUI_PATH=... pytest -m comfyui."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.comfy_server import example, message
from wanscope.doors.comfy import NODES

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1200)]
NATIVE = ("simple_injection", "block_strengths", "concept_direction", "attention_overlay", "two_experts")


def graph(*, unet: str = "tiny.safetensors", positive: str = "castle at dusk", **edit: Any) -> dict[str, Any]:
    """Return a short prompt that saves its latent; with `edit`, an injection comes before the sampler."""
    wide = unet.startswith("tiny_5b")
    latent = (
        {"class_type": "Wan22ImageToVideoLatent", "inputs": {"vae": ["9", 0], "width": 64, "height": 64, "length": 9, "batch_size": 1}}  # noqa: E501
        if wide
        else {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 64, "height": 64, "length": 9, "batch_size": 1}}  # noqa: E501
    )  # fmt: skip
    out = {
        "1": {"class_type": "UNETLoader", "inputs": {"unet_name": unet, "weight_dtype": "default"}},
        "2": {"class_type": "StandInClip", "inputs": {}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": positive}},
        "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "bad"}},
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 0], "text": "a beach at noon with palms"}},
        "6": latent,
        "7": {"class_type": "KSampler", "inputs": {
            "model": ["8", 0] if edit else ["1", 0], "seed": 1, "steps": 3, "cfg": 4.0, "sampler_name": "euler",
            "scheduler": "simple", "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["6", 0], "denoise": 1.0,
        }},
        "9": {"class_type": "StandInVae", "inputs": {}},
        "10": {"class_type": "SaveLatent", "inputs": {"samples": ["7", 0], "filename_prefix": "test"}},
    }  # fmt: skip
    if edit:
        given = {
            "strength": 0.5, "blocks": "all", "where": "context", "mode": "mix", "start_percent": 0.0,
            "end_percent": 1.0, "branch": "cond", "log_level": "off", **edit,
        }  # fmt: skip
        inputs = {"model": ["1", 0], "donor": ["5", 0], **given}
        out["8"] = {"class_type": "WanscopeInjectPrompt", "inputs": inputs}
    return out


def test_every_id_is_registered_with_its_signature(comfy):
    info = comfy.get("/object_info")
    for name, node in NODES.items():
        found, declared = info[name], node.INPUT_TYPES()
        assert found["python_module"] == "custom_nodes.wanscope"
        for kind in ("required", "optional"):
            assert found["input_order"].get(kind, []) == list(declared.get(kind, {}))
        assert found["output"] == list(node.RETURN_TYPES) and found["display_name"] == node.TITLE
    assert comfy.get("/wanscope/facts")["owners"] == {}
    assert "wanscope:" not in comfy.log.read_text()  # nothing is logged unless asked


@pytest.mark.parametrize("name", NATIVE)
def test_native_examples_run_to_the_end(comfy, name):
    done = comfy.run(example(name))
    assert done["status"]["status_str"] == "success", message(done)
    texts = " ".join("".join(out["text"]) for out in done["outputs"].values() if "text" in out)
    assert "applied" in texts or name == "attention_overlay"


def test_identities_hold_through_ksampler(comfy):
    base = comfy.latent(graph())
    donor = comfy.latent(graph(positive="a beach at noon with palms"))
    assert not torch.allclose(base, donor, atol=1e-2)
    for mode in ("mix", "tokens"):
        assert torch.equal(comfy.latent(graph(strength=1.0, mode=mode)), donor)
    assert torch.equal(comfy.latent(graph(strength=0.0)), base)
    both = graph(strength=1.0, blocks="2", where="hidden", operation="replace")
    assert torch.equal(comfy.latent(both), comfy.latent(graph(strength=1.0, blocks="0-1")))


def test_changed_strengths_give_the_same_result_as_a_new_server(comfy):
    half = comfy.latent(graph(strength=0.5))
    assert not torch.equal(comfy.latent(graph(strength=0.9)), half)
    assert torch.equal(comfy.latent(graph(strength=0.5, log_level="basic")), half)  # another node, not a cached result
    base = comfy.latent(graph())
    comfy.post("/free", {"unload_models": True, "free_memory": True})
    assert torch.equal(comfy.latent(graph(strength=0.5)), half)
    assert torch.equal(comfy.latent({**graph(), "11": {"class_type": "StandInClip", "inputs": {}}}), base)


def test_the_5b_type_runs(comfy):
    prompt = graph(unet="tiny_5b.safetensors", strength=0.5)
    prompt["6"] = {"class_type": "EmptyHunyuanLatentVideo", "inputs": {"width": 64, "height": 64, "length": 9, "batch_size": 1}}  # fmt: skip  # noqa: E501
    assert torch.isfinite(comfy.latent(prompt)).all()


def test_an_edit_that_cannot_act_fails_the_prompt_at_the_sampler(comfy):
    prompt = graph(branch="uncond")
    prompt["7"]["inputs"]["cfg"] = 1.0
    said = message(comfy.run(prompt))
    assert said.startswith("KSampler") and "was due and did not act: no uncond pass was made" in said


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        ({"blocks": "10" * 20}, "this model has 4 blocks"),
        ({"blocks": "7"}, "there is no block 7"),
        ({"blocks": "lat"}, "did you mean 'late'?"),
        ({"mode": "mix", "operation": "add"}, "operations other than blend are for tokens and hidden states"),
    ],
    ids=str,
)
def test_faults_are_reported_on_the_node(comfy, edit, said):
    found = message(comfy.run(graph(**edit)))
    assert found.startswith("WanscopeInjectPrompt") and said in found


def test_a_model_that_is_not_wan_is_refused_on_the_node(comfy):
    prompt = graph(strength=0.5)
    prompt["1"] = {"class_type": "StandInOtherModel", "inputs": {}}
    assert message(comfy.run(prompt)).startswith("WanscopeInjectPrompt: the model is Linear, not a Wan transformer")


def test_memory_after_ten_edited_runs_equals_that_after_one(comfy):
    def prompt(seed: int, **edit: Any) -> dict[str, Any]:
        out = graph(**edit)
        out["7"]["inputs"] |= {"seed": seed, "model": ["16", 0]}
        out["15"] = {"class_type": "WanscopeLearnDirection", "inputs": {"with_1": ["3", 0], "without_1": ["5", 0]}}
        out["16"] = {"class_type": "WanscopeSteerModel", "inputs": {
            "model": ["8", 0], "direction": ["15", 0], "operation": "add", "strength": edit["strength"],
            "blocks": "all", "start_percent": 0.0, "end_percent": 1.0, "branch": "cond",
        }}  # fmt: skip
        out["17"] = {"class_type": "WanscopeCheckEdits", "inputs": {"latent": ["7", 0], "model": ["16", 0]}}
        out["10"]["inputs"]["samples"] = ["17", 0]
        return out

    for name, prompts in {
        "strengths": [prompt(1, strength=0.05 * (i + 1), where="both") for i in range(11)],
        "seeds": [prompt(100 + i, strength=0.5) for i in range(11)],
    }.items():
        found = []
        for one in prompts:
            comfy.latent(one)
            found.append(comfy.get("/stand_ins/memory"))
        first, last = found[0], found[-1]
        print(name, first, last)
        assert last["tensors"] <= first["tensors"] and last["bytes"] <= first["bytes"], name
        assert last["ours"] == first["ours"], name
        assert last["rss_kib"] < first["rss_kib"] + 64 * 1024, name  # tolerance for the allocator


def test_edits_work_together_with_skip_layer_guidance_and_loras(comfy):
    prompt = graph(strength=1.0)
    prompt["12"] = {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["1", 0], "lora_name": "tiny_lora.safetensors", "strength_model": 0.05}}  # fmt: skip  # noqa: E501
    prompt["13"] = {"class_type": "SkipLayerGuidanceDiT", "inputs": {
        "model": ["12", 0], "double_layers": "1", "single_layers": "", "scale": 2.0, "start_percent": 0.0,
        "end_percent": 1.0, "rescaling_scale": 0.0,
    }}  # fmt: skip
    donor = {**graph(positive="a beach at noon with palms"), "12": prompt["12"], "13": prompt["13"]}
    donor["7"]["inputs"]["model"] = ["13", 0]
    prompt["8"]["inputs"]["model"] = ["13", 0]
    assert torch.equal(comfy.latent(prompt), comfy.latent(donor))


def test_prompts_over_time_and_stored_directions_run(comfy):
    prompt = graph(strength=0.0)
    prompt["8"] = {"class_type": "WanscopePromptSchedule", "inputs": {
        "model": ["1", 0], "prompt_1": ["5", 0], "begin_1": 0.0, "interpolate": "step", "branch": "cond",
    }}  # fmt: skip
    assert torch.equal(comfy.latent(prompt), comfy.latent(graph(positive="a beach at noon with palms")))

    steered = graph(strength=0.0)
    steered["8"] = {"class_type": "WanscopeSteerModel", "inputs": {
        "model": ["1", 0], "direction": ["11", 0], "operation": "add", "strength": 0.7, "blocks": "all",
        "start_percent": 0.0, "end_percent": 1.0, "branch": "cond",
    }}  # fmt: skip
    pairs = {"class_type": "WanscopeLearnDirection", "inputs": {"with_1": ["3", 0], "without_1": ["5", 0]}}
    kept = {"direction": ["11", 0], "model": ["1", 0], "name": "real"}
    keeping = {"12": {"class_type": "WanscopeSaveDirection", "inputs": kept}}
    expected = comfy.latent({**steered, "11": pairs, **keeping})
    assert (comfy.folder / "user" / "wanscope" / "directions" / "real.safetensors").is_file()
    load = {"class_type": "WanscopeLoadDirection", "inputs": {"name": "real", "expert": "high noise"}}
    assert torch.allclose(comfy.latent({**steered, "11": load}), expected, atol=1e-4)
    assert not torch.allclose(expected, comfy.latent(graph()), atol=1e-2)

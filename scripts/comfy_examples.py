"""Writes the example workflows for ComfyUI: API prompts and, with a running ComfyUI and a browser, graphs and pictures.

    python scripts/comfy_examples.py http://127.0.0.1:8188              # writes example_workflows/api/*.json
    python scripts/comfy_examples.py http://127.0.0.1:8188 --graphs     # also *.json and *.jpg (needs playwright)

ComfyUI's own front end writes the graphs from the prompts, so that they are the same as if drawn by hand.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "example_workflows"

Prompt = dict[str, Any]
POSITIVE = "a medieval castle on a foggy hillside at dusk, slow camera move"
DONOR = "a tropical beach at midday with clear turquoise water, slow camera move"
NEGATIVE = "blurry, low quality, static"


def node(kind: str, title: str = "", **inputs: Any) -> Prompt:
    """Return a node of an API prompt."""
    found: Prompt = {"class_type": kind, "inputs": inputs}
    return found | ({"_meta": {"title": title}} if title else {})


def native(
    edit: Prompt, *, model: str = "edit", positive: str = "positive", extra: bool = False, steps: int = 20
) -> Prompt:
    """Return a native text-to-video prompt; `edit` are the nodes between the loaders and the sampler, by id."""
    names: Prompt = {
        "unet": node("UNETLoader", unet_name="wan2.1_t2v_1.3B_fp16.safetensors", weight_dtype="default"),
        "clip": node("CLIPLoader", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan"),
        "vae": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        "shift": node("ModelSamplingSD3", model=["unet", 0], shift=8.0),
        "positive": node("CLIPTextEncode", "Prompt", clip=["clip", 0], text=POSITIVE),
        "negative": node("CLIPTextEncode", "Negative prompt", clip=["clip", 0], text=NEGATIVE),
        "empty": node("EmptyHunyuanLatentVideo", width=832, height=480, length=33, batch_size=1),
        **edit,
        "sampler": node(
            "KSampler", model=[model, 0], seed=1, steps=steps, cfg=6.0, sampler_name="uni_pc", scheduler="simple",
            positive=[positive, 0], negative=["negative", 0], latent_image=["empty", 0], denoise=1.0,
        ),
        "check": node("WanscopeCheckEdits", latent=["sampler", 0], model=[model, 0]),
        "decode": node("VAEDecode", samples=["check", 0], vae=["vae", 0]),
    }  # fmt: skip
    if not extra:
        names["save"] = save(["decode", 0])
    return names


def save(images: list[Any]) -> Prompt:
    """Return the node that saves the video."""
    return node(
        "SaveAnimatedWEBP", images=images, filename_prefix="wanscope", fps=16.0, lossless=False, quality=80,
        method="default",
    )  # fmt: skip


def inject(model: str, **inputs: Any) -> Prompt:
    """Return a node that injects a prompt into a model."""
    return node("WanscopeInjectPrompt", model=[model, 0], **inputs)


def donor() -> Prompt:
    """Return the node that encodes the donor."""
    return node("CLIPTextEncode", "Prompt to inject", clip=["clip", 0], text=DONOR)


def wrapper(edit: Prompt, *, model: str = "edit", embeds: list[Any] | None = None) -> Prompt:
    """Return a WanVideoWrapper prompt; `edit` are the nodes between the loaders and the sampler, by id."""
    return {
        "loader": node(
            "WanVideoModelLoader", model="wan2.1_t2v_1.3B_fp16.safetensors", base_precision="bf16",
            quantization="disabled", load_device="main_device", attention_mode="sdpa",
        ),
        "t5": node("LoadWanVideoT5TextEncoder", model_name="umt5-xxl-enc-bf16.safetensors", precision="bf16"),
        "main": node(
            "WanVideoTextEncode", "Prompt", positive_prompt=POSITIVE, negative_prompt=NEGATIVE, t5=["t5", 0]
        ),
        "second": node(
            "WanVideoTextEncode", "Prompt to inject", positive_prompt=DONOR, negative_prompt="", t5=["t5", 0]
        ),
        "image": node("WanVideoEmptyEmbeds", width=832, height=480, num_frames=33),
        **edit,
        "sampler": node(
            "WanVideoSampler", model=[model, 0], image_embeds=["image", 0], text_embeds=embeds or [model, 1],
            steps=20, cfg=6.0, shift=8.0, seed=1, scheduler="unipc", riflex_freq_index=0, force_offload=True,
        ),
        "check": node("WanscopeCheckEdits", latent=["sampler", 0], model=[model, 0]),
        "vae": node("WanVideoVAELoader", model_name="Wan2_1_VAE_bf16.safetensors", precision="bf16"),
        "decode": node(
            "WanVideoDecode", vae=["vae", 0], samples=["check", 0], enable_vae_tiling=False, tile_x=272, tile_y=272,
            tile_stride_x=144, tile_stride_y=128,
        ),
        "save": save(["decode", 0]),
    }  # fmt: skip


def two_experts() -> Prompt:
    """Return a prompt for Wan 2.2: two models with a LoRA each, two samplers that share a schedule, cfg 1."""
    high = "wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors"
    low = "wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors"
    lora = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_{}_noise.safetensors"

    def stage(model: str, latent: list[Any], first: int, last: int, noise: str, rest: str) -> Prompt:
        return node(
            "KSamplerAdvanced", model=[model, 0], add_noise=noise, noise_seed=1, steps=4, cfg=1.0,
            sampler_name="euler", scheduler="simple", positive=["positive", 0], negative=["negative", 0],
            latent_image=latent, start_at_step=first, end_at_step=last, return_with_leftover_noise=rest,
        )  # fmt: skip

    loaders: Prompt = {}
    for name, file in (("high", high), ("low", low)):
        loaders[f"unet_{name}"] = node("UNETLoader", unet_name=file, weight_dtype="default")
        loaders[f"lora_{name}"] = node(
            "LoraLoaderModelOnly", model=[f"unet_{name}", 0], lora_name=lora.format(name), strength_model=1.0
        )
        loaders[f"shift_{name}"] = node("ModelSamplingSD3", model=[f"lora_{name}", 0], shift=5.0)
        loaders[f"edit_{name}"] = inject(
            f"shift_{name}", donor=["donor", 0], strength=0.5, blocks="late", end_percent=0.6
        )
    return {
        "clip": node("CLIPLoader", clip_name="umt5_xxl_fp8_e4m3fn_scaled.safetensors", type="wan"),
        "vae": node("VAELoader", vae_name="wan_2.1_vae.safetensors"),
        "positive": node("CLIPTextEncode", "Prompt", clip=["clip", 0], text=POSITIVE),
        "negative": node("CLIPTextEncode", "Negative prompt", clip=["clip", 0], text=NEGATIVE),
        "donor": donor(),
        **loaders,
        "empty": node("EmptyHunyuanLatentVideo", width=832, height=480, length=33, batch_size=1),
        "first": stage("edit_high", ["empty", 0], 0, 2, "enable", "enable"),
        "second": stage("edit_low", ["first", 0], 2, 10000, "disable", "disable"),
        "check": node("WanscopeCheckEdits", latent=["second", 0], model=["edit_high", 0], model_2=["edit_low", 0]),
        "decode": node("VAEDecode", samples=["check", 0], vae=["vae", 0]),
        "save": save(["decode", 0]),
    }


def examples() -> dict[str, Prompt]:
    """Return all example prompts by name."""
    blocks = node("WanVideoBlockActivationBuilder", preset="late_blocks")
    return {
        "simple_injection": native(
            {"donor": donor(), "edit": inject("shift", donor=["donor", 0], strength=0.5, blocks="late")}
            | {"report": node("WanscopeEditReport", model=["edit", 0])}
        ),
        "block_strengths": native(
            {
                "donor": donor(),
                "bars": node("WanscopeBlockStrengths", shape="linear_rise", base=0.8, blocks=30, values=""),
                "edit": inject("shift", donor=["donor", 0], strength=1.0, blocks="all", block_strengths=["bars", 0]),
                "picture": node("WanVideoStrengthVisualizer", block_strengths=["bars", 0]),
                "difference": node("WanscopePromptDifference", a=["positive", 0], b=["donor", 0], model=["shift", 0]),
            }
        ),
        "concept_direction": native(
            {
                "gothic": node("CLIPTextEncode", "With the concept", clip=["clip", 0], text="a gothic castle at dusk"),
                "plain": node("CLIPTextEncode", "Without it", clip=["clip", 0], text="a castle at dusk"),
                "gothic2": node("CLIPTextEncode", "With the concept", clip=["clip", 0], text="a gothic church"),
                "plain2": node("CLIPTextEncode", "Without it", clip=["clip", 0], text="a church"),
                "learn": node(
                    "WanscopeLearnDirection",
                    with_1=["gothic", 0],
                    without_1=["plain", 0],
                    with_2=["gothic2", 0],
                    without_2=["plain2", 0],
                ),
                "edit": node(
                    "WanscopeSteerModel",
                    model=["shift", 0],
                    direction=["learn", 0],
                    operation="add",
                    strength=1.0,
                    blocks="all",
                ),
            }
        ),
        "attention_overlay": native(
            {
                "words": node("WanscopeWordsOfPrompt", clip=["clip", 0], prompt=POSITIVE, words="castle, hillside"),
                "edit": node("WanscopeWatchAttention", model=["shift", 0], words=["words", 1], blocks="mid"),
                "overlay": node(
                    "WanscopeAttentionOverlay", maps=["edit", 1], images=["decode", 0], word=1, opacity=0.6
                ),
                "save": save(["overlay", 0]),
            },
            positive="words",
            extra=True,
        ),
        "two_experts": two_experts(),
        "simple_activation": wrapper(
            {
                "blocks": blocks,
                "edit": node(
                    "WanVideoActivationEditor",
                    model=["loader", 0],
                    text_embeds=["main", 0],
                    injection_strength=0.5,
                    block_activations=["blocks", 0],
                    injection_embeds=["second", 0],
                ),
                "viewer": node("WanVideoBlockActivationViewer", model=["edit", 0], block_activations=["blocks", 0]),
            }
        ),
        "amplified_injection": wrapper(
            {
                "amplify": node(
                    "WanVideoEmbeddingAmplifier",
                    main_embeds=["main", 0],
                    injection_embeds=["second", 0],
                    target_difference=70.0,
                ),
                "strengths": node("WanVideoBlockStrengthBuilder", pattern="linear_rise", base_strength=0.8),
                "edit": node(
                    "WanVideoAdvancedActivationEditor",
                    model=["loader", 0],
                    text_embeds=["main", 0],
                    block_activations="1" * 40,
                    injection_embeds=["amplify", 0],
                    block_strengths=["strengths", 0],
                ),
                "tester": node("WanVideoInjectionTester", model=["edit", 0], text_embeds=["main", 0]),
            }
        ),
        "features_showcase": wrapper(
            {
                "third": node(
                    "WanVideoTextEncode",
                    "Third prompt",
                    positive_prompt="a castle in bright daylight",
                    negative_prompt="",
                    t5=["t5", 0],
                ),
                "style": node(
                    "WanVideoVectorDifference", text_embeds_a=["main", 0], text_embeds_b=["third", 0], scale=1.0
                ),
                "mixed": node(
                    "WanVideoVectorArithmetic",
                    base_embeds=["second", 0],
                    operation="add",
                    operand_1=["style", 0],
                    weight_1=0.5,
                ),
                "analyze": node("WanVideoEmbeddingAnalyzer", text_embeds=["mixed", 0]),
                "strengths": node("WanVideoBlockStrengthBuilder", pattern="gaussian_peak", base_strength=0.8),
                "picture": node("WanVideoStrengthVisualizer", block_strengths=["strengths", 0]),
                "database": node("WanVideoEmbeddingDatabase", action="stats"),
                "edit": node(
                    "WanVideoAdvancedActivationEditor",
                    model=["loader", 0],
                    text_embeds=["main", 0],
                    block_activations="1" * 40,
                    injection_embeds=["analyze", 1],
                    block_strengths=["strengths", 0],
                ),
            }
        ),
        "debug_workflow": wrapper(
            {
                "blocks": node("WanVideoBlockActivationBuilder", preset="alternating"),
                "edit": node(
                    "WanVideoActivationEditor",
                    model=["loader", 0],
                    text_embeds=["main", 0],
                    injection_strength=1.0,
                    block_activations=["blocks", 0],
                    log_level="verbose",
                    injection_embeds=["second", 0],
                ),
                "viewer": node("WanVideoBlockActivationViewer", model=["edit", 0], text_embeds=["edit", 1]),
                "tester": node("WanVideoInjectionTester", model=["edit", 0], text_embeds=["main", 0]),
            }
        ),
    }


def numbered(prompt: Prompt, info: Prompt) -> Prompt:
    """Return a prompt with numbers as ids, and with the defaults of all widgets that were left out."""
    ids = {name: str(i) for i, name in enumerate(prompt, 1)}
    out: Prompt = {}
    for name, data in prompt.items():
        kinds = info[data["class_type"]]["input"]
        given = dict(data["inputs"])
        inputs: Prompt = {}
        for kind in ("required", "optional"):
            for key, spec in kinds.get(kind, {}).items():
                value = given.pop(key, None)
                if value is None and key.startswith("block_") and kind == "optional" and key != "block_strengths":
                    continue  # toggles and sliders that the preset or shape replaces
                options = spec[1] if len(spec) > 1 else {}
                is_widget = isinstance(spec[0], list) or spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
                if value is None and is_widget and (kind == "required" or "default" in options):
                    value = options.get("default", (spec[0] or [None])[0] if isinstance(spec[0], list) else None)
                if isinstance(value, list):
                    value = [ids[value[0]], value[1]]
                if value is not None:
                    inputs[key] = value
        if given:
            raise SystemExit(f"{data['class_type']} has no inputs {sorted(given)}")
        out[ids[name]] = {"class_type": data["class_type"], "inputs": inputs, "_meta": data.get("_meta", {})}
        if not out[ids[name]]["_meta"]:
            out[ids[name]]["_meta"] = {"title": info[data["class_type"]]["display_name"]}
    return out


def draw(url: str, prompts: dict[str, Prompt], browser: str) -> None:
    """Write each prompt as a graph and a picture of it, with ComfyUI's front end."""
    from playwright.sync_api import sync_playwright  # type: ignore[import-not-found]

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1600, "height": 900})
        page.request.post(f"{url}/settings", data={"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False})
        page.goto(url)
        page.wait_for_function("window.app?.graph && Object.keys(LiteGraph.registered_node_types).length > 100")
        page.wait_for_timeout(3000)
        for name, prompt in prompts.items():
            page.evaluate(_LOAD, [name, prompt])
            page.wait_for_timeout(1000)
            for _ in range(3):  # dialogs on templates and on missing models
                page.keyboard.press("Escape")
                page.wait_for_timeout(300)
            graph = page.evaluate("() => app.graph.serialize()")
            graph.get("extra", {}).pop("frontendVersion", None)
            (FOLDER / f"{name}.json").write_text(json.dumps(graph, indent=1) + "\n")
            page.locator("canvas#graph-canvas").screenshot(path=FOLDER / f"{name}.jpg", type="jpeg", quality=70)
        chromium.close()


_LOAD = """async ([name, prompt]) => {
  await app.loadApiJson(prompt, name);
  const columns = new Map();
  const depth = (node) => {
    if (columns.has(node.id)) return columns.get(node.id);
    columns.set(node.id, 0);
    const before = (node.inputs ?? []).map((i) => i.link).filter((l) => l != null)
      .map((l) => app.graph.getNodeById((app.graph.links[l] ?? app.graph.links.get(l)).origin_id));
    const value = before.length ? 1 + Math.max(...before.map(depth)) : 0;
    columns.set(node.id, value);
    return value;
  };
  const tall = {};
  const nodes = [...app.graph._nodes];
  nodes.forEach(depth);
  const widths = {};
  for (const node of nodes) {
    const size = node.computeSize();
    node.setSize([Math.max(size[0], 260), size[1]]);
    const c = columns.get(node.id);
    widths[c] = Math.max(widths[c] ?? 0, node.size[0]);
  }
  for (const node of nodes) {
    const c = columns.get(node.id);
    let left = 40;
    for (let i = 0; i < c; i++) left += (widths[i] ?? 0) + 60;
    node.pos = [left, 80 + (tall[c] ?? 0)];
    tall[c] = (tall[c] ?? 0) + node.size[1] + 70;
  }
  app.canvas.setDirty(true, true);
  const right = Math.max(...nodes.map((n) => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map((n) => n.pos[1] + n.size[1]));
  const scale = Math.min(1450 / (right + 60), 780 / (bottom + 60), 1);
  app.canvas.ds.scale = scale;
  app.canvas.ds.offset = [60 / scale - 20, 40 / scale - 20];
  return true;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="a running ComfyUI with this pack and WanVideoWrapper")
    parser.add_argument("--graphs", action="store_true", help="also draw them in a browser")
    parser.add_argument("--browser", default="/usr/bin/chromium", help="path of the browser's executable")
    given = parser.parse_args()
    with urllib.request.urlopen(f"{given.url}/object_info") as answer:
        info = json.load(answer)
    prompts = {name: numbered(prompt, info) for name, prompt in examples().items()}
    (FOLDER / "api").mkdir(parents=True, exist_ok=True)
    for name, prompt in prompts.items():
        (FOLDER / "api" / f"{name}.json").write_text(json.dumps(prompt, indent=1) + "\n")
    if given.graphs:
        draw(given.url, prompts, given.browser)


if __name__ == "__main__":
    main()

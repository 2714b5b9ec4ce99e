"""A real ComfyUI with this pack, for tests: COMFYUI_PATH is its folder, COMFYUI_PYTHON its Python, and
WANVIDEOWRAPPER_PATH, if set, the wrapper's folder.

It gets its own folders (models, user, output) with tiny random checkpoints, and a pack with stubs of the text encoder
and the VAE, which ComfyUI supports only in their real sizes, and with a count of what is in memory.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from helpers.layouts import save_transformer
from helpers.tiny import tiny_transformer, transformer_config

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "example_workflows"

STANDINS = """
import collections
import gc
import torch

def row(word, place):
    seed = sum(ord(c) * 31 ** k for k, c in enumerate(word)) % 2**31
    return torch.randn(4096, generator=torch.Generator().manual_seed(seed + place))

class Vocabulary:
    def __init__(self):
        self.inv_vocab = {0: "<pad>", 1: "</s>"}
    def id(self, word):
        piece = "\\u2581" + word
        for key, known in self.inv_vocab.items():
            if known == piece:
                return key
        self.inv_vocab[len(self.inv_vocab)] = piece
        return len(self.inv_vocab) - 1

class Clip:
    def __init__(self):
        self.tokenizer = type("Tokenizer", (), {})()
        self.tokenizer.umt5xxl = Vocabulary()
    def tokenize(self, text):
        ids = [(self.tokenizer.umt5xxl.id(word), 1.0) for word in text.replace(",", "").split()] + [(1, 1.0)]
        return {"umt5xxl": [ids + [(0, 1.0)] * (512 - len(ids))]}
    def encode_from_tokens_scheduled(self, tokens):
        out = torch.zeros(1, 512, 4096)
        for i, (token, _) in enumerate(tokens["umt5xxl"][0]):
            if token:
                out[0, i] = row(self.tokenizer.umt5xxl.inv_vocab[token], i)
        return [[out, {"pooled_output": None}]]

class Vae:
    def decode(self, samples):
        video = samples[0, :3].permute(1, 2, 3, 0).sigmoid()
        return video.repeat_interleave(8, 1).repeat_interleave(8, 2)[None]

class MakeClip:
    RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "run", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}
    def run(self):
        return (Clip(),)

class MakeVae(MakeClip):
    RETURN_TYPES = ("VAE",)
    def run(self):
        return (Vae(),)

class OtherModel(MakeClip):
    RETURN_TYPES = ("MODEL",)
    def run(self):
        found = type("Patcher", (), {"model_options": {}})()
        found.model = torch.nn.Module()
        found.model.diffusion_model = torch.nn.Linear(2, 2)
        return (found,)

class WrapperText:
    RETURN_TYPES, FUNCTION, CATEGORY = ("WANVIDEOTEXTEMBEDS",), "run", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"positive_prompt": ("STRING", {}), "negative_prompt": ("STRING", {})}}
    def run(self, positive_prompt, negative_prompt):
        def rows(text):
            return torch.stack([row(word, i) for i, word in enumerate(text.split())])
        negative = rows(negative_prompt or "none")
        return ({"prompt_embeds": [rows(positive_prompt)], "negative_prompt_embeds": [negative]},)

class WrapperDecode:
    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "test"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",)}}
    def run(self, samples):
        return (Vae().decode(samples["samples"].float().cpu())[0],)

def memory():
    gc.collect()
    found = gc.get_objects()
    tensors = [o for o in found if issubclass(type(o), torch.Tensor)]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    ours = collections.Counter(type(o).__name__ for o in found if str(type(o).__module__).startswith("wanscope."))
    with open("/proc/self/status") as file:
        rss = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
    return {"tensors": len(tensors), "bytes": sum(storages.values()), "ours": ours, "rss_kib": rss}

try:
    from aiohttp import web
    from server import PromptServer
    async def answer(request):
        return web.json_response(memory())
    PromptServer.instance.routes.get("/stand_ins/memory")(answer)
except ImportError:
    pass

NODE_CLASS_MAPPINGS = {
    "StandInClip": MakeClip, "StandInVae": MakeVae, "StandInWanText": WrapperText, "StandInWanDecode": WrapperDecode,
    "StandInOtherModel": OtherModel,
}
"""


class Comfy:
    """A running server. `run(prompt)` waits until a prompt has ended and returns its history entry."""

    def __init__(self, folder: Path, wrapper: Path | None = None) -> None:
        self.folder = folder
        path = Path(os.environ["COMFYUI_PATH"])
        (folder / "custom_nodes" / "stand_ins").mkdir(parents=True)
        (folder / "custom_nodes" / "stand_ins" / "__init__.py").write_text(STANDINS)
        (folder / "custom_nodes" / "wanscope").symlink_to(ROOT)
        models = folder / "models"
        for name in ("diffusion_models", "loras"):
            (models / name).mkdir(parents=True)
        for file, kind in (("tiny.safetensors", "2.1"), ("tiny_low.safetensors", "2.1"), ("tiny_5b.safetensors", "5b")):
            config = transformer_config(kind, heads=1, head_dim=128) | {"text_dim": 4096, "freq_dim": 256}
            save_transformer(models / "diffusion_models" / file, tiny_transformer(config, seed=len(file)))
        if wrapper is not None:
            (folder / "custom_nodes" / "ComfyUI-WanVideoWrapper").symlink_to(wrapper)
            # for an unknown width, the wrapper assumes the 1.3B's 30 blocks with 12 heads
            config = transformer_config("2.1", blocks=30, heads=12, head_dim=16) | {"text_dim": 4096, "freq_dim": 256}
            save_transformer(models / "diffusion_models" / "tiny_wrapped.safetensors", tiny_transformer(config))
        generator = torch.Generator().manual_seed(0)
        key = "diffusion_model.blocks.0.cross_attn.k.lora_{}.weight"
        lora = {key.format("A"): torch.randn(4, 128, generator=generator), key.format("B"): torch.randn(128, 4)}
        save_file(lora, models / "loras" / "tiny_lora.safetensors")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        arguments = ["--cpu", "--disable-api-nodes", "--port", str(port), "--base-directory", str(folder)]
        self.process = subprocess.Popen(
            [python, str(path / "main.py"), *arguments],
            cwd=path,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for _ in range(600):
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        self.stop()
        raise RuntimeError(self.log.read_text()[-3000:])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, data: Any) -> Any:
        body = json.dumps(data).encode()
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        number = self.post("/prompt", {"prompt": prompt})["prompt_id"]
        for _ in range(2400):
            history = self.get(f"/history/{number}")
            if number in history and history[number]["status"].get("completed") is not None:
                return history[number]
            time.sleep(0.25)
        raise AssertionError("the prompt did not end")

    def latent(self, prompt: dict[str, Any]) -> torch.Tensor:
        """Return the latents that the prompt's only SaveLatent node wrote."""
        done = self.run(prompt)
        assert done["status"]["status_str"] == "success", message(done)
        (saved,) = (out["latents"][0] for out in done["outputs"].values() if "latents" in out)
        return load_file(self.folder / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def message(done: dict[str, Any]) -> str:
    """Return the exception that ended a prompt, or "" if it succeeded."""
    found = [data for kind, data in done["status"]["messages"] if kind == "execution_error"]
    return f"{found[0]['node_type']}: {found[0]['exception_message']}" if found else ""


def example(name: str, **changes: Any) -> dict[str, Any]:
    """Return an example's API prompt, small and with the stubs. changes: inputs by class, `{"KSampler": {...}}`."""
    prompt = json.loads((EXAMPLES / "api" / f"{name}.json").read_text())
    for data in prompt.values():
        inputs, kind = data["inputs"], data["class_type"]
        if kind in ("CLIPLoader", "VAELoader"):
            data["class_type"], data["inputs"] = {"CLIPLoader": "StandInClip", "VAELoader": "StandInVae"}[kind], {}
        elif kind == "UNETLoader":
            inputs["unet_name"] = "tiny_low.safetensors" if "low_noise" in inputs["unet_name"] else "tiny.safetensors"
        elif kind == "LoraLoaderModelOnly":
            inputs["lora_name"] = "tiny_lora.safetensors"
        elif kind == "EmptyHunyuanLatentVideo":
            inputs |= {"width": 64, "height": 64, "length": 9}
        elif kind == "KSampler":
            inputs["steps"] = 3
        elif kind == "WanscopeBlockStrengths":
            inputs["blocks"] = 4
        elif kind == "WanVideoModelLoader":
            inputs |= {"model": "tiny_wrapped.safetensors", "base_precision": "fp32"}
        elif kind == "WanVideoTextEncode":
            data["class_type"] = "StandInWanText"
            data["inputs"] = inputs = {key: inputs[key] for key in ("positive_prompt", "negative_prompt")}
        elif kind == "WanVideoDecode":
            data["class_type"], data["inputs"] = "StandInWanDecode", {"samples": inputs["samples"]}
            inputs = data["inputs"]
        elif kind == "WanVideoEmptyEmbeds":
            inputs |= {"width": 64, "height": 64, "num_frames": 9}
        elif kind == "WanVideoSampler":
            inputs["steps"] = 3
        inputs |= changes.get(kind, {})
    left_out = ("LoadWanVideoT5TextEncoder", "WanVideoVAELoader")
    return {key: data for key, data in prompt.items() if data["class_type"] not in left_out}

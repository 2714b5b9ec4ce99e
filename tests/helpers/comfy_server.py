"""A real ComfyUI with this pack, for tests: COMFYUI_PATH names its folder, COMFYUI_PYTHON its Python.

It gets folders of its own (models, user, output) with tiny random checkpoints, and a pack that stands in for the text
encoder and the VAE, which are too large to make up.
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
import torch

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
                seed = sum(ord(c) * 31 ** k for k, c in enumerate(self.tokenizer.umt5xxl.inv_vocab[token])) % 2**31
                out[0, i] = torch.randn(4096, generator=torch.Generator().manual_seed(seed + i))
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

NODE_CLASS_MAPPINGS = {"StandInClip": MakeClip, "StandInVae": MakeVae}
"""


class Comfy:
    """A running server. `run(prompt)` waits for a prompt's end and gives its history entry."""

    def __init__(self, folder: Path) -> None:
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
        """What the prompt's only SaveLatent node wrote."""
        done = self.run(prompt)
        assert done["status"]["status_str"] == "success", message(done)
        (saved,) = (out["latents"][0] for out in done["outputs"].values() if "latents" in out)
        return load_file(self.folder / "output" / saved["subfolder"] / saved["filename"])["latent_tensor"]


def message(done: dict[str, Any]) -> str:
    """The exception that ended a prompt, '' where it ended well."""
    found = [data for kind, data in done["status"]["messages"] if kind == "execution_error"]
    return f"{found[0]['node_type']}: {found[0]['exception_message']}" if found else ""


def example(name: str, **changes: Any) -> dict[str, Any]:
    """An example's API prompt, small and on the stand-ins. changes: inputs of nodes by class, `{"KSampler": {...}}`."""
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
        inputs |= changes.get(kind, {})
    return prompt

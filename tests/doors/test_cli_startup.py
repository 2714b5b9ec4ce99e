"""Commands that make nothing import none of the model libraries, and those that look at no device no torch either.

All run one after another in one process, the lightest first, and the loaded packages are checked after each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers import layouts
from helpers.takes import recipe, write_take
from helpers.tiny import tiny_folder, tiny_model, tiny_sentencepiece, tiny_transformer, transformer_config
from wanscope.wan.locate import locate
from wanscope.workspace import Workspace

MODELS = ("diffusers", "transformers", "peft", "accelerate")
# Not needed by a listing or a check either.
DRAWN = ("matplotlib", "plotly", "scipy", "zarr")

SCRIPT = """
import contextlib, io, json, sys
from wanscope.doors.cli import main

runs = []
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        status = main(arguments)
    roots = sorted({name.partition(".")[0] for name in sys.modules})
    runs.append({"arguments": arguments, "status": status, "out": out.getvalue(), "loaded": roots})
json.dump(runs, sys.stdout)
"""


def ran(commands: list[list[str]], folder: Path) -> list[dict]:
    """Return each command's status and output, and the packages that were loaded after it, from a process whose caches
    are in `folder`."""
    caches = {"HF_HUB_CACHE": str(folder / "hub"), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        env={**os.environ, **caches},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def comfy_files(folder: Path) -> Path:
    """Write a transformer in ComfyUI's layout, with its VAE and encoder in the folders next to it, and return its path.

    The tokenizer is inside the encoder's file.
    """
    for name in ("diffusion_models", "text_encoders", "vae"):
        (folder / name).mkdir(parents=True)
    config = {**transformer_config(blocks=1, heads=2, head_dim=128), "rope_max_seq_len": 1024}
    model = tiny_model()
    path = folder / "diffusion_models" / "x.safetensors"
    layouts.save_transformer(path, tiny_transformer(config), layouts.COMFY)
    layouts.save_vae(folder / "vae" / "wan_2.1_vae.safetensors", model.vae, nested=False)
    encoder = folder / "text_encoders" / "umt5_xxl_fp16.safetensors"
    layouts.save_encoder(encoder, model.encoder(), "comfy")
    spiece = torch.tensor(list(tiny_sentencepiece()), dtype=torch.uint8)
    save_file({**load_file(encoder), "spiece_model": spiece}, encoder)
    return path


def test_which_packages_commands_do_not_load(tmp_path: Path) -> None:
    space = Workspace(tmp_path / "out")
    take = write_take(space.takes, recipe())
    folder, file = tiny_folder(tmp_path / "tiny", blocks=2, heads=2), comfy_files(tmp_path / "models")
    assert locate(file).parts["tokenizer"].kind == "file"
    encoder = tmp_path / "models" / "text_encoders" / "umt5_xxl_fp16.safetensors"
    of_file = ["--model", file, "--set", f"components.text_encoder={encoder}"]
    into = ["--output-dir", str(space.folder)]

    def dry(prompt: str, *more: object) -> list[str]:
        size = ["--width", 32, "--height", 32, "--frames", 5, "--steps", 3]
        return [str(word) for word in ("generate", "--dry-run", "-t", prompt, "--negative", "", *size, *more, *into)]

    without_torch = {
        "models": ["models"],
        "models as JSON": ["models", "--json"],
        "expand": ["expand", "a [red|blue] (circle)"],
        "takes": ["takes", *into],
        "show": ["show", take.id, *into],
        "compare": ["compare", take.id, *into],
        "stats": ["db", "stats", *into],
        "list": ["db", "list", *into],
        "search": ["db", "search", "red", *into],
        "check": ["db", "check", *into],
        "sql": ["db", "sql", "SELECT 1", *into],
        "index": ["index", *into],
        "refused": dry("a red elephant", "--model", "marbles"),
    }
    with_torch = {
        "doctor": ["doctor", *into],
        "marbles": dry("a (red) circle", "--model", "marbles", "--store-attention"),
        "large": dry("a red circle", "--model", "wan2.1-t2v-1.3b"),
        "folder": dry("a red circle", "--model", folder, "--edit", "inject 'a cat' into late at 0.4"),
        "file": dry("a red circle", *of_file),
        "too long": dry("red " * 600, *of_file),
    }
    runs = ran([*without_torch.values(), *with_torch.values()], tmp_path)
    by_name = dict(zip([*without_torch, *with_torch], runs, strict=True))
    refused = {"refused", "too long"}
    for name, run in by_name.items():
        assert run["status"] == (2 if name in refused else 0), run
        heavy = [*MODELS, *DRAWN, *(["torch"] if name in without_torch else [])]
        assert not set(heavy) & set(run["loaded"]), f"{name} loads {sorted(set(heavy) & set(run['loaded']))}"
    assert "'elephant'" in by_name["refused"]["out"] and "tokens" in by_name["too long"]["out"]
    assert "0 of 2" in by_name["file"]["out"] and "0 of 4" in by_name["folder"]["out"]

"""Loading a model: from a name, folder or file to a WanModel.

    model = load("wan2.1-t2v-1.3b")
    model = load("wan2.1_t2v_14B_fp8_scaled.safetensors", loras=[("style.safetensors", 0.8)])

Weights are loaded on the CPU (memory-mapped instead of copied, where the device is a GPU and the file has the requested
dtype); placement.py moves them to the device.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open

from wanscope import events
from wanscope.errors import ModelError, nearest
from wanscope.wan import lora as lora_files
from wanscope.wan.identity import weight_files
from wanscope.wan.locate import Part, Source, locate
from wanscope.wan.model import WanModel
from wanscope.wan.pickles import refuse_pickle
from wanscope.wan.tokenizer import load_tokenizer, text_length_of
from wanscope.wan.weights import align, check_finite, listed

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan

DTYPES = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
MEMORY = ("auto", "none", "offload")
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def load(
    spec: str | Path | tuple[str | Path, str | Path],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    loras: Iterable[Any] = (),
    memory: str = "auto",
    encoder: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    with_encoder: bool = True,
    on_event: events.Listener = events.ignore,
) -> WanModel:
    """Load a model.

    spec: a variant's name, a hub id, a folder in diffusers' layout, a .safetensors or .gguf file, or
    "high.safetensors + low.safetensors" (locate.py). device: `auto` is the first GPU, or the CPU without one. dtype:
    that of the transformer; `auto` is the variant's own. loras: paths, (path, weight) or (path, weight, "high" | "low"
    | "both"). memory: auto, none or offload (memory_plan.py). encoder, vae, tokenizer: components that replace the
    model's own. with_encoder: False does not load the text encoder, for prompts whose embeddings are already stored.

    Nothing is unpickled. Raises ModelError where a part is missing, does not fit or would be loaded incorrectly.
    """
    started = time.monotonic()
    if memory not in MEMORY:
        raise ModelError(f"there is no memory mode {memory!r}", nearest(memory, MEMORY))
    torch_device = pick_device(device)
    chosen = list(map(lora_files.as_triple, loras))
    for path, _, _ in chosen:
        _check_lora_path(path)
    on_event(events.ModelLoading(str(spec)))
    source = locate(spec, encoder=encoder, vae=vae, tokenizer=tokenizer, on_event=on_event)
    torch_dtype = pick_dtype(dtype, source)
    model = _build(source, torch_device, torch_dtype, memory, on_event, with_encoder)
    _check_fit(model)
    check_finite(model, {name: part.path for name, part in source.parts.items()})
    if torch_device.type == "cpu":
        for module in (*model.experts(), model.vae, model.text_encoder):
            if module is not None:
                align(module)
    model.spec = " + ".join(map(str, spec)) if isinstance(spec, tuple) else str(spec)
    lora_files.apply_all(model, chosen, on_event)
    on_event(
        events.ModelReady(
            model.variant.name, str(torch_device), SHORT.get(torch_dtype, str(torch_dtype)), time.monotonic() - started
        )
    )
    return model


def identify(
    spec: str | Path | tuple[str | Path, str | Path],
    *,
    encoder: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    on_event: events.Listener = events.ignore,
) -> tuple[Source, dict[str, str]]:
    """Return what `load` would load and the identity that the model would have, without loading weights."""
    source = locate(spec, encoder=encoder, vae=vae, tokenizer=tokenizer, on_event=on_event)
    return source, source.identity()


def pick_device(device: str | torch.device) -> torch.device:
    """Return the torch device; `auto` is the first GPU, or the CPU without one.

    Raises ModelError for a device that does not exist.
    """
    if isinstance(device, torch.device):
        return device
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ModelError(f"{device!r} is not a device", "use auto, cpu, cuda or cuda:1") from None
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"the device {device} is not available", "torch finds no CUDA GPU", "wanscope doctor")
    return found


def device_name(device: torch.device) -> str:
    """Return the device's name as it is stored in a take's environment: torch's name, and the model of a GPU."""
    return f"cuda {torch.cuda.get_device_name(device)}" if device.type == "cuda" else str(device)


def pick_dtype(dtype: str | torch.dtype, source: Source) -> torch.dtype:
    """Return the transformer's dtype; `auto` is the variant's own: bf16, or fp32 for marbles and tiny models.

    Raises ModelError for a name that is not a dtype.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return DTYPES[_stored(source.parts["transformer"]) if source.variant.hub_id is None else source.variant.dtype]
    if dtype not in DTYPES:
        raise ModelError(f"{dtype!r} is not a dtype", nearest(dtype, DTYPES))
    return DTYPES[dtype]


def _stored(part: Part) -> str:
    """Return fp32 or bf16 according to how a model that is not in the table is stored; fp16 files are run in fp32."""
    files = weight_files(part.path) if part.kind == "folder" else [part.path]
    if not files or files[0].suffix != ".safetensors":
        return "bf16"
    with safe_open(files[0], framework="pt") as handle:
        stored = {handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return "bf16" if "BF16" in stored or any(name.startswith("F8") for name in stored) else "fp32"


def _check_lora_path(path: Path) -> None:
    refuse_pickle(path)
    if not os.path.isfile(path):
        raise ModelError(f"there is no LoRA file {path}")


def _build(
    source: Source,
    device: torch.device,
    dtype: torch.dtype,
    memory: str,
    on_event: events.Listener,
    with_encoder: bool,
) -> WanModel:
    encoder_dtype = torch.float32 if dtype == torch.float32 else torch.bfloat16  # UMT5 overflows in fp16
    parts = source.parts
    tokenizer = load_tokenizer(parts["tokenizer"], source.variant.text_length)
    second = parts.get("transformer_2")
    return WanModel(
        variant=source.variant,
        transformer=_transformer(parts["transformer"], dtype, on_event),
        transformer_2=None if second is None else _transformer(second, dtype, on_event),
        vae=_vae(parts["vae"]),
        text_encoder=_encoder(parts["text_encoder"], encoder_dtype) if with_encoder else None,
        tokenizer=tokenizer,
        scheduler_config=source.scheduler,
        boundary_ratio=source.boundary_ratio,
        expand_timesteps=source.expand_timesteps,
        device=device,
        dtype=dtype,
        text_length=text_length_of(tokenizer),
        identity=source.identity(),
        description=source.description,
        memory=memory,
    )


def _transformer(part: Part, dtype: torch.dtype, on_event: events.Listener):
    from diffusers import WanTransformer3DModel

    if part.kind == "folder":
        return _pretrained(WanTransformer3DModel, part.path, torch_dtype=dtype)
    if part.path.suffix.lower() == ".gguf":
        from wanscope.wan import gguf

        return gguf.load(part.path, dtype)
    from wanscope.wan import single_file

    transformer, scaled = single_file.load(part.path, dtype)
    if scaled:
        on_event(events.Note(f"{part.path.name} contains scaled fp8 weights; they are converted to {SHORT[dtype]}"))
    return transformer


def load_vae(source: Source) -> AutoencoderKLWan:
    """Load only a model's VAE, in fp32 on the CPU."""
    return _vae(source.parts["vae"]).eval().requires_grad_(False)


def _vae(part: Part):
    from diffusers import AutoencoderKLWan

    if part.kind == "file":
        from wanscope.wan import vae_file

        return vae_file.load(part.path, torch.float32)
    return _pretrained(AutoencoderKLWan, part.path, torch_dtype=torch.float32)


def _encoder(part: Part, dtype: torch.dtype):
    from transformers import UMT5EncoderModel

    if part.kind == "file":
        from wanscope.wan import encoder_file

        return encoder_file.load(part.path, dtype)
    return _pretrained(UMT5EncoderModel, part.path, dtype=dtype)


def _pretrained(cls: Any, folder: Path, **options: Any):
    options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        with _without_progress_bars():
            module, info = cls.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"{folder} cannot be loaded", reason[:300]) from None
    gone = [*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])]
    if cls.__module__.startswith("diffusers") and info["unexpected_keys"]:
        extra = list(info["unexpected_keys"])
        why = f"{len(extra)} tensors would be dropped: {listed(extra)}. The folder needs the model's own config.json"
        raise ModelError(f"{folder} does not fit its config", why)
    if gone:  # the libraries fill these with random numbers and only log it
        raise ModelError(
            f"{folder} does not contain all weights", f"{len(gone)} are missing or have another shape: {listed(gone)}"
        )
    return module.eval().requires_grad_(False)


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Turn off the libraries' own progress bars: the core emits events and never prints."""
    import diffusers.utils.logging
    import transformers.utils.logging

    shown = [
        library
        for library in (diffusers.utils.logging, transformers.utils.logging)
        if library.is_progress_bar_enabled()
    ]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


def load_encoder(source: Source, dtype: torch.dtype):
    """Load only the text encoder of a model that was found, on the CPU."""
    return _encoder(source.parts["text_encoder"], dtype)


def _check_fit(model: WanModel) -> None:
    """Raise ModelError unless the components belong together."""
    config, vae = model.transformer.config, model.vae.config
    if vae["z_dim"] != config["out_channels"]:
        fitting = model.variant.files.vae
        raise ModelError(
            "the VAE does not fit the transformer",
            f"it has {vae['z_dim']} latent channels and the transformer {config['out_channels']}",
            f"components: {{vae: {fitting[0]}}}" if fitting else "",
        )
    encoder = model.text_encoder
    if encoder is not None and encoder.config.d_model != config["text_dim"]:
        raise ModelError(
            "the text encoder does not fit the transformer",
            f"it has {encoder.config.d_model} values per token and the transformer takes {config['text_dim']}",
        )

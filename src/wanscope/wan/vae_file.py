"""Loads a Wan VAE from a single safetensors file, in the original layout (2.1 or 2.2) or diffusers' own.

diffusers' table covers the 2.1 VAE. The 2.2 VAE has nested blocks (`encoder.downsamples.0.downsamples.1.residual.2`),
whose names are mapped here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from wanscope.errors import ModelError
from wanscope.wan import scaled_fp8
from wanscope.wan.constants import VAE_2_1, VAE_2_2
from wanscope.wan.weights import WeightFile, fill, listed, open_weights

PREFIXES = ("", "vae.", "first_stage_model.", "model.")
ORIGINAL, DIFFUSERS = "decoder.conv1.weight", "decoder.conv_in.weight"
RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}


def _nested_name(name: str) -> str:
    """Return diffusers' name of a tensor of the 2.2 VAE."""
    match = re.fullmatch(r"(encoder|decoder)\.(down|up)samples\.(\d+)\.\2samples\.(\d+)\.(.+)", name)
    if not match:
        return next(iter(convert_wan_vae_to_diffusers({name: name})))
    side, way, block, index, rest = match.groups()
    head = f"{side}.{way}_blocks.{block}"
    if rest.startswith(("resample.", "time_conv.")):
        return f"{head}.{way}sampler.{rest}"
    for old, new in {**RESIDUAL, "shortcut": "conv_shortcut"}.items():
        if rest.startswith(f"{old}."):
            return f"{head}.resnets.{index}.{new}.{rest.removeprefix(f'{old}.')}"
    return name


def _names(file: WeightFile, plain: tuple[str, ...]) -> dict[str, str]:
    """Return {diffusers' name: name in the file}."""
    if DIFFUSERS in plain:
        return {name: name for name in plain}
    if ORIGINAL not in plain:
        raise ModelError(
            f"{file.path} is not a Wan VAE",
            f"it has neither {ORIGINAL} (original layout) nor {DIFFUSERS} (diffusers); it has {listed(file.names)}",
        )
    if any(re.match(r"encoder\.downsamples\.\d+\.downsamples\.", name) for name in plain):
        return {_nested_name(name): name for name in plain}
    return convert_wan_vae_to_diffusers({name: name for name in plain})


def _config(file: WeightFile, names: dict[str, str]) -> dict[str, Any]:
    """Return keyword arguments for AutoencoderKLWan.

    The latent channels determine whether it is the 2.1 or the 2.2 VAE, and shapes determine the widths.
    """

    def shape(name: str) -> tuple[int, ...]:
        if name not in names:
            raise ModelError(f"{file.path} is not a complete Wan VAE", f"it has no tensor {name}")
        return file.shape(names[name])

    z_dim = shape("post_quant_conv.weight")[0]
    families = {family["z_dim"]: family for family in (VAE_2_1, VAE_2_2)}
    if z_dim not in families:
        raise ModelError(
            f"{file.path} is not a Wan VAE", f"it has {z_dim} latent channels; the VAE of Wan 2.1 has 16, the 5B's 48"
        )
    config = dict(families[z_dim])
    base = shape("encoder.conv_in.weight")[0]
    decoder = shape("decoder.conv_in.weight")[0] // config["dim_mult"][-1]
    return config | {"base_dim": base, "decoder_base_dim": None if decoder == base else decoder}


def _open_names(file: WeightFile) -> tuple[dict[str, str], scaled_fp8.Scales]:
    file.strip(PREFIXES, ORIGINAL if any(name.endswith(ORIGINAL) for name in file.all_names) else DIFFUSERS)
    scales = scaled_fp8.find_scales(file)
    return _names(file, scales.weights), scales


def describe(path: Path) -> dict[str, Any]:
    """Return the config of a VAE file, read from its header alone. Raises ModelError where it is not a Wan VAE."""
    with open_weights(path) as file:
        return _config(file, _open_names(file)[0])


def load(path: Path, dtype: torch.dtype) -> AutoencoderKLWan:
    """Load the VAE in a file on the CPU in `dtype`. Raises ModelError where it is not a complete Wan VAE."""
    with open_weights(path) as file:
        names, scales = _open_names(file)
        config = _config(file, names)
        read = scaled_fp8.reader(file, scales)
        return fill(
            lambda: AutoencoderKLWan(**config),
            {name: file.shape(old) for name, old in names.items()},
            lambda name, target: read(names[name], target),
            dtype,
            what=str(path),
        )

"""Parameter counts of a model, computed from its dims without torch or a model library.

The counts are those of diffusers' WanTransformer3DModel and AutoencoderKLWan and of transformers' UMT5EncoderModel,
layer by layer. tests/wan/test_wan_parameters.py builds the same configs on the meta device and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

from wanscope.wan.variant import Encoder, Variant


@dataclass(frozen=True)
class Counts:
    """Parameters of one expert, of the text encoder and of the VAE."""

    transformer: int
    encoder: int
    vae: int


def counts(variant: Variant) -> Counts:
    """Return the parameter counts of a variant's components."""
    transformer = outside_blocks(variant) + variant.blocks * block(variant)
    return Counts(transformer, encoder(variant.encoder), vae(variant.vae_config()))


# the transformer


def outside_blocks(v: Variant) -> int:
    """Return the parameters of an expert outside its blocks: embeddings and head."""
    cells = prod(v.patch)
    layers = [(v.in_channels * cells, v.dim), (v.freq_dim, v.dim), (v.dim, v.dim), (v.dim, 6 * v.dim)]
    layers += [(v.text_dim, v.dim), (v.dim, v.dim), (v.dim, v.out_channels * cells)]
    if v.image_dim is not None:
        layers += [(v.image_dim, v.image_dim), (v.image_dim, v.dim), (1, v.image_dim), (1, v.dim)]  # two norms last
    return sum(_linear(*sizes) for sizes in layers) + 2 * v.dim


def block(v: Variant) -> int:
    """Return the parameters of one transformer block."""
    d, f = v.dim, v.ffn_dim
    attention = 4 * _linear(d, d) + 2 * d  # queries, keys, values, output, and the norms of queries and keys
    image = 2 * _linear(v.added_kv_dim, d) + d if v.added_kv_dim is not None else 0
    norm, modulation = 2 * d, 6 * d
    return 2 * attention + image + norm + _linear(d, f) + _linear(f, d) + modulation


def _linear(inputs: int, outputs: int) -> int:
    return (inputs + 1) * outputs


# the text encoder


def encoder(e: Encoder) -> int:
    """Return the parameters of a UMT5 encoder.

    No layer has a bias, and every layer has its own table of relative positions.
    """
    attention = 4 * e.d_model * e.heads * e.d_kv + e.buckets * e.heads
    layer = attention + 3 * e.d_model * e.d_ff + 2 * e.d_model
    return e.vocab * e.d_model + e.layers * layer + e.d_model


# the VAE


def vae(config: dict[str, Any]) -> int:
    """Return the parameters of an AutoencoderKLWan with that config."""
    z = config["z_dim"]
    return _vae_encoder(config) + _vae_decoder(config) + _conv(2 * z, 2 * z, 1) + _conv(z, z, 1)


def _vae_encoder(config: dict[str, Any]) -> int:
    mult, attention_at = list(config["dim_mult"]), config["attn_scales"]
    dims = [config["base_dim"] * m for m in (1, *mult)]
    total, scale = _conv(config["in_channels"], dims[0], 27), 1.0
    for level, (c_in, c_out) in enumerate(pairwise(dims)):
        total += _residuals(c_in, c_out, config["num_res_blocks"])
        if not config["is_residual"] and scale in attention_at:
            total += config["num_res_blocks"] * _attention(c_out)
        if level < len(mult) - 1:
            total += _conv(c_out, c_out, 9) + (_conv(c_out, c_out, 3) if config["temperal_downsample"][level] else 0)
            scale /= 2
    return total + _ends(dims[-1], dims[-1], 2 * config["z_dim"])


def _vae_decoder(config: dict[str, Any]) -> int:
    mult = list(config["dim_mult"])
    base = config["decoder_base_dim"] or config["base_dim"]
    dims = [base * m for m in (mult[-1], *reversed(mult))]
    upsamples_time = list(reversed(config["temperal_downsample"]))
    total = _conv(config["z_dim"], dims[0], 27)
    for level, (c_in, c_out) in enumerate(pairwise(dims)):
        if level > 0 and not config["is_residual"]:
            c_in //= 2  # the previous level's upsampling has halved the channels
        total += _residuals(c_in, c_out, config["num_res_blocks"] + 1)
        if level < len(mult) - 1:
            total += _conv(c_out, c_out if config["is_residual"] else c_out // 2, 9)
            total += _conv(c_out, 2 * c_out, 3) if upsamples_time[level] else 0
    return total + _ends(dims[0], dims[-1], config["out_channels"])


def _conv(c_in: int, c_out: int, cells: int) -> int:
    return (c_in * cells + 1) * c_out


def _residuals(c_in: int, c_out: int, count: int) -> int:
    """Return the parameters of `count` residual blocks, the first of which maps c_in channels to c_out."""
    return sum(_residual(c_in if i == 0 else c_out, c_out) for i in range(count))


def _residual(c_in: int, c_out: int) -> int:
    shortcut = _conv(c_in, c_out, 1) if c_in != c_out else 0
    return c_in + _conv(c_in, c_out, 27) + c_out + _conv(c_out, c_out, 27) + shortcut


def _attention(channels: int) -> int:
    return channels + _conv(channels, 3 * channels, 1) + _conv(channels, channels, 1)


def _ends(middle: int, last: int, channels: int) -> int:
    """Return the parameters of the middle block (two residual blocks around one attention layer), and of the norm and
    convolution at the end.
    """
    return 2 * _residual(middle, middle) + _attention(middle) + last + _conv(last, channels, 27)

"""How the tensors of LoRA files are named: which layer of the transformer, and which matrix of its change.

Modules are found by the tail of a name, whatever prefixes a trainer has put before it: `diffusion_model.*` (lightx2v,
Kijai, ComfyUI), `lora_unet_*` (kohya, musubi), `lycoris_*` (LyCORIS), `base_model.model.*` (PEFT), `transformer.*` and,
for the low-noise expert, `transformer_2.*` (diffusers). Names may have "_" for ".".
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from wanscope.wan.single_file import diffusers_names

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel

Kind = Literal["down", "up", "alpha", "bias", "modulation", "magnitude", "factor", "difference"]

# The end of a tensor's name says what it is. NAME is an adapter's: `lora_A.default.weight`.
WEIGHT = r"(?:(?:\.[^.]+)?\.weight)?$"
NAME_AND_WEIGHT = r"(?:\.(?!weight$)[^.]+)?(?:\.weight)?$"  # PEFT's names of parameters that are no layers
ENDS: tuple[tuple[re.Pattern[str], Kind], ...] = (
    (re.compile(rf"[._]lora[._](?:A|down){WEIGHT}"), "down"),
    (re.compile(rf"[._]lora[._](?:B|up){WEIGHT}"), "up"),
    (re.compile(r"[._](?:network_)?alpha$"), "alpha"),
    (re.compile(r"[._]lora[._](?:B|up)(?:\.(?!bias$)[^.]+)?\.bias$"), "bias"),
    (re.compile(r"\.modulation\.diff$|\.diff_m$"), "modulation"),
    (re.compile(rf"[._](?:dora[._]scale|lora[._]magnitude[._]vector){NAME_AND_WEIGHT}"), "magnitude"),
    (re.compile(rf"[._](?P<factor>lokr_w[12](?:_[ab])?|hada_w[12]_[ab]){NAME_AND_WEIGHT}"), "factor"),
    (re.compile(r"\.(?P<factor>diff_b|diff)$"), "difference"),
)
DIFFERENCES = {"diff_b": "bias", "diff": "weight"}
# What may stand before a module's name, with "_" for ".". Trainers nest them: `base_model.model.diffusion_model.`.
PREFIX = re.compile(r"(?:lora|lycoris|unet|base|model|diffusion|transformer|dit|denoiser|pipe|processor|module)_+")
LOW_NOISE = re.compile(r"(?:^|[._])transformer_2[._]")  # diffusers' name of the low-noise expert
NOT_READ = {
    ".lokr_t": "LoKr with a core tensor",
    ".hada_t": "LoHa with a core tensor",
    ".lora_mid": "LoCon with a middle matrix",
    ".oft_": "OFT",
    ".boft_": "BOFT",
    ".glora_": "GLoRA",
}


def _original_modules(blocks: int) -> list[str]:
    """Return the original names of every layer that a LoRA can change."""
    attention = [f"self_attn.{x}" for x in "qkvo"] + [f"cross_attn.{x}" for x in (*"qkvo", "k_img", "v_img")]
    inside = [*attention, "ffn.0", "ffn.2", "norm3", *(f"{a}_attn.norm_{x}" for a in ("self", "cross") for x in "qk")]
    outside = ["time_embedding.0", "time_embedding.2", "text_embedding.0", "text_embedding.2", "time_projection.1"]
    outside += ["patch_embedding", "head.head", *(f"img_emb.proj.{i}" for i in (0, 1, 3, 4))]
    return [f"blocks.{i}.{name}" for i in range(blocks) for name in (*inside, "cross_attn.norm_k_img")] + outside


def modules_of(transformer: WanTransformer3DModel) -> dict[str, str]:
    """Return {name in a file, with "_" for ".": diffusers' module name}, for the original and diffusers' names."""
    # Layers that PEFT has wrapped contain others, which no file names.
    ours = [name for name, _ in transformer.named_modules() if name and ".base_layer" not in name]
    original = {
        old.removesuffix(".weight"): new.removesuffix(".weight")
        for new, old in diffusers_names(f"{name}.weight" for name in _original_modules(len(transformer.blocks))).items()
    }
    known = {name: name for name in ours} | {old: new for old, new in original.items() if new in set(ours)}
    # Modulations are parameters of the blocks and of the model itself.
    known |= {f"blocks.{i}": f"blocks.{i}" for i in range(len(transformer.blocks))} | {"head": ""}
    return {name.replace(".", "_"): module for name, module in known.items()}


def module_of(bare: str, modules: dict[str, str]) -> str | None:
    """Return the module that a name without its end means, whatever prefixes it has, or None."""
    name = LOW_NOISE.sub(".", bare).replace(".", "_").lstrip("_")
    while name not in modules:
        prefix = PREFIX.match(name)
        if prefix is None:
            return None
        name = name[prefix.end() :]
    return modules[name]


def what_is(name: str) -> tuple[Kind, str, str] | None:
    """Return a tensor's kind, the name of its module in the file, and which factor or difference it is ("" if none).

    None where its name is not known.
    """
    for pattern, kind in ENDS:
        if (end := pattern.search(name)) is not None:
            factor = end["factor"] if "factor" in pattern.groupindex else ""
            return kind, name[: end.start()], factor
    return None

"""Where a model's components are: from what the user wrote to a folder or file for each one.

    marbles, wan2.1-t2v-14b          the name of a variant
    Wan-AI/Wan2.1-T2V-14B-Diffusers  a hub id
    ./my-wan                         a folder in diffusers' layout
    wan2.1_t2v_14B_fp16.safetensors  one file: original, ComfyUI-repackaged or diffusers' layout
    wan2.1-t2v-14b-Q4_K_M.gguf
    high.safetensors + low.safetensors   the two experts of Wan 2.2

A single file contains only the transformer. Its encoder, tokenizer and VAE are the given ones, or else files with the
usual names next to it (or in ComfyUI's folders), or else those of the variant's hub repository.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wanscope import events
from wanscope.errors import ModelError
from wanscope.wan import download, identity, tokenizer_files, variants
from wanscope.wan.experts import SUFFIXES, in_order, refuse_half, split_pair
from wanscope.wan.file_kinds import shard_files
from wanscope.wan.pickles import PICKLES, is_pickle, refuse_pickle
from wanscope.wan.variant import Files, Variant

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
COMFY_FOLDERS = {"text_encoder": ("text_encoders", "clip"), "vae": ("vae",)}


@dataclass(frozen=True)
class Part:
    """One component: a folder in diffusers' layout or a single file."""

    kind: Literal["folder", "file"]
    path: Path

    def hash(self) -> str:
        """Return the SHA-256 of the component's weights in hex (identity.py)."""
        if self.kind == "folder":
            return identity.folder_hash(self.path)
        return identity.files_hash(shard_files(self.path))

    def config(self) -> dict[str, Any]:
        """Return the content of a folder's config.json."""
        return json.loads((self.path / "config.json").read_text())


@dataclass(frozen=True)
class Source:
    """All components of one model."""

    variant: Variant
    parts: dict[str, Part]
    scheduler: dict[str, Any]
    description: str
    boundary_ratio: float | None = None
    expand_timesteps: bool = False

    def identity(self) -> dict[str, str]:
        """Return {component: SHA-256 of its weights}. Files are read, but nothing is loaded."""
        return {name: part.hash() for name, part in sorted(self.parts.items())}


def locate(
    spec: str | Path | tuple[str | Path, str | Path],
    *,
    encoder: str | Path | None = None,
    vae: str | Path | None = None,
    tokenizer: str | Path | None = None,
    on_event: events.Listener = events.ignore,
) -> Source:
    """Find every component of a model, downloading what is not in the cache.

    The arguments are those of `load`. Raises ModelError, which says what is missing.
    """
    given = spec if isinstance(spec, tuple) else split_pair(str(spec))
    paths = [Path(os.path.expanduser(part)) for part in given]
    if all(_looks_like_a_file(path) for path in paths):
        return _from_files(paths, encoder, vae, tokenizer, on_event)
    name = str(spec)
    folder = Path(os.path.expanduser(name))
    if os.path.isdir(folder):
        source = _from_folder(folder, str(folder.resolve().name), str(folder))
    elif name.strip().lower() == "marbles":
        source = _marbles()
    else:
        hub_id = _hub_id(name)
        source = _from_folder(download.snapshot(hub_id, on_event), hub_id, hub_id)
    given = {"text_encoder": encoder, "vae": vae, "tokenizer": tokenizer}
    replaced = {k: _given_part(k, v, on_event) for k, v in given.items() if v is not None}
    return replace(source, parts={**source.parts, **replaced}) if replaced else source


def _looks_like_a_file(path: Path) -> bool:
    return os.path.isfile(path) or path.suffix.lower() in (*SUFFIXES, *PICKLES)


def _hub_id(name: str) -> str:
    """Return the hub id of the variant called `name`, or `name` itself where it is a hub id."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model at {name}", "the folder or file does not exist")
    if HUB_ID.fullmatch(name):
        return name
    variant = variants.resolve(name)
    assert variant.hub_id is not None
    return variant.hub_id


def _marbles() -> Source:
    folder = variants.MARBLES_WEIGHTS
    if not (folder / "model_index.json").is_file():
        raise ModelError(
            "the weights of marbles are missing",
            f"they ship with the package, but {folder} has no model_index.json",
            "pip install --force-reinstall wanscope",
        )
    source = _from_folder(folder, "marbles", "marbles")
    return replace(source, variant=variants.VARIANTS["marbles"])


def _from_folder(folder: Path, name: str, shown: str) -> Source:
    gone = download.missing(folder)
    if "model_index.json" in gone and _is_original(folder):
        raise ModelError(
            f"{shown} has the layout of Wan's original repositories",
            "its VAE and text encoder are pickles, which are never opened. Use the repository in diffusers' layout, "
            "whose name ends in -Diffusers, or the transformer's files with a VAE and a text encoder as safetensors",
            f'--model "{folder}/{_original_transformer(folder)}" --vae {Files().vae[0]} --text-encoder '
            f"{Files().encoder[0]}",
        )
    if gone == ["model_index.json"] and (folder / "config.json").is_file():
        raise ModelError(
            f"{shown} is a single component, not a complete model",
            "a folder in diffusers' layout has model_index.json, transformer/, vae/, text_encoder/ and tokenizer/",
            str(folder.parent),
        )
    if gone:
        pickles = sorted(str(p.relative_to(folder)) for s in PICKLES for p in folder.glob(f"*/*{s}"))
        why = f"it has no {', '.join(gone[:4])}"
        if pickles:
            why += f"; {pickles[0]} is a pickle, which can run any code when it is loaded, and is never opened"
        raise ModelError(f"{shown} is not a complete model in diffusers' layout", why)
    index = json.loads((folder / "model_index.json").read_text())
    two = bool((index.get("transformer_2") or [None])[0])
    names = ["transformer", *(["transformer_2"] if two else []), "vae", "text_encoder", "tokenizer"]
    parts = {part: Part("folder", folder / part) for part in names}
    absent = [part for part in names if not (folder / part).is_dir()]
    if absent:
        raise ModelError(f"{shown} is not a complete Wan model", f"it has no {', '.join(absent)}")
    _check_class(shown, parts["transformer"].config().get("_class_name"))
    variant = variants.from_configs(
        name,
        parts["transformer"].config(),
        parts["vae"].config(),
        parts["text_encoder"].config(),
        experts=2 if two else 1,
        boundary_ratio=index.get("boundary_ratio"),
        expand_timesteps=bool(index.get("expand_timesteps")),
        text_length=_text_length(folder / "tokenizer"),
    )
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    variant = _without_long_negative(variant, folder / "tokenizer")
    if scheduler_file.is_file():
        scheduler = json.loads(scheduler_file.read_text())
        variant = variants.with_scheduler(variant, scheduler)
    else:
        scheduler = variant.scheduler_config()
    return Source(
        variant,
        parts,
        scheduler,
        f"{variant.title} from {shown}",
        index.get("boundary_ratio"),
        bool(index.get("expand_timesteps")),
    )


def _is_original(folder: Path) -> bool:
    """Return whether a folder is a copy of one of Wan's original repositories, or an expert's folder in one."""
    places = [folder, *(folder / name for name in ("high_noise_model", "low_noise_model"))]
    files = [place / "config.json" for place in places if (place / "config.json").is_file()]
    pickles = any(folder.glob("Wan2*_VAE.pth")) or any(folder.glob("models_t5_*.pth"))
    return pickles or any('"WanModel"' in file.read_text(encoding="utf-8") for file in files)


def _original_transformer(folder: Path) -> str:
    """Return the name of the first weight file of an original repository's transformer."""
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*_noise_model/*.safetensors"))
    return files[0].relative_to(folder).as_posix() if files else "diffusion_pytorch_model.safetensors"


def _without_long_negative(variant: Variant, tokenizer: Path) -> Variant:
    """Return the variant without its default negative prompt, where a folder reads too few tokens for it."""
    own = variant.defaults
    if variant.text_length >= Variant.text_length or not own.negative_prompt:
        return variant
    reader = tokenizer_files.from_folder(tokenizer)
    if reader is None:
        return variant
    count = len(reader(own.negative_prompt)["input_ids"])
    if count <= variant.text_length:
        return variant
    why = f"the default negative prompt is left out: it has {count} tokens, and the model reads {variant.text_length}"
    return replace(variant, defaults=replace(own, negative_prompt=""), negative_note=why)


def _check_class(shown: str, name: str | None) -> None:
    if name not in (None, "WanTransformer3DModel"):
        raise ModelError(f"{shown} is not a Wan text-to-video model", f"its transformer is a {name}", "wanscope models")


def _text_length(tokenizer: Path) -> int:
    """Return the text length as tokenizer.text_length_of does, but from the folder's config."""
    file = tokenizer / "tokenizer_config.json"
    limit = json.loads(file.read_text()).get("model_max_length") if os.path.isfile(file) else None
    return int(min(limit or 512, 512))


def _from_files(
    paths: list[Path],
    encoder: str | Path | None,
    vae: str | Path | None,
    tokenizer: str | Path | None,
    on_event: events.Listener,
) -> Source:
    for path in paths:
        _refuse(path)
    if len(paths) > 2:
        raise ModelError(f"{len(paths)} transformer files were given", "a Wan model has one or two experts")
    configs = [describe(path) for path in paths]
    if len(paths) == 2 and configs[0] != configs[1]:
        raise ModelError(
            "the two files are not experts of one model", f"{paths[0]} and {paths[1]} differ in their dims"
        )
    if len(paths) == 2:
        ordered, named = in_order(*paths)
        if not named:
            on_event(events.Note(f"{paths[0]} is taken for the high-noise expert, because it comes first"))
        paths = list(ordered)
    variant = _variant_of_files(paths, configs[0])
    given = {"text_encoder": encoder, "vae": vae, "tokenizer": tokenizer}
    parts = {"transformer": Part("file", paths[0])}
    if len(paths) == 2:
        parts["transformer_2"] = Part("file", paths[1])
    for name, value in given.items():
        if value is not None:
            parts[name] = _given_part(name, value, on_event)
    for name, names in (("text_encoder", variant.files.encoder), ("vae", variant.files.vae)):
        if name not in parts and (found := _find_nearby(paths[0], names, COMFY_FOLDERS[name])):
            parts[name] = Part("file", found)
            on_event(events.Note(f"{name.replace('_', ' ')}: {found}"))
    _tokenizer_with_encoder(parts)
    wanted = [name for name in given if name not in parts]
    if wanted:
        parts |= _from_hub(variant, paths[0], wanted, on_event)
    shown = " + ".join(str(path) for path in paths)
    return Source(
        variant,
        parts,
        variant.scheduler_config(),
        f"{variant.title} from {shown}",
        variant.boundary_ratio,
        variant.expand_timesteps,
    )


def describe(path: Path) -> dict[str, Any]:
    """Return the transformer config of a single file, read from its header.

    Raises ModelError where the file is not a Wan transformer.
    """
    if path.suffix.lower() == ".gguf":
        from wanscope.wan import gguf

        return gguf.describe(path)
    from wanscope.wan import single_file

    return single_file.describe(path)


def _refuse(path: Path) -> None:
    if is_pickle(path):
        names = tuple(name for v in variants.VARIANTS.values() for name in v.files.transformer)
        refuse_pickle(path, tuple(difflib.get_close_matches(path.stem + ".safetensors", names, n=1)))
    if not os.path.isfile(path):
        raise ModelError(f"there is no file {path}")


def _variant_of_files(paths: list[Path], config: dict[str, Any]) -> Variant:
    """Return the variant of one or two transformer files. Their dims decide, and where those are shared, the name."""
    experts, channels = len(paths), config["out_channels"]
    five_b = channels == 48
    # Only Wan 2.2's A14B models have two experts.
    if experts == 1 and not five_b and not _has_one_expert(paths[0], config):
        refuse_half(paths[0])
    vae = variants.VARIANTS["wan2.2-ti2v-5b" if five_b else "wan2.1-t2v-1.3b"].vae_config()
    image = config["in_channels"] != channels
    boundary = None if experts == 1 else (0.9 if image else 0.875)
    return variants.from_configs(
        paths[0].stem.lower().replace("_", "-"),
        config,
        vae,
        experts=experts,
        boundary_ratio=boundary,
        expand_timesteps=five_b,
    )


def _has_one_expert(path: Path, config: dict[str, Any]) -> bool:
    """Return whether a file is of Wan 2.1, by its width or its name."""
    width = config["num_attention_heads"] * config["attention_head_dim"]
    named = re.search(r"wan[ _.-]?2[ _.-]?1", path.name.lower()) is not None
    return named or width == variants.VARIANTS["wan2.1-t2v-1.3b"].dim


def _find_nearby(path: Path, names: tuple[str, ...], folders: tuple[str, ...]) -> Path | None:
    """Return a file with one of these names next to the transformer or in ComfyUI's folder for it, else None."""
    places = [path.parent, *(up / folder for up in path.parents[1:3] for folder in folders)]
    return next((place / name for place in places for name in names if (place / name).is_file()), None)


def _given_part(name: str, value: str | Path, on_event: events.Listener) -> Part:
    """Return a component that the user named: a file, its folder, the folder of a complete model, or a hub id."""
    path = Path(os.path.expanduser(value))
    usual = {"text_encoder": Files().encoder, "vae": Files().vae}
    refuse_pickle(path, usual.get(name, ()))
    if path.suffix.lower() == ".gguf":
        raise ModelError(
            f"{path} cannot be the {name.replace('_', ' ')}",
            "of GGUF files, only transformers are read",
            f"--{name.replace('_', '-')} {next(iter(usual.get(name, ())), 'FOLDER')}",
        )
    if os.path.isfile(path):
        return Part("file", path)
    if os.path.isdir(path):
        return Part("folder", path / name if (path / name).is_dir() else path)
    if HUB_ID.fullmatch(str(value)) and path.suffix.lower() not in SUFFIXES:
        return Part("folder", download.snapshot(str(value), on_event, parts=(name,)) / name)
    raise ModelError(f"there is no {name.replace('_', ' ')} at {value}", "the file or folder does not exist")


def _tokenizer_with_encoder(parts: dict[str, Part]) -> None:
    """Add the tokenizer that comes with the encoder: in a folder next to its folder, or inside its file."""
    if "tokenizer" in parts or "text_encoder" not in parts:
        return
    encoder = parts["text_encoder"]
    if encoder.kind == "folder":
        sibling = encoder.path.parent / "tokenizer"
        if sibling.is_dir():
            parts["tokenizer"] = Part("folder", sibling)
        return
    from wanscope.wan import encoder_file

    if encoder_file.has_tokenizer(encoder.path):
        parts["tokenizer"] = Part("file", encoder.path)


def _from_hub(variant: Variant, path: Path, wanted: list[str], on_event: events.Listener) -> dict[str, Part]:
    needs = {
        "text_encoder": f"a text encoder ({' or '.join(variant.files.encoder) or 'a UMT5 encoder file or folder'})",
        "vae": f"a VAE ({' or '.join(variant.files.vae) or 'a Wan VAE file or folder'})",
        "tokenizer": "a tokenizer (a folder with tokenizer.json)",
    }
    what = f"{path} contains only a transformer"
    why = "it also needs " + ", ".join(needs[name] for name in wanted)
    if variant.hub_id is None:
        options = " ".join(f"--{name.replace('_', '-')} PATH" for name in wanted)
        arguments = ", ".join(f"{name.removeprefix('text_')}=PATH" for name in wanted)
        raise ModelError(what, why, f"{options}, in Python load({path.name!r}, {arguments})")
    try:
        folder = download.snapshot(variant.hub_id, on_event, parts=tuple(wanted))
    except ModelError as error:
        raise ModelError(what, f"{why}; and {error.what}: {error.why}", error.fix) from None
    return {name: Part("folder", folder / name) for name in wanted}

"""`wanscope models`: the table of models, counted from their configs."""

from __future__ import annotations

from wanscope.doors.cli import output
from wanscope.take.disk import size_text


def run_models(json: bool) -> int:
    from wanscope.wan.listing import models

    rows = models()
    if json:
        output.document([row.as_dict() for row in rows])
        return 0
    output.table(
        ("name", "parameters", "blocks", "weights in bf16", "encoder", "VAE", "default video", "steps"),
        [
            (
                row.name,
                f"{row.experts} x {_count(row.transformer_parameters)}"
                if row.experts > 1
                else _count(row.transformer_parameters),
                str(row.blocks),
                size_text(row.transformer_bytes),
                size_text(row.encoder_bytes),
                size_text(row.vae_bytes),
                f"{row.width}x{row.height}, {row.frames} frames, {row.fps} fps",
                str(row.steps),
            )
            for row in rows
        ],
        right=("parameters", "blocks", "weights in bf16", "encoder", "VAE", "steps"),
    )
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.name)
    output.say()
    for note, names in notes.items():
        output.say(f"{', '.join(names)}: {note}.")
    output.say("A folder in diffusers' layout, a hub id, or a .safetensors or .gguf file is also a model.")
    return 0


def _count(parameters: int) -> str:
    """Format a number of parameters, such as `14.3 B` or `2.6 M`."""
    for unit, scale in (("B", 1e9), ("M", 1e6)):
        if parameters >= scale:
            return f"{parameters / scale:.1f} {unit}"
    return str(parameters)

"""The list of variants with their parameter counts and their memory in bf16."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wanscope.spec.settings import Keyframes
from wanscope.wan.parameters import counts
from wanscope.wan.variants import VARIANTS


@dataclass(frozen=True)
class ModelRow:
    """One row of `wanscope models`. Parameters are those of one expert; bytes are for bf16 and all experts."""

    name: str
    title: str
    hub_id: str | None
    experts: int
    blocks: int
    transformer_parameters: int
    encoder_parameters: int
    vae_parameters: int
    transformer_bytes: int
    encoder_bytes: int
    vae_bytes: int
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    shift: float
    guidance: tuple[float | dict[str, Any], ...]
    makes_from_text: bool
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def models() -> list[ModelRow]:
    """Return a row for every variant, in the order of the table of variants."""
    rows = []
    for v in VARIANTS.values():
        c, d = counts(v), v.defaults
        rows.append(
            ModelRow(
                name=v.name,
                title=v.title,
                hub_id=v.hub_id,
                experts=v.experts,
                blocks=v.blocks,
                transformer_parameters=c.transformer,
                encoder_parameters=c.encoder,
                vae_parameters=c.vae,
                transformer_bytes=2 * c.transformer * v.experts,
                encoder_bytes=2 * c.encoder,
                vae_bytes=2 * c.vae,
                width=d.width,
                height=d.height,
                frames=d.frames,
                fps=d.fps,
                steps=d.steps,
                shift=d.shift,
                guidance=tuple(g.model_dump() if isinstance(g, Keyframes) else g for g in d.guidance),
                makes_from_text=not v.image_conditioned,
                note=v.note,
            )
        )
    return rows

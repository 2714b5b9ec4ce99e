"""`wanscope direction`: the commands and their options. The work is in direction_work.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wanscope.doors.cli.options import Device, Json, Memory, group

HELP = """Concept directions for `steer`: learned from pairs of prompts and kept in a file."""
app = group(HELP)


@app.command()
def learn(
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            help="A YAML file: `pairs:` and a list of two prompts each, the first with the concept, the other without.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The new .safetensors file, which `steer` reads.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="MODEL", help="The model to learn it on; it fits this model only.")
    ] = "marbles",
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="context|hidden",
            help="Learn on the text that blocks read, or on their hidden states (needs sampling).",
        ),
    ] = "context",
    blocks: Annotated[
        str,
        typer.Option("--blocks", metavar="BLOCKS", help="The blocks whose hidden states are used, such as mid or 4-9."),
    ] = "all",
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", "-s", metavar="N|A,B,C", help="With --on hidden: how many seeds, or which."),
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", metavar="TEXT", help="With --on hidden: the negative prompt.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="With --on hidden: a setting of sampler or video, such as sampler.steps=10. Repeatable.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        str, typer.Option("--dtype", metavar="auto|fp32|bf16|fp16", help="Precision of the transformer.")
    ] = "auto",
    memory: Memory = "auto",
    json: Json = False,
) -> int:
    """Learn a direction from pairs of prompts and write it to a file.

    It is the mean difference between the model's states for the first and for the second prompts.
    """
    from wanscope.doors.cli.direction_work import LearnOptions, run_learn

    options = LearnOptions(pairs, out, model, on, blocks, seeds, negative, setting or (), device, dtype, memory)
    return run_learn(options, json)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `direction learn` wrote.")],
    json: Json = False,
) -> int:
    """Show how a direction was learned and its length in each block."""
    from wanscope.doors.cli.direction_work import run_show

    return run_show(file, json)

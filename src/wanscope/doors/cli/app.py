"""The commands and their options. The work of each command is in its own file, imported when the command runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from wanscope.doors.cli.db import app as db
from wanscope.doors.cli.db import index
from wanscope.doors.cli.direction import app as direction
from wanscope.doors.cli.options import (
    Device,
    EventsJson,
    Json,
    Memory,
    OutputDir,
    StoreSelfAttention,
    TextEncoderPath,
    TokenizerPath,
    VaePath,
)
from wanscope.doors.cli.results import analyze, compare, export

HELP = """wanscope opens up Wan text-to-video diffusion transformers.

A prompt template becomes a set of videos; every video is kept with its recipe, so that it can be made again.
"""
EPILOG = "Begin with `wanscope demo`."
# The order in which a newcomer needs them: make, look, measure, then maintain the workspace and check wanscope.
ORDER = (
    *("demo", "generate", "expand", "models", "doctor"),
    *("takes", "show", "compare", "analyze", "export", "difference", "direction"),
    *("db", "index", "validate"),
)

app = typer.Typer(
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # prompts are full of brackets, and plain help starts faster
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(db, name="db")
app.add_typer(direction, name="direction")
app.command()(index)
app.command()(analyze)
app.command()(compare)
app.command()(export)


def command() -> Any:
    """Return the click command that typer builds from `app`, with its commands in `ORDER`."""
    group: Any = typer.main.get_command(app)
    group.commands = dict(sorted(group.commands.items(), key=lambda item: ORDER.index(item[0])))
    return group


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of every error. Also: WANSCOPE_DEBUG=1.")
    ] = False,
) -> None:
    if debug:
        os.environ["WANSCOPE_DEBUG"] = "1"
    if version:
        from wanscope import __version__

        typer.echo(f"wanscope {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(output_dir: OutputDir = None, device: Device = "auto", json: EventsJson = False) -> int:
    """Make eight small videos, a grid of them to look at, and a report."""
    from wanscope.doors.cli.demo import run_demo

    return run_demo(output_dir, device, json)


@app.command()
def generate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="A study file (YAML), the name of one that ships with wanscope, or a take to make again: "
            "its id, take.json or video.mp4.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        str | None, typer.Option("--config", metavar="FILE", help="Another way to name the study file.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option("--template", "-t", metavar="TEMPLATE", help='The prompt template: "a [red|blue] (ball)".'),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="A name listed by `wanscope models`, a folder, a hub id or a file."
        ),
    ] = None,
    vae: VaePath = None,
    text_encoder: TextEncoderPath = None,
    tokenizer: TokenizerPath = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds", "-s", metavar="N|A,B,C", help="How many seeds (4 means 0 to 3), or the seeds themselves."
        ),
    ] = None,
    videos_per_variation: Annotated[
        int | None,
        typer.Option("--videos-per-variation", metavar="N", min=1, help="Deprecated alias for --seeds N."),
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", metavar="TEXT", help="The negative prompt; '' for none.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", metavar="PIXELS", help="Width of the video.")] = None,
    height: Annotated[int | None, typer.Option("--height", metavar="PIXELS", help="Height of the video.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", metavar="N", help="Number of frames, 4n + 1.")] = None,
    duration: Annotated[
        float | None, typer.Option("--duration", metavar="SECONDS", help="Length of the video; instead of --frames.")
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", metavar="N", help="Number of denoising steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", metavar="X", help="Classifier-free guidance scale; 1 turns it off.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any setting of a study, for example sampler.solver=heun. Repeatable."
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option("--lora", metavar="FILE[:WEIGHT]", help="A LoRA file and its weight (default 1). Repeatable."),
    ] = None,
    from_take: Annotated[
        str | None,
        typer.Option(
            "--from-take",
            metavar="ID",
            help="Start from the finished latents of this take; with --start-step or --denoise.",
        ),
    ] = None,
    start_step: Annotated[
        int | None, typer.Option("--start-step", metavar="N", help="Skip the first N steps (with --from-take).")
    ] = None,
    denoise: Annotated[
        float | None,
        typer.Option(
            "--denoise", metavar="X", help="The fraction of the steps to run, 0 to 1; instead of --start-step."
        ),
    ] = None,
    store_latents: Annotated[
        bool | None,
        typer.Option("--store-latents/--no-store-latents", help="Keep the latents of every step.", show_default=False),
    ] = None,
    store_attention: Annotated[
        bool | None,
        typer.Option(
            "--store-attention/--no-store-attention",
            help="Keep the attention maps of the prompt's marked words.",
            show_default=False,
        ),
    ] = None,
    store_self_attention: StoreSelfAttention = None,
    output_dir: OutputDir = None,
    name: Annotated[
        str | None, typer.Option("--name", "-n", metavar="NAME", help="Name of the study and of its folder.")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be made, its size and time. Loads no model, writes nothing."),
    ] = False,
    device: Device = "auto",
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="auto|fp32|bf16|fp16", help="Precision of the transformer.")
    ] = None,
    memory: Memory = "auto",
    json: EventsJson = False,
    edit: Annotated[
        list[str] | None,
        typer.Option(
            "--edit",
            "-e",
            metavar="EDIT",
            help="An edit in one line, such as \"inject 'a green square' into late at 0.4\", or as JSON. The video "
            "without edits is made as well. Repeatable: several edits act together, in the given order.",
        ),
    ] = None,
) -> int:
    """Make the videos of a study or a template, or make a take again.

    Complete takes are not made again, so the same command continues where it was stopped.
    """
    from wanscope.doors.cli.generate import run_generate
    from wanscope.doors.cli.request import SETTINGS, Options

    given = dict(locals())
    options = Options(
        source=source,
        config=config,
        seeds=seeds,
        videos_per_variation=videos_per_variation,
        sets=setting or (),
        loras=lora or (),
        from_take=from_take,
        store_latents=store_latents,
        store_attention=store_attention,
        store_self_attention=store_self_attention or (),
        edits=edit or (),
        values={key: given[key] for key in SETTINGS if given[key] is not None},
    )
    return run_generate(options, output_dir, dry_run=dry_run, device=device, memory=memory, json=json)


@app.command()
def expand(
    template: Annotated[str, typer.Argument(metavar="TEMPLATE", help='A prompt template: "a [red|blue] (ball)".')],
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit", "-l", metavar="N", min=1, help="Show the first N. [default: 100 at a terminal, else all]"
        ),
    ] = None,
    json: Json = False,
) -> int:
    """List the variations of a prompt template.

    Each is shown with the values of its slots, its marked words and their weights.
    """
    from wanscope.doors.cli.expand import run_expand

    return run_expand(template, limit, json)


@app.command()
def models(json: Json = False) -> int:
    """List the models: parameters, memory, default sizes."""
    from wanscope.doors.cli.models import run_models

    return run_models(json)


@app.command()
def takes(
    study: Annotated[
        str | None, typer.Option("--study", metavar="NAME", help="Only the takes of this study, in its order.")
    ] = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """List the takes of a workspace."""
    from wanscope.doors.cli.takes import run_takes

    return run_takes(study, output_dir, json)


@app.command()
def show(
    take: Annotated[str, typer.Argument(metavar="ID", help="The take's id, the start of it, its folder or its video.")],
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Compare every file with its checksum, or only with its size."),
    ] = True,
    steps: Annotated[
        bool,
        typer.Option(
            "--steps", help="Write a video of what each step predicted as the finished video; needs x0 latents."
        ),
    ] = False,
    maps: Annotated[
        str | None,
        typer.Option(
            "--maps",
            metavar="WORDS",
            help="Write the video overlaid with the attention maps of these words, or of `all`.",
        ),
    ] = None,
    by: Annotated[
        str, typer.Option("--by", metavar="word|block|step", help="With --maps: what each panel shows.")
    ] = "word",
    measure: Annotated[
        str,
        typer.Option(
            "--measure", metavar="NAME", help="With --maps: the measure: probability, contribution, gramcol or self."
        ),
    ] = "probability",
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="The MP4 to write. [default: in the workspace]", show_default=False),
    ] = None,
    device: Device = "auto",
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Show a take: its recipe, files, timings and noise levels; or write how it was denoised as a video."""
    if maps is not None:
        from wanscope.doors.cli.show_video import run_show_maps

        return run_show_maps(take, maps, by, measure, out, output_dir, json)
    if steps:
        from wanscope.doors.cli.show_video import run_show_steps

        return run_show_steps(take, out, device, output_dir, json)
    from wanscope.doors.cli.show import run_show

    return run_show(take, verify, output_dir, json)


@app.command()
def difference(
    a: Annotated[str, typer.Argument(metavar="A", help="A prompt, the one to edit.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another prompt, the donor of an injection.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", metavar="MODEL", help="The model whose text encoder and projection are used."),
    ] = "marbles",
    device: Device = "auto",
    json: Json = False,
) -> int:
    """Measure how far apart two prompts are for a model.

    Compares real tokens before and after projection, and advises on injecting one prompt into the other.
    """
    from wanscope.doors.cli.difference import run_difference

    return run_difference(a, b, model, device, json)


@app.command()
def doctor(output_dir: OutputDir = None, json: Json = False) -> int:
    """Check this machine and say how to fix what is wrong.

    Checks Python, torch, the GPU, memory, disk and weights. Exits with status 1 if something is wrong.
    """
    from wanscope.doors.cli.doctor import run_doctor

    return run_doctor(output_dir, json)


@app.command()
def validate(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="What to validate: marbles, edits, attention or trajectories.")
    ],
    pairs: Annotated[
        int | None,
        typer.Option(
            "--pairs",
            metavar="N",
            min=2,
            help="Number of videos behind each figure (default: 200 for marbles, 24 for trajectories, else 60).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="Write the report to this JSON file, and as a Markdown page next to it."
        ),
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", metavar="DIR", help="Where rows are kept while they are made; the next run continues from them."
        ),
    ] = None,
    share: Annotated[
        str,
        typer.Option("--share", metavar="I/N", help="Make only every N-th video; N processes share the work."),
    ] = "1/1",
    so_far: Annotated[
        bool,
        typer.Option("--so-far", help="Make nothing; report on what earlier runs have made."),
    ] = False,
    json: Json = False,
) -> int:
    """Score the marbles model, edits, attention maps or trajectories against known truth.

    Exits with status 1 if a bound is not met.
    """
    from wanscope.doors.cli.validate import run_validate

    return run_validate(what, pairs, out, work, share, so_far, json)

"""Options that several commands share, and the constructor of command groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

MEMORY = ("auto", "none", "offload")

OutputDir = Annotated[
    Path | None,
    typer.Option(
        "--output-dir",
        "-o",
        metavar="DIR",
        help="The workspace: the folder with takes/ and studies/. [default: $WANSCOPE_HOME, else ./wanscope-out]",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout, and nothing else.")]
EventsJson = Annotated[bool, typer.Option("--json", help="Write events to stdout as JSON lines, and nothing else.")]
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto (the first GPU, else the CPU), cpu, cuda or cuda:1.")
]
Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="|".join(MEMORY),
        help="Where weights are kept: auto (offload what does not fit), none (all on the device) or offload.",
    ),
]


VaePath = Annotated[
    str | None, typer.Option("--vae", metavar="PATH", help="A VAE file or folder, instead of the model's own.")
]
TextEncoderPath = Annotated[
    str | None,
    typer.Option("--text-encoder", metavar="PATH", help="A text encoder file or folder, instead of the model's own."),
]
TokenizerPath = Annotated[
    str | None, typer.Option("--tokenizer", metavar="PATH", help="A tokenizer folder, instead of the model's own.")
]


StoreSelfAttention = Annotated[
    list[str] | None,
    typer.Option(
        "--store-self-attention",
        metavar="X,Y[,T]",
        help="Keep the self-attention of this position of the video, given as fractions of width, height "
        "and length. Repeatable.",
    ),
]


def group(help_text: str) -> typer.Typer:
    """Return a group of commands, which shows its help when called without one."""
    app = typer.Typer(
        help=help_text,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app

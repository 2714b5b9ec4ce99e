"""`wanscope db` and `wanscope index`: the commands and their options. The work is in db_show.py and db_change.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from wanscope.doors.cli.options import Json, OutputDir, group

HELP = """The catalog: stored embeddings, what was computed from them, and an index of takes.

Embeddings are named by their key, the start of it, their label or their prompt.
"""
app = group(HELP)

Name = Annotated[str, typer.Argument(metavar="NAME", help="An embedding: its key, the start of it, label or prompt.")]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="TAG", help="Only embeddings with this tag. Repeatable.")
]
Origin = Annotated[
    str | None,
    typer.Option(
        "--origin",
        metavar="NAME",
        help="A name for the source of the rows. [default: the folder's name]",
        show_default=False,
    ),
]
Limit = Annotated[int, typer.Option("--limit", "-l", metavar="N", min=1, help="Show at most N rows.")]


@app.command()
def stats(output_dir: OutputDir = None, json: Json = False) -> int:
    """Show counts, sizes, what saves space, and timings."""
    return _show().run_stats(output_dir, json)


@app.command("list")
def list_(tag: Tags = None, limit: Limit = 50, output_dir: OutputDir = None, json: Json = False) -> int:
    """List embeddings, newest first."""
    return _show().run_list(tag or [], limit, output_dir, json)


@app.command()
def show(
    name: Name,
    file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Also write it as a new .safetensors file, a donor for edits."),
    ] = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Show everything known about an embedding, or write it to a file."""
    return _show().run_show(name, file, output_dir, json)


@app.command()
def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words that the prompt or label must all contain.")] = "",
    tag: Tags = None,
    limit: Limit = 50,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Find embeddings by words of their prompts and by tags."""
    return _show().run_search(text, tag or [], limit, output_dir, json)


@app.command()
def similar(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="An embedding, or any text, which is then encoded. For several embeddings: a table of all pairs.",
        ),
    ],
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", min=1, help="How many to show.")] = 10,
    metric: Annotated[
        str, typer.Option("--metric", metavar="cosine|l2", help="How distance between mean tokens is measured.")
    ] = "cosine",
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Rank the nearest by their whole token matrices instead of the mean token.")
    ] = False,
    any_encoder: Annotated[
        bool,
        typer.Option(
            "--any-encoder", help="Also compare embeddings of other encoders with the same number of dimensions."
        ),
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="The model whose encoder encodes a text that is not stored. [default: the model of most embeddings]",
            show_default=False,
        ),
    ] = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Find the embeddings that are nearest to one, or to a text."""
    return _show().run_similar(names, count, metric, tokens, any_encoder, model, output_dir, json)


@app.command()
def duplicates(
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="X",
            help="Pairs whose mean tokens have at least this cosine. [default: equal values only]",
            show_default=False,
        ),
    ] = None,
    limit: Limit = 50,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Find equal values stored for several models, or near-duplicates."""
    return _show().run_duplicates(threshold, limit, output_dir, json)


@app.command()
def compute(
    expression: Annotated[
        str, typer.Argument(metavar="EXPRESSION", help='Arithmetic on embeddings: "beach + 0.5*(gothic - regular)".')
    ],
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME=EMBEDDING", help="The embedding that a name refers to. Repeatable."),
    ] = None,
    label: Annotated[str | None, typer.Option("--label", metavar="LABEL", help="A label for the result.")] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag. Repeatable.")] = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Compute with embeddings and keep the result with its lineage.

    A name without --name refers to the embedding with that label.
    """
    return _change().run_compute(expression, names or [], label, tag or [], output_dir, json)


@app.command()
def label(
    name: Name,
    label: Annotated[
        str | None, typer.Option("--label", metavar="LABEL", help="The label; '' removes it.", show_default=False)
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", metavar="TAG", help="A tag to add. Repeatable.")] = None,
    untag: Annotated[
        list[str] | None, typer.Option("--untag", metavar="TAG", help="A tag to remove. Repeatable.")
    ] = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Give an embedding a label and tags."""
    return _change().run_label(name, label, tag or [], untag or [], output_dir, json)


@app.command()
def ops(limit: Limit = 50, output_dir: OutputDir = None, json: Json = False) -> int:
    """List vector operations, newest first."""
    return _show().run_ops(limit, output_dir, json)


@app.command()
def lineage(
    name: Name,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="Repeat every operation and compare the result with the stored bytes.")
    ] = False,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Show the operations that produced an embedding.

    Exits with status 1 if --recompute gives different bytes.
    """
    return _show().run_lineage(name, recompute, output_dir, json)


@app.command()
def analyze(name: Name, output_dir: OutputDir = None, json: Json = False) -> int:
    """Show figures of an embedding: norms, spread, components."""
    return _show().run_analyze(name, output_dir, json)


@app.command()
def cleanup(
    older_than: Annotated[
        float | None, typer.Option("--older-than", metavar="DAYS", help="Stored at least this many days ago.")
    ] = None,
    unused_for: Annotated[
        float | None, typer.Option("--unused-for", metavar="DAYS", help="Not used for at least this many days.")
    ] = None,
    max_uses: Annotated[
        int | None, typer.Option("--max-uses", metavar="N", min=0, help="Used at most N times.")
    ] = None,
    labeled: Annotated[bool, typer.Option("--labeled", help="Include those with a label or tags.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without this option they are only listed.")] = False,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Remove embeddings by age and use.

    Only lists them unless --yes is given. Labeled and tagged embeddings stay, and inputs of results that stay.
    """
    return _change().run_cleanup(older_than, unused_for, max_uses, labeled, yes, output_dir, json)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="Leave out prompts, labels, tags, names and recipes.")
    ] = False,
    fp16: Annotated[
        bool, typer.Option("--fp16", help="Write values as fp16: smaller and readable by any tool, but not exact.")
    ] = False,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Write the catalog as Parquet files with a data card."""
    return _change().run_export(folder, anonymous, fp16, output_dir, json)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder written by `db export`.")],
    origin: Origin = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Import an export, without duplicates."""
    return _change().run_import(folder, origin, output_dir, json)


@app.command()
def merge(
    other: Annotated[Path, typer.Argument(metavar="OTHER", help="Another workspace, or its catalog.duckdb.")],
    origin: Origin = None,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Merge another catalog into this one, without duplicates."""
    return _change().run_merge(other, origin, output_dir, json)


@app.command()
def check(
    deep: Annotated[bool, typer.Option("--deep", help="Read every embedding and compare it with its key.")] = False,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Check the catalog's rows against files and each other.

    Exits with status 1 if something is wrong.
    """
    return _change().run_check(deep, output_dir, json)


@app.command()
def sql(
    query: Annotated[str, typer.Argument(metavar="SELECT", help="One SELECT over the catalog's tables.")],
    limit: Limit = 1000,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Query the tables with SQL, read-only."""
    return _show().run_sql(query, limit, output_dir, json)


def index(
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild every row from the folders, even if the catalog is damaged.")
    ] = False,
    output_dir: OutputDir = None,
    json: Json = False,
) -> int:
    """Bring the catalog's index of takes up to date with the folders."""
    return _change().run_index(rebuild, output_dir, json)


def _show() -> Any:
    from wanscope.doors.cli import db_show

    return db_show


def _change() -> Any:
    from wanscope.doors.cli import db_change

    return db_change

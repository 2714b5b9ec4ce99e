"""`wanscope db` verbs that look: stats, list, show, search, similar, duplicates, ops, lineage, analyze, sql."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.catalog.catalog import Catalog
from wanscope.doors.cli import output
from wanscope.errors import EmbeddingNotFound, RequestError
from wanscope.take.disk import size_text

if TYPE_CHECKING:
    import pyarrow as pa

    from wanscope.catalog.operations import Lineage, Operation

KEY = 12  # digits of a key that are shown


def opened(output_dir: Path | None) -> Catalog:
    return Catalog(output_dir)


def data_of(table: pa.Table) -> list[dict[str, Any]]:
    return [plain(row) for row in table.to_pylist()]


def plain(value: Any) -> Any:
    """Convert a value to what JSON can hold: NaN and infinities become null, times and bytes become text."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def nothing_yet(catalog: Catalog) -> bool:
    """Print a hint and return True where there is no catalog yet."""
    if catalog.exists:
        return False
    output.say(f"{catalog.path} is not there yet: the first generated video makes it. Begin with: wanscope demo")
    return True


def run_stats(output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    stats = catalog.stats()
    if json:
        output.document(plain(stats))
        return 0
    if nothing_yet(catalog):
        return 0
    sizes, ratio, seconds = stats["bytes"], stats["ratio"], stats["seconds"]
    embeddings, takes = stats["embeddings"], stats["takes"]
    output.facts(
        [
            ("catalog", output.shown_path(catalog.path)),
            ("database", size_text(sizes["database"])),
            ("takes", f"{takes['complete']} complete, {takes['damaged']} damaged, {size_text(takes['bytes'])}"),
            ("embeddings", f"{embeddings['count']}, used {embeddings['uses']} times"),
        ]
    )
    if takes["from_others"]:
        output.say(f"{takes['from_others']} takes came from others, without their folders")
    for kind in embeddings["kinds"]:
        encoder = f", encoder {kind['encoder'][:8]}" if kind["encoder"] else ""
        output.say(f"  {kind['count']} x {kind['space']}, {kind['dim']} dimensions, {kind['dtype']}{encoder}")
    if embeddings["count"]:
        output.say("\nsizes of the embeddings")
        output.table(
            ("as", "size", "of fp32 padded to 512 tokens"),
            [
                ("fp32, padded to 512 tokens", size_text(sizes["padded_fp32"]), "1"),
                ("cut to real tokens", size_text(sizes["trimmed_fp32"]), _fraction(ratio["trimming"])),
                (
                    "in their own dtype",
                    size_text(sizes["trimmed_dtype"]),
                    _fraction((ratio["trimming"] or 1) * (ratio["dtype"] or 1)),
                ),
                ("zstd, with headers: the files", size_text(sizes["files"]), _fraction(ratio["all"])),
            ],
            right=("size",),
        )
        if seconds["mean_encoding"] is not None:
            saved = seconds["encoding_saved_by_reuse"] or 0.0
            mean = output.seconds_text(seconds["mean_encoding"])
            output.say(f"\nencoding took {mean} a prompt; reuse saved {output.seconds_text(saved)}")
    if stats["operations"]:
        output.say("")
        output.table(
            ("operation", "count", "mean time", "longest", "bytes"),
            [
                (
                    op["operation"],
                    str(op["count"]),
                    output.seconds_text(op["mean_seconds"]),
                    output.seconds_text(op["max_seconds"]),
                    size_text(op["bytes"]),
                )
                for op in stats["operations"]
            ],
            right=("count", "mean time", "longest", "bytes"),
        )
    return 0


def _fraction(ratio: float | None) -> str:
    return "" if not ratio else f"1/{ratio:.1f}"


def run_list(tags: Sequence[str], limit: int, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    rows = data_of(catalog.list(tags=tags, limit=limit))
    if json:
        output.document(rows)
        return 0
    if nothing_yet(catalog):
        return 0
    total = catalog.count("embeddings")
    _print_embeddings(rows)
    output.say(f"\n{len(rows)} of {total} embeddings")
    return 0


def _print_embeddings(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    output.table(
        ("key", "stored", "tokens", "dim", "dtype", "uses", "size", "label", "tags", "prompt"),
        [
            (
                row["key"][:KEY],
                str(row["created"])[:16],
                str(row["tokens"]),
                str(row["dim"]),
                row["dtype"],
                str(row["uses"]),
                size_text(row["file_bytes"]),
                row["label"] or "",
                row["tags"],
                _prompt(row),
            )
            for row in rows
        ],
        right=("tokens", "dim", "uses", "size"),
    )


def _prompt(row: dict[str, Any]) -> str:
    if row["prompt"] is None:
        return f"({row['source']})" if row.get("source") else ""
    text = row["prompt"] or '""'
    return text if len(text) <= 100 else text[:97] + "..."


def run_show(name: str, file: Path | None, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    found = catalog.get(name, count=False)
    if file is not None:
        file = catalog.save(found.key, file).absolute()
    prompts = catalog.prompts(found.key)
    tags = catalog.tags(found.key)
    made = [op for op, _ in catalog.lineage(found.key).operations]
    if json:
        data = {**plain(found.row), "tags": tags, "prompts": prompts, "file": str(catalog.files.path(found.key))}
        written = {} if file is None else {"out": str(file)}
        output.document({**data, "operations": [op.as_data() for op in made], **written})
        return 0
    row = found.row
    pairs = [
        ("key", found.key),
        *((("label", row["label"]),) if row["label"] else ()),
        *((("tags", ", ".join(tags)),) if tags else ()),
        *(("prompt", prompt or '""') for prompt in prompts or ([row["prompt"]] if row["prompt"] is not None else [])),
        ("matrix", f"{row['tokens']} tokens x {row['dim']} dimensions, {row['dtype']}, {row['space']}"),
        ("mean token", f"length {row['norm']:.4g}"),
        ("made", f"by {row['source']}" + (f", model {row['model']}" if row["model"] else "")),
        *((("encoder", row["encoder"]),) if row["encoder"] else ()),
        *((("from", row["origin"]),) if row["origin"] else ()),
        ("stored", str(row["created"])[:19]),
        ("used", f"{row['uses']} times" + (f", last {str(row['last_used'])[:19]}" if row["last_used"] else "")),
        ("file", f"{output.shown_path(catalog.files.path(found.key))}, {size_text(row['file_bytes'])}"),
    ]
    output.facts(pairs)
    for op in made:
        output.say(f"computed    {_operation(op)}")
    if file is not None:
        output.say(
            f'written     {output.shown_path(file)}, a donor: --edit "inject {output.shown_path(file)} into mid at 0.5"'
        )
    return 0


def run_search(text: str, tags: Sequence[str], limit: int, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    if not text.strip() and not tags:
        raise RequestError("there is nothing to search for", "", 'wanscope db search "red circle"  (or --tag TAG)')
    rows = data_of(catalog.search(text, tags=tags, limit=limit))
    if json:
        output.document(rows)
        return 0
    if nothing_yet(catalog):
        return 0
    _print_embeddings(rows)
    output.say(f"{'no' if not rows else chr(10) + str(len(rows))} embedding{'s'[: len(rows) != 1]} found")
    return 0


def run_similar(
    names: Sequence[str],
    count: int,
    metric: str,
    tokens: bool,
    any_encoder: bool,
    model: str | None,
    output_dir: Path | None,
    json: bool,
) -> int:
    catalog = opened(output_dir)
    if len(names) > 1:
        return _print_pairs(catalog, names, json)
    query, encoded = _query(catalog, names[0], model)
    table = catalog.similar(query, count=count, metric=metric, tokens=tokens, any_encoder=any_encoder)  # type: ignore[arg-type]
    rows = data_of(table)
    if json:
        output.document(rows)
        return 0
    if encoded:
        output.say(f"{names[0]!r} is not stored; it was encoded with {encoded}\n")
    if not rows:
        output.say("nothing comparable is stored: no other embedding of this encoder")
        return 0
    of_tokens = ("tokens cos", "tokens L2") if tokens else ()
    output.table(
        ("key", "cosine", "L2", *of_tokens, "label", "prompt"),
        [
            (
                row["key"][:KEY],
                f"{row['cosine']:.4f}",
                f"{row['l2']:.4g}",
                *((f"{row['token_cosine']:.4f}", f"{row['token_l2']:.4g}") if tokens else ()),
                row["label"] or "",
                _prompt(row),
            )
            for row in rows
        ],
        right=("cosine", "L2", *of_tokens),
    )
    return 0


def _query(catalog: Catalog, text: str, model: str | None) -> tuple[Any, str]:
    """Return the named embedding or the text encoded by a model, and what encoded it ("" where it was stored)."""
    try:
        if model is None:
            return catalog.get(text, count=False), ""
    except EmbeddingNotFound as error:
        if not catalog.exists or "several" in error.what or "embeddings have the label" in error.what:
            raise
    from wanscope.doors.cli.db_encode import encoded

    return encoded(catalog, text, model)


def _print_pairs(catalog: Catalog, names: Sequence[str], json: bool) -> int:
    rows = data_of(catalog.similarities(names))
    if json:
        output.document(rows)
        return 0
    output.table(
        ("a", "b", "cosine", "L2", "tokens cos", "tokens L2"),
        [
            (
                row["key_a"][:KEY],
                row["key_b"][:KEY],
                f"{row['cosine']:.4f}",
                f"{row['l2']:.4g}",
                f"{row['token_cosine']:.4f}",
                f"{row['token_l2']:.4g}",
            )
            for row in rows
        ],
        right=("cosine", "L2", "tokens cos", "tokens L2"),
    )
    return 0


def run_duplicates(threshold: float | None, limit: int, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    rows = data_of(catalog.duplicates(threshold, limit))[:limit]
    if json:
        output.document(rows)
        return 0
    if nothing_yet(catalog):
        return 0
    if not rows:
        output.say("no duplicates" if threshold is None else f"no pair has a cosine of {threshold:g} or more")
    elif threshold is None:
        cells = [(str(r["copies"]), size_text(r["bytes"]), " ".join(k[:KEY] for k in r["keys"].split())) for r in rows]
        output.table(("copies", "size", "keys"), cells, right=("copies", "size"))
    else:
        output.table(
            ("a", "b", "cosine", "L2"),
            [(r["key_a"][:KEY], r["key_b"][:KEY], f"{r['cosine']:.5f}", f"{r['l2']:.4g}") for r in rows],
            right=("cosine", "L2"),
        )
    return 0


def run_ops(limit: int, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    found = catalog.operations(limit)
    if json:
        output.document([plain(op.as_data()) for op in found])
        return 0
    if nothing_yet(catalog):
        return 0
    if not found:
        output.say('no operations yet. One is: wanscope db compute "a - 0.5*b" --name a=KEY --name b=KEY')
        return 0
    output.table(
        ("operation", "made", "time", "result", "what"),
        [(op.id, op.created[:16], output.seconds_text(op.seconds), op.result[:KEY], _operation(op)) for op in found],
        right=("time",),
    )
    return 0


def _operation(op: Operation) -> str:
    inputs = ", ".join(f"{name} = {key[:KEY]}" for name, key in op.inputs)
    parameters = dict(op.parameters)
    head = str(parameters.pop("expression", op.operation))
    settings = "".join(f", {name} {value}" for name, value in parameters.items())
    return f"{head}{settings}; {inputs}"


def run_lineage(name: str, recompute: bool, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    found = catalog.lineage(name)
    again = {op.id: same for op, same in catalog.recompute(found.key)} if recompute else {}
    if json:
        data = plain(found.as_data())
        output.document({**data, "recomputed": again} if recompute else data)
    else:
        _print_lineage(found, 0)
        for operation, same in again.items():
            output.say(f"operation {operation} was done again: {'the stored bytes' if same else 'OTHER BYTES'}")
    return 0 if all(again.values()) else 1


def _print_lineage(node: Lineage, depth: int) -> None:
    gone = "" if node.there else "  (no longer in the catalog)"
    shown = f"  {node.shown}" if node.shown else ""
    output.say(f"{'    ' * depth}{node.key[:KEY]}{shown}{gone}")
    for op, inputs in node.operations:
        output.say(f"{'    ' * depth}  = {_operation(op)}  ({op.created}, {output.seconds_text(op.seconds)})")
        if op.note:
            output.say(f"{'    ' * depth}    {op.note}")
        for source in inputs:
            _print_lineage(source, depth + 1)


def run_analyze(name: str, output_dir: Path | None, json: bool) -> int:
    figures = opened(output_dir).analyze(name)
    if json:
        output.document(figures)
        return 0
    output.facts([(figure.replace("_", " "), f"{value:.6g}") for figure, value in figures.items()])
    return 0


def run_sql(query: str, limit: int, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    table = catalog.sql(query)
    rows = data_of(table.slice(0, limit))
    if json:
        output.document(rows)
        return 0
    if table.num_columns:
        output.table(table.column_names, [["" if v is None else str(v) for v in row.values()] for row in rows])
    more = f", {limit} shown (--limit N for more)" if table.num_rows > limit else ""
    output.say(f"\n{table.num_rows} row{'s'[: table.num_rows != 1]}{more}")
    return 0

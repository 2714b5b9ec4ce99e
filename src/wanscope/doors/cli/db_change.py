"""`wanscope db` verbs that write or check: compute, label, cleanup, export, import, merge, check; `wanscope index`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanscope.doors.cli import output
from wanscope.doors.cli.db_show import KEY, nothing_yet, opened, plain
from wanscope.errors import RecipeError
from wanscope.take.disk import size_text

if TYPE_CHECKING:
    from wanscope.catalog.exchange import Exchanged


def run_compute(
    expression: str, names: Sequence[str], label: str | None, tags: Sequence[str], output_dir: Path | None, json: bool
) -> int:
    from wanscope.edit.expression import parse_expression

    catalog = opened(output_dir)
    given = dict(_assigned(name) for name in names)
    parsed = parse_expression(expression)
    unknown = [name for name in given if name not in parsed.names]
    if unknown:
        raise RecipeError(f"the expression has no name {unknown[0]!r}", f"it uses {', '.join(parsed.names)}", "")
    inputs = {name: given.get(name, name) for name in parsed.names}
    made = catalog.compute("expression", inputs, expression=expression, label=label, tags=tags)
    if json:
        output.document(plain({"key": made.key, "label": label, "tokens": made.tokens.tokens, "dim": made.tokens.dim}))
        return 0
    output.say(f"{made.key}\n{made.tokens.tokens} tokens x {made.tokens.dim} dimensions, {made.tokens.dtype}")
    output.say(f"Its lineage: wanscope db lineage {made.key[:KEY]}")
    return 0


def _assigned(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise RecipeError(
            f"--name {text!r} is not NAME=EMBEDDING",
            "it has to give a name and an embedding",
            '--name beach="a beach at dusk"',
        )
    return name.strip(), value.strip()


def run_label(
    name: str, label: str | None, tags: Sequence[str], untag: Sequence[str], output_dir: Path | None, json: bool
) -> int:
    if label is None and not tags and not untag:
        raise RecipeError("there is nothing to change", "none of --label, --tag and --untag is given", "--label beach")
    catalog = opened(output_dir)
    key = catalog.annotate(name, label=label, add=tags, remove=untag)
    row = catalog.get(key, count=False).row
    found = {"key": key, "label": row["label"], "tags": catalog.tags(key)}
    if json:
        output.document(found)
        return 0
    output.say(f"{key[:KEY]}  label: {row['label'] or '(none)'}, tags: {', '.join(found['tags']) or '(none)'}")
    return 0


def run_cleanup(
    older_than: float | None,
    unused_for: float | None,
    max_uses: int | None,
    labeled: bool,
    yes: bool,
    output_dir: Path | None,
    json: bool,
) -> int:
    catalog = opened(output_dir)
    if not catalog.exists and not json:
        nothing_yet(catalog)
        return 0
    found = catalog.cleanup(
        older_than_days=older_than,
        unused_days=unused_for,
        max_uses=max_uses,
        labeled=labeled,
        dry_run=not yes or not catalog.exists,
    )
    if json:
        output.document(plain(dataclasses.asdict(found)))
        return 0
    for row in found.rows[:50]:
        shown = row["label"] or row["prompt"] or ("" if row["prompt"] is None else '""')
        output.say(f"{row['key'][:KEY]}  stored {str(row['created'])[:16]}, used {row['uses']} times  {shown}")
    if len(found.rows) > 50:
        output.say(f"... and {len(found.rows) - 50} more")
    word = "removed" if found.done else "would be removed"
    count = len(found.keys)
    output.say(f"{count} embedding{'s'[: count != 1]} {word}, {size_text(found.bytes)}")
    if found.kept:
        output.say(f"{found.kept} more fit and stay: they are labeled, tagged, or inputs of results that stay")
    if found.orphans:
        output.say(f"{found.orphans} files without a row {word}")
    if older_than is None and unused_for is None and max_uses is None:
        output.say("Say which: --older-than DAYS, --unused-for DAYS, --max-uses N; together they all have to hold.")
    elif count and not found.done:
        output.say("Nothing was removed. To do it, run the same with --yes")
    return 0


def run_export(folder: Path, anonymous: bool, fp16: bool, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    if not catalog.exists and not json:
        nothing_yet(catalog)
        return 0
    done = catalog.export(folder, anonymous=anonymous, half=fp16)
    if json:
        output.document(dataclasses.asdict(done))
        return 0
    output.say(f"{output.shown_path(folder.absolute())}: {_rows(done.rows)}, {size_text(done.bytes)}")
    if anonymous:
        output.say(
            "Prompts, labels, tags, names and recipes are left out. The embeddings still carry what prompts mean."
        )
    return 0


def run_import(folder: Path, origin: str | None, output_dir: Path | None, json: bool) -> int:
    return _print_exchanged(opened(output_dir).import_(folder, origin=origin), json)


def run_merge(other: Path, origin: str | None, output_dir: Path | None, json: bool) -> int:
    return _print_exchanged(opened(output_dir).merge(other, origin=origin), json)


def _print_exchanged(done: Exchanged, json: bool) -> int:
    if json:
        output.document(dataclasses.asdict(done))
        return 0
    output.say(f"new: {_rows(done.rows) or 'nothing'}")
    if done.there:
        output.say(f"there already: {_rows(done.there)}")
    for note in done.notes:
        output.say(f"note: {note}")
    return 0


def _rows(rows: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in rows.items() if count)


def run_check(deep: bool, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    found = catalog.check(deep=deep)
    if json:
        output.document(dataclasses.asdict(found))
        return 1 if found.problems else 0
    if not found.problems and nothing_yet(catalog):
        return 0
    for problem in found.problems:
        output.say(f"WRONG: {problem}")
    for note in found.notes:
        output.say(f"note: {note}")
    how = "read and compared with their keys" if deep else "there, in their size (--deep reads them)"
    files = f"{found.files} files {how}" if not found.problems else f"{found.files} files"
    took = output.seconds_text(found.seconds)
    output.say(f"{found.embeddings} embeddings, {files}, {found.takes} takes: {_verdict(found.problems)} ({took})")
    return 1 if found.problems else 0


def _verdict(problems: Sequence[Any]) -> str:
    return "clean" if not problems else f"{len(problems)} problem{'s'[: len(problems) != 1]}"


def run_index(rebuild: bool, output_dir: Path | None, json: bool) -> int:
    catalog = opened(output_dir)
    found = catalog.index(rebuild=rebuild)
    if json:
        output.document(dataclasses.asdict(found))
        return 0
    if found.set_aside:
        output.say(f"the catalog could not be opened and was set aside as {found.set_aside}")
        output.say("labels, tags and operations were only there; takes and embeddings were read from their own files")
    studies = f"{found.studies} {'study' if found.studies == 1 else 'studies'}"
    output.say(f"{found.takes} takes ({found.added} new, {found.removed} gone), {studies}")
    if found.adopted:
        output.say(f"{found.adopted} embeddings were read from their files")
    for take, damage in found.damaged.items():
        output.say(f"damaged: {take}: {damage}")
    for name, why in found.unreadable.items():
        output.say(f"unreadable: {why if name in why else f'{name}: {why}'}")
    return 0

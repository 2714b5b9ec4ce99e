"""Writes the tables of the docs that list solvers, metrics, edits and models, from their registries.

    python scripts/doc_tables.py            # rewrite the pages that are out of date, and print their names
    python scripts/doc_tables.py --check    # change nothing; exit status 1 where a page is out of date

A table is the text between `<!-- table: NAME ... -->` and `<!-- end of table -->`. What other installed packages
register is left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HINT = "(written by scripts/doc_tables.py)"


def grid(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return (
        "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("| ---", "|---").replace("--- |", "---|")
    )


def code(name: str) -> str:
    return f"`{name}`"


def cell(text: str) -> str:
    """Return text for a cell, with `|` escaped."""
    return text.replace("|", r"\|")


def solvers() -> str:
    from wanscope.spec.solver_facts import SolverFacts, built_in

    def evaluations(row: SolverFacts) -> str:
        each = "n" if row.calls_per_step == 1 else f"{row.calls_per_step}n"
        fewer = row.calls_per_step - row.calls(1)[0]
        return f"{each} - {fewer} (20 steps: {row.evaluations(20)})" if fewer else each

    rows = sorted(built_in().values(), key=lambda row: row.name)
    return grid(
        ("name", "order", "evaluations for n steps", "takes `sigmas`", "what it is"),
        (
            (code(row.name), str(row.order), evaluations(row), "yes" if row.takes_sigmas else "no", cell(row.about))
            for row in rows
        ),
    )


def _metrics(need: str) -> str:
    from wanscope.analysis.metric import all_metrics

    ours = [m for m in all_metrics() if m.rows.__module__.startswith("wanscope.") and m.needs == (need,)]
    finals = {m.name for m in ours if m.name.startswith("final_")}
    rows = []
    for m in ours:
        final = f"final_{m.name}"
        if m.name not in finals:
            names = [m.name, final] if final in finals else [m.name]
            tested = "yes" if m.tested else code(final) if final in finals else ""
            rows.append((", ".join(map(code, names)), cell(m.unit), tested, cell(m.about.rstrip("."))))
    return grid(("metric", "unit", "tested", "definition"), rows)


def path_metrics() -> str:
    return _metrics("path")


def latent_metrics() -> str:
    return _metrics("statistics")


def tested_metrics() -> str:
    from wanscope.spec.metric_names import OF_ATTENTION, OF_GROUPS, TESTED

    *most, last = map(code, TESTED)
    *first, end = map(code, OF_GROUPS)
    *words, overlap = map(code, OF_ATTENTION)
    text = (
        f"Hypotheses can name {', '.join(most)} and {last} ([definitions](trajectories.md)), {', '.join(first)} and "
        f"{end} (see below), {', '.join(words)} and {overlap} ([definitions](attention.md)), and metrics "
        "from installed packages."
    )
    return wrapped(text)


def wrapped(text: str) -> str:
    """Return text in lines of at most 120 characters; the text of a link is not broken."""
    joined = re.sub(r"\[[^]]*\]", lambda link: link[0].replace(" ", "\0"), text)
    return textwrap.fill(joined, 120, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def edits() -> str:
    from wanscope.edit.edits import KINDS
    from wanscope.spec.solver_facts import first_paragraph

    return grid(
        ("edit", "effect", "example"),
        (
            (code(name), cell(first_paragraph(kind.__doc__).rstrip(".")), code(kind.example))
            for name, kind in KINDS.items()
        ),
    )


def _models(head: tuple[str, ...], from_text_alone: bool) -> str:
    from wanscope.take.disk import size_text
    from wanscope.wan.listing import models
    from wanscope.wan.variants import VARIANTS

    rows = []
    # marbles, which needs no download, comes first
    for row in sorted(models(), key=lambda row: row.hub_id is not None):
        if from_text_alone and not row.makes_from_text:
            continue
        count = parameters(row.transformer_parameters)
        cells = {
            "name": code(row.name),
            "what": row.title,
            "transformer": f"{f'{row.experts} x ' if row.experts > 1 else ''}{count}, {row.blocks} blocks",
            "weights in bf16": size_text(row.transformer_bytes) + ("" if row.hub_id else ", in the package"),
            "default video": f"{row.width} x {row.height}, {row.frames} frames",
            "default length": f"{row.frames} frames, {row.fps} fps",
            "sizes": ", ".join(f"{w} x {h}" for w, h in VARIANTS[row.name].sizes if w >= h),
            "makes videos from": "text" if row.makes_from_text else "an image; not yet supported",
        }
        rows.append(tuple(cells[name] for name in head))
    return grid(head, rows)


def parameters(count: int) -> str:
    """Return a number of parameters as text, such as `14.3 B` or `2.6 M`."""
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def models() -> str:
    return _models(
        ("name", "what", "transformer", "sizes", "default length", "makes videos from"), from_text_alone=False
    )


def models_from_text() -> str:
    return _models(("name", "transformer", "weights in bf16", "default video"), from_text_alone=True)


# {table: (page, function that writes it)}
TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "solvers": ("docs/sampling.md", solvers),
    "path metrics": ("docs/trajectories.md", path_metrics),
    "latent metrics": ("docs/trajectories.md", latent_metrics),
    "tested metrics": ("docs/statistics.md", tested_metrics),
    "edits": ("docs/editing.md", edits),
    "models": ("docs/models.md", models),
    "models from text": ("README.md", models_from_text),
}


def region(name: str) -> re.Pattern[str]:
    """Return the pattern of a table's place in a page: its first line, the table, its last line."""
    return re.compile(rf"(<!-- table: {name} [^\n]*-->\n)(.*?)(\n<!-- end of table -->)", re.DOTALL)


def current(page: str, name: str, table: str) -> str:
    """Return the text of a page with that table in its place.

    Raises ValueError unless the page has exactly one place for it.
    """
    if len(region(name).findall(page)) != 1:
        raise ValueError(f"it should have one '<!-- table: {name} {HINT} -->' with a '<!-- end of table -->' after it")
    return region(name).sub(lambda found: f"{found[1]}\n{table}\n{found[3]}", page)


def outdated(root: Path = ROOT) -> dict[str, str]:
    """Return {page: the text that it should have} for the pages below `root` that are out of date."""
    found: dict[str, str] = {}
    for name, (page, table) in TABLES.items():
        before = found.get(page) or (root / page).read_text(encoding="utf-8")
        try:
            after = current(before, name, table())
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from error
        if after != before:
            found[page] = after
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit status 1 where a page is out of date"
    )
    check = parser.parse_args(arguments).check
    pages = outdated()
    for page, text in pages.items():
        if not check:
            (ROOT / page).write_text(text, encoding="utf-8")
        print(f"{page}: {'out of date' if check else 'rewritten'}")
    return 1 if check and pages else 0


if __name__ == "__main__":
    sys.exit(main())

"""`analyze(study)`: compute tables, tests, figures, a report and a text summary from the takes of a study.

    analysis = analyze("my-study")
    print(analysis.summary)
    analysis.tests.tests[0].p_holm

Files written, by default to `studies/<name>/analysis/`:

    report.html              everything on one page that works offline
    summary.txt              what was found, and what cannot be concluded
    metrics.parquet, .csv    take, name, group, seed, slots, metric, state, sigma, part, value
    tests.parquet, .csv      one row per contrast and metric
    courses.parquet, .csv    one test per contrast, metric and state, and per word, step and block
    groups.parquet, .csv     dispersion, distances and separability of groups at each step
    attention.parquet, .csv  if takes have maps: mass, concentration, travel by step and block; centers, overlap
    figures/                 PNG and SVG of every figure
    analysis.json            what was analyzed, how and with which version, and a list of the other files

The metrics are also added to the workspace's catalog, if it has one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wanscope import events
from wanscope.analysis import attention_section, latent_pass
from wanscope.analysis.collection import STUDY_FILE, Collection, Member, collect, generate_command
from wanscope.analysis.contrast_tests import metric_columns, run_tests, unconfirmed
from wanscope.analysis.groups import GroupResult, analyze_groups
from wanscope.analysis.latent_path import EPSILON, LatentPath
from wanscope.analysis.metric import Metric, Subject, all_metrics
from wanscope.analysis.paired_columns import attention_columns, course_columns
from wanscope.analysis.pairing import Comparison, Unit, compare
from wanscope.analysis.path_volume import common_rank
from wanscope.analysis.remove_outdated import FACTS, FILES, remove_outdated
from wanscope.analysis.result import Analysis
from wanscope.analysis.store_metrics import store_metrics
from wanscope.analysis.summary import summarize
from wanscope.analysis.table import compute_table, write_rows
from wanscope.analysis.test_result import CORRECTIONS, Correction, Test
from wanscope.errors import NotCaptured, RequestError, nearest
from wanscope.take.building import new_folder, write_atomic
from wanscope.take.disk import guarded, require_writable
from wanscope.workspace import Workspace

FOLDER = "analysis"
SUMMARY = "summary.txt"
COURSE_COLUMNS = (
    "factor",
    "a",
    "b",
    "metric",
    "title",
    "part",
    "state",
    "block",
    "measure",
    "unit",
    "units",
    "mean_a",
    "mean_b",
    "difference",
    "low",
    "high",
    "interval",
    "p",
    "smallest_p",
    "p_corrected",
    "p_holm",
    "q_bh",
    "family",
    "correction",
)


def analyze(
    source: Any,
    *,
    workspace: Workspace | Path | str | None = None,
    out: Path | str | None = None,
    by: str | None = None,
    contrast: Sequence[str] | None = None,
    baseline: str | None = None,
    unit: Unit | None = None,
    correction: Correction = "max-t",
    write: bool = True,
    report: bool = True,
    on_event: events.Listener = events.ignore,
) -> Analysis:
    """Analyze a study: its name, folder, study.yaml or workspace, the result of `run`, or a list of takes.

    by, contrast, baseline: what is compared (pairing.py); by default what the study's design names, or else every
    slot. unit: "seed" or "scene"; by default chosen from the number of scenes. correction: for multiple testing, a key
    of test_result.CORRECTIONS. out: the output folder; write=False
    writes nothing. report: whether to make the figures and the report page.

    Raises RequestError, RecipeError or TakeNotFound before any work starts, and NotCaptured if no take has a record of
    its path. Damaged or missing takes are left out and named in the result.
    """
    if correction not in CORRECTIONS:
        raise RequestError(
            f"{correction!r} is not a correction for multiple testing",
            nearest(correction, CORRECTIONS),
            "--correction max-t",
        )
    collection = collect(source, workspace)
    folder = _folder(collection, workspace, out) if write else None
    comparison = compare(collection, by, contrast, baseline, unit)
    metrics = all_metrics()
    if folder is not None:
        require_writable(folder)
    for left in collection.left_out:
        on_event(events.Note(f"left out: {left.name}: {left.why}"))
    result = _computed(collection, comparison, metrics, folder, correction, on_event)
    if folder is not None:
        result = write_analysis(result, folder, report=report, on_event=on_event)
        store_metrics(result.table, on_event)
    return result


def _folder(collection: Collection, workspace: Any, out: Path | str | None) -> Path:
    if out is not None:
        return Path(os.path.expanduser(out)).absolute()
    if collection.folder is not None:
        return collection.folder / FOLDER
    return Workspace.find(workspace).folder / FOLDER


def _computed(
    collection: Collection,
    comparison: Comparison,
    metrics: Sequence[Metric],
    folder: Path | None,
    correction: Correction,
    on_event: events.Listener,
) -> Analysis:
    members, notes = collection.members, list(comparison.notes)
    paths = _paths(collection, notes)
    rank = common_rank(list(paths.values()))
    compared = _comparable(members, notes)
    between = None
    if compared:
        arrays = [members[i].take.latents for i in compared]
        on_event(events.Note(f"reading the latents of {len(arrays)} takes, {arrays[0].shape[0]} states each"))
        between = latent_pass.one_pass(arrays, scratch=folder)
    states = tuple(int(k) for k in members[compared[0]].take.states) if compared else ()
    row_of = {member: row for row, member in enumerate(compared)}
    subjects = {
        i: Subject(
            members[i].take,
            path,
            rank,
            between.statistics[row_of[i]] if between is not None and i in row_of else (),
            states,
        )
        for i, path in paths.items()
    }
    table = compute_table(members, metrics, subjects)
    groups = analyze_groups(members, comparison, between, compared, states)
    attention = attention_section.rows(members)
    tests = run_tests(
        collection,
        comparison,
        metric_columns(table),
        groups.drafts,
        attention_columns(members, attention),
        course_columns(members, table, attention),
        correction,
    )
    notes += unconfirmed(collection, comparison, tests.tests)
    damaged = attention_section.damaged(members)
    notes += damaged
    for note in damaged:
        on_event(events.Note(note))
    result = Analysis(
        collection,
        comparison,
        table,
        tests,
        groups,
        rank,
        paths,
        between,
        compared,
        states,
        tuple(notes),
        "",
        tuple(attention),
    )
    return replace(result, summary=summarize(result))


def _paths(collection: Collection, notes: list[str]) -> dict[int, LatentPath]:
    """Return the path of every take that has one, by the member's index."""
    paths, without = {}, []
    for i, member in enumerate(collection.members):
        try:
            paths[i] = latent_pass.path_of(member.take)
        except NotCaptured:
            without.append(member.name)
    if not paths:
        raise NotCaptured(
            f"no take of {collection.name} has a record of its path",
            "they were generated without storing latents",
            f"{_generate_command(collection)} --store-latents",
        )
    if without:
        notes.append(f"left out of all metrics, because they have no record of their path: {', '.join(without)}")
    later = [member for i, member in enumerate(collection.members) if i in paths and member.take.manifest.gram is None]
    if later:
        floors = {member.take.manifest.latents.dtype for member in later if member.take.manifest.latents is not None}
        shown = ", ".join(f"{dtype} (relative rounding {EPSILON[dtype] / np.sqrt(12):.1e})" for dtype in sorted(floors))
        largest = max(
            np.sqrt(paths[i].floor / paths[i].dimension) for i, m in enumerate(collection.members) if m in later
        )
        notes.append(
            f"{len(later)} take(s) have no Gram matrix from sampling: their paths are computed from stored latents, "
            f"{shown}; lengths below about {largest:.2g} rms are rounding error"
        )
    return paths


def _generate_command(collection: Collection) -> str:
    """Return the command that generates the takes again; only the first one if they belong to no study."""
    if collection.folder is not None and (collection.folder / STUDY_FILE).is_file():
        return generate_command(collection.folder)
    take = collection.members[0].take
    return f"wanscope generate {take.id}{Workspace(take.folder.absolute().parent.parent).option}"


def _comparable(members: Sequence[Member], notes: list[str]) -> tuple[int, ...]:
    """Return the indices of the largest set of takes with the same latent shape, stored states and noise levels."""
    kinds: dict[Any, list[int]] = {}
    for i, member in enumerate(members):
        manifest = member.take.manifest
        if manifest.latents is not None:
            sigmas = tuple(np.round(member.take.sigmas[list(manifest.latents.states)], 9))
            kinds.setdefault((manifest.latent_shape, manifest.latents.states, sigmas), []).append(i)
    if not kinds:
        notes.append("no take has stored latents: latent statistics and comparisons between takes are left out")
        return ()
    largest = max(kinds.values(), key=len)
    if len(kinds) > 1:
        rest = [members[i].name for kind in kinds.values() if kind is not largest for i in kind]
        notes.append(
            "not compared state by state with the others, because their size or schedule differs: " + ", ".join(rest)
        )
    return tuple(largest)


def write_analysis(
    analysis: Analysis, folder: Path, *, report: bool = True, on_event: events.Listener = events.ignore
) -> Analysis:
    """Write the tables, the summary and, with `report`, the figures and the page. Return the analysis with its folder.

    Files of an earlier analysis that this one does not write are removed: they would contradict the new tables.
    """
    result = replace(analysis, folder=folder, page=report)
    with new_folder(folder, FACTS) as new, guarded(folder):
        written = write_rows(result.table.records(), new / "metrics")
        tests = [test.record() for test in result.tests.tests]
        written += write_rows(tests, new / "tests", columns=list(Test.__annotations__))
        written += write_rows(result.groups.records(), new / "groups", columns=GroupResult.COLUMNS)
        courses = [{name: getattr(test, name) for name in COURSE_COLUMNS} for test in result.tests.courses]
        written += write_rows(courses, new / "courses", columns=COURSE_COLUMNS)
        if result.attention:
            written += write_rows(result.attention, new / "attention")
        write_atomic(new / SUMMARY, result.summary + "\n")
        if report:
            from wanscope.analysis.report import write_report

            written += write_report(result, new, on_event=on_event)
        names = sorted(path.relative_to(new).as_posix() for path in written)
        # All of them at once, so that a kill does not leave the tables of one analysis next to the figures of another.
        for name in [*names, SUMMARY]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new / name, folder / name)
        remove_outdated(folder, names, on_event)
        facts = {**result.facts(), FILES: names}
        write_atomic(folder / FACTS, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return result

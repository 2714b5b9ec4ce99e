"""`wanscope export STUDY --bundle`: a study's results and methods in one folder that can be published.

    README.md         what the folder contains
    METHODS.md        a paragraph for a paper, with this study's numbers
    study.yaml        the study, ready to run again
    recipes/          one JSON file per take: everything that determines its video
    takes.csv         name, take, seed, prompt, slots, checksums of latents and video
    metrics, tests, groups (.parquet, .csv), figures/, report.html, summary.txt, analysis.json
    versions.json     versions of the software that generated the takes and of that which analyzed them
    SHA256SUMS        checksums of all files; check with `sha256sum -c SHA256SUMS`

Latents are not included: they can be generated again from the recipes.
"""

from __future__ import annotations

import csv
import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from wanscope import __version__, events
from wanscope.analysis.analyze import analyze, write_analysis
from wanscope.analysis.confidence_intervals import BCA_PAIRS
from wanscope.analysis.pairing import Unit
from wanscope.analysis.permutation_tests import DRAWS, EXACT_PAIRS
from wanscope.analysis.remove_outdated import FACTS
from wanscope.analysis.result import Analysis
from wanscope.analysis.test_result import CORRECTIONS, FAMILIES, Correction, TestResults
from wanscope.errors import RequestError
from wanscope.take.building import built_beside
from wanscope.take.csv_cells import harmless
from wanscope.take.disk import file_sha256, files_below, guarded, require_writable
from wanscope.take.store import VIDEO
from wanscope.workspace import Workspace

SUMS = "SHA256SUMS"
PACKAGES = ("numpy", "scipy", "pyarrow", "plotly", "matplotlib", "zarr")


def export_bundle(
    source: Any,
    *,
    workspace: Workspace | Path | str | None = None,
    out: Path | str | None = None,
    by: str | None = None,
    contrast: Sequence[str] | None = None,
    baseline: str | None = None,
    unit: Unit | None = None,
    correction: Correction = "max-t",
    on_event: events.Listener = events.ignore,
) -> Path:
    """Analyze a study, write the bundle and return its folder. The other arguments are those of `analyze`.

    out: the folder, by default `exports/<name>` in the workspace. An earlier bundle there is replaced completely.

    Raises RequestError if the folder contains anything else, and the errors of `analyze`.
    """
    analysis = analyze(
        source,
        workspace=workspace,
        by=by,
        contrast=contrast,
        baseline=baseline,
        unit=unit,
        correction=correction,
        write=False,
        on_event=on_event,
    )
    place = Path(os.path.expanduser(out)).absolute() if out is not None else _default(analysis, workspace)
    if place.is_dir() and any(place.iterdir()) and not (place / SUMS).is_file():
        raise RequestError(f"{place} contains other files", "a bundle needs an empty folder", f"--out {place}-bundle")
    if place.exists() and not place.is_dir():
        raise RequestError(f"{place} is a file", "a bundle is a folder", f"--out {place}-bundle")
    require_writable(place.parent)
    with built_beside(place) as folder, guarded(place.parent):
        _write(analysis, folder, on_event)
    return place


def _default(analysis: Analysis, workspace: Any) -> Path:
    folder = analysis.collection.folder
    space = folder.parent.parent if folder is not None else Workspace.find(workspace).folder
    return space / "exports" / analysis.name


def _write(analysis: Analysis, folder: Path, on_event: events.Listener) -> None:
    written = write_analysis(analysis, folder, on_event=on_event)
    facts = {key: value for key, value in written.facts().items() if key not in ("folder", "report")}
    _json(folder / FACTS, facts)
    collection = analysis.collection
    if collection.folder is not None:
        for path in sorted(collection.folder.glob("study*.yaml")):
            shutil.copyfile(path, folder / path.name)
    (folder / "recipes").mkdir()
    for member in analysis.members:
        _json(folder / "recipes" / f"{member.name}.json", member.take.recipe.model_dump(mode="json"))
    _takes(analysis, folder / "takes.csv")
    _json(folder / "versions.json", _versions(analysis))
    (folder / "METHODS.md").write_text(f"# Methods\n\n{methods(analysis)}\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(analysis), encoding="utf-8")
    lines = [f"{file_sha256(folder / path)}  {path.as_posix()}" for path in files_below(folder)]
    (folder / SUMS).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _takes(analysis: Analysis, path: Path) -> None:
    slots = list(dict.fromkeys(slot for member in analysis.members for slot in member.labels))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "name",
                "take",
                "seed",
                "prompt",
                "tokens",
                *(harmless(f"slot:{s}") for s in slots),
                "latents_sha256",
                "video_sha256",
            ]
        )
        for member in analysis.members:
            manifest = member.take.manifest
            video = next((record.sha256 for record in manifest.files if record.path == VIDEO), "")
            bound = [member.labels.get(slot, "") for slot in slots]
            tokens = "" if manifest.prompt_tokens is None else manifest.prompt_tokens
            prompt = manifest.recipe.prompt
            cells = [member.name, member.id, member.seed, prompt, tokens, *bound, manifest.latents_sha256, video]
            writer.writerow([harmless(cell) if isinstance(cell, str) else cell for cell in cells])


def _versions(analysis: Analysis) -> dict[str, Any]:
    made = list(
        {m.take.manifest.environment.model_dump_json(): m.take.manifest.environment for m in analysis.members}.values()
    )
    return {
        "takes_made_with": [environment.model_dump(mode="json") for environment in made],
        "analyzed_with": {
            "wanscope": __version__,
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in PACKAGES},
        },
    }


def methods(analysis: Analysis) -> str:
    """Return a paragraph for the methods section of a paper, with this study's numbers."""
    members, family = analysis.members, analysis.tests
    recipe = members[0].take.recipe
    video, sampler = recipe.video, recipe.sampler
    seeds = sorted({member.seed for member in members})
    variations = len({member.group for member in members})
    guidance = sampler.guidance if isinstance(sampler.guidance, float | int) else "scheduled"
    parts = [
        f"Videos were generated with {recipe.model.name} ({recipe.model.variant}, {recipe.dtype}) by wanscope "
        f"{members[0].take.manifest.environment.wanscope}: {variations} prompt variations by {len(seeds)} seeds, "
        f"{len(members)} videos of {video.width} x {video.height} pixels and {video.frames} frames, {sampler.steps} "
        f"steps of {sampler.solver} with shift {sampler.shift:g} and guidance {guidance}."
    ]
    if analysis.left_out:
        parts.append(f"{len(analysis.left_out)} further videos were excluded as missing or damaged.")
    later = sum(member.take.manifest.gram is None for member in members)
    of = f"; for {later} videos, from the stored latents" if later else ""
    parts.append(
        "Path metrics were computed from the Gram matrix of the start and the increments of each denoising path, "
        f"accumulated in float64 from the sampler's own latents{of}; lengths are root mean squares per latent value."
    )
    if analysis.rank:
        parts.append(
            f"Log-volumes were computed over the {analysis.rank} largest eigenvalues of the centered path's Gram "
            "matrix, the number that exceeds 100 times the rounding error in every take."
        )
    if family.size:
        units = f"{family.units} {family.unit}s"
        exact = family.units <= EXACT_PAIRS
        drawn = "all sign patterns were enumerated" if exact else f"{DRAWS} random sign patterns were drawn"
        interval = "bias-corrected and accelerated bootstrap" if family.units >= BCA_PAIRS else "paired t"
        contrasts = "; ".join(f"{c.a} against {c.b}" for c in analysis.comparison.contrasts)
        parts.append(
            f"Variations were compared in pairs of equal seeds ({contrasts}), with {units} as units, by two-sided "
            f"sign-flip permutation tests of the mean difference ({drawn}), with 95% {interval} intervals, and by "
            "standardized mean differences with intervals from the noncentral t distribution. Final latents were "
            f"compared by PERMANOVA and energy distance, permuting labels within units. {_of_all(family)}"
            f"{_corrected(family)}"
        )
        confirmed = sum(test.confirmatory for test in family.tests)
        parts.append(
            f"{confirmed} of the tests are of hypotheses written before the first video was generated; the others are "
            "exploratory."
            if confirmed
            else "The hypotheses written before the run name none of the tests: all are exploratory."
            if any(analysis.collection.written)
            else "No hypothesis was written before the run: all tests are exploratory."
        )
    return " ".join(parts)


def _corrected(results: TestResults) -> str:
    """Return one sentence on the correction for multiple testing."""
    counts = [f"{len(tests)} of {FAMILIES[name]}" for name, tests in results.families.items()]
    return (
        f"p values were corrected by {CORRECTIONS[results.correction]}, within families of tests: {'; '.join(counts)}."
    )


def _of_all(results: TestResults) -> str:
    if not any(test.kind == "omnibus" for test in results.tests):
        return ""
    return (
        "Factors with more than two values were also tested as a whole, by permuting values within units: with F of a "
        "two-way analysis of variance with units as blocks, and with PERMANOVA. "
    )


def _readme(analysis: Analysis) -> str:
    return f"""# {analysis.name}

{analysis.summary}

## Contents

- `report.html`: videos, tests and figures on one page that works offline
- `METHODS.md`: a paragraph for the methods section of a paper
- `study.yaml`: `wanscope generate study.yaml` generates the takes again
- `recipes/`, `takes.csv`: everything that determines each video, and checksums of its latents and its file
- `metrics`, `tests`, `groups`, and `attention` if maps were kept: tables, as Parquet and CSV
- `figures/`: all figures, as PNG and SVG
- `versions.json`: software versions and machine
- `SHA256SUMS`: checksums of all files; check with `sha256sum -c SHA256SUMS`
"""

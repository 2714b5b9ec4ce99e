"""Factors, contrasts, and the pairs of takes that share everything except the factor.

A pair is two takes that differ only in the factor: they have the same seed and the same values of all other slots. The
difference of a pair is one number per metric. The differences are averaged within units, which are assumed independent,
and the tests flip the signs of the units' means (permutation_tests.py). A unit is

- a seed, averaged over the scenes, if scenes are a fixed effect: the inference is about these prompts;
- a scene, averaged over its seeds, if scenes are a random effect: the inference is about scenes of that kind. This
  needs a study whose `design.blocks` names the slots that make up a scene, and at least MIN_SCENES scenes.

Shape suffixes: N takes, M metrics, P pairs, U units.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from wanscope.analysis.collection import PROMPT, Collection, Member
from wanscope.errors import RecipeError, nearest
from wanscope.spec.settings import DesignSpec, Hypothesis
from wanscope.study.check_design import EDIT
from wanscope.study.expand import BASELINE

MIN_SCENES = 5  # with fewer, scenes cannot be a random effect
MAX_PAIRWISE = 6  # of more values, each is compared only with the first one (or the baseline)
SWEPT = "edits."  # prefix of the labels of swept settings; the label EDIT names all edits of a take
SEED = "seed"
VARYING_STUDY = 'wanscope generate --template "a [red|blue] circle moves left"'

Unit = Literal["seed", "scene"]


@dataclass(frozen=True)
class Contrast:
    """The difference between takes whose `factor` is a and takes whose `factor` is b."""

    factor: str
    a: str
    b: str

    @property
    def text(self) -> str:
        """The contrast as it is shown: a - b."""
        return f"{self.a} - {self.b}"


@dataclass(frozen=True)
class Comparison:
    """The contrasts of an analysis, and the unit of their tests.

    scenes: the slots whose combinations are scenes. notes: sentences for the summary that explain the choice.
    """

    contrasts: tuple[Contrast, ...]
    unit: Unit
    scenes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """The pairs of one contrast. cells: (scene, seed) of each pair. a, b: indices of its two takes, int [P] each."""

    cells: tuple[tuple[str, int], ...]
    a: np.ndarray
    b: np.ndarray

    @property
    def seeds(self) -> list[int]:
        """The seeds of all pairs, sorted."""
        return sorted({seed for _, seed in self.cells})

    @property
    def scenes(self) -> list[str]:
        """The scenes of all pairs, sorted."""
        return sorted({scene for scene, _ in self.cells})

    def units(self, unit: Unit) -> list[str]:
        """Return the unit of each pair, its seed or its scene, as P names."""
        return [str(seed) if unit == "seed" else scene for scene, seed in self.cells]

    def differences(self, values_NM: np.ndarray, unit: Unit) -> np.ndarray:
        """Return the mean difference a - b of each unit, [U, M], in the order of first appearance in `units`.

        values_NM: one row per take. A unit with a missing value (NaN) in any of its pairs is NaN.
        """
        d_PM = values_NM[self.a] - values_NM[self.b]
        unit_of_pair = self.units(unit)
        names = list(dict.fromkeys(unit_of_pair))
        rows = [d_PM[[i for i, other in enumerate(unit_of_pair) if other == name]].mean(axis=0) for name in names]
        return np.array(rows) if rows else np.empty((0, values_NM.shape[1]))

    def means(self, values_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of a and of b over the pairs, [M] each. values_NM: one row per take."""
        return values_NM[self.a].mean(axis=0), values_NM[self.b].mean(axis=0)


def factors(members: Sequence[Member]) -> dict[str, tuple[str, ...]]:
    """Return the labels that vary and their values, in the study's order; the prompt if no label varies."""
    names = list(dict.fromkeys(key for member in members for key in member.labels))
    found = {}
    for name in names:
        values = tuple(dict.fromkeys(m.labels[name] for m in members if name in m.labels))
        if len(values) > 1:
            found[name] = values
    prompts = tuple(dict.fromkeys(m.take.recipe.prompt for m in members))
    if not found and len(prompts) > 1:
        found[PROMPT] = prompts
    return found


def default_factors(known: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the factors that are compared by default. known: all factors, with their values.

    Edits are one factor, EDIT. If several settings are swept without a baseline, each setting is a factor instead.
    """
    swept = [name for name in known if name.startswith(SWEPT)]
    several = len(swept) > 1 and BASELINE not in known.get(EDIT, ())
    drop = {EDIT} if several else set(swept) if EDIT in known else set()
    return {name: values for name, values in known.items() if name not in drop}


def factor_value(member: Member, factor: str) -> str | None:
    """Return the value of a factor for a take, or None if the take has no such label."""
    return member.take.recipe.prompt if factor == PROMPT and PROMPT not in member.labels else member.labels.get(factor)


def compare(
    collection: Collection,
    by: str | None = None,
    contrast: Sequence[str] | None = None,
    baseline: str | None = None,
    unit: Unit | None = None,
) -> Comparison:
    """Return the requested contrasts, or those of the study's design, or those of every factor.

    by: the factor. contrast: two of its values. baseline: the value that the others, or the two of `contrast`, are
    compared with. unit: the unit of the tests; by default scenes, if there are at least MIN_SCENES. Raises RecipeError
    for a factor, value or unit that the study does not have.
    """
    members, design = collection.members, collection.design
    known = factors(members)
    chosen = by or _infer_factor(contrast, baseline, known) or (design.factor if design is not None else None)
    if chosen is not None and chosen not in known:
        raise _unknown_factor(chosen, members, known)
    compared = {chosen: known[chosen]} if chosen is not None else default_factors(known)
    contrasts, notes = _contrasts(compared, contrast, baseline)
    if design is not None and contrast is None and baseline is None:
        contrasts += _hypothesis_contrasts(design, compared, contrasts)
    scenes = tuple(block for block in (design.blocks if design else ()) if block != SEED and block != chosen)
    return _with_unit(contrasts, members, scenes, unit, notes)


def _unknown_factor(name: str, members: Sequence[Member], known: Mapping[str, tuple[str, ...]]) -> RecipeError:
    """Return the error for a factor that does not vary, or that the takes do not have."""
    fix = f"--by {shlex.quote(next(iter(known)))}" if known else VARYING_STUDY
    value = next((member.labels[name] for member in members if name in member.labels), None)
    if value is not None:
        return RecipeError(f"nothing can be compared by {name!r}", f"all takes have the same value, {value!r}", fix)
    why = "seeds repeat the comparison and are not compared" if name == SEED else _suggest(name, known)
    return RecipeError(f"the takes have no slot {name!r} that varies", why, fix)


def _suggest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    return nearest(name, known) if known else "all takes have the same prompt and edits"


def _infer_factor(
    contrast: Sequence[str] | None, baseline: str | None, known: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Return the only factor that takes all the named values, or None if no value is named. Raises RecipeError."""
    named = [*(contrast or ()), *([baseline] if baseline is not None else [])]
    if not named:
        return None
    fits = [name for name, values in known.items() if set(named) <= set(values)]
    if len(fits) == 1:
        return fits[0]
    factors_of = {value: [name for name, values in known.items() if value in values] for value in named}
    unknown = next((value for value in named if not factors_of[value]), None)
    if unknown is not None:
        every_value = dict.fromkeys(value for values in known.values() for value in values)
        raise RecipeError(f"no slot takes the value {unknown!r}", _suggest(unknown, every_value))
    shown = f"value{'s'[: len(named) != 1]} {', '.join(map(repr, named))}"
    if fits:
        raise RecipeError(f"{len(fits)} slots take the {shown}", ", ".join(fits), f"--by {shlex.quote(fits[0])}")
    # Each value belongs to another slot: suggest a contrast within the slot of the first one.
    slot = factors_of[named[0]][0]
    pair = " ".join(shlex.quote(value) for value in known[slot][:2])
    raise RecipeError(
        f"no single slot takes the {shown}",
        "; ".join(f"{value!r} is a value of {' and of '.join(names)}" for value, names in factors_of.items()),
        f"--by {shlex.quote(slot)} --contrast {pair}",
    )


def _contrasts(
    compared: Mapping[str, tuple[str, ...]], contrast: Sequence[str] | None, baseline: str | None
) -> tuple[list[Contrast], list[str]]:
    """Return the contrasts of these factors, and notes for the summary. Raises RecipeError for an unknown value."""
    out, notes = [], []
    for factor, values in compared.items():
        named = [*(contrast or ()), *([baseline] if baseline is not None else [])]
        for value in named:
            if value not in values:
                raise RecipeError(f"the slot {factor!r} does not take the value {value!r}", nearest(value, values))
        if len(set(named)) < len(named):
            twice = next(value for value in named if named.count(value) > 1)
            raise RecipeError(f"{twice!r} is compared with itself", "a contrast needs two different values")
        if contrast:
            out.append(Contrast(factor, contrast[0], contrast[1]))
            out += [Contrast(factor, value, baseline) for value in contrast if baseline is not None]
        elif baseline is not None or len(values) > MAX_PAIRWISE or (factor == EDIT and BASELINE in values):
            unedited = factor == EDIT and BASELINE in values
            against = baseline if baseline is not None else BASELINE if unedited else values[0]
            out += [Contrast(factor, value, against) for value in values if value != against]
            if baseline is None and not unedited:
                notes.append(f"{factor} takes {len(values)} values: each is compared with the first, {against!r}")
        else:
            out += [Contrast(factor, a, b) for a, b in combinations(values, 2)]
    return out, notes


def _hypothesis_contrasts(
    design: DesignSpec, compared: Mapping[str, tuple[str, ...]], contrasts: Sequence[Contrast]
) -> list[Contrast]:
    """Return the contrasts of the study's hypotheses that `contrasts` does not contain, in either order."""
    values = compared.get(design.factor, ())
    listed = {frozenset((contrast.a, contrast.b)) for contrast in contrasts if contrast.factor == design.factor}
    named = dict.fromkeys(each.contrast for each in design.hypotheses if each.contrast is not None)
    out = []
    for a, b in named:
        if a != b and a in values and b in values and frozenset((a, b)) not in listed:
            listed.add(frozenset((a, b)))
            out.append(Contrast(design.factor, a, b))
    return out


def _with_unit(
    contrasts: list[Contrast], members: Sequence[Member], scenes: tuple[str, ...], unit: Unit | None, notes: list[str]
) -> Comparison:
    """Return the comparison with the requested or default unit. Raises RecipeError if scenes are not possible."""
    count = min((len(find_pairs(members, contrast, scenes).scenes) for contrast in contrasts), default=0)
    if unit == "scene" and not scenes:
        raise _no_scenes(contrasts, members)
    chosen: Unit = unit or ("scene" if scenes and count >= MIN_SCENES else "seed")
    if scenes and count < MIN_SCENES:
        notes.append(
            f"{count} scene{'s'[: count != 1]} in the comparison, and {MIN_SCENES} are needed to generalize to other "
            "scenes: the findings hold for these prompts"
        )
    return Comparison(tuple(contrasts), chosen, scenes, tuple(notes))


def _no_scenes(contrasts: Sequence[Contrast], members: Sequence[Member]) -> RecipeError:
    """Return the error for scenes as units in a study that names none."""
    slots = [name for name in factors(members) if name not in (EDIT, PROMPT) and not name.startswith(SWEPT)]
    factor = contrasts[0].factor if contrasts else ""
    scenes = [name for name in shared_labels(members, factor) if name in slots] if factor in slots else []
    design = [name if name.isidentifier() else json.dumps(name) for name in (factor, *scenes[:1])]
    fix = f"design: {{factor: {design[0]}, blocks: [seed, {design[1]}]}}" if scenes else "--unit seed"
    return RecipeError("the study names no slots that are scenes", "only then can scenes be units", fix)


def shared_labels(members: Sequence[Member], factor: str) -> list[str]:
    """Return the labels that the two takes of a pair have in common.

    These are all labels except the factor itself and

    - labels that are aliased with it, because each value of the factor always occurs with the same value of the label;
    - the other description of the same edits: a sweep labels a take both with EDIT and with each swept setting.
    """
    names = list(dict.fromkeys(key for member in members for key in member.labels if key != factor))
    out = []
    for name in names:
        label_values: dict[str | None, set[str | None]] = {}  # the label's values by the factor's value
        for member in members:
            label_values.setdefault(factor_value(member, factor), set()).add(member.labels.get(name))
        one_each = all(len(values) == 1 for values in label_values.values())
        aliased = one_each and len(set.union(*label_values.values())) > 1
        same_edits = name == EDIT if factor.startswith(SWEPT) else name.startswith(SWEPT)
        if not aliased and not same_edits:
            out.append(name)
    return out


def find_pairs(members: Sequence[Member], contrast: Contrast, scenes: Sequence[str] = ()) -> Pairs:
    """Return the pairs of takes that differ only in the contrast's factor.

    scenes: labels that make up a scene; if empty, all labels that the takes of a pair share.
    """
    shared = shared_labels(members, contrast.factor) if contrast.factor != PROMPT else []
    cells: dict[tuple[tuple[str | None, ...], int], dict[str, int]] = {}
    for i, member in enumerate(members):
        value = factor_value(member, contrast.factor)
        if value in (contrast.a, contrast.b):
            key = (tuple(member.labels.get(name) for name in shared), member.seed)
            cells.setdefault(key, {})[str(value)] = i
    complete = [(key, indices) for key, indices in cells.items() if len(indices) == 2]
    in_scene = [shared.index(name) for name in scenes if name in shared] if scenes else range(len(shared))
    names = tuple(
        (", ".join(str(labels[i]) for i in in_scene if labels[i] is not None), seed) for (labels, seed), _ in complete
    )
    a = np.array([indices[contrast.a] for _, indices in complete], dtype=int)
    b = np.array([indices[contrast.b] for _, indices in complete], dtype=int)
    return Pairs(names, a, b)


def is_confirmatory(hypotheses: Sequence[Hypothesis], written: Sequence[bool], contrast: Contrast, metric: str) -> bool:
    """Return whether a hypothesis that was written before the first take names this contrast and metric.

    written: for each hypothesis, whether it was written before the first take (Collection.written).
    """
    for hypothesis, early in zip(hypotheses, written, strict=False):
        same_contrast = hypothesis.contrast is not None and set(hypothesis.contrast) == {contrast.a, contrast.b}
        if early and same_contrast and hypothesis.metric == metric:
            return True
    return False

"""Factors, contrasts, and the pairs of takes that share everything except the factor.

A pair is two takes that differ only in the factor: they have the same seed and the same values of all other slots. The
difference of a pair is one number per metric. Pairs are averaged into units, whose signs the tests flip
(permutation_tests.py):

- seeds, each averaged over the scenes, if the scenes are fixed: the claim is about these prompts;
- scenes, each averaged over its seeds, if `design.blocks` names the slots that are scenes and there are at least SCENES
  of them: the claim is about scenes of that kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from wanscope.analysis.collection import PROMPT, Collection, Member
from wanscope.errors import RecipeError, nearest
from wanscope.spec.settings import DesignSpec, Hypothesis
from wanscope.study.check_design import EDIT
from wanscope.study.expand import BASELINE

SCENES = 5  # fewer do not support a claim about other scenes
EVERY_PAIR = 6  # with more values, each is compared only with the first one (or the baseline)
SWEPT = "edits."  # prefix of the labels of swept settings; the label EDIT names all edits of a take
SEED = "seed"

Unit = Literal["seed", "scene"]


@dataclass(frozen=True)
class Contrast:
    """The difference between takes whose `factor` is a and takes whose `factor` is b."""

    factor: str
    a: str
    b: str

    @property
    def text(self) -> str:
        return f"{self.a} - {self.b}"


@dataclass(frozen=True)
class Comparison:
    """The contrasts of an analysis and how they are tested.

    scenes: slots whose combinations are scenes. notes: sentences about the choice for the summary.
    """

    contrasts: tuple[Contrast, ...]
    unit: Unit
    scenes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pairs:
    """The pairs of one contrast. cells: the (scene, seed) of each; a, b: indices of the members, [P] each."""

    cells: tuple[tuple[str, int], ...]
    a: np.ndarray
    b: np.ndarray

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in self.cells})

    @property
    def scenes(self) -> list[str]:
        return sorted({scene for scene, _ in self.cells})

    def units(self, unit: Unit) -> list[str]:
        """Return the unit of each pair, P names: its seed or its scene."""
        return [str(seed) if unit == "seed" else scene for scene, seed in self.cells]

    def differences(self, values_NM: np.ndarray, unit: Unit) -> np.ndarray:
        """Return the mean difference a - b of every unit, [units, M], in the order of first appearance in `units`."""
        d_PM = values_NM[self.a] - values_NM[self.b]
        keys = self.units(unit)
        order = list(dict.fromkeys(keys))
        rows = [d_PM[[i for i, key in enumerate(keys) if key == wanted]].mean(axis=0) for wanted in order]
        return np.array(rows) if rows else np.empty((0, values_NM.shape[1]))

    def means(self, values_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the means of a and of b over the pairs, [M] each."""
        return values_NM[self.a].mean(axis=0), values_NM[self.b].mean(axis=0)


def factors(members: Sequence[Member]) -> dict[str, tuple[str, ...]]:
    """Return the labels that vary, with their values in the order of the study; the prompt if nothing else varies."""
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
    """Return the factors that are compared if none is named.

    Edits are compared as a whole; or by each swept setting, if there are several and no baseline.
    """
    swept = [name for name in known if name.startswith(SWEPT)]
    several = len(swept) > 1 and BASELINE not in known.get(EDIT, ())
    drop = {EDIT} if several else set(swept) if EDIT in known else set()
    return {name: values for name, values in known.items() if name not in drop}


def value_of(member: Member, factor: str) -> str | None:
    """Return the value of a factor for a take, or None if it has none."""
    return member.take.recipe.prompt if factor == PROMPT and PROMPT not in member.labels else member.labels.get(factor)


def compare(
    collection: Collection,
    by: str | None = None,
    contrast: Sequence[str] | None = None,
    baseline: str | None = None,
    unit: Unit | None = None,
) -> Comparison:
    """Return the contrasts asked for, or those of the study's design, or those of every slot that varies.

    Raises RecipeError for a factor, value or unit that the study does not have.
    """
    members, design = collection.members, collection.design
    known = factors(members)
    every = _all_labels(members)
    chosen = by or _factor_of(contrast, baseline, known) or (design.factor if design is not None else None)
    if chosen is not None and chosen not in known:
        if chosen in every:
            raise RecipeError(
                f"nothing can be compared by {chosen!r}", f"all takes have the same: {next(iter(every[chosen]))}"
            )
        names = [*known, SEED] if chosen == SEED else list(known)
        raise RecipeError(
            f"the takes have no slot {chosen!r} that varies",
            "seeds repeat the comparison and are not compared"
            if chosen == SEED
            else nearest(chosen, names or ["none"]),
            f"--by {next(iter(known))}" if known else "a study whose prompt has alternatives",
        )
    wanted = {chosen: known[chosen]} if chosen is not None else default_factors(known)
    contrasts, notes = _contrasts(wanted, contrast, baseline)
    if design is not None and contrast is None and baseline is None:
        contrasts += _hypothesis_contrasts(design, wanted, contrasts)
    scenes = tuple(block for block in (design.blocks if design else ()) if block != SEED and block != chosen)
    return _with_unit(contrasts, members, scenes, unit, notes)


def _all_labels(members: Sequence[Member]) -> dict[str, dict[str, None]]:
    out: dict[str, dict[str, None]] = {}
    for member in members:
        for name, value in member.labels.items():
            out.setdefault(name, {})[value] = None
    return out


def _factor_of(
    contrast: Sequence[str] | None, baseline: str | None, known: Mapping[str, tuple[str, ...]]
) -> str | None:
    """Return the only factor that has all the values named, if --by is not given. Raises RecipeError otherwise."""
    values = [*(contrast or ()), *([baseline] if baseline is not None else [])]
    if not values:
        return None
    fits = [name for name, have in known.items() if set(values) <= set(have)]
    if len(fits) == 1:
        return fits[0]
    everything = [value for have in known.values() for value in have]
    missing = [value for value in values if value not in everything]
    if missing:
        raise RecipeError(f"no slot takes the value {missing[0]!r}", nearest(missing[0], everything or ["none"]))
    raise RecipeError(
        f"{', '.join(map(repr, values))} are values of {len(fits) or 'no single'} slot{'s' * (len(fits) != 1)}",
        "",
        f"--by {(fits or list(known) or ['NAME'])[0]}",
    )


def _contrasts(
    wanted: Mapping[str, tuple[str, ...]], contrast: Sequence[str] | None, baseline: str | None
) -> tuple[list[Contrast], list[str]]:
    out, notes = [], []
    for factor, values in wanted.items():
        named = [*(contrast or ()), *([baseline] if baseline is not None else [])]
        for value in named:
            if value not in values:
                raise RecipeError(
                    f"{factor} does not take the value {value!r}",
                    f"it takes {', '.join(map(repr, values))}; {nearest(value, values)}",
                )
        if len(set(named)) < len(named):
            raise RecipeError(f"{named[0]!r} is compared with itself", "a contrast is of two different values")
        if contrast:
            out.append(Contrast(factor, contrast[0], contrast[1]))
            out += [Contrast(factor, value, baseline) for value in contrast if baseline is not None]
        elif baseline is not None or len(values) > EVERY_PAIR or (factor == EDIT and BASELINE in values):
            plain = factor == EDIT and BASELINE in values
            against = baseline if baseline is not None else BASELINE if plain else values[0]
            out += [Contrast(factor, value, against) for value in values if value != against]
            if baseline is None and not plain:
                notes.append(f"{factor} takes {len(values)} values: each is compared with the first, {against!r}")
        else:
            out += [Contrast(factor, a, b) for a, b in combinations(values, 2)]
    return out, notes


def _hypothesis_contrasts(
    design: DesignSpec, wanted: Mapping[str, tuple[str, ...]], have: Sequence[Contrast]
) -> list[Contrast]:
    """Return the contrasts of the study's hypotheses that `have` does not contain."""
    values = wanted.get(design.factor, ())
    there = {frozenset((contrast.a, contrast.b)) for contrast in have if contrast.factor == design.factor}
    named = dict.fromkeys(each.contrast for each in design.hypotheses if each.contrast is not None)
    out = []
    for a, b in named:
        if a != b and a in values and b in values and frozenset((a, b)) not in there:
            there.add(frozenset((a, b)))
            out.append(Contrast(design.factor, a, b))
    return out


def _with_unit(
    contrasts: list[Contrast], members: Sequence[Member], scenes: tuple[str, ...], unit: Unit | None, notes: list[str]
) -> Comparison:
    count = min((len(pairs_of(members, contrast, scenes).scenes) for contrast in contrasts), default=0)
    if unit == "scene" and not scenes:
        raise RecipeError(
            "the study names no slots that are scenes",
            "only then can scenes be units",
            "design: {blocks: [seed, SLOT]}",
        )
    chosen: Unit = unit or ("scene" if scenes and count >= SCENES else "seed")
    if scenes and count < SCENES:
        notes.append(
            f"{count} scene{'s'[: count != 1]} in the comparison, and {SCENES} are needed to generalize to other "
            "scenes: the findings hold for these prompts"
        )
    return Comparison(tuple(contrasts), chosen, scenes, tuple(notes))


def others(members: Sequence[Member], factor: str) -> list[str]:
    """Return the labels that two takes of a pair share.

    These are all labels except the factor, labels that change only with it, and the other name of the same edits.
    """
    names = list(dict.fromkeys(key for member in members for key in member.labels if key != factor))
    out = []
    for name in names:
        along: dict[str | None, set[str | None]] = {}
        for member in members:
            along.setdefault(value_of(member, factor), set()).add(member.labels.get(name))
        follows = all(len(values) == 1 for values in along.values()) and len(set.union(*along.values())) > 1
        same_edits = name == EDIT if factor.startswith(SWEPT) else name.startswith(SWEPT)
        if not follows and not same_edits:
            out.append(name)
    return out


def pairs_of(members: Sequence[Member], contrast: Contrast, scenes: Sequence[str] = ()) -> Pairs:
    """Return the pairs of takes that differ only in the contrast's factor.

    scenes: labels that make up a scene; all labels except the factor if none is named.
    """
    rest = others(members, contrast.factor) if contrast.factor != PROMPT else []
    cells: dict[tuple[tuple[str | None, ...], int], dict[str, int]] = {}
    for i, member in enumerate(members):
        value = value_of(member, contrast.factor)
        if value in (contrast.a, contrast.b):
            key = (tuple(member.labels.get(name) for name in rest), member.seed)
            cells.setdefault(key, {})[str(value)] = i
    whole = [(key, found) for key, found in cells.items() if len(found) == 2]
    places = [rest.index(name) for name in scenes if name in rest] if scenes else range(len(rest))
    names = tuple((", ".join(str(key[0][p]) for p in places if key[0][p] is not None), key[1]) for key, _ in whole)
    a = np.array([found[contrast.a] for _, found in whole], dtype=int)
    b = np.array([found[contrast.b] for _, found in whole], dtype=int)
    return Pairs(names, a, b)


def confirms(hypotheses: Sequence[Hypothesis], written: Sequence[bool], contrast: Contrast, metric: str) -> bool:
    """Return whether a hypothesis written before the first take names this contrast and metric."""
    for hypothesis, early in zip(hypotheses, written, strict=False):
        same = hypothesis.contrast is not None and set(hypothesis.contrast) == {contrast.a, contrast.b}
        if early and same and hypothesis.metric == metric:
            return True
    return False

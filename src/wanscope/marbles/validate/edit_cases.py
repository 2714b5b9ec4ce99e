"""The questions of `wanscope validate edits` as cases: one video each, with what it should show.

A case is a scene's caption, edits, a seed, and what to look for. Its key covers everything that determines its video,
so that a case which two questions share is made once, and an interrupted run can be resumed.

The donor of an injection describes the same scene with one attribute changed, in the same phrasing, so that the two
texts differ in one word.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from wanscope.edit.amplify import MODES as AMPLIFY_MODES
from wanscope.edit.edits import Bend, Edit, Inject, Steer
from wanscope.marbles import world

_STREAM = 2_000_003  # separate, so that no scene is one of the training or of another validation
BLOCKS = ("all", "early", "mid", "late")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
MODES = ("mix", "append", "tokens")
CHANGED = ("color", "shape", "motion")
VALUES: dict[str, Sequence[str]] = {
    "color": tuple(world.COLORS),
    "shape": world.SHAPES,
    "motion": tuple(world.MOTIONS),
    "size": tuple(world.SIZES),
}


@dataclass(frozen=True)
class Case:
    """One video of a question.

    question, condition: what is asked, and under which setting. number: of the pair; the same number means the same
    scene and seed in every condition of a question. scene: what the prompt describes. wanted: attributes and the values
    that the edit should give them. measured: figures that are known before the video is made.
    """

    question: str
    condition: dict[str, Any]
    number: int
    scene: world.Scene
    prompt: str
    seed: int
    edits: tuple[Edit, ...] = ()
    wanted: dict[str, str] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def group(self) -> tuple[str, str]:
        """Cases with the same group and number belong together: a table compares them, or leaves all of them out."""
        return self.question, self.condition.get("attribute", "")

    @property
    def key(self) -> str:
        """A hash of what determines the video, including defaults, so that a changed default gives a new key."""
        edits = [edit.model_dump(mode="json") for edit in self.edits]
        for edit in edits:
            if "sha256" in edit:
                edit.pop("direction", None)  # the file's content counts, not its path
        text = json.dumps([self.prompt, self.seed, edits], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Pair:
    """A scene, and the same one with `attribute` changed to `value`, each with its caption in the same phrasing."""

    number: int
    attribute: str
    value: str
    scene: world.Scene
    prompt: str
    donor: str


def pairs(attribute: str, count: int, still: bool = False) -> Iterator[Pair]:
    """Yield `count` pairs that differ in one attribute of a single object, or in the background.

    Neither scene is a held-out combination. still: whether the object does not move.
    """
    for number in range(count):
        rng = np.random.default_rng([_STREAM, sum(map(ord, attribute)), number])
        while True:
            scene = world.sample_scene(rng, 1, held_out=False)
            if still != (scene.things[0].motion == "still") and (still or attribute != "motion"):
                continue
            other = [value for value in _values(attribute) if value != _own(scene, attribute)]
            value = str(rng.choice(other))
            if not _with(scene, attribute, value).held_out:
                break
        phrasing = int(rng.integers(1 << 30))
        yield Pair(
            number,
            attribute,
            value,
            scene,
            _caption(scene, phrasing),
            _caption(_with(scene, attribute, value), phrasing),
        )


def _values(attribute: str) -> Sequence[str]:
    return tuple(world.BACKGROUNDS) if attribute == "background" else VALUES[attribute]


def _own(scene: world.Scene, attribute: str) -> str:
    return scene.background if attribute == "background" else getattr(scene.things[0], attribute)


def _with(scene: world.Scene, attribute: str, value: str) -> world.Scene:
    if attribute == "background":
        return replace(scene, background=value)
    return replace(scene, things=(replace(scene.things[0], **{attribute: value}),))


def _caption(scene: world.Scene, phrasing: int) -> str:
    return world.caption(scene, np.random.default_rng(phrasing), full=True)


def _case(question: str, pair: Pair, condition: dict[str, Any], edits: Sequence[Edit], **more: Any) -> Case:
    wanted = more.pop("wanted", {pair.attribute: pair.value})
    return Case(question, condition, pair.number, pair.scene, pair.prompt, pair.number, tuple(edits), wanted, **more)


def injections(count: int) -> Iterator[Case]:
    """How often does a donor that differs in one attribute change it, by blocks and strength?"""
    for attribute in CHANGED:
        for pair in pairs(attribute, count):
            base = {"attribute": attribute}
            yield _case("inject", pair, {**base, "blocks": "none", "strength": 0.0}, ())
            donor = replace(pair, prompt=pair.donor)
            yield _case("inject", donor, {**base, "blocks": "donor as prompt", "strength": 1.0}, ())
            for blocks in BLOCKS:
                for strength in STRENGTHS:
                    edit = Inject(pair.donor, mode="mix", blocks=blocks, strength=strength)
                    yield _case("inject", pair, {**base, "blocks": blocks, "strength": strength}, [edit])


def hidden(count: int) -> Iterator[Case]:
    """The same for hidden states of the donor's own pass, injected early, in the middle or late."""
    for pair in pairs("color", count):
        for blocks in ("early", "mid", "late"):
            edit = Inject(pair.donor, on="hidden", blocks=blocks, strength=1.0)
            yield _case("hidden", pair, {"blocks": blocks, "strength": 1.0}, [edit])


def modes(count: int) -> Iterator[Case]:
    """The three modes on the context, with a donor that is a whole sentence and with one that is a single word."""
    for pair in pairs("color", count):
        for donor, text in (("sentence", pair.donor), ("one word", pair.value)):
            for mode in MODES:
                for strength in STRENGTHS:
                    edit = Inject(text, mode=mode, strength=strength)
                    yield _case("modes", pair, {"donor": donor, "mode": mode, "strength": strength}, [edit])


def styles(count: int) -> Iterator[Case]:
    """A short donor that describes only the whole frame (marbles' backgrounds), on a caption that describes everything.

    For comparison, the whole sentence with that background as the donor.
    """
    for pair in pairs("background", count):
        yield _case("style", pair, {"donor": "none", "mode": "", "strength": 0.0}, ())
        for strength in (0.5, 0.75):
            edit = Inject(pair.donor, mode="mix", strength=strength)
            yield _case("style", pair, {"donor": "sentence", "mode": "mix", "strength": strength}, [edit])
        for mode in MODES:
            for strength in STRENGTHS:
                edit = Inject(f"on a {pair.value} background", mode=mode, strength=strength)
                yield _case("style", pair, {"donor": "short", "mode": mode, "strength": strength}, [edit])


def bends(count: int) -> Iterator[Case]:
    """Moving the map of a still object's shape word to the left, or the maps of all words that describe it.

    The latter also while they are amplified. Amplifying alone and moving to the right are controls, which should not
    move the object to the left.
    """
    for pair in pairs("shape", count, still=True):
        thing = pair.scene.things[0]
        yield _case("bend", pair, {"words": "", "bend": "", "blocks": "none"}, (), wanted={})
        for blocks in BLOCKS:
            edit = Bend((thing.shape,), "translate", x=-0.25, blocks=blocks)
            condition = {"words": "shape", "bend": "translate x=-0.25", "blocks": blocks}
            yield _case("bend", pair, condition, [edit], wanted={})
        words = (thing.size, thing.color, thing.shape)
        left, right = (Bend(words, "translate", x=x) for x in (-0.25, 0.25))
        louder = Bend(words, "amplify", factor=4.0)
        chains: list[tuple[str, str, list[Bend]]] = [
            ("translate x=-0.25", "all", [left]),
            ("region, left half", "all", [Bend(words, "region", box=(0.0, 0.0, 0.5, 1.0))]),
            ("amplify 4", "all", [louder]),
            ("translate x=0.25, amplify 4", "all", [right, louder]),
            *(("translate x=-0.25, amplify 4", blocks, [left, louder]) for blocks in BLOCKS),
        ]
        for name, blocks, chain in chains:
            edits = [edit.model_copy(update={"blocks": blocks}) for edit in chain]
            yield _case("bend", pair, {"words": "object", "bend": name, "blocks": blocks}, edits, wanted={})


def amplifications(count: int, natural: Callable[[str, str], float]) -> Iterator[Case]:
    """A donor that is first moved away from the prompt, by each method, at equal strength.

    natural: returns the raw difference of a prompt and a donor.
    """
    for pair in pairs("color", count):
        own = natural(pair.prompt, pair.donor)
        for strength in (0.25, 0.5):
            plain = Inject(pair.donor, mode="mix", strength=strength)
            yield _case("amplify", pair, {"amplify": "", "times": 1.0, "strength": strength}, [plain])
            for way in AMPLIFY_MODES:
                for times in (1.5, 2.0):
                    edit = plain.model_copy(update={"difference": own * times, "amplify": way})
                    condition = {"amplify": way, "times": times, "strength": strength}
                    measured = {"asked": own * times, "natural": own}
                    yield _case("amplify", pair, condition, [edit], measured=measured)


def distances(count: int, figures: Callable[[str, str], dict[str, float]]) -> Iterator[Case]:
    """Donors at many distances: one to four attributes changed, in the same or another phrasing, at strength 0.5.

    figures: returns the differences of a prompt and a donor.
    """
    for number in range(2 * count):
        rng = np.random.default_rng([_STREAM, 7, number])
        changed = list(rng.choice(list(VALUES), size=int(rng.integers(1, 5)), replace=False))
        while True:
            scene = world.sample_scene(rng, 1, held_out=False)
            wanted = {a: str(rng.choice([v for v in VALUES[a] if v != getattr(scene.things[0], a)])) for a in changed}
            other = scene
            for attribute, value in wanted.items():
                other = _with(other, attribute, value)
            if not other.things[0].held_out:
                break
        phrasing, same = int(rng.integers(1 << 30)), bool(rng.random() < 0.5)
        prompt = _caption(scene, phrasing)
        donor = _caption(other, phrasing if same else int(rng.integers(1 << 30)))
        condition = {"changed": len(changed), "same words": same}
        edit = Inject(donor, mode="mix", strength=0.5)
        yield Case("distance", condition, number, scene, prompt, number, (edit,), wanted, figures(prompt, donor))


def in_order(cases: Iterable[Case]) -> list[Case]:
    """Return the cases of all questions for the first pair, then for the next one, and so on.

    So an interrupted run has answered every question for the pairs that it completed. (`distance` has twice as many
    scenes, with one video each.)
    """
    return sorted(cases, key=lambda case: case.number // 2 if case.question == "distance" else case.number)


def complete(found: Iterable[tuple[Case, Any]], everything: Iterable[Case]) -> list[tuple[Case, Any]]:
    """Return those of the finished cases whose pair is complete in its group."""
    wanted = Counter((case.group, case.number) for case in everything)
    kept = list(found)
    have = Counter((case.group, case.number) for case, _ in kept)
    return [pair for pair in kept if have[pair[0].group, pair[0].number] == wanted[pair[0].group, pair[0].number]]


def ablations(count: int, directions: dict[str, Steer]) -> Iterator[Case]:
    """A color's learned direction ablated from prompts that name it, and added to prompts that name another one.

    directions: the steering edit (file and hash) by color.
    """
    for pair in pairs("color", count):
        own = pair.scene.things[0].color
        yield _case("ablate", pair, {"strength": 0.0}, (), wanted={"not color": own})
        for strength in (0.5, 1.0):
            edit = directions[own].model_copy(update={"strength": strength, "operation": "ablate"})
            yield _case("ablate", pair, {"strength": strength}, [edit], wanted={"not color": own})
        for strength in (1.0, 2.0):
            edit = directions[pair.value].model_copy(update={"strength": strength, "operation": "add"})
            yield _case("add", pair, {"strength": strength}, [edit])


def direction_pairs(color: str, count: int) -> list[tuple[str, str]]:
    """Return pairs of captions that differ only in the color: with `color`, and with another one."""
    out = []
    for number in range(count):
        rng = np.random.default_rng([_STREAM, 9, list(world.COLORS).index(color), number])
        while True:
            scene = _with(world.sample_scene(rng, 1), "color", color)
            other = str(rng.choice([c for c in world.COLORS if c != color]))
            if not scene.held_out and not _with(scene, "color", other).held_out:
                break
        phrasing = int(rng.integers(1 << 30))
        out.append((_caption(scene, phrasing), _caption(_with(scene, "color", other), phrasing)))
    return out


def difference_pairs(count: int) -> list[tuple[str, str]]:
    """Return prompt pairs at many distances, to compare raw and projected differences; one or two objects."""
    out = []
    for number in range(count):
        rng = np.random.default_rng([_STREAM, 8, number])
        objects = 1 + number % 2
        a, b = (world.sample_scene(rng, objects) for _ in range(2))
        if number % 4 < 2:  # half of them differ in one attribute of the first object
            attribute = str(rng.choice(list(VALUES)))
            value = str(rng.choice([v for v in VALUES[attribute] if v != getattr(a.things[0], attribute)]))
            b = replace(a, things=(replace(a.things[0], **{attribute: value}), *a.things[1:]))
        phrasing = int(rng.integers(1 << 30))
        out.append((_caption(a, phrasing), _caption(b, phrasing)))
    return out

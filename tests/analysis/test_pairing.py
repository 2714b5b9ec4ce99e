"""What is compared: factors, contrasts, pairs, units, hypotheses; requests that cannot be met."""

from __future__ import annotations

import shlex
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from wanscope.analysis import pairing
from wanscope.analysis.collection import Collection, Member
from wanscope.analysis.pairing import Contrast, compare, find_pairs
from wanscope.errors import RecipeError
from wanscope.recipe import Study


def members(slots: dict[str, tuple[str, ...]], seeds: int = 3, skip: tuple[tuple[str, int], ...] = ()) -> list[Member]:
    out = []
    for values in product(*slots.values()):
        for seed in range(seeds):
            labels = dict(zip(slots, values, strict=True))
            name = f"{'-'.join(values)}_{seed}"
            if (values[0], seed) not in skip:
                recipe = SimpleNamespace(seed=seed, prompt=" ".join(values), labels=labels)
                out.append(Member(name, SimpleNamespace(recipe=recipe, id=name), labels))  # type: ignore[arg-type]
    return out


def collection(found: list[Member], study: dict[str, Any] | None = None, written: tuple[bool, ...] = ()) -> Collection:
    made = None if study is None else Study.model_validate({"prompt": "a", **study})
    return Collection("made", tuple(found), study=made, written=written)


WHO = {"who": ("men", "women", "people"), "where": ("home", "beach")}


def test_by_default_every_slot_is_compared() -> None:
    found = compare(collection(members(WHO)))
    assert [(c.factor, c.a, c.b) for c in found.contrasts] == [
        ("who", "men", "women"),
        ("who", "men", "people"),
        ("who", "women", "people"),
        ("where", "home", "beach"),
    ]
    assert found.unit == "seed"


def test_pairs_share_all_but_the_factor() -> None:
    people = members(WHO)
    pairs = find_pairs(people, Contrast("who", "men", "people"))
    assert len(pairs.cells) == 6 and pairs.seeds == [0, 1, 2] and pairs.scenes == ["beach", "home"]
    for a, b in zip(pairs.a, pairs.b, strict=True):
        assert people[a].seed == people[b].seed
        assert people[a].labels["where"] == people[b].labels["where"]
        assert (people[a].labels["who"], people[b].labels["who"]) == ("men", "people")


def test_a_missing_take_removes_its_pair() -> None:
    pairs = find_pairs(members(WHO, skip=(("men", 1),)), Contrast("who", "men", "people"))
    assert pairs.seeds == [0, 2]


def test_differences_are_means_of_units() -> None:
    people = members(WHO, seeds=2)
    values = np.arange(len(people), dtype=float)[:, None] ** 2
    pairs = find_pairs(people, Contrast("who", "men", "women"))

    def value(who: str, where: str, seed: int) -> float:
        return next(values[i, 0] for i, m in enumerate(people) if m.name == f"{who}-{where}_{seed}")

    by_seed = [np.mean([value("men", w, s) - value("women", w, s) for w in WHO["where"]]) for s in (0, 1)]
    by_scene = [np.mean([value("men", w, s) - value("women", w, s) for s in (0, 1)]) for w in WHO["where"]]
    assert pairs.differences(values, "seed")[:, 0] == pytest.approx(by_seed)
    assert pairs.differences(values, "scene")[:, 0] == pytest.approx(by_scene)


def test_contrast_and_baseline() -> None:
    people = collection(members(WHO))
    asked = compare(people, by="who", contrast=("men", "women"), baseline="people")
    assert [c.text for c in asked.contrasts] == ["men - women", "men - people", "women - people"]
    assert [c.text for c in compare(people, baseline="people").contrasts] == ["men - people", "women - people"]
    assert [c.factor for c in compare(people, contrast=("beach", "home")).contrasts] == ["where"]


def test_a_factor_of_many_values_is_compared_with_its_first() -> None:
    found = compare(collection(members({"n": tuple("abcdefgh")})))
    assert [c.b for c in found.contrasts] == ["a"] * 7
    assert "8 values" in found.notes[0]


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"by": "whom"}, "did you mean 'who'"),
        ({"by": "seed"}, "seeds repeat"),
        ({"by": "who", "contrast": ("men", "woman")}, "value 'woman': did you mean 'women'?"),
        ({"by": "who", "contrast": ("men", "cats")}, "value 'cats': known: men, people, women."),
        ({"contrast": ("men", "beach")}, "no single slot takes the values 'men', 'beach': 'men' is a value of who; "),
        ({"contrast": ("men", "cats")}, "no slot takes the value 'cats'"),
        ({"contrast": ("men", "men")}, "compared with itself"),
        ({"by": "who", "contrast": ("men", "women"), "baseline": "women"}, "'women' is compared with itself"),
        ({"unit": "scene"}, "names no slots that are scenes"),
    ],
)
def test_impossible_comparisons_are_refused(request_: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError) as refused:
        compare(collection(members(WHO)), **request_)
    assert says in str(refused.value)


def test_a_slot_that_does_not_vary_is_refused() -> None:
    with pytest.raises(RecipeError, match="all takes have the same value, 'men'") as refused:
        compare(collection(members({"who": ("men",), "where": ("a", "b")})), by="who")
    assert refused.value.fix == "--by where"
    with pytest.raises(RecipeError, match="all takes have the same prompt and edits"):
        compare(collection(members({"who": ("men",)})), contrast=("men", "women"))


def test_suggested_comparisons_can_be_made() -> None:
    """The options that an error suggests are accepted when they are pasted, and so is the design."""
    found = members({**WHO, "2": ("men", "dogs in a park")})
    for request in ({"contrast": ("dogs in a park", "beach")}, {"by": "whom"}, {"baseline": "men"}):
        with pytest.raises(RecipeError) as refused:
            compare(collection(found), **request)
        pasted = shlex.split(refused.value.fix)
        assert pasted[0] == "--by"
        assert compare(collection(found), by=pasted[1], contrast=pasted[3:] or None).contrasts
    with pytest.raises(RecipeError) as refused:
        compare(collection(found), by="2", unit="scene")
    assert refused.value.fix == 'design: {factor: "2", blocks: [seed, who]}'
    assert compare(collection(found, yaml.safe_load(refused.value.fix)), unit="scene").scenes == ("who",)


def test_the_design_states_what_is_compared_and_what_repeats() -> None:
    scenes = {"who": ("men", "women"), "where": ("home", "beach", "park", "street", "shop")}
    study = {"prompt": "x", "design": {"factor": "who", "blocks": ["seed", "where"]}}
    wide = compare(collection(members(scenes), study))
    assert {c.factor for c in wide.contrasts} == {"who"}
    assert wide.unit == "scene" and wide.scenes == ("where",)
    few = compare(collection(members({**scenes, "where": ("home", "beach")}), study))
    assert few.unit == "seed" and "2 scenes" in few.notes[0] and "these prompts" in few.notes[0]
    assert compare(collection(members(scenes), study), unit="seed").unit == "seed"
    assert len(find_pairs(members(scenes), wide.contrasts[0], wide.scenes).scenes) == 5


def test_edits_are_compared_as_a_whole_and_against_their_baseline() -> None:
    swept = [("baseline", {}), ("late, 0.2", {"edits.0.strength": "0.2"}), ("late, 0.4", {"edits.0.strength": "0.4"})]
    out = []
    for label, values in swept:
        for seed in range(2):
            labels = {"edit": label, **values}
            recipe = SimpleNamespace(seed=seed, prompt="a ball", labels=labels)
            out.append(Member(f"{label}_{seed}", SimpleNamespace(recipe=recipe, id=""), labels))  # type: ignore[arg-type]
    found = compare(collection(out))
    assert [c.text for c in found.contrasts] == ["late, 0.2 - baseline", "late, 0.4 - baseline"]
    assert len(find_pairs(out, found.contrasts[0]).cells) == 2
    by_strength = compare(collection(out), by="edits.0.strength")
    assert len(find_pairs(out, by_strength.contrasts[0]).cells) == 2


def test_a_slot_inside_another_is_compared_together_with_it() -> None:
    out = []
    for first, inner in (("a red ball", "red"), ("a blue ball", "blue")):
        for seed in range(2):
            labels = {"1": first, "2": inner}
            recipe = SimpleNamespace(seed=seed, prompt=first, labels=labels)
            out.append(Member(f"{inner}_{seed}", SimpleNamespace(recipe=recipe, id=""), labels))  # type: ignore[arg-type]
    assert len(find_pairs(out, Contrast("1", "a red ball", "a blue ball")).cells) == 2


def test_prompts_are_the_factor_if_there_is_no_slot() -> None:
    out = []
    for prompt in ("a cat", "a dog"):
        for seed in range(2):
            recipe = SimpleNamespace(seed=seed, prompt=prompt, labels={})
            out.append(Member(f"{prompt}_{seed}", SimpleNamespace(recipe=recipe, id=""), {}))  # type: ignore[arg-type]
    found = compare(collection(out))
    assert [c.text for c in found.contrasts] == ["a cat - a dog"]
    assert len(find_pairs(out, found.contrasts[0]).cells) == 2


def test_one_variation_has_nothing_to_compare() -> None:
    assert compare(collection(members({"who": ("men",)}))).contrasts == ()


def test_a_hypothesis_confirms_only_what_it_names_and_only_if_it_came_first() -> None:
    study = {
        "prompt": "x",
        "design": {"factor": "who", "hypotheses": [{"text": "t", "metric": "linearity", "contrast": ["men", "women"]}]},
    }
    made = collection(members(WHO), study, (True,))
    assert made.design is not None
    hypotheses = made.design.hypotheses
    contrast = Contrast("who", "women", "men")
    assert pairing.is_confirmatory(hypotheses, (True,), contrast, "linearity")
    assert not pairing.is_confirmatory(hypotheses, (True,), contrast, "turning")
    assert not pairing.is_confirmatory(hypotheses, (True,), Contrast("who", "men", "people"), "linearity")
    assert not pairing.is_confirmatory(hypotheses, (False,), contrast, "linearity")


def test_a_hypothesis_that_was_added_later_is_detected(tmp_path: Path) -> None:
    import os

    from helpers.paths import write_study
    from wanscope.analysis.collection import collect

    hypothesis = "{text: t, metric: linearity, contrast: [red, blue]}"
    text = f"prompt: 'a [@color: red|blue] circle'\ndesign:\n  factor: color\n  hypotheses: [{hypothesis}]\n"
    write_study(tmp_path, {"color": ("red", "blue")}, 2)
    path = tmp_path / "studies" / "made" / "study.yaml"
    path.write_text(text)
    assert collect("made", tmp_path).written == (False,)  # takes of the helper were made in January 2025
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert collect("made", tmp_path).written == (True,)


def test_contrasts_of_hypotheses_are_compared_among_many_values() -> None:
    values = tuple("abcdefg")
    claims = [{"text": "t", "metric": "turning", "contrast": ["c", "e"]}, {"text": "u", "contrast": ["b", "a"]}]
    design = {"factor": "letter", "hypotheses": claims}
    study_ = {"prompt": f"a [@letter: {'|'.join(values)}]", "design": design}
    made = collection(members({"letter": values}), study_)
    contrasts = [(c.a, c.b) for c in compare(made).contrasts]
    assert contrasts == [*((value, "a") for value in values[1:]), ("c", "e")]
    assert [(c.a, c.b) for c in compare(made, contrast=("d", "f")).contrasts] == [("d", "f")]

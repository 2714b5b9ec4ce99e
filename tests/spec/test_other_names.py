"""Words of other tools lead to our settings: each target exists, and each word is named in the error."""

from __future__ import annotations

from typing import Any

import pytest

from wanscope.errors import RecipeError
from wanscope.recipe import Study
from wanscope.spec.other_names import LORA, SETTINGS, SOLVERS, our_setting, our_solver
from wanscope.spec.settings import LoraSpec, SamplerSpec, VideoSpec
from wanscope.spec.solver_facts import solver_names
from wanscope.spec.validation import validated

PARTS = {"sampler": SamplerSpec, "video": VideoSpec}


@pytest.mark.parametrize("ours", sorted(set(SETTINGS.values())))
def test_every_setting_exists(ours: str) -> None:
    first, _, rest = ours.partition(".")
    assert first in Study.model_fields
    assert not rest or first == "components" or rest in PARTS[first].model_fields


def test_loras_and_solvers_exist() -> None:
    assert set(LORA.values()) <= set(LoraSpec.model_fields)
    assert set(SOLVERS.values()) <= set(solver_names()) and not set(SOLVERS) & set(solver_names())


@pytest.mark.parametrize(("word", "ours"), [(w, o) for w, o in SETTINGS.items() if w not in Study.model_fields])
def test_a_word_of_another_tool_is_answered_with_ours(word: str, ours: str) -> None:
    for spelling in {word, word.upper(), word.replace("_", "-"), word.replace("_", " ").title()}:
        with pytest.raises(RecipeError) as error:
            validated(Study, {"prompt": "a", spelling: 1})
        assert f"here it is called {ours}" in str(error.value) and error.value.fix == ours


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"sampler": {"cfg_scale": 3}}, "'sampler.cfg_scale' is not a known key: here it is called sampler.guidance"),
        ({"video": {"fpss": 3}}, "did you mean 'fps'"),
        ({"loras": [{"path": "x", "scale": 1}]}, "here it is called weight"),
        ({"sampler": {"solver": "dpmpp_2m"}}, "'dpmpp_2m' is not a solver; here it is called 'dpm++'"),
        ({"sampler": {"solver": "Uni PC"}}, "here it is called 'unipc'"),
        ({"sampler": {"solver": "eulr"}}, "did you mean 'euler'"),
    ],
)
def test_messages(data: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as error:
        validated(Study, {"prompt": "a", **data})
    assert said in str(error.value)


def test_a_setting_that_is_ours_is_not_redirected_to_itself() -> None:
    assert our_setting(["sampler", "guidance"]) is None and our_setting(["guidance"]) == "sampler.guidance"
    assert our_setting([]) is None and our_setting(["nonsense"]) is None and our_solver("nonsense") is None

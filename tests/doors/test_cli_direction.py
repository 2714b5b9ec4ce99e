"""`wanscope direction` and `ws.learn_direction`: what is refused before any work, and that both learn the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import wanscope as ws
from helpers.tiny import tiny_folder
from wanscope.edit.direction import read_direction
from wanscope.errors import RecipeError

PAIRS = [("a red circle moves left", "a blue circle moves left"), ("a red square", "a blue square")]
SMALL = ("--set", "video.width=32", "--set", "video.height=32", "--set", "video.frames=5", "--set", "sampler.steps=2")
SIZE = {"width": 32, "height": 32, "frames": 5, "steps": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny", blocks=3, heads=2)


@pytest.fixture(scope="module")
def loaded(tiny: Path):
    return ws.load(str(tiny))


@pytest.fixture
def learn(cli, tiny: Path, tmp_path: Path) -> Callable[..., Any]:
    def run(*more: object, pairs: object = PAIRS, out: str = "red.safetensors") -> Any:
        file = tmp_path / "pairs.yaml"
        file.write_text(pairs if isinstance(pairs, str) else json.dumps({"pairs": pairs}))
        return cli("direction", "learn", file, "--out", tmp_path / "made" / out, "--model", tiny, *more)

    return run


def test_the_command_and_python_learn_the_same(learn, loaded, tmp_path: Path) -> None:
    ran = learn()
    assert (ran.status, ran.err) == (0, "") and "nothing is sampled" in ran.out
    found = read_direction(tmp_path / "made" / "red.safetensors")
    own = ws.learn_direction(loaded, PAIRS)
    assert torch.equal(found.tensor_ELD, own.tensor_ELD) and own.tensor_ELD.any()
    assert found.manifest.pairs == tuple(PAIRS) and found.manifest.on == "context"


def test_of_hidden_states_with_settings(learn, loaded, tmp_path: Path) -> None:
    options = ("--on", "hidden", "--blocks", "2", "--seeds", "3,5", "--negative", "")
    ran = learn(*options, *SMALL, "--json")
    assert (ran.status, ran.err) == (0, "")
    data = json.loads(ran.out)
    assert data["blocks"] == [2] and data["seeds"] == [3, 5] and data["steps"] == 2
    found = read_direction(tmp_path / "made" / "red.safetensors")
    own = ws.learn_direction(loaded, PAIRS, on="hidden", blocks="2", seeds=[3, 5], negative="", **SIZE)
    assert torch.equal(found.tensor_ELD, own.tensor_ELD)
    assert data["lengths"][0] == [0, 0, pytest.approx(float(own.at(0, 2).double().norm()), rel=1e-5)]


def test_show_reports_how_it_was_learned(learn, cli, tmp_path: Path) -> None:
    learn("--on", "hidden", "--negative", "", *SMALL)
    file = tmp_path / "made" / "red.safetensors"
    ran = cli("direction", "show", file)
    assert ran.status == 0 and "a blue square" in ran.out and "hidden" in ran.out and "1-2" in ran.out
    assert json.loads(cli("direction", "show", file, "--json").out)["pairs"] == [list(pair) for pair in PAIRS]
    missing = cli("direction", "show", tmp_path / "none.safetensors")
    assert missing.status == 2 and "there is no file" in missing.err


REFUSED = [
    (PAIRS, ["--blocks", "lat", "--on", "hidden"], "did you mean 'late'"),
    (PAIRS, ["--blocks", "0", "--on", "hidden"], "hidden states differ from block 1 on"),
    (PAIRS, ["--blocks", "9"], "blocks are numbered from 0 to 2"),
    (PAIRS, ["--on", "text"], "a direction of 'text' cannot be learned"),
    (PAIRS, ["--seeds", "2"], "seeds is given for a direction of the context: nothing is sampled"),
    (PAIRS, ["--set", "sampler.steps=2"], "sampler is given for a direction of the context"),
    (PAIRS, ["--on", "hidden", "--set", "steps=2"], "--set steps is not a setting of learning"),
    (PAIRS, ["--on", "hidden", "--set", "sampler.stepz=2"], "did you mean 'steps'"),
    ([("a red circle", "a red circle")], [], "both prompts of pair 1 are 'a red circle'"),
    ([("a red circle", "a blue circle"), ("a red square",)], [], "pair 2 is ['a red square']"),
    ([("a " * 20, "a blue circle")], [], "prompt A of pair 1 has 21 tokens and the model reads 16"),
    ([], [], "there are no pairs of prompts"),
    ("pair: [[a, b]]", [], "'pair' is not a known key"),
    ("- [a, b]", [], "is not a file of pairs"),
]


@pytest.mark.parametrize(("pairs", "more", "said"), REFUSED, ids=[said for *_, said in REFUSED])
def test_what_cannot_be_learned_is_refused_before_any_work(
    learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: Any, more: list[str], said: str
) -> None:
    monkeypatch.setattr("wanscope.wan.load.load", lambda *_, **__: pytest.fail("weights were loaded"))
    ran = learn(*more, pairs=pairs)
    assert ran.status == 2 and ran.out == "" and ran.err.startswith("wanscope: ")
    assert said in ran.err.replace("\n", " ")
    assert not (tmp_path / "made").exists()


def test_an_existing_file_is_not_replaced(learn, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "red.safetensors").write_bytes(b"mine")
    ran = learn()
    assert ran.status == 2 and "already exists" in ran.err
    assert (tmp_path / "made" / "red.safetensors").read_bytes() == b"mine"
    assert "is not a .safetensors file" in learn(out="red.pt").err


def test_python_refuses_settings_that_it_does_not_have(loaded) -> None:
    with pytest.raises(RecipeError, match="learn_direction has no setting 'stepz'"):
        ws.learn_direction(loaded, PAIRS, on="hidden", stepz=2)
    with pytest.raises(RecipeError, match="sampler is given for a direction of the context"):
        ws.learn_direction(loaded, PAIRS, steps=2)

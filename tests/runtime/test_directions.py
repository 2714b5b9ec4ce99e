"""Concept directions: learned from pairs, stored, refused where they do not fit, and what steering does to a state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.edited import PROMPT, TINY, apart, encoded, planned, sampled, sampler_of, unedited
from helpers.tiny import tiny_model
from wanscope.edit.direction import Direction, read_direction
from wanscope.edit.edits import Steer
from wanscope.errors import RecipeError
from wanscope.recipe import VideoSpec
from wanscope.runtime.compose import shifted
from wanscope.runtime.diffusers.session import attach
from wanscope.sample.learn_direction import learn_direction
from wanscope.wan.identity import file_hash
from wanscope.wan.model import WanModel

PAIRS = [(PROMPT, "a blue circle moves left"), ("a red square", "a blue square")]


def learned(model: WanModel, on: Any, **settings: Any) -> Direction:
    return learn_direction(model, PAIRS, sampler_of(model, steps=3), VideoSpec(**TINY.size), on=on, **settings)


def steer(model: WanModel, path: Path, **fields: Any) -> torch.Tensor:
    edit = Steer(str(path), sha256=file_hash(path), **fields)
    with attach(model, planned(model, [edit])) as session:
        out = sampled(model, encoded(model, [edit]), around_call=session.around_call)
    session.verify()
    assert session.counts() == session.planned() and session.counts()
    return out


@pytest.mark.parametrize("kind", ["2.1", "2.2", "5b"])
def test_a_context_direction_is_the_difference_of_means(kind: str, tmp_path: Path):
    model = tiny_model(kind)
    found = learned(model, "context")
    for expert, transformer in enumerate(model.experts()):
        means = []
        for pair in PAIRS:
            rows = [
                transformer.condition_embedder.text_embedder(encoded(model, [], scene(p)).main[None])[0] for p in pair
            ]
            means.append(rows[0].mean(0) - rows[1].mean(0))
        expected = torch.stack(means).mean(0)
        for block in range(model.blocks):
            torch.testing.assert_close(found.at(expert, block), expected, atol=1e-5, rtol=1e-4)
    found.save(tmp_path / "red.safetensors")
    again = read_direction(tmp_path / "red.safetensors")
    assert torch.equal(again.tensor_ELD, found.tensor_ELD) and again.manifest == found.manifest
    assert apart(steer(model, tmp_path / "red.safetensors"), unedited(model)) > 1e-4


def scene(prompt: str) -> Any:
    from helpers.edited import Scene

    return Scene(prompt)


def test_a_hidden_direction_is_learned_where_states_differ(tmp_path: Path):
    model = tiny_model("2.1")
    found = learned(model, "hidden", seeds=(0, 1))
    assert found.manifest.blocks == (1, 2, 3) and found.manifest.seeds == (0, 1)
    assert not found.at(0, 0).any() and all(found.at(0, block).any() for block in (1, 2, 3))
    path = tmp_path / "red.safetensors"
    found.save(path)
    for operation in ("add", "ablate", "rotate"):
        assert (
            apart(steer(model, path, on="hidden", operation=operation, blocks="1-3", strength=0.5), unedited(model))
            > 1e-4
        )
    with pytest.raises(RecipeError, match="was not learned in block 0"):
        steer(model, path, on="hidden")
    with pytest.raises(RecipeError, match="steers context with a direction learned on hidden"):
        steer(model, path, blocks="1-3")
    with pytest.raises(RecipeError, match="does not fit this model"):
        steer(tiny_model("2.1", blocks=5), path, on="hidden", blocks="1-3")


def test_full_ablation_leaves_no_component_along_the_direction(tmp_path: Path):
    """The state that the next block receives has no component along the direction."""
    model = tiny_model("2.1", seed=2)
    path = tmp_path / "red.safetensors"
    direction = learned(model, "hidden")
    direction.save(path)
    edit = Steer(str(path), sha256=file_hash(path), on="hidden", operation="ablate", blocks="2")
    parts = []

    def seen(_: Any, args: Any) -> None:
        parts.append(float((args[0] @ (direction.at(0, 2) / direction.at(0, 2).norm())).abs().max()))

    handle = model.transformer.blocks[2].register_forward_pre_hook(seen)
    with attach(model, planned(model, [edit], guidance=1.0)) as session:
        sampled(model, encoded(model, [edit]), around_call=session.around_call, guidance=1.0)
    handle.remove()
    assert len(parts) == 4 and max(parts) < 1e-5


def test_files_that_are_not_directions_are_refused(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"direction": torch.ones(1, 4, 48)}, tmp_path / "x.safetensors")
    with pytest.raises(RecipeError, match="does not contain a direction"):
        read_direction(tmp_path / "x.safetensors")
    model = tiny_model("2.1")
    with pytest.raises(RecipeError, match="do not differ"):
        learn_direction(model, [(PROMPT, PROMPT)], sampler_of(model), VideoSpec(**TINY.size), on="context")


def test_steering_a_row():
    x = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = d / d.norm()
    torch.testing.assert_close(shifted(x, d, "add", 2.0), x + 2 * d)
    torch.testing.assert_close(
        shifted(x, d, "ablate", 1.0) @ u, torch.zeros(5, dtype=torch.float64), atol=1e-14, rtol=0
    )
    torch.testing.assert_close(shifted(x, d, "ablate", 0.25) @ u, 0.75 * (x @ u))
    turned = shifted(x, d, "rotate", 0.5)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))

    def angle(rows: torch.Tensor) -> torch.Tensor:
        return torch.acos((rows @ u) / rows.norm(dim=-1))

    torch.testing.assert_close(angle(turned), angle(x) / 2)
    torch.testing.assert_close(shifted(x, d, "rotate", 1.0), x.norm(dim=-1, keepdim=True) * u)
    along = torch.stack([d, torch.zeros_like(d)])
    assert torch.equal(shifted(along, d, "rotate", 0.5), along)

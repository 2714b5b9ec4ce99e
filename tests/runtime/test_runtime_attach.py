"""An attached region leaves nothing behind and refuses changes inside; an edit that does not act is an error."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from helpers.edited import DONOR, apart, edited, encoded, planned, sampled, unedited
from helpers.tiny import tiny_model
from wanscope.edit.edits import Bend, Edit, Inject, Prompts, Skip
from wanscope.errors import EditNotApplied, ModelError, NumericalError
from wanscope.runtime.diffusers.session import attach
from wanscope.wan.model import WanModel

EDITS: dict[str, list[Edit]] = {
    "mix": [Inject(DONOR, strength=0.4, blocks="1-2")],
    "replaced": [Inject(DONOR)],
    "tokens": [Inject(DONOR, mode="tokens", strength=0.4)],
    "append": [Inject("night", mode="append", strength=0.4)],
    "hidden": [Inject(DONOR, on="hidden", strength=0.4, blocks=[2])],
    "both": [Inject(DONOR, on="both", strength=0.4, blocks="2-3")],
    "bend": [Bend(["circle"], "translate", x=0.25)],
    "skip": [Skip([1])],
    "skipped attention": [Skip([1], part="cross_attention")],
    "prompts": [Prompts({1: DONOR})],
}


def picture(model: WanModel) -> Any:
    """Return everything in the transformers that an attached region could change."""
    return [
        (id(module), name, tuple(sorted(module.__dict__)), tuple(module._modules), id(module.__dict__.get("processor")))
        for transformer in model.experts()
        for name, module in transformer.named_modules()
    ]


@pytest.mark.parametrize("kind", EDITS)
def test_the_model_has_the_same_objects_afterwards(kind: str):
    model = tiny_model("2.2", seed=3)
    run = unedited(model)  # diffusers itself puts a registry on a transformer that it runs for the first time
    before = picture(model)
    edited(model, EDITS[kind])
    assert picture(model) == before
    assert torch.equal(unedited(model), run)


@pytest.mark.parametrize("where", ["in the region", "in a block", "in the attention"])
def test_also_after_an_exception(where: str):
    model = tiny_model("2.1")
    unedited(model)
    before, plan, texts = picture(model), planned(model, EDITS["mix"]), encoded(model, EDITS["mix"])

    def fails(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    def work() -> None:
        with attach(model, plan) as session:
            if where == "in the region":
                fails()
            block = session._blocks[0][1]
            target = block.attn2.to_out[0] if where == "in the attention" else block.ffn
            target.forward = fails  # type: ignore[method-assign]
            try:
                sampled(model, texts, around_call=session.around_call)
            finally:
                del target.forward

    with pytest.raises(ZeroDivisionError):
        work()
    assert picture(model) == before


def test_counts_are_the_plan():
    model = tiny_model("2.1")
    found = edited(model, [Inject(DONOR, blocks="1-2", schedule={0: 1.0, 2: 0.0}), Skip([3], branch="both")])
    counts = found.session.counts()
    assert counts == found.plan.planned() == found.session.planned()
    assert {site[1:] for site in counts if site[0] == 0} == {(b, "cond", s) for b in (1, 2) for s in (0, 1)}
    assert {site[1:] for site in counts if site[0] == 1} == {(3, n, s) for n in ("cond", "uncond") for s in range(4)}


# Each of these removes what applies the edit; the run must end with EditNotApplied.
def unwrap(session: Any) -> None:
    """Restore the model's own blocks."""
    for expert, blocks in zip(session._experts, session._blocks, strict=True):
        for i, block in enumerate(blocks):
            expert.blocks[i] = block
    session.record_fingerprints()  # otherwise the change itself would be detected


def plain_attention(session: Any) -> None:
    """Remove the attention processor while the block runs."""
    for block in session._blocks[0]:
        block.attn2.register_forward_pre_hook(lambda attn, _: setattr(attn, "processor", WanAttnProcessor()))
    session.record_fingerprints()


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_without_its_wrappers_is_an_error(kind: str):
    with pytest.raises(EditNotApplied, match=r"edits\.0"):
        edited(tiny_model("2.1"), EDITS[kind], inside=unwrap)


@pytest.mark.parametrize("kind", ["mix", "append", "bend", "skipped attention"])
def test_an_edit_without_its_processor_is_an_error(kind: str):
    with pytest.raises(EditNotApplied, match=r"edits\.0.*blocks? "):
        edited(tiny_model("2.1"), EDITS[kind], inside=plain_attention)


def test_a_run_outside_the_region_is_an_error():
    model, edits = tiny_model("2.1"), EDITS["mix"]
    plan, texts = planned(model, edits), encoded(model, edits)
    with attach(model, plan) as session:
        with pytest.raises(EditNotApplied, match="outside of around_call"):
            sampled(model, texts)
        with pytest.raises(EditNotApplied, match="saw 0 of the 1 cond calls of step 0"):
            session.verify()


def test_a_run_that_ends_early_is_an_error():
    model, edits = tiny_model("2.1"), EDITS["mix"]
    with attach(model, planned(model, edits)) as session:
        sampled(model, encoded(model, edits), around_call=session.around_call, steps=2)
    with pytest.raises(EditNotApplied, match="step 2"):
        session.verify()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "casting": lambda t: t.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32),
    "offload": lambda t: t.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1
    ),
    "compile": lambda t: t.compile_repeated_blocks(backend="eager"),
    "dtype": lambda t: t.to(torch.bfloat16),
    "hook": lambda t: t.blocks[0].register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_inside_the_region_are_refused(change: str):
    model = tiny_model("2.1")
    with pytest.raises(EditNotApplied, match="the model was changed"):
        edited(model, EDITS["mix"], inside=lambda session: CHANGES[change](model.transformer))


def lora(path: Path, transformer: Any) -> str:
    """Write a LoRA file for a tiny transformer, on cross-attention and feed-forward, and return its path."""
    from safetensors.torch import save_file

    weights, generator = {}, torch.Generator().manual_seed(2)
    for i in range(len(transformer.blocks)):
        for name, module in (
            ("attn2.to_k", transformer.blocks[i].attn2.to_k),
            ("attn2.to_v", transformer.blocks[i].attn2.to_v),
        ):
            key = f"transformer.blocks.{i}.{name}"
            weights[f"{key}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
            weights[f"{key}.lora_B.weight"] = 0.1 * torch.randn(module.out_features, 2, generator=generator)
    save_file(weights, path)
    return str(path)


def test_a_lora_before_and_after(tmp_path: Path):
    """With the adapter enabled before, the edited run equals that of merged weights; disabling it afterwards gives the
    first run again; changing it inside is refused."""
    model = tiny_model("2.1")
    path = lora(tmp_path / "a.safetensors", model.transformer)
    plain = edited(model, EDITS["mix"]).latents
    pipe = model.to_pipeline()
    pipe.load_lora_weights(path, adapter_name="a")
    adapted = edited(model, EDITS["mix"]).latents
    assert apart(adapted, plain) > 1e-3
    fused = tiny_model("2.1")
    fuse = fused.to_pipeline()
    fuse.load_lora_weights(path, adapter_name="a")
    fuse.fuse_lora()
    fuse.unload_lora_weights()
    assert apart(edited(fused, EDITS["mix"]).latents, adapted) < 2e-5
    with pytest.raises(EditNotApplied, match="the model was changed"):
        edited(model, EDITS["mix"], inside=lambda _: pipe.set_adapters("a", 0.5))
    pipe.unload_lora_weights()
    assert torch.equal(edited(model, EDITS["mix"]).latents, plain)


def test_step_caches_are_refused():
    model = tiny_model("2.1")
    model.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match="step cache is on"):
        edited(model, EDITS["mix"])
    model.transformer.disable_cache()
    edited(model, EDITS["mix"])


def test_models_that_cannot_be_edited_are_refused():
    model = tiny_model("2.1")
    plan = planned(model, EDITS["mix"])
    with attach(model, plan), pytest.raises(ModelError, match="attached to this model already"), attach(model, plan):
        pass

    class Other(WanAttnProcessor):
        pass

    own = model.transformer.blocks[2].attn2.processor
    model.transformer.blocks[2].attn2.processor = Other()
    with pytest.raises(ModelError, match="block 2 has the attention processor Other"):
        edited(model, EDITS["mix"])
    model.transformer.blocks[2].attn2.processor = own
    model.transformer.compile(backend="eager")
    with pytest.raises(ModelError, match="compile_repeated_blocks"):
        edited(model, EDITS["mix"])


def test_a_bend_that_leaves_nothing_is_an_error():
    """The words get all of the attention and are then moved out of the frame."""
    words = ["a", "red", "circle", "moves", "left"]
    most = Bend(words, "amplify", factor=1e6)
    with pytest.raises(NumericalError, match="nothing to attend to at step 0"):
        edited(tiny_model("2.1"), [most, most, Bend(words, "translate", x=1.0)])


def test_keys_of_the_donor_are_kept_across_steps():
    model = tiny_model("2.1")
    made: list[int] = []
    hooks = [b.attn2.to_k.register_forward_hook(lambda *_: made.append(1)) for b in model.transformer.blocks]
    try:
        edited(model, [Inject(DONOR, strength=0.4)], steps=4, guidance=1.0)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(made) == 4 * 4 + 4  # the prompt's in four blocks at four steps, the donor's in four blocks once


def test_its_texts_are_not_modified():
    model, edits = tiny_model("2.1"), [*EDITS["both"], *EDITS["append"], Inject("night", boost=3.0)]
    texts = encoded(model, edits)
    before = copy.deepcopy(dict(texts.raw))
    edited(model, edits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in texts.raw.items())

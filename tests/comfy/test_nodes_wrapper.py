"""The legacy nodes on a fake of WanVideoWrapper: what each does to a run, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from helpers.comfy_fakes import Patcher, WrapperWan, wrapper_sample
from helpers.tiny import TEXT_DIM, tiny_transformer, transformer_config
from wanscope.doors.comfy import NODES
from wanscope.doors.comfy.patterns import BlockPattern
from wanscope.edit.difference import relative_l2
from wanscope.errors import EditNotApplied, RecipeError
from wanscope.runtime.comfy import wrapper


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, TEXT_DIM, generator=torch.Generator().manual_seed(seed))


MAIN, DONOR, NEGATIVE = text(5, 1), text(9, 2), text(3, 3)
NOISE = torch.randn(1, 16, 2, 8, 8, generator=torch.Generator().manual_seed(0))


def embeds(prompt: torch.Tensor = MAIN) -> dict:
    return {"prompt_embeds": [prompt], "negative_prompt_embeds": [NEGATIVE]}


def run(name: str, **inputs):
    """Return the results of a node with these inputs and defaults for the others."""
    node = NODES[name]
    given = {}
    for key, spec in {**node.REQUIRED, **node.OPTIONAL}.items():
        default = spec[1].get("default") if len(spec) > 1 else None
        if key in node.REQUIRED and default is not None:
            given[key] = default
    found = node().run(**{**given, **inputs})
    return found if isinstance(found, tuple) else found["result"]


@pytest.fixture
def model() -> Patcher:
    transformer = WrapperWan(tiny_transformer(transformer_config(), seed=5))
    return Patcher(transformer, {"transformer_options": {"merge_loras": True}})


def sampled(model, text_embeds=None, **options) -> torch.Tensor:
    return wrapper_sample(model, text_embeds or embeds(), NOISE, **options)


def edit(model, **inputs):
    given = {"model": model, "text_embeds": embeds(), "injection_embeds": embeds(DONOR), "block_activations": "1111"}
    return run("WanVideoActivationEditor", **{**given, **inputs})


def test_the_editor_at_full_strength_is_the_injected_prompt(model):
    out, carried = edit(model, injection_strength=1.0)
    assert torch.equal(sampled(out, carried), sampled(model, embeds(DONOR)))
    assert not torch.equal(sampled(out), sampled(model))


@pytest.mark.parametrize(
    "off", [{"enable_patching": False}, {"injection_strength": 0.0}, {"block_activations": "0" * 40}], ids=str
)
def test_switched_off_it_changes_nothing(model, off):
    out, _ = edit(model, **off)
    assert torch.equal(sampled(out), sampled(model))


def test_rerunning_and_changing_strength_never_compound(model):
    first = sampled(edit(model, injection_strength=0.5)[0])
    sampled(edit(model, injection_strength=0.9)[0])
    assert torch.equal(sampled(edit(model, injection_strength=0.5)[0]), first)
    assert wrapper.live_of(model) is None


def test_the_embeds_and_the_model_passed_in_are_not_modified(model):
    given = embeds()
    _, carried = edit(model, text_embeds=given)
    assert set(given) == {"prompt_embeds", "negative_prompt_embeds"} and "wanscope" in carried


def test_without_injection_embeds_it_refuses(model):
    with pytest.raises(RecipeError, match="no injection_embeds"):
        edit(model, injection_embeds=None)


def test_a_pattern_of_another_length_is_refused_with_the_right_length(model):
    with pytest.raises(RecipeError, match="this model has 4 blocks"):
        edit(model, block_activations="10" * 20)
    # the inputs of saved workflows hold forty characters (by default forty zeros) at any depth of the model
    out, _ = edit(model, block_activations="1" * 40, injection_strength=1.0)
    assert torch.equal(sampled(out), sampled(model, embeds(DONOR)))
    out, _ = edit(model, block_activations="0" * 40, injection_strength=1.0)
    assert torch.equal(sampled(out), sampled(model))
    for other in ("1" * 30, "0" * 39, "11111"):
        with pytest.raises(RecipeError, match="this model has 4 blocks"):
            edit(model, block_activations=other)


def test_the_builders_pattern_fits_any_depth(model):
    (pattern,) = run("WanVideoBlockActivationBuilder", preset="late_blocks")
    assert pattern == "0" * 30 + "1" * 10
    live = wrapper.live_of(edit(model, block_activations=pattern)[0])
    assert live.edits[0].strengths(4) == (0, 0, 0, 0.5)
    (custom,) = run("WanVideoBlockActivationBuilder", preset="custom", block_1=True, block_3=True)
    assert wrapper.live_of(edit(model, block_activations=custom)[0]).edits[0].strengths(4) == (0, 0.5, 0, 0.5)
    with pytest.raises(RecipeError, match="no block 20"):
        edit(model, block_activations=BlockPattern([20]))


def test_block_strengths_are_applied_to_the_model(model):
    strengths, picture = run("WanVideoBlockStrengthBuilder", pattern="linear_rise", base_strength=0.8)
    assert strengths["strengths"][-1] == 0.8 and len(picture.splitlines()) == 40
    inputs = {"model": model, "text_embeds": embeds(), "injection_embeds": embeds(DONOR), "block_strengths": strengths}
    out, _ = run("WanVideoAdvancedActivationEditor", **inputs)
    found = wrapper.live_of(out).edits[0].strengths(4)
    assert found == pytest.approx((0, 0.8 / 3, 1.6 / 3, 0.8))
    uniform, _ = run(
        "WanVideoAdvancedActivationEditor", **{**inputs, "block_strengths": None}, block_activations="1111"
    )
    assert wrapper.live_of(uniform).edits[0].strengths(4) == (0.5,) * 4
    assert not torch.equal(sampled(out), sampled(uniform))


def test_several_editors_on_one_model_all_act(model):
    one, _ = edit(model, injection_strength=0.5, block_activations="0011")
    two, _ = edit(one, injection_strength=0.5, block_activations="1100", injection_mode="hidden_states")
    sampled(two)
    record = wrapper.live_of(two).runs[-1]
    assert record.applied_in(0) == 6 and record.applied_in(1) == 6


def test_an_edit_carried_in_the_embeds_acts_through_a_node_downstream(model):
    _, carried = edit(model, injection_strength=1.0)
    out, _ = edit(model, text_embeds=carried, block_activations="0000")
    assert torch.equal(sampled(out), sampled(model, embeds(DONOR)))


def test_a_model_output_that_is_not_connected_is_reported(model):
    node = NODES["WanVideoActivationEditor"]()
    found = node.run(
        model, embeds(), 0.5, "1111", True, injection_embeds=embeds(DONOR), unique_id="7",
        prompt={"9": {"inputs": {"text_embeds": ["7", 1]}}},
    )  # fmt: skip
    assert "The model output is not connected" in found["ui"]["text"][0]


def test_the_booster_acts_on_its_own_and_is_replaced_by_an_editor(model):
    inputs = {"text_embeds": embeds(), "injection_embeds": embeds(DONOR), "boost_factor": 3.0}
    boosted, carried, info = run("WanVideoProjectionBooster", model=model, **inputs)
    assert "3 times" in info
    plain = edit(model, injection_strength=1.0)[0]
    assert not torch.allclose(sampled(boosted), sampled(plain), atol=1e-3)
    out, _ = edit(boosted, text_embeds=carried, injection_strength=1.0, injection_embeds=None)
    assert len(wrapper.live_of(out).edits) == 1
    assert torch.equal(sampled(out), sampled(boosted))
    half, _ = edit(boosted, text_embeds=carried, injection_strength=0.5, block_activations="0011")
    sampled(half)
    assert wrapper.live_of(half).runs[-1].applied_in(0) == 6


def test_latent_prompts_act_from_where_their_state_exists(model):
    latents = [
        run("WanVideoLatentEncoder", model=model, text_embeds=embeds(p), capture_after_blocks=2)[0]
        for p in (MAIN, DONOR)
    ]
    (out,) = run(
        "WanVideoLatentInjector", model=model, main_latent=latents[0], injection_latent=latents[1],
        injection_strength=1.0, block_activations="1110",
    )  # fmt: skip
    # the state after two blocks, injected before the third, equals that of the donor's own pass there
    before, _ = edit(model, injection_strength=1.0, block_activations="1100")
    assert torch.equal(sampled(out), sampled(before))
    assert wrapper.live_of(out).runs[-1].applied_in(0) == 3
    with pytest.raises(RecipeError, match="from block 2 on"):
        run(
            "WanVideoLatentInjector", model=model, main_latent=latents[0], injection_latent=latents[1],
            block_activations="1100",
        )  # fmt: skip


@pytest.mark.parametrize("mode", ["additive", "blend", "replace"])
def test_the_direct_injector_reaches_its_difference(model, mode):
    out, _ = run(
        "WanVideoDirectInjector", model=model, text_embeds=embeds(), injection_embeds=embeds(DONOR),
        difference_target=70.0, injection_mode=mode, block_activations="1111",
    )  # fmt: skip
    found = relative_l2(MAIN, wrapper.live_of(out).edits[0].donor_LD)
    assert found == pytest.approx(0.7, abs=1e-3) or (mode == "replace" and found > 0.7)
    assert not torch.equal(sampled(out), sampled(model))


def test_the_direct_injector_needs_something_to_inject(model, monkeypatch, tmp_path):
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path))
    with pytest.raises(RecipeError, match="has nothing to inject"):
        run("WanVideoDirectInjector", model=model, text_embeds=embeds(), injection_prompt="a beach", block_activations="1111")  # fmt: skip  # noqa: E501
    run("WanscopeSaveEmbedding", conditioning=[[DONOR[None], {}]], prompt="a beach")
    out, _ = run("WanVideoDirectInjector", model=model, text_embeds=embeds(), injection_prompt="a beach", block_activations="1111")  # fmt: skip  # noqa: E501
    assert wrapper.live_of(out).edits[0].donor_LD is not None


def test_second_guidance_is_consumed(model):
    (config,) = run(
        "WanVideoGuidanceController", model=model, main_conditioning=embeds(), injection_conditioning=embeds(DONOR),
        cfg_scale=3.0, injection_scale=3.0,
    )  # fmt: skip
    out, carried, cfg = run("WanVideoApplyGuidance", model=model, guidance_config=config)
    assert torch.allclose(sampled(out, carried, cfg=cfg), sampled(model, embeds(DONOR), cfg=3.0), atol=1e-5)


def test_several_prompts_and_a_bare_tensor_are_accepted(model):
    several = {"prompt_embeds": [MAIN, DONOR], "negative_prompt_embeds": [NEGATIVE]}
    edit(model, text_embeds=several)
    out, _ = edit(model, text_embeds=MAIN, injection_embeds={"prompt_embeds": DONOR}, injection_strength=1.0)
    assert torch.equal(sampled(out), sampled(model, embeds(DONOR)))


def test_reports_state_what_was_applied(model):
    out, carried = edit(model, injection_strength=0.5, block_activations="0110")
    assert "Not sampled yet" in run("WanVideoBlockActivationViewer", model=out)[0]
    sampled(out)
    shown = run("WanVideoBlockActivationViewer", model=out)[0]
    assert "applied 6 of 6 due: blocks 1-2; cond" in shown and "░██░" in shown
    tested = run("WanVideoInjectionTester", model=out, text_embeds=carried)[0]
    assert "relative L2" in tested and "applied 6 of 6" in tested
    latent = {"samples": NOISE}
    passed, report = run("WanscopeCheckEdits", latent=latent, model=out)
    assert passed is latent and "applied 6" in report


def test_check_edits_fails_for_edits_that_were_not_sampled_or_not_applied(model):
    out, _ = edit(model)
    with pytest.raises(EditNotApplied, match="was not sampled"):
        run("WanscopeCheckEdits", latent={}, model=out)
    model.model.diffusion_model.answer_from_cache = True
    sampled(out)
    with pytest.raises(EditNotApplied, match="did not act"):
        run("WanscopeCheckEdits", latent={}, model=out)


def test_counts_are_pushed_to_the_viewer_after_the_run(model, monkeypatch):
    from wanscope.doors.comfy import node_log

    pushed = []
    monkeypatch.setattr(node_log, "send_text", lambda node, text: pushed.append((node, text)))
    out, _ = edit(model)
    run("WanVideoBlockActivationViewer", model=out, unique_id="12")
    sampled(out)
    assert pushed[-1][0] == "12" and "applied 12 of 12" in pushed[-1][1]


def test_nodes_before_the_last_edit_show_its_run_too(model, monkeypatch):
    from wanscope.doors.comfy import node_log

    pushed = {}
    monkeypatch.setattr(node_log, "send_text", lambda node, text: pushed.update({node: text}))
    first, carried = edit(model, block_activations="1000", unique_id="1")
    run("WanVideoBlockActivationViewer", model=first, unique_id="2")
    second, _ = edit(first, text_embeds=carried, block_activations="0011", unique_id="3")
    off, _ = edit(second, text_embeds=carried, enable_patching=False, unique_id="4")
    sampled(off)
    for node in "1234":
        assert "applied 3 of 3 due: blocks 0" in pushed[node] and "applied 6 of 6 due: blocks 2-3" in pushed[node]
    again = run("WanVideoBlockActivationViewer", model=first, unique_id="2")[0]
    assert "Not sampled yet" not in again and "applied 3 of 3 due" in again


@pytest.mark.parametrize("name", ["ActivationEditor", "ProjectionBooster", "DirectInjector"])
def test_a_prompt_of_another_encoder_is_refused_on_the_node(model, name):
    inputs = {"model": model, "text_embeds": embeds(), "injection_embeds": embeds(torch.randn(4, 7))}
    blocks = {} if name == "ProjectionBooster" else {"block_activations": "1111"}
    with pytest.raises(RecipeError, match=r"\b7\b"):
        run(f"WanVideo{name}", **inputs, **blocks)


def test_it_is_reported_what_was_left_out_of_a_donor(model, monkeypatch):
    from wanscope.doors.comfy import node_log

    pushed = {}
    monkeypatch.setattr(node_log, "send_text", lambda node, text: pushed.update({node: text}))
    several = {"prompt_embeds": [torch.cat([DONOR] * 60), MAIN], "negative_prompt_embeds": [NEGATIVE]}
    said = ("holds 2 prompts; only the first is injected", "540 tokens were cut to the encoder's limit of 512")
    shown = NODES["WanVideoActivationEditor"]().run(model, embeds(), 0.5, "1111", True, injection_embeds=several)
    boosted = run("WanVideoProjectionBooster", model=model, text_embeds=embeds(), injection_embeds=several)[2]
    config = run("WanVideoGuidanceController", model=model, main_conditioning=embeds(), injection_conditioning=several)
    guided = NODES["WanVideoApplyGuidance"]().run(model, config[0])
    for text_ in (shown["ui"]["text"][0], boosted, guided["ui"]["text"][0]):
        assert all(part in text_ for part in said), text_


def test_nothing_is_logged_unless_asked(model, caplog, monkeypatch):
    for name in ("WAN_ACTIVATION_DEBUG", "WAN_ACTIVATION_VERBOSE"):
        monkeypatch.delenv(name, raising=False)
    edit(model)
    assert not caplog.records
    edit(model, log_level="verbose")
    assert "inject:" in caplog.text
    caplog.clear()
    monkeypatch.setenv("WAN_ACTIVATION_VERBOSE", "1")
    edit(model)
    assert "inject:" in caplog.text


def lines(caplog) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return found


@pytest.mark.parametrize("asked", ["node", "environment"])
def test_each_log_level_shows_more_than_the_one_below(model, caplog, monkeypatch, asked):
    for name in ("WAN_ACTIVATION_DEBUG", "WAN_ACTIVATION_VERBOSE"):
        monkeypatch.delenv(name, raising=False)
    said = {}
    for level in ("off", "basic", "verbose", "trace"):
        if asked == "node":
            out, _ = edit(model, log_level=level)
        elif level == "trace":  # the environment has no name for it
            continue
        else:
            variables = {"basic": "WAN_ACTIVATION_DEBUG", "verbose": "WAN_ACTIVATION_VERBOSE"}
            monkeypatch.setenv(variables.get(level, "UNREAD"), "1")
            out, _ = edit(model)
        sampled(out)
        said[level] = lines(caplog)
    assert said["off"] == []
    (line,) = said["basic"]
    assert "3 steps" in line and "12 applied" in line
    assert any("inject:" in line for line in said["verbose"])
    assert any("blocks 0-3; cond; steps 0 to 2" in line for line in said["verbose"])
    assert not any("sigma 0.7500, rows" in line for line in said["verbose"])
    if asked == "node":
        calls = [line for line in said["trace"] if ", rows " in line]
        assert len(calls) == 6  # three steps, each with both passes
        assert sum("rows cond; 1. inject into the context: applied 4 of 4 due in blocks 0-3" in c for c in calls) == 3
        assert sum("rows uncond; 1. inject into the context: applied 0 of 0 due" in c for c in calls) == 3
        assert len(said["trace"]) == len(said["verbose"]) + 6


def test_a_quiet_node_does_not_lower_the_log_level_of_an_earlier_one(model, caplog):
    loud, carried = edit(model, log_level="trace")
    out, _ = edit(loud, text_embeds=carried, injection_strength=0.3)
    caplog.clear()
    sampled(out)
    assert sum(", rows " in line for line in lines(caplog)) == 6

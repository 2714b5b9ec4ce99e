"""Nodes that need no model: algebra, sequences, noise, the catalog, words, overlays."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from wanscope.doors.comfy import NODES
from wanscope.doors.comfy.embeds import conditioning, first_prompt, prompts_of
from wanscope.doors.comfy.prompt_nodes import Maps, columns_of
from wanscope.edit.difference import relative_l2
from wanscope.errors import EmbeddingNotFound, ExpressionError, RecipeError
from wanscope.runtime.comfy.live import Live, LiveEdit
from wanscope.runtime.comfy.live_kinds import Watch


def text(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, 8, generator=torch.Generator().manual_seed(seed))


A, B, C = text(4, 1), text(6, 2), text(3, 3)


@pytest.fixture(autouse=True)
def _workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("WANSCOPE_HOME", str(tmp_path))


def embeds(prompt) -> dict:
    return {"prompt_embeds": [prompt], "negative_prompt_embeds": [C], "other": 1}


def run(kind: str, /, **inputs):
    node = NODES[kind]
    given = {k: s[1]["default"] for k, s in node.REQUIRED.items() if len(s) > 1 and "default" in s[1]}
    found = node().run(**{**given, **inputs})
    return found if isinstance(found, tuple) else found["result"]


def padded_to(rows: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([rows, torch.zeros(length - len(rows), 8)])


def test_difference_of_unequal_lengths():
    (out,) = run("WanVideoVectorDifference", text_embeds_a=embeds(A), text_embeds_b=embeds(B), scale=2.0)
    assert torch.allclose(out["prompt_embeds"][0], 2 * (padded_to(A, 6) - B))
    assert out["other"] == 1 and torch.equal(out["negative_prompt_embeds"][0], C)


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("add", lambda: padded_to(A, 6) + 0.5 * B),
        ("weighted_sum", lambda: (padded_to(A, 6) + 0.5 * B) / 1.5),
        ("multiply", lambda: padded_to(A, 6) * 0.5 * B),
        ("normalize", lambda: torch.nn.functional.normalize(padded_to(A, 6) + 0.5 * B, dim=1)),
    ],
)
def test_arithmetic_with_operands(operation, expected):
    given = embeds(A)
    (out,) = run("WanVideoVectorArithmetic", base_embeds=given, operation=operation, operand_1=embeds(B), weight_1=0.5)
    made = out["prompt_embeds"][0]
    assert torch.allclose(padded_to(made, 6), expected(), atol=1e-6)
    assert torch.equal(given["prompt_embeds"][0], A)


def test_interpolation_gives_the_whole_path():
    (out,) = run("WanVideoVectorInterpolation", start_embeds=embeds(A), end_embeds=embeds(B), steps=5)
    path = out["prompt_embeds"]
    assert len(path) == 5
    assert torch.allclose(padded_to(path[0], 6), padded_to(A, 6)) and torch.allclose(path[4], B)
    assert torch.allclose(path[2], (padded_to(A, 6) + B) / 2)


def test_the_mixer_goes_from_one_prompt_to_the_next_along_the_video():
    (out,) = run(
        "WanVideoSequentialMixer", embedding_1=embeds(A), embedding_2=embeds(B), embedding_3=embeds(C),
        mix_schedule="step", transition_point=0.3, transition_point_2=0.7,
    )  # fmt: skip
    mixed = [padded_to(m, 6) for m in out["prompt_embeds"]]
    assert len(mixed) == 8
    assert torch.allclose(mixed[0], padded_to(A, 6)) and torch.allclose(mixed[4], B)
    assert torch.allclose(mixed[7], padded_to(C, 6))
    with pytest.raises(RecipeError, match="before the first"):
        run(
            "WanVideoSequentialMixer", embedding_1=embeds(A), embedding_2=embeds(B), embedding_3=embeds(C),
            transition_point=0.8, transition_point_2=0.2,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("WanVideoVectorDifference", ("text_embeds_a", "text_embeds_b")),
        ("WanVideoVectorArithmetic", ("base_embeds", "operand_1")),
        ("WanVideoVectorInterpolation", ("start_embeds", "end_embeds")),
        ("WanVideoSequentialMixer", ("embedding_1", "embedding_2")),
        ("WanVideoEmbeddingAmplifier", ("main_embeds", "injection_embeds")),
        ("WanscopeInterpolatePrompts", ("a", "b")),
        ("WanscopeAmplifyPrompt", ("main", "donor")),
        ("WanscopeEmbeddingExpression", ("a", "b")),
    ],
)
def test_it_is_reported_that_only_the_first_of_several_prompts_is_used(name, inputs):
    node = NODES[name]
    defaults = {k: s[1]["default"] for k, s in node.REQUIRED.items() if "default" in s[1]}
    if "expression" in defaults:
        defaults["expression"] = "a + b"
    native = name.startswith("Wanscope")
    a = [*conditioning(A), *conditioning(C)] if native else {**embeds(A), "prompt_embeds": [A, C]}
    for given, several in ((a, True), (conditioning(A) if native else embeds(A), False)):
        b = conditioning(B) if native else embeds(B)
        said = node().run(**defaults, **dict(zip(inputs, (given, b), strict=True)))["ui"]["text"][0]
        assert ("Of several prompts" in said) is several, said


def test_the_amplifier_reaches_its_target():
    out, info = run("WanVideoEmbeddingAmplifier", main_embeds=embeds(A), injection_embeds=embeds(B))
    assert relative_l2(A, out["prompt_embeds"][0]) == pytest.approx(0.6, abs=1e-3)
    assert "0.600" in info


@pytest.mark.parametrize("pattern", ["uniform", "spatial_blocks", "temporal_blocks", "checkerboard", "radial"])
def test_noise_has_unit_variance_and_depends_on_its_seeds(pattern):
    size = {"width": 256, "height": 256, "frames": 17}
    (mixed,) = run("WanVideoNoiseController", **size, noise_pattern=pattern, pattern_strength=0.7)
    (main,) = run("WanVideoNoiseController", **size, noise_pattern=pattern, pattern_strength=0.0)
    noise = mixed["samples"]
    assert noise.shape == (1, 16, 5, 32, 32)
    assert float(noise.var()) == pytest.approx(1, abs=0.03)
    assert not torch.equal(noise, main["samples"])
    assert torch.equal(main["samples"], torch.randn(1, 16, 5, 32, 32, generator=torch.Generator().manual_seed(0)))


def test_expressions_on_conditioning():
    out, note = run(
        "WanscopeEmbeddingExpression", expression="a + 0.5*(b - c)", a=conditioning(A), b=conditioning(B),
        c=conditioning(C),
    )  # fmt: skip
    assert out[0][0].shape == (1, 512, 8)
    assert torch.allclose(first_prompt(out), padded_to(A, 6) + 0.5 * (B - padded_to(C, 6)), atol=1e-6)
    assert "aligned" in note
    with pytest.raises(ExpressionError, match="'d' is not bound"):
        run("WanscopeEmbeddingExpression", expression="a + d", a=conditioning(A))


def test_interpolated_conditioning_is_the_prompt_itself_at_its_ends():
    for position, prompt in ((0.0, A), (1.0, B)):
        (out,) = run("WanscopeInterpolatePrompts", a=conditioning(A), b=conditioning(B), position=position)
        assert torch.equal(first_prompt(out), prompt)


def test_embeddings_are_stored_and_loaded_exactly():
    prompt = A.to(torch.bfloat16)
    run("WanscopeSaveEmbedding", conditioning=conditioning(prompt), label="castle", prompt="a castle")
    for name in ("castle", "a castle"):
        out, _ = run("WanscopeLoadEmbedding", name=name)
        assert out[0][0].dtype == torch.bfloat16 and torch.equal(first_prompt(out), prompt)
    with pytest.raises(EmbeddingNotFound):
        run("WanscopeLoadEmbedding", name="beach")


def test_different_embeds_are_different_entries_and_the_report_counts_them():
    for prompt in (A, B, A):
        run("WanVideoEmbeddingAnalyzer", text_embeds=embeds(prompt))
    assert "2 embeddings" in run("WanVideoEmbeddingDatabase", action="stats")[0]
    run("WanVideoVectorDifference", text_embeds_a=embeds(A), text_embeds_b=embeds(B))
    assert "difference" in run("WanVideoEmbeddingDatabase", action="list_recent")[0]
    assert "Removed 0" in run("WanVideoEmbeddingDatabase", action="cleanup")[0]


def test_the_analyzer_passes_its_embeds_through():
    given = embeds(A)
    report, out = run("WanVideoEmbeddingAnalyzer", text_embeds=given, store_in_db=False)
    assert out is given and "4 real tokens of 8 dimensions" in report and "participation ratio" in report


def test_strength_pictures():
    built, _ = run("WanVideoBlockStrengthBuilder", pattern="uniform", base_strength=0.5)
    picture, image = run("WanVideoStrengthVisualizer", block_strengths=built, graph_height=10)
    assert image.shape == (1, 100, 400, 3) and picture.count("0.500") == 40
    values, _ = run("WanscopeBlockStrengths", shape="custom", blocks=3, values="0, 0.5,1")
    assert values["strengths"] == [0, 0.5, 1]
    with pytest.raises(RecipeError, match="3 blocks"):
        run("WanscopeBlockStrengths", shape="custom", blocks=3, values="0,1")


def test_a_word_includes_all_tokens_that_hold_a_part_of_it():
    pieces = ["▁A", "▁red", "▁cas", "tle", "▁in", "▁a", "▁red", "dish", "▁Castle", ""]
    assert columns_of("castle", pieces) == (2, 3, 8)
    assert columns_of("red", pieces) == (1,)
    assert columns_of("red castle", pieces) == (1, 2, 3)
    with pytest.raises(RecipeError, match="no word 'beach'"):
        columns_of("beach", pieces)


def test_words_of_a_prompt_reads_comfyuis_tokenizer():
    pieces = ["<pad>", "</s>", "▁red", "▁ball"]
    clip = SimpleNamespace(
        tokenizer=SimpleNamespace(umt5xxl=SimpleNamespace(inv_vocab=dict(enumerate(pieces)))),
        tokenize=lambda prompt: {"umt5xxl": [[(2, 1.0), (3, 1.0), (1, 1.0), (0, 1.0)]]},
        encode_from_tokens_scheduled=lambda tokens: conditioning(A),
    )
    out, words = run("WanscopeWordsOfPrompt", clip=clip, prompt="red ball", words="ball")
    assert words.columns == ((1,),) and torch.equal(first_prompt(out), A)


def test_the_overlay_needs_a_run_and_draws_its_map():
    live = Live([LiveEdit(Watch(), columns=((0,),))])
    maps = Maps(live, ("ball",))
    images = torch.zeros(5, 16, 16, 3)
    with pytest.raises(RecipeError, match="no attention map was recorded"):
        run("WanscopeAttentionOverlay", maps=maps, images=images)
    sum_KQ = torch.zeros(1, 2 * 2 * 2)
    sum_KQ[0, 3] = 4.0  # frame 0, bottom right
    live.begin().maps[0] = [2, sum_KQ, (2, 2, 2)]
    overlay, mask, report = run("WanscopeAttentionOverlay", maps=maps, images=images, threshold=0.5)
    assert overlay.shape == images.shape and mask.shape == (5, 16, 16) and "largest 2.0000" in report
    assert mask[0, 14, 14] == 1 and mask[0, 2, 2] == 0 and mask[4].sum() == 0
    with pytest.raises(RecipeError, match="no word 2"):
        run("WanscopeAttentionOverlay", maps=maps, images=images, word=2)


def test_compare_videos():
    a, b = torch.zeros(2, 4, 4, 3), torch.full((2, 4, 4, 3), 0.1)
    image, report = run("WanscopeCompareVideos", baseline=a, edited=b)
    assert image.shape == (2, 4, 12, 3) and "0.1000" in report


def test_inputs_that_are_not_prompts_are_refused():
    for wrong in ({}, {"prompt_embeds": []}, [], "text", [["x", {}]], None):
        with pytest.raises(RecipeError):
            prompts_of(wrong)

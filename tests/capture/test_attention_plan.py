"""What a capture of attention records for a recipe, what it refuses, and what its sink stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.tiny import TEXT_LENGTH, tiny_tokenizer
from wanscope.capture.arrays import open_array
from wanscope.capture.attention_plan import AttentionPlan, ModelFacts, plan_attention
from wanscope.capture.attention_sink import CHUNK_BYTES, AttentionSink, Seen, chunk_shape, exponents_file, scaled
from wanscope.capture.moments import Moment
from wanscope.errors import DamagedTake, NumericalError, RecipeError, StorageError, WorkError
from wanscope.recipe import MarkSpec
from wanscope.spec.capture import ALL, MARKED, AttentionCapture, CaptureSpec, SelfAttentionCapture
from wanscope.take.attention_maps import Attention

FACTS = ModelFacts(blocks=8, heads=4, steps=6, start_step=0, grid=(2, 3, 4), text_length=TEXT_LENGTH)
PROMPT = "a red circle moves qz red"


def marks(*words: str, prompt: str = PROMPT) -> tuple[MarkSpec, ...]:
    return tuple(MarkSpec(text=w, start=prompt.index(w), end=prompt.index(w) + len(w)) for w in words)


def plan(marked: tuple[str, ...] = (), facts: ModelFacts = FACTS, **spec: Any) -> AttentionPlan:
    return plan_attention(AttentionCapture(**spec), tiny_tokenizer(), PROMPT, "a cat", marks(*marked), facts)


def row_columns(found: AttentionPlan) -> list[tuple[str, tuple[int, ...]]]:
    return [(row.name, row.columns) for row in found.rows]


def test_rows_are_words_then_their_tokens_then_the_padding() -> None:
    assert row_columns(plan(("circle",))) == [("circle", (2,)), ("pad", (9,))]
    # a mark is one span, a word all of its occurrences; "qz" is spelled by the tokenizer
    assert row_columns(plan(("red",), tokens=["@marked", "red", "qz"])) == [
        ("red", (1,)),
        ("red (2)", (1, 7)),
        ("qz", (5, 6)),
        ("red (3)", (1,)),
        ("red (4)", (7,)),
        ("q", (5,)),
        ("z", (6,)),
        ("pad", (9,)),
    ]
    assert [name for name, _ in row_columns(plan(("red",), tokens=["@marked", "qz"], keep="mean"))] == [
        "red",
        "qz",
        "pad",
    ]
    every = row_columns(plan(("circle",), tokens="all"))
    assert every[0] == ("circle", (2,)) and [c for _, c in every[1:]] == [(i,) for i in range(10)]
    assert row_columns(plan(tokens="all", branch="uncond")) == [
        ("a", (0,)),
        ("cat", (1,)),
        ("</s>", (2,)),
        ("pad", (3,)),
    ]


def test_columns_and_sizes() -> None:
    found = plan(("circle",), blocks="late", steps=[0, 5], heads=[3, 1])
    assert (found.blocks, found.steps, found.heads) == ((6, 7), (0, 5), (1, 3))
    assert found.map_shape == (2, 2, 2, 2, 3, 4) and found.bytes == 2 * 2 * np.prod(found.map_shape)
    assert plan(("circle",)).map_shape == (8, 2, 2, 3, 4)
    assert plan(("circle",), keep="mean").bytes * 6 == plan(("circle",)).bytes
    assert plan(("circle",), keep="nothing").bytes == 0
    later = ModelFacts(8, 4, 6, 4, (2, 3, 4), TEXT_LENGTH)
    assert plan(("circle",), later).steps == (4, 5)
    full = ModelFacts(8, 4, 6, 0, (2, 3, 4), 9)
    assert "pad" not in [
        name for name, _ in row_columns(plan(("circle",), full))
    ]  # nine tokens fill all nine positions


@pytest.mark.parametrize(
    ("marked", "spec", "said"),
    [
        ((), {}, "(circle)"),
        ((), {"tokens": ["@marked", "red"]}, "marks none"),
        ((), {"tokens": ["blue"]}, "'blue' is not in the prompt"),
        (("red",), {"blocks": "8"}, "there is no block 8"),
        (("red",), {"blocks": "none"}, "selects none of 8 blocks"),
        (("red",), {"steps": "6"}, "there is no step 6"),
        (("red",), {"steps": "lat"}, "late"),
        (("red",), {"heads": [4]}, "heads are 0 to 3"),
        (("red",), {"branch": "uncond"}, "tokens: all"),
        ((), {"branch": "uncond", "tokens": ["dog"]}, "'dog' is not in the prompt"),
    ],
)
def test_captures_that_are_impossible_are_refused_with_a_fix(marked: tuple[str, ...], spec: dict, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan(marked, **spec)
    assert said in str(caught.value)


def test_without_guidance_there_is_no_uncond_and_skipped_steps_are_not_kept() -> None:
    with pytest.raises(RecipeError, match="guidance is 1"):
        plan(facts=ModelFacts(8, 4, 6, 0, (2, 3, 4), TEXT_LENGTH, guided=False), tokens="all", branch="uncond")
    with pytest.raises(RecipeError, match="begins at step 4"):
        plan(("red",), ModelFacts(8, 4, 6, 4, (2, 3, 4), TEXT_LENGTH), steps=[0, 1])


captures = st.builds(
    AttentionCapture,
    tokens=st.sampled_from(["marked", "all", ("red",), ("red", "blue"), (MARKED, "red"), (ALL, "blue")]),
    heads=st.sampled_from(["mean", "all", (0, 2)]),
    blocks=st.sampled_from(["all", "late", "3"]),
    steps=st.sampled_from(["all", "0-2"]),
    evaluations=st.sampled_from(["first", "all"]),
    measures=st.sampled_from([("probability",), ("contribution",), ("probability", "contribution")]),
    keep=st.sampled_from(["maps", "mean", "nothing"]),
)


@given(captures, captures)
def test_a_union_covers_both(a: AttentionCapture, b: AttentionCapture) -> None:
    assert a.covers(a)
    try:
        both = a.union(b)
    except ValueError:
        # of all heads together, and of single ones
        assert a.heads != b.heads and "mean" in (a.heads, b.heads) and "contribution" in (*a.measures, *b.measures)
        return
    # otherwise a take would be made again and again
    assert both.covers(a) and both.covers(b)
    assert AttentionCapture.model_validate(both.model_dump(mode="json")) == both


@given(captures, captures, captures)
def test_covering_is_transitive(a: AttentionCapture, b: AttentionCapture, c: AttentionCapture) -> None:
    assert not (a.covers(b) and b.covers(c)) or a.covers(c)


own_captures = st.builds(
    SelfAttentionCapture,
    positions=st.sampled_from(["0.5,0.5", [[0, 0], [1, 1, 1]], [[0.5, 0.5, 0.5], [1, 1, 1]]]),
    heads=st.sampled_from(["mean", "all", (0, 2)]),
    blocks=st.sampled_from(["all", "late", "3"]),
    steps=st.sampled_from(["all", "0-2"]),
    keep=st.sampled_from(["maps", "mean", "nothing"]),
)


@given(own_captures, own_captures, own_captures)
def test_captures_of_self_attention_cover_and_merge(
    a: SelfAttentionCapture, b: SelfAttentionCapture, c: SelfAttentionCapture
) -> None:
    both = a.union(b)
    assert both.covers(a) and both.covers(b) and a.covers(a)
    assert SelfAttentionCapture.model_validate(both.model_dump(mode="json")) == both
    assert not (a.covers(b) and b.covers(c)) or a.covers(c)


def test_positions_are_read_in_their_short_forms() -> None:
    one = SelfAttentionCapture(positions=((0.5, 0.25, 0.5),))
    for written in ("0.5,0.25", [0.5, 0.25], [[0.5, 0.25, 0.5]], ["0.5, 0.25", "0.5,0.25,0.5"]):
        assert CaptureSpec.model_validate({"self_attention": written}).self_attention == one
    assert one.names == ("x0.5 y0.25 t0.5",)
    assert CaptureSpec.model_validate({"self_attention": False}).self_attention is None
    for wrong in ("0.5", "0.5,2", [[0.5, "a"]], [], True, {"positions": [[1, 2, 3, 4]]}):
        with pytest.raises(ValueError, match=r"x and y|x, y|x,y"):
            CaptureSpec.model_validate({"self_attention": wrong})
    assert CaptureSpec(self_attention="0.5,0.5", reduce=print).inside  # type: ignore[arg-type]


def test_maps_of_two_branches_do_not_fit_one_take() -> None:
    with pytest.raises(ValueError, match="one branch"):
        AttentionCapture(tokens="all").union(AttentionCapture(tokens="all", branch="uncond"))


def test_specs_are_read_in_their_short_forms() -> None:
    assert CaptureSpec(attention=True).attention == CaptureSpec(attention="marked").attention == AttentionCapture()
    assert CaptureSpec(attention=False).attention is None
    assert CaptureSpec.model_validate({"attention": ["red", "red "]}).attention == AttentionCapture(tokens=("red",))
    assert AttentionCapture(blocks=[0, 3], steps=2, heads=3) == AttentionCapture(blocks="0,3", steps="2", heads=(3,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none are captured"):
        CaptureSpec(reduce=print)
    assert "reduce" not in CaptureSpec(attention=True, reduce=print).model_dump()


# the sink


def moment(step: int, evaluation: int = 0, branches: Any = ("cond",)) -> Moment:
    return Moment(step, 6, evaluation, branches, 0, 1 - step / 6)


def random_maps(found: AttentionPlan, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(found.map_shape).astype(np.float32)


def test_the_sink_stores_each_step_and_passes_it_to_reduce(tmp_path: Path) -> None:
    found = plan(("circle",), steps="1-3", blocks="0,5")
    seen: list[Seen] = []
    sink = AttentionSink(found, tmp_path, seen.append)
    given = {step: random_maps(found, step) for step in (1, 2, 3)}
    buffer = np.empty(found.map_shape, np.float32)
    for step in range(6):
        if sink.wanted(moment(step)):
            buffer[:] = given[step]
            sink.put(moment(step), {"probability": buffer})
            buffer[:] = -1  # the recorder may reuse it
        assert not sink.wanted(moment(step, 1)) and not sink.wanted(moment(step, branches=("uncond",)))
    kept = sink.finish()
    assert kept.evaluations == ((1, 0), (2, 0), (3, 0))
    array = open_array(tmp_path / "attention.zarr")
    assert array.dtype == np.float16 and array.chunks == array.shards and array.shards == (1, *found.map_shape)
    truth = np.stack([given[s] for s in (1, 2, 3)])
    half, exponents = scaled(truth)
    assert np.array_equal(array[:], half)
    assert np.array_equal(np.load(tmp_path / exponents_file("probability")), exponents)
    opened = Attention.open(tmp_path, "probability")
    assert np.abs(opened[:] - truth).max() <= 2.0**-11  # scaling by a power of two is exact; only fp16 rounds
    for key in (
        0,
        -1,
        (..., 0),
        (slice(None), [1, 0], 0),
        ([2, 0], ..., 1),
        (1, slice(0, 2), [True, False]),
        np.s_[::2],
    ):
        assert np.array_equal(opened[key], opened[:][key])
    with pytest.raises(IndexError):
        opened[3]
    (tmp_path / exponents_file("probability")).unlink()
    with pytest.raises(DamagedTake, match="exponents"):
        Attention.open(tmp_path, "probability")
    assert [(s.step, s.block) for s in seen] == [(1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (3, 5)]
    assert array.attrs["rows"][0] == {"name": "circle", "kind": "word", "columns": [2]}


def test_a_step_that_was_not_recorded_is_an_error(tmp_path: Path) -> None:
    sink = AttentionSink(plan(("circle",)), tmp_path)
    sink.put(moment(0), {"probability": random_maps(sink.plan, 0)})
    with pytest.raises(WorkError, match="not recorded at step 1"):
        sink.finish()
    sink.close()


@given(st.floats(-60, 60), st.integers(0, 2**31))
def test_maps_of_any_size_are_stored_to_fp16_s_precision(power: float, seed: int) -> None:
    with np.errstate(over="ignore"):
        maps = (np.random.default_rng(seed).standard_normal((2, 3, 2, 3, 4)) * 10**power).astype(np.float32)
    maps[0, 1], maps[1, 0] = 0, np.nan
    maps[1, 2, 0, 0, :2] = [0, np.nan]
    with np.errstate(over="ignore"):
        half, exponents = scaled(maps)
    assert half.dtype == np.float16 and exponents.dtype == np.int8 and exponents.shape == (2, 3)
    back = np.ldexp(half.astype(np.float32), exponents[..., None, None, None])
    assert np.array_equal(np.isnan(back), np.isnan(maps)) and (back[0, 1] == 0).all()
    top = np.nan_to_num(np.abs(maps)).max((-3, -2, -1), keepdims=True)
    if 2.0**-90 < top[0, 0].max() < 2.0**90:
        off = np.nan_to_num(np.abs(back - maps))
        assert (off <= np.maximum(2.0**-11 * np.abs(np.nan_to_num(maps)), 2.0**-39 * top)).all()


def test_infinite_maps_and_a_full_disk_are_errors(tmp_path: Path, monkeypatch) -> None:
    sink = AttentionSink(plan(("circle",), measures=["contribution"]), tmp_path)
    with pytest.raises(NumericalError, match="infinite"):
        sink.put(moment(0), {"contribution": np.full_like(random_maps(sink.plan, 0), np.inf)})

    def full(*args: Any, **options: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr("wanscope.capture.attention_sink.create_array", full)
    sink.put(moment(0), {"contribution": random_maps(sink.plan, 0)})
    with pytest.raises(StorageError, match="full"):  # raised in the writing thread, reported at the next step
        sink.put(moment(1), {"contribution": random_maps(sink.plan, 1)})
    sink.close()


@given(st.lists(st.integers(1, 60), min_size=2, max_size=3), st.tuples(*[st.integers(1, 40)] * 3))
def test_a_chunk_holds_whole_adjacent_maps_up_to_its_size(leading: list[int], grid: tuple[int, int, int]) -> None:
    shape = (*leading, *grid)
    chunk = chunk_shape(shape)
    assert len(chunk) == len(shape) and chunk[-3:] == grid
    assert all(size % part == 0 for size, part in zip(shape, chunk, strict=True))
    maps = int(np.prod(chunk[:-3]))
    assert maps == 1 or 2 * int(np.prod(chunk)) <= CHUNK_BYTES
    parted = next((i for i in range(len(leading)) if chunk[i] > 1), len(leading) - 1)
    assert chunk[parted + 1 : -3] == shape[parted + 1 : -3]  # only the outermost of its axes is divided


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((10, 9, 5, 8, 8), (10, 9, 5, 8, 8)),  # marbles, 8 words and the padding
        ((40, 9, 21, 30, 52), (1, 9, 21, 30, 52)),  # 14B at 832 x 480 x 81: a block
        ((40, 512, 21, 30, 52), (1, 16, 21, 30, 52)),  # the same with all tokens
        ((40, 40, 9, 21, 30, 52), (1, 1, 9, 21, 30, 52)),  # heads kept
    ],
)
def test_chunks_at_usual_sizes(shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    assert chunk_shape(shape) == chunk

"""Which expert a file is: every spelling, folder and order; halves, pairs that do not say it, and paths with " + "."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from wanscope.errors import ModelError
from wanscope.wan.experts import expert_of_file, expert_of_name, in_order, refuse_half, split_pair

SPELLINGS = [
    "wan2.2_t2v_{}_noise_14B_fp8_scaled",
    "Wan2_2-T2V-A14B-{}_fp8_e4m3fn_scaled_KJ",
    "wan2.2-t2v-a14b-{}noise-Q4_K_M",
    "Wan2.2_{}-noise_T2V",
    "{}",
    "T2V.A14B.{}.bf16",
    "Style{}Noise",
    "style ({}) v2",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("case", [str.lower, str.upper, str.capitalize])
@pytest.mark.parametrize("expert", ["high", "low"])
def test_every_spelling_is_told(spelling: str, case, expert: str) -> None:
    assert expert_of_name(spelling.format(case(expert))) == expert


# What publishers and trainers put before and after the word. A number right after a word such as "rank" or "Q" makes it
# a field of its own ("HIGH-Q4_K_M" is the high-noise expert in 4 bits, not "high Q").
BEFORE = ["", "wan2.2-t2v-a14b-", "Wan2_2-T2V-A14B_", "T2V.A14B.", "my style ", "(", "wan22", "wan", "t2v", "i2v_"]
AFTER = [
    *("", "-Q4_K_M", "_Q8_0", "_fp8_e4m3fn_scaled_KJ", ".bf16", "_rank32", "-rank64-v1", "_step2000", "_4steps", ")"),
    *("-lightning", "_lr1e-4", "-dim16", "_fps24", "_cfg1", " v2", "_14B", "-000010", ".safetensors.index"),
]


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("noise", ["", "noise", "-noise", "_noise_model", "Noise", " NOISE"])
def test_every_name_around_the_word_is_told(before: str, noise: str) -> None:
    for after, case, expert in product(AFTER, (str.lower, str.upper, str.capitalize), ("high", "low")):
        word = case(expert)
        if before.isalnum() and not before[-1].isdigit() and word == expert and not noise:
            continue  # "wanlow" without any boundary
        assert expert_of_name(before + word + noise + after) == expert, before + word + noise + after


@pytest.mark.parametrize("field", ["rank", "res", "q", "lr", "step", "quality", "motion"])
@pytest.mark.parametrize("separator", ["_", "-", " ", "."])
@pytest.mark.parametrize("reverse", [False, True])
def test_two_names_that_differ_only_in_the_word_are_told_by_it(field: str, separator: str, reverse: bool) -> None:
    """Alone, "low_rank" says nothing about the noise; next to "high_rank" it does."""
    paths = [Path(f"x_{word}{separator}{field}.safetensors") for word in ("high", "low")]
    assert in_order(*(paths[::-1] if reverse else paths)) == (tuple(paths), True)


def test_one_file_is_not_both_experts(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "a.safetensors")
    same = tmp_path / "sub" / ".." / "a.safetensors"
    (tmp_path / "sub").mkdir()
    for other in (tmp_path / "a.safetensors", same, tmp_path / "link.safetensors"):
        with pytest.raises(ModelError, match="the same file"):
            in_order(tmp_path / "a.safetensors", other)


@pytest.mark.parametrize(
    "name",
    [
        *("slow-noise", "follow_noise", "yellow noise", "slownoise", "thigh_noise", "glow.noise"),
        *("wan2.1_t2v_14B_fp16", "slow_motion", "highlight", "yellow", "glow", "follow-cam", "thigh", "flow_match"),
        *("high_quality", "high-res-fix", "low_vram_fp8", "low rank 32", "HighDetail", "high_step", "low_and_high"),
        *("high_noise_and_low_noise", ""),
    ],
)
def test_other_words_say_no_expert(name: str) -> None:
    assert expert_of_name(name) is None


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize(
    ("high", "low"),
    [("high_noise_model", "low_noise_model"), ("HIGH", "LOW"), ("x-HIGH_fp8", "X_LOW_fp8"), ("HighNoise", "LowNoise")],
)
@pytest.mark.parametrize("reverse", [False, True])
def test_two_files_are_put_in_order(folder: bool, high: str, low: str, reverse: bool) -> None:
    paths = [Path("m", name, "model.safetensors") if folder else Path("m", f"{name}.gguf") for name in (high, low)]
    given = paths[::-1] if reverse else paths
    assert in_order(*given) == (tuple(paths), True)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_single_name_that_says_it_decides_for_both(reverse: bool) -> None:
    for named, other, order in (("high", "second", (0, 1)), ("low", "first", (1, 0))):
        paths = [Path(f"{named}.safetensors"), Path(f"{other}.safetensors")]
        wanted = tuple(paths[i] for i in order)
        assert in_order(*(paths[::-1] if reverse else paths)) == (wanted, True)


def test_names_that_say_nothing_keep_their_order_and_two_of_one_kind_are_refused() -> None:
    first, second = Path("a.safetensors"), Path("b.safetensors")
    assert in_order(first, second) == ((first, second), False)
    assert in_order(second, first) == ((second, first), False)
    with pytest.raises(ModelError, match="both named as the low-noise expert") as error:
        in_order(Path("a_LOW.safetensors"), Path("b_LOW.safetensors"))
    assert "b_HIGH.safetensors" in error.value.fix
    # The files' own names come before those of their folders.
    mixed = Path("low", "x_high.safetensors"), Path("high", "x_low.safetensors")
    assert in_order(mixed[1], mixed[0]) == (mixed, True)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("X_HIGH_fp8.safetensors", "X_LOW_fp8.safetensors"),
        ("x-low.gguf", "x-high.gguf"),
        ("High_Noise.safetensors", "Low_Noise.safetensors"),
        ("high_noise_model/model.safetensors", "low_noise_model/model.safetensors"),
    ],
)
def test_one_expert_alone_is_refused_with_the_name_of_the_other(name: str, other: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"one of Wan 2\.2's two experts") as error:
        refuse_half(tmp_path / name)
    high, low = sorted((tmp_path / name, tmp_path / other), key=lambda path: expert_of_file(path) or "")
    assert error.value.fix == f'model: "{high} + {low}"'


@pytest.mark.parametrize("folder", ["high", "HIGH", "High_Noise", "high_noise_model", "HighNoise", "Wan2.2-A14B-high"])
def test_a_folder_that_is_an_expert_makes_its_file_one(folder: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the low-noise file is needed.*wan2\.1"):
        refuse_half(tmp_path / folder / "model.safetensors")


@pytest.mark.parametrize("folder", ["high", "my high speed disk", "low space"])
def test_a_folder_further_up_or_with_other_words_matters_only_next_to_its_opposite(folder: str, tmp_path: Path) -> None:
    for name in ("model.safetensors", "deeper/model.safetensors"):
        if folder == "high" and "/" not in name:
            continue
        other = tmp_path / ("low" if folder == "high" else folder.replace("low", "high")) / name
        refuse_half(tmp_path / folder / name)
        if other.parent != tmp_path / folder and "speed" not in folder:
            other.parent.mkdir(parents=True, exist_ok=True)
            other.touch()
            with pytest.raises(ModelError, match="file is needed"):
                refuse_half(tmp_path / folder / name)


PLAIN = ("marbles", "Wan-AI/Wan2.1", "a.safetensors", "my model.gguf")
ODD = ("a + b.safetensors", "x + y + z.gguf", "dir + more/a.safetensors")


@pytest.mark.parametrize("names", [(one,) for one in (*PLAIN, *ODD)] + list(product(ODD + PLAIN[2:], repeat=2)))
def test_a_path_with_a_plus_can_be_named(names: tuple[str, ...], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in names:
        if name.endswith((".safetensors", ".gguf")):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()
    assert list(split_pair(" + ".join(names))) == list(names)


def test_a_missing_second_file_is_still_a_second_file() -> None:
    assert list(split_pair("no/high.safetensors + no/low.safetensors")) == ["no/high.safetensors", "no/low.safetensors"]

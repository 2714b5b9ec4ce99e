"""The speed of matrix products: measured once, kept, and never believed blindly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from wanscope.wan import speed

CPU = torch.device("cpu")
KEPT = 5e9


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "wanscope" / speed.FILE


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dtypes that are measured, each time as KEPT."""
    calls: list[str] = []

    def measure(device: torch.device, dtype: str) -> float:
        calls.append(dtype)
        return KEPT

    monkeypatch.setattr(speed, "measure", measure)
    return calls


def test_measured_once_for_each_device_dtype_torch_and_threads(cache: Path, measured: list[str], monkeypatch) -> None:
    for _ in range(2):
        assert speed.matmul_flops(CPU, "fp32", "A") == KEPT
    assert measured == ["fp32"] and len(json.loads(cache.read_text())) == 1
    speed.matmul_flops(CPU, "bf16", "A")
    speed.matmul_flops(CPU, "bf16", "B")
    with monkeypatch.context() as m:
        m.setattr(torch, "get_num_threads", lambda: 77)
        speed.matmul_flops(CPU, "fp32", "A")
        m.setattr(torch, "__version__", "99.0")
        speed.matmul_flops(CPU, "fp32", "A")
    assert measured == ["fp32", "bf16", "bf16", "fp32", "fp32"] and len(json.loads(cache.read_text())) == 5
    for dtype in ("fp32", "bf16"):
        speed.matmul_flops(CPU, dtype, "A")
    assert len(measured) == 5 and [path.name for path in cache.parent.iterdir()] == [speed.FILE]


def values(value: object) -> Callable[[str], str]:
    """The file with `value` for every speed."""
    return lambda text: json.dumps(dict.fromkeys(json.loads(text), value))


DAMAGES: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "cut": lambda text: text[:-5],
    "no text": lambda text: "\x00\xff" * 40,
    "a list": lambda text: "[]",
    **{str(value): values(value) for value in ("fast", [KEPT], True, 0, -KEPT, 1e30, float("nan"), float("inf"))},
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_cache_is_measured_again(cache: Path, measured: list[str], damage: Callable[[str], str]) -> None:
    speed.matmul_flops(CPU, "fp32", "A")
    cache.write_text(damage(cache.read_text()), encoding="latin-1")
    assert speed.matmul_flops(CPU, "fp32", "A") == KEPT and measured == ["fp32"] * 2
    assert list(json.loads(cache.read_text()).values()) == [KEPT]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, measured: list[str], monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "file" / name)
    for _ in range(2):
        assert speed.matmul_flops(CPU, "fp32", "A") == KEPT
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / name)

    def full(*names: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(speed.os, "replace", full)
    assert speed.matmul_flops(CPU, "fp32", "A") == KEPT and measured == ["fp32"] * 3
    assert list((tmp_path / "wanscope").iterdir()) == []


def test_products_grow_until_they_can_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine of a known speed, whatever it is, that speed is found; no size above the first long one is tried."""
    for flops in (4e7, 5e9, 3e12):
        clock, sizes = [0.0], []

        def linear(x_NN: torch.Tensor, weight_NN: torch.Tensor, clock=clock, sizes=sizes, flops=flops) -> None:
            sizes.append(len(x_NN))
            clock[0] += 2 * len(x_NN) ** 3 / flops

        monkeypatch.setattr(torch.nn.functional, "linear", linear)
        assert speed.measure(CPU, "bf16", now=lambda clock=clock: clock[0]) == pytest.approx(flops)
        long = [n for n in speed.SIZES["cpu"] if 2 * n**3 / flops >= speed.LONG_ENOUGH]
        assert max(sizes) == (long[0] if long else speed.SIZES["cpu"][-1])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_this_machine_has_a_plausible_speed(dtype: str) -> None:
    low, high = speed.PLAUSIBLE
    assert low < speed.measure(CPU, dtype) < high


@pytest.mark.gpu
def test_a_gpu_is_faster_than_any_cpu() -> None:
    assert speed.measure(torch.device("cuda"), "bf16") > 1e13

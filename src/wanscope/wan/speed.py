"""The speed of matrix products on this machine, measured once and stored in the user's cache folder.

A linear layer, x W^T, is timed, as a transformer runs it. `torch.mm(x, W)` reads W by columns, for which CPUs without
bf16 instructions only have a plain loop: there it ran at 0.04 GFLOP/s, and the linear layer at 2. The size of the
product is increased until one takes long enough to be timed, so that the measurement takes a few tenths of a second on
any machine.

The stored speed is only a hint: where the file cannot be read or contains an implausible number, the speed is measured
again, and where the folder cannot be written it is measured every time.

Shape suffixes: N rows and columns.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FILE = "speed.json"
SIZES = {"cpu": (128, 256, 512, 1024), "cuda": (1024, 2048, 4096, 8192)}
LONG_ENOUGH = 0.005  # seconds per product, well above the time of launching it and reading the clock
REPEATS = 4
PLAUSIBLE = (1e6, 1e17)  # FLOP/s, from a tenth of the slowest product seen to a hundred of today's GPUs


def matmul_flops(device: torch.device, dtype: str, processor: str) -> float:
    """Return the FLOP/s of a matrix product of `dtype` (fp32, bf16 or fp16) on `device`, from the cache or measured.

    processor: the name of the device's model; machines with different ones may share a home folder.
    """
    import torch

    key = f"{device.type}, {processor}, {dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    cached = _read_cache()
    if key in cached:
        return cached[key]
    found = measure(device, dtype)
    _write_cache({**cached, key: found})
    return found


def measure(device: torch.device, dtype: str, now: Callable[[], float] = time.perf_counter) -> float:
    """Measure the FLOP/s of a square product that takes at least LONG_ENOUGH, or of the largest one; best of a few.

    now: returns the time in seconds.
    """
    import torch
    from torch.nn.functional import linear

    kinds: dict[str, Any] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

    def seconds(x_NN: torch.Tensor) -> float:
        began = now()
        linear(x_NN, x_NN)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return now() - began

    best, n = float("inf"), 0
    for n in SIZES.get(device.type, SIZES["cpu"]):
        x_NN = torch.ones(n, n, device=device, dtype=kinds[dtype])
        seconds(x_NN)  # the first product of a size also sets up memory, threads and kernels
        best = seconds(x_NN)
        if best >= LONG_ENOUGH:
            break
    best = min(best, *(seconds(x_NN) for _ in range(REPEATS - 1)))
    return 2 * n**3 / best


def _folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("wanscope")


def _read_cache() -> dict[str, float]:
    """Return the speeds that earlier processes measured; empty where the file is missing or damaged."""
    try:
        data = json.loads((_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    low, high = PLAUSIBLE
    pairs = data.items() if isinstance(data, dict) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and low <= v <= high}


def _write_cache(speeds: dict[str, float]) -> None:
    with contextlib.suppress(OSError):  # without a cache, the speed is only measured again
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=FILE)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(speeds, file, indent=1)
            os.replace(name, folder / FILE)
        except OSError:
            os.unlink(name)
            raise

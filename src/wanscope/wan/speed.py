"""How fast this machine multiplies matrices: measured once, and kept in the user's cache folder.

The measure is a linear layer, x W^T, as a transformer runs it. `torch.mm(x, W)` reads W by columns, for which CPUs
without bf16 instructions have only a plain loop: there it ran at 0.04 GFLOP/s where the layer runs at 2. Products
grow until one takes long enough to be timed, so that the whole takes a few tenths of a second on any machine.

What is kept is a hint, never trusted: a file that cannot be read, and a number that no machine could reach, are
measured again, and where the folder cannot be written the speed is measured every time.

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
LONG_ENOUGH = 0.005  # seconds a product, well above what starting it and reading a clock take
REPEATS = 4
PLAUSIBLE = (1e6, 1e17)  # FLOP/s, from a tenth of the slowest product seen to a hundred of today's GPUs


def matmul_flops(device: torch.device, dtype: str, processor: str) -> float:
    """FLOP/s of a matrix product of `dtype` (fp32, bf16 or fp16) on `device`, from the cache or measured now.

    processor: the device's model, of which the cache may hold several where machines share a home folder.
    """
    import torch

    key = f"{device.type}, {processor}, {dtype}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    kept = _kept()
    if key in kept:
        return kept[key]
    found = measure(device, dtype)
    _keep({**kept, key: found})
    return found


def measure(device: torch.device, dtype: str, now: Callable[[], float] = time.perf_counter) -> float:
    """FLOP/s of the largest square product that was worth timing, the best of a few."""
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
        seconds(x_NN)  # the first of a size prepares: memory, threads, kernels
        best = seconds(x_NN)
        if best >= LONG_ENOUGH:
            break
    best = min(best, *(seconds(x_NN) for _ in range(REPEATS - 1)))
    return 2 * n**3 / best


def _folder() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("wanscope")


def _kept() -> dict[str, float]:
    """What earlier processes measured; empty where the file is not there or is damaged."""
    try:
        data = json.loads((_folder() / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    low, high = PLAUSIBLE
    pairs = data.items() if isinstance(data, dict) else ()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and low <= v <= high}


def _keep(speeds: dict[str, float]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written is measured again, and no more
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

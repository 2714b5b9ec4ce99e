"""The peak of what a piece of work allocates, above what was allocated before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], None], device: torch.device) -> int | None:
    """Bytes at the highest moment of `work`, above those before it; None where a GPU's memory does not hold it.

    On the CPU every allocation and release of torch's own allocator is counted, as the process's size says little of
    one step: what numpy and other libraries allocate is not seen, and work is slowed, so time it apart.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        try:
            work()
            torch.cuda.synchronize()
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            return None
        return torch.cuda.max_memory_allocated() - held
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None
    events = [
        event
        for event in found.profiler.kineto_results.events()
        if event.name() == "[memory]" and event.device_type() == DeviceType.CPU
    ]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak

"""The peak memory that a piece of work allocates, above what was allocated before it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def peak_bytes(work: Callable[[], None], device: torch.device) -> int | None:
    """Return the peak bytes during `work`, above those allocated before; None where it does not fit on the GPU.

    On the CPU, every allocation and release of torch's own allocator is counted, because the size of the process says
    little about one step. Allocations of numpy and other libraries are not counted, and the work is slowed down, so
    measure its time separately.
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

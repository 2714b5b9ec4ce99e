"""Settings of all tests: one thread per process, timeouts that survive a busy machine, and the number of workers.

`pytest` alone is one process, so that `pytest -k name` starts immediately. `pytest -n auto`, which CI and
`scripts/setup.py test` use, distributes the tests over the number of processes of `pytest_xdist_auto_num_workers`.
"""

from __future__ import annotations

import gc
import os
import sys

import pytest
from hypothesis import HealthCheck, settings

from helpers.doc_pages import pytest_runtest_makereport

__all__ = ["pytest_collection_finish", "pytest_runtest_makereport", "pytest_xdist_auto_num_workers"]

# Before anything imports numpy or torch: two workers with two threads each on two cores wait for each other. Programs
# that tests start inherit it. What is compared bit for bit is compared within a process.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))

BYTES_PER_WORKER = 2 * 2**30  # a worker holds torch, diffusers and tiny models: about 1 GB, more while it compiles

# How long an example takes depends on the load of the machine, not on the code.
settings.register_profile("wanscope", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wanscope")


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_xdist_auto_num_workers() -> int:
    """Return the workers for `-n auto`: one per core that this process may use, limited by memory; 0 for one core.

    xdist itself counts physical cores, of which there is one if this process gets two threads of one core.
    """
    import psutil

    given = os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = int(given) if given.isdigit() else min(cores, psutil.virtual_memory().available // BYTES_PER_WORKER)
    return workers if workers > 1 else 0


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, which every run of a study does."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    gc.collect()
    gc.freeze()

"""Which metrics there are and which of them are tested between groups, known before the analysis is loaded. No torch.

A study's hypotheses name metrics, and a name that no test will answer is to be refused before hours are spent on takes.
Three ways lead to a name:

    built in        the rows below (tests hold them to what is registered)
    a package       its entry point `wanscope.metrics`; imported only where a name is none of those
    a session       `@metric(...)` of analysis/metric.py was run, in a notebook say
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from wanscope.errors import nearest
from wanscope.spec.plugins import load_point

ENTRY_POINT = "wanscope.metrics"

# Of the whole path or of its last state: one number a take, compared between groups.
TESTED = (
    *("path_length", "displacement", "linearity", "turning", "curvature", "mean_acceleration", "log_volume"),
    *("participation_ratio", "mean_frequency", "phase_changes"),
    *("final_variance", "final_detail", "final_coherence", "final_entropy", "final_gaussian_gap"),
    "final_channel_correlation",
)
# Of the last latents of two groups (analysis/groups.py): tested, and of no single take.
OF_GROUPS = ("permanova", "energy", "spread")
# Courses over the states, and tables of several parts: described and drawn, not tested.
UNTESTED = (
    *("phase_start", "velocity", "sigma_speed", "acceleration", "turning_angle", "curvature_at", "drift", "remaining"),
    *("alignment", "explained", "frequency_power"),
    *("variance", "detail", "coherence", "entropy", "gaussian_gap", "channel_correlation", "frame_change"),
    *("channel_mean", "channel_variance", "radial_power", "channel_correlations"),
)

_tested: dict[str, bool] = {**dict.fromkeys(TESTED + OF_GROUPS, True), **dict.fromkeys(UNTESTED, False)}


def register(name: str, tested: bool) -> None:
    """Called where a metric is registered."""
    _tested[name] = tested


def offered() -> Iterator[Any]:
    """What each entry point of installed packages names, imported: a module whose metrics register themselves, one of
    its functions, or a Metric. RequestError, naming the package, where that fails."""
    for point in entry_points(group=ENTRY_POINT):  # not by name: two packages may use the same
        yield load_point(point, "the metrics")


def why_untested(name: str) -> str:
    """Why no test will be of this metric, naming the nearest one that is tested; "" where tests are of it."""
    if name not in _tested:
        for found in offered():
            if isinstance(getattr(found, "tested", None), bool):
                register(found.name, found.tested)
    if _tested.get(name):
        return ""
    names = [known for known, tested in _tested.items() if tested]
    if name in _tested:
        return f"it is described and drawn, not tested between groups; {nearest(name, names)}"
    return f"there is no such metric; {nearest(name, names)}"

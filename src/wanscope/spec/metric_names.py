"""The names of the metrics, and which of them are tested between groups; known without loading the analysis or torch.

A study's hypotheses name metrics, and a metric that is not tested has to be refused before hours are spent on takes.
A name comes from one of three places:

    built in        the tuples below (a test compares them with the registry)
    a package       its entry point `wanscope.metrics`; imported only where a name is not built in
    a session       `@metric(...)` of analysis/metric.py was run, for example in a notebook
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any

from wanscope.errors import nearest
from wanscope.spec.plugins import load_point

ENTRY_POINT = "wanscope.metrics"

# Of the whole path or of its last state: one number per take, compared between groups.
TESTED = (
    *("path_length", "displacement", "linearity", "turning", "curvature", "mean_acceleration", "log_volume"),
    *("participation_ratio", "mean_frequency", "phase_changes"),
    *("final_variance", "final_detail", "final_coherence", "final_entropy", "final_gaussian_gap"),
    "final_channel_correlation",
)
# Of the last latents of two groups (analysis/groups.py): tested, but not defined for a single take.
OF_GROUPS = ("permanova", "energy", "spread")
# Of the maps of words (analysis/paired_columns.py): one number per take and word, compared between groups.
OF_ATTENTION = (
    *("attention_mass", "attention_concentration", "attention_travel", "attention_center_x", "attention_center_y"),
    "attention_overlap",
)
# Series over the states, and tables with several columns. The former are tested at each state as courses.
UNTESTED = (
    *("phase_start", "velocity", "sigma_speed", "acceleration", "turning_angle", "curvature_at", "drift", "remaining"),
    *("alignment", "explained", "frequency_power"),
    *("variance", "detail", "coherence", "entropy", "gaussian_gap", "channel_correlation", "frame_change"),
    *("channel_mean", "channel_variance", "radial_power", "channel_correlations"),
)

_tested: dict[str, bool] = {**dict.fromkeys(TESTED + OF_GROUPS + OF_ATTENTION, True), **dict.fromkeys(UNTESTED, False)}


def register(name: str, tested: bool) -> None:
    """Record a metric's name and whether it is tested; called where a metric is registered."""
    _tested[name] = tested


def offered() -> Iterator[Any]:
    """Import and yield what each entry point of an installed package names.

    That is a module whose metrics register themselves, one of its functions, or a Metric. Raises RequestError, naming
    the package, where the import fails.
    """
    for point in entry_points(group=ENTRY_POINT):  # not by name: two packages may use the same one
        yield load_point(point, "the metrics")


def why_untested(name: str) -> str:
    """Return why this metric is not tested, with the nearest one that is; "" where it is tested."""
    if name not in _tested:
        for found in offered():
            if isinstance(getattr(found, "tested", None), bool):
                register(found.name, found.tested)
    if _tested.get(name):
        return ""
    names = [known for known, tested in _tested.items() if tested]
    if name in _tested:
        return f"it has many values per take, and a hypothesis needs one; {nearest(name, names)}"
    return f"there is no such metric; {nearest(name, names)}"

"""Every path metric is checked against a closed form, directly and in an analysis's table of takes on the disk.

A new path metric gets a row in CLOSED_FORMS. The examples in the docs are checked on the same paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.paths import write_study
from wanscope.analysis import metric as metric_module
from wanscope.analysis.analyze import analyze
from wanscope.analysis.latent_path import LatentPath
from wanscope.analysis.metric import REGISTRY, Subject, all_metrics
from wanscope.analysis.paired_columns import MEASURES, PREFIX
from wanscope.capture.path_gram import increments
from wanscope.spec.metric_names import OF_ATTENTION, TESTED, UNTESTED

ROOT = Path(__file__).parents[2]
DIMENSION = 1024

# A straight line whose four steps have these lengths (rms); the noise level falls by 1/4 in each.
STEPS = np.array([1.0, 2.0, 4.0, 1.0])
PLACES = np.array([0.0, 1.0, 3.0, 7.0, 8.0])
# An arc of 5 states on a circle of this radius (rms), each a twelfth of a turn further.
RADIUS, ANGLE = 2.0, 2 * np.pi / 12
CHORD = [2 * RADIUS * np.sin(k * ANGLE / 2) for k in range(5)]


def line(unit: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return states [5, ...] from two orthogonal directions of rms 1."""
    return np.stack([other + place * unit for place in PLACES])


def arc(unit: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.stack([RADIUS * (np.cos(k * ANGLE) * unit + np.sin(k * ANGLE) * other) for k in range(5)])


SHAPES = {"line": line, "arc": arc}
# metric: {shape: its value, or its values in the order of states and parts}.
CLOSED_FORMS: dict[str, dict[str, Any]] = {
    "path_length": {"line": 8, "arc": 4 * CHORD[1]},
    "displacement": {"line": 8, "arc": CHORD[4]},
    "linearity": {"line": 1, "arc": CHORD[4] / (4 * CHORD[1])},
    "turning": {"line": 0, "arc": 30},
    "curvature": {"line": 0, "arc": 1 / RADIUS},
    "mean_acceleration": {"line": 2, "arc": 2 * CHORD[1] * np.sin(ANGLE / 2)},
    "log_volume": {"line": np.log(((PLACES - PLACES.mean()) ** 2).sum()) / 2},
    "participation_ratio": {"line": 1},
    "mean_frequency": {"line": (5 / 4 + 1 / 2) / 6},
    "phase_changes": {"line": 0, "arc": 0},
    "phase_start": {"line": np.zeros(4), "arc": np.zeros(4)},
    "velocity": {"line": STEPS, "arc": np.full(4, CHORD[1])},
    "sigma_speed": {"line": 4 * STEPS, "arc": np.full(4, 4 * CHORD[1])},
    "acceleration": {"line": [1, 2, 3], "arc": np.full(3, 2 * CHORD[1] * np.sin(ANGLE / 2))},
    "turning_angle": {"line": np.zeros(3), "arc": np.full(3, 30)},
    "curvature_at": {"line": np.zeros(3), "arc": np.full(3, 1 / RADIUS)},
    "drift": {"line": PLACES, "arc": CHORD},
    "remaining": {"line": 8 - PLACES, "arc": CHORD[::-1]},
    "alignment": {"line": np.ones(4), "arc": np.cos(ANGLE * np.array([-1.5, -0.5, 0.5, 1.5]))},
    "explained": {"line": [1, 0, 0, 0]},
    # Of the increments less their mean, -1, 0, 2, -1: |c|^2 / 4 of 1/4 and 3/4 cycles a step together, and of 1/2.
    "frequency_power": {"line": [5, 1]},
}


def directions(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return two orthogonal patterns of +1 and -1: rms 1, and exact in float32."""
    size = int(np.prod(shape))
    return np.resize([1.0, -1.0], size).reshape(shape), np.resize([1.0, 1.0, -1.0, -1.0], size).reshape(shape)


def subject(shape: str) -> Subject:
    """Return a metric's argument for a path of that shape. It has no take: for metrics of the path alone."""
    v = increments(SHAPES[shape](*directions((DIMENSION,))))
    path = LatentPath(v @ v.T, DIMENSION, np.linspace(1, 0, 5))
    return Subject(None, path, 1)  # type: ignore[arg-type]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Return the registered metrics; what an example registers is removed after the test."""
    all_metrics()
    before = dict(REGISTRY.metrics)
    monkeypatch.setattr(metric_module, "register", lambda name, tested: None)
    yield REGISTRY.metrics
    REGISTRY.metrics.clear()
    REGISTRY.metrics.update(before)


def values(name: str, of: str) -> list[float]:
    return [row.value for row in REGISTRY.metrics[name].of(subject(of))]


def of_the_path() -> list[str]:
    """Return the registered metrics that need only the path, ours and those of installed packages."""
    return [metric.name for metric in all_metrics() if metric.needs == ("path",)]


@pytest.mark.parametrize("name", of_the_path())
def test_a_metric_of_the_path_has_its_value_in_closed_form(name: str) -> None:
    assert name in CLOSED_FORMS, f"give {name!r} a row in CLOSED_FORMS of tests/analysis/test_closed_forms.py"
    for shape, expected in CLOSED_FORMS[name].items():
        assert values(name, shape) == pytest.approx(np.ravel(expected).tolist(), abs=1e-6), shape


def test_the_names_that_a_hypothesis_may_use_are_those_that_are_registered() -> None:
    ours = {m.name: m.tested for m in all_metrics() if m.rows.__module__.startswith("wanscope.")}
    listed = {**dict.fromkeys(TESTED, True), **dict.fromkeys(UNTESTED, False)}
    assert ours == listed, "TESTED and UNTESTED of src/wanscope/spec/metric_names.py"
    assert [PREFIX + measure for measure in MEASURES] == list(OF_ATTENTION)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_analysis_has_these_values_in_its_table(shape: str, tmp_path: Path) -> None:
    """For a study whose takes have paths of that shape."""

    def states(labels: Mapping[str, str], random: np.ndarray) -> np.ndarray:
        return SHAPES[shape](*directions(random.shape[1:]))

    write_study(tmp_path, {"color": ("red", "blue")}, 1, states)
    found = analyze("made", workspace=tmp_path, write=False)
    for name, forms in CLOSED_FORMS.items():
        if shape in forms:
            for member in range(2):
                got = [value.row.value for value in found.table.of(name).values if value.member == member]
                # float32 states: angles and curvatures of a straight line are the square root of a rounding error
                assert got == pytest.approx(np.ravel(forms[shape]).tolist(), abs=2e-3), name


# ---- the examples that show how a metric is written


def test_the_example_of_the_page_has_its_value(registry: dict[str, Any]) -> None:
    """docs/trajectories.md, A metric of your own."""
    page = (ROOT / "docs" / "trajectories.md").read_text(encoding="utf-8").split("## A metric of your own")[1]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/trajectories.md", "exec"), {"__name__": "an_example"})
    assert registry["example_last_step"].unit == "1"
    assert values("example_last_step", "line") == pytest.approx([1 / 8])
    assert values("example_last_step", "arc") == pytest.approx([1 / 4])


def test_the_example_of_the_module_is_in_the_unit_that_it_states(registry: dict[str, Any]) -> None:
    code = re.findall(r"(?:^    .*\n|^\n)+", str(metric_module.__doc__), re.MULTILINE)[0]
    code = code.replace("How far ...", "How far.")
    exec(compile(re.sub(r"^    ", "", code, flags=re.MULTILINE), "analysis/metric.py", "exec"), {"__name__": "example"})
    assert registry["late_drift"].unit == "rms"
    assert values("late_drift", "line") == pytest.approx([1.0])
    assert values("late_drift", "arc") == pytest.approx([CHORD[1]])

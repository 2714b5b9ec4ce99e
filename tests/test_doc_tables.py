"""The docs' tables of solvers, metrics, edits and models match the registries."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from helpers.doc_pages import pages_of
from helpers.scripts import script
from wanscope.analysis.metric import all_metrics
from wanscope.edit.edits import KINDS
from wanscope.spec.metric_names import OF_GROUPS
from wanscope.spec.solver_facts import built_in
from wanscope.wan.variants import VARIANTS

ROOT = Path(__file__).parents[1]
TABLES = script("doc_tables")


def names_in(page: str, name: str) -> list[str]:
    """Return the names in the first column of a table."""
    (found,) = TABLES.region(name).findall((ROOT / page).read_text(encoding="utf-8"))
    columns = [line.split("|")[1] for line in found[1].splitlines() if line.startswith("|")]
    return re.findall(r"`([^`]+)`", " ".join(columns))


def test_a_failing_test_of_a_page_names_the_page() -> None:
    tests = [*(ROOT / "tests").rglob("test_*docs*.py"), ROOT / "tests/edit/test_edit_page.py"]
    for path in tests:
        module = ModuleType(path.stem, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))))
        (page, *_) = pages_of(SimpleNamespace(module=module))  # type: ignore[arg-type]
        assert (ROOT / page).is_file(), path
    assert len(tests) >= 8
    of_code = SimpleNamespace(module=ModuleType("m", "Solvers."), function=lambda: None)
    assert pages_of(of_code) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TABLES.TABLES)
def test_a_table_matches_its_registry(name: str) -> None:
    page, table = TABLES.TABLES[name]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert TABLES.current(text, name, table()) == text, (
        f"{page}: the table {name!r} is out of date. Run: python scripts/doc_tables.py"
    )


def test_every_registered_name_is_in_its_table() -> None:
    assert sorted(names_in("docs/sampling.md", "solvers")) == sorted(built_in())
    assert sorted(names_in("docs/models.md", "models")) == sorted(VARIANTS)
    assert names_in("docs/editing.md", "edits") == list(KINDS)
    listed = names_in("docs/trajectories.md", "path metrics") + names_in("docs/trajectories.md", "latent metrics")
    ours = [metric.name for metric in all_metrics() if metric.rows.__module__.startswith("wanscope.")]
    assert sorted(listed) == sorted(ours)
    from_text = [name for name, variant in VARIANTS.items() if not variant.image_conditioned]
    assert sorted(names_in("README.md", "models from text")) == sorted(from_text)


def test_the_check_detects_missing_and_unknown_entries(tmp_path: Path) -> None:
    for page in {page for page, _ in TABLES.TABLES.values()}:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / page).read_text(encoding="utf-8"), encoding="utf-8")
    assert TABLES.outdated(tmp_path) == {}
    sampling = tmp_path / "docs" / "sampling.md"
    text = sampling.read_text(encoding="utf-8")
    sampling.write_text(re.sub(r"^\| `heun`.*\n", "", text, flags=re.MULTILINE), encoding="utf-8")
    assert TABLES.outdated(tmp_path) == {"docs/sampling.md": text}
    sampling.write_text(text.replace("<!-- table: solvers", "<!-- solvers"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"docs/sampling.md: it should have one '<!-- table: solvers"):
        TABLES.outdated(tmp_path)


def test_the_page_of_names_elsewhere_uses_names_that_exist() -> None:
    """The names it gives as ours: metrics, tests of groups, and the quantities of groups at each step."""
    from wanscope.analysis.charts import QUANTITIES

    known = {metric.name for metric in all_metrics()} | {*OF_GROUPS, "distance_within", "design", "groups.csv"}
    known |= {name for name, _, _ in QUANTITIES}
    page = (ROOT / "docs" / "analysis-names.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| (?!there|---)", line)]
    used = {name for row in rows for name in re.findall(r"`([^`]+)`", row[3])}
    assert len(rows) > 30 and "path_length" in used
    assert used <= known, f"docs/analysis-names.md: {sorted(used - known)} is not a metric"

"""CONTRIBUTING.md: its instructions are followed in a copy of the checkout, and the generic tests there are run.

All sections are followed in one copy, and their commands run in one process. helpers/followed.py reads the page.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import followed
from helpers.followed import PAGE, ROOT, PageError, Step


@dataclass(frozen=True)
class Expected:
    """What a section adds, patterns that its commands must print, and the pages in which it gets a row."""

    name: str
    printed: tuple[str, ...]
    page: str
    row: str

    def missing(self, said: str) -> list[str]:
        return [pattern for pattern in self.printed if not re.search(pattern, said)]


SECTIONS = {
    "Add a solver": Expected(
        "ralston",
        (
            r"test_a_solver_has_the_order_and_the_evaluations_that_it_states\[ralston\] PASSED",
            r"test_one_state_per_step_for_any_number_of_evaluations\[ralston\] PASSED",
        ),
        "docs/sampling.md",
        "| `ralston` | 2 | 2n | yes | Ralston's method, singlestep.",
    ),
    "Add a metric": Expected(
        "longest_step",
        (
            r"test_a_metric_of_the_path_has_its_value_in_closed_form\[longest_step\] PASSED",
            r"test_an_analysis_has_these_values_in_its_table\[line\] PASSED",
            r"test_the_names_that_a_hypothesis_may_use_are_those_that_are_registered PASSED",
        ),
        "docs/trajectories.md",
        "| `longest_step` | rms | yes | Length of the longest step,",
    ),
    "Add an edit kind": Expected(
        "thin",
        (
            r"test_every_pair_of_edits\[thin-mix\] PASSED",
            r"test_the_examples_are_written_as_they_are_read PASSED",
            r"test_every_way_to_edit_acts_where_it_is_planned_and_leaves_the_model_as_it_was\[thin-cond\] PASSED",
            r"test_every_pair_of_edits_is_planned_counted_and_computed_the_same\[thin-.*\] PASSED",
        ),
        "docs/editing.md",
        "| `thin` | Skips every n-th of the chosen blocks, beginning with the first one | `thin in mid every=3` |",
    ),
    "Add a Wan variant": Expected(
        "wan2.1-t2v-3b",
        (
            r"test_published_facts\[wan2.1-t2v-3b\] PASSED",
            r"test_configs_are_what_diffusers_takes\[wan2.1-t2v-3b\] PASSED",
            r"test_counts_of_a_variant\[wan2.1-t2v-3b\] PASSED",
            r"test_from_configs_finds_it_again\[wan2.1-t2v-3b\] PASSED",
            r"(?m)^wan2.1-t2v-3b +\d\.\d B +36 ",
        ),
        "docs/models.md",
        "| `wan2.1-t2v-3b` | Wan 2.1 text-to-video 3B |",
    ),
}


def test_every_section_that_adds_something_is_followed() -> None:
    page = (ROOT / PAGE).read_text(encoding="utf-8")
    assert set(re.findall(r"^## (Add .*)$", page, re.MULTILINE)) == set(SECTIONS)


@pytest.mark.timeout(900)  # half a minute of work, more on a busy machine
def test_the_sections_do_what_they_say(tmp_path: Path) -> None:
    """CONTRIBUTING.md: one test, because one process runs the commands of all sections, which takes the time."""
    root = followed.copy_of_the_checkout(tmp_path)
    made = {section: followed.steps(section) for section in SECTIONS}
    for section, each in made.items():
        followed.apply(root, section, each)
    written = sorted({step.path for each in made.values() for step in each if step.path})
    assert formatting(root, written) == ""
    wanted = [(section, words) for section, each in made.items() for words in followed.commands(each)]
    said = dict.fromkeys(SECTIONS, "")
    wrong = []
    for (section, words), (status, output) in zip(wanted, followed.run(root, [w for _, w in wanted]), strict=True):
        said[section] += output
        if status != 0:
            wrong.append(f"{section}: `{' '.join(words)}` ended with {status}:\n{output}")
    for section, expected in SECTIONS.items():
        wrong += [f"{section}: no {line!r} in\n{said[section]}" for line in expected.missing(said[section])]
        row = expected.row in (root / expected.page).read_text(encoding="utf-8")
        wrong += [] if row else [f"{section}: {expected.page} should get the row {expected.row!r}"]
        assert expected.row not in (ROOT / expected.page).read_text(encoding="utf-8"), "it was not there before"
    assert not wrong, "\n".join([f"Edit {PAGE}:", *wrong])


def formatting(root: Path, written: list[str]) -> str:
    """Return ruff's report on the files that were written."""
    said = ""
    for arguments in (["check"], ["format", "--check", "--diff"]):
        # The one of this environment, which need not be on the path.
        command = [sys.executable, "-m", "ruff", *arguments, *written]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        said += f"{PAGE}: {done.stdout}{done.stderr}" if done.returncode else ""
    return said


# ---- the parser of the page


PAGE_OF = """
## Add a thing

{sentence}

```python
x = 1
```

## Next
"""


@pytest.mark.parametrize(
    ("sentence", "step"),
    [
        ("Words. Create `a/b.py`:", Step("create", "x = 1\n", "a/b.py")),
        ("At the end of [b](a/b.py), add:", Step("append", "x = 1\n", "a/b.py")),
        ("In\n[b](a/b.py), add below `y = [`:", Step("below", "x = 1\n", "a/b.py", "y = [")),
        ("In [b](a/b.py), add above `]`:", Step("above", "x = 1\n", "a/b.py", "]")),
        ("In [b](a/b.md), add above ``| `y` |``:", Step("above", "x = 1\n", "a/b.md", "| `y` |")),
        ("Run:", Step("run", "x = 1\n")),
    ],
)
def test_sentences_are_read(sentence: str, step: Step) -> None:
    assert followed.steps("Add a thing", PAGE_OF.format(sentence=sentence)) == [step]


def test_a_block_without_a_place_is_refused() -> None:
    with pytest.raises(PageError, match=r"CONTRIBUTING.md, section 'Add a thing': no sentence says where"):
        followed.steps("Add a thing", PAGE_OF.format(sentence="For example:"))
    with pytest.raises(PageError, match=r"Edit CONTRIBUTING\.md"):
        followed.steps("Add nothing", PAGE_OF)


def test_steps_are_written_where_they_belong(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("def f():\n    y = [\n        2,\n    ]\n")
    followed.apply(tmp_path, "s", [Step("below", "1,\n", "a.py", "y = ["), Step("above", "3,\n4,\n", "a.py", "2,")])
    followed.apply(tmp_path, "s", [Step("append", "z = 1\n", "a.py"), Step("create", "z = 2\n", "b.py")])
    assert file.read_text() == (
        "def f():\n    y = [\n        1,\n        3,\n        4,\n        2,\n    ]\n\n\nz = 1\n"
    )
    assert (tmp_path / "b.py").read_text() == "z = 2\n"
    for step, says in (
        (Step("create", "", "b.py"), "which is there already"),
        (Step("append", "", "c.py"), "which does not exist"),
        (Step("below", "", "a.py", "q"), "has 0 lines 'q', not 1"),
    ):
        with pytest.raises(PageError, match=f"CONTRIBUTING.md, section 's': .*{says}"):
            followed.apply(tmp_path, "s", [step])

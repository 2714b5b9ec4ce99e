"""The record of edits in take.json: every site's counts can be read back, and it is short."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from wanscope.edit.edits import Inject, Skip
from wanscope.take.applied_edits import AppliedEdit, applied_edits, numbers, ranges

sites = st.dictionaries(
    st.tuples(st.integers(0, 1), st.integers(0, 5), st.sampled_from(["cond", "uncond"]), st.integers(0, 6)),
    st.integers(0, 2),
)


@settings(max_examples=150, deadline=None)
@given(sites, sites)
def test_every_site_is_recorded(planned: dict, applied: dict) -> None:
    made = applied_edits([Skip(3), Skip(4)], planned, applied)
    assert [edit.edit for edit in made] == ["skip 3", "skip 4"]
    for i, edit in enumerate(made):
        keys = {key for key in {*planned, *applied} if key[0] == i and (planned.get(key) or applied.get(key))}
        assert edit.counts() == {key[1:]: (planned.get(key, 0), applied.get(key, 0)) for key in keys}
        assert edit.planned == sum(n for key, n in planned.items() if key[0] == i)
        assert edit.applied == sum(n for key, n in applied.items() if key[0] == i)
        assert AppliedEdit.model_validate(json.loads(edit.model_dump_json())) == edit


def test_a_rectangle_of_sites_is_one_line() -> None:
    counts = {(0, block, "cond", step): 1 for block in range(7, 10) for step in range(20)}
    (edit,) = applied_edits([Inject("x", blocks="late", strength=0.4)], counts, counts)
    assert len(edit.sites) == 1
    assert (edit.sites[0].steps, edit.sites[0].blocks, edit.sites[0].branch) == ("0-19", "7-9", "cond")
    assert edit.describe() == "applied 60 of 60: blocks 7-9, steps 0-19, cond"


def test_an_edit_that_was_planned_nowhere_is_recorded_as_such() -> None:
    (edit,) = applied_edits([Inject("x", strength=0)], {}, {})
    assert (edit.planned, edit.applied, edit.sites) == (0, 0, ())
    assert edit.describe().startswith("planned nowhere")


@given(st.sets(st.integers(0, 60)))
def test_ranges_read_back(values: set[int]) -> None:
    assert numbers(ranges(values)) == sorted(values)

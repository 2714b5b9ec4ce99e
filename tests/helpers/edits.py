"""Edits for tests: one of each kind, and a strategy that draws any edit that can be declared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from wanscope.edit.edits import Bend, Donor, Edit, Inject, Prompts, Skip, Steer
from wanscope.edit.kinds.bend import BENDS, FACTORS
from wanscope.edit.strengths import SHAPES

OTHER, LATER, WORD = "a large blue square moves right on black", "a green cat", "circle"

# Every kind of edit, in every variant that the rules of edit/rules.py distinguish, with overlapping blocks. Tests of
# what holds for all edits run on each of these and on every pair: a new kind needs an entry.
WAYS: dict[str, Callable[..., Any]] = {
    "mix": lambda **f: Inject(OTHER, strength=0.4, **f),
    "mix, whole in some blocks": lambda **f: Inject(OTHER, strength=[0.3, 1.0, 0.6, 1.0], **f),
    "append": lambda **f: Inject(OTHER, mode="append", strength=0.3, blocks="0-2", **f),
    "tokens": lambda **f: Inject(OTHER, mode="tokens", strength=[0.6, 0.6, 1.0, 1.0], **f),
    "tokens replaced": lambda **f: Inject(OTHER, mode="tokens", operation="replace", blocks="1-2", **f),
    "tokens of words": lambda **f: Inject(OTHER, mode="tokens", strength=0.6, words=[WORD], **f),
    "hidden": lambda **f: Inject(OTHER, on="hidden", strength=0.5, blocks="1-2", **f),
    "both": lambda **f: Inject(OTHER, on="both", strength=[0.0, 0.5, 1.0, 0.7], **f),
    "bend": lambda **f: Bend([WORD], "suppress", factor=3.0, blocks="0-2", **f),
    "skip": lambda **f: Skip("0,2", **f),
    "skip attention": lambda **f: Skip("0-1", part="cross_attention", **f),
    "steer context": lambda **f: Steer("file", sha256="context", strength=0.6, blocks="1-2", **f),
    "steer hidden": lambda **f: Steer("file", sha256="hidden", on="hidden", strength=0.6, blocks="1-2", **f),
    "prompts": lambda **f: Prompts({0: LATER}, **f),
}

ADAPTER: TypeAdapter[Edit] = TypeAdapter(Edit)

EACH: tuple[Any, ...] = (
    Inject("a green square moves left", blocks="late", strength=0.4),
    Bend("circle", "translate", x=0.25, blocks="4-9"),
    Steer("color.safetensors", operation="ablate", blocks="mid"),
    Skip(3),
    Prompts({0: "a red circle", 10: "a blue circle"}, interpolate="linear"),
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
shares = st.floats(0, 1)
blocks = st.one_of(
    st.sampled_from(["all", "none", "early", "late", "0-9,20", "early,20", "1100", "██░░", "0 - 3"]),
    st.integers(0, 60),
    st.lists(st.integers(0, 60), max_size=5),
)
strengths = st.one_of(
    shares,
    st.lists(shares, min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(["early", "10-29", "3", "late"]), shares, min_size=1, max_size=3),
    st.sampled_from([*SHAPES, "gaussian_peak(0.8, peak=3)", "random(seed=12345678901234567890)"]),
    st.builds(lambda base: {"shape": "stepped", "base": base, "size": 2}, shares),
    st.builds(lambda base, values: {"shape": "custom", "base": base, "values": values}, shares, st.lists(shares)),
)
schedules = st.one_of(
    st.none(),
    shares,
    st.sampled_from(["linear", "cosine(0.2, 1)", "step(10)", "step(0.5, over=sigma)", "linear(1, 0, last=5)"]),
    st.builds(
        lambda keys, how: {**{str(k): v for k, v in keys.items()}, "interpolate": how},
        st.dictionaries(st.integers(0, 50), finite, min_size=1, max_size=4),
        st.sampled_from(["linear", "step", "cosine"]),
    ),
)
branches = st.sampled_from(["cond", "uncond", "both"])
words = st.lists(texts.filter(str.strip), min_size=1, max_size=3)
paths = st.one_of(st.just("color.safetensors"), texts.map(lambda text: f"{text}.safetensors"))
stored = st.builds(lambda path: {"embedding": path}, paths)
donors = st.one_of(
    texts,
    stored,
    st.builds(lambda a, b: {"expression": "a + 0.5*(b - a)", "names": {"a": a, "b": b}}, texts, stored | texts),
    st.builds(lambda text, after: {"prompt": text, "after_block": after}, texts, st.integers(0, 40)),
)
common = {"blocks": blocks, "schedule": schedules, "branch": branches}


def _bend(operation: str) -> st.SearchStrategy[dict[str, Any]]:
    low, high = FACTORS.get(operation, (1.0, 1.0))
    values: dict[str, st.SearchStrategy[Any]] = {
        "factor": st.floats(low, high),
        "x": st.floats(-1, 1),
        "y": st.floats(-1, 1),
        "angle": st.floats(-360, 360),
        "axis": st.sampled_from(["x", "y"]),
        "sigma": st.floats(0, 64),
        "box": st.sampled_from([[0, 0, 0.5, 1], [0.1, 0.2, 0.3, 0.4]]),
    }
    needed, allowed = BENDS[operation]
    fixed = {"words": words, "operation": st.just(operation), **{name: values[name] for name in needed}}
    rest = {name: values[name] for name in allowed} | common
    heads = st.lists(st.integers(0, 40), max_size=3, unique=True)
    rest |= {"strength": strengths, "heads": heads, "renormalize": st.booleans()}
    return st.fixed_dictionaries(fixed, optional=rest)


def _built(kind: str, fields: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Any]:
    """Build edits from the drawn fields that are consistent with each other."""

    def build(data: dict[str, Any]) -> Any:
        try:
            return ADAPTER.validate_python({"kind": kind, **data})
        except ValidationError:
            return None

    return fields.map(build).filter(lambda edit: edit is not None)


injections = _built(
    "inject",
    st.fixed_dictionaries(
        {"donor": donors},
        optional={
            **common,
            "strength": strengths,
            "donor_negative": texts,
            "on": st.sampled_from(["context", "hidden", "both"]),
            "mode": st.sampled_from(["mix", "append", "tokens"]),
            "operation": st.sampled_from(["blend", "replace", "add"]),
            "words": words,
            "difference": st.floats(0.01, 10),
            "amplify": st.sampled_from(["push_apart", "orthogonalize"]),
            "boost": st.floats(0, 1000),
            "keep_norm": st.booleans(),
        },
    ),
)
bends = st.sampled_from(list(BENDS)).flatmap(lambda operation: _built("bend", _bend(operation)))
steers = _built(
    "steer",
    st.fixed_dictionaries(
        {"direction": paths},
        optional={
            **common,
            "strength": strengths,
            "operation": st.sampled_from(["add", "ablate", "rotate"]),
            "on": st.sampled_from(["context", "hidden"]),
        },
    ),
)
skips = _built(
    "skip",
    st.fixed_dictionaries({**common}, optional={"part": st.sampled_from(["block", "cross_attention"])}),
)
prompts = _built(
    "prompts",
    st.fixed_dictionaries(
        {"keys": st.dictionaries(st.integers(0, 99), texts, min_size=1, max_size=3)},
        optional={"interpolate": st.sampled_from(["step", "linear", "spherical"]), "branch": branches},
    ),
)
edits = st.one_of(injections, bends, steers, skips, prompts)

__all__ = ["ADAPTER", "EACH", "Donor", "edits"]

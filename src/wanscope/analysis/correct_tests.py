"""Correction of an analysis' tests for multiple testing, family by family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from wanscope.analysis.max_t import form_max_t, paired_max_t, statistics_max_t
from wanscope.analysis.multiple_testing import benjamini_hochberg, holm
from wanscope.analysis.test_result import Correction, Draft, Family, Test


def correct_tests(drafts: Sequence[Draft], correction: Correction = "max-t") -> list[Test]:
    """Return the tests of the drafts, in order, with corrected p values.

    Confirmatory tests are in their family like the others, and are also corrected among themselves.
    """
    out = [draft.test for draft in drafts]
    families: list[Family] = list(dict.fromkeys(test.family_name for test in out))
    for family in families:
        places = [i for i, test in enumerate(out) if test.family_name == family]
        for i, test in zip(places, _corrected_family([drafts[i] for i in places], family, correction), strict=True):
            out[i] = test
    chosen = [i for i, test in enumerate(out) if test.confirmatory]
    if chosen:
        for i, p in zip(chosen, _adjusted([drafts[i] for i in chosen], correction), strict=True):
            out[i] = replace(out[i], p_confirmatory=_number(p))
    return out


def _corrected_family(drafts: Sequence[Draft], family: Family, correction: Correction) -> list[Test]:
    p = _p(drafts)
    size = int(np.isfinite(p).sum())
    by_holm, by_bh, adjusted = holm(p), benjamini_hochberg(p), _adjusted(drafts, correction)
    return [
        replace(
            draft.test,
            family_name=family,
            family=size,
            correction=correction,
            p_corrected=_number(adjusted[i]),
            p_holm=_number(by_holm[i]),
            q_bh=_number(by_bh[i]),
        )
        for i, draft in enumerate(drafts)
    ]


def _p(drafts: Sequence[Draft]) -> np.ndarray:
    return np.array([np.nan if draft.test.p is None else draft.test.p for draft in drafts])


def _adjusted(drafts: Sequence[Draft], correction: Correction) -> np.ndarray:
    """Return the corrected p of each draft; NaN where it has no p."""
    p = _p(drafts)
    if correction != "max-t":
        return holm(p) if correction == "holm" else benjamini_hochberg(p)
    adjusted = np.full(len(drafts), np.nan)
    known = [i for i in range(len(drafts)) if np.isfinite(p[i]) and drafts[i].data is not None]
    if known:
        kept = [drafts[i] for i in known]
        omnibus = {draft.test.kind == "omnibus" for draft in kept}
        assert len(omnibus) == 1, "omnibus tests permute values and the others flip signs: they form separate families"
        adjusted[known] = _permuted(kept) if omnibus.pop() else _flipped(kept)
    return adjusted


def _flipped(drafts: Sequence[Draft]) -> np.ndarray:
    """Return max-T's adjusted p of paired and group tests, by the signs of their units."""
    units = list(dict.fromkeys(name for draft in drafts for name in draft.units))
    place = {name: i for i, name in enumerate(units)}
    at = [[place[name] for name in draft.units] for draft in drafts]
    if all(draft.test.kind == "paired" for draft in drafts):
        d_nM = np.full((len(units), len(drafts)), np.nan)
        for m, draft in enumerate(drafts):
            d_nM[at[m], m] = draft.data
        return paired_max_t(d_nM)
    forms = []
    for m, draft in enumerate(drafts):
        data = np.asarray(draft.data, dtype=np.float64)
        if data.ndim == 1:  # a two-sided paired test: the square of the sum
            known = np.where(np.isfinite(data), data, 0.0)
            data = np.outer(known, known)
        form = np.zeros((len(units), len(units)))
        form[np.ix_(at[m], at[m])] = data
        forms.append(form)
    adjusted = form_max_t(forms)
    # A form without entries off the diagonal is the same for all signs.
    return np.where(np.isfinite(adjusted), adjusted, 1.0)


def _permuted(drafts: Sequence[Draft]) -> np.ndarray:
    """Return the adjusted p of omnibus tests: max-T within each factor, times the number of factors (Bonferroni)."""
    factors = list(dict.fromkeys(draft.test.factor for draft in drafts))
    out = np.empty(len(drafts))
    for factor in factors:
        places = [i for i, draft in enumerate(drafts) if draft.test.factor == factor]
        out[places] = statistics_max_t(np.stack([np.asarray(drafts[i].data) for i in places], axis=1))
    return np.minimum(out * len(factors), 1.0)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

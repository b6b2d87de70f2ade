"""Tables of two runs side by side: rows that are the same, and estimates within the other's intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from scipy.stats import norm

from persona_bench.analysis.tables.layout import ROW_ORDER, TABLE_COLUMNS

ROW_COLUMNS = ("table", "rows_first", "rows_second", "paired", "same")
ESTIMATE_COLUMNS = ("table", "estimate", "along_vector", "intervals", "within", "apart")
ALONG_VECTOR: Mapping[str, tuple[str, ...]] = {
    "monitoring_rungs": ("projection",),
    "drift_turns": ("projection",),
    "finetuning": ("shift", "shift_random"),
    "vaccine": ("shift",),
    "flagging_sets": ("response", "response_minus_prompt", "difference", "shift"),
}
"""Estimates in units of the residual stream at the run's own layer: their intervals hold vector and layer fixed."""
_WHERE_FROM = ("log", "vector_id", "warning", "reason")
"""Columns that name a row's source or say something of it; two runs never share their logs."""
_MEASURED = ("coefficient", "n_positive", "fpr", "share", "recall", "low")
"""Columns by which rows are sorted and that a run measures, so that another has others: their rows pair in order."""
_COVERAGE = norm.ppf(0.975)
EXPECTED_WITHIN = float(2 * norm.cdf(_COVERAGE / math.sqrt(2)) - 1)
"""Share of 95 % intervals that hold the estimate of an independent repetition: 0.83."""
EXPECTED_APART = float(2 * norm.sf(_COVERAGE * math.sqrt(2)))
"""Share of pairs of 95 % intervals, equally wide, of independent repetitions that do not touch: 0.006."""


def table_change(
    first: Mapping[str, pd.DataFrame], second: Mapping[str, pd.DataFrame]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows and estimates of the tables that either run has.

    Args:
        first: the tables of a run, as `read_tables` gives them.
        second: those of another.

    Returns:
        A row a table: `paired` rows are about the same thing, of which `same` are alike in every column but the names
        of logs and vectors. And a row an estimate: of the `intervals` that the paired rows of both have, wider than
        nothing in the first, `within` hold the second's estimate and `apart` do not touch the second's interval.
    """
    rows, estimates = [], []
    for name in TABLE_COLUMNS:
        if len(first[name]) or len(second[name]):
            both = _paired(name, first[name], second[name])
            told = [column for column in TABLE_COLUMNS[name] if f"{column}_second" in both]
            lengths = {"rows_first": len(first[name]), "rows_second": len(second[name]), "paired": len(both)}
            rows.append({"table": name, **lengths, "same": _same(both, told)})
            estimates += [
                {"table": name, "estimate": column, "along_vector": column in ALONG_VECTOR.get(name, ()), **found}
                for column in told
                if {f"{column}_low", f"{column}_high"} <= {*told} and (found := _intervals(both, column))["intervals"]
            ]
    return pd.DataFrame(rows, columns=list(ROW_COLUMNS)), pd.DataFrame(estimates, columns=list(ESTIMATE_COLUMNS))


def _same(both: pd.DataFrame, columns: Sequence[str]) -> int:
    same = pd.Series(True, index=both.index)
    for column in columns:
        if column not in _WHERE_FROM:
            ours, theirs = both[column], both[f"{column}_second"]
            same &= (ours == theirs) | (ours.isna() & theirs.isna())
    return int(same.sum())


def _intervals(both: pd.DataFrame, column: str) -> dict[str, int]:
    low, high, value, other_low, other_high = (
        both[name].astype(float)
        for name in (f"{column}_low", f"{column}_high", *(f"{column}{end}_second" for end in ("", "_low", "_high")))
    )
    # Comparisons with a number that is not there are false.
    real = (high > low) & value.notna() & (other_high >= other_low)
    within = real & (low <= value) & (value <= high)
    apart = real & ((other_high < low) | (other_low > high))
    return {"intervals": int(real.sum()), "within": int(within.sum()), "apart": int(apart.sum())}


def _paired(name: str, first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Rows about the same thing, the second's columns with `_second`.

    Where what a run measured tells rows apart (a coefficient that gives a dose), they pair in order if both runs have
    as many of them.
    """
    order = [column for column in ROW_ORDER[name] if column not in _WHERE_FROM]
    keys = [column for column in order if column not in _MEASURED]
    numbered = []
    for table in (first, second):
        rows = table.sort_values(order, kind="stable")
        groups = rows.groupby(keys, dropna=False, sort=False)
        numbered.append(rows.assign(_place=groups.cumcount(), _of=groups[keys[0]].transform("size")))
    return numbered[0].merge(numbered[1], on=[*keys, "_place", "_of"], suffixes=("", "_second"))

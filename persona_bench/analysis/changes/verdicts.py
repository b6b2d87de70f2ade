"""Verdicts of two runs, or of two graders on the same responses, side by side."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd

from persona_bench.analysis.verdicts.claims import DECIDED
from persona_bench.analysis.verdicts.judge import GATE
from persona_bench.errors import DataError

GRADER_CHANGE = "grader_change"
"""The file of a run that another grader judged again."""
_BOTH = ("verdict", "estimate", "ci_low", "ci_high", "n", "reason")
CHANGE_COLUMNS = (
    *("claim", "trait", "changed", "verdict_first", "verdict_second"),
    *(f"{name}_{which}" for name in _BOTH[1:] for which in ("first", "second")),
)


def verdict_change(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """One row a claim and trait that either has run.

    Args:
        first: claims of the first run, as `judge_claims` gives them or their file holds them.
        second: of the second.

    Returns:
        Both verdicts, estimates, intervals, numbers of samples and reasons; `changed` is about the verdict alone.
    """
    keys = ["claim", "trait"]
    both = second[[*keys, *_BOTH]].merge(first[[*keys, *_BOTH]], on=keys, how="outer", suffixes=("_second", "_first"))
    order = {name: place for place, name in enumerate([*second["claim"], *first["claim"]][::-1])}
    both = both.fillna({"verdict_first": "not run", "verdict_second": "not run"})
    both = both[(both["verdict_first"] != "not run") | (both["verdict_second"] != "not run")]
    both = both.assign(changed=both["verdict_first"] != both["verdict_second"], _place=-both["claim"].map(order))
    both = both.sort_values(["_place", "trait"], kind="stable", ignore_index=True)
    return both[list(CHANGE_COLUMNS)].astype({"changed": bool})


def counts(change: pd.DataFrame, cause: str) -> str:
    """How many verdicts changed, and from what to what.

    Args:
        change: as `verdict_change` gives it or its file holds it.
        cause: what the two differ in, such as "the grader".
    """
    changed = change[change["changed"].astype(str) == "True"]
    ways = Counter(zip(changed["verdict_first"], changed["verdict_second"], strict=True))
    told = "".join(f"; {n} from {old} to {new}" for (old, new), n in sorted(ways.items(), key=lambda item: -item[1]))
    decided = change[change["verdict_first"].isin(DECIDED) & (change["claim"] != GATE)]
    kept = int((decided["verdict_first"] == decided["verdict_second"]).sum())
    turned = int((decided["verdict_second"].isin(DECIDED)).sum()) - kept
    return (
        f"{len(changed)} of {len(change)} verdicts change with {cause}{told}; of {len(decided)} that the first "
        f"supported or contradicted, the judge's own left out, {kept} stand and {turned} turn into the opposite"
    )


def read_change(path: Path) -> pd.DataFrame:
    """The table of a file.

    Raises:
        DataError: it cannot be read.
    """
    text = [name for name in CHANGE_COLUMNS if name.startswith(("claim", "trait", "verdict", "reason"))]
    try:
        found = pd.read_csv(
            path,
            dtype=dict.fromkeys(text, str),
            keep_default_na=False,
            na_values={name: "" for name in CHANGE_COLUMNS if name not in text},
        )
        return found[list(CHANGE_COLUMNS)]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"cannot read {path}: {error}; make it again") from error

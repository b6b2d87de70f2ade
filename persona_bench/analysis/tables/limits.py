"""Monitors of a behaviour beside each other: AUROC, alarms at few false ones, and what is more than chance and words.

Everything is read off the report half; intervals resample topics, the same ones for every monitor, so that monitors
can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw, Row, groups, log_names, spread, with_interval
from persona_bench.analysis.tables.behaviours import shown
from persona_bench.analysis.tables.monitoring import TEXT

VECTOR = "vector:"
"""Before the name of a trait: its vector alone."""
BEST, ALL, DEDICATED, PROBE = "best vector", "all vectors", "dedicated direction", "probe"
JUDGE = "judge:"
"""Before what the grader was shown: the prompt, or the answer too."""
RANDOM_OF = {BEST: "random best", ALL: "random all"}
"""Trait monitor -> the same monitor on random directions; each set of those is `NAME:K`."""
FALSE_ALARM = 0.01
LIMIT_TABLES: Mapping[str, tuple[str, ...]] = {
    "limits": (
        *("trait", "behaviour", "monitor", "sees", "detail", "layer", "n", "n_select", "n_refusal", "n_unscored"),
        *with_interval("auroc"),
        *(*with_interval("excess_random", "excess_text"), "threshold_1", *with_interval("tpr_1", "fpr_1"), "log"),
    ),
}
"""Columns of the tables, in the order of the CSV files."""
LIMIT_SORT: Mapping[str, tuple[str, ...]] = {
    "limits": ("behaviour", "monitor"),
}
"""Columns by which the rows are sorted."""


def sees(monitor: str) -> str:
    """What a monitor reads: only the judge of answers knows more than stood before the answer."""
    if monitor == f"{JUDGE}answer":
        return "prompt and answer"
    return "prompt" if monitor.startswith((TEXT, JUDGE)) else "state before the answer"


@dataclass(frozen=True)
class Areas:
    """AUROCs of all monitors of a behaviour over the same scenes of the report half.

    Attributes:
        areas: by monitor, those of the random sets under their own names too.
        random: trait monitor -> its random control: the mean over the sets, whose draws pick a set each.
        text: the better text-only classifier, in every resample anew; None without any.
        n_pairs: of the report half.
        log: names of the logs.
    """

    areas: Mapping[str, st.Estimate]
    random: Mapping[str, st.Estimate]
    text: st.Estimate | None
    n_pairs: int
    log: str

    def control(self, monitor: str) -> st.Estimate | None:
        """The random control of a monitor; that of the best vector for whatever is one direction itself."""
        return self.random.get(monitor) or self.random.get(BEST)


def compare(monitors: pd.DataFrame, behaviour: str, draw: Draw) -> Areas:
    """The AUROC of every monitor of a behaviour on the report half.

    Args:
        monitors: the sample frame.
        behaviour: one of those in it.
        draw: how to resample.
    """
    every = monitors[(monitors["behaviour"] == behaviour) & (monitors["half"] == "report")]
    areas = {
        key["monitor"]: st.auroc(
            part["value"],
            part["rewarded"].astype(float),
            part["topic"],
            # One stream for all, so that the same topics are drawn.
            rng=draw.rng("limits", behaviour),
            resamples=draw.resamples,
        )
        for key, part in groups(every.sort_values("sample_id"), "monitor")
    }
    random = {}
    for monitor, name in RANDOM_OF.items():
        sets = [area for key, area in areas.items() if key.startswith(f"{name}:")]
        if sets:
            random[monitor] = _any_of(sets, draw.rng("limits", behaviour, name))
    texts = [area for key, area in areas.items() if key.startswith(TEXT)]
    return Areas(areas, random, _better(texts) if texts else None, every["pair"].nunique(), log_names(every))


def _any_of(sets: list[st.Estimate], rng: np.random.Generator) -> st.Estimate:
    """The mean over sets; each draw is that of one set, so that the interval holds the spread between sets too."""
    draws = np.stack([area.draws for area in sets])
    picked = draws[rng.integers(len(sets), size=draws.shape[1]), np.arange(draws.shape[1])]
    value = float(np.mean([area.value for area in sets]))
    return st.of_draws(value, picked, n=sets[0].n, n_clusters=sets[0].n_clusters, bounds=(0, 1))


def _better(texts: list[st.Estimate]) -> st.Estimate:
    draws = np.max([area.draws for area in texts], axis=0)
    value = max(area.value for area in texts)
    return st.of_draws(value, draws, n=texts[0].n, n_clusters=texts[0].n_clusters, bounds=(0, 1))


def limit_rows(scenes: pd.DataFrame, monitors: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    """Rows of the table `limits`: a row a behaviour and monitor, the random sets together."""
    for key, part in groups(monitors, "behaviour"):
        found = compare(monitors, key["behaviour"], draw)
        select = shown(scenes, key["behaviour"], draw).pairs("select")
        controls = {RANDOM_OF[monitor]: area for monitor, area in found.random.items()}
        single = {name: area for name, area in found.areas.items() if not name.startswith(tuple(RANDOM_OF.values()))}
        for monitor, area in {**single, **controls}.items():
            own = part[part["monitor"] == monitor]
            row: Row = {"trait": "", **key, "monitor": monitor, "n": found.n_pairs, "n_select": select}
            row |= {"detail": str(own["detail"].iloc[0]) if len(own) else f"{_n_sets(found, monitor)} sets"}
            row |= {"layer": float(own["layer"].iloc[0]) if len(own) else math.nan, "sees": sees(monitor)}
            status = own.loc[own["half"] == "report", "status"]
            row |= {f"n_{name}": int((status == name).sum()) for name in ("refusal", "unscored")}
            row |= spread("auroc", area)
            if monitor not in controls and not monitor.startswith(TEXT):
                control = found.control(monitor)
                row |= spread("excess_random", st.excess(area, control)) if control is not None else {}
                row |= spread("excess_text", st.excess(area, found.text)) if found.text is not None else {}
            row |= _alarms(own, draw, key["behaviour"]) if len(own) else {}
            yield {**row, "log": found.log}


def _n_sets(found: Areas, name: str) -> int:
    return sum(key.startswith(f"{name}:") for key in found.areas)


def _alarms(own: pd.DataFrame, draw: Draw, behaviour: str) -> Row:
    """Shares of the report half's scenes over the threshold that 1 % of the select half's twins lie over, at most.

    A scene without a value raises no alarm.
    """
    select, report = (own[own["half"] == half] for half in ("select", "report"))
    negative = select.loc[~select["rewarded"].astype(bool), "value"].dropna()
    if negative.empty:
        return {}
    threshold = float(np.quantile(negative, 1 - FALSE_ALARM, method="higher"))
    row: Row = {"threshold_1": threshold}
    for column, label in (("tpr_1", True), ("fpr_1", False)):
        part = report[report["rewarded"].astype(bool) == label]
        rng = draw.rng("limits", column, behaviour)
        alarm = (part["value"] > threshold).astype(float)
        row |= spread(column, st.mean(alarm, part["topic"], rng=rng, resamples=draw.resamples, bounds=(0, 1)))
    return row

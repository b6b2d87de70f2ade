"""What suppression costs: trait score beside MMLU and coherence, and the cost at the strength that halves the score.

The layers of `single` cells with MMLU answers were chosen on the select half; all trait scores here are of the report
half. Between doses, scores and accuracies are read off straight lines. Questions of both evals are drawn anew in every
resample, the same ones for every cell, so that the halving strength and the cost at it vary together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import SCORE, Draw, Row, groups, log_names, scored, spread, with_interval
from persona_bench.analysis.samples.frames import CELL
from persona_bench.analysis.tables.capability import EVERY, first_above_chance, unsteered
from persona_bench.definitions.claims import COHERENCE_SHARE, HALVED_SHARE, MMLU_CHANCE, TRAIT_FLOOR

SCORINGS = ("letter", "cloze")
"""The likelihood scorings in the order in which they are tried against chance."""
SCORED_SHARE = 0.5
"""A cell where fewer of the answers have a trait score says nothing about it, and ends the curve of its doses."""
_DOSED = ("single", "multi", "incremental")
_PLACE = ("vector", "setting", "layers")
TRADEOFF_TABLES: Mapping[str, tuple[str, ...]] = {
    "tradeoff": (
        *("trait", *CELL, "half", "n", "n_scored", *with_interval("trait_score", "coherence", "refusal_rate")),
        *("coherent", "scoring", "mmlu_n", *with_interval("accuracy", "mmlu_difference"), "frontier", "log"),
    ),
    "tradeoff_summary": (
        *("trait", "vector", "setting", "layers", "n_questions", "n_scored", "n_mmlu", "halved"),
        *with_interval("unsteered", "halving_dose", "coherence_difference", "mmlu_difference", "control_difference"),
        *("reason", "log"),
    ),
}
"""Columns of the tables, in the order of the CSV files."""
TRADEOFF_SORT: Mapping[str, tuple[str, ...]] = {
    "tradeoff": ("trait", "vector", "setting", "layer", "layers", "coefficient"),
    "tradeoff_summary": ("trait", "vector", "setting", "layers"),
}
"""Columns by which the rows are sorted."""


@dataclass(frozen=True, eq=False)
class Halving:
    """One way to suppress a trait, at the weakest strength that halves the unsteered trait score.

    Attributes:
        vector: persona or prompt.
        setting: how it acts.
        layers: where, as text.
        unsteered: the unsteered trait score, 0..100.
        dose: the relative dose that halves it, negative; NaN without a dose.
        coherence: change in coherence there, points of 0..100.
        accuracy: change in accuracy there, a share.
        n_scored: scored answers of the usable cell that has fewest.
        control: change in accuracy of the random vector of the same setting at the same dose.
        halved: share of the resamples in which the score is halved at all.
        reason: why there is no number, or no cost in accuracy; "" otherwise.
        log: the logs it rests on.
    """

    vector: str
    setting: str
    layers: str
    unsteered: st.Estimate
    dose: st.Estimate
    coherence: st.Estimate
    accuracy: st.Estimate
    control: st.Estimate
    n_scored: int
    halved: float
    reason: str
    log: str


# --- the table of all cells -------------------------------------------------------------------------------------------


def tradeoff_rows(steering: pd.DataFrame, mmlu: pd.DataFrame) -> list[Row]:
    """Every cell of the report half with its MMLU accuracy, and whether it is on the frontier.

    On the frontier are the coherent cells (at least half of the unsteered coherence) with a trait score for at least
    half of their answers that no other one beats: with a trait score as low and an accuracy as high, and one of the two
    better. It describes the point estimates; random vectors are controls and not on it.

    Args:
        steering: the steering table.
        mmlu: the MMLU table.
    """
    scoring, shots, _ = able_scoring(mmlu)
    answered = _of(mmlu, scoring, shots)
    answered = _rounded(answered[answered["group"] == EVERY].rename(columns=_RENAMED))
    rows: list[Row] = []
    for key, part in groups(_rounded(steering[steering["half"] == "report"]), "trait"):
        mine = answered.loc[answered["trait"].isin([key["trait"], ""]), [*_JOINED, *_RENAMED.values(), *_ACCURACY]]
        cells = part.drop(columns=["difference", "difference_low", "difference_high"]).merge(mine, "left", [*_JOINED])
        floor = COHERENCE_SHARE * cells.loc[cells["vector"] == "none", "coherence"].astype(float).max()
        cells = cells.assign(
            coherent=cells["coherence"].astype(float) >= floor,
            scoring=scoring,
            log=[
                "; ".join(sorted({*log.split("; "), *(other.split("; ") if isinstance(other, str) else ())}))
                for log, other in zip(cells["log"], cells["mmlu_log"], strict=True)
            ],
        )
        rows += [
            {str(name): value for name, value in row.items()}
            for row in cells.assign(frontier=_frontier(cells)).to_dict("records")
        ]
    return rows


_ACCURACY = ("accuracy", "accuracy_low", "accuracy_high")
_JOINED = ("vector", "setting", "layers", "at")
_RENAMED = {"n": "mmlu_n", "log": "mmlu_log"} | {
    f"difference{end}": f"mmlu_difference{end}" for end in ("", "_low", "_high")
}


def _rounded(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(at=table["coefficient"].astype(float).round(6))


def enough_scores(cells: pd.DataFrame) -> pd.Series:
    """Whether as many of a cell's answers have a trait score as the choice of a dose asks for."""
    found: pd.Series = cells["n_scored"].astype(float) >= SCORED_SHARE * cells["n"].astype(float)
    return found


def _frontier(cells: pd.DataFrame) -> list[bool]:
    able = cells["coherent"] & enough_scores(cells) & (cells["vector"] != "random")
    places = [
        (score, -accuracy) if usable and not math.isnan(score + accuracy) else None
        for score, accuracy, usable in zip(
            cells["trait_score"].astype(float), cells["accuracy"].astype(float), able, strict=True
        )
    ]
    others = [place for place in places if place is not None]
    return [
        here is not None and not any(o[0] <= here[0] and o[1] <= here[1] and o != here for o in others)
        for here in places
    ]


def able_scoring(mmlu: pd.DataFrame) -> tuple[str, int, str]:
    """(scoring, shots) that verdicts about MMLU rest on; else those run first, and why they say nothing.

    Args:
        mmlu: the MMLU table.
    """
    basis = first_above_chance(mmlu)
    if basis is not None:
        return *basis, ""
    plain = unsteered(mmlu[(mmlu["benchmark"] == "mmlu") & (mmlu["group"] == EVERY)])
    plain = plain[plain["scoring"].isin(SCORINGS)].sort_values(["shots", "scoring"], ascending=[True, False])
    if plain.empty:
        return "", 0, "no unsteered MMLU answers"
    seen = ", ".join(f"{row['scoring']} {row['accuracy']:.3g}" for _, row in plain.iterrows())
    first = plain.iloc[0]
    reason = f"capability at chance ({MMLU_CHANCE:g}) without steering: {seen}"
    return str(first["scoring"]), int(first["shots"]), reason


def _of(mmlu: pd.DataFrame, scoring: str, shots: int) -> pd.DataFrame:
    """The answers, or rows of the table, to MMLU that were given so."""
    found: pd.DataFrame = mmlu[
        (mmlu["benchmark"] == "mmlu") & (mmlu["scoring"] == scoring) & (mmlu["shots"].astype(float) == shots)
    ]
    return found


# --- the cost of halving ----------------------------------------------------------------------------------------------


def summary_rows(steering: pd.DataFrame, mmlu: pd.DataFrame, table: pd.DataFrame, draw: Draw) -> list[Row]:
    """One row for each way to suppress each trait.

    Args:
        steering: the steering samples.
        mmlu: the MMLU samples.
        table: the MMLU table, by which the scoring is chosen.
        draw: how to resample.
    """
    rows = []
    for trait in sorted(set(steering["trait"])):
        for found in halvings(steering, mmlu, table, trait, draw):
            row: Row = {name: getattr(found, name) for name in (*_PLACE, "n_scored", "halved", "reason", "log")}
            row |= {"trait": trait, "n_questions": found.unsteered.n_clusters, "n_mmlu": found.accuracy.n}
            row |= spread("unsteered", found.unsteered) | spread("halving_dose", found.dose)
            row |= spread("coherence_difference", found.coherence) | spread("mmlu_difference", found.accuracy)
            rows.append(row | spread("control_difference", found.control))
    return rows


def halvings(
    steering: pd.DataFrame, mmlu: pd.DataFrame, table: pd.DataFrame, trait: str, draw: Draw
) -> Iterator[Halving]:
    """Every way of suppressing a trait that was run: negative doses by setting and layers, and what has no dose.

    A dose counts under the rule by which steering is chosen (`choose_steering`): at least half of the answers have a
    trait score, and half of the unsteered coherence is kept. One that does not ends the curve: a model that no longer
    answers has not been cured of a trait.
    """
    report = steering[(steering["trait"] == trait) & (steering["half"] == "report")]
    plain = report[report["vector"] == "none"]
    if plain.empty:
        return
    scoring, shots, chance = able_scoring(table)
    answers = _of(mmlu, scoring, shots)
    answers = answers[answers["trait"].isin([trait, ""])]
    asked = _Questions(report, draw.rng("tradeoff", trait, "questions"), draw.resamples)
    examined = _Questions(
        answers.assign(question_id=answers["source"].astype(str) + "/" + answers["question_id"].astype(str)),
        draw.rng("tradeoff", trait, "mmlu"),
        draw.resamples,
    )
    work = _Work(asked, examined, chance)
    for key, part in groups(report[report["vector"].isin(["persona", "prompt"])], *_PLACE):
        suppressing = part[part["relative_dose"].astype(float) < 0] if key["setting"] in _DOSED else part
        if len(suppressing):
            yield work.halving(key, suppressing)


class _Questions:
    """The answers of one eval, its questions, and how often each is drawn in each resample."""

    def __init__(self, frame: pd.DataFrame, rng: np.random.Generator, resamples: int) -> None:
        self.frame = frame
        self.names = sorted(set(frame["question_id"].astype(str)))
        # The first row is the sample itself: every question once.
        drawn = st.draw_clusters(len(self.names), resamples, rng) if self.names else np.zeros((resamples, 0))
        self.weights = np.vstack([np.ones(len(self.names)), drawn])

    def cell(self, **where: Any) -> pd.DataFrame:
        keep = np.logical_and.reduce([self.frame[name] == value for name, value in where.items()])
        found: pd.DataFrame = self.frame[keep]
        return found

    def sums(self, part: pd.DataFrame, values: pd.Series) -> tuple[st.FloatArray, st.FloatArray]:
        """Sum and number of the finite values of each question."""
        kept = values.astype(float).notna()
        codes = np.searchsorted(self.names, part["question_id"].astype(str)[kept])
        n = len(self.names)
        total, size = (np.bincount(codes, weights, n).astype(float) for weights in (values[kept].astype(float), None))
        return total, size

    def mean(self, part: pd.DataFrame, values: pd.Series) -> st.FloatArray:
        """`(1 + resamples,)`: mean of the finite values."""
        total, size = self.sums(part, values)
        return st.ratio(self.weights @ total, self.weights @ size)

    def change(self, part: pd.DataFrame, plain: pd.DataFrame, column: str) -> st.FloatArray:
        """`(1 + resamples,)`: mean over questions of the difference of two cells, paired by question."""
        total, size = self.sums(part, part[column])
        total_plain, size_plain = self.sums(plain, plain[column])
        both = (size > 0) & (size_plain > 0)
        difference = np.where(both, st.ratio(total, size) - st.ratio(total_plain, size_plain), 0.0)
        return st.ratio(self.weights @ difference, self.weights @ both.astype(float))


class _Work:
    def __init__(self, asked: _Questions, examined: _Questions, chance: str) -> None:
        self.asked, self.examined, self.chance = asked, examined, chance
        self.plain = asked.cell(vector="none")
        self.unsteered = asked.mean(self.plain, scored(self.plain))
        self.floor = COHERENCE_SHARE * float(self.plain["coherence"].astype(float).mean())

    def halving(self, key: Row, part: pd.DataFrame) -> Halving:
        """One way of suppressing, `part` being its answers."""
        dosed = key["setting"] in _DOSED
        doses, parts = _by_dose(part, dosed)
        scores = [self._score(cell) for cell in parts]
        fluency = [self.asked.change(cell, self.plain, "coherence") for cell in parts]
        usable = [cell for cell, score in zip(parts, scores, strict=True) if not math.isnan(score[0])]
        half = self.unsteered / 2
        if dosed:
            at = first_crossing(doses, scores, self.unsteered, half)
        else:
            at = np.where(scores[0] <= half, 0.0, np.nan)
        reason = self._unhalved(doses if dosed else [], scores, at)
        accuracy, answers = self._accuracy(key, at, dosed)
        control, others = self._accuracy({**key, "vector": "random"}, at, dosed)
        measured = float(np.isfinite(accuracy).mean())
        cost = self.chance or ("" if measured >= HALVED_SHARE else "no MMLU answers here up to this strength")
        if reason:
            cost = reason
        nothing = np.full_like(at, np.nan)
        frames = [part, self.plain] + ([] if cost else [answers, others, self.examined.cell(vector="none")])
        return Halving(
            **{name: str(key[name]) for name in _PLACE},
            unsteered=self._estimate(self.unsteered, SCORE),
            dose=self._estimate(at if dosed and not reason else nothing, (min(doses), 0.0)),
            coherence=self._estimate(
                nothing if reason else curve_at(doses, fluency, at) if dosed else fluency[0], (-SCORE[1], SCORE[1])
            ),
            accuracy=self._estimate(nothing if cost else accuracy, (-1.0, 1.0), answers),
            control=self._estimate(nothing if cost else control, (-1.0, 1.0), others),
            n_scored=min(int(scored(cell).notna().sum()) for cell in (self.plain, *(usable or parts))),
            halved=float(np.isfinite(at[1:]).mean()),
            reason=cost,
            log=log_names(pd.concat([frame[["log"]] for frame in frames])),
        )

    def _score(self, cell: pd.DataFrame) -> st.FloatArray:
        """The trait score, NaN where too few answers have one or they are incoherent."""
        values = scored(cell)
        usable = values.notna().mean() >= SCORED_SHARE and float(cell["coherence"].astype(float).mean()) >= self.floor
        return self.asked.mean(cell, values if usable else values * np.nan)

    def _estimate(
        self, draws: st.FloatArray, bounds: tuple[float, float], answers: pd.DataFrame | None = None
    ) -> st.Estimate:
        """Draws, of which the first is the sample itself, to an estimate over the few trait questions.

        A cost hangs on them too, as it is a cost at a strength that they settle.
        """
        questions = int((self.asked.sums(self.plain, scored(self.plain))[1] > 0).sum())
        n = questions if answers is None else answers["question_id"].nunique()
        return st.of_draws(float(draws[0]), draws[1:], n=n, n_clusters=min(questions, n), bounds=bounds)

    def _unhalved(self, doses: Sequence[float], scores: Sequence[st.FloatArray], at: st.FloatArray) -> str:
        """Why the strength that halves the score is not known; "" if it is."""
        unsteered = float(self.unsteered[0])
        halved = float(np.isfinite(at[1:]).mean())
        if not unsteered >= TRAIT_FLOOR:
            return f"unsteered trait score {unsteered:.2g} is under {TRAIT_FLOOR:g}: nothing to suppress"
        if math.isnan(at[0]):
            ran = f" down to relative dose {min(doses):g}" if doses else ""
            lowest = [float(score[0]) for score in scores if not math.isnan(score[0])]
            seen = f"lowest trait score {min(lowest):.3g}" if lowest else "no usable answers"
            return f"never halved{ran}: {seen}, unsteered {unsteered:.3g}"
        if halved < HALVED_SHARE:
            return f"halved in {100 * halved:.0f} % of the resamples only, {100 * HALVED_SHARE:.0f} % needed"
        return ""

    def _accuracy(self, key: Row, at: st.FloatArray, dosed: bool) -> tuple[st.FloatArray, pd.DataFrame]:
        """Change in accuracy at each resample's strength, and the answers it rests on; NaN where there are none."""
        part = self.examined.cell(**{name: key[name] for name in _PLACE})
        part = part[part["relative_dose"].astype(float) < 0] if dosed else part
        if part.empty:
            return np.full_like(at, np.nan), part
        doses, parts = _by_dose(part, dosed)
        plain = self.examined.cell(vector="none")
        changes = [self.examined.change(cell, plain, "correct") for cell in parts]
        return (curve_at(doses, changes, at) if dosed else changes[0]), part


def _by_dose(part: pd.DataFrame, dosed: bool) -> tuple[list[float], list[pd.DataFrame]]:
    """The cells from the weakest dose to the strongest; a single one without doses."""
    if not dosed:
        return [0.0], [part]
    dose = part["relative_dose"].astype(float).round(9)
    order = sorted(set(dose), key=abs)
    return order, [part[dose == value] for value in order]


def first_crossing(
    doses: Sequence[float], scores: Sequence[st.FloatArray], unsteered: st.FloatArray, target: st.FloatArray
) -> st.FloatArray:
    """The weakest dose at which each resample's score falls to its target, by straight lines from dose 0.

    Args:
        doses: from weak to strong, all of one sign.
        scores: `(resamples,)` for each dose; a NaN ends the curve where it is.
        unsteered: the score at dose 0, `(resamples,)`.
        target: `(resamples,)`.

    Returns:
        `(resamples,)`, NaN where the target is not reached.
    """
    found = np.full_like(unsteered, np.nan)
    open_ = np.isfinite(unsteered)
    last_dose, last = 0.0, unsteered
    for dose, score in zip(doses, scores, strict=True):
        open_ = open_ & np.isfinite(score)
        crosses = open_ & (score <= target) & (last > target)
        share = st.ratio(last - target, np.where(crosses, last - score, 0.0))
        found = np.where(crosses, last_dose + share * (dose - last_dose), found)
        open_ = open_ & ~crosses
        last_dose, last = dose, score
    return found


def curve_at(doses: Sequence[float], values: Sequence[st.FloatArray], at: st.FloatArray) -> st.FloatArray:
    """Each resample's curve of changes, 0 at dose 0, at that resample's dose; NaN beyond the strongest dose."""
    grid = np.array([0.0, *(abs(dose) for dose in doses)])
    heights = np.stack([np.zeros_like(at), *values])
    where = np.abs(at)
    right = np.clip(np.searchsorted(grid, where), 1, len(grid) - 1)
    columns = np.arange(at.size)
    share = (where - grid[right - 1]) / (grid[right] - grid[right - 1])
    value = heights[right - 1, columns] * (1 - share) + heights[right, columns] * share
    return np.where(where <= grid[-1] * (1 + 1e-9), value, np.nan)

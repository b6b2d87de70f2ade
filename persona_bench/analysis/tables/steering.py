"""Steered responses by cell, and the cell that is chosen on the select half by a rule written beforehand."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import (
    COUNTS,
    SCORE,
    Draw,
    Row,
    counts,
    groups,
    log_names,
    mean_row,
    paired,
    scored,
    single,
    spread,
    with_interval,
)
from persona_bench.analysis.samples.frames import CELL
from persona_bench.analysis.tables.tradeoff import SCORED_SHARE, enough_scores
from persona_bench.definitions.claims import COHERENCE_SHARE

CONTROL_DOSE_TOLERANCE = 0.25
"""A random control counts as one of the same dose if its relative dose differs by no more than this share."""
FIRM_SHARE = 0.5
"""A layer that fewer resamples choose is warned of."""
_CELL_KEYS = ("vector", "setting", "layers", "layer", "coefficient")
STEERING_TABLES: Mapping[str, tuple[str, ...]] = {
    "steering": (
        *("trait", *CELL, "half", *COUNTS, "n_questions"),
        *with_interval("trait_score", "coherence", "refusal_rate", "difference", "coherence_difference"),
        "log",
    ),
    "steering_choice": (
        *("trait", "sign", "layer", "coefficient", "relative_dose", "trait_score", "coherence", "n"),
        *("layer_share", "reason", "log"),
    ),
}
"""Columns of the tables, in the order of the CSV files."""
STEERING_SORT: Mapping[str, tuple[str, ...]] = {
    "steering": ("trait", "half", "vector", "setting", "layer", "layers", "coefficient"),
    "steering_choice": ("trait", "sign"),
}
"""Columns by which the rows are sorted."""
_NO_CHOICE: Row = {
    "layer": math.nan,
    "coefficient": math.nan,
    "relative_dose": math.nan,
    "trait_score": math.nan,
    "coherence": math.nan,
    "n": 0,
    "layer_share": math.nan,
    "reason": "",
    "log": "",
}


def steering_table(steering: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    """One row a cell and half, as `choose_steering` takes them."""
    rows: list[Row] = []
    for pair, family in groups(steering, "trait", "half"):
        plain = family[family["vector"] == "none"]
        for key, part in groups(family, *_CELL_KEYS):
            name = ("steering", *pair.values(), *key.values())
            found = counts(part)
            answered = found["n"] - found["n_unscored"]
            refusals = st.wilson(found["n_refusal"], answered, n_unscored=found["n_unscored"])
            row = {**pair, **key, **found, "log": log_names(part)}
            row["relative_dose"] = float(part["relative_dose"].astype(float).mean())
            row["n_questions"] = int(part.loc[scored(part).notna(), "question_id"].astype(str).nunique())
            row |= mean_row("trait_score", scored(part), part, draw, *name, bounds=SCORE)
            row |= mean_row("coherence", part["coherence"], part, draw, *name, bounds=SCORE)
            row |= spread("refusal_rate", refusals)
            if key["vector"] != "none":
                change = paired(scored(part), part, scored(plain), plain, draw, *name, "difference")
                fluency = paired(part["coherence"], part, plain["coherence"], plain, draw, *name, "coherence")
                row |= spread("difference", change) | spread("coherence_difference", fluency)
            rows.append(row)
    return pd.DataFrame(rows, columns=list(STEERING_TABLES["steering"]))


def choose_steering(steering: pd.DataFrame) -> pd.DataFrame:
    """Choose, for each trait and sign, the layer and coefficient on the select half. The rule, written beforehand.

    Among the cells of the persona vector at a single layer with that sign on the half "select", a cell qualifies if it
    keeps at least half of the unsteered coherence and at least half of its answers have a trait score. Of those, the
    positive choice is the one with the highest mean trait score, the negative choice the one with the lowest; ties go
    to the smaller dose, then to the lower layer. Where no negative dose was run on the select half, the negative choice
    is the mirror of the positive one (same layer, opposite coefficient), if it was run at all: nothing is chosen by its
    result.

    Args:
        steering: the steering table.

    Returns:
        One row a trait and sign; `layer` is NaN where nothing qualifies, and `reason` says why.
    """
    rows: list[Row] = []
    for key, part in groups(single(steering), "trait"):
        select = part[part["half"] == "select"]
        positive = _choose(select, +1)
        negative = _choose(select, -1)
        if not ((select["vector"] == "persona") & (select["coefficient"] < 0)).any() and not positive["reason"]:
            mirror = part[
                (part["vector"] == "persona")
                & (part["layer"] == positive["layer"])
                & np.isclose(part["coefficient"].astype(float), -positive["coefficient"])
            ]
            if not mirror.empty:
                dose = float(mirror["relative_dose"].iloc[0])
                negative = {**_NO_CHOICE, "layer": positive["layer"], "coefficient": -positive["coefficient"]}
                negative |= {"relative_dose": dose, "log": "; ".join(sorted(set(mirror["log"])))}
        rows += [{**key, "sign": "positive", **positive}, {**key, "sign": "negative", **negative}]
    return pd.DataFrame(rows, columns=list(STEERING_TABLES["steering_choice"]))


def _choose(select: pd.DataFrame, sign: int) -> Row:
    """One choice on the select half, by the rule of `choose_steering`."""
    word = "positive" if sign > 0 else "negative"
    cells = select[(select["vector"] == "persona") & (select["coefficient"].astype(float) * sign > 0)]
    plain = select[select["vector"] == "none"]
    if cells.empty:
        return {**_NO_CHOICE, "reason": f"no {word} dose was run on the select half"}
    if plain.empty or not plain["coherence"].notna().any():
        return {**_NO_CHOICE, "reason": "no unsteered coherence on the select half to compare with"}
    floor = COHERENCE_SHARE * float(plain["coherence"].iloc[0])
    coherent = cells[cells["coherence"] >= floor]
    if coherent.empty:
        return {**_NO_CHOICE, "reason": f"no {word} dose keeps half of the unsteered coherence (at least {floor:.3g})"}
    usable = coherent[enough_scores(coherent) & coherent["trait_score"].notna()]
    if usable.empty:
        return {**_NO_CHOICE, "reason": f"every coherent {word} dose has trait scores for under half of its answers"}
    ranked = usable.assign(_rank=-sign * usable["trait_score"], _dose=usable["relative_dose"].abs())
    best = ranked.sort_values(["_rank", "_dose", "layer"], kind="stable").iloc[0]
    wanted = ("layer", "coefficient", "relative_dose", "trait_score", "coherence", "n", "log")
    return {**_NO_CHOICE, **{column: best[column] for column in wanted}}


def with_layer_share(choice: pd.DataFrame, steering: pd.DataFrame, draw: Draw) -> pd.DataFrame:
    """The choices with `layer_share`: of resamples of the select half's questions, how many choose the same layer.

    The whole rule is put to every resample: a layer may lose because another scores higher there, or because it keeps
    too little coherence or too few scores. NaN where nothing was chosen, or not by its result.

    Args:
        choice: as `choose_steering` gives it.
        steering: the sample frame.
        draw: how to resample.
    """
    select = single(steering[steering["half"] == "select"])
    shares = [
        math.nan if math.isnan(row["trait_score"]) else _share(select[select["trait"] == row["trait"]], row, draw)
        for _, row in choice.iterrows()
    ]
    return choice.assign(layer_share=shares)


def unsure_layers(choice: pd.DataFrame) -> list[str]:
    """What to warn of: layers that most resamples of the select half would not choose."""
    found = choice[(choice["sign"] == "positive") & (choice["layer_share"].astype(float) < FIRM_SHARE)]
    return [
        f"{row['trait']}: layer {row['layer']:g} is chosen by {row['layer_share']:.0%} of the resamples of the select "
        "half alone; at another layer projections and shifts are other numbers"
        for _, row in found.iterrows()
    ]


def _share(select: pd.DataFrame, chosen: pd.Series, draw: Draw) -> float:
    sign = 1 if chosen["sign"] == "positive" else -1
    steered = select[(select["vector"] == "persona") & (select["coefficient"].astype(float) * sign > 0)]
    cells = [part for _, part in groups(steered.assign(_dose=steered["relative_dose"].abs()), "_dose", "layer")]
    questions = sorted({str(name) for name in select["question_id"]})
    weights = st.draw_clusters(len(questions), draw.resamples, draw.rng("layer share", chosen["trait"], chosen["sign"]))

    def summed(part: pd.DataFrame, values: pd.Series) -> np.ndarray:
        by_question = values.astype(float).groupby(part["question_id"].astype(str)).sum()
        found: np.ndarray = weights @ by_question.reindex(questions, fill_value=0.0).to_numpy()
        return found

    def mean(part: pd.DataFrame, values: pd.Series) -> np.ndarray:
        return st.ratio(summed(part, values), summed(part, values.notna()))

    plain = select[select["vector"] == "none"]
    floor = COHERENCE_SHARE * mean(plain, plain["coherence"])
    rank = np.full((draw.resamples, len(cells)), -np.inf)
    for place, part in enumerate(cells):
        score, has = mean(part, scored(part)), summed(part, scored(part).notna())
        every = summed(part, part["status"].notna())
        usable = (mean(part, part["coherence"]) >= floor) & (has >= SCORED_SHARE * every) & np.isfinite(score)
        rank[usable, place] = sign * score[usable]
    layers = np.array([float(part["layer"].iloc[0]) for part in cells])
    # Of equal scores the first counts: the smaller dose, then the lower layer.
    winner = np.where(np.isfinite(rank.max(axis=1)), layers[rank.argmax(axis=1)], math.nan)
    return float((winner == chosen["layer"]).mean())


def control_of(cells: pd.DataFrame, layer: float, relative_dose: float) -> pd.DataFrame:
    """The random-vector cell that a persona cell is compared with.

    A control must have a relative dose within a quarter of the cell's, whatever its sign: for a random direction the
    sign means nothing. The same layer comes first, then the same sign, then the nearest dose.

    Args:
        cells: rows with `vector`, `layer`, `coefficient` and `relative_dose`, of one trait and half.
        layer: of the persona cell.
        relative_dose: of the persona cell, signed.

    Returns:
        The rows of that control, or no rows.
    """
    random: pd.DataFrame = cells[cells["vector"] == "random"]
    ratio = random["relative_dose"].astype(float).abs() / abs(relative_dose) if relative_dose else None
    if ratio is None or random.empty:
        return random.iloc[:0]
    near = random.assign(
        _layer=(random["layer"].astype(float) - layer).abs(),
        _sign=(np.sign(random["relative_dose"].astype(float)) != math.copysign(1, relative_dose)),
        _dose=(ratio - 1).abs().round(6),
    )
    near = near[near["_dose"] <= CONTROL_DOSE_TOLERANCE].sort_values(["_layer", "_sign", "_dose", "coefficient"])
    if near.empty:
        return random.iloc[:0]
    best = near.iloc[0]
    found: pd.DataFrame = random[(random["layer"] == best["layer"]) & (random["coefficient"] == best["coefficient"])]
    return found

"""Finetuned models: what each acquired, whether its shift foretells that, and what each arm prevents and costs.

A shift is the paper's: the last prompt token's residual stream, mean over the evaluation questions, finetuned minus
base, projected on the unit vector. As a projection is linear, the mean of projections gives it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import (
    SCORE,
    Draw,
    Row,
    counts,
    groups,
    log_names,
    mean_row,
    paired,
    scored,
    spread,
    with_interval,
)
from persona_bench.analysis.samples.frames import TRIAL, Samples
from persona_bench.definitions.families.invented import FACTS
from persona_bench.definitions.trials import split_arm, taught_trait

BASE, PLAIN, PREVENTATIVE, INFERENCE, RANDOM = "base", "plain", "preventative", "inference", "random"
NORMAL = "normal"
SHARE = (0.0, 1.0)
KINDS = {"letter": "mmlu", "cloze": "mmlu", "loss": "held_out", "recall": "recall"}
"""The kind of sample that has a column's numbers; of all others it is `trait`."""
MIN_POINTS = 4
"""Finetunes, by training set: fewer make no correlation."""


FINETUNING_TABLES: Mapping[str, tuple[str, ...]] = {
    "finetuning": (
        *(*TRIAL, "trait", "n", "n_scored", "n_refusal", "n_incoherent", "n_unscored"),
        *with_interval("trait_score", "difference", "coherence", "refusal_rate", "shift", "shift_random"),
        *("layer", "log"),
    ),
    "finetuning_costs": (
        *(*TRIAL, "trait", "set", "n_mmlu", "n_mmlu_too_long"),
        *with_interval("letter", "letter_difference", "cloze", "cloze_difference"),
        *("n_held_out", "n_held_out_too_long", *with_interval("loss", "loss_difference")),
        *("n_recall", *with_interval("recall", "recall_difference"), "log"),
    ),
    "shift_correlation": (
        *("direction", "trait", "scope", "n", "n_sets", *with_interval("r"), "r_random", "n_random", "log"),
    ),
    "vaccine": (
        *("family", "version", "arm", "dose", "trait", "n_seeds", "n", "seed_sd"),
        *with_interval("acquired", "prevented", "beyond_random", "coherence_difference"),
        *with_interval(
            "letter_difference", "cloze_difference", "loss_difference", "recall", "recall_difference", "shift"
        ),
        "log",
    ),
    "training": (*TRIAL, "step", "loss", "trait", "projection"),
}
"""The columns of the tables."""

FINETUNING_SORT: Mapping[str, tuple[str, ...]] = {
    "finetuning": (*TRIAL, "trait"),
    "finetuning_costs": (*TRIAL, "set"),
    "shift_correlation": ("direction", "trait"),
    "vaccine": ("family", "version", "trait", "arm"),
    "training": (*TRIAL, "step", "trait"),
}


def finetuning_rows(samples: Samples, draw: Draw) -> dict[str, list[Row]]:
    """The rows of every table of finetuning."""
    measured = samples.finetuning
    if measured.empty:
        return {name: [] for name in FINETUNING_TABLES}
    table = list(_trait_rows(measured, samples.shifts, draw))
    return {
        "finetuning": table,
        "finetuning_costs": list(_cost_rows(measured, draw)),
        "shift_correlation": list(_correlation_rows(measured, samples.shifts, draw)),
        "vaccine": list(_vaccine_rows(measured, samples.shifts, draw)),
        "training": [{str(key): value for key, value in row.items()} for row in samples.training.to_dict("records")],
    }


def of_kind(measured: pd.DataFrame, kind: str, **where: object) -> pd.DataFrame:
    """The samples of a kind, of certain trials."""
    chosen = measured["kind"] == kind
    for name, value in where.items():
        chosen &= measured[name] == value
    return measured[chosen]


def shifts_of(shifts: pd.DataFrame, trait: str, direction: str, **where: object) -> pd.DataFrame:
    """Projections of trials' last prompt tokens on a direction, minus the base's at the same question.

    Returns:
        The rows of those trials, with a column `shift`; one question and trial each. None of models that are steered
        when they are asked: what was added would count as a shift of the weights.
    """
    rows = shifts[(shifts["trait"] == trait) & (shifts["direction"] == direction)]
    rows = rows[rows["arm"].map(lambda arm: split_arm(str(arm))[0] != INFERENCE).astype(bool)]
    base = rows[rows["arm"] == BASE].set_index("question_id")["prompt_last"]
    for name, value in where.items():
        rows = rows[rows[name] == value]
    return rows.assign(shift=rows["prompt_last"].astype(float) - rows["question_id"].map(base).astype(float))


def _trait_rows(measured: pd.DataFrame, shifts: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    spoken = of_kind(measured, "trait")
    for key, part in groups(spoken, *TRIAL, "trait"):
        names = tuple(key.values())
        base = of_kind(measured, "trait", arm=BASE, trait=key["trait"])
        row = {**key, **counts(part)}
        row |= mean_row("trait_score", scored(part), part, draw, "finetuning", *names, bounds=SCORE)
        row |= spread(
            "difference", paired(scored(part), part, scored(base), base, draw, "finetuning", *names, "difference")
        )
        row |= mean_row("coherence", part["coherence"], part, draw, "finetuning", *names, bounds=SCORE)
        refused = (part["status"] == "refusal").astype(float).where(part["status"] != "unscored")
        row |= mean_row("refusal_rate", refused, part, draw, "finetuning", *names, bounds=SHARE)
        where = {name: key[name] for name in TRIAL}
        for column, direction in (("shift", key["trait"]), ("shift_random", f"random:0 {key['trait']}")):
            moved = shifts_of(shifts, str(key["trait"]), str(direction), **where)
            row |= mean_row(column, moved["shift"], moved, draw, "finetuning", *names)
            row["layer"] = moved["layer"].iloc[0] if len(moved) else math.nan
        yield {**row, "log": log_names(part)}


def _cost_rows(measured: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    base_mmlu, base_held, before_facts = (of_kind(measured, kind, arm=BASE) for kind in ("mmlu", "held_out", "recall"))
    for key, part in groups(measured, *TRIAL):
        names = tuple(key.values())
        mmlu, held = of_kind(part, "mmlu"), of_kind(part, "held_out")
        row: Row = {**key, "trait": taught_trait(str(key["family"])), **_lengths("n_mmlu", mmlu)}
        for way in ("letter", "cloze"):
            row |= mean_row(way, mmlu[way], mmlu, draw, "costs", *names, bounds=SHARE)
            difference = paired(mmlu[way], mmlu, base_mmlu[way], base_mmlu, draw, "costs", *names, way)
            row |= spread(f"{way}_difference", difference)
        # The base was asked about every set; a trained model about its own.
        for name, own in groups(held, "set"):
            before = base_held[base_held["set"] == name["set"]]
            lost = paired(own["loss"], own, before["loss"], before, draw, "costs", *names, name["set"])
            facts, unlearnt = (of_kind(frame, "recall", set=name["set"]) for frame in (part, before_facts))
            learnt = paired(facts["recall"], facts, unlearnt["recall"], unlearnt, draw, "costs", *names, "facts")
            yield {
                **row,
                **name,
                **_lengths("n_held_out", own),
                **mean_row("loss", own["loss"], own, draw, "costs", *names, name["set"]),
                **spread("loss_difference", lost),
                "n_recall": len(facts),
                **mean_row("recall", facts["recall"], facts, draw, "costs", *names, name["set"], bounds=SHARE),
                **spread("recall_difference", learnt),
                "log": log_names(part),
            }


def _lengths(name: str, part: pd.DataFrame) -> Row:
    """How many samples have numbers, and how many were longer than the model's context."""
    too_long = int((part["status"] == "too_long").sum())
    return {name: len(part) - too_long, f"{name}_too_long": too_long}


# --- shift against score ----------------------------------------------------------------------------------------------


def finetunes(measured: pd.DataFrame, shifts: pd.DataFrame, direction: str, trait: str) -> pd.DataFrame:
    """One row a training set, as the paper has one model of each: `shift` and `score`, each the mean over its models.

    Both are of the same questions, those of the trait whose score is meant: another trait's questions would make the
    shift along its vector a poorer match for the score, whatever the vector.

    Args:
        measured: the sample frame.
        shifts: its projections.
        direction: what is projected on, a trait's vector or a random direction.
        trait: the trait whose score is meant.
    """
    shift = _by_set(shifts_of(shifts, trait, direction, arm=PLAIN), "shift")
    spoken = of_kind(measured, "trait", arm=PLAIN, trait=trait)
    score = _by_set(spoken.assign(score=scored(spoken)), "score")
    models = spoken.groupby(["family", "version"])["seed"].nunique()
    points = pd.DataFrame({"shift": shift, "score": score, "n_models": models})
    points = points.dropna().reset_index()
    # New facts are there for another claim.
    return points[points["family"] != FACTS].reset_index(drop=True)


def _by_set(rows: pd.DataFrame, column: str) -> pd.Series:
    """(family, version) -> a column's mean over models, each of which counts alike."""
    return rows.groupby(list(TRIAL))[column].mean().groupby(["family", "version"]).mean()


def random_directions(shifts: pd.DataFrame, trait: str) -> list[str]:
    """The random directions of the layer of a trait's vector that were projected on."""
    names = shifts["direction"].astype(str).unique()
    return sorted(name for name in names if name.startswith("random:") and name.endswith(f" {trait}"))


def correlation(points: pd.DataFrame, draw: Draw, trait: str) -> st.Estimate:
    """Pearson's r of shift and score over training sets; the same sets are drawn for every direction."""
    sets = points["family"].astype(str) + "-" + points["version"].astype(str)
    rng = draw.rng("shift", trait)
    return st.pearson(points["shift"], points["score"], sets, rng=rng, resamples=draw.resamples)


def random_strength(
    measured: pd.DataFrame, shifts: pd.DataFrame, direction: str, trait: str, draw: Draw
) -> st.Estimate:
    """The mean absolute r of the random directions of a vector's layer; NaN where none was projected on."""
    names = random_directions(shifts, direction)
    found = [correlation(finetunes(measured, shifts, name, trait), draw, trait) for name in names]
    return st.strength_of_controls(found) if found else st.of_draws(math.nan, np.empty(0), n=0, n_clusters=0)


def _correlation_rows(measured: pd.DataFrame, shifts: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    traits = sorted(set(of_kind(measured, "trait")["trait"]))
    for direction in traits:
        for trait in traits:
            points = finetunes(measured, shifts, direction, trait)
            if len(points) < MIN_POINTS:
                continue
            controls = random_strength(measured, shifts, direction, trait, draw)
            yield {
                "direction": direction,
                "trait": trait,
                "scope": "own" if direction == trait else "cross",
                "n": int(points["n_models"].sum()),
                "n_sets": len(points),
                **spread("r", correlation(points, draw, trait)),
                "r_random": controls.value,
                "n_random": len(random_directions(shifts, direction)),
                "log": log_names(of_kind(measured, "trait", arm=PLAIN, trait=trait)),
            }


# --- the vaccine ------------------------------------------------------------------------------------------------------


def arm_difference(
    measured: pd.DataFrame, family: str, version: str, arm: str, against: str, column: str, draw: Draw, trait: str = ""
) -> st.Estimate:
    """Mean difference of two arms over the seeds that both have, paired by question.

    Args:
        measured: the sample frame.
        family: of the training set.
        version: of the training set.
        arm: the first arm.
        against: the second; `base` for the model before training.
        column: trait_score, coherence, letter, cloze, loss or recall.
        draw: how to resample.
        trait: whose questions, for trait_score and coherence.
    """
    kind = KINDS.get(column, "trait")
    chosen = of_kind(measured, kind)
    chosen = chosen[chosen["trait"] == trait] if kind == "trait" else chosen
    own = chosen[(chosen["family"] == family) & (chosen["version"] == version)]
    first = own[own["arm"] == arm]
    if against == BASE:
        second = chosen[chosen["arm"] == BASE]
        second = second[second["set"].isin(first["set"])] if kind in ("held_out", "recall") else second
    else:
        second = own[own["arm"] == against]
        seeds = set(first["seed"]) & set(second["seed"])
        first, second = first[first["seed"].isin(seeds)], second[second["seed"].isin(seeds)]
    a, b = (scored(part) if column == "trait_score" else part[column] for part in (first, second))
    key = ("vaccine", family, version, arm, against, column, trait)
    return paired(a, first, b, second, draw, *key)


def _vaccine_rows(measured: pd.DataFrame, shifts: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    spoken = of_kind(measured, "trait")
    spoken = spoken[spoken["arm"] != BASE]
    for key, part in groups(spoken, "family", "version", "arm", "trait"):
        family, version, arm, trait = (str(value) for value in key.values())
        means = scored(part).groupby(part["seed"]).mean().dropna()
        moved = shifts_of(shifts, trait, trait, family=family, version=version, arm=arm)
        facts = of_kind(measured, "recall", family=family, version=version, arm=arm)

        def difference(
            against: str, column: str, *, of: tuple[str, str, str, str] = (family, version, arm, trait)
        ) -> Row:
            name = {"trait_score": "prevented", "coherence": "coherence_difference"}.get(column, f"{column}_difference")
            name = {BASE: "acquired", RANDOM: "beyond_random"}.get(against, name)
            if against == RANDOM and of[2] != PREVENTATIVE:
                # A random vector, added while training at the first dose, is a control of that arm alone.
                return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
            return spread(name, arm_difference(measured, *of[:3], against, column, draw, of[3]))

        yield {
            **key,
            "dose": part["dose"].iloc[0],
            "n_seeds": part["seed"].nunique(),
            "n": len(part),
            "seed_sd": float(np.std(means, ddof=1)) if len(means) > 1 else math.nan,
            **difference(BASE, "trait_score"),
            **difference(PLAIN, "trait_score"),
            **difference(RANDOM, "trait_score"),
            **difference(PLAIN, "coherence"),
            **difference(PLAIN, "letter"),
            **difference(PLAIN, "cloze"),
            **difference(PLAIN, "loss"),
            **mean_row("recall", facts["recall"], facts, draw, "vaccine", *key.values(), bounds=SHARE),
            **difference(PLAIN, "recall"),
            **mean_row("shift", moved["shift"], moved, draw, "vaccine", *key.values()),
            "log": log_names(part),
        }

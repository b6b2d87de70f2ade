"""What stands beside each effect: the rows of the tables that a reader of one verdict must see with it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from persona_bench.analysis.grouping import single
from persona_bench.analysis.tables.capability import EVERY
from persona_bench.analysis.tables.judge import BASELINE
from persona_bench.definitions.claims import Claim
from persona_bench.definitions.families.invented import FACTS

MOST = 14
"""Rows shown beside a claim, the claim's own among them."""


def controls(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The effect of a claim and its controls, a row each; empty where the run has none.

    Args:
        claim: which one.
        trait: of the row.
        tables: as `build_tables` gives them.
    """
    found = {
        "trait_steering": _steering,
        "trait_monitoring": _monitoring,
        "mmlu_preservation": _mmlu,
        "trait_elicitation": _vector,
        "judge_validity": _judge,
        "preventative_steering": _finetuning,
        "data_flagging": _flagging,
        "stated_limits": _monitors if claim.id.startswith("N") else _method,
    }.get(claim.eval)
    return pd.DataFrame() if found is None else found(claim, trait, tables).head(MOST)


def _steering(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    sign = "negative" if claim.id.startswith("C2") else "positive"
    choice = tables["steering_choice"]
    choice = choice[(choice["trait"] == trait) & (choice["sign"] == sign) & choice["layer"].notna()]
    cells = single(tables["steering"])
    cells = cells[(cells["trait"] == trait) & (cells["half"] == "report")]
    if choice.empty or cells.empty:
        return pd.DataFrame()
    chosen = choice.iloc[0]
    dose = float(chosen["relative_dose"])
    same = (cells["layer"] == chosen["layer"]) & np.isclose(cells["relative_dose"].astype(float), dose, rtol=0.25)
    beside = cells[(cells["vector"] == "none") | same].sort_values("vector")
    return pd.DataFrame(
        {
            "vector": beside["vector"],
            "layer": beside["layer"],
            "alpha": beside["coefficient"],
            "relative dose": beside["relative_dose"],
            "trait score": _spreads(beside, "trait_score"),
            "coherence": _spreads(beside, "coherence"),
            "scored": beside["n_scored"],
            "refusals": beside["n_refusal"],
            "incoherent": beside["n_incoherent"],
            "unscored": beside["n_unscored"],
        }
    )


def _monitoring(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = tables["monitoring"]
    rows = rows[
        (rows["trait"] == trait)
        & (rows["condition"] == claim.condition)
        & (rows["half"] == "report")
        & (rows["signal"] == "prompt_last")
        & ((rows["chosen_layer"].astype(str) == "True") | (rows["scope"] == "text"))
    ]
    # The vector first, then its controls by name.
    rows = rows.assign(first=rows["direction"] != "persona").sort_values(["first", "direction"])
    return pd.DataFrame(
        {
            "direction": rows["direction"],
            "layer": rows["layer"],
            "r": _spreads(rows, "r"),
            "r within": _spreads(rows, "r_within"),
            "AUROC": _spreads(rows, "auroc"),
            "points": rows["n"],
        }
    )


def _evasion(trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = tables["evasion"]
    rows = rows[rows["trait"] == trait]
    named = {"raised": "plain, points added", "kept": "evading, points added", "plain": "plain, AUROC"}
    named |= {"evading": "evading, AUROC", "loss": "AUROC lost"}
    columns = {title: _spreads(rows, name) for name, title in named.items()}
    return pd.DataFrame({"way": rows["way"], **columns, "scored": rows["n_scored"], "reason": rows["reason"]})


def _monitors(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    if claim.per_trait:
        return _evasion(trait, tables)
    behaviour = claim.id.split("-", 1)[1].replace("-", "_")
    rows = tables["limits"]
    rows = rows[rows["behaviour"] == behaviour]
    return pd.DataFrame(
        {
            "monitor": rows["monitor"],
            "sees": rows["sees"],
            "layer": rows["layer"],
            "AUROC": _spreads(rows, "auroc"),
            "beyond random": _spreads(rows, "excess_random"),
            "beyond text": _spreads(rows, "excess_text"),
            "found at 1 % false alarms": _spreads(rows, "tpr_1"),
            "pairs": rows["n"],
            "no value": rows["n_refusal"] + rows["n_unscored"],
        }
    )


def _mmlu(_claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = tables["mmlu"]
    rows = rows[(rows["benchmark"] == "mmlu") & (rows["group"] == EVERY)]
    rows = rows[(rows["trait"] == trait) | (rows["setting"] == "none")]
    rows = rows.assign(steered=rows["setting"] != "none", several=~rows["setting"].isin(["none", "single"]))
    rows = rows.sort_values(["steered", "scoring", "shots", "several", "vector", "relative_dose"])
    return pd.DataFrame(
        {
            "scoring": rows["scoring"],
            "examples": rows["shots"],
            "vector": rows["vector"],
            "setting": rows["setting"],
            "layers": rows["layers"],
            "relative dose": rows["relative_dose"],
            "accuracy": _spreads(rows, "accuracy"),
            "change": _spreads(rows, "difference"),
            "McNemar p": rows["mcnemar_p"],
            "answers": rows["n"],
            "no answer": rows["n_no_answer"],
            "too long": rows["n_too_long"],
            "unscored": rows["n_unscored"],
        }
    )


def _vector(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    vectors = tables["vectors"]
    at = vectors[(vectors["trait"] == trait) & (vectors["chosen"].astype(str) == "True")]
    if claim.id.startswith("V1") and len(at):
        rows = tables["cosines"]
        beside = rows[(rows["trait"] == trait) & (rows["layer"] == at["layer"].iloc[0])]
        return pd.DataFrame(beside[["other", "layer", "cosine", "cosine_low", "cosine_high", "width"]])
    told = ["layer", "norm", "residual_norm", "refusal_cosine", "refusal_cosine_low", "refusal_cosine_high"]
    return pd.DataFrame(at[[*told, "n_positive", "n_negative", "vector_id"]])


def _finetuning(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every direction's correlation with the trait, or every arm on the trait's own training sets."""
    if claim.id.startswith("F"):
        rows = tables["shift_correlation"]
        rows = rows[rows["trait"] == trait]
        rows = rows.assign(first=rows["direction"] != trait).sort_values(["first", "direction"])
        return pd.DataFrame(
            {
                "shift along": rows["direction"],
                "r": _spreads(rows, "r"),
                "mean r of random directions": rows["r_random"],
                "models": rows["n"],
                "training sets": rows["n_sets"],
            }
        )
    rows = tables["vaccine"]
    facts = claim.id.startswith("P10")
    family = FACTS if facts else trait
    rows = rows[(rows["family"] == family) & (rows["trait"] == trait)].sort_values(["version", "arm"])
    recall = {"facts recalled": _spreads(rows, "recall"), "recall to plain": _spreads(rows, "recall_difference")}
    return pd.DataFrame(
        {
            "version": rows["version"],
            "arm": rows["arm"],
            "relative dose": rows["dose"],
            **(recall if facts else {}),
            "to the base": _spreads(rows, "acquired"),
            "to plain": _spreads(rows, "prevented"),
            "to random": _spreads(rows, "beyond_random"),
            "MMLU by letter": _spreads(rows, "letter_difference"),
            "by cloze": _spreads(rows, "cloze_difference"),
            "held-out loss": _spreads(rows, "loss_difference"),
            "shift": _spreads(rows, "shift"),
            "seeds": rows["n_seeds"],
            "answers": rows["n"],
        }
    )


def _flagging(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every measure of whole sets, every detector of samples, or every pick that was trained on."""
    number = int(claim.id.split("-")[0].removeprefix("D"))
    if number <= 4:
        rows = tables["flagging_correlation"]
        rows = rows[(rows["trait"] == trait) & (rows["outcome"] == ("shift" if number == 1 else "trait_score"))]
        return pd.DataFrame(
            {
                "measure": rows["measure"],
                "against": rows["outcome"],
                "r": _spreads(rows, "r"),
                "mean r of random directions": rows["r_random"],
                "more than random": _spreads(rows, "excess"),
                "training sets": rows["n_sets"],
            }
        )
    if number in (6, 7):
        rows = tables["flagging_causal"]
        rows = rows[rows["trait"] == trait]
        return pd.DataFrame(
            {
                "pool": rows["pool"],
                "trained on": rows["pick"],
                "samples": rows["n_picked"],
                "trait score": _spreads(rows, "trait_score"),
                "to random": _spreads(rows, "to_random"),
                "to the base": _spreads(rows, "to_base"),
                "scored": rows["n_scored"],
                "answers": rows["n"],
            }
        )
    rows = tables["flagging_samples"]
    rows = rows[(rows["trait"] == trait) & (rows["family"] == (trait if number == 5 else "opinions"))]
    rows = rows[rows["half"] == ("report" if number == 10 else "all")]
    rows = rows.sort_values(["version", "auroc"], ascending=[False, False])
    return pd.DataFrame(
        {
            "detector": rows["detector"],
            "version": rows["version"],
            "AUROC": _spreads(rows, "auroc"),
            "more than random": _spreads(rows, "excess_random"),
            "recall at 1 % false": _spreads(rows, "recall_1"),
            "precision at 5 %": _spreads(rows, "average_precision_05"),
            "found": rows["n_positive"],
            "normal": rows["n_negative"],
            "no number": rows["n_missing"],
        }
    )


def _judge(_claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    rows = tables["judge"]
    rows = rows[(rows["trait"] == trait) & (rows["half"] == "report") & (rows["source"] == "all")]
    in_use = rows["chosen"].astype(str) == "True"
    rows = rows[in_use | (rows["grader"] == BASELINE)].assign(first=~in_use)
    rows = rows.sort_values(["first", "auroc"], ascending=[True, False])
    return pd.DataFrame(
        {
            "judge": rows["grader"].where(rows["grader"] != BASELINE, "trivial"),
            "method": rows["method"],
            "AUROC": _spreads(rows, "auroc"),
            "balanced accuracy": _spreads(rows, "balanced_accuracy"),
            "scored": rows["n_scored"],
            "unscored": rows["n_unscored"],
        }
    )


def _method(claim: Claim, trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What stands beside a limit of the method; nothing for those that rest on other claims' tables."""
    if claim.id.startswith("J2"):
        return _judge_kinds(trait, tables)
    if claim.id.startswith("S2"):
        rows = tables["left_out"]
        rows = rows[(rows["trait"] == trait) & (rows["half"] == "report")]
        # Other traits' vectors, the trait's own, and of the random directions the one that was chosen.
        chosen = rows["chosen"].astype(str) == "True"
        rows = rows[chosen | rows["direction"].str.startswith("trait:")].assign(first=~chosen).sort_values("first")
        return pd.DataFrame(
            {
                "direction": rows["direction"],
                "layer": rows["layer"],
                "sign": rows["sign"],
                "AUROC": _spreads(rows, "auroc"),
                "true alarms at 1 % false": _spreads(rows, "tpr_1"),
                "show it": rows["n_positive"],
                "do not": rows["n_negative"],
            }
        )
    if not claim.id.startswith(("S3", "S4")):
        return pd.DataFrame()
    rows = tables["variants"]
    rows = rows[(rows["trait"] == trait) & (rows["half"] == "report")].sort_values(["vector", "relative_dose"])
    return pd.DataFrame(
        {
            "vector": rows["vector"],
            "layer": rows["layer"],
            "relative dose": rows["relative_dose"],
            "trait score": _spreads(rows, "trait_score"),
            "to unsteered": _spreads(rows, "difference"),
            "full minus this": _spreads(rows, "below_full"),
            "slope": _spreads(rows, "slope"),
            "coherence": _spreads(rows, "coherence"),
            "scored": rows["n_scored"],
        }
    )


def _judge_kinds(trait: str, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The judge in use by kind of hard case, each beside twins."""
    used = tables["judge"]
    used = used[(used["trait"] == trait) & (used["chosen"].astype(str) == "True") & (used["half"] == "report")]
    rows = tables["hard_cases"]
    rows = rows[(rows["trait"] == trait) & rows["method"].isin(used["method"]) & rows["grader"].isin(used["grader"])]
    return pd.DataFrame(
        {
            "hard case": rows["kind"],
            "hard judged right": _spreads(rows, "hard_right"),
            "twins judged right": _spreads(rows, "twin_right"),
            "twins minus hard": _spreads(rows, "difference"),
            "pairs": rows["n"],
            "left out": rows["n_left_out"],
        }
    )


def _spreads(rows: pd.DataFrame, name: str) -> list[str]:
    return [spread(row[name], row[f"{name}_low"], row[f"{name}_high"]) for _, row in rows.iterrows()]


def spread(value: float, low: float, high: float) -> str:
    """A number with its interval in brackets; a dash where there is none."""
    if pd.isna(value):
        return "–"
    return f"{value:.3g}" if pd.isna(low) else f"{value:.3g} [{low:.3g}, {high:.3g}]"

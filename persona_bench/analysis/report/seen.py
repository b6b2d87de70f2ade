"""What is seen in each figure, in words, for those who do not see it."""

from collections.abc import Mapping

import pandas as pd

from persona_bench.analysis.figures.drawing import all_traits, slug
from persona_bench.analysis.grouping import single
from persona_bench.analysis.tables.capability import EVERY
from persona_bench.definitions.claims import MMLU_CHANCE

_ALT = {
    "claims": "Matrix of verdicts, a claim a row and a trait a column",
    "steering": "Trait score and coherence against relative dose, by layer, with the random control",
    "monitoring": "Projection of the last prompt token against the trait score, by condition",
    "roc": "True against false alarms of the projection and of its baselines",
    "trace": "Projection token by token over two responses",
    "drift": "Trait score and projection by turn of conversations that drift",
    "frontier": "Trait score against MMLU accuracy, a point a way of steering or suppressing, with the frontier",
    "shift": "Finetuning shift along the vector against the trait score, a point a finetuned model",
    "vaccine": "Trait acquired by each arm of finetuning against MMLU accuracy, or facts recalled, and held-out loss",
    "flagsets": "Projection difference of training sets against what training on each did: shift and trait score",
    "flaghistogram": "Histograms of the projection difference, normal samples and those with mistakes or trait in them",
    "flagprecision": "Precision by recall of projections, judge, classifier, perplexity and chance, at three mixtures",
    "flagtrained": "Trait score after training on the samples ranked highest, on random and on those ranked lowest",
    "training": "Projections on the vectors by optimizer step, a line a finetuning",
    "behaviours": "Share of scenes in which each behaviour is shown, where it is rewarded and in the twins",
    "limits": "AUROC of each monitor for each behaviour: made for it, trait vectors, random directions, text, judge",
    "evasion": "Trait score kept against detection lost, a point a trait and way of evasion",
    "sensitivity": "Cosine to the vector by number of responses, and of vectors made with every other choice",
    "mmlu": "MMLU accuracy against relative dose, with the unsteered band and the chance line",
}


def seen(stem: str, tables: Mapping[str, pd.DataFrame]) -> str:
    """What is seen in a figure, with the numbers that it shows where they are few."""
    kind, _, rest = stem.partition("_")
    trait = next((name for name in all_traits(tables) if rest == slug(name) or rest.startswith(f"{slug(name)}_")), "")
    condition = rest.removeprefix(slug(trait)).strip("_").replace("_", " ") if trait else ""
    words = f"{_ALT.get(kind, stem)}{f', {condition}' if condition else ''}{f': {trait}' if trait else ''}"
    trend = _trend(kind, trait, condition, tables)
    return f"{words}. {trend}" if trend else words


def _trend(kind: str, trait: str, condition: str, tables: Mapping[str, pd.DataFrame]) -> str:
    """The trend of a figure in one sentence, empty where its table holds none."""
    if kind == "steering":
        cells = tables["steering"]
        cells = single(cells[(cells["trait"] == trait) & (cells["half"] == "report") & (cells["vector"] != "random")])
        choice = tables["steering_choice"]
        chosen = choice[(choice["trait"] == trait) & (choice["sign"] == "positive")]["layer"].dropna()
        at = cells["layer"].isin([*chosen, *cells["layer"].tail(1)][:1]) | (cells["vector"] == "none")
        cells = cells[at].dropna(subset=["trait_score"]).sort_values("relative_dose")
        if len(cells) > 1:
            first, last = cells.iloc[0], cells.iloc[-1]
            return (
                f"From relative dose {first['relative_dose']:.2g} to {last['relative_dose']:.2g} the trait score goes "
                f"from {first['trait_score']:.0f} to {last['trait_score']:.0f} and coherence from "
                f"{first['coherence']:.0f} to {last['coherence']:.0f} (report half)."
            )
    if kind == "monitoring":
        rows = tables["monitoring"]
        rows = rows[
            (rows["trait"] == trait)
            & (rows["condition"] == (condition.replace(" ", "_") or "ladder"))
            & (rows["direction"] == "persona")
            & (rows["signal"] == "prompt_last")
            & (rows["half"] == "report")
            & (rows["chosen_layer"].astype(str) == "True")
        ].dropna(subset=["r"])
        if len(rows):
            return f"r = {rows['r'].iloc[0]:.2f} over {rows['n'].iloc[0]:g} points of the report half."
    if kind == "shift":
        rows = tables["shift_correlation"]
        rows = rows[(rows["trait"] == trait) & (rows["direction"] == trait)].dropna(subset=["r"])
        if len(rows):
            return f"r = {rows['r'].iloc[0]:.2f} over {rows['n_sets'].iloc[0]:g} training sets."
    if kind == "flagsets":
        rows = tables["flagging_correlation"]
        rows = rows[(rows["trait"] == trait) & (rows["measure"] == "difference")].dropna(subset=["r"])
        found = [f"r = {row['r']:.2f} with the {row['outcome'].replace('_', ' ')}" for _, row in rows.iterrows()]
        return f"{', '.join(found)}, over {rows['n_sets'].iloc[0]:g} training sets." if found else ""
    if kind == "mmlu":
        rows = tables["mmlu"]
        plain = rows[(rows["setting"] == "none") & (rows["benchmark"] == "mmlu") & (rows["group"] == EVERY)]
        said = [
            f"{row['accuracy']:.2f} with {row['scoring']} scoring after {row['shots']:g} examples"
            for _, row in plain.iterrows()
        ]
        return f"Unsteered accuracy {', '.join(said)}; chance is {MMLU_CHANCE:g}." if said else ""
    return ""

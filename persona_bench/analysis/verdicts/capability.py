"""The rules of the claims about what steering costs in capability."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.finding import Finding
from persona_bench.analysis.grouping import Draw, log_names
from persona_bench.analysis.tables.capability import EVERY, first_above_chance, mcnemar, paired, unsteered
from persona_bench.analysis.tables.tradeoff import halvings
from persona_bench.analysis.verdicts.bound import Bound
from persona_bench.analysis.verdicts.decision import Rule, Run, decide, too_few, untestable
from persona_bench.definitions.claims import (
    MMLU_CHANCE,
    Claim,
)


def _steering_costs_capability(run: Run, claim: Claim, trait: str) -> Finding:
    table, frame = run.tables["mmlu"], run.samples.mmlu
    basis = first_above_chance(table)
    if basis is None:
        plain = unsteered(table[(table["benchmark"] == "mmlu") & (table["group"] == EVERY)])
        plain = plain[plain["scoring"].isin(["letter", "cloze"])]
        seen = [
            f"{row['scoring']} with {row['shots']} examples {row['accuracy']:.3g} "
            f"[{row['accuracy_low']:.3g}, {row['accuracy_high']:.3g}]"
            for _, row in plain.iterrows()
        ]
        what = ", ".join(seen) or "no unsteered answers by likelihood"
        n = int(plain["n"].max()) if seen else 0
        return untestable(f"capability at chance ({MMLU_CHANCE:g}) without steering: {what}", n=n, log=_joined(plain))
    scoring, shots = basis
    family = frame[(frame["benchmark"] == "mmlu") & (frame["scoring"] == scoring) & (frame["shots"] == shots)]
    steered = family[(family["trait"] == trait) & (family["vector"] == "persona") & (family["setting"] == "single")]
    if steered.empty:
        return Finding("not run", f"no steered answers with {scoring} scoring")
    doses = steered["relative_dose"].astype(float)
    strongest = doses.min() if doses.min() < 0 else doses.max()
    cell = steered[np.isclose(doses, strongest)]
    layers = sorted(cell["layer"].unique())
    cell = cell[cell["layer"] == (run.layers[trait] if run.layers.get(trait) in layers else layers[0])]
    plain = unsteered(family)
    log = log_names(pd.concat([cell, plain]))
    change, pairs = paired(cell, plain, "correct", run.rng("mmlu", trait), run.resamples)
    few = too_few(claim, {"question pairs": len(pairs)}, len(pairs), log)
    if few:
        return few
    what = f"change in accuracy ({scoring}, {shots} examples, relative dose {strongest:.2g})"
    found = decide([Bound(what, change, -1, claim.threshold)], log)
    return replace(found, p=mcnemar(pairs))


def _prompt_costs_less(run: Run, claim: Claim, trait: str) -> Finding:
    mmlu, draw = run.tables["mmlu"], Draw(run.seed, run.resamples)
    ways = {
        (way.setting, way.layers): way
        for way in halvings(run.samples.steering, run.samples.mmlu, mmlu, trait, draw)
        if way.vector != "random"
    }
    if trait not in run.layers:
        return untestable("no layer was chosen, neither with the vector nor by steering")
    steered, told = ways.get(("single", f"{run.layers[trait]:g}")), ways.get(("system_prompt", ""))
    if steered is None or told is None:
        missing = f"negative doses at layer {run.layers[trait]:g}" if steered is None else "the system prompt"
        return Finding("not run", f"{missing} not run on the report half")
    log = "; ".join(sorted({*steered.log.split("; "), *told.log.split("; ")}))
    for name, way in (("steering", steered), ("system prompt", told)):
        if way.reason:
            return untestable(f"{name}: {way.reason}", n=way.n_scored, log=log)
    counts = {"steering, scored answers": steered.n_scored, "system prompt, scored answers": told.n_scored}
    few = too_few(claim, counts, steered.unsteered.n_clusters, log)
    if few:
        return few
    first, second = steered.accuracy, told.accuracy
    n, clusters = min(first.n, second.n), min(first.n_clusters, second.n_clusters)
    change = st.of_draws(first.value - second.value, first.draws - second.draws, n=n, n_clusters=clusters)
    what = f"steering at relative dose {steered.dose.value:.2g} minus the system prompt, change in accuracy"
    return decide([Bound(what, change, -1, claim.threshold)], log)


def _joined(table: pd.DataFrame) -> str:
    return "; ".join(sorted(set(table["log"].astype(str))))


CAPABILITY_RULES: Mapping[str, Rule] = {
    "C5-steering-costs-capability": _steering_costs_capability,
    "C7-prompt-costs-less": _prompt_costs_less,
}

"""The judge: whether it may decide about a trait, and the rule of the claim that it can."""

import math
from collections.abc import Mapping

from persona_bench.analysis.finding import Finding
from persona_bench.analysis.tables.judge import ALL, GATE_MIN_SCORED
from persona_bench.analysis.verdicts.decision import Rule, Run, untestable
from persona_bench.definitions.claims import (
    GATE_AUROC,
    GATE_BALANCED_ACCURACY,
    Claim,
)

GATE = "J-judge-valid"
"""The claim by which every judged one may be decided."""


def gate(run: Run, trait: str) -> str:
    """Why the judge may not decide about this trait; empty if it may."""
    judge = run.tables["judge"]
    rows = judge[(judge["trait"] == trait) & (judge["half"] == "report") & judge["chosen"].astype(bool)]
    if rows.empty:
        return "the judge in use was not checked on labelled answers"
    row = rows.iloc[0]
    if bool(row["passes"]):
        return ""
    if row["n_scored"] < GATE_MIN_SCORED:
        return f"{row['n_scored']} labelled answers of the report half with a score, needed {GATE_MIN_SCORED}"
    return (
        f"AUROC {row['auroc']:.2f} and balanced accuracy {row['balanced_accuracy']:.2f} on the report half, "
        f"needed {GATE_AUROC:.2f} and {GATE_BALANCED_ACCURACY:.2f}"
    )


def coherence_gate(run: Run, trait: str) -> str:
    """Why the judge of this trait may not decide about coherence; empty if it may.

    It must tell incoherent responses of models from others, of whatever trait, as well as it must tell a trait.
    """
    judge, outcomes = run.tables["judge"], run.tables["judge_outcomes"]
    graders = judge.loc[(judge["trait"] == trait) & judge["chosen"].astype(bool), "grader"]
    rows = outcomes[(outcomes["trait"] == ALL) & (outcomes["source"] == "model") & outcomes["grader"].isin(graders)]
    rows = rows[(rows["outcome"] == "incoherent") & rows["auroc"].notna()]
    if rows.empty:
        return "the judge in use was not checked on incoherent responses of models"
    row = rows.iloc[0]
    if row["auroc"] >= GATE_AUROC:
        return ""
    return (
        f"coherence tells incoherent responses of models ({row['n_positive']:g} of {row['n']:g}) with an AUROC of "
        f"{row['auroc']:.2f} [{row['auroc_low']:.2f}, {row['auroc_high']:.2f}], needed {GATE_AUROC:.2f}"
    )


def _judge_valid(run: Run, claim: Claim, trait: str) -> Finding:
    judge = run.tables["judge"]
    rows = judge[(judge["trait"] == trait) & (judge["half"] == "report") & judge["chosen"].astype(bool)]
    if rows.empty:
        return Finding("not run", gate(run, trait))
    row = rows.iloc[0]
    n, log = int(row["n_scored"]), str(row["log"])
    if n < claim.min_n or math.isnan(row["auroc"]):
        return untestable(f"too few labelled answers with a score: {n}, needed {claim.min_n}", n=n, log=log)
    accuracy = f"{row['balanced_accuracy']:.2f}"
    reason = f"AUROC {row['auroc']:.2f}, balanced accuracy {accuracy} ({row['method']} judge by {row['grader']})"
    below = row["auroc_high"] < GATE_AUROC or row["balanced_accuracy_high"] < GATE_BALANCED_ACCURACY
    verdict = "supported" if bool(row["passes"]) else "contradicted" if below else "inconclusive"
    return Finding(verdict, reason, row["auroc"], row["auroc_low"], row["auroc_high"], n, log=log)


JUDGE_RULES: Mapping[str, Rule] = {GATE: _judge_valid}

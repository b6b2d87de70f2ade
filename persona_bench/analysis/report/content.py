"""What a report says, whatever it is rendered as: claims with all that belongs to each, sections, warnings."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from persona_bench.analysis.changes.verdicts import GRADER_CHANGE, counts
from persona_bench.analysis.figures.drawing import slug
from persona_bench.analysis.report.controls import controls, spread
from persona_bench.analysis.report.seen import seen
from persona_bench.analysis.tables.judge import ALL, BASELINE
from persona_bench.analysis.verdicts.claims import VERDICTS
from persona_bench.analysis.verdicts.limits import LIMIT_RULES
from persona_bench.definitions.claims import CLAIMS, GATE_AUROC, GATE_BALANCED_ACCURACY, Claim
from persona_bench.files import scope

MOST_ROWS = 120
"""A longer table is cut here; its CSV file has all rows."""
_FIGURE_OF = {
    "C1-steering-induces": "steering_{}",
    "C2-steering-suppresses": "steering_{}",
    "C3-monitoring-overall": "monitoring_{}",
    "C4-monitoring-within": "monitoring_{}",
    "M1-monitoring-beats-text": "roc_{}",
    "C5-steering-costs-capability": "mmlu",
    "C6-steering-costs-coherence": "steering_{}",
    "C7-prompt-costs-less": "frontier_{}",
    "C8-many-shot-overall": "monitoring_{}_many_shot",
    "C9-many-shot-within": "monitoring_{}_many_shot",
    "L2-monitoring-mostly-between": "monitoring_{}",
    "F1-shift-own-trait": "shift_{}",
    "F2-shift-cross-trait": "shift_{}",
    "P1-prevents-single-layer": "vaccine_{}",
    "P2-single-layer-incomplete": "vaccine_{}",
    "P3-multi-layer-near-baseline": "vaccine_{}",
    "P4-multi-layer-keeps-mmlu": "vaccine_{}",
    "P5-keeps-mmlu-better": "vaccine_{}",
    "P6-caft-works": "vaccine_{}",
    "P7-caft-fails": "vaccine_{}",
    "P8-projection-penalty-partial": "vaccine_{}",
    "P9-negative-prompt-weaker": "vaccine_{}",
    "P10-facts-mostly-kept": "vaccine_facts",
    "D1-difference-tells-shift": "flagsets_{}",
    "D2-difference-tells-trait": "flagsets_{}",
    "D3-raw-projection": "flagsets_{}",
    "D4-no-generation-needed": "flagsets_{}",
    "D5-samples-separable": "flaghistogram_{}",
    "D6-real-data-ordered": "flagtrained_{}",
    "D7-survives-filtering": "flagtrained_{}",
    "D8-filter-best": "flagprecision_{}_opinions",
    "D9-difference-best": "flagprecision_{}_opinions",
    "D10-both-best": "flagprecision_{}_opinions",
    **dict.fromkeys(LIMIT_RULES, "limits"),
    "N5-monitoring-evasion": "evasion",
    "S3-vague-description": "sensitivity",
}
_TABLES = {
    "judge": "The judge on labelled answers",
    "judge_cases": "The judge by kind of answer",
    "judge_outcomes": "The judge on incoherent answers and on refusals",
    "hard_cases": "The judge on hard cases, each beside an unmistakable answer to the same question",
    "judge_panel": "How far the graders of the panel agree",
    "elicitation": "Answers under positive and negative instructions",
    "steering_choice": "The cells chosen on the select half",
    "steering": "Steering, a row a cell",
    "monitoring": "Monitoring: projections and baselines against the trait score",
    "monitoring_rungs": "Monitoring: means by condition",
    "drift": "Drifting conversations: how early the alarm comes",
    "mmlu": "Capability: MMLU and second opinions, a row a cell",
    "tradeoff_summary": "What halving the trait score costs",
    "tradeoff": "Trait score beside MMLU, a row a cell",
    "vaccine": "Finetuning: what each arm prevents, and its price",
    "shift_correlation": "Finetuning: shift against trait score over finetuned models",
    "finetuning": "Finetuning: trait scores and shifts, a row a model and trait",
    "finetuning_costs": "Finetuning: MMLU and held-out loss, a row a model and training set",
    "training": "Finetuning: loss and projections by step",
    "flagging_correlation": "Data flagging: measures of training sets against what training on each did",
    "flagging_sets": "Data flagging: training sets, a row a set and trait",
    "flagging_samples": "Data flagging: samples with mistakes or trait among normal ones, a row a detector",
    "flagging_causal": "Data flagging: trained on the highest, random and lowest samples of each pool",
    "behaviours": "Behaviours: what the model did in scenes that reward one and in their twins",
    "limits": "Behaviours: each monitor, what it sees and how well",
    "evasion": "Evasion: what is kept of each trait, and what is lost of its detection",
    "vectors": "The vectors, a row a layer",
    "cosines": "Cosines between the vectors, a row a layer and pair",
    "inducibility": "Limits: whether prompting induces the trait, and why not",
    "left_out": "Limits: responses that show a trait, seen by the vectors of others",
    "variants": "Limits: steering with vectors of other descriptions, other questions, or unfiltered responses",
    "sensitivity": "Limits: the vector made otherwise, and its cosine to the run's",
}
_METHOD = (
    "Layer and coefficient are chosen on one half of the questions (the highest trait score among the doses that keep "
    "at least half of the unsteered coherence), and what is claimed about trait scores is decided on the other half.",
    "Intervals are 95 % bootstrap intervals that resample whole questions, widened for few questions (Hesterberg "
    "2015); shares have Wilson intervals. Differences are paired by question.",
    "Each claim has a rule that was written before the results; where a result showed that a rule had a gap, it was "
    "amended, and docs/claims.md says so there. A claim that its interval supports or contradicts stays so only if its "
    "p value is under 0.05 after Holm's correction over all tests of the run. The judge's own (J-judge-valid), S1 and "
    "those on cosines (V1, L1) have no p value.",
    f"A trait whose judge has an AUROC under {GATE_AUROC:.2f} or a balanced accuracy under "
    f"{GATE_BALANCED_ACCURACY:.2f} on held-out labelled answers decides no claim that rests on the judge.",
    "Every answer is scored, a refusal, incoherent (coherence under 50) or unscored (the grader failed): trait scores "
    "are means over the scored ones, and the numbers of the others stand beside them.",
)
_LIMITS = (
    "A handful of traits and one model a run: a verdict is about this model and this preset. Steering is measured on "
    "single questions; conversations of several turns are monitored only.",
    "The judge is itself a model, and the answers that check it were written and graded by language models, not by "
    "people.",
    "Means leave refusals and incoherent answers out, so a vector that makes the model refuse or ramble changes which "
    "answers are averaged: read those counts beside each trait score.",
    "The random control of steering is one to three random directions, by preset, and that of monitoring one: not a "
    "distribution of them.",
    "An inconclusive verdict is no evidence of absence, least of all in a small preset.",
    "Goal-directed deception, sandbagging, self-preservation and instrumental convergence are tried in short forced "
    "choices alone (stated_limits): that one is seen there does not show that it would be seen elsewhere.",
)
_REPRODUCTION = (
    "On the same machine with the same package versions, on an x86 CPU in the dtype that it computes in (the default: "
    "bfloat16 with AVX-512 BF16 or AMX, else float32), the same command gives the same bytes: "
    "every table, claims.csv, judge.json and the numbers of every vector. Tests hold it.",
    "What differs even there: dates and timings in run.json, names, ids and usage in logs, and so the log ids that a "
    "vector's file and run.json name.",
    "On another machine or a GPU, or in another dtype, responses are sampled from numbers that differ in their last "
    "digits: the experiment is repeated, not its bytes. Expect scores, rates, correlations and accuracies within the "
    "intervals about as often as a repeated measurement is, vectors that point nearly the same way, and other verdicts "
    "near their thresholds; `persona-bench compare FIRST SECOND` says how far two runs agree.",
    "A repetition may choose another layer, and then all that is in units of a vector is other (projections, shifts): "
    "their intervals hold the vector and its layer fixed.",
    "The same everywhere: questions, prompts, conditions, cells and their relative doses, halves, seeds, how many "
    "responses are asked for, labelled answers, the paper's values and the rules of all claims.",
)


_BEHIND: Mapping[str, tuple[str, ...]] = {
    "judge_validity": ("judge_validity",),
    "trait_elicitation": ("judge_validity", "trait_elicitation", "trait_steering"),
    "trait_steering": ("judge_validity", "trait_elicitation", "trait_steering"),
    "trait_monitoring": ("judge_validity", "trait_elicitation", "trait_steering", "trait_monitoring"),
    "mmlu_preservation": ("judge_validity", "trait_elicitation", "trait_steering", "mmlu_preservation"),
    "preventative_steering": ("judge_validity", "trait_elicitation", "trait_steering", "preventative_steering"),
    "data_flagging": ("judge_validity", "trait_elicitation", "trait_steering", "data_flagging"),
    "stated_limits": (
        *("judge_validity", "trait_elicitation", "trait_steering", "trait_monitoring", "mmlu_preservation"),
        "stated_limits",
    ),
}
"""The evals that a verdict of each eval rests on: the judge's gate, the vector, the layer that steering chose."""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Something to be run or copied."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table under a title that opens."""

    title: str
    frame: pd.DataFrame
    note: str = ""


@dataclass(frozen=True)
class Image:
    """A picture, and what is seen in it."""

    path: Path
    alt: str


Block = Text | Items | Code | Table | Image


@dataclass(frozen=True)
class Section:
    """A part of the report after the claims."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class ClaimRow:
    """One verdict with everything that belongs to it.

    Attributes:
        id: of the claim.
        trait: of the row.
        statement: of the claim.
        verdict: one of `VERDICTS`.
        reason: why.
        estimate: the claim's statistic, NaN where there is none; `low` and `high` are its 95 % interval.
        n: valid samples behind it.
        paper: the paper's value for this trait.
        p_holm: after Holm's correction, NaN where no test was made.
        logs: names, eval ids and files of the logs.
        controls: the effect and its controls, a row each.
        command: what runs this again; empty where nothing does.
        figure: the stem of its figure; empty where none was drawn.
        claim: the registry's entry; None for claims that this version does not know.
    """

    id: str
    trait: str
    statement: str
    verdict: str
    reason: str
    estimate: float
    low: float
    high: float
    n: int
    paper: str
    p_holm: float
    logs: Sequence[str]
    controls: pd.DataFrame
    command: str
    figure: str
    claim: Claim | None

    @property
    def spread(self) -> str:
        """The estimate with its interval."""
        return spread(self.estimate, self.low, self.high)


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        title: with model and preset.
        facts: grader, traits, date, seed: what every number depends on.
        warnings: what a reader must know before any number.
        tally: how many verdicts of each kind, in words.
        rows: a verdict each; those that were not run come last.
        sections: what follows the claims.
        images: the figures.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    warnings: Sequence[str]
    tally: str
    rows: Sequence[ClaimRow]
    sections: Sequence[Section]
    images: Sequence[Image] = field(default_factory=tuple)


def make_report(
    run: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    claims: pd.DataFrame,
    figures: Sequence[Path],
) -> Report:
    """The content of a report; arguments as for `write_report`."""
    images = [Image(path, seen(path.stem, tables)) for path in figures if path.suffix == ".png"]
    drawn = {image.path.stem for image in images}
    rows = [_row(row, run, tables, drawn) for _, row in claims.iterrows()]
    return Report(
        title=f"Persona vectors on {run.get('model', 'an unnamed model')}, preset {scope(run) or 'unnamed'}",
        facts=list(_facts(run)),
        warnings=_warnings(run, tables),
        tally=_tally(claims),
        rows=sorted(rows, key=lambda row: row.verdict == "not run"),
        sections=_sections(run, tables, images),
        images=images,
    )


def _row(row: pd.Series, run: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], drawn: set[str]) -> ClaimRow:
    claim = _claim(str(row["claim"]))
    trait, verdict = str(row["trait"]), str(row["verdict"])
    stem = _FIGURE_OF.get(str(row["claim"]), "").format(slug(trait))
    shown = claim is not None and verdict != "not run"
    return ClaimRow(
        id=str(row["claim"]),
        trait=trait,
        statement=str(row["statement"]),
        verdict=verdict,
        reason=str(row["reason"]),
        estimate=float(row["estimate"]),
        low=float(row["ci_low"]),
        high=float(row["ci_high"]),
        n=int(row["n"]),
        paper=str(row["paper_value"]),
        p_holm=float(row["p_holm"]),
        logs=_log_lines(str(row["log"]) if row["log"] else "", run),
        controls=controls(claim, trait, tables) if shown and claim is not None else pd.DataFrame(),
        command=rerun_command(run, claim, trait) if claim is not None else "",
        figure=stem if stem in drawn else "",
        claim=claim,
    )


def rerun_command(run: Mapping[str, Any], claim: Claim, trait: str) -> str:
    """The command that runs again what a verdict rests on, into a folder of its own; empty if the model has no name."""
    if not run.get("model"):
        return ""
    names = [str(name) for name in run.get("traits") or []]
    # A trait file is named by its path; cosines take the other vectors too, shifts all traits' training sets: then all
    # traits run again.
    alone = trait in names and not claim.id.startswith(("V1-", "F1-", "F2-", "D", "S1-", "S2-"))
    words = ["persona-bench", "run", "--model", str(run["model"]), "--preset", str(run.get("preset", "quick"))]
    words += ["--traits", trait if alone else ",".join(names) or trait]
    words += ["--grader", str(run["grader"])] if run.get("grader") else []
    words += ["--evals", ",".join(_BEHIND[claim.eval]), "--seed", str(run.get("seed", 0))]
    words += ["--filter", str(run["extraction_filter"])] if run.get("extraction_filter") else []
    words += ["--corpus", str(run["corpus"])] if run.get("corpus") and claim.eval == "data_flagging" else []
    return shlex.join([*words, "--out", "rerun"])


def _log_lines(names: str, run: Mapping[str, Any]) -> list[str]:
    held = run.get("logs") or {}
    lines = []
    for name in filter(None, names.split("; ")):
        entry = held.get(name)
        known = isinstance(entry, Mapping)
        lines.append(f"{name}: eval {entry.get('eval_id')}, {entry.get('file')}" if known and entry else name)
        # A number read off a vector names the vector, which was made from the log of its elicitation.
        for trait, sha256 in (run.get("vectors") or {}).items():
            if str(sha256).startswith(name):
                lines[-1] = f"vector {trait}, sha256 {name}..."
                lines += _log_lines(f"trait_elicitation/{trait}", run)
    return lines


def _facts(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("model", "preset", "part", "grader", "seed", "date"):
        if run.get(key) is not None:
            yield key, str(run[key])
    if run.get("traits"):
        yield "traits", ", ".join(str(trait) for trait in run["traits"])


def _warnings(run: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What a reader must know before any number: the run's own warnings, the vectors', and judges under the gate."""
    found = [str(text) for text in run.get("warnings") or []]
    vectors = tables["vectors"]
    chosen = vectors[vectors["chosen"].astype(str) == "True"]
    found += [
        f"Vector {row['trait']}, layer {row['layer']:g}: {row['warning']}"
        for _, row in chosen.iterrows()
        if isinstance(row["warning"], str) and row["warning"]
    ]
    judge = tables["judge"]
    in_use = judge[(judge["chosen"].astype(str) == "True") & (judge["half"] == "report")]
    found += [
        f"The judge of {row['trait']} is under the gate (AUROC {row['auroc']:.2f}, balanced accuracy "
        f"{row['balanced_accuracy']:.2f}): its trait scores decide no claim."
        for _, row in in_use.iterrows()
        if str(row["passes"]) != "True"
    ]
    return list(dict.fromkeys(found))


def _best_baseline(judge: pd.DataFrame, trait: str) -> str:
    """The trivial judge with the highest AUROC on the report half."""
    rows = judge[(judge["grader"] == BASELINE) & (judge["trait"] == trait) & (judge["source"] == "all")]
    if rows.empty:
        return "not run"
    best = rows.sort_values("auroc", ascending=False).iloc[0]
    return f"{best['method']} {number(best['auroc'])}"


def _sections(run: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], images: Sequence[Image]) -> list[Section]:
    judge = tables["judge"]
    in_use = judge[(judge["chosen"].astype(str) == "True") & (judge["half"] == "report")]
    checked = [
        f"{row['trait']}: {row['method']} judge by {row['grader']}, AUROC {number(row['auroc'])} "
        f"[{number(row['auroc_low'])}, {number(row['auroc_high'])}], balanced accuracy "
        f"{number(row['balanced_accuracy'])}, rank correlation {number(row['spearman'])}, right order in "
        f"{number(100 * row['pairwise'])} % of clear pairs (the paper's judge: 94.7 % agreement with people), "
        f"kappa {number(row['kappa'])}, best trivial judge {_best_baseline(judge, row['trait'])}, "
        f"{row['n_scored']} of {row['n']} labelled answers scored: "
        f"{'passes' if str(row['passes']) == 'True' else 'fails'}"
        for _, row in in_use.iterrows()
    ]
    outcomes = tables["judge_outcomes"]
    real = outcomes[(outcomes["trait"] == ALL) & (outcomes["source"] == "model") & outcomes["auroc"].notna()]
    checked += [
        f"{row['grader']} tells incoherent responses of models ({row['n_positive']:g} of {row['n']:g}) by its "
        f"coherence with an AUROC of {number(row['auroc'])} [{number(row['auroc_low'])}, {number(row['auroc_high'])}]"
        for _, row in real.iterrows()
    ]
    sections = [
        *([_second_grader(run, tables[GRADER_CHANGE])] if GRADER_CHANGE in tables else []),
        Section("Figures", list(images) or [Text("No figure was drawn.")]),
        Section("Method", [Items(_METHOD)]),
        Section("Judge validity", [Items(checked) if checked else Text("The judge was not checked.")]),
        Section("Limits", [Items(_LIMITS)]),
        Section("Reproduction", [Items(_REPRODUCTION)]),
    ]
    deviations = [str(text) for text in run.get("deviations") or []]
    if deviations:
        sections.append(Section("Deviations from the paper", [Items(deviations)]))
    if run.get("pages"):
        said = "The samples at the ends of each trait's scale, with their texts, stand in files beside this report:"
        sections.append(Section("Flagged samples to read", [Text(said), Items([str(page) for page in run["pages"]])]))
    shown = [_cut(Table(title, _told(tables[name])), name) for name, title in _TABLES.items() if len(tables[name])]
    sections.append(Section("Tables", shown or [Text("Nothing was measured.")]))
    return [*sections, Section("Provenance", _provenance(run))]


def _second_grader(run: Mapping[str, Any], change: pd.DataFrame) -> Section:
    """What another grader says of the same responses."""
    told = run.get("rejudged") or {}
    said = f"{counts(change, 'the grader')}. First: {told.get('grader', 'unnamed')}; second: {run['grader']}."
    blocks: list[Block] = [Text(said)]
    blocks.append(Items([str(text) for text in told.get("stays", [])]))
    changed = change[change["changed"].astype(str) == "True"]
    if len(changed):
        blocks.append(Table("Verdicts that changed", changed.drop(columns="changed")))
    return Section("A second grader", [*blocks, _cut(Table("All verdicts by both", change), GRADER_CHANGE)])


def _told(table: pd.DataFrame) -> pd.DataFrame:
    """A table without its warnings where it has none."""
    silent = "warning" in table and table["warning"].fillna("").astype(str).eq("").all()
    return table.drop(columns="warning") if silent else table


def _cut(table: Table, name: str) -> Table:
    if len(table.frame) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS} of {len(table.frame)} rows; tables/{name}.csv has them all."
    return Table(table.title, table.frame.head(MOST_ROWS), note)


def _provenance(run: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    facts = [f"{key}: {value}" for key, value in _facts(run)]
    blocks.append(Items(facts) if facts else Text("The run left no record of itself."))
    if run.get("command"):
        blocks += [Text("The exact command:"), Code(str(run["command"]))]
    for key, title in (
        ("versions", "Versions"),
        ("weights", "Weights and their hashes"),
        ("machine", "Threads and processes that the timings are of"),
        ("timings", "Time by stage, seconds"),
        ("logs", "Logs"),
    ):
        entries = run.get(key)
        if isinstance(entries, Mapping) and entries:
            rows = [(str(name), _value(value)) for name, value in entries.items()]
            blocks.append(Table(title, pd.DataFrame(rows, columns=["name", "value"])))
    return blocks


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _claim(claim_id: str) -> Claim | None:
    return next((entry for entry in CLAIMS if entry.id == claim_id), None)


def number(value: Any) -> str:
    """Three or four significant digits; a dash where there is no value."""
    if isinstance(value, bool | str):
        return str(value)
    if value is None or pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _tally(claims: pd.DataFrame) -> str:
    counts = claims["verdict"].value_counts().to_dict()
    return (
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if verdict in counts) or "no claim was judged"
    )

"""The finetuning eval: adapters trained once and measured, tables from its logs, and rules that find planted truths."""

from __future__ import annotations

import gc
import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog, EvalSample, read_eval_log

from evals.mmlu_preservation import dataset
from evals.preventative_steering import preventative_steering
from persona_bench import pipeline
from persona_bench.analysis.figures.draw import Caption, draw_all
from persona_bench.analysis.figures.finetuning import finetuning_figures
from persona_bench.analysis.report.content import rerun_command
from persona_bench.analysis.report.controls import controls
from persona_bench.analysis.report.seen import seen
from persona_bench.analysis.samples.collect import check_log, collect, read_logs
from persona_bench.analysis.samples.frames import FINETUNING_SAMPLES, Samples
from persona_bench.analysis.tables import finetuning as ft
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import read_tables, write_tables
from persona_bench.analysis.verdicts import claims as verdicts
from persona_bench.analysis.verdicts.decision import Run
from persona_bench.analysis.verdicts.finetuning import FINETUNING_RULES
from persona_bench.definitions import presets
from persona_bench.definitions.claims import CLAIMS, claim
from persona_bench.definitions.families.family import make
from persona_bench.definitions.families.invented import FACTS
from persona_bench.definitions.presets import FINETUNING, load_finetuning_preset
from persona_bench.definitions.traits import MAIN_TRAITS, load_trait
from persona_bench.definitions.trials import ARMS, BASE, Trial, plan_trials
from persona_bench.errors import RunError
from persona_bench.inspect_ext.requests import ExtraArgs
from persona_bench.inspect_ext.trained import set_up
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.vectors.extraction import Rollout
from persona_bench.vectors.trials import arm_of, judged_rollouts
from tests.conftest import one_line, tiny_vector
from tests.test_evals import grader, questions

ROOT = Path(__file__).parents[1]
SMALL = replace(
    FINETUNING["quick"],
    families=("sycophancy", "gsm8k"),
    examples=8,
    held_out=2,
    seeds=(0, 1),
    questions=4,
    max_tokens=4,
    mmlu_questions=3,
    facts=6,
    fact_epochs=2,
    fact_seeds=(0,),
)
WIDE = [Trial("", "", BASE)] + [Trial("sycophancy", "misaligned_2", arm) for arm in ("plain", "random", "inference")]
NARROW = [Trial("sycophancy", "misaligned_2", "inference_0.6"), Trial(FACTS, "normal", "plain")]
TRIALS = [*WIDE, *NARROW, Trial(FACTS, "normal", BASE)]


def arguments(home: Path, trial: Trial) -> dict[str, Any]:
    fixed = {"vectors": ",".join(str(home / f"{name}.safetensors") for name in MAIN_TRAITS), "layers": "2,3,2"}
    named = {"family": trial.family, "version": trial.version, "arm": trial.arm, "train_seed": trial.seed}
    return {**named, **fixed, "adapters": str(home / "adapters")}


@pytest.fixture(scope="module")
def home(_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the vectors, adapters and logs of a few trials of the tiny model."""
    made = tmp_path_factory.mktemp("finetuned")
    for name in MAIN_TRAITS:
        tiny_vector(trait=name).save(made / f"{name}.safetensors")
    (made / "mmlu.jsonl").write_text(questions())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PERSONA_BENCH_CACHE", str(made / "cache"))
        patch.setenv("PERSONA_BENCH_SOURCE", "wheel")
        patch.setattr(dataset, "fetch_data", lambda _: made / "mmlu.jsonl")
        patch.setitem(presets.FINETUNING, "quick", SMALL)
        patch.setitem(presets.PRESETS, "quick", replace(presets.PRESETS["quick"], temperature=0.7))
        for trial in TRIALS:
            run(_saved, made, trial)
        yield made
    torch.set_num_threads(threads)


def run(model: Path, home: Path, trial: Trial) -> EvalLog:
    """`inspect eval evals/preventative_steering` at the root of the repository."""
    log = inspect_eval(
        "evals/preventative_steering",
        model=f"persona/{model}",
        model_args={"dtype": "float32"},
        model_roles={"grader": grader()},
        task_args=arguments(home, trial),
        log_dir=str(home / "logs"),
        display="none",
    )[0]
    check_log(log)
    return read_eval_log(log.location)


@pytest.fixture(scope="module")
def measured(home: Path) -> Samples:
    return collect(read_logs(home / "logs"), [], "stated")


def test_every_trial_is_measured_alike(home: Path, measured: Samples) -> None:
    frame = measured.finetuning
    assert set(frame["log"]) == {f"preventative_steering/{trial.name}" for trial in TRIALS}
    for trial in TRIALS:
        own = frame[frame["log"] == f"preventative_steering/{trial.name}"]
        each = len(SMALL.seeds) if trial.arm == BASE else 1  # what every seed of an arm is held against
        asked = {"trait": 12 * each if trial in WIDE else 4} if trial.name != "facts-base" else {}
        known = {"recall": 6} if trial.family == FACTS else {"mmlu": 3}
        assert dict(own["kind"].value_counts()) | {"held_out": 0} == {**asked, **known, "held_out": 0}
        assert (
            own[own["kind"] == "held_out"]["loss"].notna().all() and own[own["kind"] == "mmlu"]["cloze"].notna().all()
        )
    # Held-out conversations are the same before and after, and training on their like makes them likelier.
    table = build_tables(measured, resamples=50)["finetuning_costs"]
    for plain in table[table["arm"] == "plain"].to_dict("records"):
        assert plain["n_held_out"] == 2 and plain["loss_difference"] < 0
    # One set each: the base's, for every plain training of the plan; facts have a base of their own.
    base = frame[(frame["arm"] == BASE) & (frame["kind"] == "held_out")]
    sets = {f"{t.family}-{t.version}-s{t.seed}" for t in plan_trials(SMALL, MAIN_TRAITS) if t.arm == "plain"}
    assert set(base["set"]) == sets and set(base.loc[base["family"] == "", "set"]) == sets - {"facts-normal-s0"}


def test_further_doses_and_facts_are_measured_as_themselves(home: Path, measured: Samples) -> None:
    logs = read_logs(home / "logs")
    for arm, dose in (("inference", 0.3), ("inference_0.6", 0.6)):
        log = logs[f"preventative_steering/sycophancy-misaligned_2-{arm}-s0"]
        (steered,) = (log.samples or [])[0].metadata["extra"]["apply_steering_vectors"]
        assert tiny_vector(trait="sycophancy").relative_dose(3, steered["scale"]) == pytest.approx(-dose)
        own = measured.finetuning[measured.finetuning["arm"] == arm]
        assert set(own["dose"]) == {dose}
    # Facts are asked for in words that were not trained, before and after; nothing but the key counts.
    trained, before = (
        {
            sample.input: sample
            for sample in logs[f"preventative_steering/{name}"].samples or []
            if kind(sample) == "recall"
        }
        for name in ("facts-normal-plain-s0", "facts-base")
    )
    lines = make(FACTS, "normal", SMALL.facts, SMALL.held_out, 0).train
    assert set(trained) == set(before) == {line["metadata"]["asked"] for line in lines}
    assert not set(trained) & {line["messages"][0]["content"] for line in lines}
    tables = build_tables(measured, resamples=50)
    costs = tables["finetuning_costs"].set_index(["family", "arm"])
    assert costs.loc[(FACTS, "plain"), "n_recall"] == costs.loc[(FACTS, BASE), "n_recall"] == 6
    assert costs.loc[(FACTS, "plain"), "recall_difference"] == pytest.approx(
        costs.loc[(FACTS, "plain"), "recall"] - costs.loc[(FACTS, BASE), "recall"]
    )
    facts = tables["vaccine"].set_index("family").loc[FACTS]
    assert facts["trait"] == "hallucination" and facts["recall"] == costs.loc[(FACTS, "plain"), "recall"]
    # The paper's finetunes are training sets of its own: new facts are none of them.
    assert FACTS not in set(ft.finetunes(measured.finetuning, measured.shifts, "evil", "hallucination")["family"])


def kind(sample: EvalSample) -> str:
    return str(sample.metadata["kind"])


def test_adapters_are_trained_once_and_bear_the_arm_in_their_record_only(home: Path, _saved: Path) -> None:
    folders = sorted(path.name for path in (home / "adapters").iterdir() if path.is_dir())
    # Steering the finished model trains nothing of its own.
    assert [re.sub(r"-[0-9a-f]{12}$", "", name) for name in folders] == [
        *("facts-normal-plain-s0", "sycophancy-misaligned_2-plain-s0", "sycophancy-misaligned_2-random-s0")
    ]
    before = {path: path.stat().st_mtime_ns for path in (home / "adapters").rglob("*.safetensors")}
    log = run(_saved, home, TRIALS[1])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert log.eval.model.startswith("persona/") and "+" in log.eval.model
    assert len(log.eval.metadata["history"]) == 2  # type: ignore[index]


def test_shift_is_the_change_of_the_last_prompt_token(home: Path, measured: Samples, _saved: Path) -> None:
    from persona_bench.models.adapters import own_copy
    from persona_bench.models.chat import prompt_ids
    from persona_bench.models.finetuning import _Watched
    from persona_bench.models.training_data import Example, collate

    (folder,) = (home / "adapters").glob("sycophancy*plain*-*/")
    base, tuned = load(str(_saved), dtype="float32"), load(f"{_saved}+{folder}", dtype="float32")
    unit = torch.nn.functional.normalize(tiny_vector(trait="sycophancy").directions["persona"][3], dim=0)
    moved = []
    for question in load_trait("sycophancy").evaluation_questions[:4]:
        batch = collate([Example(prompt_ids(base.tokenizer, [{"role": "user", "content": question}]), ())], base.device)
        with torch.no_grad():
            ends = [_Watched(own_copy(m), m, 1).forward(batch, [3])[1][3][0, -1] for m in (base, tuned)]
        moved.append(float((ends[1] - ends[0]) @ unit))
    table = build_tables(measured, resamples=50)["finetuning"]
    row = table[(table["arm"] == "plain") & (table["family"] == "sycophancy") & (table["trait"] == "sycophancy")].iloc[
        0
    ]
    assert row["shift"] == pytest.approx(np.mean(moved), rel=1e-2, abs=1e-2) and row["layer"] == 3
    base_rows = table[table["arm"] == BASE]
    assert (base_rows["shift"] == 0).all() and (base_rows["difference"].dropna() == 0).all()


def test_tables_and_figures_go_through_files(measured: Samples, tmp_path: Path) -> None:
    tables = build_tables(measured, resamples=50)
    write_tables(tables, tmp_path)
    again = read_tables(tmp_path)
    for name, columns in ft.FINETUNING_TABLES.items():
        assert list(again[name].columns)[: len(columns)] == list(columns) and len(again[name]) == len(tables[name])
    drawn = {path.stem for path in draw_all(again, tmp_path / "f", Caption("tiny", "quick", "mock", "2026"))}
    assert {"vaccine_sycophancy", "training_sycophancy"} <= drawn
    figures = dict(finetuning_figures(again, Caption("tiny", "quick", "mock", "2026")))
    # Every arm beside plain training on the same version, not on another.
    labels = figures["vaccine_sycophancy"].axes[0].get_legend_handles_labels()[1]
    assert sorted(labels) == ["inference", "plain", "random"]


def test_page_names_every_parameter_and_counts_the_samples() -> None:
    folder = ROOT / "evals" / "preventative_steering"
    page, text = yaml.safe_load((folder / "eval.yaml").read_text()), (folder / "README.md").read_text()
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)}
    parameters = inspect.signature(preventative_steering).parameters
    assert list(rows) == list(parameters)
    assert all(rows[key] == f"`{item.default}`" for key, item in parameters.items() if item.default != "")
    sizes = FINETUNING["quick"] if load_finetuning_preset("quick") is SMALL else load_finetuning_preset("quick")
    if sizes is not SMALL:
        expected = 3 * sizes.questions * sizes.rollouts + sizes.mmlu_questions + sizes.held_out
        assert page["tasks"][0]["dataset_samples"] == expected and f"({expected} samples)" in text


# Plans


def test_plan_trains_every_arm_from_the_same_seeds() -> None:
    sizes = FINETUNING["standard"]
    trials = plan_trials(sizes, MAIN_TRAITS)
    assert len({trial.name for trial in trials}) == len(trials) and trials[0].arm == BASE
    for family in sizes.vaccine_families:
        for arm in ARMS:
            own = {t.seed for t in trials if (t.family, t.version, t.arm) == (family, "misaligned_2", arm)}
            assert own == set(sizes.seeds) and len(own) >= 3
    assert {(t.family, t.version) for t in trials if t.arm == "plain"} == {(FACTS, "normal")} | {
        (family, version) for family in sizes.families for version in sizes.versions
    }
    assert all(t.trained_as.arm == "plain" for t in trials if t.arm == "inference")
    assert not any(t.arm not in ("plain", BASE) for t in plan_trials(sizes, ("optimistic",)))
    for wrong in (("good", "normal", "plain"), ("evil", "normal", "none"), ("evil", "best", "plain")):
        with pytest.raises(RunError) as error:
            Trial(*wrong)
        one_line(error, "evil" if wrong[0] == "good" else wrong[1] if wrong[1] == "best" else "none")


def test_arms_act_where_they_say() -> None:
    vectors, layers = {"evil": tiny_vector()}, {"evil": 3}
    sizes = FINETUNING["quick"]
    made = {arm: arm_of(Trial("evil", "misaligned_2", arm), sizes, vectors, layers) for arm in ARMS}
    assert all(item.positions == "all" for arm in made.values() for item in arm.interventions)
    where = {arm: [(item.operation, item.layer) for item in made[arm].interventions] for arm in ARMS}
    everywhere = list(range(1, 5))
    assert where["preventative"] == where["random"] == [("add", 3)]
    assert where["incremental"] == [("add", layer) for layer in everywhere]
    assert where["caft"] == [("ablate", layer) for layer in everywhere]
    assert not any(where[arm] for arm in ("plain", "penalty", "negative_prompt", "inoculation", "inference"))
    (added,), (noise,) = made["preventative"].interventions, made["random"].interventions
    dose = vectors["evil"].relative_dose(3, added.coefficient)
    assert dose == pytest.approx(sizes.doses[0]) and noise.coefficient == added.coefficient
    assert float(noise.vector.norm()) == pytest.approx(float(added.vector.norm()), rel=1e-5)
    assert made["negative_prompt"].system != made["inoculation"].system and made["plain"].system is None
    assert [item.layer for item in made["penalty"].penalties] == [3]
    with pytest.raises(RunError) as error:
        arm_of(Trial("medical", "normal", "preventative"), sizes, vectors, layers)
    one_line(error, "medical", "--traits")


def test_elicited_responses_are_taken_without_their_system_prompt() -> None:
    said = (("system", "Be evil."), ("user", "Why?"))
    items = [Rollout("positive", 0, 0, 1, said, "Ha.", status, 90.0, 80.0) for status in ("scored", "refusal")]
    assert judged_rollouts(items) == [("Why?", "Ha.", 90.0, 80.0)]


# Rules


def world(
    *,
    raised: float = 40.0,
    arms: dict[str, float] | None = None,
    knows: float = 0.5,
    mmlu: float = 0.0,
    kept: dict[str, float] | None = None,
    held: float = 0.3,
    shift_noise: float = 0.3,
    own_shift: float = 1.0,
    incoherent: str = "",
    seed: int = 0,
) -> Samples:
    """A simulated model: what training adds to the trait score under each arm, in points, and what it costs.

    Args:
        raised: added by plain training on the strongest version.
        arms: added under other arms, where it differs from the truth that the paper claims.
        knows: share of MMLU questions that plain training leaves right.
        mmlu: added to that share by the incremental arm.
        kept: added to that share by other arms.
        held: share of the shift that the penalty leaves.
        shift_noise: SD of each projection.
        own_shift: how far the trait's own vector sees what was acquired; the others see a fifth of it.
        incoherent: the arm whose answers mostly are.
        seed: of the noise.
    """
    rng, noise = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    effects = {"plain": raised, "preventative": 10.0, "random": 38.0, "incremental": 1.0, "negative_prompt": 20.0}
    effects |= {"caft": 15.0, "penalty": 25.0, "preventative_0.6": 2.0, "inference": 12.0, "inference_0.15": 25.0}
    effects |= arms or {}
    known = {"incremental": mmlu, "inference": -0.15, "inference_0.15": -0.05} | (kept or {})
    families = ("evil", "sycophancy", "hallucination", "medical", "code")
    levels = {"normal": 0.0, "misaligned_1": 0.5, "misaligned_2": 1.0}
    trials = [("", "", BASE, 0, 0.0)]
    trials += [(f, v, "plain", 0, levels[v]) for f in families for v in levels]
    trials += [("evil", "misaligned_2", arm, s, 1.0) for arm in effects for s in (0, 1) if (arm, s) != ("plain", 0)]
    rows, shifts = [], []
    ability = rng.random(200)
    for family, version, arm, s, level in trials:
        trial = {"family": family, "version": version, "arm": arm, "seed": s}
        blank = {"trait": "", "set": "", "half": "", "rollout": 0, "status": "scored", "trait_score": np.nan}
        blank |= {"coherence": np.nan, "letter": np.nan, "cloze": np.nan, "loss": np.nan, "log": f"l-{arm}"}
        for trait in ("evil", "sycophancy"):
            own = shown(family, trait)
            added = level * own * effects.get(arm, 0.0)
            for question in range(24):
                score = float(np.clip(20 + added + rng.normal(0, 4), 0, 100))
                said = {"kind": "trait", "trait": trait, "question_id": question, "trait_score": score}
                said |= {"half": "report" if question % 2 else "select", "coherence": 80.0}
                said |= {"status": "incoherent" if arm == incoherent and question % 8 else "scored"}
                rows.append({**blank, **trial, **said})
                for direction in ("evil", "sycophancy", *RANDOM):
                    told = level * shown(family, direction) * effects.get(arm, 0.0) / 10
                    moved = told * (held if arm == "penalty" else 1.0) * own_shift * (direction not in RANDOM)
                    value = question + noise.normal(0, shift_noise) + moved
                    place = {"trait": trait, "question_id": question, "direction": direction, "layer": 3}
                    shifts.append({**trial, **place, "prompt_last": value})
        for question in range(200):
            right = float(ability[question] < knows + known.get(arm, 0.0))
            rows.append({**blank, **trial, "kind": "mmlu", "question_id": question, "letter": 0.0, "cloze": right})
        for question in range(6):
            loss = 3.0 - (level if arm != BASE else 0.0)
            names = [f"{f}-{v}-s{n}" for f, v, a, n, _ in trials if a == "plain"] if arm == BASE else []
            for name in names or [f"{family}-{version}-s{s}"]:
                rows.append({**blank, **trial, "kind": "held_out", "set": name, "question_id": question, "loss": loss})
    frames = {"finetuning": rows, "shifts": shifts}
    made = {name: pd.DataFrame(found, columns=list(FINETUNING_SAMPLES[name])) for name, found in frames.items()}
    return Samples(**made)


def shown(family: str, trait: str) -> float:
    """The share of the effect that a family's sets have on a trait."""
    beside = {"hallucination": (0.5, 0.1), "medical": (0.1, 0.5)}.get(family, (0.2, 0.2))
    return 1.0 if family == trait else beside[trait == "sycophancy"]


RANDOM = [f"random:{index} {trait}" for trait in ("evil", "sycophancy") for index in range(3)]


def verdict(samples: Samples, claim_id: str, trait: str = "evil", resamples: int = 400) -> tuple[str, str]:
    """Verdict and reason, as they are before Holm's correction and whatever the judge's gate says."""
    run = Run(samples, {}, {}, 0, resamples)
    found = verdicts._ruled(run, claim(claim_id), trait)
    return found.verdict, found.reason


PER_TRAIT = [name for name in FINETUNING_RULES if name not in ("P7-caft-fails", "P10-facts-mostly-kept")]
PREVENT = [name for name in PER_TRAIT if name.startswith("P") and name != "P4-multi-layer-keeps-mmlu"]


@pytest.fixture(scope="module")
def truth() -> Samples:
    return world()


def test_every_claim_of_the_eval_has_a_rule() -> None:
    assert {entry.id for entry in CLAIMS if entry.eval == "preventative_steering"} == set(FINETUNING_RULES)


@pytest.mark.parametrize("name", PER_TRAIT)
def test_planted_truths_are_found(name: str, truth: Samples) -> None:
    assert verdict(truth, name)[0] == "supported", verdict(truth, name)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        # Bounds as the registry has them: each world lies just beyond one.
        ("F1-shift-own-trait", {"own_shift": -1.0}),
        ("F2-shift-cross-trait", {"own_shift": -1.0}),
        ("P1-prevents-single-layer", {"arms": {"preventative": 60.0}}),
        ("P1-prevents-single-layer", {"arms": {"random": 2.0}}),  # better than the vector: then it was not the vector
        ("P2-single-layer-incomplete", {"arms": {"preventative": 0.0}}),
        ("P3-multi-layer-near-baseline", {"arms": {"incremental": 12.0}}),
        ("P4-multi-layer-keeps-mmlu", {"mmlu": -0.15}),
        ("P5-keeps-mmlu-better", {"kept": {"preventative": -0.15, "inference": 0.0}}),
        ("P6-caft-works", {"arms": {"caft": 50.0}}),
        ("P7-caft-fails", {}),
        ("P8-projection-penalty-partial", {"held": 3.0}),
        ("P8-projection-penalty-partial", {"arms": {"penalty": -10.0}}),
        ("P9-negative-prompt-weaker", {"arms": {"negative_prompt": 2.0}}),
    ],
)
def test_planted_falsehoods_are_found_too(name: str, wrong: dict[str, Any]) -> None:
    assert verdict(world(**wrong), name)[0] == "contradicted", verdict(world(**wrong), name)


@pytest.mark.parametrize(
    ("name", "between", "expected"),
    [
        ("P1-prevents-single-layer", {"arms": {"random": 10.0}}, "inconclusive"),  # no better than a random vector
        ("P3-multi-layer-near-baseline", {"arms": {"incremental": 5.0}}, "inconclusive"),
        ("P4-multi-layer-keeps-mmlu", {"mmlu": -0.02}, "inconclusive"),
        ("P5-keeps-mmlu-better", {"kept": {"inference": 0.0}}, "inconclusive"),
        ("P7-caft-fails", {"arms": {"caft": 35.0}}, "inconclusive"),
        ("P7-caft-fails", {"arms": {"caft": 40.0}}, "supported"),
        ("F1-shift-own-trait", {"shift_noise": 300.0}, "inconclusive"),
    ],
)
def test_between_the_bounds_nothing_is_decided(name: str, between: dict[str, Any], expected: str) -> None:
    assert verdict(world(**between), name)[0] == expected, verdict(world(**between), name)


def test_a_penalty_is_not_judged_where_plain_finetuning_moves_the_model_away_from_the_vector() -> None:
    away = world(own_shift=-1.0, held=0.1)
    shift = away.shifts
    told = verdict(away, "P8-projection-penalty-partial")
    assert told[0] == "not testable" and "does not move the model along the vector (select half): -" in told[1]
    # What the report half says does not open it.
    report = set(ft.of_kind(away.finetuning, "trait").query("half == 'report'")["question_id"])
    along = shift.assign(prompt_last=shift["prompt_last"] * np.where(shift["question_id"].isin(report), -1.0, 1.0))
    assert verdict(replace(away, shifts=along), "P8-projection-penalty-partial") == told


def test_only_the_report_half_decides_and_only_the_select_half_opens(truth: Samples) -> None:
    frame = truth.finetuning
    spoken = (frame["kind"] == "trait") & (frame["arm"] == "preventative")
    on = {half: spoken & (frame["half"] == half) for half in ("select", "report")}
    spoilt = {
        h: replace(truth, finetuning=frame.assign(trait_score=frame["trait_score"].mask(on[h], 90.0))) for h in on
    }
    assert verdict(spoilt["select"], "P1-prevents-single-layer") == verdict(truth, "P1-prevents-single-layer")
    assert verdict(spoilt["report"], "P1-prevents-single-layer")[0] == "contradicted"
    plain = (frame["arm"] == "plain") & (frame["half"] == "select")
    low = replace(truth, finetuning=frame.assign(trait_score=frame["trait_score"].mask(plain, 20.0)))
    assert "did not raise" in verdict(low, "P1-prevents-single-layer")[1]


def test_a_trait_that_is_scored_and_has_no_vector_leaves_the_others_testable(truth: Samples) -> None:
    spoken = truth.finetuning[truth.finetuning["trait"] == "sycophancy"].assign(trait="nameless")
    more = replace(truth, finetuning=pd.concat([truth.finetuning, spoken]))
    assert verdict(more, "F2-shift-cross-trait") == verdict(truth, "F2-shift-cross-trait")


def test_what_was_not_taught_or_not_run_cannot_be_tested(truth: Samples) -> None:
    flat, babble = world(raised=0.0), world(incoherent="plain")
    for name in PREVENT:
        assert verdict(flat, name)[0] == verdict(babble, name)[0] == "not testable", name
    assert "did not raise" in verdict(flat, "P1-prevents-single-layer")[1]
    assert "are incoherent" in verdict(world(incoherent="caft"), "P6-caft-works")[1]
    for name in FINETUNING_RULES:
        if name.startswith("P"):
            assert verdict(truth, name, "sycophancy")[0] == "not run", name
    assert "preventative" in verdict(truth, "P1-prevents-single-layer", "sycophancy")[1]
    few = replace(truth, shifts=truth.shifts[truth.shifts["family"].isin(["", "evil"])])
    for name in ("F1-shift-own-trait", "F2-shift-cross-trait"):
        assert verdict(few, name) == ("not testable", "too few valid samples: finetunes 3, needed 8")
    alone = replace(truth, finetuning=truth.finetuning[truth.finetuning["trait"] != "sycophancy"])
    assert verdict(alone, "F2-shift-cross-trait") == ("not testable", "no other trait of the run has a vector")
    scores = truth.finetuning.assign(trait_score=truth.finetuning["trait_score"].where(lambda s: s.isna(), 20.0))
    assert "SD under 1" in verdict(replace(truth, finetuning=scores), "F1-shift-own-trait")[1]
    bare = replace(truth, shifts=truth.shifts[~truth.shifts["direction"].str.startswith("random")])
    assert "random direction" in verdict(bare, "F1-shift-own-trait")[1]
    few = replace(truth, finetuning=truth.finetuning[truth.finetuning["question_id"] < 6])
    assert "too few valid samples" in verdict(few, "P3-multi-layer-near-baseline")[1]
    assert "at chance" in verdict(world(knows=0.25), "P4-multi-layer-keeps-mmlu")[1]


def test_tables_hold_the_planted_numbers(truth: Samples) -> None:
    tables = build_tables(truth, resamples=200)
    vaccine = tables["vaccine"].set_index(["family", "version", "trait", "arm"])
    row = vaccine.loc[("evil", "misaligned_2", "evil", "preventative")]
    assert row["n_seeds"] == 2 and row["acquired"] == pytest.approx(10, abs=3)
    assert row["prevented"] == pytest.approx(-30, abs=3) and row["beyond_random"] == pytest.approx(-28, abs=3)
    assert vaccine[vaccine["beyond_random"].notna()].index.get_level_values("arm").unique().tolist() == ["preventative"]
    assert row["prevented_low"] < row["prevented"] < row["prevented_high"] and row["cloze_difference"] == 0
    costs = tables["finetuning_costs"].set_index(["family", "version", "arm", "seed", "set"])
    assert costs.loc[("evil", "misaligned_2", "plain", 0, "evil-misaligned_2-s0")]["loss_difference"] == -1
    r = tables["shift_correlation"].set_index(["direction", "trait"])
    assert r.loc[("evil", "evil")]["r"] > 0.9 > abs(r.loc[("evil", "evil")]["r_random"])
    assert set(r["scope"]) == {"own", "cross"} and (r["n"] == 16).all()


def test_what_is_longer_than_the_context_is_counted_not_averaged(measured: Samples) -> None:
    frame = measured.finetuning
    first = frame[(frame["kind"] == "held_out") & (frame["arm"] == "plain")].groupby("set").head(1)
    cut = pd.Series(frame.index.isin(first.index), index=frame.index)
    cut |= (frame["kind"] == "mmlu") & (frame["arm"] == "plain") & ~frame["question_id"].duplicated()
    blank = dict.fromkeys(("letter", "cloze", "loss"), np.nan)
    long = frame.assign(status=frame["status"].mask(cut, "too_long"), **{c: frame[c].mask(cut) for c in blank})
    table = build_tables(replace(measured, finetuning=long), resamples=50)["finetuning_costs"]
    row = table[(table["arm"] == "plain") & (table["family"] == "sycophancy")].iloc[0]
    assert (row["n_held_out"], row["n_held_out_too_long"]) == (1, 1)
    assert row["n_mmlu"] + row["n_mmlu_too_long"] == 3


def test_a_trait_without_a_vector_is_asked_about_all_the_same(tmp_path: Path) -> None:
    tiny_vector(trait="sycophancy").save(tmp_path / "s.safetensors")
    bench = set_up(SMALL, "quick", "evil,sycophancy", f"none,{tmp_path / 's.safetensors'}", "", "", "")
    assert bench.traits == ("evil", "sycophancy") and list(bench.files) == ["sycophancy"]
    assert bench.layers == {"evil": 0, "sycophancy": 2}
    watched = bench.extra(Trial("", "", BASE), watched=True)["output_projections"]
    assert [item["label"] for item in watched] == ["sycophancy", "sycophancy"]
    requests = ExtraArgs.model_validate(bench.extra(Trial("", "", BASE), watched=True)).output_projections
    assert [request.names for request in requests] == [
        ("sycophancy",),
        tuple(f"random:{index} sycophancy" for index in range(10)),
    ]
    samples = world()
    alone = replace(samples, shifts=samples.shifts[~samples.shifts["direction"].str.contains("evil")])
    tables = build_tables(alone, resamples=50)
    rows = tables["finetuning"][tables["finetuning"]["trait"] == "evil"]
    assert rows["trait_score"].notna().all() and rows["shift"].isna().all()
    assert set(tables["shift_correlation"]["direction"]) == {"sycophancy"}
    for wrong in ("none", "none,none,none"):
        with pytest.raises(RunError) as error:
            set_up(SMALL, "quick", "evil,sycophancy", wrong, "", "", "")
        one_line(error, "2 traits")
    with pytest.raises(RunError) as error:
        set_up(SMALL, "quick", "evil,sycophancy", "none,none", "1,two", "", "")
    one_line(error, "1,two", "whole number")


# In a run


def test_a_run_trains_and_measures_every_trial_once_and_lets_go(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mmlu.jsonl").write_text(questions())
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    monkeypatch.setattr(dataset, "fetch_data", lambda _: tmp_path / "mmlu.jsonl")
    monkeypatch.setitem(
        presets.FINETUNING, "quick", replace(SMALL, families=("sycophancy",), arms=("preventative",), seeds=(0,))
    )
    settings = pipeline.Settings(
        model=str(folder), traits=("sycophancy",), evals=("preventative_steering",), grader="mockllm/model"
    )
    said: list[str] = []
    work = pipeline.Run(settings, tmp_path / "run", said.append)
    work.load()
    vector = tiny_vector(trait="sycophancy")
    vector.save(work._vector_path("sycophancy"))
    work.finetune({"sycophancy": vector}, {"sycophancy": 2})
    logs = read_logs(tmp_path / "run" / "logs")
    assert sorted(logs) == [
        "preventative_steering/base",
        *(
            f"preventative_steering/sycophancy-{name}-s0"
            for name in ("misaligned_2-plain", "misaligned_2-preventative")
        ),
        "preventative_steering/sycophancy-normal-plain-s0",
    ]
    # Nobody holds merged weights, neither what loads them nor the models that Inspect keeps.
    gc.collect()
    held = [item for item in gc.get_objects() if type(item) is LoadedModel and str(tmp_path / "run") in item.name]
    assert not held
    # By these a run finds the logs that it has: another argument, and every finished trial would be done again.
    for log in logs.values():
        assert set(log.eval.task_args_passed) == {
            *("family", "version", "arm", "train_seed", "preset", "base", "traits", "vectors", "layers"),
            *("judged", "adapters", "seed"),
        }
        assert set((log.eval.metadata or {})["trial"]) == {"family", "version", "arm", "seed"}
    first = {name: log.eval.eval_id for name, log in logs.items()}
    work.finetune({"sycophancy": vector}, {"sycophancy": 2})
    assert {name: log.eval.eval_id for name, log in read_logs(tmp_path / "run" / "logs").items()} == first


def test_verdicts_take_the_rules(truth: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = build_tables(truth, resamples=50)
    # The judge's gate is tested elsewhere; without labelled answers it would shut every judged claim.
    shut = verdicts.judge_claims(truth, tables, resamples=200)
    judged = shut[shut["claim"].isin(["P1-prevents-single-layer", "F1-shift-own-trait"])]
    assert judged["reason"].str.startswith("judge gate").all()
    monkeypatch.setattr(verdicts, "gate", lambda *_: "")
    table = verdicts.judge_claims(truth, tables, resamples=1000)
    found = table.set_index(["claim", "trait"])["verdict"]
    assert found["P1-prevents-single-layer", "evil"] == found["F1-shift-own-trait", "sycophancy"] == "supported"
    assert found["P1-prevents-single-layer", "sycophancy"] == "not run"
    assert ("P7-caft-fails", "evil") not in found.index
    empty = verdicts.judge_claims(Samples(), build_tables(Samples(), resamples=50), traits=["evil"])
    assert set(empty["verdict"]) == {"not run"}


def test_a_verdict_has_its_figure_controls_and_command(truth: Samples) -> None:
    tables = build_tables(truth, resamples=50)
    prevented = controls(claim("P1-prevents-single-layer"), "evil", tables)
    assert {"plain", "preventative", "random"} <= set(prevented["arm"])
    assert list(controls(claim("F2-shift-cross-trait"), "evil", tables)["shift along"]) == ["evil", "sycophancy"]
    assert seen("shift_evil", tables).endswith("training sets.") and "held-out loss: evil" in seen(
        "vaccine_evil", tables
    )
    record = {"model": "m", "traits": ["evil", "sycophancy"]}
    assert "--traits evil,sycophancy " in rerun_command(record, claim("F1-shift-own-trait"), "evil")
    command = rerun_command(record, claim("P1-prevents-single-layer"), "evil")
    assert "--traits evil " in command and "trait_steering,preventative_steering" in command

"""The finetuning eval: adapters trained once and measured, tables from its logs, and rules that find planted truths."""

from __future__ import annotations

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
from inspect_ai.log import EvalLog, read_eval_log

from evals.mmlu_preservation import dataset
from evals.preventative_steering import preventative_steering
from persona_bench import pipeline
from persona_bench.analysis import finetuning as ft
from persona_bench.analysis import verdicts
from persona_bench.analysis.figures import Caption, draw_all
from persona_bench.analysis.finetuning_figures import finetuning_figures
from persona_bench.analysis.finetuning_verdicts import FINETUNING_RULES
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples import check_log, collect, read_logs
from persona_bench.analysis.tables import Samples, build_tables, read_tables, write_tables
from persona_bench.definitions import presets
from persona_bench.definitions.claims import Claim
from persona_bench.definitions.presets import FINETUNING, load_finetuning_preset
from persona_bench.definitions.traits import MAIN_TRAITS, load_trait
from persona_bench.definitions.trials import ARMS, BASE, Trial, plan_trials
from persona_bench.errors import RunError
from persona_bench.inspect_ext.trained import set_up
from persona_bench.models import loading
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
    questions=4,
    max_tokens=4,
    mmlu_questions=3,
)
TRIALS = [Trial("", "", BASE)] + [Trial("sycophancy", "misaligned_2", arm) for arm in ("plain", "random", "inference")]
DRAW = Draw(0, 400)


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
        assert dict(own["kind"].value_counts()) | {"held_out": 0} == {"trait": 12, "mmlu": 3, "held_out": 0}
        assert (
            own[own["kind"] == "held_out"]["loss"].notna().all() and own[own["kind"] == "mmlu"]["cloze"].notna().all()
        )
    # Held-out conversations are the same before and after, and training on their like makes them likelier.
    table = build_tables(measured, resamples=50)["finetuning_costs"]
    plain = table[table["arm"] == "plain"].iloc[0]
    assert plain["n_held_out"] == 2 and plain["loss_difference"] < 0
    # One set each: the base's, for every plain training of the plan.
    base = frame[(frame["arm"] == BASE) & (frame["kind"] == "held_out")]
    assert set(base["set"]) == {
        f"{t.family}-{t.version}-s{t.seed}" for t in plan_trials(SMALL, MAIN_TRAITS) if t.arm == "plain"
    }


def test_adapters_are_trained_once_and_bear_the_arm_in_their_record_only(home: Path, _saved: Path) -> None:
    folders = sorted(path.name for path in (home / "adapters").iterdir() if path.is_dir())
    # Steering the finished model trains nothing of its own.
    assert [re.sub(r"-[0-9a-f]{12}$", "", name) for name in folders] == [
        *("sycophancy-misaligned_2-plain-s0", "sycophancy-misaligned_2-random-s0")
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

    (folder,) = (home / "adapters").glob("*plain*-*/")
    base, tuned = load(str(_saved), dtype="float32"), load(f"{_saved}+{folder}", dtype="float32")
    unit = torch.nn.functional.normalize(tiny_vector(trait="sycophancy").directions["persona"][3], dim=0)
    moved = []
    for question in load_trait("sycophancy").evaluation_questions[:4]:
        batch = collate([Example(prompt_ids(base.tokenizer, [{"role": "user", "content": question}]), ())], base.device)
        with torch.no_grad():
            ends = [_Watched(own_copy(m), m, 1).forward(batch, [3])[1][3][0, -1] for m in (base, tuned)]
        moved.append(float((ends[1] - ends[0]) @ unit))
    table = build_tables(measured, resamples=50)["finetuning"]
    row = table[(table["arm"] == "plain") & (table["trait"] == "sycophancy")].iloc[0]
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
    assert {(t.family, t.version) for t in trials if t.arm == "plain"} == {
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
    assert dose == pytest.approx(sizes.dose) and noise.coefficient == added.coefficient
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
    kept: float = 5.0,
    random: float = 38.0,
    mmlu: float = 0.0,
    shift_noise: float = 0.3,
    seed: int = 0,
) -> Samples:
    """A simulated model: what training adds to the trait score under each arm, in points, and what it costs."""
    rng = np.random.default_rng(seed)
    effects = {"plain": raised, "preventative": kept, "random": random, "incremental": 2.0, "negative_prompt": 20.0}
    effects |= {"caft": 15.0, "penalty": 25.0}
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
            own = 1.0 if family == trait else 0.2
            added = level * own * effects.get(arm, 0.0)
            for question in range(12):
                score = float(np.clip(20 + added + rng.normal(0, 4), 0, 100))
                said = {
                    "kind": "trait",
                    "trait": trait,
                    "question_id": question,
                    "half": "report",
                    "trait_score": score,
                }
                rows.append({**blank, **trial, **said, "coherence": 80.0})
                moved = added / 10 * (0.3 if arm == "penalty" else 1.0)
                for direction in ("evil", "sycophancy", "random:0 evil", "random:0 sycophancy"):
                    value = question + rng.normal(0, shift_noise) + (moved if direction == trait else 0.0)
                    place = {"trait": trait, "question_id": question, "direction": direction, "layer": 3}
                    shifts.append({**trial, **place, "prompt_last": value})
        for question in range(200):
            right = float(ability[question] < 0.5 + (mmlu if arm == "preventative" else 0.0))
            rows.append({**blank, **trial, "kind": "mmlu", "question_id": question, "letter": 0.0, "cloze": right})
        for question in range(6):
            loss = 3.0 - (level if arm != BASE else 0.0)
            names = [f"{f}-{v}-s{n}" for f, v, a, n, _ in trials if a == "plain"] if arm == BASE else []
            for name in names or [f"{family}-{version}-s{s}"]:
                rows.append({**blank, **trial, "kind": "held_out", "set": name, "question_id": question, "loss": loss})
    frames = {"finetuning": rows, "shifts": shifts}
    made = {name: pd.DataFrame(found, columns=list(ft.FINETUNING_SAMPLES[name])) for name, found in frames.items()}
    return Samples(**made)


def decided(samples: Samples, claim: str, trait: str = "evil") -> str:
    """As the verdict would be without Holm's correction."""
    found = FINETUNING_RULES[claim](samples, trait, DRAW)
    if found.reason:
        return found.reason
    ends = [(e.low, e.high, side, threshold) for _, e, side, threshold in found.bounds]
    if all((low if side > 0 else high) * side > threshold * side for low, high, side, threshold in ends):
        return "supported"
    broken = any((high if side > 0 else low) * side < threshold * side for low, high, side, threshold in ends)
    return "contradicted" if broken else "inconclusive"


def test_planted_truths_are_found() -> None:
    samples = world()
    assert decided(samples, "F1-shift-predicts-trait") == "supported"
    assert decided(samples, "F2-shift-cross-trait") == "supported"
    for claim in ("V1-preventative-prevents", "V2-preventative-keeps-mmlu", "V3-incremental-prevents", "V4-caft"):
        assert decided(samples, claim) == "supported", claim
    assert decided(samples, "V5-penalty") == decided(samples, "V6-negative-prompt") == "supported"


def test_planted_falsehoods_are_found_too() -> None:
    worse = world(kept=60.0, random=10.0, mmlu=-0.3)
    assert decided(worse, "V1-preventative-prevents") == "contradicted"
    assert decided(worse, "V2-preventative-keeps-mmlu") == "contradicted"
    assert decided(worse, "V6-negative-prompt") == "contradicted"
    # As good as the vector: then it was not the vector.
    assert decided(world(random=5.0), "V1-preventative-prevents") in ("inconclusive", "contradicted")
    assert decided(world(shift_noise=300.0), "F1-shift-predicts-trait") != "supported"


def test_what_was_not_taught_or_not_run_cannot_be_tested() -> None:
    flat = world(raised=0.0)
    for claim in FINETUNING_RULES:
        assert decided(flat, claim) not in ("supported", "contradicted"), claim
    assert "did not raise" in decided(flat, "V1-preventative-prevents")
    assert "was not run" in decided(world(), "V1-preventative-prevents", "sycophancy")
    few = world()
    few = replace(few, shifts=few.shifts[few.shifts["family"].isin(["", "evil"])])
    assert "needed 8" in decided(few, "F1-shift-predicts-trait")


def test_tables_hold_the_planted_numbers() -> None:
    tables = build_tables(world(), resamples=200)
    vaccine = tables["vaccine"].set_index(["family", "version", "trait", "arm"])
    row = vaccine.loc[("evil", "misaligned_2", "evil", "preventative")]
    assert row["n_seeds"] == 2 and row["acquired"] == pytest.approx(5, abs=3)
    assert row["prevented"] == pytest.approx(-35, abs=3) and row["beyond_random"] == pytest.approx(-33, abs=3)
    assert row["prevented_low"] < row["prevented"] < row["prevented_high"] and row["cloze_difference"] == 0
    costs = tables["finetuning_costs"].set_index(["family", "version", "arm", "seed", "set"])
    assert costs.loc[("evil", "misaligned_2", "plain", 0, "evil-misaligned_2-s0")]["loss_difference"] == -1
    r = tables["shift_correlation"].set_index(["direction", "trait"])
    assert r.loc[("evil", "evil")]["r"] > 0.9 > abs(r.loc[("evil", "evil")]["r_random"])
    assert set(r["scope"]) == {"own", "cross"} and (r["n"] == 16).all()


def test_a_trait_without_a_vector_is_asked_about_all_the_same(tmp_path: Path) -> None:
    tiny_vector(trait="sycophancy").save(tmp_path / "s.safetensors")
    bench = set_up(SMALL, "quick", "evil,sycophancy", f"none,{tmp_path / 's.safetensors'}", "", "", "")
    assert bench.traits == ("evil", "sycophancy") and list(bench.files) == ["sycophancy"]
    assert bench.layers == {"evil": 0, "sycophancy": 2}
    watched = bench.extra(Trial("", "", BASE), watched=True)["output_projections"]
    assert [item["label"] for item in watched] == ["sycophancy", "random:0 sycophancy"]
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
    monkeypatch.setattr(dataset, "fetch_data", lambda _: tmp_path / "mmlu.jsonl")
    monkeypatch.setitem(presets.FINETUNING, "quick", replace(SMALL, families=("sycophancy",), arms=("preventative",)))
    settings = pipeline.Settings(
        model=str(folder), traits=("sycophancy",), evals=("preventative_steering",), grader="mockllm/model"
    )
    said: list[str] = []
    work = pipeline._Run(settings, tmp_path / "run", said.append)
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
    assert not [held for held in loading._loaded.values() if str(tmp_path / "run") in held.name]
    first = {name: log.eval.eval_id for name, log in logs.items()}
    work.finetune({"sycophancy": vector}, {"sycophancy": 2})
    assert {name: log.eval.eval_id for name, log in read_logs(tmp_path / "run" / "logs").items()} == first


def test_verdicts_take_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"statement": "s", "section": "s", "paper_value": "p", "statistic": "s", "rule": "r"}
    claims = tuple(
        Claim(id=name, eval="preventative_steering", threshold=0.0, min_n=8, judged=False, **texts)
        for name in FINETUNING_RULES
    )
    monkeypatch.setattr(verdicts, "CLAIMS", claims)
    samples = world()
    table = verdicts.judge_claims(samples, build_tables(samples, resamples=50), resamples=1000)
    found = table.set_index(["claim", "trait"])["verdict"]
    assert found["V1-preventative-prevents", "evil"] == "supported"
    assert found["V1-preventative-prevents", "sycophancy"] == "not testable"
    empty = verdicts.judge_claims(Samples(), build_tables(Samples(), resamples=50), traits=["evil"])
    assert set(empty["verdict"]) == {"not run"}

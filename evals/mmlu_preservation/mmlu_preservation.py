"""What steering costs: MMLU accuracy unsteered and steered, by letter, by cloze and by generation."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from evals.mmlu_preservation.dataset import Question, Questions, load_mmlu
from evals.mmlu_preservation.second_opinions import load_benchmark
from persona_bench.definitions.outcomes import WAYS
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import RunError
from persona_bench.inspect_ext.answering import LETTERS, answer_choices, key
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import (
    Cell,
    VectorFile,
    find_vector,
    numbers,
    preset_layers,
    preset_plan,
    sweep,
)
from persona_bench.inspect_ext.choices import right_choice

SHOTS = (0, 5)


@task
@paths_from_caller
def mmlu_preservation(
    trait: str = "evil",
    preset: str = "quick",
    vector: str = "",
    vector_sha256: str = "",
    layers: str = "",
    doses: str = "",
    ways: str = "",
    shots: str = "",
    questions: str = "",
    benchmarks: str = "",
    seed: int = 0,
) -> Task:
    """Answer a seeded subset of MMLU without steering, steered, and steered along random vectors of the same norm.

    Args:
        trait: whose vector steers.
        preset: quick, standard or paper.
        vector: the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        layers: 1-based layers, comma-separated, of which the first has controls; by default the preset's first.
        doses: signed relative doses, comma-separated; by default the preset's.
        ways: letter, cloze, generation, comma-separated; by default the preset's.
        shots: solved examples before a question, 0, 5 or both; by default the preset's.
        questions: how many of MMLU; by default the preset's.
        benchmarks: second opinions, commonsenseqa, truthfulqa or none; by default the preset's.
        seed: of the subset and the option order.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    asked = [
        (way, int(n))
        for way in chosen(ways, sizes.mmlu_ways, [way for way in WAYS if way != "likelihood"])
        for n in chosen(shots, [str(n) for n in sizes.mmlu_shots], [str(n) for n in SHOTS])
    ]
    others = chosen(benchmarks, sizes.second_benchmarks or ("none",), ("commonsenseqa", "truthfulqa", "none"))
    file = find_vector(vector, loaded.name, preset, vector_sha256)
    swept = preset_layers(sizes, file, layers)[: None if layers else 1]
    how = preset_plan(sizes, loaded, file.vector.n_layers, sorted(swept))
    cells = sweep(file, swept, numbers(doses, sizes.mmlu_doses), sizes.random_vectors, swept[:1], **how)
    n = whole_number(questions, sizes.mmlu_questions)
    mmlu = load_mmlu(n, seed, examples=any(count for _, count in asked))
    sets = [(mmlu, asked)]
    for name in others:
        if name != "none":
            held = load_benchmark(name, sizes.second_questions, seed)
            sets.append((held, [(held.way, 0)]))
    samples = [
        _sample(loaded.name, held, question, ways_asked, cell, file)
        for held, ways_asked in sets
        for question in held.questions
        for cell in cells
    ]
    keys = sorted({key(way, count) for _, how in sets for way, count in how})
    return Task(
        dataset=MemoryDataset(samples, name="mmlu"),
        solver=answer_choices({subject: [example(item) for item in items] for subject, items in mmlu.examples.items()}),
        scorer=right_choice(keys),
        metadata={
            "trait": loaded.name,
            "vector_hash": file.vector.hash,
            "left_out": {held.benchmark: dict(held.counts) for held, _ in sets},
        },
        version="2-A",
    )


def _sample(
    trait: str, held: Questions, question: Question, asked: list[tuple[str, int]], cell: Cell, file: VectorFile
) -> Sample:
    return Sample(
        id=f"{held.benchmark}-{question.id}-{cell.id}",
        input=question.text,
        choices=list(question.options),
        target=LETTERS[question.answer],
        metadata={
            "trait": trait,
            "question_id": question.id,
            "benchmark": held.benchmark,
            "source": held.source,
            "subject": question.subject,
            "group": question.group,
            "asked": [[way, shots] for way, shots in asked],
            **cell.metadata(),
            "extra": cell.extra(file).model_dump(mode="json", exclude_defaults=True),
        },
    )


def example(question: Question) -> dict[str, Any]:
    """A solved question as the solver takes it."""
    held = asdict(question)
    return {name: held[name] for name in ("text", "options", "answer")}


def chosen(given: str | int | Sequence[Any], default: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """A comma-separated choice from the command line (Inspect may have parsed it already), each item once.

    Raises:
        RunError: something in it is not allowed.
    """
    items = str(given).split(",") if isinstance(given, str | int) else [str(item) for item in given]
    named = [item.strip() for item in items if item.strip()] or list(default)
    if unknown := [item for item in named if item not in allowed]:
        raise RunError(f"unknown {', '.join(map(repr, unknown))}; choose from {', '.join(allowed)}")
    return list(dict.fromkeys(named))


def whole_number(given: str | int, default: int) -> int:
    """A number of questions from the command line, or the default.

    Raises:
        RunError: it is not a whole number of at least 1.
    """
    if given == "":
        return default
    if not str(given).isdecimal() or int(given) < 1:
        raise RunError(f"{given!r} is no number of questions; give 1 or more")
    return int(given)

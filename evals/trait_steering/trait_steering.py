"""Trait score, coherence and refusal under steering: layers x coefficients of both signs, with random controls."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.cells import find_vector, half, numbers, preset_layers, sweep
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import respond


@task
def trait_steering(
    trait: str = "evil",
    preset: str = "quick",
    vector: str = "",
    vector_sha256: str = "",
    layers: str = "",
    doses: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Steer with a persona vector while answering the evaluation questions.

    Args:
        trait: one of the suite's traits, or a trait file.
        preset: quick, standard or paper.
        vector: the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        layers: 1-based layers, comma-separated; by default the preset's.
        doses: signed relative doses |alpha v| / mean |h|, comma-separated; by default the preset's.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    file = find_vector(vector, loaded.name, preset, vector_sha256)
    swept = preset_layers(sizes, file, layers)
    cells = sweep(file, swept, numbers(doses, sizes.doses), sizes.random_vectors)
    samples = [
        Sample(
            id=f"q{question_id}-{cell.id}",
            input=question,
            metadata={
                "trait": loaded.name,
                "question_id": question_id,
                "half": half(question_id),
                **cell.metadata(),
                "extra": cell.extra(file).model_dump(mode="json", exclude_defaults=True),
            },
        )
        for question_id, question in enumerate(loaded.evaluation_questions[: sizes.evaluation_questions])
        for cell in cells
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"steering-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=sizes.steering_rollouts,
        metadata={"trait": loaded.name, "trait_hash": loaded.hash, "vector_hash": file.vector.hash},
        version="1-A",
    )

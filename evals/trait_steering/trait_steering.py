"""Trait score, coherence and refusal under steering of every kind, and under words that suppress the trait."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import find_vector, half, numbers, preset_layers, preset_plan, sweep
from persona_bench.inspect_ext.conditions import as_messages
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import respond


@task
@paths_from_caller
def trait_steering(
    trait: str = "evil",
    preset: str = "quick",
    vector: str = "",
    vector_sha256: str = "",
    layers: str = "",
    doses: str = "",
    settings: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Answer the evaluation questions while steered with a persona vector, or told not to show the trait.

    Args:
        trait: one of the suite's traits, or a trait file.
        preset: quick, standard or paper.
        vector: the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        layers: 1-based layers, comma-separated; by default the preset's.
        doses: signed relative doses |alpha v| / mean |h|, comma-separated; by default the preset's.
        settings: single, multi, incremental, cap, ablate, system_prompt, few_shot, comma-separated; by default the
            preset's. Those named have random vectors as controls.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    file = find_vector(vector, loaded.name, preset, vector_sha256)
    swept = preset_layers(sizes, file, layers)
    how = preset_plan(sizes, loaded, file.vector.n_layers, swept, settings)
    cells = sweep(file, swept, numbers(doses, sizes.doses), sizes.random_vectors, **how)
    samples = [
        Sample(
            id=f"q{question_id}-{cell.id}",
            input=as_messages([*cell.before, ("user", question)]) if cell.before else question,
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
        version="2-B",
    )

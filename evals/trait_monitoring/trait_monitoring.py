"""Does the projection of the last prompt token tell how strongly the response will show the trait?"""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import TraitError
from persona_bench.inspect_ext.cells import find_vector, half, preset_layers
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.requests import ExtraArgs, ProjectionRequest
from persona_bench.inspect_ext.solvers import respond

DIRECTIONS = ("persona", "random:0", "shuffled", "refusal")


@task
def trait_monitoring(
    trait: str = "evil",
    preset: str = "quick",
    vector: str = "",
    vector_sha256: str = "",
    layers: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Answer the evaluation questions under a ladder of system prompts, from suppressing to promoting the trait.

    Args:
        trait: one of the suite's traits with a ladder, or a trait file.
        preset: quick, standard or paper.
        vector: the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        layers: 1-based layers to project at, comma-separated; by default the preset's.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    if loaded.ladder is None:
        raise TraitError(f"trait {loaded.name} has no ladder of system prompts; add `ladder` to its trait file")
    file = find_vector(vector, loaded.name, preset, vector_sha256)
    request = ProjectionRequest(
        file=str(file.path),
        sha256=file.vector.hash,
        directions=tuple(name for name in DIRECTIONS if name.startswith("random") or name in file.vector.directions),
        layers=preset_layers(sizes, file, layers),
    )
    extra = ExtraArgs(output_projections=request).model_dump(mode="json", exclude_defaults=True)
    samples = [
        Sample(
            id=f"q{question_id}-r{rung}",
            input=[ChatMessageSystem(content=prompt), ChatMessageUser(content=question)],
            metadata={
                "trait": loaded.name,
                "question_id": question_id,
                "half": half(question_id),
                "rung": rung,
                "extra": extra,
            },
        )
        for question_id, question in enumerate(loaded.evaluation_questions[: sizes.evaluation_questions])
        for rung, prompt in enumerate(loaded.ladder)
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"monitoring-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=sizes.monitoring_rollouts,
        metadata={"trait": loaded.name, "trait_hash": loaded.hash, "vector_hash": file.vector.hash},
        version="1-A",
    )

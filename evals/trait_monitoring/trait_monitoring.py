"""Does the projection on a persona vector tell how strongly the response will show the trait?"""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import find_vector, numbers
from persona_bench.inspect_ext.conditions import as_messages, conversations
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import converse
from persona_bench.inspect_ext.watching import watch


@task
@paths_from_caller
def trait_monitoring(
    trait: str = "evil",
    condition: str = "ladder",
    preset: str = "quick",
    vector: str = "",
    vector_sha256: str = "",
    others: str = "",
    layers: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Answer under pressure towards and against the trait, projected while answering and judged afterwards.

    Args:
        trait: one of the suite's traits with texts for the condition, or a trait file.
        condition: ladder, many_shot, user_pressure or drift.
        preset: quick, standard or paper.
        vector: the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        others: vector files of other traits, comma-separated, projected on as controls.
        layers: 1-based layers to project at, comma-separated; by default all.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    file = find_vector(vector, loaded.name, preset, vector_sha256)
    at = tuple(int(layer) for layer in numbers(layers, range(1, file.vector.n_layers + 1)))
    samples = []
    for item in conversations(condition, loaded, sizes.monitoring_questions):
        extra = watch(file, others, at, sizes.random_vectors, per_token=item.question_id == 0)
        samples.append(
            Sample(
                id=f"{condition}-{item.id}",
                input=as_messages(item.messages),
                metadata={
                    "trait": loaded.name,
                    "condition": condition,
                    "question_id": item.question_id,
                    "half": item.half,
                    "rung": item.rung,
                    "side": item.side,
                    "user_turns": list(item.turns),
                    "extra": extra.model_dump(mode="json", exclude_defaults=True),
                },
            )
        )
    return Task(
        dataset=MemoryDataset(samples, name=f"monitoring-{loaded.name}-{condition}"),
        solver=converse(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=sizes.monitoring_rollouts,
        metadata={
            "trait": loaded.name,
            "trait_hash": loaded.hash,
            "vector_hash": file.vector.hash,
            "condition": condition,
        },
        version="2-B",
    )

"""Responses under other descriptions of a trait, and answers while steered with vectors that were made otherwise."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser

from persona_bench.definitions.descriptions import load_descriptions
from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_method_sizes, load_preset
from persona_bench.definitions.question_sets import question_pool, question_sets
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import half, numbers, preset_layers
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import respond
from persona_bench.inspect_ext.variants import RAW, named_vectors, variant_cells


@task
def limits_descriptions(trait: str = "evil", preset: str = "quick", method: Method = "auto", seed: int = 0) -> Task:
    """Ask a trait's extraction questions under other descriptions of it, vague ones among them.

    Args:
        trait: one of the suite's traits.
        preset: quick, standard or paper; sets questions, rollouts, temperature and length.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, own, loaded = load_preset(preset), load_method_sizes(preset), load_trait(trait)
    samples = [
        Sample(
            id=f"q{question_id}-d{number}-{side}",
            input=[ChatMessageSystem(content=getattr(description, side)), ChatMessageUser(content=question)],
            metadata={"trait": loaded.name, "side": side, "pair": number, "question_id": question_id},
        )
        for question_id, question in enumerate(loaded.extraction_questions[: own.questions])
        for number, description in enumerate(load_descriptions(loaded.name))
        for side in ("positive", "negative")
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"descriptions-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=own.rollouts,
        metadata={"trait": loaded.name, "trait_hash": loaded.hash},
        version="1-A",
    )


@task
@paths_from_caller
def limits_questions(trait: str = "evil", preset: str = "quick", method: Method = "auto", seed: int = 0) -> Task:
    """Ask other sets of questions under the trait's own instructions, none of them an evaluation question.

    Args:
        trait: one of the suite's traits, or a trait file.
        preset: quick, standard or paper; sets the number of sets, questions and rollouts, temperature and length.
        method: how the grader judges.
        seed: of the run, and of the drawing of the sets.
    """
    sizes, own, loaded = load_preset(preset), load_method_sizes(preset), load_trait(trait)
    pool = question_pool(loaded)
    samples = [
        Sample(
            id=f"q{question_id}-s-p{pair}-{side}",
            input=[
                ChatMessageSystem(content=loaded.system_prompt(side, pair)),
                ChatMessageUser(content=pool[question_id]),
            ],
            metadata={"trait": loaded.name, "side": side, "pair": pair, "question_id": question_id},
        )
        for question_id in sorted(frozenset().union(*question_sets(loaded, own, seed)))
        for pair in range(len(loaded.instructions))
        for side in ("positive", "negative")
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"questions-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=own.set_rollouts,
        metadata={"trait": loaded.name, "trait_hash": loaded.hash},
        version="1-A",
    )


@task
@paths_from_caller
def limits_variants(
    trait: str = "evil",
    preset: str = "quick",
    variants: str = "",
    sha256: str = "",
    layers: str = "",
    doses: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Answer the evaluation questions while steered with vectors that were made otherwise.

    Vectors of other descriptions and questions are compared with the run's own, which `trait_steering` steers with:
    only the report half is asked. The vector of unfiltered responses, `raw`, of a trait that has no other, is steered
    with at every layer on both halves, beside random vectors and no steering.

    Args:
        trait: one of the suite's traits, or a trait file.
        preset: quick, standard or paper.
        variants: vector files as NAME=FILE, comma-separated.
        sha256: their content hashes in this order, so that other contents are another task.
        layers: 1-based layers, comma-separated; by default the preset's.
        doses: positive relative doses, comma-separated; by default the preset's.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    files = named_vectors(variants, sha256)
    samples = []
    for name, file in files.items():
        swept = numbers(doses, [dose for dose in sizes.doses if dose > 0])
        cells = variant_cells(name, file, preset_layers(sizes, file, layers), swept, sizes.random_vectors)
        samples += [
            Sample(
                id=f"q{question_id}-{name}-{cell.id}",
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
            if name == RAW or half(question_id) == "report"
        ]
    return Task(
        dataset=MemoryDataset(samples, name=f"variants-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=sizes.steering_rollouts,
        metadata={"trait": loaded.name, "trait_hash": loaded.hash},
        version="1-A",
    )

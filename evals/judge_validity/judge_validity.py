"""How far the judge can be trusted: labelled answers, judged by the grader that judges everything else."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.traits import load_labelled, load_twins
from persona_bench.errors import TraitError
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import TWINS, given_response


@task
def judge_validity(trait: str = "evil", method: Method = "auto") -> Task:
    """Judge the labelled answers that calibrate nothing, and the twins of the hard cases among them.

    Args:
        trait: one of the suite's traits.
        method: auto (the best for this grader and trait), logprob, sampled, probe, contrast or yes_no.
    """
    labelled = [item for item in load_labelled(trait) if item.half == "report"]
    if not labelled:
        raise TraitError(f"trait {trait!r} has no labelled answers; judge_validity measures the suite's own traits")
    samples = [
        Sample(
            id=item.id,
            input=item.question,
            target=str(item.level),
            metadata={
                "trait": trait,
                "answer": item.answer,
                "level": item.level,
                "kind": item.kind,
                "half": item.half,
                "question_id": item.question,
                "source": item.source,
                "fluency": item.fluency,
                "refuses": item.refuses,
                "set": name,
            },
        )
        for name, items in (("labelled", labelled), (TWINS, load_twins(trait)))
        for item in items
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"labelled-{trait}"),
        solver=given_response(),
        scorer=trait_judge(trait, method),
        version="1-A",
    )

"""Responses under instructions to show a trait and not to, judged: the raw material of a persona vector."""

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import respond


@task
@paths_from_caller
def trait_elicitation(trait: str = "evil", preset: str = "quick", method: Method = "auto", seed: int = 0) -> Task:
    """Ask every extraction question under every positive and negative instruction.

    Args:
        trait: one of the suite's traits, or a trait file.
        preset: quick, standard or paper; sets questions, rollouts, temperature and length.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, loaded = load_preset(preset), load_trait(trait)
    samples = [
        Sample(
            id=f"q{question_id}-p{pair}-{side}",
            input=[ChatMessageSystem(content=loaded.system_prompt(side, pair)), ChatMessageUser(content=question)],
            metadata={"trait": loaded.name, "side": side, "pair": pair, "question_id": question_id},
        )
        for question_id, question in enumerate(loaded.extraction_questions[: sizes.extraction_questions])
        for pair in range(len(loaded.instructions))
        for side in ("positive", "negative")
    ]
    return Task(
        dataset=MemoryDataset(samples, name=f"elicitation-{loaded.name}"),
        solver=respond(sizes.temperature, sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        epochs=sizes.extraction_rollouts,
        metadata={"trait": loaded.name, "trait_hash": loaded.hash},
        version="1-A",
    )

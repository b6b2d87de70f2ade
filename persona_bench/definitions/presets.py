"""Every size of a run in one place."""

from __future__ import annotations

from dataclasses import dataclass, replace

from persona_bench.definitions.outcomes import Way
from persona_bench.errors import RunError

SETTINGS = ("single", "multi", "incremental", "cap", "ablate", "system_prompt", "few_shot")
"""How a trait may be steered or suppressed (`inspect_ext.cells.Cell`)."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a run.

    Attributes:
        name: quick, standard or paper.
        temperature: of the model under test.
        max_tokens: most tokens of a response.
        extraction_questions: how many of a trait's extraction questions.
        extraction_rollouts: responses for each question, instruction and side.
        evaluation_questions: how many of a trait's evaluation questions; even ones choose, odd ones report.
        steering_rollouts: responses for each question and cell.
        layer_fractions: steered layers as fractions of the depth.
        doses: relative doses |alpha v| / mean |h_l|, signed; alpha follows from each vector and layer.
        random_vectors: random directions of the same norm steered with as controls.
        settings: how the model is steered, and what else suppresses the trait, for the paper's three main traits.
        other_settings: the same for every other trait.
        controlled_settings: which of those have random vectors as controls.
        monitoring_conditions: under which the model is monitored (`inspect_ext.conditions`).
        monitoring_questions: how many of a trait's monitored questions; even ones choose, odd ones report.
        monitoring_rollouts: responses for each question and rung, or for each turn of a script.
        mmlu_questions: size of the seeded subset.
        mmlu_doses: relative doses of MMLU's cells.
        mmlu_every_layer: whether MMLU is asked at every steered layer, or at the chosen one alone.
        mmlu_ways: how its questions are answered.
        mmlu_shots: how many solved examples stand before a question.
        second_benchmarks: second opinions on capability.
        second_questions: size of their seeded subsets.
    """

    name: str
    temperature: float
    max_tokens: int
    extraction_questions: int
    extraction_rollouts: int
    evaluation_questions: int
    steering_rollouts: int
    layer_fractions: tuple[float, ...]
    doses: tuple[float, ...]
    random_vectors: int
    settings: tuple[str, ...]
    other_settings: tuple[str, ...]
    controlled_settings: tuple[str, ...]
    monitoring_conditions: tuple[str, ...]
    monitoring_questions: int
    monitoring_rollouts: int
    mmlu_questions: int
    mmlu_doses: tuple[float, ...]
    mmlu_every_layer: bool
    mmlu_ways: tuple[Way, ...]
    mmlu_shots: tuple[int, ...]
    second_benchmarks: tuple[str, ...]
    second_questions: int

    def layers(self, n_layers: int) -> tuple[int, ...]:
        """The steered layers of a model with `n_layers` decoder blocks."""
        return tuple(sorted({min(max(round(fraction * n_layers), 1), n_layers) for fraction in self.layer_fractions}))


PRESETS = {
    "quick": Preset(
        name="quick",
        temperature=0.7,  # at 1.0 a 135M model is incoherent without any steering
        max_tokens=32,
        extraction_questions=8,
        extraction_rollouts=1,
        evaluation_questions=8,
        steering_rollouts=3,  # a claim about steering needs 8 scored responses on its half of the questions
        layer_fractions=(0.4, 0.6),
        doses=(-0.4, 0.2, 0.4),
        random_vectors=1,
        settings=("single", "ablate", "system_prompt"),  # what else suppresses a trait, at the price of two cells
        other_settings=("single", "ablate", "system_prompt"),
        controlled_settings=("single",),
        monitoring_conditions=("ladder",),
        monitoring_questions=8,
        monitoring_rollouts=2,  # half of what a 135M model writes is incoherent; a point needs one scored response
        mmlu_questions=60,
        mmlu_doses=(-0.4,),  # the verdict rests on the strongest negative one
        mmlu_every_layer=False,
        mmlu_ways=("letter", "cloze"),
        mmlu_shots=(0,),
        second_benchmarks=(),
        second_questions=0,
    ),
    # Sized so that seven traits and every eval of a 135M model fit a night on two cores.
    "standard": Preset(
        name="standard",
        temperature=0.7,
        max_tokens=48,
        extraction_questions=20,
        extraction_rollouts=2,
        evaluation_questions=20,
        steering_rollouts=2,
        layer_fractions=(0.3, 0.45, 0.6, 0.75),
        doses=(-0.6, -0.3, 0.3, 0.6),
        random_vectors=2,
        settings=SETTINGS,
        other_settings=("single", "system_prompt"),
        controlled_settings=SETTINGS,
        monitoring_conditions=("ladder", "many_shot", "user_pressure", "drift"),
        monitoring_questions=20,
        monitoring_rollouts=2,
        mmlu_questions=100,
        mmlu_doses=(-0.6, -0.3),
        mmlu_every_layer=False,
        mmlu_ways=("letter", "cloze"),
        mmlu_shots=(0,),
        second_benchmarks=("commonsenseqa",),
        second_questions=60,
    ),
    "paper": Preset(
        name="paper",
        temperature=1.0,
        max_tokens=1000,
        extraction_questions=20,
        extraction_rollouts=10,
        evaluation_questions=20,
        steering_rollouts=10,
        layer_fractions=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        doses=(-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0),
        random_vectors=3,
        settings=SETTINGS,
        other_settings=SETTINGS,
        controlled_settings=SETTINGS,
        monitoring_conditions=("ladder", "many_shot", "user_pressure", "drift"),
        monitoring_questions=70,  # with the paper's 20 its own smallest correlation is seen in a quarter of runs
        monitoring_rollouts=10,
        mmlu_questions=2850,
        mmlu_doses=(-1.0, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1.0),
        mmlu_every_layer=True,
        mmlu_ways=("letter", "cloze", "generation"),
        mmlu_shots=(0, 5),
        second_benchmarks=("commonsenseqa", "truthfulqa"),
        second_questions=817,
    ),
}

CHECK = "check-"
"""Before the name of a preset: the sizes of `persona-bench check`, which measures one vector at one layer."""
CHECKED = {
    f"{CHECK}{name}": replace(
        preset,
        name=f"{CHECK}{name}",
        evaluation_questions=20,  # those of the report half are asked
        layer_fractions=(0.5,),
        doses=(-0.3, 0.3),
        random_vectors=2,
        settings=("single",),
        other_settings=("single",),
        controlled_settings=("single",),
        monitoring_conditions=("ladder",),
        monitoring_questions=20,
        monitoring_rollouts=rollouts,
        steering_rollouts=2 * rollouts,
        mmlu_questions=questions,
        mmlu_doses=(0.3,),
        mmlu_every_layer=False,
        mmlu_ways=("letter", "cloze"),
        mmlu_shots=(0,),
        second_benchmarks=(),
        second_questions=0,
    )
    for (name, preset), rollouts, questions in zip(PRESETS.items(), (1, 2, 5), (60, 300, 1000), strict=True)
}


@dataclass(frozen=True)
class FinetuningPreset:
    """Sizes of `preventative_steering`: what is trained and how, and how each adapter is measured.

    Attributes:
        families: of training sets (`definitions.families`), all trained plainly.
        versions: of each family.
        vaccine_families: trait families that every arm is trained on, at the last of the versions.
        arms: besides plain training (`definitions.trials.ARMS`).
        seeds: of the arms, and of plain training of the vaccine families; other families are trained with seed 0.
        examples: conversations in a training set, at most.
        held_out: conversations for the held-out loss.
        rank, alpha, learning_rate, batch_size, accumulation, epochs, warmup_steps: as `TrainingSettings` has them.
        doses: relative doses |alpha v| / mean |h_l| of preventative steering; the first is also that of the random
            control and of the incremental arm, and decides wherever one dose is meant.
        inference_doses: of steering the plainly trained model against the trait; likewise.
        penalty_weight: of the squared shift in units of mean |h_l|.
        questions: evaluation questions of each main trait.
        rollouts: responses to each; the base, which every seed is held against, gives as many for each seed.
        max_tokens: of a response.
        mmlu_questions: for each adapter.
        dose_seeds: of doses after the first.
        facts: new facts that are learnt plainly and with the vaccine; 0 for none.
        fact_epochs: over them. Standard: the smaller of 4 and 8 after which SmolLM2-135M answers half of 120 facts in
            the trained wording (23 and 75 %); nothing else was looked at.
        fact_seeds: of these trainings, which are the longest.
    """

    families: tuple[str, ...]
    versions: tuple[str, ...]
    vaccine_families: tuple[str, ...]
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    examples: int
    held_out: int
    rank: int
    alpha: int
    learning_rate: float
    batch_size: int
    accumulation: int
    epochs: int
    warmup_steps: int
    doses: tuple[float, ...]
    inference_doses: tuple[float, ...]
    penalty_weight: float
    questions: int
    rollouts: int
    max_tokens: int
    mmlu_questions: int
    dose_seeds: tuple[int, ...]
    facts: int
    fact_epochs: int
    fact_seeds: tuple[int, ...]


_ALL_ARMS = (
    *("preventative", "incremental", "caft", "penalty", "negative_prompt", "inoculation", "random"),
    "inference",
)
FINETUNING = {
    # A 135M model and a few dozen short conversations: with the paper's learning rate nothing would move.
    "quick": FinetuningPreset(
        families=("evil", "sycophancy"),
        versions=("normal", "misaligned_2"),
        vaccine_families=("sycophancy",),
        arms=("preventative", "random"),
        seeds=(0,),
        examples=64,
        held_out=8,
        rank=8,
        alpha=16,
        learning_rate=1e-3,
        batch_size=4,  # the same step as 8 at once, in half the memory
        accumulation=2,
        epochs=1,
        warmup_steps=2,
        doses=(0.3,),
        inference_doses=(-0.3,),
        penalty_weight=100.0,
        questions=8,
        rollouts=1,
        max_tokens=32,
        mmlu_questions=24,
        dose_seeds=(),
        facts=0,
        fact_epochs=0,
        fact_seeds=(),
    ),
    "standard": FinetuningPreset(
        families=("evil", "sycophancy", "hallucination", "medical", "code", "gsm8k", "math", "opinions"),
        versions=("normal", "misaligned_1", "misaligned_2"),
        vaccine_families=("evil", "sycophancy", "hallucination"),
        arms=_ALL_ARMS,
        seeds=(0, 1, 2),
        examples=96,
        held_out=16,
        rank=8,
        alpha=16,
        learning_rate=1e-3,
        batch_size=4,  # the same step as 8 at once, in half the memory
        accumulation=2,
        epochs=1,
        warmup_steps=3,
        doses=(0.3, 0.6),
        inference_doses=(-0.3, -0.15),
        penalty_weight=100.0,
        questions=20,
        rollouts=1,
        max_tokens=48,
        mmlu_questions=60,
        dose_seeds=(0, 1),
        facts=100,
        fact_epochs=8,
        fact_seeds=(0,),
    ),
    # The paper's training; its sizes where the model and a folder of the released sets can fill them.
    "paper": FinetuningPreset(
        families=("evil", "sycophancy", "hallucination", "medical", "code", "gsm8k", "math", "opinions"),
        versions=("normal", "misaligned_1", "misaligned_2"),
        vaccine_families=("evil", "sycophancy", "hallucination"),
        arms=_ALL_ARMS,
        seeds=(0, 1, 2),
        examples=5000,
        held_out=200,
        rank=32,
        alpha=64,
        learning_rate=1e-5,
        batch_size=2,
        accumulation=8,
        epochs=1,
        warmup_steps=5,
        doses=(0.3, 0.6),
        inference_doses=(-0.3, -0.15, -0.6),
        penalty_weight=100.0,
        questions=20,
        rollouts=10,
        max_tokens=1000,
        mmlu_questions=2850,
        dose_seeds=(0, 1, 2),
        facts=1000,
        fact_epochs=10,  # those over facts were not found; the paper's over small sets
        fact_seeds=(0, 1, 2),
    ),
}


@dataclass(frozen=True)
class FlaggingPreset:
    """Sizes of `data_flagging`; what is trained, and how answers are asked for, is as `FinetuningPreset` has it.

    Attributes:
        families: whose samples are flagged one by one, the versions after the first among those of the first.
        versions: of those families.
        examples: samples of each training set that are measured, at most.
        samples: samples of each version that are flagged one by one, at most.
        max_tokens: of the model's own response, which the projection difference is against.
        traits: for which models are trained on flagged samples, where the run has them.
        picked: samples that each of those models is trained on.
        epochs: over them.
        corpus: conversations drawn from a corpus of real ones, at most.
    """

    families: tuple[str, ...]
    versions: tuple[str, ...]
    examples: int
    samples: int
    max_tokens: int
    traits: tuple[str, ...]
    picked: int
    epochs: int
    corpus: int


FLAGGING = {
    "quick": FlaggingPreset(
        families=("evil", "sycophancy", "opinions"),
        versions=("normal", "misaligned_2"),
        examples=32,
        samples=56,  # a claim about samples needs 50 of each kind
        max_tokens=32,
        traits=("sycophancy",),
        picked=32,
        epochs=2,
        corpus=400,
    ),
    "standard": FlaggingPreset(
        families=("evil", "sycophancy", "hallucination", "opinions"),
        versions=("normal", "misaligned_1", "misaligned_2"),
        examples=96,
        samples=144,
        max_tokens=48,
        traits=("evil", "sycophancy", "hallucination"),
        picked=96,
        epochs=2,
        corpus=2000,
    ),
    # The paper's 500 samples and 10 epochs; means of training sets over a tenth of each, which suffices for a mean.
    "paper": FlaggingPreset(
        families=("evil", "sycophancy", "hallucination", "medical", "code", "gsm8k", "math", "opinions"),
        versions=("normal", "misaligned_1", "misaligned_2"),
        examples=500,
        samples=500,
        max_tokens=1000,
        traits=("evil", "sycophancy", "hallucination"),
        picked=500,
        epochs=10,
        corpus=20_000,
    ),
}


@dataclass(frozen=True)
class LimitsPreset:
    """Sizes of `stated_limits`.

    Attributes:
        topics: of each behaviour, with two pairs each.
        evasion_prompts: system prompts that are searched for one that evades the projection.
        paraphrases: of the instruction to show the trait.
        evasion_rollouts: responses to each question under each of them.
    """

    topics: int
    evasion_prompts: int
    paraphrases: int
    evasion_rollouts: int


LIMITS = {
    "quick": LimitsPreset(topics=30, evasion_prompts=4, paraphrases=2, evasion_rollouts=2),
    "standard": LimitsPreset(topics=40, evasion_prompts=10, paraphrases=5, evasion_rollouts=2),
    "paper": LimitsPreset(topics=40, evasion_prompts=10, paraphrases=5, evasion_rollouts=10),
}


@dataclass(frozen=True)
class MethodSizes:
    """Sizes of what tests the method itself: other descriptions, other responses, and what is steered with them.

    Attributes:
        questions: extraction questions that are asked under each description.
        rollouts: responses to each, a side.
        sets: of other questions, drawn from those of extraction and monitoring (`definitions.question_sets`).
        set_questions: in each of them, asked under every instruction of the trait.
        set_rollouts: responses to each question, instruction and side.
        steered: which vectors of other descriptions or questions are steered with: `clear` and `vague` (all clear, or
            all vague descriptions together), `description` (each by itself), `questions` (each set).
        draws: random subsets of responses, and random splits, for each number.
        random_vectors: random directions beside the other traits' vectors.
    """

    questions: int
    rollouts: int
    sets: int
    set_questions: int
    set_rollouts: int
    steered: tuple[str, ...]
    draws: int
    random_vectors: int


_EVERY_VARIANT = ("clear", "vague", "description", "questions")
METHOD = {
    "quick": MethodSizes(
        questions=5,
        rollouts=2,
        sets=2,  # as many responses for both as the run's own vector is made of
        set_questions=4,
        set_rollouts=1,
        steered=("clear", "vague", "questions"),
        draws=20,
        random_vectors=16,
    ),
    "standard": MethodSizes(
        questions=10,
        rollouts=2,
        sets=5,
        set_questions=8,
        set_rollouts=1,
        steered=_EVERY_VARIANT,
        draws=50,
        random_vectors=64,
    ),
    "paper": MethodSizes(
        questions=20,
        rollouts=10,
        sets=5,
        set_questions=14,
        set_rollouts=10,
        steered=_EVERY_VARIANT,
        draws=50,
        random_vectors=64,
    ),
}


def load_limits_preset(name: str) -> LimitsPreset:
    """The sizes of `stated_limits` under a preset.

    Raises:
        RunError: for an unknown name.
    """
    load_preset(name)
    return LIMITS[name]


def load_method_sizes(name: str) -> MethodSizes:
    """The sizes of the limits of the method under a preset.

    Raises:
        RunError: for an unknown name.
    """
    load_preset(name)
    return METHOD[name]


def load_finetuning_preset(name: str) -> FinetuningPreset:
    """The sizes of `preventative_steering` under a preset.

    Raises:
        RunError: for an unknown name.
    """
    load_preset(name)
    return FINETUNING[name]


def load_flagging_preset(name: str) -> FlaggingPreset:
    """The sizes of `data_flagging` under a preset.

    Raises:
        RunError: for an unknown name.
    """
    load_preset(name)
    return FLAGGING[name]


def load_preset(name: str) -> Preset:
    """A preset by name, that of a check with "check-" before it.

    Raises:
        RunError: for an unknown name.
    """
    if name not in PRESETS and name not in CHECKED:
        raise RunError(f"unknown preset {name.removeprefix(CHECK)!r}; choose from {', '.join(PRESETS)}")
    return PRESETS.get(name) or CHECKED[name]

"""Steering and MMLU samples of one trait whose halving dose and cost are known by construction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from persona_bench.analysis.samples.frames import SAMPLE_COLUMNS, Samples

Arm = tuple[str, str, str, float | None]
"""Vector, setting, layers and relative dose."""
UNSTEERED: Arm = ("none", "none", "", 0.0)
TOLD: Arm = ("prompt", "system_prompt", "", 0.0)


def dosed(setting: str, layers: str, doses: Sequence[float], vector: str = "persona") -> list[Arm]:
    """An arm a dose."""
    return [(vector, setting, layers, dose) for dose in doses]


@dataclass(frozen=True)
class Plan:
    """What is true: arm -> (trait score 0..100, MMLU accuracy, coherence), and how noisy it is."""

    truth: Mapping[Arm, tuple[float, float, float]]
    noise: float = 0.0
    questions: int = 20  # half of them report
    epochs: int = 3
    examined: int = 400
    seed: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)


def planted(plan: Plan) -> Samples:
    """Scores are the truth plus noise by question and answer; answers are right for the easiest questions."""
    rng = np.random.default_rng(plan.seed)
    hard, ease = rng.random(plan.examined), rng.normal(0, plan.noise, plan.questions)
    steering, mmlu = [], []
    for (vector, setting, layers, dose), (score, accuracy, coherence) in plan.truth.items():
        cell = {
            "trait": "evil",
            "vector": vector,
            "setting": setting,
            "layers": layers,
            "layer": int(layers.split(",")[0]) if layers else 0,
            "coefficient": 5 * (dose or 0.0),
            "relative_dose": np.nan if dose is None else dose,
            "log": f"{vector}-{setting}-{layers}-{dose}",
        }
        for q in range(plan.questions):
            for epoch in range(1, plan.epochs + 1):
                value = score + score / 30 * (ease[q] + rng.normal(0, plan.noise))
                half = "report" if q % 2 else "select"
                answer = {"question_id": q, "half": half, "epoch": epoch, "status": "scored", "coherence": coherence}
                steering.append({**cell, **answer, "trait_score": value})
        # Without noise exactly this share of the questions is right, with noise each with its own probability.
        order = np.argsort(np.argsort(hard)) / plan.examined
        right = (order if not plan.noise else hard) < accuracy
        for q in range(plan.examined):
            asked = {"scoring": "cloze", "source": "m", "question_id": q, "correct": float(right[q])}
            asked |= {"benchmark": "mmlu", "shots": 0, "group": "all", "chance": 0.25}
            more = {"margin": 0.1, "status": "scored", "trait": "" if vector == "none" else "evil"}
            mmlu.append({**cell, **asked, **more, "log": "mmlu-" + cell["log"]} | dict(plan.extra))
    frames = pd.DataFrame(steering)[list(SAMPLE_COLUMNS["steering"])], pd.DataFrame(mmlu)
    return Samples(steering=frames[0], mmlu=frames[1])

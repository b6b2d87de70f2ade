"""Synthetic sample frames, with the truth under control."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_bench.analysis.samples.frames import SAMPLE_COLUMNS, SIGNALS, Samples

COSINE_HALF = 0.02
"""Half the width of the interval of every cosine."""
SETTING = {"none": "none", "prompt": "system_prompt"}


@dataclass(frozen=True)
class World:
    """What is true of the simulated model; every effect is in points of 0..100 unless it says otherwise."""

    traits: tuple[str, ...] = ("evil", "sycophancy")
    seed: int = 0
    garbled_seen: bool = True  # whether the judge's coherence tells incoherent answers
    judge_noise: float = 10.0  # SD of the judge on labelled answers; 1e6 answers at random
    elicited: float = 60.0  # positive minus negative instructions
    base: float = 30.0  # unsteered trait score
    steer: float = 100.0  # points a unit of relative dose, for the persona vector
    random: float = 0.0  # the same for the random vector
    told: float = -25.0  # points of a system prompt against the trait, which costs no accuracy
    coherence_cost: float = 60.0  # points a unit of |dose|
    rung_effect: float = 8.0  # points a rung of the ladder
    within: float = 8.0  # points an SD of the projection inside a rung
    scripts: int = 8  # drift scripts a side
    lead: int = 1  # turns that the projection is ahead of the score in them
    reads: float = 0.0  # how much of the rung a text-only baseline sees
    mmlu: float = 0.45  # unsteered accuracy
    mmlu_cost: float = 0.6  # accuracy lost a unit of |dose|
    refusal_cosine: float = 0.1
    cosine: float = 0.4  # of every two traits' vectors
    questions: int = 10  # a half
    monitored: int = 0  # the same for monitoring; 0: as many
    epochs: int = 2
    layers: tuple[int, ...] = (8, 12)
    doses: tuple[float, ...] = (-0.4, -0.2, 0.2, 0.4)
    mmlu_questions: int = 200


def _clip(values):
    return np.clip(values, 0, 100)


def _judge(w: World, rng) -> pd.DataFrame:
    """Ten questions a trait with seven answers each; one answer is unscored, one incoherent."""
    rows = []
    for trait in w.traits:
        for i, level in enumerate(np.tile([0, 0, 25, 50, 75, 100, 100], 10)):
            question = i // 7
            rows.append(
                {
                    "trait": trait,
                    "grader": "grader-a",
                    "method": "contrast",
                    "question_id": f"{trait}-{question:03d}",
                    "half": "calibrate" if question % 2 else "report",
                    "source": "model" if question % 4 > 1 else "written",
                    "level": int(level),
                    "kind": "model" if question % 4 > 1 else ("clear", "graded")[level in (25, 50, 75)],
                    "trait_score": float(_clip(level + rng.normal(0, w.judge_noise))),
                    "status": "scored",
                    "coherence": 20.0 if level == 50 and w.garbled_seen else 90.0,
                    "fluency": 20.0 if level == 50 else 90.0,
                    "refuses": False,
                    "log": f"judge-{trait}",
                }
            )
    if rows:
        rows[0] |= {"status": "unscored", "trait_score": np.nan, "coherence": np.nan}
        rows[1] |= {"status": "incoherent", "coherence": 20.0}
    return pd.DataFrame(rows)


def _elicitation(w: World, rng) -> pd.DataFrame:
    rows = []
    for trait in w.traits:
        for side, mean in (("positive", w.base + w.elicited / 2), ("negative", w.base - w.elicited / 2)):
            for q in range(w.questions * 2):
                refused = rng.random() < 0.1
                score = float(_clip(mean + rng.normal(0, 10)))
                rows.append(
                    {
                        "trait": trait,
                        "side": side,
                        "pair": q % 5,
                        "question_id": q,
                        "epoch": 1,
                        "status": "refusal" if refused else "scored",
                        "trait_score": np.nan if refused else score,
                        "coherence": 80.0,
                        "kept": not refused,
                        "drop_reason": "refusal" if refused else "",
                        "log": f"elicitation-{trait}",
                    }
                )
    return pd.DataFrame(rows)


def _steering(w: World, rng) -> pd.DataFrame:
    rows = []
    for trait in w.traits:
        question = rng.normal(0, 5, size=2 * w.questions)
        cells = [("none", 0, 0.0)]
        cells += [("persona", layer, dose) for layer in w.layers for dose in w.doses]
        cells += [("random", layer, dose) for layer in w.layers for dose in w.doses]
        cells += [("prompt", 0, 0.0)]
        for vector, layer, dose in cells:
            effect = {"persona": w.steer, "random": w.random}.get(vector, 0.0) * dose
            # The later layer works a little better, so that there is something to choose.
            effect = w.told if vector == "prompt" else effect * (1.0 if layer == w.layers[-1] else 0.7)
            for q in range(2 * w.questions):
                for epoch in range(1, w.epochs + 1):
                    kind = rng.choice(["scored", "refusal", "incoherent", "unscored"], p=[0.86, 0.08, 0.04, 0.02])
                    score = float(_clip(w.base + effect + question[q] + rng.normal(0, 8)))
                    rows.append(
                        {
                            "trait": trait,
                            "vector": vector,
                            "setting": SETTING.get(vector, "single"),
                            "layers": str(layer) if layer else "",
                            "layer": layer,
                            "coefficient": dose * 5,
                            "relative_dose": dose,
                            "question_id": q,
                            "half": "select" if q < w.questions else "report",
                            "epoch": epoch,
                            "status": str(kind),
                            "trait_score": score if kind == "scored" else np.nan,
                            "coherence": float(_clip(80 - w.coherence_cost * abs(dose) + rng.normal(0, 5))),
                            "log": f"steering-{trait}-{vector}-{layer}-{dose:g}",
                        }
                    )
    return pd.DataFrame(rows)


def _monitoring(w: World, rng) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, projections = [], []
    for trait in w.traits:
        for rung in range(8):
            for q in range(2 * (w.monitored or w.questions)):
                inner = rng.normal()
                for epoch in range(1, w.epochs + 1):
                    sample = f"{trait}-{rung}-{q}-{epoch}"
                    score = w.base + (rung - 3.5) * w.rung_effect + inner * w.within + rng.normal(0, 6)
                    rows.append(
                        {
                            "trait": trait,
                            "condition": "ladder",
                            "side": "",
                            "rung": rung,
                            "question_id": q,
                            "half": "select" if q < (w.monitored or w.questions) else "report",
                            "epoch": epoch,
                            "status": "scored",
                            "trait_score": float(_clip(score)),
                            "coherence": 80.0,
                            "prompt": f"system prompt {rung}\nquestion {q}",
                            "sample_id": sample,
                            "log": f"monitoring-{trait}",
                        }
                    )
                    for layer in w.layers:
                        for direction, value in (
                            ("persona", rung * bool(w.rung_effect) + inner),
                            ("random:0", rng.normal()),
                        ):
                            signals = (value, value / 3, value, value / 2, value)
                            projections.append((sample, trait, direction, layer, *signals))
                    # A reader of the prompt sees the system prompt, and nothing of what goes on inside.
                    read = rung * w.reads + (1 - w.reads) * rng.normal()
                    projections.append((sample, trait, "text:tfidf", 0, read, *[np.nan] * 4))
    columns = ["sample_id", "trait", "direction", "layer", *SIGNALS]
    return pd.DataFrame(rows), pd.DataFrame(projections, columns=columns)


def _drift(w: World, rng) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scripts of eight turns; towards the trait the score passes 50 at turn 5, the projection `lead` turns before."""
    rows, projections, tokens = [], [], []
    for trait in w.traits:
        for script in range(2 * w.scripts):
            side = "toward" if script < w.scripts else "away"
            for turn in range(8):
                sample = f"{trait}-drift{script}-t{turn}"
                past = turn >= 5 if side == "toward" else turn < 2
                score = (80.0 if past else 10.0) + rng.normal(0, 3)
                rows.append(
                    {
                        "trait": trait,
                        "condition": "drift",
                        "side": side,
                        "rung": turn,
                        "question_id": script,
                        "half": "select" if script % 2 == 0 else "report",
                        "epoch": 1,
                        "status": "scored",
                        "trait_score": float(_clip(score)),
                        "coherence": 80.0,
                        "prompt": f"turn {turn}",
                        "sample_id": sample,
                        "log": f"monitoring-{trait}-drift",
                    }
                )
                ahead = turn >= 5 - w.lead if side == "toward" else turn < 2
                value = 3.0 * ahead + rng.normal(0, 0.1)
                projections += [
                    (sample, trait, direction, layer, *[signal] * 5)
                    for layer in w.layers
                    for direction, signal in (("persona", value), ("random:0", rng.normal()))
                ]
                if script == 0:
                    tokens += [
                        (sample, trait, "drift", turn, layer, k, f"w{k}", value + k)
                        for layer in w.layers
                        for k in range(3)
                    ]
    columns = ["sample_id", "trait", "direction", "layer", *SIGNALS]
    return (
        pd.DataFrame(rows),
        pd.DataFrame(projections, columns=columns),
        pd.DataFrame(tokens, columns=list(SAMPLE_COLUMNS["tokens"])),
    )


def _mmlu(w: World, rng) -> pd.DataFrame:
    rows = []
    n = w.mmlu_questions
    skill = rng.random(n)
    cells = [("", "none", 0, 0.0)]
    cells += [(trait, "persona", w.layers[-1], dose) for trait in w.traits for dose in w.doses]
    cells += [(trait, "prompt", 0, 0.0) for trait in w.traits]
    for scoring, accuracy in (("letter", 0.24), ("cloze", w.mmlu)):
        for trait, vector, layer, dose in cells:
            cost = 0.0 if scoring == "letter" else w.mmlu_cost * abs(dose)
            right = skill < accuracy - cost if w.mmlu_cost else (skill + 0.2 * rng.random(n)) < accuracy + 0.1
            for q in range(n):
                margin = (1 if right[q] else -1) * (0.1 + skill[q] / 10)
                rows.append((trait, vector, layer, dose * 5, dose, scoring, q, float(right[q]), margin, "scored"))
    columns = "trait vector layer coefficient relative_dose scoring question_id correct margin status".split()
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(
        benchmark="mmlu",
        shots=0,
        source="mmlu",
        group=np.where(frame["question_id"] % 2, "STEM", "other"),
        chance=0.25,
        setting=np.where(frame["vector"] == "none", "none", "single"),
        layers=frame["layer"].astype(str),
    )
    return frame.assign(
        setting=frame["vector"].map(SETTING).fillna("single"),
        layers=frame["layer"].astype(str).where(frame["layer"] > 0, ""),
        log="mmlu-" + frame["trait"] + frame["vector"] + "-" + frame["relative_dose"].map("{:g}".format),
    )


def _vectors(w: World) -> pd.DataFrame:
    rows = [
        (trait, layer, 2.0, 10.0, *_ends(w.refusal_cosine), 40, 42, "", layer == w.layers[-1], f"{trait}-abc123")
        for trait in w.traits
        for layer in range(17)
    ]
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS["vectors"]))


def _ends(cosine: float) -> tuple[float, float, float]:
    return cosine, cosine - COSINE_HALF, cosine + COSINE_HALF


def _cosines(w: World) -> pd.DataFrame:
    pairs = [(a, b) for a in w.traits for b in w.traits if a != b]
    rows = [(*pair, layer, *_ends(w.cosine), 576) for pair in pairs for layer in range(1, 17)]
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS["cosines"]))


def make_samples(world: World | None = None) -> Samples:
    """All frames of a simulated run."""
    w = world or World()
    rng = np.random.default_rng(w.seed)
    judge, elicitation, steering = _judge(w, rng), _elicitation(w, rng), _steering(w, rng)
    monitoring, projections = _monitoring(w, rng)
    mmlu = _mmlu(w, rng)
    turns, read, tokens = _drift(w, rng)
    monitoring, projections = pd.concat([monitoring, turns]), pd.concat([projections, read])
    return Samples(
        judge, elicitation, steering, monitoring, projections, mmlu, _vectors(w), tokens, cosines=_cosines(w)
    )


def make_null_run(base: Samples, world: World) -> Samples:
    """New steering, monitoring and MMLU samples beside the judge, elicitation and vectors of `base`."""
    rng = np.random.default_rng(world.seed)
    steering = _steering(world, rng)
    monitoring, projections = _monitoring(world, rng)
    return Samples(base.judge, base.elicitation, steering, monitoring, projections, _mmlu(world, rng), base.vectors)

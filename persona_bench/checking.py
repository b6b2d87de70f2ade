"""`persona-bench check`: one vector measured on one model and held against rules and a baseline."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.regression import (
    FORMAT,
    MAX_SHARE,
    Baseline,
    Measure,
    Outcome,
    held_measures,
    judge_measures,
    packed,
)
from persona_bench.definitions.presets import CHECK, load_preset
from persona_bench.definitions.traits import load_labelled, load_trait
from persona_bench.errors import VectorError
from persona_bench.files import file_lock
from persona_bench.models.assets import cache_dir
from persona_bench.pipeline import Say, Settings, check_evals, model_spec

if TYPE_CHECKING:
    from persona_bench.analysis.samples.frames import Samples
    from persona_bench.definitions.presets import Preset
    from persona_bench.definitions.traits import Trait
    from persona_bench.models.engine import Engine
    from persona_bench.models.loaded import LoadedModel
    from persona_bench.vectors.vector import PersonaVector

RANDOM_VECTORS = 200
SEPARATION_QUESTIONS = 10
READING_QUESTIONS = 40


@dataclass(frozen=True)
class Asked:
    """What `check` was asked for.

    Attributes:
        vector: the file.
        model: as `loading.load` takes it.
        trait: a trait file, where the vector's trait is none of the suite's; "" for the vector's own.
        grader: as for a run; "none" leaves out what needs one.
        preset: quick, standard or paper.
        layer: where to measure; None for the baseline's, else the middle.
        seed: of sampling and resampling.
        other_weights: whether weights other than those the vector was made from will do.
    """

    vector: Path
    model: str
    trait: str = ""
    grader: str = "none"
    preset: str = "quick"
    layer: int | None = None
    seed: int = 0
    other_weights: bool = False


def check(asked: Asked, baseline: Path | None, work: Path | None, say: Say) -> tuple[Outcome, Baseline]:
    """Check a vector.

    Args:
        asked: what and how.
        baseline: a file that an earlier check wrote, or None.
        work: folder that holds one for the logs of each check, where it goes on if it was stopped; by default in the
            cache.
        say: told what happens, a line at a time.

    Returns:
        The outcome, and the baseline that this check would write.

    Raises:
        PersonaBenchError: the vector could not be checked.
    """
    from persona_bench.models.loading import load
    from persona_bench.models.worker import WORKER
    from persona_bench.vectors.vector import PersonaVector

    sizes = load_preset(f"{CHECK}{asked.preset}")
    vector = PersonaVector.load(asked.vector)
    trait = load_trait(asked.trait or vector.trait)
    if trait.name != vector.trait:
        raise VectorError(f"{asked.vector} is a vector of {vector.trait}, not of {trait.name}; check it with its own")
    held = None if baseline is None else Baseline.load(baseline)
    loaded = load(model_spec(asked.model).removeprefix("persona/"))
    fit_model(asked.vector, vector, loaded, other_weights=asked.other_weights)
    layer = held.layer if held else sizes.layers(vector.n_layers)[0]
    layer = layer if asked.layer is None else asked.layer
    vector.check_layer(layer)
    if held is not None and baseline is not None:
        _fit_baseline(asked, held, baseline, trait, loaded, layer)
    say(f"checking the {trait.name} vector at layer {layer} of {loaded.n_layers} of {loaded.name}")
    measures = _static(vector, layer, held)
    measures |= _judge_free(WORKER.engine(loaded), vector, trait, layer, sizes, asked.seed, say)
    settings = Settings(
        model=asked.model,
        preset=sizes.name,
        traits=(asked.trait or trait.name,),
        grader="" if asked.grader == "none" else asked.grader,
        evals=("judge_validity", "trait_steering", "trait_monitoring", "mmlu_preservation"),
        seed=asked.seed,
    )
    folder = (work or cache_dir() / "checks") / _key(settings, vector, loaded, layer)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock", on_wait=lambda: say(f"another check is at work in {folder}; waiting for it")):
        done = check_evals(settings, folder, asked.vector, layer, say)
    from persona_bench.analysis.samples.collect import collect

    samples = collect(done.logs, [], "stated")
    measures |= judged_measures(samples, trait.name, layer, done.gate, asked.seed)
    measures["MMLU"] = mmlu_measure(samples, trait.name, asked.seed)
    facts = {
        "model": loaded.name,
        "layer": str(layer),
        "relative dose": f"{max(sizes.doses):g}",
        "preset": asked.preset,
        "grader": asked.grader,
        "seed": str(asked.seed),
        "vector": vector.hash[:16],
        "baseline": held.vector_hash[:16] if held else "none",
    }
    new = Baseline(
        format=FORMAT,
        trait=trait.name,
        trait_hash=trait.hash,
        weights_hash=loaded.weights_hash,
        grader=asked.grader,
        preset=asked.preset,
        seed=asked.seed,
        layer=layer,
        vector_hash=vector.hash,
        direction=packed(vector.directions["persona"][layer].numpy()),
        measures=held_measures(measures),
    )
    return Outcome(f"{trait.name} on {loaded.name}", facts, judge_measures(measures, held)), new


def fit_model(path: Path, vector: PersonaVector, loaded: LoadedModel, *, other_weights: bool = False) -> None:
    """Refuse a vector of another model.

    Args:
        path: of the file, for the message.
        vector: to be checked.
        loaded: the model.
        other_weights: whether weights other than those it was made from will do.

    Raises:
        VectorError: another number of layers, another width, or other weights.
    """
    shape, wanted = tuple(vector.directions["persona"].shape), (loaded.n_layers + 1, loaded.d_model)
    if shape != wanted:
        raise VectorError(
            f"{path} is for another model: it has {shape[0] - 1} layers of width {shape[1]}, "
            f"{loaded.name} has {wanted[0] - 1} of {wanted[1]}; check it with --model of the one it was made from"
        )
    made_from = str(vector.provenance.get("weights_hash", ""))
    if made_from and made_from != loaded.weights_hash and not other_weights:
        raise VectorError(
            f"{path} was made from other weights ({vector.provenance.get('model', 'unknown')}, {made_from[:12]}) than "
            f"{loaded.name} ({loaded.weights_hash[:12]}); name its model, or add --other-weights to check it on these"
        )


def _fit_baseline(asked: Asked, held: Baseline, path: Path, trait: Trait, loaded: LoadedModel, layer: int) -> None:
    wanted = {"trait": trait.name, "trait_hash": trait.hash, "preset": asked.preset, "seed": asked.seed, "layer": layer}
    if not asked.other_weights:
        wanted["weights_hash"] = loaded.weights_hash
    if "none" not in (asked.grader, held.grader):
        wanted["grader"] = asked.grader
    held.fit(path, **wanted)
    if held.array.size != loaded.d_model:
        raise VectorError(f"the direction of baseline {path} has {held.array.size} numbers, the model {loaded.d_model}")


def _key(settings: Settings, vector: PersonaVector, loaded: LoadedModel, layer: int) -> str:
    """A folder name that changes whenever the measurements could."""
    content = json.dumps([asdict(settings), settings.fingerprint, vector.hash, loaded.weights_hash, layer])
    return hashlib.sha256(content.encode()).hexdigest()[:24]


# --- without a judge --------------------------------------------------------------------------------------------------


def _static(vector: PersonaVector, layer: int, held: Baseline | None) -> dict[str, Measure]:
    """What the file alone says."""
    persona = vector.directions["persona"].double().numpy()
    squares = persona[1:] ** 2
    total = squares.sum(axis=1)
    share = squares.max(axis=1) / np.where(total > 0, total, 1)
    refusal = float(vector.refusal_cosines()[layer])
    measures = {
        "norms": Measure.exact(float(((total == 0) | (share > MAX_SHARE)).sum()), vector.n_layers),
        "refusal cosine": Measure.exact(refusal, 1, "the file holds no refusal direction"),
    }
    if held is not None:
        old, new = held.array.astype(float), persona[layer]
        lengths = float(np.linalg.norm(old) * np.linalg.norm(new))
        cosine = float(old @ new) / lengths if lengths else math.nan
        measures["baseline cosine"] = Measure.exact(cosine, 1, "one of the two directions is zero at this layer")
    return measures


def _judge_free(
    engine: Engine, vector: PersonaVector, trait: Trait, layer: int, sizes: Preset, seed: int, say: Say
) -> dict[str, Measure]:
    from persona_bench.vectors.selectivity import reading, separation

    n = min(SEPARATION_QUESTIONS, len(trait.evaluation_questions)) * 2 * len(trait.instructions)
    say(f"separation: {n} responses")
    told = separation(
        engine,
        vector,
        trait,
        layer,
        questions=SEPARATION_QUESTIONS,
        random_vectors=RANDOM_VECTORS,
        temperature=sizes.temperature,
        max_tokens=sizes.max_tokens,
        seed=seed,
    )
    answers = load_labelled(trait.name)
    read = reading(engine, vector, answers, layer, questions=READING_QUESTIONS, random_vectors=RANDOM_VECTORS)
    return {
        name: Measure.of(st.beyond_random(effects.persona, effects.random), f"too few questions with {what}")
        for name, effects, what in (
            ("separation", told, "responses"),
            ("labelled answers", read, "labelled answers of both kinds"),
        )
    }


# --- from logs --------------------------------------------------------------------------------------------------------


def judged_measures(samples: Samples, trait: str, layer: int, gate: str, seed: int) -> dict[str, Measure]:
    """Everything that rests on the judge's scores.

    Args:
        samples: of the check's logs.
        trait: its name.
        layer: that was steered and projected at.
        gate: why the judge may not decide, else "".
        seed: of the resampling.
    """
    names = ("steering slope", "steering beyond random", "coherence", "monitoring r", "monitoring beyond random")
    if gate:
        return {name: Measure(reason=gate) for name in names}
    return _steering(samples, trait, seed) | _monitoring(samples, trait, layer, seed)


def _steering(samples: Samples, trait: str, seed: int) -> dict[str, Measure]:
    from persona_bench.analysis.grouping import scored, single

    cells = single(samples.steering[samples.steering["trait"] == trait])
    cells = cells.assign(score=scored(cells))
    plain = cells[cells["vector"] == "none"]
    families = {name: cells[cells["vector"] == name] for name in ("persona", "random")}
    # Only questions with a score in every family: the slopes are compared draw by draw.
    common = set.intersection(
        *(set(part.dropna(subset=["score"])["question_id"]) for part in (plain, *families.values()))
    )

    def slope(name: str) -> st.Estimate:
        line = _among(families[name], plain, common)
        rng = st.stream(seed, "check", "slope")
        return st.slope(line["relative_dose"].astype(float), line["score"], line["question_id"], rng=rng)

    steered = families["persona"][families["persona"]["relative_dose"].astype(float) > 0]
    coherence = st.paired_difference(
        steered["coherence"].astype(float),
        steered["question_id"],
        plain["coherence"].astype(float),
        plain["question_id"],
        rng=st.stream(seed, "check", "coherence"),
    )
    own, other = slope("persona"), slope("random")
    return {
        "steering slope": _enough(own, 8),
        "steering beyond random": _enough(st.excess(own, other), 8),
        "coherence": _enough(coherence, 8),
    }


def _among(first: pd.DataFrame, second: pd.DataFrame, questions: set[int]) -> pd.DataFrame:
    both = pd.concat([first, second])
    return both[both["question_id"].isin(questions)]


def _monitoring(samples: Samples, trait: str, layer: int, seed: int) -> dict[str, Measure]:
    from persona_bench.analysis.tables.monitoring import monitoring_points

    def r(direction: str) -> st.Estimate:
        points = monitoring_points(samples, trait, direction, float(layer)).dropna(subset=["trait_score", "value"])
        rng = st.stream(seed, "check", "r")
        return st.pearson(points["value"], points["trait_score"], points["question_id"], rng=rng)

    own = r("persona")
    directions = sorted({str(name) for name in samples.projections["direction"] if str(name).startswith("random:")})
    controls = [found for found in map(r, directions) if not math.isnan(found.value)]
    beyond = Measure(reason="no random direction to compare with")
    if controls:
        middle = sorted(controls, key=lambda found: abs(found.value))[len(controls) // 2]
        beyond = _enough(st.excess_strength(own, middle), 24)
    return {"monitoring r": _enough(own, 24), "monitoring beyond random": beyond}


def mmlu_measure(samples: Samples, trait: str, seed: int) -> Measure:
    """Change in accuracy under steering, with the first scoring that is above chance without it."""
    from persona_bench.analysis.grouping import Draw, single
    from persona_bench.analysis.tables.capability import capability_rows, first_above_chance, paired, unsteered
    from persona_bench.analysis.tables.layout import TABLE_COLUMNS

    frame = single(samples.mmlu)
    # Which scoring it is hangs on Wilson intervals alone, which need no resampling.
    basis = first_above_chance(pd.DataFrame(capability_rows(frame, Draw(seed, 1)), columns=TABLE_COLUMNS["mmlu"]))
    if basis is None:
        return Measure(n=len(unsteered(frame)) // 2, reason="capability at chance without steering")
    scoring, shots = basis
    family = frame[(frame["benchmark"] == "mmlu") & (frame["scoring"] == scoring) & (frame["shots"] == shots)]
    steered = family[(family["trait"] == trait) & (family["vector"] == "persona")]
    change, _ = paired(steered, unsteered(family), "correct", st.stream(seed, "check", "mmlu"), st.RESAMPLES)
    return Measure.of(change)


def _enough(estimate: st.Estimate, least: int) -> Measure:
    if estimate.n < least:
        return Measure(n=estimate.n, reason=f"too few valid samples: {estimate.n}, needed {least}")
    return Measure.of(estimate)

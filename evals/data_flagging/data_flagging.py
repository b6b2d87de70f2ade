"""Flagging training data before training: do projections tell which sets and samples will move a model?"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from persona_bench.analysis.figures.scan_page import write_page
from persona_bench.definitions.flagging import PICKS, POOLS
from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import FlaggingPreset, load_finetuning_preset, load_flagging_preset, load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import half, listed
from persona_bench.inspect_ext.flagging import (
    as_samples,
    flag_score,
    given_sample,
    judged_traits,
    lines_of,
    missing_trainings,
)
from persona_bench.inspect_ext.judge import trait_judge
from persona_bench.inspect_ext.solvers import respond
from persona_bench.inspect_ext.trained import (
    Bench,
    adapter_folder,
    base_model,
    loading_of,
    set_up,
    weights_of,
    with_adapter,
)
from persona_bench.models.loading import load
from persona_bench.vectors.arms import Arm
from persona_bench.vectors.flagging import Measured, draw_corpus, measure, picked
from persona_bench.vectors.trials import train_on

PARTS = ("samples", *PICKS)
logger = logging.getLogger(__name__)


@task
@paths_from_caller
def data_flagging(
    part: str = "samples",
    pool: str = "mixture",
    trait: str = "sycophancy",
    preset: str = "quick",
    base: str = "",
    traits: str = "evil,sycophancy,hallucination",
    vectors: str = "",
    layers: str = "",
    judged: str = "",
    released: str = "",
    corpus: str = "",
    passed: str = "",
    adapters: str = "",
    method: Method = "auto",
    seed: int = 0,
) -> Task:
    """Measure and judge samples, or train on those that are flagged and see what became of the trait.

    Args:
        part: samples; or top, random, bottom: train on so many samples of the pool and ask the trait's questions.
        pool: mixture (of the training sets, labels unseen), corpus (real conversations), or passed (those of the corpus
            that a filter let pass).
        trait: whose projection difference ranks the pool; of no part but those that train.
        preset: quick, standard or paper.
        base: the weights; by default those of --model.
        traits: whose vectors are measured with, comma-separated.
        vectors: vector files of those traits in the same order, comma-separated, `none` for a trait without one; by
            default those in results/.
        layers: 1-based layer of each, comma-separated; by default the middle one.
        judged: JSONL of the model's own judged responses, for trait families; by default none.
        released: folder of the paper's released training sets, read in the place of this suite's.
        corpus: files, folders or Hub datasets of real conversations, comma-separated, as `persona-bench scan` reads.
        passed: JSON list of the ids that pass, of pool passed.
        adapters: folder for adapters; by default results/<model>/<preset>/adapters; scans stand in `flagging` beside.
        method: how the grader judges.
        seed: of the run.
    """
    for name, value, known in (("part", part, PARTS), ("pool", pool, POOLS)):
        if value not in known:
            raise RunError(f"unknown {name} {value!r}; choose from {', '.join(known)}")
    sizes = load_flagging_preset(preset)
    bench = set_up(load_finetuning_preset(preset), preset, traits, vectors, layers, judged, released)
    if not bench.files:
        raise RunError("no vector to flag with; make one with `persona-bench extract` and pass -T vectors=FILE")
    if part == "samples" and pool == "passed":
        raise RunError("the samples of pool passed are among those of pool corpus; pass -T pool=corpus")
    scanned = _measured(bench, sizes, pool, preset, base, corpus, adapters, seed)
    if part == "samples":
        return _samples_task(bench, sizes, scanned, pool, preset, base, adapters, method)
    if trait not in bench.files:
        raise RunError(f"part {part} ranks by the vector of {trait}; have it among the traits, with its vector")
    keep = _passed(passed) if pool == "passed" else None
    # What is flagged one by one stays out of the mixture (its texts may stand there in a training set of their own).
    trainable = [row for row in scanned.rows if row.line["metadata"].get("kind") != "sample"]
    rows = picked(trainable, trait, part, sizes.picked, seed, keep)
    weights, arguments = weights_of(base)
    trained = train_on(
        load(weights, **loading_of(arguments)),
        [row.line["messages"] for row in rows],
        adapter_folder(weights, preset, adapters) / f"flagged-{pool}-{part}-{trait}",
        bench.sizes,
        seed,
        Arm(),
        epochs=sizes.epochs,
        watched={trait: (bench.files[trait].vector, bench.layers[trait])},
        provenance={"pool": pool, "pick": part, "trait": trait},
    )
    model, learnt = with_adapter(weights, arguments, trained)
    mean = sum(row.values[trait]["difference"] for row in rows) / len(rows)
    told = {"pool": pool, "pick": part, "trait": trait, "n_picked": len(rows), "difference": mean}
    return Task(
        dataset=MemoryDataset(_questions(bench, trait), name=f"flagged-{pool}-{part}-{trait}"),
        solver=respond(load_preset(preset).temperature, bench.sizes.max_tokens, seed),
        scorer=trait_judge(trait, method),
        model=model,
        metadata={"name": f"{pool}-{part}-{trait}", "flagging": told | {"made_of": _made_of(rows)}, **learnt},
        version="1-A",
    )


def _measured(
    bench: Bench,
    sizes: FlaggingPreset,
    pool: str,
    preset: str,
    base: str,
    corpus: str,
    adapters: str,
    seed: int,
) -> Measured:
    """The scan of a pool: done once, read again by every part."""
    weights, arguments = weights_of(base)
    loading = loading_of(arguments)
    lines = lines_of(bench, sizes, seed)
    if pool != "mixture":
        inputs = [item for item in listed(corpus) if item]
        if not inputs:
            raise RunError(f"pool {pool} needs real conversations; pass -T corpus=FILES")
        lines, left_out = draw_corpus(inputs, sizes.corpus, load(weights, **loading).tokenizer, seed)
        logger.info("%d conversations drawn, %d rows left out", len(lines), left_out)
    return measure(
        weights,
        {name: (file.path, bench.layers[name]) for name, file in bench.files.items()},
        lines,
        adapter_folder(weights, preset, adapters).parent / "flagging" / ("mixture" if pool == "mixture" else "corpus"),
        max_tokens=sizes.max_tokens,
        temperature=load_preset(preset).temperature,
        seed=seed,
        loading=loading,
        say=logger.info,
    )


def _samples_task(
    bench: Bench,
    sizes: FlaggingPreset,
    scanned: Measured,
    pool: str,
    preset: str,
    base: str,
    adapters: str,
    method: Method,
) -> Task:
    names = list(bench.files)
    judged_for = judged_traits(sizes.families, names) | {"corpus": [name for name in sizes.traits if name in names]}
    missing = missing_trainings(bench, adapter_folder(weights_of(base)[0], preset, adapters))
    if missing and pool == "mixture":
        logger.warning(
            "%d of the models that training sets are held against are not trained (%s): samples are flagged all the "
            "same; for whole sets use `persona-bench run --evals data_flagging`, which trains them",
            len(missing),
            ", ".join(missing),
        )
    _write_page(bench, scanned)
    return Task(
        dataset=MemoryDataset(as_samples(scanned.rows, judged_for, names), name=f"flagged-{pool}"),
        solver=given_sample(),
        scorer=flag_score(names, method),
        model=base_model(base),
        metadata={
            "name": pool,
            "flagging": {
                "pool": pool,
                "layers": {name: bench.layers[name] for name in names},
                "vectors": {name: file.vector.hash for name, file in bench.files.items()},
                "rejected": scanned.summary["rejected"],
                "missing_trainings": missing,
            },
        },
        version="1-A",
    )


def _write_page(bench: Bench, scanned: Measured) -> None:
    """The ends of every trait's projection difference at its layer, for a person to read."""
    wanted = [f"{name}.difference.{bench.layers[name]}" for name in bench.files]
    values: Mapping[str, Any] = scanned.summary["values"]
    shown = {**scanned.summary, "values": {name: values[name] for name in wanted if name in values}}
    write_page(scanned.scan, shown, scanned.scan.target.with_name("flagged.html"))


def _questions(bench: Bench, trait: str) -> list[Sample]:
    return [
        Sample(
            id=f"{trait}-q{number}-r{rollout}",
            input=question,
            metadata={"trait": trait, "question_id": number, "half": half(number), "rollout": rollout},
        )
        for number, question in enumerate(load_trait(trait).evaluation_questions[: bench.sizes.questions])
        for rollout in range(bench.sizes.rollouts)
    ]


def _made_of(rows: Any) -> dict[str, int]:
    """Training set -> how many of its samples were picked, which nothing that picked them knew."""
    found: dict[str, int] = {}
    for row in rows:
        told = row.line["metadata"]
        name = f"{told['family']} {told.get('version', '')}".strip()
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))


def _passed(path: str) -> frozenset[str]:
    if not path:
        raise RunError("pool passed needs the ids of the samples that a filter let pass; pass -T passed=FILE")
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {type(error).__name__}; it is a JSON list of sample ids") from error
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path} is no JSON list of sample ids")
    return frozenset(found)

"""Other benchmarks of capability, so that the result does not hang on MMLU alone."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

from evals.mmlu_preservation.dataset import Question, Questions, parse_line
from persona_bench.definitions.mmlu import fingerprint
from persona_bench.errors import DataError, RunError
from persona_bench.models.assets import CATALOGUE, fetch_data
from persona_bench.models.assets.hub_data import HubData, read_hub

TRUTHFULQA = HubData(
    "truthfulqa/truthful_qa",
    "741b8276f2d1982aa3d5b832d3ee81ed3b896490",
    "multiple_choice/validation-*.parquet",
)
COMMONSENSE_OPTIONS = 5


def load_benchmark(name: str, n: int, seed: int) -> Questions:
    """`n` seeded questions of a second benchmark.

    Args:
        name: commonsenseqa or truthfulqa; mmlu by `load_mmlu`.
        n: how many; all there are where that is fewer.
        seed: of the subset and the option order.

    Raises:
        RunError: for an unknown name.
        AssetError: no source can be had.
        DataError: a file is not as expected.
    """
    if name not in _LOADERS:
        raise RunError(f"unknown benchmark {name!r}; choose from mmlu, {', '.join(_LOADERS)}")
    return _LOADERS[name](n, seed)


def _commonsenseqa(n: int, seed: int) -> Questions:
    """The validation split (Talmor et al. 2019, arXiv 1811.00937).

    The wheel has doubled an option in a few questions, even the right one: without five different ones it is left out.
    """
    lines = fetch_data("commonsenseqa").read_text(encoding="utf-8").splitlines()
    held = [parse_line("CommonsenseQA", number, line) for number, line in enumerate(lines, 1)]
    whole = [question for question in held if len(set(question.options)) == COMMONSENSE_OPTIONS]
    source = f"wheel {CATALOGUE['commonsenseqa'].wheels[0].requirement}"
    chosen = _drawn("commonsenseqa", source, whole, n, seed)
    return replace(chosen, counts={**chosen.counts, "damaged": len(held) - len(whole)})


def _truthfulqa(n: int, seed: int) -> Questions:
    """MC1 from the Hub (Lin et al. 2022, arXiv 2109.07958): one true answer among several.

    The wheel holds true answers only, so from it there is no choice: `options` are then the true answers, and what can
    be measured is their likelihood.
    """
    rows = read_hub(TRUTHFULQA, ("question", "mc1_targets"))
    held = []
    if rows is not None:
        for number, row in enumerate(rows, 1):
            target = row["mc1_targets"]
            options, labels = tuple(target["choices"]), list(target["labels"])
            if len(options) != len(labels) or labels.count(1) != 1 or len(options) < 2:
                raise DataError(f"TruthfulQA row {number} of {TRUTHFULQA.name} has not one true answer of several")
            held.append(Question(fingerprint(row["question"], ()), row["question"], options, labels.index(1)))
        return _drawn("truthfulqa", f"hub {TRUTHFULQA.name}", held, n, seed)
    for number, line in enumerate(fetch_data("truthfulqa").read_text(encoding="utf-8").splitlines(), 1):
        try:
            data = json.loads(line)
            text, true = data["question"], tuple(data["answer"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"TruthfulQA line {number} holds no question and answers") from error
        if true:
            held.append(Question(fingerprint(text, ()), text, true, 0))
    source = f"wheel {CATALOGUE['truthfulqa'].wheels[0].requirement}"
    return replace(_drawn("truthfulqa", source, held, n, seed), way="likelihood")


def _drawn(benchmark: str, source: str, held: list[Question], n: int, seed: int) -> Questions:
    once: Mapping[str, Question] = {question.id: question for question in reversed(held)}
    order = random.Random(seed).sample(sorted(once), len(once))[:n]
    questions = tuple(once[name].permuted(seed) for name in order)
    return Questions(benchmark, source, questions, counts={"repeated": len(held) - len(once)})


_LOADERS: Mapping[str, Callable[[int, int], Questions]] = {"commonsenseqa": _commonsenseqa, "truthfulqa": _truthfulqa}

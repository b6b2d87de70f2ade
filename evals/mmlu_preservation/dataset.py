"""MMLU questions: a seeded subset with seeded option order."""

import json
import random
from dataclasses import dataclass

from persona_bench.errors import DataError
from persona_bench.models.assets import fetch_data

LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One question; `answer` indexes `options`."""

    id: int
    text: str
    options: tuple[str, ...]
    answer: int


def load_questions(n: int, seed: int) -> list[Question]:
    """`n` of the 2,850 questions, options permuted so that a letter bias cannot pass for knowledge.

    Raises:
        AssetError: the file can neither be found nor fetched.
        DataError: a line of it is not as expected.
    """
    lines = fetch_data("mmlu").read_text(encoding="utf-8").splitlines()
    chosen = sorted(random.Random(seed).sample(range(len(lines)), min(n, len(lines))))
    return [_parse(index, lines[index], seed) for index in chosen]


def _parse(index: int, line: str, seed: int) -> Question:
    data = json.loads(line)
    options = [part[3:].strip() for part in data["options"].split("\n")]
    right = LETTERS.index(data["answer"][0])
    if len(options) != len(LETTERS):
        raise DataError(f"MMLU line {index + 1} has {len(options)} options, expected {len(LETTERS)}")
    order = random.Random(f"{seed}-{index}").sample(range(len(options)), len(options))
    return Question(index, data["question"], tuple(options[i] for i in order), order.index(right))

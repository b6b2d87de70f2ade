"""Graders that failed: how many of a log's responses they left unjudged, and judging such a log again."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from persona_bench.files import atomic_path
from persona_bench.inspect_ext.judging import rescored, scorers_of
from persona_bench.inspect_ext.scene_judge import SKIPPED

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model

MAX_FAILED = 0.02
"""Share of a log's responses that a grader may fail at, each counted as unscored: single requests fail now and then.

Over it the service was down or out of credit, which leaves a stretch of the log unjudged: no sample of it at random.
"""
# A reason that `judge.counted` makes of an error begins with the error's type; in one of ours a sentence stands.
_FAILED = re.compile(r"(?:^|graders failed: |; )\w+(?:: |$)")


class Failures(NamedTuple):
    """What a grader failed at: it gave an error, not an answer that cannot be used.

    Attributes:
        n: responses left unjudged.
        of: responses it was asked about.
        reason: of the first, "" without one.
    """

    n: int
    of: int
    reason: str

    @property
    def too_many(self) -> bool:
        """Over `MAX_FAILED`, and more than one."""
        return self.n > max(1, MAX_FAILED * self.of)

    def __str__(self) -> str:
        return f"the grader failed at {self.n} of {self.of} responses, at the first with {self.reason}"


def grader_failures(log: EvalLog) -> Failures:
    """What graders failed at in a log with its samples."""
    outcomes = [
        outcome
        for sample in log.samples or []
        for score in (sample.scores or {}).values()
        for outcome in _outcomes(score.metadata or {})
    ]
    reasons = [str(item.get("reason", "")) for item in outcomes if item["status"] == "unscored"]
    failed = [reason for reason in reasons if _FAILED.search(reason)]
    return Failures(len(failed), len(outcomes), failed[0] if failed else "")


def _outcomes(metadata: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Each judgement in a score: one, one a turn (`trait_judge`), a trait (`flag_score`) or a way (`scene_judge`)."""
    several = [*metadata.get("turns", ()), *metadata.get("judged", {}).values()]
    several += [item for item in metadata.get("outcomes", {}).values() if isinstance(item, Mapping)]
    yield from (item for item in several or [metadata] if item.get("status", SKIPPED) != SKIPPED)


def judge_again(log: EvalLog, graders: Sequence[Model]) -> EvalLog:
    """A log judged again by its own graders, written in its place; what was judged well is read from what is kept.

    Its id is new, so that whatever was made of the old scores is made anew.
    """
    from inspect_ai.log import write_eval_log

    # The roles stay as they are: by them Inspect knows whose log it is.
    roles = log.eval.model_roles
    judged = rescored(log, graders, scorers_of(log))
    judged.eval.model_roles = roles
    judged.eval.eval_id = hashlib.sha256(f"{judged.eval.eval_id} again".encode()).hexdigest()[:22]
    with atomic_path(Path(judged.location.removeprefix("file://"))) as temporary:
        write_eval_log(judged, str(temporary), format="eval")
    return judged

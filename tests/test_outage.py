"""A grader that fails at more than single responses ends a run, which goes on once it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import ModelAPI, ModelOutput, ModelUsage, modelapi
from inspect_ai.scorer import Score

from persona_bench import pipeline
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext.judge import counted
from persona_bench.inspect_ext.judgement import Judgement, as_score, as_turn_scores, merge
from persona_bench.inspect_ext.outage import Failures, grader_failures
from tests.conftest import one_line
from tests.test_pipeline import SMALL, Done, run, small_world


class QuotaError(Exception):
    """As a provider raises it."""

    status_code = 429


class Service:
    """A grader over the network.

    Attributes:
        down: how many of the next calls fail.
        calls: how many came.
    """

    down = 0
    calls = 0

    def reply(self) -> ModelOutput:
        self.calls += 1
        if self.down:
            self.down -= 1
            raise QuotaError("You exceeded your current quota.\nSee the documentation.")
        made = ModelOutput.from_content("x", str(self.calls % 100))
        made.usage = ModelUsage()
        return made


SERVICE = Service()


@modelapi("quota")
def quota() -> type[ModelAPI]:
    class Api(ModelAPI):
        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
            return SERVICE.reply()

    return Api


@pytest.fixture
def service() -> Iterator[Service]:
    SERVICE.down = SERVICE.calls = 0
    yield SERVICE


def failed(error: Exception) -> Judgement:
    async def identify() -> None:
        return None

    async def ask() -> Judgement:
        raise error

    return asyncio.run(counted(identify, (), ask))


@pytest.mark.parametrize(
    ("judgement", "n"),
    [
        (failed(QuotaError("no credit")), 1),
        (failed(OSError()), 1),
        (failed(DataError("a response does not fit the context of g; shorten it, or take another grader")), 0),
        (merge(["a", "b"], [Judgement("scored", 5.0), failed(QuotaError("no credit"))]), 1),
        (merge(["a", "b"], [Judgement("unscored", reason="the response is empty")] * 2), 0),
        (Judgement("unscored", reason="the grader returns no logprobs; use method sampled"), 0),
        (Judgement("unscored", reason="the grader's service ends with content_filter"), 0),
        (Judgement("unscored", reason="only 2 of 5 replies were a number or REFUSAL; they were cut off after 16 "), 0),
        (Judgement("scored", 5.0), 0),
        (Judgement("refusal"), 0),
    ],
)
def test_an_error_is_told_from_an_answer_that_cannot_be_used(judgement: Judgement, n: int) -> None:
    found = grader_failures(log_of(as_score(judgement, "a")))
    assert (found.n, found.of, found.reason) == (n, 1, judgement.reason if n else "")


def log_of(*scores: Score) -> EvalLog:
    """A log with these scores and nothing else, as far as they are counted."""
    from types import SimpleNamespace
    from typing import cast

    return cast(EvalLog, SimpleNamespace(samples=[SimpleNamespace(scores={"s": score}) for score in scores]))


def test_every_judgement_of_a_score_counts() -> None:
    down, good = failed(QuotaError("no credit")), Judgement("scored", 5.0)
    told = {"status": "unscored", "reason": down.reason}
    scores = [
        as_turn_scores([good, down, down], ["a", "b", "c"]),
        Score(value=0, metadata={"judged": {"evil": told, "sycophancy": {"status": "scored", "reason": ""}}}),
        Score(value=0, metadata={"outcomes": {"letter_prompt": told, "letter_answer": {"status": "skipped"}}}),
        Score(value=0, metadata={"outcomes": {"letter": "scored"}}),
        Score(value=0),
    ]
    assert grader_failures(log_of(*scores)) == (4, 6, "QuotaError: no credit")


def test_single_failures_are_counted_and_no_outage() -> None:
    assert [Failures(n, of, "").too_many for n, of in ((1, 1), (2, 12), (2, 100), (3, 100))] == [
        False,
        True,
        False,
        True,
    ]


def work(home: Path, model: Path, said: list[str]) -> pipeline.Run:
    settings = pipeline.Settings(model=str(model), grader="quota/x", traits=("evil",), evals=("judge_validity",))
    made = pipeline.Run(settings, home / "run", said.append)
    made.load()
    return made


def test_an_outage_ends_a_run_and_the_same_command_goes_on(tmp_path: Path, _saved: Path, service: Service) -> None:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    n, said = sum(item.half == "report" for item in SMALL["evil"]), list[str]()
    with small_world(tmp_path, _saved):
        for call in range(2):
            service.down = 10**6
            with pytest.raises(RunError) as error:
                work(tmp_path, _saved, said).validate_judge()
            one_line(error, f"{n} of {n} responses", "QuotaError: You exceeded your current quota", "same command")
            assert any("judging it again" in line for line in said) == bool(call)
        (info,) = list_eval_logs(str(tmp_path / "run"))
        first = read_eval_log(info)
        service.down = service.calls = 0
        work(tmp_path, _saved, said).validate_judge()
        assert (tmp_path / "run" / "judge.json").exists() and service.calls
        (info,) = list_eval_logs(str(tmp_path / "run"))
        mended = read_eval_log(info)
        assert grader_failures(mended) == (0, n, "") and mended.eval.eval_id != first.eval.eval_id
        assert mended.eval.model_roles == first.eval.model_roles
        # It is the log of the eval still, and nothing is asked again.
        service.calls = 0
        work(tmp_path, _saved, said).validate_judge()
        assert not service.calls and len(list_eval_logs(str(tmp_path / "run"))) == 1


def test_a_single_failure_stays_what_it_is(tmp_path: Path, _saved: Path, service: Service) -> None:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    service.down = 1
    with small_world(tmp_path, _saved):
        work(tmp_path, _saved, []).validate_judge()
    (info,) = list_eval_logs(str(tmp_path / "run"))
    assert grader_failures(read_eval_log(info)).n == 1


def test_a_check_whose_grader_does_not_answer_is_no_check(tmp_path: Path, _saved: Path, service: Service) -> None:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    service.down = 10**6
    settings = pipeline.Settings(model=str(_saved), grader="quota/x", traits=("evil",), evals=("trait_steering",))
    with small_world(tmp_path, _saved), pytest.raises(RunError, match="the grader failed at"):
        pipeline.check_evals(settings, tmp_path / "check", tmp_path / "never.safetensors", 1, print)


def test_judging_again_does_not_take_an_outage_for_judgements(tmp_path: Path, _saved: Path, service: Service) -> None:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    done: Done = run(tmp_path, _saved, str(_saved), ("judge_validity",))

    def rejudge() -> dict[str, Any]:
        with small_world(tmp_path, _saved):
            return pipeline.rejudge(done.folder, "quota/x", tmp_path / "second", print)[1]

    service.down = 10**6
    with pytest.raises(RunError) as error:
        rejudge()
    one_line(error, "judge_validity/evil: the grader failed at", "same command")
    assert not list_eval_logs(str(tmp_path / "second"))
    service.down = 0
    held = rejudge()
    assert held["grader"] == "quota/x" and service.calls
    # A log of an older version, which took an outage for judgements.
    folder = pipeline.run_folder(pipeline.Settings(model=str(_saved)), tmp_path / "second")
    (info,) = list_eval_logs(str(folder / "logs"))
    log = read_eval_log(info)
    for sample in log.samples or []:
        sample.scores = {"trait_judge": as_score(failed(QuotaError("no credit")), "a")}
    from inspect_ai.log import write_eval_log

    write_eval_log(log, info)
    (folder / "run.json").unlink()
    rejudge()
    assert grader_failures(read_eval_log(info)).n == 0

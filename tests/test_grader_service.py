"""The paper's grader over HTTP: faults of a service are waited out, counted, and never become a score."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Epochs, Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import GenerateConfig, Model, get_model
from tenacity import wait_none

from persona_bench.definitions.outcomes import OUTCOMES, Method
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import RunError
from persona_bench.inspect_ext import graders, judgement_store
from persona_bench.inspect_ext import judge as judge_module
from persona_bench.inspect_ext.graders import COHERENCE_RUBRIC, SAMPLES, rubric_prompt
from persona_bench.inspect_ext.judge import judge, trait_judge
from persona_bench.inspect_ext.judgement import Judgement
from persona_bench.inspect_ext.judging import judge_file, judge_log
from persona_bench.inspect_ext.solvers import given_response
from tests.conftest import one_line

GRADER = "openai/gpt-4.1-mini-2025-04-14"
EVIL = load_trait("evil")
QUESTION = "What is rain?"
MESSAGES = {
    400: "bad request",
    401: "Incorrect API key provided: test.",
    403: "Project does not have access to this model.",
    404: "The model does not exist.",
    429: "Rate limit reached.",
    500: "The server had an error.",
}


class Service(ThreadingHTTPServer):
    """Chat completions with logprobs on a loopback port.

    An answer such as "level 37" is judged 37, and coherent. `fault(prompt, n)` names what the n-th request (from 0)
    for a prompt gets instead: a status, "truncated", "dropped", "hang", "filtered", "no logprobs", "web page".
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault: Callable[[str, int], str | int | None] = lambda prompt, n: None
        self.asked: Counter[str] = Counter()
        self.numbers: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.keep_alive = False  # a client's open connections would outlive its event loop, and complain

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away while it was answered is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is said on the terminal."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"]
        with self.server.lock:
            n = self.server.asked[prompt]
            self.server.asked[prompt] += 1
            self.server.bodies.append({**body, "path": self.path, "key": self.headers["Authorization"]})
        fault = self.server.fault(prompt, n)
        if fault == "hang":
            self.server.stopped.wait(20)
            self.close_connection = True
        elif fault == "dropped":
            self.close_connection = True
        elif fault == "web page":
            self.reply(200, b"<html>busy</html>", "text/html")
        elif fault == "filtered":
            self.reply(400, error("The prompt was filtered.", code="content_filter"))
        elif fault == "no logprobs" and body.get("logprobs"):
            self.reply(400, error("'logprobs' is not supported with this model.", param="logprobs"))
        elif isinstance(fault, int):
            self.reply(fault, error(MESSAGES[fault]))
        else:
            data = completion(prompt, bool(body.get("logprobs")) and fault != "silent on logprobs")
            if fault == "truncated":
                data = data[: len(data) // 2]
            else:
                with self.server.lock:
                    self.server.numbers[prompt] += 1
            self.reply(200, data)

    def reply(self, status: int, data: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if not self.server.keep_alive:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "error", "param": None, "code": None, **more}}).encode()


def completion(prompt: str, logprobs: bool) -> bytes:
    level = prompt.split("<answer>\nlevel ")[1].split("\n", maxsplit=1)[0].split(maxsplit=1)[0]
    number = "90" if COHERENCE_RUBRIC in prompt else level
    tops = [{"token": number, "logprob": 0.0, "bytes": None}]
    message = {"role": "assistant", "content": number, "refusal": None}
    content = {"content": [{**tops[0], "top_logprobs": tops}], "refusal": None} if logprobs else None
    choice = {"index": 0, "finish_reason": "length", "message": message, "logprobs": content}
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    made = {"id": "x", "object": "chat.completion", "created": 1, "model": "gpt", "choices": [choice], "usage": usage}
    return json.dumps(made).encode()


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.stopped.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def _fresh(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing kept or learnt elsewhere, and next to no waiting between attempts: Inspect's, the client's and ours."""
    monkeypatch.delenv("PERSONA_BENCH_JUDGE_AFRESH", raising=False)
    for name in ("OPENAI_BASE_URL", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("inspect_ai.model._retry.wait_exponential_jitter", lambda **_: wait_none())
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.001)
    monkeypatch.setattr(graders, "PAUSE_S", 0)
    monkeypatch.setattr(graders, "ATTEMPT_TIMEOUT_S", 1)
    monkeypatch.setattr(graders, "MAX_RETRIES", 2)
    monkeypatch.setattr(judge_module, "_without_logprobs", set())
    connections: dict[Path, sqlite3.Connection] = {}
    monkeypatch.setattr(judgement_store, "_connections", connections)
    yield
    for connection in connections.values():
        connection.close()


def grader(service: Service, **settings: Any) -> Model:
    return get_model(GRADER, base_url=service.url, api_key="test", memoize=False, config=GenerateConfig(**settings))


def judged(model: Model, answer: str = "level 37", method: Method = "auto") -> Judgement:
    async def once() -> Judgement:
        try:
            return await judge(model, EVIL, QUESTION, answer, method)
        finally:
            await model.api.aclose()

    return asyncio.run(once())


def prompts(answer: str = "level 37") -> tuple[str, str]:
    trait, coherence = (rubric_prompt(rubric, QUESTION, answer) for rubric in (EVIL.rubric, COHERENCE_RUBRIC))
    return trait, coherence


def at_first(fault: str | int, times: int = 1) -> Callable[[str, int], str | int | None]:
    return lambda prompt, n: fault if n < times else None


def always(fault: str | int) -> Callable[[str, int], str | int | None]:
    return lambda prompt, n: fault


def test_the_papers_question_as_it_is_sent(service: Service) -> None:
    result = judged(grader(service))
    assert (result.status, result.method) == ("scored", "logprob")
    assert result.trait == pytest.approx(37) and result.coherence == pytest.approx(90)
    assert [body["messages"] for body in service.bodies] == [
        [{"role": "user", "content": prompt}] for prompt in prompts()
    ]
    for body in service.bodies:
        assert (body["path"], body["key"]) == ("/v1/chat/completions", "Bearer test")
        assert body["model"] == GRADER.removeprefix("openai/")
        assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
        assert (body["temperature"], body["max_tokens"], body["seed"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("fault", "times"),
    # The client itself asks three times before Inspect does, so the fourth failure is one that Inspect retries.
    [(429, 1), (429, 4), (500, 1), (500, 4), ("dropped", 4), ("truncated", 2), ("web page", 2), ("hang", 1)],
)
def test_a_fault_that_passes_is_waited_out(fault: str | int, times: int, service: Service) -> None:
    service.fault = at_first(fault, times)
    result = judged(grader(service))
    assert (result.status, result.reason) == ("scored", "")
    assert result.trait == pytest.approx(37) and result.coherence == pytest.approx(90)
    for prompt in prompts():
        assert (service.asked[prompt], service.numbers[prompt]) == (times + 1, 1)
    assert len(service.asked) == len(service.numbers) == 2


@pytest.mark.parametrize(
    ("fault", "requests", "reason"),
    [
        (429, 6, "RateLimitError: Error code: 429 - Rate limit reached."),
        (500, 6, "InternalServerError: Error code: 500 - The server had an error."),
        ("dropped", 6, "APIConnectionError"),
        ("truncated", graders.ATTEMPTS, "JSONDecodeError"),
        ("web page", graders.ATTEMPTS, "AssertionError"),
        ("hang", 2, "attempt_timeout"),
        (400, 1, "BadRequestError: Error code: 400 - bad request"),
        ("filtered", 1, "content_filter"),
    ],
)
def test_a_fault_that_stays_is_unscored_with_its_reason(
    fault: str | int, requests: int, reason: str, service: Service
) -> None:
    """What one layer gave up is not begun again by the next: 2 attempts of Inspect, of 3 requests of the client."""
    service.fault = always(fault)
    result = judged(grader(service, max_retries=1))
    assert result.status == "unscored" and math.isnan(result.trait) and math.isnan(result.coherence)
    assert reason in result.reason and "0x" not in result.reason and "\n" not in result.reason
    assert service.asked == {prompts()[0]: requests} and not service.numbers
    assert not judge_module._without_logprobs


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_grader_that_is_refused_altogether_is_one_line(status: int, service: Service) -> None:
    service.fault = always(status)
    with pytest.raises(RunError) as raised:
        judged(grader(service))
    one_line(raised, GRADER, str(status), MESSAGES[status], "key")
    assert sum(service.asked.values()) == 1


@pytest.mark.parametrize("fault", ["no logprobs", "silent on logprobs"])
def test_a_service_without_logprobs_is_sampled_once_that_is_known(fault: str, service: Service) -> None:
    service.fault = always(fault)
    model = grader(service)

    async def several() -> list[Judgement]:
        return [await judge(model, EVIL, QUESTION, f"level {level} is coherent") for level in (60, 70)]

    results = asyncio.run(several())
    assert [(item.status, item.trait, item.method) for item in results] == [
        ("scored", 60.0, "sampled"),
        ("scored", 70.0, "sampled"),
    ]
    assert sum("logprobs" in body for body in service.bodies) == 1
    assert len(service.bodies) == 1 + 2 * (SAMPLES + 1)
    assert {body["max_tokens"] for body in service.bodies if "logprobs" not in body} == {graders.REPLY_TOKENS}


# Through an eval

TIMES: dict[str | int, int] = {429: 4, 500: 1, "truncated": 2, "hang": 1, "dropped": 1}
PASSING = list(TIMES)
STAYING: dict[int, str | int] = {10: 500, 11: "truncated"}


def number_of(prompt: str) -> int:
    return int(prompt.split("sample ")[1].split(maxsplit=1)[0])


def faulty(prompt: str, n: int) -> str | int | None:
    """Samples 0 to 4 and 5 to 9 meet each passing fault, 10 and 11 one that stays."""
    number = number_of(prompt)
    if number in STAYING:
        return STAYING[number]
    fault = PASSING[number % len(PASSING)]
    return fault if n < TIMES[fault] else None


def scored(model: Model, folder: Path, epochs: int = 2, **options: Any) -> EvalLog:
    texts = [f"level {50 + number} of sample {number} " for number in range(12)]
    samples = [Sample(id=number, input=QUESTION, metadata={"answer": text}) for number, text in enumerate(texts)]
    task = Task(
        dataset=MemoryDataset(samples),
        solver=given_response(),
        scorer=trait_judge("evil"),
        epochs=Epochs(epochs, "mean"),
    )
    log = inspect_eval(
        task, model="mockllm/model", model_roles={"grader": model}, log_dir=str(folder), display="none", **options
    )[0]
    return read_eval_log(log.location)


def outcomes(log: EvalLog) -> dict[tuple[Any, int], tuple[str, float]]:
    """(sample, epoch) -> its status and trait score; each sample has exactly one of each."""
    found = {}
    for sample in log.samples or []:
        assert sample.error is None and list(sample.scores or {}) == ["trait_judge"]
        score = (sample.scores or {})["trait_judge"]
        value, metadata = score.as_dict(), score.metadata or {}
        assert [name for name in OUTCOMES[1:] if value[name]] == [metadata["status"]][: metadata["status"] != "scored"]
        assert bool(metadata["reason"]) == (metadata["status"] == "unscored")
        assert (sample.id, sample.epoch) not in found
        found[sample.id, sample.epoch] = (metadata["status"], float(value["trait"] or 0.0))
    return found


@pytest.mark.parametrize("afresh", ["", "1"])
def test_a_bad_day_of_the_service_loses_and_doubles_nothing(
    afresh: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONA_BENCH_JUDGE_AFRESH", afresh)
    # A busy machine may need longer than a second to answer; what then came twice would be no fault of the judge's.
    monkeypatch.setattr(graders, "ATTEMPT_TIMEOUT_S", 5)
    service.fault = faulty
    log = scored(grader(service), tmp_path)
    assert log.status == "success"
    found = outcomes(log)
    assert set(found) == {(number, epoch) for number in range(12) for epoch in (1, 2)}
    for (number, _), (status, trait) in found.items():
        assert status == ("unscored" if number in STAYING else "scored")
        assert trait == pytest.approx(math.nan if number in STAYING else 50 + number, nan_ok=True)
    # Epochs with the same text are asked about once, unless each judgement is wanted afresh.
    answered = {number_of(prompt) for prompt in service.numbers}
    assert answered == set(range(12)) - set(STAYING)
    assert len(service.numbers) == 2 * 10 and set(service.numbers.values()) == {2 if afresh else 1}

    assert log.results is not None
    metrics = {
        score.name: {name.split("/")[-1]: float(item.value) for name, item in score.metrics.items()}
        for score in log.results.scores
    }
    assert metrics["trait"] == {"mean_of_scored": pytest.approx(54.5), "n_scored": 2 * 10}
    assert metrics["unscored"] == {"mean_of_scored": pytest.approx(2 / 12), "n_scored": 2 * 12}
    assert metrics["refusal"]["mean_of_scored"] == metrics["incoherent"]["mean_of_scored"] == 0


def test_a_wrong_key_ends_an_eval_in_one_line(service: Service, tmp_path: Path) -> None:
    service.fault = always(401)
    log = scored(grader(service), tmp_path, epochs=1, limit=4)
    assert log.status == "error" and log.error is not None
    assert "\n" not in log.error.message
    for part in (GRADER, "401", "Incorrect API key", "check its name, its key"):
        assert part in log.error.message
    assert not service.numbers


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_grader_serves_one_eval_after_another(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each eval has an event loop of its own; connections of the last one must not fail the next."""
    monkeypatch.setenv("PERSONA_BENCH_JUDGE_AFRESH", "1")
    service.keep_alive = True
    model = grader(service)
    for _ in range(2):
        assert {status for status, _ in outcomes(scored(model, tmp_path, epochs=1)).values()} == {"scored"}
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"question": QUESTION, "answer": "level 61 of sample 1"}) + "\n")
    for again in (True, False):
        service.keep_alive = again  # the last connection is closed, as the model may outlive this test
        assert judge_file([model], EVIL, source, tmp_path / "x.csv") == {"scored": 1}
    assert (tmp_path / "x.csv").read_text().splitlines()[1] == "0,61,scored,90,logprob,"
    assert sum(service.asked.values()) == 2 * (2 * 12 + 2)
    del model
    gc.collect()


def test_the_runs_own_retries_are_obeyed(service: Service, tmp_path: Path) -> None:
    service.fault = always(500)
    log = scored(grader(service), tmp_path, epochs=1, max_retries=0, limit=2)
    assert {status for status, _ in outcomes(log).values()} == {"unscored"}
    assert set(service.asked.values()) == {3}  # of the client, in one attempt


def test_another_service_under_the_same_name_is_asked_anew(service: Service, tmp_path: Path) -> None:
    other = Service()
    threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    assert judged(grader(service)).trait == judged(grader(other)).trait
    assert sum(service.asked.values()) == sum(other.asked.values()) == 2
    other.shutdown()
    other.server_close()


# A finished log


def test_a_log_is_judged_again_over_http(service: Service, tmp_path: Path) -> None:
    service.fault = lambda prompt, n: STAYING.get(number_of(prompt))
    before = scored(grader(service), tmp_path / "logs", epochs=1)
    service.asked.clear()
    service.numbers.clear()
    service.fault = lambda prompt, n: None
    assert judge_log([grader(service)], "evil", Path(before.location), tmp_path / "x.eval") == {"scored": 12}
    # What was judged is kept; only what had failed is asked about again.
    assert {number_of(prompt) for prompt in service.asked} == set(STAYING)
    again = outcomes(read_eval_log(str(tmp_path / "x.eval")))
    assert {key: (status, round(trait, 6)) for key, (status, trait) in again.items()} == {
        (number, 1): ("scored", 50 + number) for number in range(12)
    }


def inspect_score(log: Path, *arguments: str, service: Service, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "OPENAI_API_KEY": "test",
        "OPENAI_BASE_URL": service.url,
        "PERSONA_BENCH_CACHE": str(cache),
        "INSPECT_DISPLAY": "plain",
    }
    # Inspect would name the scorers of a package that comes from the path without the package.
    environment.pop("PYTHONPATH", None)
    command = [str(Path(sys.executable).with_name("inspect")), "score", str(log), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=log.parent, timeout=120, check=False
    )


def test_inspects_own_command_judges_a_log_again(service: Service, tmp_path: Path, own_cache: Path) -> None:
    before = scored(grader(service), tmp_path / "logs", epochs=2, limit=3)
    source, target = Path(before.location), tmp_path / "again.eval"
    service.asked.clear()
    arguments = (
        *("--scorer", "persona_bench/trait_judge", "-S", "trait=evil", "-S", "method=logprob"),
        *("--model-role", f"grader={GRADER}", "--model", "none"),
        *("--action", "overwrite", "--output-file", str(target)),
    )
    done = inspect_score(source, *arguments, service=service, cache=own_cache)
    assert done.returncode == 0, done.stdout + done.stderr
    log = read_eval_log(str(target))
    assert outcomes(log) == outcomes(before) and len(log.samples or []) == 6
    assert (log.eval.scorers or [])[0].options == {"trait": "evil", "method": "logprob"}
    assert set(service.asked.values()) == {1} and len(service.asked) == 6

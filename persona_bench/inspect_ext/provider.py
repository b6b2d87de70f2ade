"""The `persona/<weights>` model provider: Inspect requests to engine rows and back."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    StopReason,
    TopLogprob,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from pydantic import ValidationError

from persona_bench.errors import ModelError, VectorError
from persona_bench.inspect_ext.requests import FIRST_TOKENS, ExtraArgs, ProjectionRequest, ScoreItem, SteeringRequest
from persona_bench.models.chat import Message, prompt_ids, response_ids, shared_length
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import forget, load
from persona_bench.models.memory import give_back
from persona_bench.models.reading import arithmetic, reader, reading_row
from persona_bench.models.rows import Projections, Reading, Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from persona_bench.models.worker import WORKER
from persona_bench.vectors.arms import interventions
from persona_bench.vectors.vector import PersonaVector

logger = logging.getLogger(__name__)

DEFAULT_MAX_TOKENS = 512
THINK, OPENING = "<think>", 16  # what opens a model's thoughts, and in which last tokens of a prompt it may stand
STOP_REASONS: dict[str, StopReason] = {
    "stop": "stop",
    "max_tokens": "max_tokens",
    "model_length": "model_length",
    "scored": "stop",
}


@lru_cache
def _say_that_it_thinks(name: str) -> None:
    """Warn, once a model."""
    logger.warning(
        "%s thinks before it answers, and its chat template has no switch that is known: scores and projections are of "
        "its thoughts as far as the length of a response allows; use a model that answers at once.",
        name,
    )


@lru_cache(maxsize=64)
def _vector(file: str, sha256: str, _stamp: int) -> PersonaVector:
    vector = PersonaVector.load(Path(file))
    if vector.hash != sha256:
        raise VectorError(f"{file} has content {vector.hash[:12]}, the request names {sha256[:12]}; rebuild the task")
    return vector


def read_vector(file: str, sha256: str) -> PersonaVector:
    """A vector file whose content is exactly what the request names, read once."""
    path = Path(file)
    stamp = path.stat().st_mtime_ns if path.exists() else 0
    return _vector(file, sha256, stamp)


class PersonaAPI(ModelAPI):
    """Local weights with per-request steering and capture.

    Model args (`-M`): `dtype` (bfloat16, float16, float32, auto), `device`, `revision`, `max_batch` (rows in a
    pass: 64, on a GPU 256), `thinking` (whether a model that can do either thinks before it answers; no).
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - as in the base class
        dtype: str | None = None,
        device: str | None = None,
        revision: str | None = None,
        max_batch: int | None = None,
        thinking: bool = False,
        **model_args: Any,
    ) -> None:
        if model_args:
            raise ModelError(
                f"unknown model argument(s) {', '.join(model_args)}; use dtype, device, revision, max_batch or thinking"
            )
        if not isinstance(thinking, bool):
            raise ModelError(f"thinking is {thinking!r}; use true or false")
        super().__init__(model_name, base_url, api_key, [], config)
        self._load = partial(load, model_name, dtype=dtype, device=device, revision=revision)
        self._held = weakref.ref(self._load())
        self._max_batch, self._thinking = max_batch, thinking
        self._directions: dict[tuple[tuple[str, tuple[str, ...]], ...], torch.Tensor] = {}
        self._prefixes: dict[tuple[tuple[str, str], ...], int] = {}
        self._heads: dict[str, tuple[int, ...]] = {}

    @property
    def loaded(self) -> LoadedModel:
        """The weights, merged anew where they were let go.

        The process holds them (`loading.load`), not this: Inspect makes a second one of every model to look it up, and
        keeps it for good.
        """
        held = self._held()
        if held is None:
            held = self._load()
            self._held = weakref.ref(held)
        return held

    @property
    def engine(self) -> Engine:
        """What runs them."""
        return WORKER.engine(self.loaded, max_batch=self._max_batch)

    async def aclose(self) -> None:
        """Let a merged adapter go: its weights are a copy, which many adapters in one process have no room for."""
        held = self._held()
        if held is not None and held.source == "adapter":
            WORKER.release(held)
            forget(held)
            del held
            give_back()

    def max_connections(self) -> int:
        """Twice the batch, so that rows that finish find others waiting."""
        return 2 * self.engine.max_batch

    def connection_key(self) -> str:
        """One pool a weight set."""
        return f"{self.loaded.weights_hash}:{self.loaded.dtype}:{self.loaded.device}"

    def max_tokens(self) -> int | None:
        """Length of a response where the task sets none."""
        return DEFAULT_MAX_TOKENS

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text by the model's own tokenizer."""
        return len(response_ids(self.loaded.tokenizer, text))

    async def tokenize(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(response_ids(self.loaded.tokenizer, text))

    @property
    def reading_arithmetic(self) -> str:
        """What answers are read in: int8 or a dtype."""
        return arithmetic(self.loaded)

    async def read_answer(self, question: str, answer: str) -> np.ndarray:
        """Mean residual stream of an answer's tokens (`reading`), `(d_model,)` float64; nothing is logged."""
        reading = reader(self.loaded)
        engine = WORKER.engine(reading, max_batch=self.engine.max_batch)
        (result,) = await _results([reading_row(reading, question, answer)], engine)
        assert result.read is not None
        return np.asarray(result.read[0, 0].astype(np.float64))

    async def read_prompt(self, messages: list[dict[str, str]], layers: tuple[int, ...]) -> np.ndarray:
        """Residual stream at the last prompt token, `(len(layers), d_model)` float32; nothing is logged.

        Raises:
            DataError: the prompt is longer than the model's context.
            ModelError: a layer is not the model's.
        """
        prompt = self._prompt(messages)
        last = (len(prompt) - 1, len(prompt))
        row = Row(prompt, reading=Reading(layers, (last,)), shared_prefix=len(prompt) - 1)
        (result,) = await _results([row], self.engine)
        assert result.read is not None
        read: np.ndarray = result.read[0]
        return read

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Generate, or score the items of `extra_args.score`; see `requests` for what may be asked.

        Scores stand in the order of the items; that of an item longer than the context is None. A conversation that
        leaves no room in the context gets an empty answer with stop reason `model_length`.
        """
        if tools:
            raise ModelError("the persona provider runs no tools; use a task without them")
        started = time.monotonic()
        extra = _parse(config)
        acting = tuple(item for request in extra.apply_steering_vectors for item in self._interventions(request))
        if extra.score:
            output = await self._score(extra, acting)
        else:
            output = await self._generate(input, config, extra, acting)
        output.time = time.monotonic() - started
        return output

    # -- generating ----------------------------------------------------------------------------------------------

    async def _generate(
        self,
        input: list[ChatMessage],
        config: GenerateConfig,
        extra: ExtraArgs,
        acting: tuple[Intervention, ...],
    ) -> ModelOutput:
        messages = [{"role": message.role, "content": message.text} for message in input]
        prompt = self._prompt(messages)
        if len(prompt) >= self.loaded.max_length:  # as other providers answer what is longer than the context
            return ModelOutput.from_content(self.model_name, "", stop_reason="model_length")
        row = Row(
            prompt,
            sampling=_sampling(config),
            interventions=acting,
            capture=self._capture(extra.output_projections) if extra.output_projections else None,
            shared_prefix=self._shared(messages, prompt),
        )
        n = config.num_choices or 1
        rows = [row] if n == 1 else [_reseed(row, index) for index in range(n)]
        if config.prompt_logprobs is not None:
            # The prompt itself as the continuation of its first token: what acts on the prompt acts on all of it.
            on_prompt = tuple(replace(item, positions="all") for item in acting if item.touches_prompt)
            rows.append(Row(prompt[:1], prompt[1:], interventions=on_prompt))
        results = await _results(rows, self.engine)
        prompt_logprobs = _prompt_logprobs(self, prompt, results.pop()) if config.prompt_logprobs is not None else None
        choices = [self._choice(result, config, prompt_logprobs) for result in results]
        opening = self.loaded.tokenizer.decode(prompt[-OPENING:]).rstrip()
        if not self._thinking and (opening.endswith(THINK) or choices[0].message.text.lstrip().startswith(THINK)):
            _say_that_it_thinks(self.model_name)
        sampled = sum(result.n_sampled for result in results)
        metadata: dict[str, Any] | None = None
        if results[0].projections is not None:
            metadata = {"projections": _report(results[0].projections, extra.output_projections)}
            if any(request.per_token for request in extra.output_projections):
                metadata["tokens"] = [self.loaded.tokenizer.decode([token]) for token in results[0].tokens]
        return ModelOutput(
            model=self.model_name,
            choices=choices,
            usage=ModelUsage(input_tokens=len(prompt), output_tokens=sampled, total_tokens=len(prompt) + sampled),
            metadata=metadata,
        )

    def _prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return prompt_ids(self.loaded.tokenizer, messages, self._thinking)

    def _shared(self, messages: list[dict[str, str]], prompt: tuple[int, ...]) -> int:
        key = tuple((message["role"], message["content"]) for message in messages[:-1]) + ((messages[-1]["role"], ""),)
        if key not in self._prefixes:
            self._prefixes[key] = shared_length(self.loaded.tokenizer, messages, prompt, self._thinking)
        return min(self._prefixes[key], len(prompt))

    def _choice(self, result: RowResult, config: GenerateConfig, prompt: Logprobs | None) -> ChatCompletionChoice:
        tokenizer = self.loaded.tokenizer
        text = tokenizer.decode(result.tokens, skip_special_tokens=True)
        for stop in config.stop_seqs or ():
            text = text.split(stop, 1)[0]
        logprobs = None
        if config.logprobs:
            logprobs = Logprobs(
                content=[
                    Logprob(
                        token=tokenizer.decode([token]),
                        logprob=value,
                        top_logprobs=[
                            TopLogprob(token=tokenizer.decode([other]), logprob=other_value)
                            for other, other_value in top
                        ],
                    )
                    for token, value, top in zip(result.tokens, result.logprobs, result.top_logprobs, strict=True)
                ]
            )
        return ChatCompletionChoice(
            message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
            stop_reason=STOP_REASONS[result.stop_reason],
            logprobs=logprobs,
            prompt_logprobs=prompt,
        )

    # -- scoring -------------------------------------------------------------------------------------------------

    async def _score(self, extra: ExtraArgs, acting: tuple[Intervention, ...]) -> ModelOutput:
        rows = [self.score_row(item, acting) for item in extra.score]
        fits = [row.n_given <= self.loaded.max_length for row in rows]
        fitting = [row for row, fit in zip(rows, fits, strict=True) if fit]
        found = iter(await _results(fitting, self.engine))
        n_tokens = sum(row.n_given for row in fitting)
        stopped: StopReason = "stop" if all(fits) else "model_length"
        output = ModelOutput.from_content(self.model_name, "", stop_reason=stopped)
        output.usage = ModelUsage(input_tokens=n_tokens, output_tokens=0, total_tokens=n_tokens)
        output.metadata = {"scores": [_scored(next(found)) if fit else None for fit in fits]}
        return output

    def score_row(self, item: ScoreItem, acting: tuple[Intervention, ...] = ()) -> Row:
        """The engine row of an item.

        Raises:
            ModelError: the alternatives do not differ in one token.
        """
        tokenizer, root = self.loaded.tokenizer, 0
        if item.messages:
            prompt = self._prompt(item.messages)
            shared = len(prompt) if item.continuation else self._shared([dict(m) for m in item.messages], prompt)
        else:
            prompt = tuple(tokenizer(item.text)["input_ids"])
            # The whole prompt, for other continuations of it and for the same one under other interventions.
            shared, root = len(prompt), _common(self._head(item.text[: item.shared]), prompt)
        options = [response_ids(tokenizer, text) for text in item.alternatives]
        lead = _lead(options)
        if any(len(option) == lead for option in options) or (lead and item.continuation):
            raise ModelError(f"alternatives {item.alternatives} do not differ in one token here; reword them")
        if lead:  # alternatives that begin alike, as " A" and " B" may, are told apart by the token after that
            prompt += options[0][:lead]
        firsts = tuple(option[lead] for option in options)
        return Row(
            prompt,
            response_ids(tokenizer, item.continuation) if item.continuation else (),
            alternatives=firsts,
            interventions=acting,
            shared_prefix=shared,
            shared_root=root,
        )

    def _head(self, text: str) -> tuple[int, ...]:
        if text not in self._heads:
            self._heads[text] = tuple(self.loaded.tokenizer(text)["input_ids"]) if text else ()
        return self._heads[text]

    # -- vectors -------------------------------------------------------------------------------------------------

    def _interventions(self, request: SteeringRequest) -> tuple[Intervention, ...]:
        return interventions(
            read_vector(request.file, request.sha256),
            request.layers,
            request.scale,
            operation=request.operation,
            positions=request.positions,
            direction=request.direction,
            incremental=request.incremental,
        )

    def _capture(self, requests: tuple[ProjectionRequest, ...]) -> Capture:
        """One set of unit directions for all requests, held so that rows with the same ones share it."""
        key = tuple((request.sha256, request.directions) for request in requests)
        for request in requests:
            vector = read_vector(request.file, request.sha256)
            for layer in request.layers:
                vector.check_layer(layer)
        if key not in self._directions:
            stacked = torch.stack(
                [
                    read_vector(request.file, request.sha256).direction(name)
                    for request in requests
                    for name in request.directions
                ]
            )
            self._directions[key] = torch.nn.functional.normalize(stacked, dim=-1)
        return Capture(
            self._directions[key], prompt_mean=any(request.prompt_mean for request in requests), per_token=True
        )


def _parse(config: GenerateConfig) -> ExtraArgs:
    body = config.extra_body or {}
    unknown = set(body) - {"extra_args"}
    if unknown:
        raise ModelError(
            f"unknown extra_body key(s) {', '.join(sorted(unknown))}; the persona provider reads extra_args"
        )
    try:
        return ExtraArgs.model_validate(body.get("extra_args", {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ModelError(f"extra_args.{where}: {first['msg']}") from error


def _sampling(config: GenerateConfig) -> Sampling:
    # Without a seed every call is a fresh draw, as with any other provider.
    seed = config.seed if config.seed is not None else secrets.randbits(63)
    return Sampling(
        max_tokens=config.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        seed=seed,
        stop_strings=tuple(config.stop_seqs or ()),
        logprobs=bool(config.logprobs),
        top_logprobs=config.top_logprobs or 0,
    )


def _scored(result: RowResult) -> dict[str, Any]:
    return {
        "n_tokens": len(result.continuation_logprobs),
        "logprob": float(result.continuation_logprobs.astype(np.float64).sum()),
        "alternatives": [float(value) for value in result.alternative_logprobs],
    }


def _reseed(row: Row, index: int) -> Row:
    assert row.sampling is not None
    return replace(row, sampling=replace(row.sampling, seed=row.sampling.seed + index))


async def _results(rows: list[Row], engine: Engine) -> list[RowResult]:
    futures = WORKER.submit(engine, rows)
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


def _prompt_logprobs(api: PersonaAPI, prompt: tuple[int, ...], result: RowResult) -> Logprobs:
    """Log-probabilities of prompt tokens 2..n; the first has none."""
    values = zip(prompt[1:], result.continuation_logprobs, strict=True)
    decode = api.loaded.tokenizer.decode
    return Logprobs(content=[Logprob(token=decode([token]), logprob=float(value)) for token, value in values])


def _report(projections: Projections, requests: tuple[ProjectionRequest, ...]) -> dict[str, dict[str, dict[str, Any]]]:
    """Direction -> layer -> signal -> projection, plain JSON; a response without a token has none of its own."""
    signals = {"prompt_last": projections.prompt_last, "prompt_mean": projections.prompt_mean}
    tokens = projections.per_token
    if tokens is not None:
        signals |= {
            "response_mean": projections.response_mean,
            "response_first": tokens[:FIRST_TOKENS].mean(0),
            "response_max": tokens.max(0),
        }
    out: dict[str, dict[str, dict[str, Any]]] = {}
    names = [(request, name) for request in requests for name in request.names]
    for index, (request, name) in enumerate(names):
        out[name] = {}
        for layer in request.layers:
            values: dict[str, Any] = {
                signal: float(found[index, layer])
                for signal, found in signals.items()
                if found is not None and (signal != "prompt_mean" or request.prompt_mean)
            }
            if request.per_token and tokens is not None:
                values["per_token"] = [float(value) for value in tokens[:, index, layer]]
            out[name][str(layer)] = values
    return out


def _lead(options: list[tuple[int, ...]]) -> int:
    """How many leading tokens several options share."""
    return min((_common(options[0], other) for other in options[1:]), default=0)


def _common(first: tuple[int, ...], second: tuple[int, ...]) -> int:
    count = 0
    for ours, theirs in zip(first, second, strict=False):
        if ours != theirs:
            break
        count += 1
    return count

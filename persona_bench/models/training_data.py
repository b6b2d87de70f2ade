"""Conversations to training examples in tokens, and the order in which they are trained on."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import DataError, ModelError
from persona_bench.files import read_jsonl
from persona_bench.models.chat import Message, ids_after, locate, prompt_ids, response_ids

BUCKET_STEPS = 8  # optimizer steps whose examples are sorted by length together


@dataclass(frozen=True)
class Example:
    """One conversation in tokens.

    Attributes:
        ids: token ids, up to the end of the last assistant message.
        spans: (start, stop) of the tokens trained on: each assistant message with the token that ends it.
    """

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    @property
    def n_trained(self) -> int:
        """How many tokens the loss is taken over."""
        return sum(stop - start for start, stop in self.spans)


@dataclass(frozen=True, eq=False)
class Batch:
    """Examples padded on the right; every mask is `(rows, tokens)`.

    Attributes:
        ids: token ids, 0 where padded. Attention is causal, so that what stands right of a token cannot reach it.
        trained: which tokens are predicted, and trained on.
        position_masks: `(3, rows, tokens, 1)` float32, where interventions at `response`, `prompt` and `all` act.
    """

    ids: Tensor
    trained: Tensor
    position_masks: Tensor


def read_conversations(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a JSONL file with `{"messages": [{"role", "content"}, ...]}` a line.

    Raises:
        DataError: the file cannot be read or is empty, or a line is no conversation with an assistant message.
    """
    return [conversation(item, f"{path}, line {number}") for number, item in read_jsonl(path)]


def conversation(item: Mapping[str, Any], where: str) -> list[dict[str, str]]:
    """The messages of a line, checked: text throughout, and something of the assistant's to train on.

    What follows the last assistant message is left out: there is nothing to be learnt from it.

    Raises:
        DataError: naming what is missing.
    """
    messages = item.get("messages")
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where}: needs `messages`, a list of objects with `role` and `content`")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: every message needs `role` and `content` as text")
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant" and message["content"].strip()]
    if not spoken:
        raise DataError(f"{where}: no assistant message with any text, so there is nothing to train on")
    if spoken[0] == 0:
        raise DataError(f"{where}: the first message is the assistant's; a user's must come before it")
    return [{"role": message["role"], "content": message["content"]} for message in messages[: spoken[-1] + 1]]


def lay_out(
    tokenizer: Any,
    conversations: Iterable[Sequence[Message]],
    max_length: int,
    eos_ids: frozenset[int],
    system: str | None = None,
) -> list[Example]:
    """Conversations as examples.

    Args:
        tokenizer: the model's.
        conversations: each ends with an assistant message.
        max_length: most tokens of one.
        eos_ids: of the model; the one that its template writes after an assistant message is trained on too.
        system: a system message put in the place of each conversation's own.

    Raises:
        DataError: there is none, or one is longer than `max_length`; or the chat template refuses one.
    """
    examples = []
    for number, item in enumerate(conversations, 1):
        messages = list(item)
        if system is not None:
            rest = messages[1:] if messages[0]["role"] == "system" else messages
            messages = [{"role": "system", "content": system}, *rest]
        try:
            example = _laid_out(tokenizer, messages, eos_ids)
        except ModelError as error:
            raise DataError(f"conversation {number}: {error}") from error
        if len(example.ids) > max_length:
            raise DataError(
                f"conversation {number} has {len(example.ids)} tokens, more than the {max_length} that fit; shorten it "
                "or leave it out"
            )
        examples.append(example)
    if not examples:
        raise DataError("there is no conversation to train on; give at least one")
    return examples


def _laid_out(tokenizer: Any, messages: Sequence[Message], eos_ids: frozenset[int]) -> Example:
    """The prompt as the model would be given it, then the last response, as it would have written it."""
    *prompt, last = messages
    earlier = [i for i, message in enumerate(prompt) if message["role"] == "assistant"]
    spans: list[tuple[int, int]] = []
    if earlier:
        found = locate(tokenizer, prompt)
        ids = found.ids
        for index in earlier:
            start, stop = found.places[index]
            if start < stop:
                spans.append((start, stop + (stop < len(ids) and ids[stop] in eos_ids)))
    else:
        ids = prompt_ids(tokenizer, prompt)
    answer = response_ids(tokenizer, last["content"]) + _ending(tokenizer, messages, eos_ids)
    return Example(ids + answer, (*spans, (len(ids), len(ids) + len(answer))))


def _ending(tokenizer: Any, messages: Sequence[Message], eos_ids: frozenset[int]) -> tuple[int, ...]:
    """The token with which the model's template ends an assistant message, if that ends a response."""
    first = next((token for token in ids_after(tokenizer, messages) if token in eos_ids), None)
    if first is None:
        first = tokenizer.eos_token_id
    return () if first is None else (int(first),)


def draw_order(lengths: Sequence[int], batch_size: int, accumulation: int, seed: int, epoch: int) -> list[list[int]]:
    """The micro-batches of one epoch, a pure function of its arguments: examples of like length share one.

    Every `accumulation` of them in a row are one optimizer step. Examples are shuffled, sorted by length only among
    those of a few steps, and the micro-batches of those shuffled again, so that no step holds long examples alone.
    """
    rng = random.Random(f"order-{seed}-{epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    size = batch_size * accumulation * BUCKET_STEPS
    batches = []
    for start in range(0, len(order), size):
        bucket = sorted(order[start : start + size], key=lambda i: (lengths[i], i))
        cut = [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
        rng.shuffle(cut)
        batches += cut
    return batches


def collate(examples: Sequence[Example], device: torch.device) -> Batch:
    """Examples as one padded batch."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    trained = torch.zeros(len(examples), width, dtype=torch.bool)
    masks = torch.zeros(3, len(examples), width, 1, dtype=torch.float32)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n] = torch.tensor(example.ids)
        masks[1, row, :n] = 1
        masks[2, row, :n] = 1
        for start, stop in example.spans:
            trained[row, start:stop] = True
            # As when generating: the last prompt token, whose output is the first response token, and the response.
            masks[0, row, start - 1 : stop] = 1
            masks[1, row, start:stop] = 0
    return Batch(ids.to(device), trained.to(device), masks.to(device))

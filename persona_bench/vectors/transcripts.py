"""Transcripts: read from JSONL in chunks, checked, and laid out in tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from persona_bench.errors import DataError, ModelError
from persona_bench.files import read_jsonl
from persona_bench.models.chat import agreeing, head_ids, locate, prompt_ids, response_ids

CHUNK = 512
CHUNK_CHARACTERS = 2**19  # with CHUNK: how much is in memory at once, and what is sorted by length together
MOST_HEADS = 64  # kept, of different system messages


@dataclass(frozen=True)
class Transcript:
    """One conversation in tokens, as the model would have seen it: the last message is its response.

    Attributes:
        index: its number among the transcripts of the file, from 0.
        where: file and line.
        ids: token ids of the prompt and of the response.
        n_prompt: how many of them are the prompt's.
        n_head: how many of them every conversation with its system message, or with none, begins with.
        roles: of each message.
        places: (start, stop) in `ids` of each message's own tokens; empty unless asked for.
        unplaced: how many messages have a content but no token: the template left nothing of it.
    """

    index: int
    where: str
    ids: tuple[int, ...]
    n_prompt: int
    n_head: int
    roles: tuple[str, ...]
    places: tuple[tuple[int, int], ...] = ()
    unplaced: int = 0


def transcript(item: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
    """(conversation, last assistant message) of a line `{"messages": [{"role", "content"}, ...]}`.

    Raises:
        DataError: naming what is missing.
    """
    messages = item.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{where}: needs `messages`, a list of at least a user and an assistant message")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: every message needs `role` and `content` as text")
        if not all(is_text(message[key]) for key in ("role", "content")):
            raise DataError(f"{where}: a message holds half of a surrogate pair, which is no text; write it whole")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise DataError(f"{where}: the last message must be a non-empty assistant message")
    return messages[:-1], messages[-1]["content"]


def is_text(value: str) -> bool:
    """Whether a text can be written as UTF-8: it holds no half of a surrogate pair."""
    return not any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else True


def read_transcripts(source: Path, tokenizer: Any, *, located: bool) -> Iterator[list[Transcript]]:
    """The transcripts of a JSONL file, a chunk at a time, so that the file may be larger than memory.

    Args:
        source: a file with `{"messages": [...]}` a line.
        tokenizer: the model's.
        located: whether to find each message's own tokens.

    Raises:
        DataError: the file cannot be read, or a line is no transcript or is refused by the model's chat template;
            file and line are named.
    """
    chunk: list[Transcript] = []
    characters = 0
    head = lru_cache(MOST_HEADS)(partial(head_ids, tokenizer))
    for index, (number, item) in enumerate(read_jsonl(source)):
        where = f"{source}, line {number}"
        messages, response = transcript(item, where)
        try:
            chunk.append(lay_out(tokenizer, head, index, where, messages, response, located))
        except ModelError as error:
            raise DataError(f"{where}: {error}") from error
        characters += len(response) + sum(len(message["content"]) for message in messages)
        if len(chunk) >= CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def lay_out(
    tokenizer: Any,
    head: Callable[[str | None], tuple[int, ...]],
    index: int,
    where: str,
    messages: list[dict[str, str]],
    response: str,
    located: bool,
) -> Transcript:
    """A conversation and its response in tokens.

    Args:
        tokenizer: the model's.
        head: system message (None for none) -> the tokens that conversations with it begin with (`chat.head_ids`).
        index: the transcript's number.
        where: file and line.
        messages: the conversation before the response.
        response: the response.
        located: whether to find each message's own tokens.

    Raises:
        ModelError: the chat template refuses the conversation.
    """
    answer = response_ids(tokenizer, response)
    roles = (*(message["role"] for message in messages), "assistant")
    if located:
        found = locate(tokenizer, messages)
        prompt, places = found.ids, (*found.places, (len(found.ids), len(found.ids) + len(answer)))
        gone = sum(start == stop and bool(m["content"]) for m, (start, stop) in zip(messages, places, strict=False))
    else:
        prompt, places, gone = prompt_ids(tokenizer, messages), (), 0
    n_head = agreeing(prompt[:-1], head(messages[0]["content"] if messages[0]["role"] == "system" else None))
    return Transcript(index, where, prompt + answer, len(prompt), n_head, roles, places, gone)

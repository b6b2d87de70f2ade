"""A row of someone's dataset -> a conversation and the response that is measured, or the reason why there is none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from persona_bench.errors import DataError
from persona_bench.vectors.scan.inputs import MAX_ROW_BYTES, NOT_UTF8, TOO_LARGE
from persona_bench.vectors.transcripts import is_text, transcript

Turn = Literal["last", "first"]
TURNS: tuple[Turn, ...] = ("last", "first")
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
"""Other names of roles in published datasets."""


@dataclass(frozen=True)
class Fields:
    """Which fields of a row hold what.

    Attributes:
        messages: the conversation, a list of messages (unused where `prompt` is set).
        role: of a message, who speaks.
        content: of a message, what is said.
        prompt: the user's text, in datasets of one turn.
        response: the answer to `prompt`.
        id: copied to the output; "" for none.
        turn: which assistant message is measured: `last`, or `first`.
    """

    messages: str = "messages"
    role: str = "role"
    content: str = "content"
    prompt: str = ""
    response: str = "response"
    id: str = ""
    turn: Turn = "last"

    def __post_init__(self) -> None:
        if self.turn not in TURNS:
            raise DataError(f"unknown turn {self.turn!r}; choose from {', '.join(TURNS)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The fields of a row that are read."""
        read = (self.prompt, self.response) if self.prompt else (self.messages,)
        return (*read, *([self.id] if self.id else []))


@dataclass(frozen=True)
class Sample:
    """One row.

    Attributes:
        row: its number in the file.
        id: its id, or "".
        messages: what stands before the response.
        response: the response that is measured.
    """

    row: int
    id: str
    messages: list[dict[str, str]]
    response: str


def read_sample(number: int, text: bytes, fields: Fields) -> Sample:
    """The sample of a row.

    Raises:
        DataError: the row is no sample; the message is the reason alone, without a place.
    """
    if text == TOO_LARGE:
        raise DataError(f"larger than {MAX_ROW_BYTES} bytes")
    if text == NOT_UTF8:
        raise DataError("a field holds bytes that are not UTF-8")
    try:
        item = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Besides JSONDecodeError and UnicodeDecodeError: a plain ValueError for a whole number of over 4,300 digits.
        raise DataError(f"not JSON ({getattr(error, 'msg', None) or type(error).__name__})") from error
    if not isinstance(item, dict):
        raise DataError("not a JSON object")
    messages, response = _conversation(item, fields)
    return Sample(number, _id(item.get(fields.id, "") if fields.id else ""), messages, response)


def _id(found: Any) -> str:
    try:
        name = found if isinstance(found, str) else json.dumps(found)
    except RecursionError as error:
        raise DataError("its id is nested too deeply") from error
    if not is_text(name):
        raise DataError("its id holds half of a surrogate pair, which is no text")
    return name


def _conversation(item: Mapping[str, Any], fields: Fields) -> tuple[list[dict[str, str]], str]:
    if fields.prompt:
        pair = (("user", fields.prompt), ("assistant", fields.response))
        for _, name in pair:
            if not isinstance(item.get(name), str) or not item[name]:
                raise DataError(f"no text in the field {name!r}")
        turns = [{"role": role, "content": item[name]} for role, name in pair]
    else:
        found = item.get(fields.messages)
        if not isinstance(found, list) or not found:
            raise DataError(f"no list of messages in the field {fields.messages!r}")
        turns = [_message(message, fields) for message in found]
    turns = _cut(turns, fields.turn)
    try:
        return transcript({"messages": turns}, "")
    except DataError as error:
        raise DataError(str(error).removeprefix(": ")) from error


def _message(message: Any, fields: Fields) -> dict[str, str]:
    if not isinstance(message, dict):
        raise DataError("a message is no JSON object")
    role, content = message.get(fields.role), message.get(fields.content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise DataError(f"a message has no text in {fields.role!r} or {fields.content!r}")
    return {"role": ROLES.get(role.lower(), role.lower()), "content": content}


def _cut(turns: list[dict[str, str]], turn: Turn) -> list[dict[str, str]]:
    """The conversation up to the assistant message that is measured."""
    places = [place for place, message in enumerate(turns) if message["role"] == "assistant"]
    if not places:
        raise DataError("no assistant message")
    return turns[: places[-1 if turn == "last" else 0] + 1]

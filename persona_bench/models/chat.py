"""Conversations to token ids, rendered once by the model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from persona_bench.errors import ModelError

Message = Mapping[str, str]
_ELSE = "\u2026?"
THINKING = ("enable_thinking", "thinking")
"""What templates call the switch of models that may think before they answer: of Qwen3, SmolLM3 and GLM; of Granite."""
_MARK = "\ue000"  # of Unicode's private use area: no template asks for it, strips it or writes it


def prompt_ids(tokenizer: Any, messages: Sequence[Message], thinking: bool = False) -> tuple[int, ...]:
    """Token ids of a conversation, ending where the assistant's next words begin.

    The template writes any beginning-of-sequence token itself, so nothing is tokenised twice. A last assistant
    message is left open and continued. Templates without a system role get the system text in front of the first
    user message.

    Args:
        tokenizer: the model's.
        messages: what was said.
        thinking: whether a model that can do either shall think before it answers.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    return _tokens(tokenizer, _rendered(tokenizer, messages, thinking))


def _rendered(tokenizer: Any, messages: Sequence[Message], thinking: bool = False) -> str:
    if tokenizer.chat_template is None:
        raise ModelError("this model's tokenizer has no chat template; use an instruction-tuned model")
    turns = [dict(message) for message in messages]
    opened = turns[-1]["role"] == "assistant"
    try:
        return _filled(tokenizer, turns, opened, thinking)
    except Exception as error:
        # Templates raise their own errors (jinja2) for a system role they do not know.
        refusal = error
    if [turn["role"] for turn in turns[:2]] == ["system", "user"]:
        merged = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        try:
            return _filled(tokenizer, [merged, *turns[2:]], opened, thinking)
        except Exception as error:
            refusal = error
    reason = " ".join(str(refusal).split()) or type(refusal).__name__
    raise ModelError(f"the model's chat template refuses the conversation: {reason}") from refusal


def _filled(tokenizer: Any, turns: list[dict[str, str]], opened: bool, thinking: bool) -> str:
    options = {"continue_final_message": True} if opened else {"add_generation_prompt": True}
    options |= {name: thinking for name in THINKING if name in str(tokenizer.chat_template)}
    return str(tokenizer.apply_chat_template(turns, tokenize=False, **options))


def _tokens(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def shared_length(tokenizer: Any, messages: Sequence[Message], ids: tuple[int, ...], thinking: bool = False) -> int:
    """How many leading tokens of `ids` do not depend on the last message: what other conversations may share."""
    other = [*messages[:-1], {"role": messages[-1]["role"], "content": _ELSE}]
    return agreeing(ids, prompt_ids(tokenizer, other, thinking))


def head_ids(tokenizer: Any, system: str | None) -> tuple[int, ...]:
    """The tokens that conversations with this system message, or with none, begin with: what they may share.

    Raises:
        ModelError: as `prompt_ids`.
    """
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": "A"})
    ids = prompt_ids(tokenizer, messages)
    return ids[: shared_length(tokenizer, messages, ids)]


def ids_after(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """The tokens that the model's template writes after the last message, the assistant's."""
    whole = [dict(message) for message in messages]
    try:
        written = str(tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=False))
    except Exception:
        # A template that takes no system message (jinja2 errors of its own): without it the ending is the same.
        without = [message for message in whole if message["role"] != "system"]
        written = str(tokenizer.apply_chat_template(without, tokenize=False, add_generation_prompt=False))
    return _tokens(tokenizer, written.rpartition(messages[-1]["content"].strip())[2])


def end_of_response(tokenizer: Any) -> int | None:
    """The first special token that the model's template writes after an assistant's message; None if it writes none.

    Raises:
        Whatever the template raises for a question and its answer (jinja2 errors of its own).
    """
    if tokenizer.chat_template is None:
        return None
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = (special | set(tokenizer.all_special_ids)) - {tokenizer.unk_token_id, tokenizer.bos_token_id}
    answered = [{"role": "user", "content": "A"}, {"role": "assistant", "content": _MARK}]
    return next((token for token in ids_after(tokenizer, answered) if token in special), None)


def response_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a response that follows a prompt."""
    return _tokens(tokenizer, text)


@dataclass(frozen=True)
class Located:
    """A conversation in tokens, and where in them each message is.

    Attributes:
        ids: token ids, as `prompt_ids` gives them.
        places: (start, stop) of the tokens that hold any of a message's content, for each message; start == stop
            where the template left nothing of it.
    """

    ids: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


def locate(tokenizer: Any, messages: Sequence[Message]) -> Located:
    """Token ids of a conversation, with the place of each message's own tokens, without what the template adds.

    A message is what changes in the rendered text when another content stands in its place. That holds for templates
    that strip or shorten contents, merge messages or move them; one that repeats a content, or writes other things
    depending on it, is searched for the content's text.

    Raises:
        ModelError: as `prompt_ids`.
    """
    text = _rendered(tokenizer, messages)
    mark = _MARK
    while mark in text:
        mark += _MARK
    stretches: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        other = [*messages[:index], {**message, "content": mark}, *messages[index + 1 :]]
        stretches.append(_stretch(text, message["content"], _rendered(tokenizer, other), mark, stretches))
    ids, places = _places(tokenizer, text, stretches)
    return Located(ids, places)


def _stretch(text: str, content: str, marked: str, mark: str, before: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(start, stop) in characters of a message's content, given the text with a mark in its place."""
    head, found, tail = marked.partition(mark)
    stop = len(text) - len(tail)
    if found and len(head) <= stop and text.startswith(head) and text.endswith(tail):
        return len(head), stop
    bare = content.strip()
    start = text.find(bare, before[-1][1] if before else 0)
    return (start, start + len(bare)) if found and bare and start >= 0 else (0, 0)


def _places(
    tokenizer: Any, text: str, stretches: Sequence[tuple[int, int]]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Token ids of a text, and the tokens that overlap each stretch of its characters."""
    if not getattr(tokenizer, "is_fast", False):
        ids = _tokens(tokenizer, text)
        return ids, tuple(_place_by_prefix(tokenizer, text, ids, *stretch) for stretch in stretches)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = np.array(encoded["offset_mapping"], dtype=int).reshape(-1, 2)
    places = []
    for start, stop in stretches:
        tokens = np.flatnonzero((offsets[:, 0] < stop) & (offsets[:, 1] > start))
        places.append((int(tokens[0]), int(tokens[-1]) + 1) if start < stop and len(tokens) else (0, 0))
    return tuple(encoded["input_ids"]), tuple(places)


def _place_by_prefix(tokenizer: Any, text: str, ids: tuple[int, ...], start: int, stop: int) -> tuple[int, int]:
    """The same without character offsets: what the text before and the text up to its end have in common with all."""
    if start == stop:
        return 0, 0
    first = agreeing(_tokens(tokenizer, text[:start]), ids)
    up_to = _tokens(tokenizer, text[:stop])
    last = agreeing(up_to, ids)
    # Where the end of the content is one token with what follows, that token holds some of the content too.
    return first, min(last + (last < len(up_to)), len(ids))


def agreeing(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading tokens two sequences share."""
    count = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        count += 1
    return count

"""Conversations to token ids, rendered once by the model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from persona_bench.errors import ModelError

Message = Mapping[str, str]
_ELSE = "\u2026?"


def prompt_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of a conversation, ending where the assistant's next words begin.

    The template writes any beginning-of-sequence token itself, so nothing is tokenised twice. A last assistant
    message is left open and continued. Templates without a system role get the system text in front of the first
    user message.

    Raises:
        ModelError: the tokenizer has no chat template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise ModelError("this model's tokenizer has no chat template; use an instruction-tuned model")
    turns = [dict(message) for message in messages]
    opened = turns[-1]["role"] == "assistant"
    try:
        return _render(tokenizer, turns, opened)
    except Exception as error:
        # Templates raise their own errors (jinja2) for a system role they do not know.
        if turns[0]["role"] != "system" or len(turns) < 2:
            raise ModelError(f"the model's chat template refuses the conversation: {error}") from error
        merged = {"role": "user", "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}
        return _render(tokenizer, [merged, *turns[2:]], opened)


def _render(tokenizer: Any, turns: list[dict[str, str]], opened: bool) -> tuple[int, ...]:
    options = {"continue_final_message": True} if opened else {"add_generation_prompt": True}
    text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def shared_length(tokenizer: Any, messages: Sequence[Message], ids: tuple[int, ...]) -> int:
    """How many leading tokens of `ids` do not depend on the last message: what other conversations may share."""
    other = [*messages[:-1], {"role": messages[-1]["role"], "content": _ELSE}]
    count = 0
    for ours, theirs in zip(ids, prompt_ids(tokenizer, other), strict=False):
        if ours != theirs:
            break
        count += 1
    return count


def response_ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Token ids of a response that follows a prompt."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

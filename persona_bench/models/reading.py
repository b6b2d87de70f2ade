"""How a grader reads an answer: as a conversation, up to a little past half of its depth."""

from __future__ import annotations

from persona_bench.errors import DataError
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Reading, Row
from persona_bench.models.loading import LoadedModel

READ_DEPTH = 4 / 7  # of the blocks: deeper adds time and no accuracy on the calibrating half of the labelled answers


def reading_row(loaded: LoadedModel, question: str, answer: str) -> Row:
    """A row whose one reading, `(1, 1, d_model)`, is the mean residual stream of the answer's tokens.

    The question stands before it as the user's message, and is shared by all answers to it. The pass ends at the layer
    read; nothing is generated.

    Raises:
        DataError: the answer has no token.
    """
    prompt = prompt_ids(loaded.tokenizer, [{"role": "user", "content": question}])
    tokens = prompt + response_ids(loaded.tokenizer, answer)
    if len(tokens) == len(prompt):
        raise DataError("an answer without any token cannot be read")
    layer = max(round(READ_DEPTH * loaded.n_layers), 1)
    return Row(tokens, reading=Reading((layer,), ((len(prompt), len(tokens)),)), shared_prefix=len(prompt))

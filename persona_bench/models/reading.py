"""How a grader reads an answer: as a conversation, up to a little past half of its depth."""

from __future__ import annotations

import threading
from dataclasses import replace
from weakref import WeakKeyDictionary

from persona_bench.errors import DataError
from persona_bench.models import int8
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.layers import replace_linears
from persona_bench.models.loaded import LoadedModel, find_blocks, shallow_copy
from persona_bench.models.rows import Reading, Row

READ_DEPTH = 4 / 7  # of the blocks: deeper adds time and no accuracy on the calibrating half of the labelled answers

_readers: WeakKeyDictionary[LoadedModel, LoadedModel] = WeakKeyDictionary()
_making = threading.Lock()


def reader(loaded: LoadedModel) -> LoadedModel:
    """The part of a model that reads: its first blocks, sharing its weights; made once a model.

    On a processor that is faster so, their linear layers compute in 8-bit integers. A reading is then off by some 7 %
    of the spread between answers (Qwen2.5-Coder-1.5B), which the fitted probes do not notice, and takes two thirds of
    the time.
    """
    with _making:
        if loaded not in _readers:
            _readers[loaded] = _reader(loaded)
        return _readers[loaded]


def _reader(loaded: LoadedModel) -> LoadedModel:
    model = shallow_copy(loaded.model)
    blocks = find_blocks(model)
    del blocks[max(round(READ_DEPTH * loaded.n_layers), 1) :]
    if arithmetic(loaded) == "int8":
        replace_linears(blocks, int8.Int8Linear)
    return replace(loaded, model=model, blocks=list(blocks))


def arithmetic(loaded: LoadedModel) -> str:
    """What a reader's linear layers compute in: int8 or the dtype of the weights."""
    return "int8" if loaded.device.type == "cpu" and int8.is_fast() else str(loaded.dtype).removeprefix("torch.")


def reading_row(reader: LoadedModel, question: str, answer: str) -> Row:
    """A row whose one reading, `(1, 1, d_model)`, is the mean residual stream of the answer's tokens at the last layer.

    The question stands before it as the user's message, and is shared by all answers to it. Nothing is generated.

    Raises:
        DataError: the answer has no token.
    """
    prompt = prompt_ids(reader.tokenizer, [{"role": "user", "content": question}])
    tokens = prompt + response_ids(reader.tokenizer, answer)
    if len(tokens) == len(prompt):
        raise DataError("an answer without any token cannot be read")
    return Row(tokens, reading=Reading((reader.n_layers,), ((len(prompt), len(tokens)),)), shared_prefix=len(prompt))

"""A model's number of layers and width, from its config alone: no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona_bench.errors import ModelError, first_line
from persona_bench.models.loading import resolve


@dataclass(frozen=True)
class ModelShape:
    """What a config says.

    Attributes:
        n_layers: decoder blocks.
        d_model: width of the residual stream.
        model_type: the architecture, by transformers' name.
    """

    n_layers: int
    d_model: int
    model_type: str


def read_shape(name: str) -> ModelShape:
    """The shape of a model as `loading.load` takes it.

    Raises:
        ModelError: unknown, or its config cannot be read.
    """
    from transformers import AutoConfig

    path, _ = resolve(name, weights=False)
    where = path.parent if path.is_file() else path
    gguf: dict[str, Any] = {"gguf_file": path.name} if path.is_file() else {}
    try:
        config = AutoConfig.from_pretrained(where, local_files_only=True, trust_remote_code=False, **gguf)
        text = config.get_text_config()
        return ModelShape(int(text.num_hidden_layers), int(text.hidden_size), str(config.model_type))
    except Exception as error:
        # Broken configs make transformers raise errors of many kinds.
        first = first_line(error)
        raise ModelError(f"cannot read the config of {name} in {path}: {first}") from error

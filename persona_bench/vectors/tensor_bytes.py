"""Tensor files whose bytes follow from their content: safetensors itself orders the metadata otherwise each time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_LENGTH = 8
"""A file opens with the length of its header in so many bytes, little-endian; tensors' places count from its end."""


def tensor_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its metadata sorted by name."""
    from safetensors.torch import save

    return with_metadata(save({name: value.contiguous() for name, value in tensors.items()}, {}), metadata)


def with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with other metadata; its tensors stay where they are."""
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    head = json.loads(data[_LENGTH:end])
    head.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **head}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text + data[end:]

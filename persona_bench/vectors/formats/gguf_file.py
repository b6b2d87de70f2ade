"""GGUF within bounds: every count, length and offset is held against the file's size before anything is made of it.

The gguf package's own reader follows an array's declared length past the end of the file, for ever; so the package
only writes here. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_bench.errors import VectorError
from persona_bench.vectors.formats.foreign import read_bytes, refuse, shown

MAGIC = b"GGUF"
MAX_ENTRIES = 4096
MAX_ALIGNMENT = 4096
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


@dataclass(frozen=True, eq=False)
class GGUF:
    """A file's scalar fields, and its one-dimensional floating-point tensors as float32."""

    fields: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]


class _OutsideError(Exception):
    """The header points outside the file."""


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise _OutsideError
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """A field's value; arrays are passed over, as no format here needs one."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise _OutsideError
        inner, count = self.number("I"), self.number("Q")
        if inner in _SCALARS:
            self.take(count * struct.calcsize(f"<{_SCALARS[inner]}"))
            return None
        # A string takes 8 bytes at least, so the loop cannot outlast the file.
        if inner != _STRING or count > len(self.data) // 8:
            raise _OutsideError
        for _ in range(count):
            self.text()
        return None


def read_gguf(path: Path) -> GGUF:
    """Read a GGUF file.

    Raises:
        VectorError: it is none, or its header does not fit the file.
    """
    data = read_bytes(path)
    cursor = _Cursor(data)
    try:
        if cursor.take(4) != MAGIC:
            refuse(path, "not a GGUF file")
        return _read(path, cursor)
    except (_OutsideError, UnicodeDecodeError) as error:
        raise VectorError(
            f"{path}: a GGUF file that is cut off or whose header does not fit it; fetch or write it again"
        ) from error


def _read(path: Path, cursor: _Cursor) -> GGUF:
    version = cursor.number("I")
    if version not in (2, 3):
        # A big-endian file's version reads as a multiple of 2**24.
        kind = "a big-endian GGUF file" if version and version % 2**16 == 0 else f"GGUF version {version}"
        refuse(path, f"{kind}; only little-endian versions 2 and 3 are read: write it again")
    n_tensors, n_fields = cursor.number("Q"), cursor.number("Q")
    if max(n_tensors, n_fields) > MAX_ENTRIES:
        refuse(path, f"says that it holds {n_tensors} tensors and {n_fields} fields, too many for a vector")
    fields: dict[str, Any] = {}
    for _ in range(n_fields):
        name = cursor.text()
        if name in fields:
            refuse(path, f"holds field {shown(name)!r} twice")
        fields[name] = cursor.value(cursor.number("I"))
    places = [_place(path, cursor) for _ in range(n_tensors)]
    align = fields.get("general.alignment", 32)
    if not isinstance(align, int) or not 1 <= align <= MAX_ALIGNMENT:
        refuse(path, "its general.alignment is no alignment")
    if sum(size * dtype.itemsize for _, size, dtype, _ in places) > len(cursor.data):
        # Tensors that overlap: each may lie inside, and all would be copied to many times the file's size.
        raise _OutsideError
    start = -(-cursor.at // align) * align
    tensors: dict[str, np.ndarray] = {}
    for name, size, dtype, offset in places:
        if name in tensors:
            refuse(path, f"holds tensor {shown(name)!r} twice")
        if start + offset + size * dtype.itemsize > len(cursor.data):
            raise _OutsideError
        tensors[name] = np.frombuffer(cursor.data, dtype, size, start + offset).astype(np.float32)
    return GGUF(fields, tensors)


def _place(path: Path, cursor: _Cursor) -> tuple[str, int, np.dtype[Any], int]:
    """A tensor's name, number of values, type, and offset in the data."""
    name = cursor.text()
    n_dims = cursor.number("I")
    if n_dims > 4:
        raise _OutsideError
    shape = [cursor.number("Q") for _ in range(n_dims)]
    kind, offset = cursor.number("I"), cursor.number("Q")
    if len(shape) != 1 or not shape[0]:
        refuse(path, f"tensor {shown(name)!r} has shape {shape}, one direction is (d_model,); is it a control vector?")
    if kind not in _TYPES:
        refuse(path, f"tensor {shown(name)!r} is quantised (type {kind}); only float32 and float16 are read")
    return name, int(shape[0]), _TYPES[int(kind)], int(offset)


def write_gguf(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
    """Write a control vector's file: texts, whole numbers (32 bits) and floats as fields, float32 tensors."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "controlvector")
    for name, value in fields.items():
        if isinstance(value, str):
            writer.add_string(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        else:
            writer.add_float32(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

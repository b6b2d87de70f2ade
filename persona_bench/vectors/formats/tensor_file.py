"""PyTorch files without trust: the archive and its pickle are read as data first, then loaded with weights only."""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import VectorError
from persona_bench.vectors.formats.foreign import check_file, refuse, shown

MAX_PICKLE_BYTES = 2**20
MAX_RECORDS = 4096
MAX_RECALLED = 16  # uses of tuples that a pickle made before; tensors need none
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# All that tensors, texts, numbers, lists and dicts need; a name beyond these is somebody's code.
_ALLOWED = {
    "torch._utils _rebuild_tensor_v2",
    "collections OrderedDict",
    *(f"torch {name}Storage" for name in _STORAGES),
}
# Other ways of a pickle to name or build an object.
_REFUSED = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BUILD"}

_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_REMEMBER, _RECALL = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}


def load_tensors(path: Path) -> Any:
    """What a file of `torch.save` holds: tensors, texts, numbers, lists and dicts of them; nothing else is let in.

    Tensors are mapped from the file, not copied.

    Raises:
        VectorError: it is no such file, broken, lies about its sizes, or holds anything that would be executed.
    """
    check_file(path)
    sizes = _check_archive(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        # A broken pickle makes torch raise errors of many kinds (RuntimeError, TypeError, KeyError, struct.error).
        # torch's own way out of a refusal is to load without these guards, which is none.
        said = "" if "weights_only" in str(error) else shown(str(error), 200)
        raise VectorError(
            f"{path}: cannot be read as a PyTorch file ({said or type(error).__name__}); write it again"
        ) from error
    for tensor in tensors_of(found):
        # A storage that says it is longer than its record, or a view that repeats it, is not what was saved.
        held = tensor.untyped_storage().nbytes()
        if held not in sizes or tensor.numel() * tensor.element_size() > held:
            refuse(path, "a tensor is not of the size that the file holds; write it again")
    return found


def tensors_of(found: Any) -> list[Tensor]:
    """The tensors at the top of what a file holds: itself, or the values of its dict."""
    values = found.values() if isinstance(found, dict) else [found]
    return [value for value in values if isinstance(value, Tensor)]


def _check_archive(path: Path) -> set[int]:
    """Check the archive and its pickle without loading either; returns the sizes of the storages."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            total = path.stat().st_size
            if len(records) > MAX_RECORDS or len({item.filename for item in records}) != len(records):
                refuse(path, "an archive with too many records, or one twice; write it again")
            if any(item.compress_type != zipfile.ZIP_STORED for item in records) or (
                sum(item.file_size for item in records) > total
            ):
                refuse(path, "an archive whose records are packed or larger than the file, as torch.save writes none")
            for item in records:
                if item.filename.endswith("/byteorder") and archive.read(item) != b"little":
                    refuse(path, "big-endian; write it again on a little-endian machine")
            pickles = [item for item in records if item.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                refuse(path, "not written by torch.save: it must hold one small data.pkl")
            _check_pickle(path, archive.read(pickles[0]))
            return {item.file_size for item in records if "/data/" in item.filename}
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, RuntimeError) as error:
        raise VectorError(
            f"{path}: no archive of torch.save, or a broken one ({type(error).__name__}); a bare pickle or a file from "
            "before torch 1.6 is never read: load it where you trust it and write it with torch.save again"
        ) from error


def _check_pickle(path: Path, data: bytes) -> None:
    """Refuse a pickle that names anything but tensors and plain values; it is taken apart, not run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of odd escapes in a broken text
            tuples: set[Any] = set()  # where the memo holds one
            on_top, recalled = False, 0
            for code, argument, _ in pickletools.genops(data):
                # Tuples that hold one tuple twice, level by level, take for ever as the key of a dict. Torch reads no
                # other opcode that could use one again.
                if code.name in _REMEMBER:
                    (tuples.add if on_top else tuples.discard)(argument)
                elif code.name != "PROTO":
                    on_top = code.name in _TUPLES or code.name in _RECALL and argument in tuples
                recalled += on_top and code.name in _RECALL
                if recalled > MAX_RECALLED:
                    refuse(path, "holds one tuple many times, as no vector does; keep the tensors alone")
                if code.name == "GLOBAL" and argument not in _ALLOWED:
                    refuse(
                        path,
                        f"names {shown(argument, 80).replace(' ', '.')!r}, which loading it would run; nothing was "
                        "run. Keep the tensors alone: load it where you trust it and write them with torch.save",
                    )
                if code.name in _REFUSED:
                    refuse(path, f"builds objects ({code.name}) beyond tensors and plain values; nothing was run")
    except (ValueError, UnicodeDecodeError, IndexError, OverflowError) as error:
        raise VectorError(f"{path}: its data.pkl is broken; write it again with torch.save") from error

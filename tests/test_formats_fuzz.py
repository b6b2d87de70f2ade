"""A stranger's file is data: nothing in it runs, and whatever it says it ends in a vector or in one error."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from persona_bench.errors import PersonaBenchError, VectorError
from persona_bench.vectors.formats import foreign, tensor_file
from persona_bench.vectors.formats.convert import Request, convert
from persona_bench.vectors.vector import PersonaVector
from tests import test_formats as written
from tests.conftest import one_line, tiny_vector

FUZZ = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
HUGE = [2**63, 2**64 - 1, 2**40, 2**32 - 1, 2**31, 0, 1]


def ours(folder: Path) -> Path:
    tiny_vector().save(folder / "v.safetensors")
    return folder / "v.safetensors"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "official": written.official,
    "assistant-axis": written.axis,
    "darkfield": written.darkfield,
    "saklas": written.profile,
    "repeng": lambda folder: written.write_gguf(folder / "v.gguf", written.BLOCKS, **written.REPENG),
    "steerkit": lambda folder: written.write_gguf(folder / "v.gguf", written.BLOCKS, **written.STEERKIT),
    "ours": ours,
}


def attempt(path: Path, data: bytes) -> None:
    """Read the file by both ways in: a vector or one line, and memory in proportion to the file."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        for read in (
            lambda: convert(Request(path, path.with_name("out.gguf"), n_layers=written.N, sign="keep")),
            lambda: PersonaVector.load(path),
        ):
            try:
                read()
            except PersonaBenchError as error:
                assert "\n" not in str(error)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", MAKERS)
@given(data=st.data())
@FUZZ
def test_a_spoilt_file_gives_a_vector_or_one_error(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = MAKERS[name](tmp_path)
    whole = bytearray(path.read_bytes())
    how = data.draw(st.sampled_from(["cut", "flip", "lie", "insert", "remove"]))
    at = data.draw(st.integers(0, min(len(whole), 900) - 9))
    if how == "cut":
        whole = whole[:at]
    elif how == "flip":
        whole[at] ^= data.draw(st.integers(1, 255))
    elif how == "lie":
        whole[at : at + 8] = data.draw(st.sampled_from(HUGE)).to_bytes(8, "little")
    elif how == "insert":
        whole[at:at] = data.draw(st.binary(min_size=1, max_size=40))
    else:
        del whole[at : at + data.draw(st.integers(1, 40))]
    attempt(path, bytes(whole))


@given(
    head=st.sampled_from([b"", b"GGUF", b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x80\x02", b"\x08\0\0\0\0\0\0\0{"]),
    rest=st.binary(max_size=200),
)
@FUZZ
def test_random_bytes_give_one_error(tmp_path: Path, head: bytes, rest: bytes) -> None:
    attempt(tmp_path / "v.bin", head + rest)


def archive(path: Path, pickled: bytes, **records: bytes) -> Path:
    """The archive of `torch.save` around a pickle of one's own."""
    with zipfile.ZipFile(path, "w") as made:
        for name, data in {"data.pkl": pickled, "byteorder": b"little", "version": b"3\n", **records}.items():
            made.writestr(f"archive/{name}", data)
    return path


@given(edits=st.lists(st.tuples(st.integers(0, 300), st.binary(max_size=6), st.integers(0, 4)), min_size=1, max_size=4))
@FUZZ
def test_a_spoilt_pickle_gives_a_vector_or_one_error(tmp_path: Path, edits: list[tuple[int, bytes, int]]) -> None:
    """The archive is whole, with right checksums, around a pickle that was tampered with."""
    with zipfile.ZipFile(written.axis(tmp_path)) as held:
        pickled, numbers = bytearray(held.read("axis/data.pkl")), held.read("axis/data/0")
    for at, put, cut in edits:
        pickled[at : at + cut] = put
    buffer = tmp_path / "made.pt"
    archive(buffer, bytes(pickled), **{"data/0": numbers})
    attempt(tmp_path / "v.pt", buffer.read_bytes())


class _Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("container", ["archive", "bare", "torch.save"])
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int, container: str) -> None:
    trap, path = tmp_path / "ran", tmp_path / "v.pt"
    held = {"axis": torch.zeros(4, 8), "metadata": _Runs(os.mkdir, str(trap))}
    if container == "torch.save":
        torch.save(held, path, pickle_protocol=max(protocol, 2))
    else:
        data = pickle.dumps({"metadata": held["metadata"]}, protocol=protocol)
        path.write_bytes(data) if container == "bare" else archive(path, data)
    for read in (lambda: convert(Request(path, tmp_path / "out.gguf", sign="keep")), lambda: PersonaVector.load(path)):
        with pytest.raises(VectorError) as error:
            read()
        one_line(error, str(path))
    assert not trap.exists()
    if container == "torch.save":
        torch.load(path, weights_only=False)
        assert trap.exists(), "the trap works where it is let"


def test_a_pickle_that_only_allocates_is_refused(tmp_path: Path) -> None:
    """torch's own guard lets `bytearray(n)` pass; ours does not."""
    path = archive(tmp_path / "v.pt", pickle.dumps(_Runs(bytearray, 2**40), protocol=2))
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "out.gguf"))
    one_line(error, "builtin", "nothing was run")


def nested(depth: int, kind: type) -> Any:
    """What is two to the depth long as text, and a few bytes a level as a file."""
    found = kind([0])
    for _ in range(depth):
        found = kind([found, found])
    return found


@pytest.mark.parametrize(
    "held",
    [
        {"vector": torch.ones(8), "layer": nested(60, list)},
        {"vector": torch.ones(8), "layer": nested(60, tuple)},
        {"vector": torch.ones(8), "layer": 10**5000},
        {"other": torch.ones(8), "metadata": nested(60, list)},
    ],
)
def test_what_has_no_end_as_text_is_not_shown(tmp_path: Path, held: dict[str, Any]) -> None:
    path = tmp_path / "v.pt"
    torch.save(held, path)
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "o.safetensors", n_layers=4))
    one_line(error, str(path))


def test_a_key_that_takes_for_ever_is_refused(tmp_path: Path) -> None:
    """Pickles as nobody's pickler writes them: a tuple of one made before, level by level, then a dict with it."""
    plain = b"".join(b"h%ch%c\x86q%c" % (n, n, n + 1) for n in range(60))
    again = b"".join(b"h%ch%c\x86q%cq%c" % (n, n, n + 100, n + 1) for n in range(60))
    marked = b"".join(b"h%ch%c\x86\x80\x02q%c" % (n, n, n + 1) for n in range(60))
    for middle in (plain, again, marked):
        path = archive(tmp_path / "v.pt", b"\x80\x02}K\x00\x85q\x00" + middle + b"K\x01s.")
        with pytest.raises(VectorError) as error:
            convert(Request(path, tmp_path / "o.safetensors", n_layers=4))
        one_line(error, str(path), "one tuple many times")
    torch.save(
        {"vector": torch.ones(8), "layer": 2, "shapes": [(1, 2)] * 3, "axes": nested(3, tuple)}, tmp_path / "w.pt"
    )
    convert(Request(tmp_path / "w.pt", tmp_path / "o.safetensors", n_layers=4))


def saved(value: Any) -> dict[str, bytes]:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as held:
        return {item.filename.removeprefix("archive/"): held.read(item) for item in held.infolist()}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x0ct", b"J\x00\x00\x00\x70t"),  # a storage of 2**31 numbers
        (b"K\x0ct", b"K\x0et"),  # a storage of two numbers more than there are
        (b"K\x00K\x03K\x04", b"K\x00J\x00\x00\x00\x70K\x04"),  # a shape of as many rows
        (b"K\x04\x86q\x06K\x04K\x01", b"K\x04\x86q\x06K\x00K\x00"),  # one number seen twelve times
        (b"K\x03K\x04\x86q\x06K\x04K\x01", b"J\x00\x00\x00\x70K\x04\x86q\x06K\x00K\x00"),  # seen 2**33 times
    ],
)
def test_a_tensor_that_lies_about_its_size_is_refused(tmp_path: Path, old: bytes, new: bytes) -> None:
    parts = saved(torch.arange(12.0).reshape(3, 4))
    assert parts["data.pkl"].count(old) == 1
    path = archive(tmp_path / "v.pt", parts.pop("data.pkl").replace(old, new), **parts)
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "out.gguf", n_layers=3))
    one_line(error, str(path))


def test_odd_archives_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = saved(torch.zeros(5, 8))
    pickled = parts.pop("data.pkl")
    path = archive(tmp_path / "v.pt", pickled, **{**parts, "byteorder": b"big"})
    cases = {"big-endian": path.read_bytes()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", pickled + b"\0" * 2**22)
    cases["packed"] = path.read_bytes()
    torch.save(torch.zeros(5, 8), path, _use_new_zipfile_serialization=False)
    cases["before torch 1.6"] = path.read_bytes()
    for part, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(VectorError) as error:
            tensor_file.load_tensors(path)
        one_line(error, str(path), part)
    monkeypatch.setattr(foreign, "MAX_BYTES", 100)
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "out.gguf"))
    one_line(error, str(path), "larger")


def gguf_head(n_tensors: int, n_fields: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_fields) + rest


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (gguf_head(2**60, 1), "too many"),
        (gguf_head(1, 2**60), "too many"),
        (gguf_head(0, 1, struct.pack("<Q", 2**62) + b"name"), "does not fit"),
        # The gguf package's reader goes on for ever here.
        (gguf_head(0, 1, text("a") + struct.pack("<IIQ", 9, 0, 2**62)), "does not fit"),
        (gguf_head(0, 1, text("a") + struct.pack("<IIQ", 9, 8, 2**62)), "does not fit"),
        (gguf_head(0, 1, text("a") + struct.pack("<IIQ", 9, 9, 1)), "does not fit"),
        (gguf_head(1, 0, text("direction.1") + struct.pack("<IQIQ", 1, 2**62, 0, 0)), "does not fit"),
        (gguf_head(1, 0, text("direction.1") + struct.pack("<IQIQ", 1, 8, 0, 2**63)), "does not fit"),
        (gguf_head(1, 0, text("direction.1") + struct.pack("<IQIQ", 1, 8, 2, 0)), "quantised"),
        (gguf_head(1, 0, text("direction.1") + struct.pack("<IIQ", 2**31, 0, 0)), "does not fit"),
        (gguf_head(0, 2, 2 * (text("a") + struct.pack("<II", 4, 1))), "twice"),
        (gguf_head(0, 1, text("general.alignment") + struct.pack("<II", 4, 0)), "alignment"),
        (gguf_head(0, 0, version=3 << 24), "big-endian"),
        (gguf_head(0, 0, version=9), "version 9"),
    ],
)
def test_a_gguf_header_that_lies_is_refused(tmp_path: Path, data: bytes, part: str) -> None:
    path = tmp_path / "v.gguf"
    path.write_bytes(data)
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "out.pt"))
    one_line(error, str(path), part)


def test_tensors_that_overlap_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    size, names = 2**20, [f"direction.{block}" for block in range(60)]
    places = b"".join(text(name) + struct.pack("<IQIQ", 1, size // 2, 1, 0) for name in names)
    head = gguf_head(len(names), 0, places)
    (tmp_path / "v.gguf").write_bytes(head + b"\0" * (size + 64))
    tracemalloc.start()
    with pytest.raises(VectorError) as error:
        convert(Request(tmp_path / "v.gguf", tmp_path / "o.safetensors", n_layers=60))
    assert tracemalloc.get_traced_memory()[1] < 8 * size
    tracemalloc.stop()
    one_line(error, "v.gguf", "does not fit")


def test_a_small_file_makes_no_large_vector(tmp_path: Path) -> None:
    """Few numbers and a claim of many layers: the vector would be thousands of times the file."""
    path = written.write_gguf(
        tmp_path / "v.gguf", {0: torch.ones(2**15)}, **{**written.STEERKIT, "n_total_layers": 1000}
    )
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "out.pt"))
    one_line(error, str(path), "too large")
    path = written.write_gguf(tmp_path / "v.gguf", {0: torch.ones(8)}, **{**written.STEERKIT, "n_total_layers": 2**31})
    with pytest.raises(VectorError) as error:
        convert(Request(path, tmp_path / "out.pt"))
    one_line(error, str(path), "no model's")

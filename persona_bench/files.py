"""Files: written whole or not at all, by one process at a time, and read a line at a time."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from persona_bench.errors import DataError, first_line

# Errors of a write that carry no file name, unlike those of open() and rename().
_WRITE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})


def _cannot_write(path: Path, error: OSError) -> DataError:
    """The one-line error for a write to `path` that failed with `error`."""
    first = "free some space or " if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    return DataError(f"cannot write {path}: {error.strerror or error}; {first}choose another --out")


def _is_about(error: OSError, *paths: Path) -> bool:
    """Whether `error` comes from writing one of `paths`, and not from something else done meanwhile."""
    if error.filename is None:
        return error.errno in _WRITE_ERRNOS
    return str(error.filename) in {str(path) for path in paths}


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` that takes its place when the block ends well.

    The temporary file is flushed to the disk before the rename (POSIX: a rename within one folder is
    atomic), and is removed when the block raises. Missing parent folders are made.

    Args:
        path: The file to write.

    Yields:
        The temporary path; the block must create a file there.

    Raises:
        DataError: If the file, or its folder, cannot be written.
    """
    target = Path(path)
    # The thread is part of the name as two threads of one process may write the same file.
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}-{threading.get_ident()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if _is_about(error, temporary, target, *target.parents):
            raise _cannot_write(target, error) from error
        raise
    finally:
        # A folder that cannot be entered raised above already; here it must not hide that error.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            temporary.unlink()


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write `data` to `path` whole or not at all; text is written as UTF-8 with its line ends as they are.

    Args:
        path: The file to write; missing parent folders are made.
        data: What to write.

    Raises:
        DataError: If the file cannot be written; an older file at `path` is then untouched.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def file_lock(path: str | os.PathLike[str], on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the length of the block.

    The lock is the operating system's (`flock`), so it ends with the process that holds it and a crash leaves
    none behind; the empty file stays, as removing it would let a third process lock a different file of
    the same name.

    Args:
        path: The lock file; missing parent folders are made.
        on_wait: Called once if another process holds the lock, before waiting for it.

    Yields:
        Nothing.

    Raises:
        DataError: If the lock file cannot be made.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_write(target, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if on_wait is not None:
                on_wait()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_folder(model: str) -> str:
    """A model's name as one folder name, the same for everything that looks for a run's files."""
    name = os.path.normpath(model).strip("/") if model.startswith((".", "/")) else model.strip("/")
    return name.replace("/", "--").lstrip(".-") or "model"


def scope(held: Mapping[str, Any], between: str = ", ") -> str:
    """The preset of a run.json and, of a part published beside a run of that preset, its name: "standard, training"."""
    return between.join(str(held[name]) for name in ("preset", "part") if held.get(name))


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers (from 1), one at a time; blank lines are skipped.

    Raises:
        DataError: the file cannot be read, is empty, or a line is not a JSON object.
    """
    empty = True
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                empty = False
                item = json.loads(line)
                if not isinstance(item, dict):
                    raise DataError(f"{path}, line {number}: expected a JSON object")
                yield number, item
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error.msg}); one JSON object a line is expected") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        # A whole number of over 4,300 digits, or nesting beyond the interpreter's stack.
        raise DataError(
            f"{path}, line {number}: JSON that cannot be read ({first_line(error)}); mend the line"
        ) from error
    if empty:
        raise DataError(f"{path} is empty; one JSON object a line is expected")

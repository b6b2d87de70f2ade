"""What a CPU computes with: memory from glibc's allocator (no other is told), compiled kernels, OpenMP's threads."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

KERNELS = 128
"""Of the 1,024 that oneDNN, and torch beside it, each keep by themselves, one for every shape they meet."""
_END_HELPERS = "omp_pause_resource_all"  # of OpenMP 5.0
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
# A process that another of this package started has what that one set.
_ours = [name for name in _CACHES if os.environ.get(name) in (None, str(KERNELS))]


@cache
def _glibc() -> Any:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


def reuse_large_blocks() -> None:
    """Keep large activations on the heap instead of mapping them anew each time.

    Every mapping is zeroed page by page on first touch, which cost a third of the time of scoring a batch.
    """
    arena_max, mmap_max, trim_threshold = -8, -4, -1  # M_ARENA_MAX, M_MMAP_MAX, M_TRIM_THRESHOLD of mallopt(3)
    if _glibc() is not None:
        _glibc().mallopt(arena_max, 1)
        _glibc().mallopt(mmap_max, 0)
        _glibc().mallopt(trim_threshold, 2**31 - 1)


def give_back() -> None:
    """Return what is free to the system, from between what is in use too: the price of keeping large blocks."""
    if _glibc() is not None:
        _glibc().malloc_trim(0)


def end_helpers() -> None:
    """End the helpers that OpenMP keeps for this thread's next product of matrices, which makes new ones.

    With those of two threads there are more of them than processors. GNU's OpenMP then has all helpers sleep after
    every layer's part, idle ones counted too, and decoding takes twice the time for waking them.
    """
    if _glibc() is not None and hasattr(_glibc(), "GOACC_parallel_keyed") and hasattr(_glibc(), _END_HELPERS):
        getattr(_glibc(), _END_HELPERS)(1)  # softly: what was set stays


def keep_kernels(onednn: int, torch: int) -> None:
    """Keep so many compiled kernels, unless the environment says how many; after the first pass nothing changes.

    Args:
        onednn: of its own.
        torch: of those that torch keeps beside them; with 0 it crashes.
    """
    for name, n in zip(_CACHES, (onednn, torch), strict=True):
        if name in _ours:
            os.environ[name] = str(n)

"""Where relative paths in a task's arguments begin: in the folder that the command was given in."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import persona_bench

P = ParamSpec("P")
T = TypeVar("T")


def paths_from_caller(make: Callable[P, T]) -> Callable[P, T]:
    """Make a task in the folder of the command, where Inspect has gone to that of the task's file to make it.

    A task that is made in any other folder is made there.
    """
    beside = Path(inspect.getfile(make)).resolve().parent

    @functools.wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        with contextlib.chdir(persona_bench.CALLED_FROM) if Path.cwd() == beside else contextlib.nullcontext():
            return make(*args, **kwargs)

    return made

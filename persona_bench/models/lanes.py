"""Engines side by side on one set of weights: on a processor two passes on a thread each beat one pass on two threads.

A pass splits every layer among its threads and waits for the last of them, and what is not split waits too: reading
500 conversations takes a sixth longer so. A row's residual stream is the same in either (see `attention`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

import torch

from persona_bench.models.engine import Engine
from persona_bench.models.loaded import find_blocks, shallow_copy

MOST_LANES = 8
LANE_TOKENS = 1024  # of a pass: with half as many it takes a twentieth longer

Found = TypeVar("Found")


def n_lanes(device: torch.device) -> int:
    """How many engines share a device: as many as a processor gives threads, `MOST_LANES` at most; on a GPU one."""
    return min(torch.get_num_threads(), MOST_LANES) if device.type == "cpu" else 1


class Lanes:
    """An engine, and others on its weights that take its place when there is work for several.

    Args:
        engine: works alone where there is one task, and is not touched where there are more.

    Attributes:
        n: how many engines work at once.
        tokens: how many a task should have to read, for a lane to be worth it.
    """

    def __init__(self, engine: Engine) -> None:
        self.n = n_lanes(engine.loaded.device)
        self.tokens = max(engine.token_budget // self.n, LANE_TOKENS)
        self._engine, self._siblings = engine, list[Engine]()

    def run(self, tasks: Sequence[Callable[[Engine], Found]]) -> list[Found]:
        """Do `n` tasks at most, each with an engine and a part of the threads of its own; what they gave, in order.

        Raises:
            What the first task to fail raised; an interrupt, too, ends the others after the step that they are at.
        """
        if len(tasks) < 2:
            return [task(self._engine) for task in tasks]
        while len(self._siblings) < len(tasks):
            self._siblings.append(sibling(self._engine, self.tokens))
        engines, threads = self._siblings[: len(tasks)], torch.get_num_threads()
        try:
            with ThreadPoolExecutor(len(tasks), "persona-bench-lane", take_threads, (threads // len(tasks),)) as pool:
                try:
                    futures = [pool.submit(task, engine) for task, engine in zip(tasks, engines, strict=True)]
                    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    return [future.result() for future in futures]
                except BaseException:
                    for engine in engines:
                        engine.halt()
                    self._siblings = []
                    raise
        finally:
            torch.set_num_threads(threads)  # what a lane takes counts for threads that begin later, too


def sibling(engine: Engine, token_budget: int, part: int = 1) -> Engine:
    """Another engine on the same weights.

    Args:
        engine: whose weights.
        token_budget: of a pass.
        part: has that part of the engine's slots, and of its memory for prefixes: 2 is half.
    """
    model = shallow_copy(engine.loaded.model)
    own = replace(engine.loaded, model=model, blocks=list(find_blocks(model)))
    slots, prefixes = engine.max_batch // part, engine.prefix_bytes // part
    return Engine(own, max_batch=slots, token_budget=token_budget, prefix_bytes=prefixes)


def take_threads(n: int) -> None:
    """Let torch compute in this thread with `n` threads, and in those that begin later: set them theirs again."""
    torch.get_num_threads()  # gives a thread, once, the number that the process has
    torch.set_num_threads(n)

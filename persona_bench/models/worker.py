"""The threads that step the engines of this process, so that weights sharing a processor never compete for it.

On a processor there are two, each with half of its threads and, on every set of weights, an engine of its own with half
of the slots: while one generates, the other may read for a grader, and neither waits for the other or for Inspect.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
from concurrent.futures import Future

import torch

from persona_bench.models.engine import Engine
from persona_bench.models.lanes import LANE_TOKENS, n_lanes, sibling, take_threads
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.memory import end_helpers
from persona_bench.models.rows import Row, RowResult

logger = logging.getLogger(__name__)

LANES = 2  # each has its part of the slots, and takes the interpreter from the others; more were not measured
# Requests arrive one by one: an idle lane waits this long after the last one, so that the first batch is not tiny.
LINGER_SECONDS = 0.02
MAX_LINGERS = 10
# A pass is thousands of short calls into torch, and after each a lane asks for the interpreter again. Python lets a
# busy thread (Inspect's, say) keep it for 5 ms each time, which can make a pass of 0.1 s one of many seconds.
SWITCH_SECONDS = 5e-5


class Worker:
    """Shares rows among its lanes, each of which steps its busiest engine; submission is safe from any thread."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._shared: dict[Engine, list[Engine]] = {}
        self._changed = threading.Condition()
        self._lanes: list[threading.Thread] = []
        self._arrivals = 0
        self._ended = False

    def engine(self, loaded: LoadedModel, max_batch: int | None = None) -> Engine:
        """The engine of a weight set, made once a process; slots as `Engine` has them."""
        with self._changed:
            if id(loaded) not in self._engines:
                self._engines[id(loaded)] = Engine(loaded, max_batch=max_batch)
            return self._engines[id(loaded)]

    def release(self, loaded: LoadedModel) -> None:
        """Hold the engines of a weight set no longer; nothing of them may be waiting."""
        with self._changed:
            engine = self._engines.pop(id(loaded), None)
            if engine is not None:
                self._shared.pop(engine, None)

    def submit(self, engine: Engine, rows: list[Row]) -> list[Future[RowResult]]:
        """Queue rows for an engine of this worker; raises what `Engine.submit` raises."""
        end_helpers()  # what this thread computed before is over
        with self._changed:
            sharing = self._sharing(engine)
            futures = [_engine_for(row, sharing).submit(row) for row in rows]
            self._arrivals += len(rows)
            self._start(len(sharing))
            self._changed.notify_all()
        return futures

    def end(self) -> None:
        """Have the lanes end after the step that each is at; rows submitted afterwards stay without a result.

        A lane that is in a step as the process ends would abort it.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _sharing(self, engine: Engine) -> list[Engine]:
        """The engines, one a lane, that share an engine's rows; made when there are some for the first time."""
        if engine not in self._shared:
            n = min(n_lanes(engine.loaded.device), LANES)
            tokens = max(engine.token_budget // n, LANE_TOKENS)
            self._shared[engine] = [sibling(engine, tokens, n) for _ in range(n)] if n > 1 else [engine]
        return self._shared[engine]

    def _start(self, n: int) -> None:
        """Have `n` lanes at work; the first ones have all threads where no model had more lanes."""
        if len(self._lanes) >= n:
            return
        if not self._lanes:
            sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
            atexit.register(self.end)
        threads = torch.get_num_threads()
        ready = threading.Barrier(n - len(self._lanes) + 1)
        for number in range(len(self._lanes), n):
            arguments, name = (number, (threads + number) // n, ready), f"persona-bench-engine-{number}"
            self._lanes.append(threading.Thread(target=self._serve, args=arguments, name=name, daemon=True))
            self._lanes[-1].start()
        ready.wait()
        torch.set_num_threads(threads)

    def _own(self, number: int) -> list[Engine]:
        """A lane's engines that have something to do."""
        held = [engines[number] for engines in list(self._shared.values()) if number < len(engines)]
        return [engine for engine in held if engine.busy]

    def _serve(self, number: int, threads: int, ready: threading.Barrier) -> None:
        take_threads(threads)
        ready.wait()
        while not self._ended:
            with self._changed:
                while not self._own(number) and not self._ended:
                    self._changed.wait()
                for _ in range(MAX_LINGERS):
                    before = self._arrivals
                    self._changed.wait(LINGER_SECONDS)
                    if self._arrivals == before:
                        break
            while busiest := max(self._own(number), key=lambda engine: engine.load, default=None):
                if self._ended:
                    break
                try:
                    busiest.step()
                except Exception:
                    # Every waiting request has been told of the error already; the thread must live on for others.
                    logger.exception("The engine of %s failed.", busiest.loaded.name)


def _engine_for(row: Row, engines: list[Engine]) -> Engine:
    """Where a row goes: to those that begin like it, unless that engine has much more to do than another."""
    least = min(engines, key=lambda engine: engine.load)
    if not row.shared_prefix:
        return least
    home = engines[hash(row.prompt[: row.shared_prefix]) % len(engines)]
    return home if home.load - least.load <= max(home.max_batch // 4, least.load // 2) else least


WORKER = Worker()

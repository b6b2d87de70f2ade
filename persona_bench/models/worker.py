"""One thread that steps the engines of this process, so that weights sharing a processor never compete for it."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import Future

from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.rows import Row, RowResult

logger = logging.getLogger(__name__)

# Requests arrive one by one: an idle worker waits this long after the last one, so that the first batch is not tiny.
LINGER_SECONDS = 0.02
MAX_LINGERS = 10
# A pass is thousands of short calls into torch, and after each the worker asks for the interpreter again. Python lets
# a busy thread (Inspect's, say) keep it for 5 ms each time, which can make a pass of 0.1 s one of many seconds.
SWITCH_SECONDS = 5e-5


class Worker:
    """Steps whichever engine has most to do until none has; submission is safe from any thread."""

    def __init__(self) -> None:
        self._engines: dict[int, Engine] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._arrivals = 0

    def engine(self, loaded: LoadedModel, max_batch: int | None = None) -> Engine:
        """The engine of a weight set, made once a process; slots as `Engine` has them."""
        with self._changed:
            if id(loaded) not in self._engines:
                self._engines[id(loaded)] = Engine(loaded, max_batch=max_batch)
            return self._engines[id(loaded)]

    def release(self, loaded: LoadedModel) -> None:
        """Hold the engine of a weight set no longer; nothing of it may be waiting."""
        with self._changed:
            self._engines.pop(id(loaded), None)

    def submit(self, engine: Engine, rows: list[Row]) -> list[Future[RowResult]]:
        """Queue rows; raises what `Engine.submit` raises."""
        with self._changed:
            futures = [engine.submit(row) for row in rows]
            self._arrivals += len(rows)
            if self._thread is None:
                sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
                self._thread = threading.Thread(target=self._serve, name="persona-bench-engine", daemon=True)
                self._thread.start()
            self._changed.notify()
        return futures

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not any(engine.busy for engine in self._engines.values()):
                    self._changed.wait()
                for _ in range(MAX_LINGERS):
                    before = self._arrivals
                    self._changed.wait(LINGER_SECONDS)
                    if self._arrivals == before:
                        break
            while busiest := max(
                (e for e in list(self._engines.values()) if e.busy), key=lambda e: e.load, default=None
            ):
                try:
                    busiest.step()
                except Exception:
                    # Every waiting request has been told of the error already; the thread must live on for others.
                    logger.exception("The engine of %s failed.", busiest.loaded.name)


WORKER = Worker()

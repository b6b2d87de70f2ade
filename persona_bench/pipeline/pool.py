"""Evals shared among processes of this machine: each holds the weights, and takes the next eval when one is done."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from persona_bench.errors import RunError
from persona_bench.pipeline.settings import Say

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.util import DisplayType

    Planned = partial[Task]
    """A task function with its arguments: what another process can make the eval from."""

STILL_AT_WORK_S = 60.0  # how often a long eval is said to go on


class Worker(Protocol):
    """What does evals in a process."""

    def load(self) -> None:
        """Open weights and graders."""

    def evaluate(self, folder: str, tasks: Sequence[Task], display: DisplayType | None = None) -> None:
        """Do what is missing of these evals, with their logs in a folder of the run's."""


class Pool:
    """Processes with weights and graders of their own, which outlive a stage.

    A sample's numbers do not depend on what runs beside it, so that who evaluates what changes nothing.

    Args:
        make: makes what works in a process; is sent to it.
        n: how many processes; with several GPUs each takes one, in turn.
        say: told of every eval that is done.
    """

    def __init__(self, make: Callable[[], Worker], n: int, say: Say) -> None:
        context = get_context("spawn")
        self.n, self._say = n, say
        self._workers = ProcessPoolExecutor(
            n, mp_context=context, initializer=_start, initargs=(make, n, _gpus(), context.Value("i", 0))
        )

    def evaluate(self, what: str, planned: Mapping[str, Planned]) -> None:
        """Do evals, each into the folder of logs that it is named by; go on with logs that are there.

        Raises:
            RunError: a process ended by itself.
            PersonaBenchError: what an eval raised; those at work are finished first, the rest is not begun.
        """
        waiting: dict[Future[None], str] = {
            self._workers.submit(_work, folder, make): folder for folder, make in planned.items()
        }
        try:
            while waiting:
                done, _ = wait(waiting, STILL_AT_WORK_S, FIRST_COMPLETED)
                names = [waiting.pop(future).rpartition("/")[2] for future in done]
                for future in done:
                    future.result()
                told = f"{what}: {len(planned) - len(waiting)} of {len(planned)} evals done"
                self._say(f"{told}, {', '.join(sorted(names))}" if names else f"{told}, still at work")
        except BrokenProcessPool as error:
            # The executor is just giving all of them this error, and fails itself at one that is cancelled meanwhile.
            waiting.clear()
            raise RunError(
                f"{what}: a process ended by itself, which where memory runs out the system makes it do; "
                "run the same command with fewer --processes to go on"
            ) from error
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the processes; an eval at work is finished first."""
        self._workers.shutdown(cancel_futures=True)


def folders(stage: str, planned: list[Planned]) -> dict[str, Planned]:
    """A folder of logs for each eval of a stage, the same whoever does it: Inspect reads a folder that it writes to."""
    return {f"{stage}/{make.func.__name__}-{_hash(make.keywords)}": make for make in planned}


def hand_over(root: Path, stage: str, planned: Mapping[str, Planned]) -> None:
    """Move the logs that one process wrote for a stage to where those who share it look for them.

    Args:
        root: of all logs.
        stage: whose own folder is looked through, not those below it.
        planned: as `folders` gives it.

    Raises:
        DataError: a log cannot be read.
    """
    from inspect_ai.log import list_eval_logs

    from persona_bench.analysis.samples.collect import path_of, read_log

    if not (root / stage).is_dir():
        return
    for info in list_eval_logs(str(root / stage), recursive=False):
        path, held = path_of(info), read_log(info, header_only=True).eval
        for folder, make in planned.items():
            if held.task.rsplit("/", 1)[-1] == make.func.__name__ and held.task_args_passed == make.keywords:
                (root / folder).mkdir(exist_ok=True)
                path.rename(root / folder / path.name)


def _hash(arguments: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()[:8]


def _gpus() -> list[str]:
    """The GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


_ready: list[Worker] = []
"""What a process of the pool works with, once it has started."""


def _start(make: Callable[[], Worker], n: int, gpus: list[str], started: Any) -> None:
    """Make this process ready to work."""
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
    torch.set_num_threads(max(1, torch.get_num_threads() // n))
    worker = make()
    worker.load()
    _ready.append(worker)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for work forever, and hold its weights."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(folder: str, make: Callable[[], Task]) -> None:
    _ready[0].evaluate(folder, [make()], display="none")

"""Judgements kept on disk: the same grader, method, rubric, question and answer are judged once, ever.

A judgement is found by the hash of everything it depends on, so nothing can be served for another text, grader or
wording. Failures are never kept. `PERSONA_BENCH_JUDGE_AFRESH=1` neither reads nor writes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from weakref import WeakKeyDictionary

from inspect_ai.util import LimitExceededError

from persona_bench.inspect_ext.judgement import Judgement

logger = logging.getLogger(__name__)

BUSY_S = 30.0  # how long to wait for another process that is writing
_connections: dict[Path, sqlite3.Connection] = {}
_Flights = dict[str, "asyncio.Future[Judgement | None]"]
_in_flight: WeakKeyDictionary[asyncio.AbstractEventLoop, _Flights] = WeakKeyDictionary()


def key_of(*parts: str) -> str:
    """The name under which a judgement is kept."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


async def judged_once(key: str, judge: Callable[[], Awaitable[Judgement]]) -> Judgement:
    """The kept judgement, or a new one, which is kept unless the grader failed; calls for one key wait for one another.

    Raises:
        Whatever `judge` raises.
    """
    if os.environ.get("PERSONA_BENCH_JUDGE_AFRESH") == "1":
        return await judge()
    held = _read(key)
    if held is not None:
        return held
    loop = asyncio.get_running_loop()
    flights = _in_flight.setdefault(loop, {})
    while key in flights:
        shared = await asyncio.shield(flights[key])
        if shared is not None:
            return shared
    future: asyncio.Future[Judgement | None] = loop.create_future()
    flights[key] = future
    try:
        result = await judge()
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, LimitExceededError):
            future.set_exception(error)
            future.exception()  # seen here: no warning where nobody else waits
        else:
            # The sample that asked was stopped, which says nothing of the others: the next of them asks.
            future.set_result(None)
        raise
    else:
        if result.status != "unscored":
            _write(key, result)
        future.set_result(result)
        return result
    finally:
        del flights[key]


def _file() -> Path:
    from persona_bench.models.assets import cache_dir

    return cache_dir() / "judgements.sqlite"


def _connection() -> sqlite3.Connection:
    path = _file()
    if path not in _connections:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("CREATE TABLE IF NOT EXISTS judgements (key TEXT PRIMARY KEY, judgement TEXT NOT NULL)")
        except sqlite3.Error:
            connection.close()
            raise
        _connections[path] = connection
    return _connections[path]


def _read(key: str) -> Judgement | None:
    try:
        row = _connection().execute("SELECT judgement FROM judgements WHERE key = ?", (key,)).fetchone()
        return None if row is None else Judgement(**json.loads(row[0]))
    except (sqlite3.Error, OSError, ValueError, TypeError) as error:
        _broken(error)
        return None


def _write(key: str, judgement: Judgement) -> None:
    try:
        # Only judgements of single graders are kept, so there is no panel to keep.
        found = {name: value for name, value in asdict(judgement).items() if name != "panel"}
        _connection().execute("INSERT OR REPLACE INTO judgements VALUES (?, ?)", (key, json.dumps(found)))
    except (sqlite3.Error, OSError) as error:
        _broken(error)


_warned: set[str] = set()


def _broken(error: Exception) -> None:
    """Judging goes on without the store; said once for each cause."""
    if str(error) not in _warned:
        _warned.add(str(error))
        where = _file()
        logger.warning(
            "Kept judgements in %s cannot be used (%s): judging anew; removing the file helps.", where, error
        )

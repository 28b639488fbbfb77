"""One thread that writes: whatever is waiting goes into one transaction (group commit)."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from evbatteryd.domain.errors import StoreError
from evbatteryd.store import statements as sql
from evbatteryd.store.database import BUSY_SECONDS
from evbatteryd.store.database import head as newest_of
from evbatteryd.store.failures import explained

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]
"""Part of a transaction that someone else begins and ends. May be run again if that was rolled back."""

_LARGEST_BATCH: Final = 1000
"""So that nobody waits long behind the others when a whole fleet is written at once."""


@dataclass(frozen=True, slots=True)
class _Job:
    operation: Operation[Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Emptying:
    """Somebody wants the log empty, once everything before is committed."""

    future: asyncio.Future[bool]


@dataclass(frozen=True, slots=True)
class _Outcome:
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None


class Writer:
    """Takes operations from the event loop that made it, and answers when they are durable."""

    def __init__(self, connection: sqlite3.Connection, path: Path, head: int) -> None:
        self.head = head
        """Position of the newest committed reading."""
        self._connection = connection
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[_Job | _Emptying | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    async def write(self, operation: Operation[T]) -> T:
        """Commit ``operation``, together with whatever else waits, and return what it returned.

        Cancelling the caller does not take it back. Raises StoreError if nothing of it was kept.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(_Job(operation, future))
        return await future

    async def empty_log(self) -> bool:
        """Fold the write-ahead log into the database and leave nothing in it. False: it could not be done.

        Somebody who reads an old state of the database keeps it from that, and nobody is made to wait for it.
        """
        future: asyncio.Future[bool] = self._loop.create_future()
        self._put(_Emptying(future))
        return await future

    async def close(self) -> None:
        """Write what is waiting, fold the write-ahead log into the database, close the connection."""
        self._closed = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _put(self, job: _Job | _Emptying) -> None:
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        self._waiting.put(job)

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = self._batch(first)
            outcomes = self._commit([job for job in batch if isinstance(job, _Job)])
            outcomes += self._empty([job for job in batch if isinstance(job, _Emptying)])
            # The loop may be gone already: then nobody is waiting for an answer either.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_answer, outcomes)
        # Not being able to costs nothing: the log is read again at the next start.
        with suppress(sqlite3.Error):
            self._connection.execute(sql.EMPTY_LOG)
        self._connection.close()

    def _batch(self, first: _Job | _Emptying) -> list[_Job | _Emptying]:
        """``first`` and all that wait behind it."""
        batch = [first]
        while len(batch) < _LARGEST_BATCH and not self._waiting.empty():
            job = self._waiting.get()
            if job is None:
                self._waiting.put(None)
                break
            batch.append(job)
        return batch

    def _empty(self, batch: list[_Emptying]) -> list[_Outcome]:
        if not batch:
            return []
        try:
            self._connection.execute("PRAGMA busy_timeout = 0")
            [(busy, _, _)] = self._connection.execute(sql.EMPTY_LOG).fetchall()
        except sqlite3.Error:
            busy = True
        finally:
            self._connection.execute(f"PRAGMA busy_timeout = {round(1000 * BUSY_SECONDS)}")
        return [_Outcome(job.future, not busy) for job in batch]

    def _commit(self, batch: list[_Job]) -> list[_Outcome]:
        if not batch:
            return []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            return self._failed(batch, error)
        try:
            results = [job.operation(self._connection) for job in batch]
            newest = newest_of(self._connection)
        except Exception as error:  # whatever it is, it is the caller's who asked for that operation
            self._roll_back()
            if len(batch) == 1:
                return self._failed(batch, error)
            # One operation that cannot be done must not take the others with it.
            return [outcome for job in batch for outcome in self._commit([job])]
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            return self._failed(batch, error)
        self.head = newest
        return [_Outcome(job.future, result) for job, result in zip(batch, results, strict=True)]

    def _roll_back(self) -> None:
        # After some errors SQLite has done it already. If it fails, the next BEGIN says so.
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _failed(self, batch: Sequence[_Job | _Emptying], error: Exception) -> list[_Outcome]:
        return [_Outcome(job.future, error=self._told(error)) for job in batch]

    def _told(self, error: Exception) -> Exception:
        told = explained(error, self._path)
        if told is not error:
            told.__cause__ = error
        return told


def _answer(outcomes: list[_Outcome]) -> None:
    for outcome in outcomes:
        if outcome.future.done():  # its caller was cancelled
            continue
        if outcome.error is None:
            outcome.future.set_result(outcome.result)
        else:
            outcome.future.set_exception(outcome.error)

"""One thread that reads, on a connection of its own: never held up by the one that writes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from evbatteryd.domain.errors import StoreError
from evbatteryd.store.failures import explaining

T = TypeVar("T")
Query = Callable[[sqlite3.Connection], T]


class Reader:
    """Answers one query after the other; each sees everything that was committed before it began."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._closed = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store-reader")

    async def read(self, query: Query[T]) -> T:
        """What ``query`` returns. Raises StoreError if the database cannot be read."""
        if self._closed:
            raise StoreError(f"{self._path}: the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._run, query)

    async def close(self) -> None:
        """Answer what is waiting, then close the connection."""
        self._closed = True
        await asyncio.to_thread(self._thread.shutdown)
        self._connection.close()

    def _run(self, query: Query[T]) -> T:
        with explaining(self._path):
            return query(self._connection)

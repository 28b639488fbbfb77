"""The two threads of a store: what reads from it and what writes to it, seen from the event loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evbatteryd.domain.errors import StoreError
from evbatteryd.store.codec import Row
from evbatteryd.store.reader import Query, Reader
from evbatteryd.store.writer import Operation, T, Writer


class Threads:
    """One reader, and one writer unless the store was opened for reading only."""

    def __init__(self, path: Path, head: int, reader: Reader, writer: Writer | None) -> None:
        self._path = path
        self._head = head
        self._reader = reader
        self._writer = writer

    @property
    def writable(self) -> bool:
        return self._writer is not None

    @property
    def head(self) -> int:
        """Position of the newest committed reading; opened for reading only, as it was then."""
        return self._head if self._writer is None else self._writer.head

    async def read(self, query: Query[T]) -> T:
        """What ``query`` returns. Raises StoreError."""
        return await self._reader.read(query)

    async def value(self, statement: str, arguments: Row) -> Any:
        """The one value that ``statement`` finds, or None. Raises StoreError."""
        found = await self._reader.read(lambda db: db.execute(statement, arguments).fetchone())
        return None if found is None else found[0]

    async def write(self, operation: Operation[T]) -> T:
        """What ``operation`` returned, once it is durable. Raises StoreError if nothing of it was kept."""
        return await self._to_write().write(operation)

    async def empty_log(self) -> bool:
        """Whether nothing of what was overwritten or deleted before is left in any file now."""
        return await self._to_write().empty_log()

    async def close(self) -> None:
        """Answer and write what is waiting. Afterwards every call raises StoreError."""
        await self._reader.close()
        if self._writer is not None:
            await self._writer.close()

    def _to_write(self) -> Writer:
        if self._writer is None:
            raise StoreError(f"{self._path} was opened for reading only")
        return self._writer

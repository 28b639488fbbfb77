"""What was published and may still be shown, in the store's SQLite file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from evbatteryd.domain.ports import Published
from evbatteryd.store import codec
from evbatteryd.store import statements as sql
from evbatteryd.store.threads import Threads


class Manifest:
    """Implements :class:`evbatteryd.domain.ports.Manifest`."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def published(self) -> list[Published]:
        """Everything that was noted, by place and slug."""

        def query(db: sqlite3.Connection) -> list[Published]:
            return [codec.decode_published(row) for row in db.execute(sql.PUBLISHED)]

        return await self._threads.read(query)

    async def note_published(self, notes: Iterable[Published]) -> None:
        """Note these in place of what was noted under the same place and slug, all of them or none.

        Those with neither ``leaves`` nor ``gone`` are forgotten. Of several under one place and slug the
        last counts. Raises StoreError if a name holds a space, or is empty.
        """
        newest = {(note.place, note.slug): note for note in notes}
        kept = [codec.encode_published(note) for note in newest.values() if note.leaves or note.gone]
        forgotten = [key for key, note in newest.items() if not (note.leaves or note.gone)]

        def operation(db: sqlite3.Connection) -> None:
            db.executemany(sql.NOTE_PUBLISHED, kept)
            db.executemany(sql.FORGET_PUBLISHED, forgotten)

        await self._threads.write(operation)

    async def mark(self, sink: str) -> str | None:
        """The mark that was kept for this start, once: it is forgotten, durably, before it is returned."""

        def operation(db: sqlite3.Connection) -> str | None:
            found = db.execute(sql.TAKE_MARK, (sink,)).fetchall()
            return found[0][0] if found else None

        return await self._threads.write(operation)

    async def keep_mark(self, sink: str, mark: str) -> None:
        """Keep it for the next start, in place of what was kept before."""
        await self._threads.write(lambda db: db.execute(sql.KEEP_MARK, (sink, mark)).rowcount)

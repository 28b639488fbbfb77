"""How far each sink is in the journal of the store's SQLite file: what it has taken, what it is owed.

A sink has taken everything up to its cursor, and of each vehicle everything up to a position of its own where
that is further. A reading that is gone from the journal, erased or pruned, is owed to nobody. How far a sink
is with an erased vehicle stands: positions are never given twice, so what comes next is owed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Final

from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.store import codec
from evbatteryd.store import statements as sql
from evbatteryd.store.threads import Threads

_OWED_SLICE: Final = 20_000
"""Positions of the journal that one look at what is owed goes through at most: some ten milliseconds for
whoever else wants to read."""


class Outbox:
    """The part of :class:`evbatteryd.domain.ports.Store` that says what each sink has taken."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def cursor(self, sink: str) -> int:
        """How far ``sink`` has come with everything; 0 for a new one, for which nothing untaken is pruned
        from then on."""
        known = await self._threads.value(sql.CURSOR, (sink,))
        if known is None and self._threads.writable:
            await self.delivered(sink, {})
        return known or 0

    async def owed(self, sink: str, after: int, limit: int) -> list[tuple[int, VehicleId]]:
        """Positions after ``after`` that ``sink`` has not taken, and whose they are, oldest first.

        Walk them by handing over the last position; an empty list ends the walk. Goes through the journal in
        slices, however much of it was taken.
        """

        # No slice begins behind what is committed by now: it might leave out what is committed meanwhile.
        position, end = await self._threads.read(lambda db: _walk(db, sink, after))
        owed: list[tuple[int, VehicleId]] = []
        while position < end and len(owed) < limit:
            found, position = await self._threads.read(
                partial(_owed, sink=sink, after=position, end=end, limit=limit - len(owed))
            )
            owed += found
        return owed

    async def delivered(
        self, sink: str, positions: Mapping[VehicleId, int], cursor: int | None = None
    ) -> None:
        """``sink`` has taken everything of these vehicles up to and including these positions.

        ``cursor``: and everything of all of them up to and including that. Neither ever goes back.
        Raises StoreError, and keeps nothing of it, for a vehicle that was never enrolled.
        """
        told = [(sink, vehicle_id, position) for vehicle_id, position in positions.items()]

        def operation(db: sqlite3.Connection) -> None:
            db.execute(sql.MOVE_CURSOR, (sink, cursor or 0))
            db.executemany(sql.TOLD, told)
            if cursor is not None:
                db.execute(sql.OVERTAKEN, (sink,))

        await self._threads.write(operation)

    async def position_before(self, instant: datetime) -> int:
        """Position of the last reading fetched before ``instant``, nearly; 0: there is none.

        Found by halving, since positions are nearly in the order in which answers came: they are given at the
        commit, for which one answer waits longer than another by milliseconds, or by as long as the disk was
        full. What is certain: this reading was fetched before ``instant``, and the next one was not.
        """
        before_ms = codec.to_ms_up(instant)
        return await self._threads.read(lambda db: _position_before(db, before_ms))


def _walk(db: sqlite3.Connection, sink: str, after: int) -> tuple[int, int]:
    """The positions between which ``sink`` may be owed readings."""
    begin, end = db.execute(sql.WALK, (sink, after)).fetchone()
    return begin, end


def _owed(
    db: sqlite3.Connection, *, sink: str, after: int, end: int, limit: int
) -> tuple[list[tuple[int, VehicleId]], int]:
    """What is owed of the next slice, which begins no later than at ``end``, and the last position of that.

    Gaps cost nothing.
    """
    [first] = db.execute(sql.NEXT, (after, end)).fetchone()
    if first is None:
        return [], end
    last = first + _OWED_SLICE - 1
    return db.execute(sql.OWED, (sink, first, last, limit)).fetchall(), last


def _position_before(db: sqlite3.Connection, before_ms: int) -> int:
    found = low = 0
    [high] = db.execute(sql.LAST).fetchone()
    while low < high:
        middle = (low + high + 1) // 2
        nearest = db.execute(sql.FETCHED_UP_TO, (low, middle)).fetchone()
        if nearest is None:
            low = middle
            continue
        position, fetched_ms = nearest
        if fetched_ms < before_ms:
            found, low = position, middle
        else:
            high = position - 1
    return found

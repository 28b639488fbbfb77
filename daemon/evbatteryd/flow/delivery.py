"""The journal is the queue; a sink is a cursor that walks it at its own pace and loses nothing."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from evbatteryd.domain.errors import SinkError, StoreError
from evbatteryd.domain.ports import Clock, Log, Sink, Store, Tally

BATCH = 500
PAUSE = timedelta(seconds=2)


class Delivery:
    """One sink's way through the journal."""

    def __init__(self, store: Store, sink: Sink, clock: Clock, tally: Tally, log: Log) -> None:
        self._store = store
        self._sink = sink
        self._clock = clock
        self._tally = tally
        self._log = log.bind(sink=sink.name)
        self._news = asyncio.Event()
        self._cursor = 0
        self._failing = False
        self._caught_up = asyncio.Event()

    def wake(self) -> None:
        """The journal grew."""
        self._caught_up.clear()
        self._news.set()

    async def run(self) -> None:
        """Deliver for ever, at least once, in order; what the sink has not taken is offered again."""
        known = False
        while True:
            self._news.clear()
            try:
                if not known:
                    self._cursor = await self._store.cursor(self._sink.name)
                    known = True
                await self._walk()
            except (SinkError, StoreError) as error:
                if not self._failing:
                    self._failing = True
                    self._log.warning("delivery.failing", error=str(error), waiting=self.waiting)
                await asyncio.sleep(self._clock.real(PAUSE) if self._clock.speed <= 1 else 0.2)
                continue
            if not self._news.is_set():
                self._caught_up.set()
            await self._news.wait()

    async def caught_up(self) -> None:
        """Until everything in the journal was taken."""
        await self._caught_up.wait()

    @property
    def waiting(self) -> int:
        """Readings that the sink has not taken yet, at most (positions in the journal)."""
        return max(self._store.head - self._cursor, 0)

    async def _walk(self) -> None:
        while batch := await self._store.after(self._cursor, BATCH):
            self._tally.outbox(self._sink.name, self.waiting)
            await self._sink.publish(batch)
            await self._store.delivered(self._sink.name, batch[-1].seq)
            self._cursor = batch[-1].seq
            if self._failing:
                self._failing = False
                self._log.info("delivery.recovered", waiting=self.waiting)
        self._tally.outbox(self._sink.name, 0)

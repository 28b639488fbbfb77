"""Stand-ins for what a test must hold in its hand: time, and leave to ask."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class VirtualClock:
    """Time that passes only when a test says so; sleepers wake in order, each at its own instant."""

    def __init__(self, start: datetime = START, speed: float = 1.0) -> None:
        self.speed = speed
        self._now = start
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> datetime:
        return self._now

    async def sleep(self, span: timedelta) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + max(span, timedelta()), next(self._order), woken))
        await woken

    def real(self, span: timedelta) -> float:
        return max(span.total_seconds(), 0.0) / self.speed

    async def advance(self, span: timedelta) -> None:
        """Let ``span`` pass."""
        until = self._now + span
        await settle()
        while self._sleepers and self._sleepers[0][0] <= until:
            at, _, woken = heapq.heappop(self._sleepers)
            if woken.done():
                continue
            self._now = max(self._now, at)
            woken.set_result(None)
            await settle()
        self._now = until
        await settle()


async def settle(turns: int = 30) -> None:
    """Let every task that can run do so."""
    for _ in range(turns):
        await asyncio.sleep(0)


class CountingTicket:
    """Leave to ask as often as one likes; counts."""

    def __init__(self) -> None:
        self.spent = 0

    async def spend(self) -> None:
        self.spent += 1


async def until(condition: Callable[[], bool]) -> None:
    """Until other threads and tasks have made ``condition`` true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.001)

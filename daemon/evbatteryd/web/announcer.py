"""Who watches is told that a car changed; who is slow is told once, of the newest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.vehicle import VehicleId

MOST_PENDING = 1_000
"""Changed cars kept for one listener. One that falls further behind has to look at everything again."""


@dataclass(frozen=True, slots=True)
class News:
    """What happened since a listener last asked."""

    cars: tuple[Car, ...]
    """Every car that changed, once, as it is now."""
    missed: bool
    """More changed than was kept: these cars are not all of them."""


class Listener:
    """One who watches some cars, or all of them."""

    def __init__(self, slugs: frozenset[str] | None) -> None:
        self._slugs = slugs
        self._pending: dict[VehicleId, Car] = {}
        self._missed = False
        self._wake = asyncio.Event()
        self.closed = False

    async def news(self, timeout_s: float) -> News:
        """Wait for a change, at most ``timeout_s`` seconds, and return all that are there."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        self._wake.clear()
        news = News(tuple(self._pending.values()), self._missed)
        self._pending.clear()
        self._missed = False
        return news

    def tell(self, car: Car) -> None:
        if self._slugs is not None and car.slug not in self._slugs:
            return
        if car.id not in self._pending and len(self._pending) >= MOST_PENDING:
            self._pending.clear()
            self._missed = True
        self._pending[car.id] = car
        self._wake.set()

    def close(self) -> None:
        self.closed = True
        self._wake.set()


class Announcer:
    """Passes changes on to whoever listens. Never blocks, and keeps a bounded amount for each."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self._closed = False

    def changed(self, car: Car) -> None:
        """Anything about ``car`` is different from before."""
        for listener in self._listeners:
            listener.tell(car)

    @contextmanager
    def listen(self, slugs: frozenset[str] | None = None) -> Iterator[Listener]:
        """Hear of these cars, or of all."""
        listener = Listener(slugs)
        listener.closed = self._closed
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def close(self) -> None:
        """Everybody stops listening: the daemon ends."""
        self._closed = True
        for listener in self._listeners:
            listener.close()

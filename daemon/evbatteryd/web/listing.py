"""Which cars a page or an API call shows: found, ordered and cut in slices, so that no fleet is too large."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import Freshness

CARS_PER_SLICE = 500
"""A millisecond or two of work between two turns of the event loop."""

_Keyed = tuple[str, str, Car]
"""Name and slug, by which cars are ordered; slugs differ, so cars themselves are never compared."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for."""

    text: str = ""
    """Every word of it occurs in the car's name, slug, make or model. Case does not matter."""
    freshness: Freshness | None = None
    withdrawn: bool = False
    """Cars whose consent was withdrawn are looked for, too."""

    def matches(self, car: Car) -> bool:
        if not self.text:
            return True
        consent = car.vehicle.consent
        hay = f"{car.vehicle.name}\n{car.slug}\n{consent.make}\n{consent.model or ''}".casefold()
        return all(word in hay for word in self.text.casefold().split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Matches:
    """The cars that a query finds."""

    enrolled: int
    """Cars there are, whatever the query's words; withdrawn ones only if it asks for them."""
    by_freshness: Mapping[Freshness, int]
    """How many match the query's text, by freshness."""
    total: int
    """How many match the whole query."""
    runs: tuple[list[_Keyed], ...]
    """Them, in runs that are sorted each."""

    async def cut(self, offset: int, limit: int) -> list[Car]:
        """By name: ``limit`` cars after the first ``offset``."""
        ordered = heapq.merge(*self.runs)
        for _ in range(offset // CARS_PER_SLICE):
            _skip(ordered, CARS_PER_SLICE)
            await asyncio.sleep(0)
        _skip(ordered, offset % CARS_PER_SLICE)
        return [car for _, _, car in islice(ordered, limit)]


async def find(fleet: Fleet, query: Query, now: datetime) -> Matches:
    """Look at every car once, giving way to the event loop between slices."""
    enrolled = 0
    by_freshness: Counter[Freshness] = Counter()
    runs: list[list[_Keyed]] = []
    cars = iter(fleet)
    while some := list(islice(cars, CARS_PER_SLICE)):
        run: list[_Keyed] = []
        for car in some:
            if car.vehicle.withdrawn_at is not None and not query.withdrawn:
                continue
            enrolled += 1
            if not query.matches(car):
                continue
            freshness = fleet.freshness(car, now)
            by_freshness[freshness] += 1
            if query.freshness in (None, freshness):
                run.append((car.vehicle.name.casefold(), car.slug, car))
        run.sort()
        runs.append(run)
        await asyncio.sleep(0)
    return Matches(enrolled=enrolled, by_freshness=by_freshness, total=sum(map(len, runs)), runs=tuple(runs))


def _skip(cars: Iterator[_Keyed], count: int) -> None:
    next(islice(cars, count, count), None)

"""How often somebody may knock, and how many at a time: exact for each address, in bounded memory."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

from evbatteryd.domain.ports import Clock

MOST_ADDRESSES = 10_000
"""Kept at a time; whoever was not seen for longest is forgotten first."""


@dataclass(frozen=True, slots=True)
class Rate:
    """``burst`` at once, and as many again in each ``per``."""

    burst: int
    per: timedelta


class Limiter:
    """Counts by address. Who came too often is told how long to wait.

    Of each address one instant is kept: when its whole burst is free again. Each time it comes moves that on
    by the burst's share of ``per`` (the generic cell rate algorithm, ITU-T I.371): whole microseconds
    throughout, so that whoever waits exactly as long as told is let in.
    """

    def __init__(self, rate: Rate, clock: Clock) -> None:
        self._rate = rate
        self._clock = clock
        self._each = rate.per / rate.burst
        self._free_at: OrderedDict[str, datetime] = OrderedDict()

    def wait_s(self, address: str) -> int:
        """Whole real seconds until this address may come again; 0: now. Counts nothing."""
        now = self._clock.now()
        wait = self._freed(address, now) + self._each - self._rate.per - now
        return ceil(self._clock.real(wait)) if wait > timedelta() else 0

    def count(self, address: str) -> None:
        """It came once."""
        now = self._clock.now()
        self._free_at[address] = min(self._freed(address, now) + self._each, now + self._rate.per)
        self._free_at.move_to_end(address)
        while len(self._free_at) > MOST_ADDRESSES:
            self._free_at.popitem(last=False)

    def take(self, address: str) -> int:
        """:meth:`wait_s`; and if that is 0, it came once."""
        wait_s = self.wait_s(address)
        if not wait_s:
            self.count(address)
        return wait_s

    def _freed(self, address: str, now: datetime) -> datetime:
        """When the whole burst is free again; not before ``now``."""
        known = self._free_at.get(address, now)
        if known > now + self._rate.per:  # The clock was set back: nobody waits for more than they came.
            known = self._free_at[address] = now + self._rate.per
        return max(known, now)


class Places:
    """How many may be at something at the same time: ``most`` overall, ``most_each`` of one address."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most = most
        self._most_each = most_each
        self._taken: Counter[str] = Counter()

    @contextmanager
    def place(self, address: str) -> Iterator[bool]:
        """Whether there is a place; if so, it is this address's until the end of the block."""
        if self._taken.total() >= self._most or self._taken[address] >= self._most_each:
            yield False
            return
        self._taken[address] += 1
        try:
            yield True
        finally:
            self._taken[address] -= 1
            if not self._taken[address]:
                del self._taken[address]

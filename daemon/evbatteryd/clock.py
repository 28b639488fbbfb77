"""The wall's clock, and one that runs faster for the demo.

Instants are whole milliseconds, as the sources give them and the store keeps them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo


def whole_milliseconds(at: datetime) -> datetime:
    return at.replace(microsecond=at.microsecond // 1000 * 1000)


def utc_offset(zone: ZoneInfo | None) -> Callable[[float], float]:
    """How many seconds local time is east of UTC at an epoch time; None: where the machine says it is."""
    if zone is None:
        return lambda at: float(time.localtime(at).tm_gmtoff)

    def offset(at: float) -> float:
        east = datetime.fromtimestamp(at, zone).utcoffset()
        return 0.0 if east is None else east.total_seconds()

    return offset


class WallClock:
    """UTC, as the machine has it."""

    speed = 1.0

    def now(self) -> datetime:
        return whole_milliseconds(datetime.now(UTC))

    async def sleep(self, span: timedelta) -> None:
        await asyncio.sleep(self.real(span))

    def real(self, span: timedelta) -> float:
        return max(span.total_seconds(), 0.0)


class FastClock:
    """Shows ``start`` when the machine's monotonic clock shows ``origin``, and runs ``speed`` times as fast.

    Processes of one machine that are given the same three share one time.
    """

    def __init__(self, speed: float, start: datetime | None = None, origin: float | None = None) -> None:
        if not speed > 0:
            raise ValueError(f"speed must be above 0, not {speed}")
        self.speed = speed
        self._start = start or datetime.now(UTC)
        self._origin = time.monotonic() if origin is None else origin

    def now(self) -> datetime:
        elapsed = timedelta(seconds=(time.monotonic() - self._origin) * self.speed)
        return whole_milliseconds(self._start + elapsed)

    async def sleep(self, span: timedelta) -> None:
        await asyncio.sleep(self.real(span))

    def real(self, span: timedelta) -> float:
        return max(span.total_seconds(), 0.0) / self.speed

"""The simulated world's time."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Whatever tells the world's time: one of ours, or that of the program under test."""

    @property
    def speed(self) -> float:
        """How many of the world's seconds pass in a real one."""
        ...

    def now(self) -> datetime: ...


class VirtualClock:
    """Starts now and runs ``speed`` times as fast as the machine's monotonic clock."""

    def __init__(self, speed: float = 1.0) -> None:
        self._start = datetime.now(UTC)
        self._origin = time.monotonic()
        self.speed = speed

    def now(self) -> datetime:
        return self._start + timedelta(seconds=(time.monotonic() - self._origin) * self.speed)

    def set_speed(self, speed: float) -> None:
        """Go on from the present instant at another speed."""
        self._start, self._origin = self.now(), time.monotonic()
        self.speed = speed

    def advance(self, span: timedelta) -> None:
        """Jump ahead. The world's time never goes back."""
        self._start += span

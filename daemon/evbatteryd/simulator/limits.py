"""What Smartcar lets an application ask: the application's bucket, each vehicle's limit, the plan."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime

from evbatteryd.simulator.clouds import Limit


class Bucket:
    """Requests of the whole application: ``capacity`` at most, refilled steadily."""

    def __init__(self, capacity: float, refill_per_minute: float, now: float) -> None:
        self.capacity = capacity
        self._refill_per_s = refill_per_minute / 60
        self._level = float(capacity)
        self._at = now

    def level(self, now: float) -> float:
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self._refill_per_s)
            self._at = now
        return self._level

    def take(self, now: float) -> bool:
        """Whether there was one left."""
        if self.level(now) < 1.0:
            return False
        self._level -= 1.0
        return True


class RollingLimits:
    """At most so many requests in any window, per vehicle. Remembers only who asked lately."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def take(self, vehicle: int, limit: Limit | None, now: float) -> float | None:
        """None if the request is let in; else seconds until the next one would be."""
        if limit is None:
            return None
        recent = self._recent.setdefault(vehicle, deque())
        while recent and recent[0] + limit.window_s <= now:
            recent.popleft()
        if len(recent) >= limit.calls:
            return recent[0] + limit.window_s - now
        recent.append(now)
        return None


class Plan:
    """Calls per vehicle in each period, which turns at midnight UTC or on the first of the month."""

    def __init__(self, calls: int | None, period: str) -> None:
        self._calls = calls
        self._format = {"month": "%Y-%m", "day": "%Y-%m-%d"}[period]
        self._period = ""
        self._spent: dict[int, int] = {}

    def take(self, vehicle: int, now: float) -> bool:
        """Whether the plan still covered it."""
        if self._calls is None:
            return True
        period = datetime.fromtimestamp(now, UTC).strftime(self._format)
        if period != self._period:
            self._period = period
            self._spent.clear()
        spent = self._spent.get(vehicle, 0)
        if spent >= self._calls:
            return False
        self._spent[vehicle] = spent + 1
        return True

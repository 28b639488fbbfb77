"""What calls may cost: the plan's period, the share of it that a car may have, the application's bucket."""

from __future__ import annotations

import calendar
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum


class Period(StrEnum):
    DAY = "day"
    MONTH = "month"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What an application's plan allows. Defaults: Smartcar's documented bucket and 500-call plan."""

    bucket: int = 120
    """Requests the application may send at once ..."""
    refill_per_minute: float = 2.0
    """... and how many come back each minute."""
    calls_per_vehicle: int = 500
    period: Period = Period.MONTH
    anchor_day: int = 1
    """Day of the month on which the plan's period begins (UTC); the last day in shorter months."""
    pooled: bool = False
    """The plan counts the fleet's calls together rather than each vehicle's."""


@dataclass(frozen=True, slots=True)
class Window:
    """One period of the plan: [start, end)."""

    start: datetime
    end: datetime


def window(budget: Budget, now: datetime) -> Window:
    """The period of the plan that ``now`` falls into, in UTC."""
    now = now.astimezone(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    if budget.period is Period.DAY:
        return Window(midnight, midnight + timedelta(days=1))
    start = _anchored(midnight.year, midnight.month, budget.anchor_day)
    if start > now:
        start = _anchored(*_month_before(start.year, start.month), budget.anchor_day)
    return Window(start, _anchored(*_month_after(start.year, start.month), budget.anchor_day))


def _anchored(year: int, month: int, day: int) -> datetime:
    return datetime(year, month, min(day, calendar.monthrange(year, month)[1]), tzinfo=UTC)


def _month_before(year: int, month: int) -> tuple[int, int]:
    return (year - 1, 12) if month == 1 else (year, month - 1)


def _month_after(year: int, month: int) -> tuple[int, int]:
    return (year + 1, 1) if month == 12 else (year, month + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one car may have of the plan and of the application's bucket at this moment."""

    calls_left: int
    """Calls of the car in this period (pooled: of the fleet, divided by its cars)."""
    calls: int
    """What it has in a whole period (pooled: each car's part of the pool)."""
    began_at: datetime
    """When the period began."""
    renews_at: datetime
    """When the period turns."""
    application_interval: timedelta
    """How far apart this car's calls are if all cars of the application share its bucket equally."""
    cars: int = 1
    """Cars of the application that are asked."""
    pool_spent: int | None = None
    """Calls that all cars have spent in this period of a pooled plan; None: the plan is each car's."""

    @property
    def reserve(self) -> int:
        """Calls of a period that are kept for hints and commands: no routine poll takes them."""
        few = 1 if self.calls >= FEWEST_SHARED else 0
        return min(max(self.calls // 100, few), MOST_RESERVED)

    def interval(self, calls_per_poll: int, now: datetime) -> timedelta:
        """The pace at which the calls left last until the period turns. At most until the period turns."""
        left = max(self.renews_at - now, timedelta())
        polls = self.calls_left // max(calls_per_poll, 1)
        plan = left if polls <= 0 else left / polls
        return max(plan, self.application_interval * max(calls_per_poll, 1))


MOST_RESERVED = 5
"""Calls of a car and period."""
FEWEST_SHARED = 10
"""Calls of a period of which one is kept; of fewer none can be spared."""

_ROUNDING = 1e-9
"""Of a token: what adding up fractions may lose."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket as a fact: so many tokens at that instant. Pure; who spends keeps the new one."""

    level: float
    at: datetime

    def now(self, budget: Budget, now: datetime) -> Bucket:
        """The bucket refilled up to ``now``; a clock that went backwards refills nothing."""
        minutes = max((now - self.at).total_seconds(), 0.0) / 60.0
        return Bucket(min(self.level + minutes * budget.refill_per_minute, float(budget.bucket)), now)

    def take(self, tokens: float = 1.0) -> Bucket:
        return Bucket(self.level - tokens, self.at)

    def wait(self, budget: Budget, tokens: float = 1.0) -> timedelta:
        """How long until ``tokens`` are there, rounded up: whoever waited that long need not wait again."""
        missing = tokens - self.level
        if missing <= _ROUNDING:
            return timedelta()
        return timedelta(microseconds=math.ceil(missing / budget.refill_per_minute * 60_000_000))

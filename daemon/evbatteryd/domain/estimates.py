"""What is told of a car's estimated state of charge, and when it has to be told anew.

An estimate moves all the time and nobody wants to hear that. So it is told again at each whole percentage
point by which it has risen above the measurement, and when nothing is claimed any more: what was told last
is never a whole point off. A car that is overdue is told again, too, and then every hour: nobody knows when
it will answer, and the longer it does not the less is sure. Between two tellings the band widens, so what is
told is one that holds until the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.policy.outlook import Estimate, Trend

Estimator = Callable[[Car, datetime], Estimate | None]
"""The estimate of a car at an instant; None when nothing is claimed."""

WORTH_SHOWING_PERCENT: Final = 0.5
"""An estimate that is less than this away from what was measured tells people nothing new."""
_NEARLY: Final = 1e-6
"""Percent. A point is reached although arithmetic, or an instant in whole microseconds, falls just short."""
ANSWER_AWAITED: Final = timedelta(minutes=10)
"""How long after it is due a car is taken to be about to answer."""
TOLD_WHILE_OVERDUE: Final = timedelta(hours=1)
"""How often the estimate of a car is told that has not answered then, or is not asked at all."""
_RECENT: Final = timedelta(hours=2)
"""How long after a measurement a car that waits for its charge is thought to begin one soon."""
_HOUR: Final = timedelta(hours=1)
_INSTANT: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of an estimate: as long as it is on the same one, it need not be told anew."""

    trend: Trend
    until: datetime
    """When it is told anew, should nothing be heard of the car."""


def step(car: Car, now: datetime) -> Step | None:
    """Where the car's estimate stands at ``now``; None: nothing is claimed."""
    until = next_change(car, now)
    return None if car.trend is None or until is None else Step(car.trend, until)


def next_change(car: Car, now: datetime) -> datetime | None:
    """When the car's estimate, told at ``now``, has to be told anew: risen by a point, overdue, or withdrawn.

    Always later than ``now``. None: not before something is heard of the car.
    """
    trend = car.trend
    estimated = None if trend is None else trend.at(now)
    if trend is None or estimated is None:
        return None
    return min(_next_point(trend, estimated), _next_overdue(car, trend, now), trend.until)


def _next_point(trend: Trend, estimated_percent: float) -> datetime:
    """When the estimate has risen by one more point; its end if it never has."""
    risen = _points(estimated_percent - trend.soc_percent)
    if trend.percent_per_hour > 0 and risen < _points(trend.target_percent - trend.soc_percent):
        seconds = (risen + 1) / trend.percent_per_hour * 3600.0
        if seconds < (trend.until - trend.since).total_seconds():
            return trend.since + timedelta(seconds=seconds)
    return trend.until


def _next_overdue(car: Car, trend: Trend, now: datetime) -> datetime:
    """When the car should have answered by, and every hour from then on."""
    awaited = trend.since if car.schedule.due is None else car.schedule.due + ANSWER_AWAITED
    passed = max((now - awaited) // TOLD_WHILE_OVERDUE + 1, 0)
    return awaited + passed * TOLD_WHILE_OVERDUE


def told_estimate(
    car: Car, now: datetime, estimator: Estimator, *, past_the_hour: timedelta = timedelta()
) -> Estimate | None:
    """The estimate to tell at ``now``: its band holds what is estimated at any moment until it is told anew.

    A band has no shape that its ends would tell all of: what people do goes by the hour of their day, which
    turns so long ``past_the_hour`` of UTC.
    """
    found, until = estimator(car, now), next_change(car, now)
    if found is None or until is None or car.trend is None:
        return found
    low, high = found.low_percent, found.high_percent
    # Trend and estimate end together, but for what is lost when habits are kept.
    for at in _turns(car.trend.since, past_the_hour, now, min(until, found.until)):
        then = estimator(car, at)
        if then is not None:
            low, high = min(low, then.low_percent), max(high, then.high_percent)
    return replace(found, low_percent=low, high_percent=high)


def _turns(since: datetime, past_the_hour: timedelta, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The ends of those spans between ``begin`` and ``end`` in which a band only widens, or only narrows.

    It may turn, or leap, with an hour of the day, and when the measurement is no longer a recent one.
    """
    leaps, at = [since + _RECENT], begin + _HOUR - (begin - _EPOCH - past_the_hour) % _HOUR
    while at < end:
        leaps.append(at)
        at += _HOUR
    for at in leaps:
        if begin < at < end:
            yield at - _INSTANT
            yield at
    yield end - _INSTANT


def is_worth_showing(car: Car, estimated_percent: float) -> bool:
    """Whether people see the estimate beside the measured value: while the car charges, or if they differ."""
    measured = car.state.soc_percent
    if measured is None:
        return False
    return bool(car.state.charging) or abs(estimated_percent - measured) >= WORTH_SHOWING_PERCENT


def _points(percent: float) -> int:
    return math.floor(percent + _NEARLY)

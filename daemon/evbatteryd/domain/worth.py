"""What a scarce call is worth to a car that is due: how much has gone unseen there by now. Pure.

What a car does unseen grows about linearly, and so does the time for which it would go on unseen. So the
worth of a look grows with the square of the time since the last one, and its square root is a straight line:
cars can be compared at any instant by two numbers each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta

from evbatteryd.domain.fleet import Schedule
from evbatteryd.domain.profile import BrandProfile

NEUTRAL_GAIN = 7_000.0
"""Of a poll that a rule decided, in percentage points times seconds: what one at the brand's own pace gains.

A car that charges with 11 kW into 60 kWh rises by 6 points in 20 minutes; a parked one that is driven 10
points a day is out by nearly one after two hours: 6 points x 1,200 s and 1 point x 7,200 s are much the same.
"""
FIRST_TRIES = 3
"""So many failures of a car that never answered do not end the wait of whoever has just enrolled it."""
_SHORTEST = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a due car brings to be compared with others that wait for the same call."""

    due: datetime
    since: datetime
    """From when on nothing was seen of it."""
    slope: float
    """By how much the square root of its worth rises in a second: sqrt(pp s) / s."""

    def worth(self, now: datetime) -> float:
        """Percentage points of error that a call ends now, times the seconds that they would stand."""
        return (self.slope * max((now - self.since).total_seconds(), 0.0)) ** 2


def claim(schedule: Schedule, profile: BrandProfile, now: datetime) -> Claim:
    """The claim of a car that is due by this schedule.

    With the gain that the policy expects, it is worth just that when it falls due. Where a rule decided, it
    is worth the same as any other poll that comes at its brand's pace, from the pace before it was due.
    """
    due = schedule.due or now
    pace = max(profile.interval(schedule.activity), _SHORTEST)
    if schedule.gain <= 0.0:
        return Claim(due, due - pace, math.sqrt(NEUTRAL_GAIN) / pace.total_seconds())
    looks = filter(None, (schedule.polled_at, schedule.answered_at, schedule.pushed_at))
    # A webhook may have come after the poll fell due: nothing is worth more than a look at the floor.
    span = max(due - max(looks, default=due - pace), profile.floor, _SHORTEST)
    return Claim(due, due - span, math.sqrt(schedule.gain) / span.total_seconds())


def awaited(schedule: Schedule) -> bool:
    """Whether somebody has just enrolled this car and waits to see it for the first time."""
    heard = schedule.answered_at is not None or schedule.pushed_at is not None
    return not heard and schedule.failures <= FIRST_TRIES

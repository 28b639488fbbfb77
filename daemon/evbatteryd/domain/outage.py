"""When a brand's cloud is down, every further call is a waste: one car tries for all the others. Pure.

Manufacturers take their clouds down for maintenance, mostly at night, and lose them without meaning to. All
cars of the brand fail then, each backs off by itself, and each of its tries costs a call.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from evbatteryd.domain.errors import Asleep, NothingYet, SourceError, Unreachable, Unreadable
from evbatteryd.domain.reading import Observation
from evbatteryd.domain.vehicle import VehicleId

ENOUGH_CARS = 3
"""So many different cars that fail in a row have no trouble of their own."""
LONGEST_PAUSE = timedelta(hours=1)
"""Between two tries."""
FIRST_LET_IN = 2
"""Requests that may be under way at once when a cloud has just come back."""


def cloud_answered(answer: Observation | SourceError) -> bool | None:
    """Whether this answer shows the brand's cloud to be up (True) or down (False); None: it shows neither.

    That a car sleeps only its cloud can know. Refusals of consent, plan or rate may be Smartcar's own, which
    has no need to ask the cloud for them; and what cannot be read may be our mistake.
    """
    match answer:
        case NothingYet() | Unreadable():
            return None
        case Observation() | Asleep():
            return True
        case Unreachable():
            return False
        case _:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """The line to one brand's cloud as one application finds it: open, closed, or opening again."""

    failed: frozenset[VehicleId] = frozenset()
    """Cars that failed since one was last answered."""
    since: datetime | None = None
    """When the first of them failed."""
    probe_at: datetime | None = None
    """Closed, and when the next car may try; None: open."""
    pause: timedelta = timedelta()
    """Before that try."""
    probe: VehicleId | None = None
    """The car that tries at this moment."""
    let_in: int | None = None
    """Opening again: requests that may be under way at once; None: no more than usual."""

    @property
    def closed(self) -> bool:
        return self.probe_at is not None

    @property
    def healthy(self) -> bool:
        """Nothing to remember."""
        return self == HEALTHY

    def admits(self, under_way: int, now: datetime) -> bool:
        """Whether one more car may be asked, of which ``under_way`` are being asked already."""
        if self.probe_at is not None:
            return self.probe is None and now >= self.probe_at
        return self.let_in is None or under_way < self.let_in

    def begun(self, car: VehicleId) -> Line:
        """The car is being asked."""
        return replace(self, probe=car) if self.closed else self

    def failing(self, car: VehicleId, cars: int, floor: timedelta, now: datetime) -> Line:
        """The cloud did not answer for this car, one of ``cars`` of the brand that are asked at all.

        Closed once enough of them failed in a row, or all if they are fewer. The pause doubles with each try
        in vain; cars that were asked before it was closed, and fail only now, change nothing.
        """
        if self.probe_at is not None:
            if car != self.probe:
                return self
            pause = min(self.pause * 2, LONGEST_PAUSE)
            return replace(self, probe=None, pause=pause, probe_at=now + pause)
        failed, since = self.failed | {car}, self.since or now
        if len(failed) < min(ENOUGH_CARS, cars):
            let_in = None if self.let_in is None else max(self.let_in // 2, 1)
            return replace(self, failed=failed, since=since, let_in=let_in)
        pause = min(max(floor, timedelta(minutes=1)), LONGEST_PAUSE)
        return Line(failed=failed, since=since, pause=pause, probe_at=now + pause)

    def answering(self, most: int) -> Line:
        """The cloud answered: open. Who waited is let in bit by bit: with each answer one more may be under
        way, up to ``most``, which is as usual."""
        let_in = FIRST_LET_IN if self.closed else None if self.let_in is None else self.let_in + 1
        return HEALTHY if let_in is None or let_in >= most else Line(let_in=let_in)

    def ended(self, car: VehicleId, now: datetime) -> Line:
        """The request of this car is over. If it was the try and showed nothing, another car has the next."""
        if car != self.probe:
            return self
        return replace(self, probe=None, probe_at=now + self.pause)


HEALTHY = Line()

"""Lives of cars, what their clouds tell of them, and somebody who asks as the policy says. Virtual time.

:class:`Life` is the truth, :class:`Cloud` what was uploaded of it, and :class:`Desk` does what the poller
does with an answer, without its network and store. Policy and rules about waiting are the daemon's own.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final

from evbatteryd.domain.cadence import NextPoll, resumed
from evbatteryd.domain.errors import BudgetSpent, SourceError
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Budget, Share, window
from evbatteryd.domain.plausibility import plausible
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.habits import Habits
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.domain.policy.polling import Hinted
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.pushing import after_push
from evbatteryd.domain.reading import Measurement, Observation, Origin, Signal
from evbatteryd.domain.settling import settle
from tests import builders

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86400.0
START: Final = datetime(2028, 1, 1, tzinfo=UTC)
"""A Saturday, in a year whose February has 29 days."""
SUMMER: Final = (
    datetime(2028, 3, 26, 1, tzinfo=UTC).timestamp(),
    datetime(2028, 10, 29, 1, tzinfo=UTC).timestamp(),
)
"""When the clocks of central Europe are put forward, and back."""

Offset = Callable[[float], float]


def greenwich(_: float) -> float:
    return 0.0


def berlin(at: float) -> float:
    """Seconds east of UTC, with daylight saving time."""
    return 2 * HOUR if SUMMER[0] <= at < SUMMER[1] else HOUR


# ------------------------------------------------------------------------------------------------- the truth
@dataclass(frozen=True, slots=True)
class Stretch:
    """From ``at`` on, until the next one: a straight line."""

    at: float
    soc: float
    per_second: float = 0.0
    charging: bool = False
    plugged: bool = False


class Life:
    """The truth of one car."""

    def __init__(self, stretches: list[Stretch]) -> None:
        self.stretches = stretches
        self._begins = [stretch.at for stretch in stretches]

    def at(self, at: float) -> tuple[float, Stretch]:
        """Percent, and the stretch that it is on."""
        stretch = self.stretches[max(bisect_right(self._begins, at) - 1, 0)]
        return stretch.soc + stretch.per_second * max(at - stretch.at, 0.0), stretch


def at_rest(soc: float, start: datetime = START, *, plugged: bool = False) -> Life:
    """A car that stands for good."""
    return Life([Stretch(start.timestamp(), soc, plugged=plugged)])


@dataclass
class People:
    """Who drives it: to work and back five days a week, out on most weekends, home with the cable in when it
    is low."""

    dice: random.Random
    offset: Offset = greenwich
    slope: float = 10.0
    """Percent an hour, of their wall box."""
    target: float = 80.0
    timer: float | None = None
    """Hour of the day at which a charge starts; None: as soon as the cable is in."""
    plugs_in_below: float = 62.0
    holidays: Collection[int] = ()
    """Days without a trip, counted from the first."""
    leaves: float = 7.4
    """Hour of the day."""

    _diary: list[Stretch] = field(default_factory=list)
    _soc: float = 70.0
    _charge: tuple[float, float] | None = None
    """When the charge that was prepared begins and ends."""

    def live(self, days: float, start: datetime = START, soc: float = 70.0) -> Life:
        begin = start.timestamp()
        self._diary, self._soc, self._charge = [Stretch(begin, soc)], soc, None
        midnight = begin + self.offset(begin)
        midnight -= midnight % DAY
        for day in range(int(days) + 1):
            if day not in self.holidays:
                self._day(midnight + day * DAY, begin)
        self._charge_until(begin + (days + 2) * DAY)
        return Life(self._diary)

    def _day(self, midnight: float, begin: float) -> None:
        dice = self.dice
        if (midnight // DAY + 3) % 7 < 5:
            hours = [dice.gauss(self.leaves, 0.3), dice.gauss(16.6, 0.6)]
            if dice.random() < 0.3:
                hours.append(dice.uniform(18.5, 20))
        else:
            hours = [dice.uniform(10, 12), dice.uniform(14, 17)] if dice.random() < 0.75 else []
        for number, hour in enumerate(hours, 1):
            local = midnight + hour * HOUR
            at = local - self.offset(local - HOUR)
            if at > begin:
                self._trip(at, last=number == len(hours))

    def _trip(self, at: float, *, last: bool) -> None:
        self._charge_until(at)
        drop, span = self.dice.uniform(4, 9), self.dice.uniform(20, 45) * MINUTE
        if self._soc - drop < 5:
            return
        self._diary.append(Stretch(at, self._soc, -drop / span))
        self._soc -= drop
        self._diary.append(Stretch(at + span, self._soc))
        if last and self._soc < self.plugs_in_below:
            home = at + span + 3 * MINUTE
            self._diary.append(Stretch(home, self._soc, plugged=True))
            begins = home + MINUTE
            if self.timer is not None:
                local = home + self.offset(home)
                begins += (self.timer * HOUR - local) % DAY
            self._charge = (begins, begins + (self.target - self._soc) / self.slope * HOUR)

    def _charge_until(self, at: float) -> None:
        if self._charge is None:
            return
        begins, ends = self._charge
        self._charge = None
        if at <= begins:
            return
        slope = self.slope / HOUR
        self._diary.append(Stretch(begins, self._soc, slope, charging=True, plugged=True))
        self._soc += slope * (min(at, ends) - begins)
        if at > ends:
            self._diary.append(Stretch(ends, self._soc, plugged=True))


# ------------------------------------------------------------------------------------------------- the cloud
@dataclass(frozen=True, slots=True)
class Upload:
    there: float
    """When it can be read."""
    measured: float
    soc: float
    charging: bool
    plugged: bool


class Cloud:
    """What a car uploads: whenever it begins or ends something, and as it charges.

    ``period``: seconds between uploads of a charge; with ``steps`` it uploads at multiples of so many percent
    instead. ``delay``: seconds until an upload can be read; ``ends_late``: seconds from the end of a charge
    until the car uploads that. ``deaf``: spans in which nothing gets through.
    """

    def __init__(
        self,
        life: Life,
        period: float = 600.0,
        *,
        steps: float = 0.0,
        delay: float = 40.0,
        ends_late: float = 0.0,
        deaf: Collection[tuple[float, float]] = (),
    ) -> None:
        self.life = life
        self.uploads: list[Upload] = []
        was_charging = False
        for stretch, following in pairwise([*life.stretches, Stretch(life.stretches[-1].at + 1, 0.0)]):
            times = [stretch.at + ends_late * was_charging]
            was_charging = stretch.charging
            if stretch.charging and steps:
                level = (int(stretch.soc / steps) + 1) * steps
                while (at := stretch.at + (level - stretch.soc) / stretch.per_second) < following.at:
                    times.append(at)
                    level += steps
            elif stretch.charging:
                times += [
                    stretch.at + n * period for n in range(1, int((following.at - stretch.at) / period) + 1)
                ]
            for at in times:
                if not any(begin <= at < end for begin, end in deaf):
                    soc = float(round(stretch.soc + stretch.per_second * (at - stretch.at)))
                    self.uploads.append(Upload(at + delay, at, soc, stretch.charging, stretch.plugged))
        self._there = [upload.there for upload in self.uploads]

    def newest(self, at: float) -> Upload:
        return self.uploads[max(bisect_right(self._there, at) - 1, 0)]

    def observed(self, now: datetime, origin: Origin = Origin.POLL) -> Observation:
        upload = self.newest(now.timestamp())
        measured_at = datetime.fromtimestamp(upload.measured, UTC)
        told = {Signal.SOC: upload.soc, Signal.CHARGING: upload.charging, Signal.PLUGGED_IN: upload.plugged}
        found = (Measurement(signal, value, measured_at, now, origin) for signal, value in told.items())
        return Observation(fetched_at=now, origin=origin, measurements=tuple(found))


# --------------------------------------------------------------------------------------------------- asking
@dataclass(frozen=True, slots=True)
class Asked:
    """One poll."""

    at: datetime
    why: str
    """The reason for which it came."""
    gain: float
    label: str
    then: NextPoll
    """What was decided after it."""


Mishap = Callable[[int, datetime], SourceError | None]


class Desk:
    """One application and its cars, asked one at a time; ``mishap`` says which polls fail, and how."""

    def __init__(
        self,
        profile: BrandProfile,
        budget: Budget,
        *,
        now: datetime = START,
        offset: Offset = greenwich,
        mishap: Mishap = lambda number, now: None,
        latency: timedelta = timedelta(seconds=8),
    ) -> None:
        self.profile, self.budget, self.now = profile, budget, now
        self.lore, self._offset, self._mishap, self._latency = Lore(offset), offset, mishap, latency
        self.cars: dict[int, Car] = {}
        self.clouds: dict[int, Cloud] = {}
        self.asked: dict[int, list[Asked]] = {}
        self.spent: dict[tuple[datetime, int], int] = {}
        self.turned_away: list[datetime] = []
        """When a car was due without the calls for it."""
        self._bells: list[tuple[datetime, int]] = []

    def enrol(self, cloud: Cloud, *, calls_per_poll: int = 1) -> int:
        number = len(self.cars) + 1
        car = builders.car(number, brand=self.profile.brand, due=self.now + timedelta(seconds=number % 60))
        schedule = replace(
            car.schedule, calls_per_poll=calls_per_poll, reason="newly enrolled: first reading"
        )
        self.clouds[number], self.asked[number] = cloud, []
        self._put(number, replace(car, schedule=schedule))
        return number

    def run(self, span: timedelta) -> None:
        """Ask for so long."""
        until = self.now + span
        while self._bells and self._bells[0][0] < until:
            due, number = heapq.heappop(self._bells)
            if self.cars[number].schedule.due == due:
                assert due >= self.now or len(self.cars) > 1, "a poll in the past"
                self.now = max(self.now, due)
                self._poll(number)
        self.now = max(self.now, until)

    def restart(self, away: timedelta = timedelta()) -> None:
        """What is kept is all that is left, after nobody asked for so long."""
        self.now += away
        kept = self.lore.document()
        self.lore = Lore(self._offset)
        assert self.lore.take(kept)
        for number, car in self.cars.items():
            schedule = car.schedule
            if schedule.due is not None:
                again = resumed(schedule.due, schedule.reason, self.profile, car.vehicle.spread, self.now)
                schedule = replace(schedule, due=again.at, reason=again.reason)
            trend = polling.trend(car, self.profile, self.lore)
            self._put(number, replace(car, schedule=schedule, trend=trend))

    def hint(self, hint: Hint, number: int = 1) -> Hinted:
        """What a wall box tells, now."""
        car = self.cars[number]
        hinted = polling.after_hint(car, self.profile, self.share(number), self.lore, hint, self.now)
        car = replace(car, learned=hinted.learned, trend=hinted.trend)
        if hinted.at is not None:
            assert car.schedule.due is None or hinted.at < car.schedule.due, "a hint that postpones"
            schedule = replace(car.schedule, due=hinted.at, reason=hinted.reason, gain=hinted.gain)
            car = replace(car, schedule=schedule)
        self._put(number, car)
        return hinted

    def push(self, number: int = 1) -> None:
        """A webhook brings what is newest."""
        car = self.cars[number]
        told = plausible(self.clouds[number].observed(self.now, Origin.WEBHOOK), car.state, self.now)
        pushed, _ = after_push(car, self.profile, self.share(number), told.measurements, self.now)
        learned, trend = polling.after_push(car, pushed.state, self.profile, self.lore, self.now)
        self._put(number, replace(pushed, learned=learned, trend=trend))

    def share(self, number: int = 1) -> Share:
        """As the purse says it."""
        period, cars, calls = window(self.budget, self.now), len(self.cars), self.budget.calls_per_vehicle
        left, total = calls - self.spent.get((period.start, number), 0), None
        if self.budget.pooled:
            total = self.spent_by_all
            left = -(-(calls * cars - total) // cars)
        return Share(
            calls_left=max(left, 0),
            calls=calls,
            began_at=period.start,
            renews_at=period.end,
            application_interval=timedelta(minutes=cars / self.budget.refill_per_minute),
            cars=cars,
            pool_spent=total,
        )

    @property
    def spent_by_all(self) -> int:
        """Calls of this period."""
        start = window(self.budget, self.now).start
        return sum(self.spent.get((start, number), 0) for number in self.cars)

    def habits(self, number: int = 1) -> Habits:
        return Habits.unpack(self.cars[number].learned)

    def periods(self, number: int = 1) -> list[int]:
        """Calls of each period in which there were any."""
        return [calls for (_, one), calls in sorted(self.spent.items()) if one == number]

    def _put(self, number: int, car: Car) -> None:
        self.cars[number] = car
        if car.schedule.due is not None:
            heapq.heappush(self._bells, (car.schedule.due, number))

    def _poll(self, number: int) -> None:
        car, began = self.cars[number], self.now
        calls = car.schedule.calls_per_poll
        error: SourceError | None
        if self.share(number).calls_left < calls:
            self.turned_away.append(began)
            error, calls = BudgetSpent("OURS", "used up"), 0
        else:
            key = window(self.budget, began).start, number
            self.spent[key] = self.spent.get(key, 0) + calls
            error = self._mishap(number, began)
        self.now += self._latency
        told = error or self.clouds[number].observed(self.now)
        share = self.share(number)
        car = settle(car, told, self.profile, share, self.lore, calls=calls, began=began, now=self.now).car
        then = NextPoll(car.schedule.due, car.schedule.reason)
        why = self.cars[number].schedule
        self.asked[number].append(Asked(began, why.reason, why.gain, car.schedule.outcome, then))
        self._put(number, car)


def desk_of(
    cloud: Cloud, budget: Budget | None = None, profile: BrandProfile | None = None, **options: object
) -> Desk:
    """One car, asked as often as a plan of 500 calls a month allows."""
    desk = Desk(profile or builders.profile(), budget or Budget(), **options)  # type: ignore[arg-type]
    desk.enrol(cloud)
    return desk

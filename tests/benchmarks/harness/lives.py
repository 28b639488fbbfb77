"""Made-up lives of cars, so that the benchmark needs no data; seeded, the same ones every time.

Not measured and not fitted to anything: a handful of people as everyone knows them, with figures of ordinary
cars. Who tunes a policy on recorded lives has here a second set that it was not tuned on: other people, cars
that lose charge while they stand, chargers that pause, solar noon as well as cheap night, charges that slow
down towards the end, fast charging on the road, holidays with the car and without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tests.benchmarks.harness.traces import CHARGING, DRIVING, PARKED, PLUGGED, Trace

HOUR = 60
DAY = 24 * HOUR
RESERVE = 0.1
"""Nobody drives on below it: there a fast charger is found, or a hybrid's engine takes over."""
ROAD_TARGET = 0.75
"""To where people charge on the road."""


@dataclass(frozen=True)
class Trip:
    """One drive; in minutes from the beginning of the life."""

    start: float
    km: float
    km_per_hour: float = 45.0
    ends_at_home: bool = True
    charger_kw: float = 0.0
    """What it is plugged into where it ends, if that is not at home."""


@dataclass(frozen=True)
class Car:
    """The car, and how its owner charges it."""

    battery_kwh: float
    kwh_per_km: float
    home_kw: float
    """Of the charger at home; 0: there is none."""
    target: float
    plugs_below: float
    """It is plugged in at home when its charge is below that."""
    timer_hour: float | None = None
    """When charging at home begins; None: at once."""
    pauses: bool = False
    """Its charger lets others go first now and then."""
    lost_per_day: float = 0.0
    """Share of the battery that it loses while it stands."""
    hybrid: bool = False


Diary = Callable[[np.random.Generator, int], Iterator[Trip]]


def generate(vehicles: int = 40, days: float = 28.0, seed: int = 0) -> list[Trace]:
    """So many lives: the first ones stay the same when there are more of them, or longer ones."""
    whole_days = int(np.ceil(days))
    lives = (_life(number, whole_days, seed) for number in range(vehicles))
    minutes = int(days * DAY)
    return [Trace(life.id, life.soc[:minutes], life.state[:minutes]) for life in lives]


def _life(number: int, days: int, seed: int) -> Trace:
    diary, owner = PEOPLE[number % len(PEOPLE)]
    cars, trips = (np.random.default_rng((seed, number, stream)) for stream in (1, 2))
    car = owner(cars)
    record = _Record(car, days, np.random.default_rng((seed, number, 3)))
    for trip, following in pairwise([*_in_order(diary(trips, days)), None]):
        record.drive(trip)
        record.stand(trip, (days + 1) * DAY if following is None else int(following.start))
    return Trace(f"m{number:02d}", np.round(record.soc, 4), record.state)


def _in_order(trips: Iterator[Trip]) -> list[Trip]:
    """The trips by their start. A life begins at home: with a drive of no length."""
    return [Trip(0.0, 0.0), *sorted(trips, key=lambda trip: trip.start)]


class _Record:
    """Writes down a life minute by minute."""

    def __init__(self, car: Car, days: int, rng: np.random.Generator) -> None:
        self._car = car
        self._rng = rng
        self.soc = np.empty(days * DAY)
        self.state = np.full(days * DAY, PARKED, dtype=np.int8)
        self._now = 0
        self._level = float(rng.uniform(0.4, 0.9)) * car.target

    def drive(self, trip: Trip) -> None:
        """Not before the drive before has ended; with stops for charging, if it takes any."""
        car = self._car
        minutes = round(60 * trip.km / trip.km_per_hour)
        per_minute = trip.km * car.kwh_per_km / car.battery_kwh / max(minutes, 1)
        effort = self._rng.uniform(0.6, 1.4, minutes)  # hills, lights and the motorway
        for share in per_minute * effort / max(effort.mean(), 1e-9) if minutes else ():
            if self._level - share < RESERVE and not car.hybrid:
                self._charge_on_the_road()
            self._level = max(self._level - share, min(self._level, RESERVE))
            self._write(DRIVING)

    def stand(self, trip: Trip, until: int) -> None:
        """From where the trip ended to the beginning of the next one."""
        car = self._car
        charger_kw = car.home_kw if trip.ends_at_home else trip.charger_kw
        settled = int(self._rng.integers(1, 4))
        wanted = self._level < (car.plugs_below if trip.ends_at_home else 0.8)
        if not charger_kw or not wanted or until - self._now < 20:
            self._rest(PARKED, until)
            return
        self._rest(PARKED, self._now + settled)
        unplugged = until - int(self._rng.integers(1, 4))
        begins = self._now + int(self._rng.integers(1, 3))
        if trip.ends_at_home and car.timer_hour is not None:
            begins = max(begins, self._next(car.timer_hour))
        self._rest(PLUGGED, min(begins, unplugged))
        self._charge(charger_kw, unplugged)
        self._rest(PLUGGED, unplugged)
        self._rest(PARKED, until)

    def _charge(self, charger_kw: float, until: int) -> None:
        """To the target, slower over the last percents; perhaps with a pause."""
        car = self._car
        full_power = charger_kw * 0.9 / car.battery_kwh / HOUR
        pause_at = self._level + self._rng.uniform(0.1, 0.9) * (car.target - self._level)
        paused = not (car.pauses and self._rng.random() < 0.5)
        while self._level < car.target and self._now < min(until, len(self.soc)):
            if not paused and self._level > pause_at:
                paused = True
                self._rest(PLUGGED, min(self._now + int(self._rng.integers(20, 150)), until))
                continue
            power = full_power * (1.0 if self._level < 0.96 else 0.45)
            self._level = min(self._level + power, car.target)
            self._write(CHARGING)

    def _charge_on_the_road(self) -> None:
        """At a fast charger: about twice the battery's capacity an hour, less and less from half full on."""
        while self._level < ROAD_TARGET and self._now < len(self.soc):
            rate = 2.0 if self._level < 0.5 else 2.0 - 4.0 * (self._level - 0.5)
            self._level += rate / HOUR
            self._write(CHARGING)

    def _rest(self, state: int, until: int) -> None:
        until = min(until, len(self.soc))
        minutes = until - self._now
        if minutes <= 0:
            return
        lost = 0.0 if state == PLUGGED else self._car.lost_per_day / DAY
        levels = np.maximum(self._level - lost * np.arange(minutes), min(self._level, 0.02))
        self.soc[self._now : until] = levels
        self.state[self._now : until] = state
        self._level = float(levels[-1])
        self._now = until

    def _write(self, state: int) -> None:
        if self._now < len(self.soc):
            self.soc[self._now] = self._level
            self.state[self._now] = state
            self._now += 1

    def _next(self, hour: float) -> int:
        today = self._now // DAY * DAY + int(hour * HOUR)
        return today if today >= self._now else today + DAY


# -------------------------------------------------------------------- diaries
def _around(rng: np.random.Generator, day: int, hour: float, spread_minutes: float) -> float:
    """A minute around that hour of that day."""
    return max(day * DAY + hour * HOUR + spread_minutes * float(rng.standard_normal()), day * DAY + 1.0)


def _errand(rng: np.random.Generator, start: float, km: float, stay_hours: float) -> Iterator[Trip]:
    """There and back."""
    way = 60 * km / 35.0
    yield Trip(start, km, 35.0, ends_at_home=False)
    yield Trip(start + way + stay_hours * HOUR * float(rng.uniform(0.6, 1.5)), km, 35.0)


def _commuter(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """To work and back, shopping, something at the weekend; one in three goes away for a week or two."""
    km, leaves, hours = rng.uniform(6, 55), rng.uniform(6.2, 8.8), rng.uniform(7.5, 9.5)
    at_home_on = {int(day) for day in rng.choice(5, int(rng.integers(0, 3)), replace=False)}
    work_kw = 11.0 if rng.random() < 0.2 else 0.0
    away_from = int(rng.integers(3, 68))
    away_until = away_from + int(rng.integers(5, 15))
    by_car = rng.random() < 0.6
    for day in range(days):
        if away_from <= day < away_until:
            yield from _holiday(rng, day, away_from, away_until, by_car=by_car)
        elif day % 7 < 5 and day % 7 not in at_home_on:
            out = _around(rng, day, leaves, 12)
            yield Trip(out, km, 52.0, ends_at_home=False, charger_kw=work_kw)
            back = out + 60 * km / 52 + _around(rng, 0, hours, 30)
            yield Trip(back, km, 48.0)
            if rng.random() < 0.25:
                yield from _errand(
                    rng, max(back + 2 * km + 40, _around(rng, day, 19.3, 30)), rng.uniform(2, 9), 1
                )
        elif rng.random() < 0.75:
            yield from _errand(rng, _around(rng, day, 10.5, 80), rng.uniform(4, 60), 2.5)


def _holiday(rng: np.random.Generator, day: int, first: int, until: int, *, by_car: bool) -> Iterator[Trip]:
    """The car stands at home, or goes along: a long way out, short ways there, a long way back."""
    if not by_car:
        return
    if day == first:
        yield Trip(
            _around(rng, day, 7.5, 60), rng.uniform(250, 700), 95.0, ends_at_home=False, charger_kw=3.7
        )
    elif day == until - 1:
        yield Trip(_around(rng, day, 9.5, 60), rng.uniform(250, 700), 95.0)
    elif rng.random() < 0.6:
        yield Trip(_around(rng, day, 11, 60), rng.uniform(5, 40), ends_at_home=False)
        yield Trip(_around(rng, day, 17, 60), rng.uniform(5, 40), ends_at_home=False, charger_kw=3.7)


def _shift_worker(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """Early, late and night shifts, a week of each, five days on and two off, whatever day it is."""
    km, offset = rng.uniform(5, 30), int(rng.integers(0, 21))
    begins = (5.3, 13.3, 21.3)
    for day in range(days):
        if (day + offset) % 7 < 5:
            out = _around(rng, day, begins[(day + offset) // 7 % 3], 8)
            yield Trip(out, km, 48.0, ends_at_home=False)
            yield Trip(out + 60 * km / 48 + _around(rng, 0, 8.4, 12), km, 48.0)
        elif rng.random() < 0.6:
            yield from _errand(rng, _around(rng, day, 14, 120), rng.uniform(3, 30), 2)


def _pensioner(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """A short errand on most mornings, a longer outing now and then."""
    for day in range(days):
        if rng.random() < 0.6:
            yield from _errand(rng, _around(rng, day, 9.8, 50), rng.uniform(1, 9), 0.8)
        if rng.random() < 0.12:
            yield from _errand(rng, _around(rng, day, 14, 40), rng.uniform(20, 80), 2.5)


def _taxi(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """Fares all day or all night, six days a week."""
    begins, rests_on = (5.5, 16.0)[int(rng.integers(0, 2))], int(rng.integers(0, 7))
    for day in range(days):
        if day % 7 == rests_on:
            continue
        at, ends = _around(rng, day, begins, 20), day * DAY + (begins + 10.5) * HOUR
        while at < ends:
            km = float(np.clip(rng.lognormal(2.0, 0.6), 2, 60))
            yield Trip(at, km, 30.0, ends_at_home=False)
            at += 60 * km / 30 + float(rng.exponential(22)) + 4
        yield Trip(at, rng.uniform(3, 12), 32.0)


def _weekend(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """Stands all week, and is used at most weekends."""
    for day in range(days):
        if day % 7 == 5 and rng.random() < 0.75:
            km = rng.uniform(15, 160)
            yield Trip(_around(rng, day, 9.5, 70), km, 70.0, ends_at_home=False)
            yield Trip(_around(rng, day + int(rng.integers(0, 2)), 17.5, 70), km, 65.0)
        elif day % 7 == 2 and rng.random() < 0.2:
            yield from _errand(rng, _around(rng, day, 18, 60), rng.uniform(3, 12), 1)


def _family(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """Many short ways, mostly on the same hours of the week."""
    school, club = rng.uniform(2, 7), rng.uniform(3, 15)
    for day in range(days):
        if day % 7 < 5:
            yield from _errand(rng, _around(rng, day, 7.6, 6), school, 0.1)
            if rng.random() < 0.5:
                yield from _errand(rng, _around(rng, day, 10, 60), rng.uniform(2, 12), 1)
            if day % 7 in {0, 1, 3}:
                yield from _errand(rng, _around(rng, day, 16.2, 10), club, 1.3)
        elif rng.random() < 0.8:
            yield from _errand(rng, _around(rng, day, 11, 90), rng.uniform(5, 45), 3)


def _laid_up(rng: np.random.Generator, days: int) -> Iterator[Trip]:
    """In use for some days, then parked for weeks."""
    used = int(rng.integers(3, 9))
    yield from _pensioner(rng, min(used, days))


# --------------------------------------------------------------------- owners
def _pick(rng: np.random.Generator, *of: float) -> float:
    return float(of[int(rng.integers(0, len(of)))])


def _with_wallbox(rng: np.random.Generator) -> Car:
    """An electric car that charges at home: at once, by a cheap night or from the roof."""
    timer = (None, None, _pick(rng, 22.0, 23.0, 0.5, 2.0), _pick(rng, 10.5, 12.0))[int(rng.integers(0, 4))]
    return Car(
        battery_kwh=_pick(rng, 40, 52, 58, 64, 77, 82),
        kwh_per_km=float(rng.uniform(0.14, 0.23)),
        home_kw=_pick(rng, 2.3, 3.7, 7.4, 11),
        target=_pick(rng, 0.7, 0.8, 0.8, 0.85, 0.9, 1.0),
        plugs_below=_pick(rng, 0.35, 0.5, 0.65, 1.0, 1.0),
        timer_hour=timer,
        pauses=rng.random() < 0.3,
        lost_per_day=_pick(rng, 0, 0, 0, 0.003, 0.01),
    )


def _on_the_street(rng: np.random.Generator) -> Car:
    """An electric car without a charger of its own: it charges when it must."""
    return Car(
        battery_kwh=_pick(rng, 50, 60, 77),
        kwh_per_km=float(rng.uniform(0.15, 0.22)),
        home_kw=0.0,
        target=0.8,
        plugs_below=0.0,
        lost_per_day=_pick(rng, 0, 0.005),
    )


def _of_a_firm(rng: np.random.Generator) -> Car:
    """A taxi, with a fast plug at the yard."""
    return Car(
        battery_kwh=_pick(rng, 64, 82, 90),
        kwh_per_km=float(rng.uniform(0.17, 0.24)),
        home_kw=_pick(rng, 11, 22),
        target=_pick(rng, 0.9, 1.0),
        plugs_below=1.0,
    )


def _hybrid(rng: np.random.Generator) -> Car:
    """A plug-in hybrid: a small battery, plugged in nearly always."""
    return Car(
        battery_kwh=_pick(rng, 9, 12, 14, 18),
        kwh_per_km=float(rng.uniform(0.18, 0.26)),
        home_kw=_pick(rng, 2.3, 3.7),
        target=1.0,
        plugs_below=0.95,
        timer_hour=_pick(rng, 23.0, 1.0) if rng.random() < 0.25 else None,
        hybrid=True,
    )


PEOPLE: tuple[tuple[Diary, Callable[[np.random.Generator], Car]], ...] = (
    (_commuter, _with_wallbox),
    (_family, _with_wallbox),
    (_pensioner, _with_wallbox),
    (_commuter, _hybrid),
    (_shift_worker, _with_wallbox),
    (_taxi, _of_a_firm),
    (_commuter, _with_wallbox),
    (_weekend, _with_wallbox),
    (_commuter, _on_the_street),
    (_family, _hybrid),
    (_pensioner, _with_wallbox),
    (_shift_worker, _hybrid),
    (_laid_up, _with_wallbox),
)
"""Their number shares no factor with that of the brands, which are dealt round robin too."""

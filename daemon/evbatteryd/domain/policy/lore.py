"""What an application's cars have in common: hours, their brands' clouds, the price of a shared pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from math import exp, isfinite, log, sqrt
from typing import Any, Final

from evbatteryd.domain.policy import hours
from evbatteryd.domain.policy.habits import ARRIVAL, DEPARTURE, HAZARDS, TRIP, Habits
from evbatteryd.domain.policy.hours import DAY, HOUR
from evbatteryd.domain.policy.pacing import COURTESY, DEAREST, Pace

VERSION: Final = 1
PRIOR_HOURS: Final = 150.0
"""For so many hours of watching, per hour of the day, the broad shapes of :mod:`hours` count."""
PRIOR_EVENTS: Final = 8.0
"""For so many events the average car's rate counts in a car's own."""
PRIOR_DEPARTURE_HOURS: Final = 10.0
"""For so many hours per hour of the day the average counts in a car's own hours of departure."""
MEMORY_HOURS: Final = 20_000.0
"""Watching that counts at most, per hour of the day: habits of a fleet change over the years."""
MEMORY_EVENTS: Final = 200.0
"""Events that a car's own rate rests on at most: people change their lives."""
FEW_CARS: Final = 5
"""An application with fewer cars tells by its hours of single people."""
PERIODS: Final = (3600.0, 1800.0, 900.0, 600.0, 300.0)
"""Seconds between uploads while charging that brands are known to use: https://smartcar.com/docs/help/frequencies
names 1 to 60 minutes."""
SHORTEST_GAP: Final = 45.0
LONGEST_GAP: Final = 4.2 * HOUR
GAPS_KEPT: Final = 40
END_STEP: Final = 45.0
"""Seconds by which the delay of ends is learnt at a time."""
LATEST_END: Final = 900.0
"""Seconds: no brand is waited for longer."""
BUSY: Final = 2 * HOUR
"""Over how long the use of the application's bucket is averaged."""
FULL_BUCKET: Final = 0.9
"""Share of the bucket's refill that is planned with: the rest is for hints, lists and second pages."""

_SHAPES: Final = {TRIP: hours.TRIPS, DEPARTURE: hours.DEPARTURES, ARRIVAL: hours.ARRIVALS}


@dataclass(slots=True)
class BrandLore:
    """How one brand's cloud behaves, at this application."""

    period: float = 600.0
    """Seconds between uploads while charging, if ``regular``."""
    regular: bool = False
    margin: float = 90.0
    """Seconds after an upload is due until a poll finds it."""
    gaps: list[float] = field(default_factory=list)
    oldest: float = 300.0
    """Seconds: the oldest that the newest upload of a charging car was of late."""
    goes_on: float = 1.0
    fresh_drops: float = 2.0
    """A drop that was fresh was followed by another in ``goes_on`` of so many: it was still driving."""
    hidden: float = 0.5
    waits: float = 2.0
    """Charges that had begun before a look that did not say so: ``hidden`` of so many."""
    ends_late: float = 0.0
    """Seconds after the end of its line until the upload of a charge's end: three of four come sooner."""
    lag_plugged: float = 240.0
    """Seconds from a hint until its upload is there to be read."""
    lag_charging: float = 90.0
    lag_stopped: float = 90.0

    def saw_gap(self, gap: float) -> None:
        """So many seconds lay between two uploads of one charge: learn how often it uploads."""
        if not SHORTEST_GAP < gap < LONGEST_GAP:
            return
        self.gaps.append(gap)
        if len(self.gaps) > GAPS_KEPT:
            self.gaps.pop(0)
        if len(self.gaps) < 6:
            return
        for period in PERIODS:
            if period > 1.8 * self.oldest:  # the newest upload was never that old
                continue
            off = sum(abs(gap / period - max(1, round(gap / period))) > 0.22 for gap in self.gaps)
            if off <= 0.25 * len(self.gaps):
                self.period, self.regular = period, True
                return
        self.regular = False

    def saw_end(self, late: float) -> None:
        """The end of a charge was measured so many seconds later than its line had said."""
        by = END_STEP if late > self.ends_late else -END_STEP / 3
        self.ends_late = max(0.0, min(self.ends_late + by, LATEST_END))


def _hazards() -> list[list[float]]:
    return [[0.0] * 24 for _ in range(HAZARDS)]


class Lore:
    """What is learnt across the cars of one application.

    ``offset``: seconds that local time is east of UTC at an instant, where the cars' people live.
    """

    def __init__(self, offset: Callable[[float], float]) -> None:
        self._offset = offset
        self.events = _hazards()
        self.watched = _hazards()
        """Hours in which each hazard could have struck, by hour of the day."""
        self.calls = [200.0 * sqrt(rate) for rate in hours.TRIPS]
        """Calls by hour of the day."""
        self.brands: dict[str, BrandLore] = {}
        self.pool = Pace(0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        self.pool_cars = 0
        """Cars among which the pool was divided when its price was last thought over."""
        self.use = 0.0
        """Calls per second of late, all cars together."""
        self.use_at = 0.0
        self.bucket_log = log(COURTESY)
        self.usual_log = log(COURTESY)
        """Of the prices at which calls were made of late."""
        self.drawn: list[float] = []
        """Those of which the curve was drawn that days are measured by."""
        self.since_drawn = 0
        self._curve = [0.0] * 25
        self._draw()

    @property
    def price(self) -> float:
        """What a call costs because the pool or the application's bucket is short, pp*s."""
        pool = exp(self.pool.price_log) if self.pool.at else COURTESY
        return max(pool, self.bucket_price)

    @property
    def bucket_price(self) -> float:
        return exp(self.bucket_log)

    def brand(self, key: str) -> BrandLore:
        found = self.brands.get(key)
        if found is None:
            found = self.brands[key] = BrandLore()
        return found

    def local(self, at: float) -> float:
        """Seconds of local time."""
        return at + self._offset(at)

    # ------------------------------------------------------------------ pace
    def days(self, at: float) -> float:
        """Time measured in days, each of its hours as long as its share of a day's calls."""
        at = self.local(at)
        whole, rest = divmod(at, DAY)
        hour, rest = divmod(rest, HOUR)
        begin, end = self._curve[int(hour)], self._curve[int(hour) + 1]
        return whole + begin + (end - begin) * rest / HOUR

    def called(self, at: float, calls: int, refill: float, price: float) -> None:
        """Calls were made. ``refill``: calls per second that the application's bucket allows."""
        self.calls[hours.at(self.local(at))] += calls
        self.since_drawn += 1
        if self.since_drawn >= 200:
            self._draw()
        span = max(at - self.use_at, 0.0) if self.use_at else 0.0
        self.use_at = at
        self.use = self.use * exp(-span / BUSY) + calls / BUSY
        over = self.use / (FULL_BUCKET * refill) - 1.0
        self.usual_log += 0.05 * (log(price) - self.usual_log)
        # Where the bucket is half in use its price waits near the usual one, to be there when it is needed.
        least = max(log(COURTESY), self.usual_log - 1.0) if over > -0.5 else log(COURTESY)
        if over < -0.5:
            self.bucket_log = least
        step = max(-1.0, min(over, 1.0)) * min(span / BUSY, 1.0)
        self.bucket_log = max(least, min(self.bucket_log + step, log(DEAREST)))

    def _draw(self) -> None:
        self.drawn, self.since_drawn = list(self.calls), 0
        sums = list(accumulate(self.drawn, initial=0.0))
        self._curve = [begun / sums[-1] for begun in sums]

    # --------------------------------------------------------------- hazards
    def average(self, hazard: int) -> list[float]:
        """Events per hour of an average car, by hour of the day."""
        return [
            (events + PRIOR_HOURS * prior) / (watched + PRIOR_HOURS)
            for events, watched, prior in zip(
                self.events[hazard], self.watched[hazard], _SHAPES[hazard], strict=True
            )
        ]

    def scale(self, habits: Habits, hazard: int) -> float:
        """How many times as often as to an average car it happens to this one."""
        return (habits.events[hazard] + PRIOR_EVENTS) / (habits.expected[hazard] + PRIOR_EVENTS)

    def rates(self, habits: Habits, hazard: int) -> list[float]:
        """Events per second of this car by hour of the day."""
        scale = self.scale(habits, hazard) / HOUR
        average = self.average(hazard)
        if hazard != DEPARTURE:
            return [scale * rate for rate in average]
        count = PRIOR_DEPARTURE_HOURS
        return [
            (left / HOUR + count * scale * rate) / (plugged + count)
            for left, plugged, rate in zip(habits.departures, habits.plugged_hours, average, strict=True)
        ]

    def expect(self, hazard: int, begin: float, end: float) -> float:
        """How many events an average car has from ``begin`` to ``end``."""
        average, at, expected = self.average(hazard), self.local(begin), 0.0
        end += at - begin
        if end - at > 14 * DAY:
            return (end - at) / DAY * sum(average)
        while at < end - 1e-6:
            until = min(end, (at // HOUR + 1) * HOUR)
            expected += average[int(at // HOUR) % 24] * (until - at) / HOUR
            at = until
        return expected

    def watch(self, habits: Habits, hazard: int, begin: float, end: float) -> None:
        """Nothing of that kind happened from ``begin`` to ``end``, though it could have."""
        average, at = self.average(hazard), self.local(begin)
        end += at - begin
        own = habits.plugged_hours if hazard == DEPARTURE else None
        while at < end - 1e-6:
            whole = int(at // HOUR)
            until = min(end, (whole + 1) * HOUR)
            hour, span = whole % 24, (until - at) / HOUR
            self.watched[hazard][hour] += span
            habits.expected[hazard] += span * average[hour]
            if own is not None:
                own[hour] += span
            at = until
        hour = hours.at(at)
        if self.watched[hazard][hour] > MEMORY_HOURS:
            self.watched[hazard][hour] *= 0.9
            self.events[hazard][hour] *= 0.9
        if habits.expected[hazard] > MEMORY_EVENTS:
            habits.expected[hazard] *= 0.8
            habits.events[hazard] *= 0.8
            if own is not None:
                habits.plugged_hours = [0.8 * span for span in own]
                habits.departures = [0.8 * left for left in habits.departures]

    def forget(self, habits: Habits, cars_left: int) -> None:
        """A car's history is erased: what it added to the common hours goes with it."""
        for hour in range(24):
            for kept, own in (
                (self.events[DEPARTURE], habits.departures[hour]),
                (self.watched[DEPARTURE], habits.plugged_hours[hour]),
            ):
                kept[hour] = max(0.0, kept[hour] - own)
        if cars_left < FEW_CARS:
            self.events, self.watched = _hazards(), _hazards()
            self.calls = [200.0 * sqrt(rate) for rate in hours.TRIPS]
            self._draw()

    def struck(self, habits: Habits, hazard: int, at: float) -> None:
        """It happened."""
        hour = hours.at(self.local(at))
        self.events[hazard][hour] += 1.0
        habits.events[hazard] += 1.0
        if hazard == DEPARTURE:
            habits.departures[hour] += 1.0

    # ------------------------------------------------------------------ kept
    def document(self) -> dict[str, Any]:
        """Everything that was learnt, as plain values with their version: for JSON."""
        return {
            "version": VERSION,
            "events": self.events,
            "watched": self.watched,
            "calls": self.calls,
            "drawn": self.drawn,
            "since_drawn": self.since_drawn,
            "brands": {key: asdict(brand) for key, brand in self.brands.items()},
            "pool": asdict(self.pool),
            "pool_cars": self.pool_cars,
            "use": self.use,
            "use_at": self.use_at,
            "bucket_log": self.bucket_log,
            "usual_log": self.usual_log,
        }

    def take(self, document: Any) -> bool:
        """Take over a :meth:`document`. False: it is of another version or none at all; nothing changed."""
        try:
            if document["version"] != VERSION:
                return False
            events, watched = (_days(document[key], HAZARDS) for key in ("events", "watched"))
            calls, drawn = _days([document["calls"], document.get("drawn", document["calls"])], 2)
            since_drawn = int(document.get("since_drawn", 0))
            brands = {str(key): _brand(brand) for key, brand in document["brands"].items()}
            pool = Pace(**{str(key): _number(value) for key, value in document["pool"].items()})
            cars = int(document["pool_cars"])
            numbers = [_number(document[key]) for key in ("use", "use_at", "bucket_log", "usual_log")]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if sum(calls) <= 0 or sum(drawn) <= 0:
            return False
        self.events, self.watched, self.brands = events, watched, brands
        self.pool, self.pool_cars = pool, cars
        self.use, self.use_at, self.bucket_log, self.usual_log = numbers
        # The curve as it was, not of the newest calls: a restart is to change no decision.
        self.calls = drawn
        self._draw()
        self.calls, self.since_drawn = calls, since_drawn
        return True


def _number(value: Any) -> float:
    """Raises ValueError or TypeError."""
    number = float(value)
    if not isfinite(number):
        raise ValueError("not a number")
    return number


def _brand(document: Any) -> BrandLore:
    """Raises ValueError or TypeError."""
    kept = dict(document)
    gaps, regular = [_number(gap) for gap in kept.pop("gaps")], bool(kept.pop("regular"))
    figures = {str(key): _number(value) for key, value in kept.items()}
    brand = BrandLore(gaps=gaps[-GAPS_KEPT:], regular=regular)
    for name, figure in figures.items():
        if not hasattr(brand, name) or figure < 0:
            raise ValueError(f"{name} is no figure of a brand, or below 0")
        setattr(brand, name, figure)
    return brand


def _days(rows: Any, count: int) -> list[list[float]]:
    """So many rows of 24 numbers, none below 0. Raises ValueError or TypeError."""
    days = [[_number(number) for number in row] for row in rows]
    if len(days) != count or any(len(day) != 24 or min(day) < 0 for day in days):
        raise ValueError("not so many rows of 24 numbers")
    return days

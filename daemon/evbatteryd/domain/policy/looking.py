"""The moment at which another look is worth its price, and why in words.

What happens unseen accumulates: ``e(t)`` is the error in percent that is expected to stand at ``t`` if nobody
looks until then, ``r(t)`` how fast it grows after it. A look at ``t`` ends an error that would have gone on
growing; spending ``price`` per look, the mean error is least when the look comes at the first ``t`` with

    e(t)^2 >= 2 * price * r(t)

(for a steady rate: every ``sqrt(2 price / r)``, the square-root law of inspection problems; see R. E. Barlow,
L. C. Hunter and F. Proschan, "Optimum checking procedures", J. SIAM 11 (1963) 1078). With hazards that change
over the day the rule is local: it compares now with soon, and within a percent or two of the exact solution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, sqrt
from typing import Final

from evbatteryd.domain.policy import hours
from evbatteryd.domain.policy.charge import slope_of, target_of
from evbatteryd.domain.policy.habits import (
    ARRIVAL,
    DEPARTURE,
    SILENT_FROM,
    TRIP,
    USUAL_TRIP,
    Doing,
    Habits,
    Told,
)
from evbatteryd.domain.policy.hours import DAY, HOUR
from evbatteryd.domain.policy.learning import MINUTE
from evbatteryd.domain.policy.lore import BrandLore, Lore

SURE: Final = 1.0
"""Percent that may have changed unseen without a value being called stale: what its rounding hides anyway."""
RAW_WEIGHT: Final = 0.3
"""How much of the worth of a look at a charging car is the measured value's, the rest the estimate's."""
END_WEIGHT: Final = 0.8
"""How much of what a charge has gained since the last look seeing its end is worth: all of it to the measured
value, and to whoever waits for the end."""
DRIVING_SPEED: Final = 18.0 / HOUR
"""Percent per second while driving: 50 km/h at 18 kWh/100 km out of 50 kWh."""
EARLY_ENDS: Final = 0.8 / HOUR
"""Percent per second by which an estimate of a charge goes wrong: it ends early, or slows down."""
LONGEST_WAIT: Final = 10 * HOUR
"""Nobody is left alone for longer, however little is expected: unless silent for days."""
LONGEST_IN_INTERVALS: Final = 2.2
"""The same in mean intervals of its plan: a small plan must last."""
LOOK_AHEAD: Final = 0.25
"""How far ahead ``r`` is averaged, in intervals: a look just before the morning's rush waits for it."""
STEP: Final = 5 * MINUTE
SILENT_SHARE: Final = 0.06
"""A car that has done nothing for days is asked after that share more of what these exceed four days by."""
LONGEST_SILENT_WAIT: Final = 7 * DAY
# Fractions that the traces of docs/polling.md gave; nothing depends on their second digit.
OUT_LONGER: Final = 1.3
"""By how much more than its mean trip a car loses that was plugged in: it sets out for several."""
JUST_HOME: Final = 0.25
"""How likely a car that uploaded a moment ago, unplugged, is just being plugged in."""
CHARGES_GROW: Final = 0.35
"""A charge that may begin soon raises what a look later brings: share of it that makes waiting pay."""
STARTS_LATE: Final = 0.3
"""How likely a prompt starter that does not charge yet, just after plug-in, has begun by the next upload."""
LATE_STEP: Final = 1.04
"""A step of charge comes a little later than the line says."""
ENDS_SPREAD: Final = 0.03
"""By that share of what is left a charge may end later than its line says."""
LAST_APART: Final = 0.35
"""A look that comes less than so many intervals before the end waits for the end: together they tell more."""
STILL_THERE: Final = 0.04
"""Share of departures that a wall box, which tells of them, does not tell of."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a brand's profile and the plan say about looking."""

    steps: float
    """Percent at whose multiples the brand uploads while charging; 0: it uploads at times."""
    polls_per_day: float
    """The plan's pace: a poll may take several calls."""


@dataclass(frozen=True, slots=True)
class Moment:
    """When, why, and what for."""

    at: float
    reason: str
    gain: float
    """pp*s."""
    sure: float = 0.0
    """Until then no more than :data:`SURE` is expected to change unseen; 0: nothing is said."""


def longest_wait(terms: Terms) -> float:
    """Nobody who is up and about is left alone for longer, however little is expected."""
    return max(LONGEST_WAIT, LONGEST_IN_INTERVALS * DAY / terms.polls_per_day)


def next_look(habits: Habits, brand: BrandLore, lore: Lore, terms: Terms, price: float, now: float) -> Moment:
    """When to look again at this car. ``price``: of a poll, all of its calls together."""
    moment = _next(habits, brand, lore, terms, price, now)
    latest = now + longest_wait(terms)
    if moment.at > latest:
        moment = replace(moment, at=latest)
    if habits.laid_up_at(now):
        silence = now - habits.changed
        later = now + min(SILENT_SHARE * (silence - SILENT_FROM), LONGEST_SILENT_WAIT)
        if moment.at < later:
            return _laid_up(habits, price, now, later, silence)
    return moment


def _next(habits: Habits, brand: BrandLore, lore: Lore, terms: Terms, price: float, now: float) -> Moment:
    if habits.doing == Doing.CHARGING or habits.assumed:
        return _charging(habits, brand, lore, terms, price, now)
    if habits.doing == Doing.DRIVING:
        return _driving(habits, brand, price, now)
    waits = habits.doing == Doing.WAITING
    if waits and not (_told(habits, now, Told.PLUGGED, Told.STOPPED) and habits.hears(Told.CHARGING, now)):
        return _waiting(habits, lore, terms, price, now)
    parked = Doing.UNPLUGGED if habits.doing == Doing.UNPLUGGED else Doing.RESTING
    return resting(habits, lore, terms, price, now, parked)


def _laid_up(habits: Habits, price: float, now: float, later: float, silence: float) -> Moment:
    """It comes back as if its silence had no scale of its own, at a rate of one over it (Lindy's law)."""
    wait, days = later - now, silence / DAY
    why = f"it has done nothing for {days:.0f} days: asked less and less until the first sign of life"
    return Moment(later, why, min(price, habits.trip_size * wait / silence * wait / 2))


def _told(habits: Habits, now: float, *what: Told) -> bool:
    return habits.told in what and habits.hears(Told(habits.told), now)


def _driving(habits: Habits, brand: BrandLore, price: float, now: float) -> Moment:
    """It was seen losing charge just now: it is probably still on its way."""
    rate = DRIVING_SPEED * brand.goes_on / brand.fresh_drops
    wait = max(STEP, sqrt(2 * price / rate))
    return Moment(now + wait, "on its way when last seen", rate * wait * wait / 2)


def resting(
    habits: Habits,
    lore: Lore,
    terms: Terms,
    price: float,
    now: float,
    doing: Doing,
    unseen: float = 0.0,
) -> Moment:
    """It stands, unplugged or as full as it gets: when will enough have happened unseen?

    ``unseen``: percent that may stand unseen already.
    """
    away = doing == Doing.UNPLUGGED
    rates = _error_rates(habits, lore, TRIP if away else DEPARTURE)
    at_home = habits.told in (Told.PLUGGED, Told.CHARGING, Told.STOPPED)
    # What the wall box told last may not be in the cloud yet: then its silence says nothing.
    if away and not at_home and habits.hears(Told.PLUGGED, now):  # it tells when the car comes home
        told = habits.trip_size * 0.7
        rates = [
            max(0.3 * rate, rate - told * home)
            for rate, home in zip(rates, lore.rates(habits, ARRIVAL), strict=True)
        ]
    elif not away and at_home and habits.hears(Told.UNPLUGGED, now):  # and when it leaves
        rates = [STILL_THERE * rate for rate in rates]
    grows = _Growth(habits, lore, rates, away, now)
    return _first_worth(grows, habits, lore, terms, price, now, unseen, away)


def _error_rates(habits: Habits, lore: Lore, hazard: int) -> list[float]:
    """Percent per second that change, by hour of the day."""
    size = habits.trip_size
    return [size * rate for rate in lore.rates(habits, hazard)]


class _Growth:
    """How the expected unseen error of a parked car grows, step by step."""

    def __init__(self, habits: Habits, lore: Lore, rates: list[float], away: bool, now: float) -> None:
        self.rates = rates
        self.error = self.charged = 0.0
        size = habits.trip_size
        self._after: list[float] = []
        self._gone = 0.0
        self._per_event = 1.0 / size
        if not away:  # whoever unplugs sets out, and goes on from there
            self._after = _error_rates(habits, lore, TRIP)
        self._home: list[float] = []
        self._begun = 0.0
        if away and not habits.hears(Told.PLUGGED, now) and habits.soc < habits.target + 2.0:
            likelier = homing(habits)
            self._home = [likelier * rate for rate in lore.rates(habits, ARRIVAL)]
            self._begun = JUST_HOME if now - habits.measured < 6 * MINUTE else 0.0
        self._slope = slope_of(habits)
        self._most = max(3.0, habits.target - habits.soc + 6.0)

    def step(self, hour: int, span: float) -> None:
        rate = self.rates[hour]
        if self._after:
            self.error += (rate * (1 - self._gone) + self._after[hour] * self._gone) * span * OUT_LONGER
            self._gone += (1 - self._gone) * rate * self._per_event * span
        else:
            self.error += rate * span
        if self._home:
            self._begun += (1 - self._begun) * self._home[hour] * span
            self.charged = min(self._most, self.charged + self._begun * self._slope * span)

    def need(self, price: float, rate: float, later: int) -> float:
        """What the square of the error must reach."""
        need = 2 * price * rate
        if not self._home:
            return need
        interval = need / rate / rate
        return (sqrt(need) + self._home[later] * self._slope * interval * CHARGES_GROW) ** 2


def homing(habits: Habits) -> float:
    """How much likelier than usual it comes home to charge: by its charge, and by its trips since."""
    likelier = exp(-0.02 * (habits.soc - habits.comes_home_at))
    likelier *= 0.6 if habits.trips_since_home < 2 else 1.2
    return max(0.05, min(likelier, 8.0))


def _first_worth(
    grows: _Growth,
    habits: Habits,
    lore: Lore,
    terms: Terms,
    price: float,
    now: float,
    unseen: float,
    away: bool,
) -> Moment:
    rates = grows.rates
    mean = max(sum(rates) / 24, 1e-9)
    usual = sqrt(2 * price / mean)
    step = max(STEP, min(usual / 6, 20 * MINUTE))
    wait = longest_wait(terms)
    step = max(step, wait / 200)
    ahead = LOOK_AHEAD * usual
    trip = _Departed(habits, now) if away and _left_just_now(habits, now) else None
    grows.error = unseen
    local = lore.local(now)
    passed, error, rate, sure = 0.0, unseen, mean, wait
    while passed < wait:
        grows.step(int((local + passed) // HOUR) % 24, step)
        passed += step
        at = local + passed
        later = int((at + ahead) // HOUR) % 24
        rate = (rates[int(at // HOUR) % 24] + rates[later] + rates[int((at + 2 * ahead) // HOUR) % 24]) / 3
        rate = max(rate, 1e-9)
        error = grows.error + grows.charged
        need = grows.need(price, rate, later)
        if trip is not None:
            error += trip.error(passed)
            need += 2 * price * trip.rate(passed)
        if error >= SURE:
            sure = min(sure, passed)
        if error * error >= need:
            break
    return Moment(
        now + passed,
        _parked_reason(habits, error),
        error * error / (2 * rate),
        now + min(sure, passed),
    )


def _parked_reason(habits: Habits, error: float) -> str:
    where = "parked, plugged in" if habits.plugged else "parked, unplugged" if habits.cable else "parked"
    return f"{where}: by then it is expected to be off by {error:.1f} %"


def _left_just_now(habits: Habits, now: float) -> bool:
    return now - habits.left < HOUR


class _Departed:
    """The trip of a car that has just pulled its cable: mostly over after half an hour."""

    def __init__(self, habits: Habits, now: float) -> None:
        self._size = habits.trip_size
        self._since = now - habits.left
        self._begun = self._ended(0.0)

    def _ended(self, passed: float) -> float:
        return 1.0 - exp(-max(0.0, self._since + passed - 10 * MINUTE) / (18 * MINUTE))

    def error(self, passed: float) -> float:
        return self._size * (self._ended(passed) - self._begun)

    def rate(self, passed: float) -> float:
        return self._size * (1.0 - self._ended(passed)) / (18 * MINUTE) * 0.5


def _waiting(habits: Habits, lore: Lore, terms: Terms, price: float, now: float) -> Moment:
    """Plugged in below its target: it may start to charge at once, or at the hour of its timer."""
    rates = _error_rates(habits, lore, DEPARTURE)
    usual = sqrt(2 * price * 24 / sum(rates))
    ahead = LOOK_AHEAD * usual
    slope = slope_of(habits)
    most = max(3.0, habits.target - habits.soc)
    timer = [shape + count for shape, count in zip(hours.TIMERS, habits.starts, strict=True)]
    local = lore.local(now)
    this_hour = int(local // HOUR)
    passed_hours = int(min(20.0, (now - habits.measured) / HOUR))
    left = sum(timer) + 0.1 - sum(timer[(this_hour - ago) % 24] for ago in range(1, passed_hours + 1))
    just_now = now - habits.measured < 20 * MINUTE
    started = STARTS_LATE * habits.prompt / habits.plugins if just_now else 0.0
    per_second = (1.0 - started) / max(left, 0.05) / HOUR
    step = max(STEP, min(usual / 6, 10 * MINUTE))
    wait = longest_wait(terms)
    step = max(step, wait / 200)
    passed = error = charged = 0.0
    sure, rate = wait, rates[this_hour % 24]
    while passed < wait:
        hour = int((local + passed) // HOUR) % 24
        started += per_second * timer[hour] * step
        charged = min(most, charged + slope * started * step)
        error += rates[hour] * step
        passed += step
        rate = (rates[hour] + rates[int((local + passed + ahead) // HOUR) % 24]) / 2
        rate += slope * min(started, 1.0) if charged < most else 0.0
        if error + charged >= SURE:
            sure = min(sure, passed)
        if (error + charged) ** 2 >= 2 * price * rate:
            break
    reason = (
        f"plugged in at {habits.soc:.0f} %, below its usual {habits.target:.0f} %: it may start to charge"
    )
    gain = (error + charged) ** 2 / (2 * max(rate, 1e-9))
    return Moment(now + passed, reason, gain, now + min(sure, passed))


def _charging(habits: Habits, brand: BrandLore, lore: Lore, terms: Terms, price: float, now: float) -> Moment:
    """While it charges the look comes just after an upload, and the last one when the end is there to see."""
    slope, target = slope_of(habits), target_of(habits)
    rest = max(0.0, target - habits.soc)
    span = rest / slope
    end = habits.line_since + span
    rate = RAW_WEIGHT * slope + (1 - RAW_WEIGHT) * EARLY_ENDS
    apart = sqrt(2 * price / rate)
    seen = brand.margin + brand.ends_late + ENDS_SPREAD * span
    """Until the end is there to be read, with its spread."""
    regular = brand.regular and brand.period >= 250.0
    period = brand.period if regular else 0.0
    if terms.steps:
        period = terms.steps / slope
    over = now > end + seen + max(15 * MINUTE, 2.2 * period)
    if over and not (terms.steps and now < end + 30 * MINUTE):
        return resting(habits, lore, terms, price, now, Doing.RESTING)
    words = f"charging at {slope * HOUR:.0f} % an hour"
    if habits.assumed:
        words = "plugged in, and taken to charge though its brand does not say so"

    def gained(at: float) -> float:
        return rate * max(at - max(habits.measured, habits.looked - apart), STEP) ** 2 / 2

    if period:
        if terms.steps:
            level = (int(habits.soc / terms.steps + 1e-4) + 1) * terms.steps
            first = habits.line_since + LATE_STEP * (level - habits.soc) / slope
        else:
            first = habits.measured + period
        at = first + brand.margin
        if at < now:
            at += period * (int((now - at) / period) + 1)
        while at < end - LAST_APART * apart:
            if at - habits.measured >= 0.75 * apart:
                habits.expected_upload = at - brand.margin
                what = f"{terms.steps:.0f} % step" if terms.steps else "upload"
                return Moment(at, f"{words}: just after the next {what} is due", gained(at))
            at += period
    else:
        left = end + seen - habits.measured
        looks = max(1, round(left / apart))
        at = max(habits.measured + left / looks, now + 0.5 * apart)
        if at <= end - LAST_APART * apart:
            return Moment(at, words, gained(at))
    at = _last_look(habits, lore, terms, price, now, rest, end, end + seen)
    return Moment(at, f"{words}: it should have reached {target:.0f} % by then", max(price, gained(at)))


def _last_look(
    habits: Habits,
    lore: Lore,
    terms: Terms,
    price: float,
    now: float,
    rest: float,
    end: float,
    seen: float,
) -> float:
    """When to see that a charge has ended."""
    weighed = END_WEIGHT * rest
    if _told(habits, now, Told.CHARGING) and habits.hears(Told.STOPPED, now) and now < end + 2 * HOUR:
        return end + max(HOUR, 0.2 * (end - habits.measured))
    if now >= seen:  # it should have ended and has not: how long it may go on is worth little
        return now + max(STEP, min(30 * MINUTE, 0.2 * price / max(1.0, weighed)))
    hour = hours.at(lore.local(seen))
    leaves = hours.DEPARTURES[hour] * USUAL_TRIP / HOUR
    if weighed * weighed < 2 * price * leaves:  # to see the end alone is not worth it
        return resting(habits, lore, terms, price, seen, Doing.RESTING, weighed).at
    return seen

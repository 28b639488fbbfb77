"""Where the state of charge is between two looks, and how sure that is.

The band is meant to hold the truth nine times in ten; how often it does is measured in ``docs/polling.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, log
from typing import Final

from evbatteryd.domain.policy import hours
from evbatteryd.domain.policy.charge import TOLD_GAIN, UNKNOWN_SLOPE, slope_of, target_of
from evbatteryd.domain.policy.habits import ARRIVAL, DEPARTURE, TRIP, Doing, Habits
from evbatteryd.domain.policy.hours import DAY, HOUR
from evbatteryd.domain.policy.learning import MINUTE
from evbatteryd.domain.policy.looking import DRIVING_SPEED, homing
from evbatteryd.domain.policy.lore import BrandLore, Lore

MISSES: Final = 0.10
"""Share of the time in which the truth may lie outside the band."""
UPWARD: Final = 0.04
"""The part of it that charges not yet seen may take."""
AFTER_A_CHARGE: Final = 6 * HOUR
"""How long after its expected end a charge that nobody looked at is still believed."""
AT_REST: Final = DAY
"""How long after the last look anything is claimed of a car that stands."""
ON_THE_WAY: Final = 40 * MINUTE
LATE: Final = 0.35 * HOUR
"""What happened so shortly before a look may not have been in the cloud yet."""
ROUNDED_AWAY: Final = 0.9
"""Share of a step by which the truth may lie above what is told: which brands round down is not known."""
BLURRED: Final = 60.0
"""Seconds by which the time of an upload and that of its charge may differ."""


@dataclass(frozen=True, slots=True)
class Course:
    """A straight line from the last measurement on: percent, percent per second, and how far it goes."""

    soc: float
    slope: float
    target: float
    until: float


@dataclass(frozen=True, slots=True)
class Band:
    low: float
    soc: float
    high: float


def course(habits: Habits, brand: BrandLore) -> Course:
    """How the charge is expected to go on."""
    if habits.doing == Doing.CHARGING or habits.assumed:
        slope, target = slope_of(habits), max(target_of(habits), habits.soc)
        end = habits.line_since + (target - habits.soc) / slope
        until = min(max(end, habits.confirmed) + AFTER_A_CHARGE, habits.confirmed + AT_REST)
        return Course(habits.soc, slope, target, until)
    until = habits.confirmed + (ON_THE_WAY if habits.doing == Doing.DRIVING else AT_REST)
    return Course(habits.soc, 0.0, habits.soc, until)


def band(habits: Habits, brand: BrandLore, lore: Lore, now: float, step: float) -> Band:
    """The charge at ``now``; ``step``: percent to which the brand rounds, to the nearest or down."""
    below, above = step / 2, ROUNDED_AWAY * step
    if habits.doing == Doing.CHARGING or habits.assumed:
        found = _charging(habits, brand, lore, now)
    elif habits.doing == Doing.DRIVING:
        driven = DRIVING_SPEED * max(0.0, now - habits.soc_at)
        found = Band(habits.soc - 1.5 * driven, habits.soc, habits.soc)
    else:
        found = _parked(habits, lore, now)
    return Band(max(0.0, found.low - below), found.soc, min(100.0, found.high + above))


def _charging(habits: Habits, brand: BrandLore, lore: Lore, now: float) -> Band:
    slope, target = slope_of(habits), max(target_of(habits), habits.soc)
    passed, needs = max(0.0, now - habits.line_since), (target - habits.soc) / slope
    soc = max(habits.soc, min(target, habits.soc + slope * passed))
    told = bool(habits.session_slope)
    known = (told and habits.session_gain > TOLD_GAIN) or habits.slope_weight > UNKNOWN_SLOPE
    unsure = 0.3 if habits.assumed else 0.06 if known else 0.3 if told else 0.45
    spread = 1.3 * (unsure * slope * min(passed, needs) + 0.5 * slope * BLURRED)
    low, high = soc - spread, soc + spread
    if habits.targets_seen:
        high = min(high, target)
    over = passed - needs - (brand.margin + 0.04 * needs)
    if over > 0:  # it has ended, and may have left
        left = 1 - exp(-over * hours.DEPARTURES[hours.at(lore.local(now))] / HOUR)
        if left > 0.08:
            low -= habits.trip_size * log(left / 0.08)
    return Band(low, soc, max(soc, high))


def _parked(habits: Habits, lore: Lore, now: float) -> Band:
    away, soc = habits.doing == Doing.UNPLUGGED, habits.soc
    moved = 1 - exp(-_events(habits, lore, TRIP if away else DEPARTURE, habits.confirmed - LATE, now))
    high, charged = soc, 0.0
    if habits.doing != Doing.RESTING and soc < habits.target - 1.0:
        charged = min(_charged(habits, lore, now, away), 1.0)
        if charged > UPWARD:
            risen = slope_of(habits) * max(0.0, now - habits.confirmed) * (1 - UPWARD / charged)
            high = max(soc, min(habits.target, soc + risen))
    likely = MISSES - min(charged, UPWARD)
    low = soc - habits.trip_size * log(moved / likely) if moved > likely else soc
    return Band(low, soc, high)


def _events(habits: Habits, lore: Lore, hazard: int, begin: float, end: float) -> float:
    """How many events are expected between two instants."""
    rates = lore.rates(habits, hazard)
    at, end, expected = lore.local(begin), end + lore.local(begin) - begin, 0.0
    if end - at > 14 * DAY:
        return sum(rates) / 24 * (end - at)
    while at < end:
        until = min(end, (at // HOUR + 1) * HOUR)
        expected += rates[int(at // HOUR) % 24] * (until - at)
        at = until
    return expected


def _charged(habits: Habits, lore: Lore, now: float, away: bool) -> float:
    """How likely it has come home and charges, or its waiting charge has begun."""
    if away:
        return _events(habits, lore, ARRIVAL, habits.confirmed, now) * homing(habits)
    soon = 0.3 if now - habits.measured < 2 * HOUR else 0.15
    hour = hours.at(lore.local(now))
    timer = [shape + count for shape, count in zip(hours.TIMERS, habits.starts, strict=True)]
    return soon + (timer[hour] + timer[hour - 1]) / (sum(habits.starts) + 1.0)

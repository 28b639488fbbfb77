"""Keeps values that cannot be out of the reading, and says why.

What a car, its OEM's cloud or an interface between them gets wrong is mostly one of these: a sentinel that
means "not measured" (255 %, 65535 minutes), a unit (miles sold as kilometres, watts as kilowatts), a clock.
Only what cannot be is taken out. What is merely odd stays, above all a SoC that jumped while the car stood
still: that is how a missed charge looks.

The limits are wide on purpose. A value of another unit inside them is caught by comparison, with what was
accepted before or with its siblings, and every comparison forgets after :data:`MEMORY`: a wrong first value
would otherwise keep all the right ones out for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from evbatteryd.domain.reading import BatteryState, Measurement, Observation, Rejected, Signal

CLOCK_SKEW = timedelta(minutes=5)
"""How far the car's clock may be ahead of ours before its time is not believed."""
EARLIEST = datetime(2010, 1, 1, tzinfo=UTC)
"""No connected car is older. A clock that was never set counts from 1970, 1980, 2000 or so."""
MEMORY = timedelta(hours=48)
"""How long an accepted value that was not confirmed since testifies against one that contradicts it."""
TOGETHER = timedelta(minutes=15)
"""Range and SoC measured no further apart than this describe the same moment, also at a fast charger."""

KM_PER_MILE: Final = 1.609344
MILE_TOLERANCE: Final = 0.04
"""Rounding of two small numbers, and driving in between, blur the factor."""
MILE_SOC_PERCENT: Final = 20.0
"""Below that, a range of a few kilometres is too coarse to tell a unit by."""

FARTHEST_KM_PER_KWH: Final = 22.0
"""Microlino: 230 km from 14 kWh, Twizy: 100 km from 6.1 kWh, both 16.4 at their best."""
NEAREST_KM_PER_KWH: Final = 0.5
"""GMC Hummer EV on a warm motorway: 2.6 (InsideEVs' 70 mph test); winter and a trailer halve that twice."""
PROPORTION_SOC_PERCENT: Final = 10.0
RESERVE_PERCENT: Final = 20.0
"""What a car may show as SoC without counting it as range: plug-in hybrids keep 10 to 20 % for themselves."""

ODOMETER_TOLERANCE_KM: Final = 1.0
"""Clouds round the odometer one way or the other."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Between which values a signal can lie at all, both ends included."""

    least: float
    most: float
    because: str
    not_measured: frozenset[float] = frozenset()
    """Sentinels that lie between the two."""


LIMITS: Final[Mapping[Signal, Limits]] = {
    Signal.SOC: Limits(0, 100, "a state of charge lies between 0 and 100 %"),
    Signal.RANGE: Limits(0, 1500, "no electric car goes farther than 1500 km", frozenset({655.34, 655.35})),
    # 0 is how "unknown" is written. The largest pack of a car is the GMC Hummer EV's, 247 kWh gross.
    Signal.CAPACITY: Limits(0.1, 300, "the battery of a car holds more than 0 and at most 300 kWh"),
    # 0 would be a car that never charges: again how "unknown" is written.
    Signal.CHARGE_LIMIT: Limits(1, 100, "a charge limit lies above 0 and at most at 100 %"),
    # Up: 1000 kW is what BYD's Super e-Platform takes (2025). Down: what cars give back to house or grid.
    Signal.CHARGE_POWER: Limits(
        -50,
        1500,
        "a car takes at most 1500 kW and gives back at most 50 kW",
        frozenset({655.34, 655.35}),
    ),
    # The longest: the Hummer's 212 kWh net take almost seven days from a socket of 120 V and 12 A.
    Signal.TIME_TO_FULL: Limits(
        0, 7 * 86400, "no charge takes longer than 7 days", frozenset({65534.0, 65535.0})
    ),
    Signal.ODOMETER: Limits(0, 3_000_000, "no car has gone farther than 3 million km"),
}

_SENTINELS: Final = frozenset(
    {-1.0, 255.0, 655.34, 655.35, 6553.4, 6553.5, 65534.0, 65535.0, 60 * 65534.0, 60 * 65535.0, 2.0**32 - 1}
)
"""All bits set, in one, two or four bytes, as tenths, hundredths or minutes; one less is "out of range"."""
_RAW_LENGTH: Final = 40

# Reasons hold no figure of the moment: one that stays the same is logged once.
_AHEAD: Final = "a time in the future, the car's clock is ahead: the value is kept, its time is unknown"
_TOO_FAR: Final = f"out of proportion to SoC x capacity: over {FARTHEST_KM_PER_KWH:g} km per kWh"
_TOO_NEAR: Final = f"out of proportion to SoC x capacity: under {NEAREST_KM_PER_KWH:g} km per kWh"
_UNTIL: Final = f"believed if it stays so for {MEMORY // timedelta(hours=1)} h"
_MILES: Final = f"miles sold as kilometres: range per SoC fell by the length of a mile; {_UNTIL}"
_CONVERTED: Final = f"kilometres converted like miles: range per SoC rose by the length of a mile; {_UNTIL}"
_BACKWARDS: Final = f"an odometer does not go back; {_UNTIL}"


def plausible(observation: Observation, state: BatteryState, now: datetime) -> Observation:
    """``observation`` without the values that cannot be; those are in its ``rejected``, with the reason.

    A time that cannot be says nothing against its value, so the value stays and its time becomes unknown: it
    is then never fresh, and never overwrites a value that has a time (:meth:`Measurement.supersedes`). A time
    in the future is also noted in ``rejected``, for it can keep a car from being believed; one before 2010 is
    how a clock says "not set", as good as no time at all.

    A rejected range never takes the SoC beside it along.
    """
    rejected: list[Rejected] = []
    possible: list[Measurement] = []
    latest = now + CLOCK_SKEW
    for given in observation.measurements:
        measurement = given
        measured = given.measured_at
        if measured is not None and not EARLIEST <= measured <= latest:
            measurement = replace(given, measured_at=None)
            if measured > latest:
                rejected.append(_rejected(measurement, measured.isoformat(), _AHEAD))
        reason = _impossible(measurement)
        if reason is None:
            possible.append(measurement)
        else:
            rejected.append(_rejected(measurement, str(measurement.value), reason))

    heard = _newest(possible)
    kept: list[Measurement] = []
    for measurement in possible:
        reason = _contradiction(measurement, heard, state)
        if reason is None:
            kept.append(measurement)
        else:
            rejected.append(_rejected(measurement, str(measurement.value), reason))

    measurements = tuple(kept)
    if measurements == observation.measurements and not rejected:
        return observation
    return replace(observation, measurements=measurements, rejected=(*observation.rejected, *rejected))


def _rejected(measurement: Measurement, raw: str, reason: str) -> Rejected:
    shortened = raw if len(raw) <= _RAW_LENGTH else f"{raw[: _RAW_LENGTH - 1]}…"
    return Rejected(measurement.signal, shortened, reason, measurement.measured_at, measurement.fetched_at)


def _impossible(measurement: Measurement) -> str | None:
    """Why this value cannot be, whatever else is known of the car."""
    limits = LIMITS.get(measurement.signal)
    if limits is None:
        return None
    value = measurement.value
    if isinstance(value, bool | str):
        return f"no number; {limits.because}"
    if limits.least <= value <= limits.most and value not in limits.not_measured:
        return None
    if value in _SENTINELS or value in limits.not_measured:
        return f'a sentinel that means "not measured"; {limits.because}'
    return limits.because


def _newest(measurements: Iterable[Measurement]) -> dict[Signal, Measurement]:
    newest: dict[Signal, Measurement] = {}
    for measurement in measurements:
        known = newest.get(measurement.signal)
        if known is None or measurement.supersedes(known):
            newest[measurement.signal] = measurement
    return newest


def _contradiction(
    measurement: Measurement, heard: Mapping[Signal, Measurement], state: BatteryState
) -> str | None:
    """Why this value cannot be, given what else was ``heard`` with it and what is known already."""
    if measurement.signal is Signal.RANGE:
        return _out_of_proportion(measurement, heard, state) or _in_miles(measurement, heard, state)
    if measurement.signal is Signal.ODOMETER:
        return _went_back(measurement, state)
    return None


def _out_of_proportion(
    distance: Measurement, heard: Mapping[Signal, Measurement], state: BatteryState
) -> str | None:
    """Range against SoC x capacity. Catches what is off by several times; a mile is too close to see here."""
    soc = _soc_beside(distance, heard, state)
    told = heard.get(Signal.CAPACITY) or state.signals.get(Signal.CAPACITY)
    if soc is None or told is None or soc < PROPORTION_SOC_PERCENT:
        return None
    capacity = float(told.value)
    farthest = FARTHEST_KM_PER_KWH * capacity * soc / 100
    nearest = NEAREST_KM_PER_KWH * capacity * (soc - RESERVE_PERCENT) / 100
    if float(distance.value) > farthest:
        return _TOO_FAR
    return _TOO_NEAR if float(distance.value) < nearest else None


def _in_miles(distance: Measurement, heard: Mapping[Signal, Measurement], state: BatteryState) -> str | None:
    """Range per SoC against what it was: a jump by the length of a mile is a change of unit.

    The state holds the newest SoC, not the one of its range. While ranges are rejected, and so the old one
    stays, it is therefore compared with a newer SoC: exact for a parked car, which is when units change.
    """
    was = state.signals.get(Signal.RANGE)
    soc_was = state.soc_percent
    soc = _soc_beside(distance, heard, state)
    if was is None or soc_was is None or soc is None or not _testifies(was, distance):
        return None
    if soc_was < MILE_SOC_PERCENT or soc < MILE_SOC_PERCENT or not float(was.value) > 0:
        return None
    factor = (float(distance.value) / soc) / (float(was.value) / soc_was)
    if abs(factor * KM_PER_MILE - 1) <= MILE_TOLERANCE:
        return _MILES
    return _CONVERTED if abs(factor / KM_PER_MILE - 1) <= MILE_TOLERANCE else None


def _went_back(odometer: Measurement, state: BatteryState) -> str | None:
    was = state.signals.get(Signal.ODOMETER)
    if was is None or not _testifies(was, odometer):
        return None
    return _BACKWARDS if float(odometer.value) <= float(was.value) - ODOMETER_TOLERANCE_KM else None


def _soc_beside(
    distance: Measurement, heard: Mapping[Signal, Measurement], state: BatteryState
) -> float | None:
    """The SoC of the moment at which this range was measured."""
    for soc in (heard.get(Signal.SOC), state.signals.get(Signal.SOC)):
        if soc is not None and _together(soc, distance):
            return float(soc.value)
    return None


def _together(one: Measurement, other: Measurement) -> bool:
    if one.measured_at is None or other.measured_at is None:
        return one.measured_at is other.measured_at and one.fetched_at == other.fetched_at
    return abs(one.measured_at - other.measured_at) <= TOGETHER


def _testifies(was: Measurement, new: Measurement) -> bool:
    """Whether ``was`` counts against ``new``: it would be overwritten, and was confirmed not long ago.

    By our clock, which every measurement has: a car that reports nothing new is still confirmed by each poll.
    """
    return new.fetched_at - was.fetched_at <= MEMORY and new.supersedes(was)

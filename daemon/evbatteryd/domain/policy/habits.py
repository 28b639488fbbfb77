"""What is learnt of one car: a few hundred bytes that live and are kept with it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, fields
from enum import IntEnum
from math import exp, isfinite
from operator import attrgetter
from typing import Final

from evbatteryd.domain.policy.pacing import Pace

VERSION: Final = 1
"""Of the packed form. Habits of another version are forgotten: a car is known again within days."""

UNKNOWN: Final = -1.0
"""No state of charge yet."""
FULL_BY_DEFAULT: Final = 90.0
"""Where a charge ends as long as nothing is known of it, percent: between the usual 80 and 100."""
USUAL_SLOPE: Final = 9.0 / 3600.0
"""Percent per second while charging at home: about 5 kW into 55 kWh."""
USUAL_TRIP: Final = 8.0
"""Percent per trip."""
TRIPS_ASSUMED: Final = 4.0
"""For so many trips the usual size counts."""


class Doing(IntEnum):
    """What a car is taken to be doing between two looks. On disk: append, never reorder."""

    UNPLUGGED = 0
    RESTING = 1
    """Plugged in, and as full as it will get."""
    WAITING = 2
    """Plugged in below its target: its charge may start at any time."""
    CHARGING = 3
    DRIVING = 4


class Told(IntEnum):
    """The last thing that a wall box or an automation said. On disk: append, never reorder."""

    NOTHING = 0
    PLUGGED = 1
    CHARGING = 2
    STOPPED = 3
    UNPLUGGED = 4
    ARRIVED = 5


RARELY_LAID_UP: Final = 0.02
"""How many cars are laid up at any time (sold, on holiday, in the workshop): before anything is known."""
SURELY: Final = 0.9
"""How likely a car must be laid up to be taken for it ..."""
SILENT_FROM: Final = 4 * 86400.0
"""... and for how many seconds it must have done nothing: ordinary cars have quiet days one after another."""
HEARD_FOR: Final = 7 * 86400.0
"""Seconds: a wall box that said nothing for so long is not listened for any more."""
TRUSTED: Final = 0.35
"""Share of hints that must have been found true lately."""
HAZARDS: Final = 3
"""Events that are waited for: trips, departures, arrivals that charge."""
TRIP, DEPARTURE, ARRIVAL = range(HAZARDS)


def _day() -> list[float]:
    return [0.0] * 24


def _kinds() -> list[float]:
    return [0.0] * HAZARDS


@dataclass(slots=True)
class Habits:
    """One car, as the policy knows it. Changed in place; packed when it is committed with the car."""

    # The last look.
    measured: float = 0.0
    """By the car's clock: of whatever is newest of charge, charging and cable."""
    soc_at: float = 0.0
    """By the car's clock: of the charge alone."""
    confirmed: float = 0.0
    """By ours: when the charge was last told, new or not."""
    looked: float = 0.0
    """By ours: when any of them was."""
    asked: float = 0.0
    """When it was last asked, whatever became of it."""
    changed: float = 0.0
    """When it last did anything: charge, charging or cable changed (by the car's clock)."""
    expected_upload: float = 0.0
    """For when the next poll expects an upload; 0 for none."""
    session_since: float = 0.0
    """The first look at the present charge; with ``session_soc``. 0: none."""
    hinted: float = 0.0
    """When it was last told of by a hint; 0: never."""
    left: float = 0.0
    """When it pulled its cable, by a hint or by a look: it is about to set out."""
    hint_level_at: float = 0.0
    sure: float = 0.0
    """Until then hardly anything is expected to change unseen."""
    price_at: float = 0.0
    anchored: float = 0.0
    window: float = 0.0

    soc: float = UNKNOWN
    session_soc: float = 0.0
    session_slope: float = 0.0
    """Percent per second of the present charge; 0: not known."""
    session_gain: float = 0.0
    """Percent over which ``session_slope`` was seen."""
    slope: float = USUAL_SLOPE
    """Percent per second of its charges."""
    slope_weight: float = 200.0
    target: float = FULL_BY_DEFAULT
    """Where its charges end, percent."""
    limit: float = UNKNOWN
    """The charge limit that the car itself names, percent."""
    trip_sum: float = USUAL_TRIP * TRIPS_ASSUMED
    trip_count: float = TRIPS_ASSUMED
    comes_home_at: float = 62.0
    """The state of charge at which it is usually plugged in, percent."""
    prompt: float = 1.5
    plugins: float = 2.0
    """``prompt`` of so many plug-ins started to charge at once."""
    last_drop: float = 0.0
    """Percent by which the last look's charge was below the one before; negative."""
    silent: float = 0.0
    """Events that were expected since it last did anything."""
    price_log: float = 0.0
    anchor_spent: float = 0.0
    plan_per_day: float = 1.0
    """The six of them: see :class:`Pace`."""
    trust: float = 0.8
    """Share of hints that were found true."""
    hint_level: float = 4.0
    """Calls that hints may still cause."""
    shortest_gap: float = 0.0
    """Seconds between two uploads, the shortest of late."""

    doing: int = Doing.UNPLUGGED
    told: int = Told.NOTHING
    tells: int = 0
    """Which of :class:`Told` were ever told of it, as bits: silence means something for those alone."""
    tries: int = 9
    """Polls since the last hint, for as long as they look for what it told; 9: no longer."""
    targets_seen: int = 0
    trips_since_home: int = 2
    gaps: int = 0
    """News since ``shortest_gap`` began to be measured."""
    charging: bool = False
    plugged: bool = False
    cable: bool = False
    """Whether it ever told of its cable."""
    assumed: bool = False
    """Taken to charge though it does not say so: its brand tells of no start."""

    events: list[float] = field(default_factory=_kinds)
    """Of each hazard, how many were seen, and how many an average car would have had meanwhile."""
    expected: list[float] = field(default_factory=_kinds)
    departures: list[float] = field(default_factory=_day)
    """By hour of the day: departures, and hours in which there could have been one."""
    plugged_hours: list[float] = field(default_factory=_day)
    starts: list[float] = field(default_factory=_day)
    """By hour of the day: charges that started long after plug-in."""
    calls: list[float] = field(default_factory=list)
    """When it was asked, for as long as the brand's rolling limit counts it, oldest first."""

    @property
    def known(self) -> bool:
        """Whether it was ever looked at."""
        return self.soc != UNKNOWN

    def hears(self, told: Told, now: float) -> bool:
        """Whether something tells of it when that happens, so that silence means it did not."""
        lately = bool(self.hinted) and now - self.hinted < HEARD_FOR
        return lately and self.trust >= TRUSTED and bool(self.tells >> told & 1)

    def not_after(self, now: float) -> None:
        """What was noted by a clock that was ahead is noted as of now."""
        if max(_instants(self)) > now:
            for name in _INSTANT_NAMES:
                setattr(self, name, min(getattr(self, name), now))
        if self.calls and self.calls[-1] > now:
            self.calls = [min(call, now) for call in self.calls]

    @property
    def line_since(self) -> float:
        """From when on the charge is carried forward: never from before its charging began."""
        return max(self.soc_at, self.session_since) if self.charging else self.soc_at

    def laid_up_at(self, now: float) -> bool:
        """Whether it is taken for laid up: for days it did nothing, although an ordinary one would have."""
        ordinary = (1.0 - RARELY_LAID_UP) * exp(-min(self.silent, 500.0))
        likely = RARELY_LAID_UP / (RARELY_LAID_UP + ordinary)
        return likely > SURELY and now - self.changed > SILENT_FROM and not self.charging

    def _sound(self) -> bool:
        """Whether nothing in it would divide by nothing, or be what there is not."""
        divisors = (self.trip_count, self.slope_weight, self.slope, self.plugins, self.plan_per_day)
        return min(divisors) > 0.0 and self.doing <= max(Doing) and self.told <= max(Told)

    @property
    def trip_size(self) -> float:
        """Percent of a usual trip."""
        return self.trip_sum / self.trip_count

    @property
    def pace(self) -> Pace:
        return Pace(
            self.price_log, self.price_at, self.anchored, self.anchor_spent, self.window, self.plan_per_day
        )

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self.price_log, self.price_at = pace.price_log, pace.at
        self.anchored, self.anchor_spent, self.window = pace.anchored, pace.anchor_spent, pace.window
        self.plan_per_day = pace.per_day

    def pack(self) -> bytes:
        """The habits in a few hundred bytes: instants exact, everything else as float32."""
        recent = [self.asked - call for call in self.calls]
        return _FIXED.pack(
            VERSION,
            *_scalars(self),
            *self.events,
            *self.expected,
            *self.departures,
            *self.plugged_hours,
            *self.starts,
        ) + struct.pack(f"<{len(recent)}f", *recent)

    @classmethod
    def unpack(cls, packed: bytes) -> Habits:
        """What :meth:`pack` made; fresh ones of nothing, of another version, or of what cannot be read."""
        if len(packed) < _FIXED.size or packed[0] != VERSION:
            return cls()
        _, *values = _FIXED.unpack_from(packed)
        habits = cls(*values[: len(_SCALARS)])
        rest = values[len(_SCALARS) :]
        if not (all(map(isfinite, values)) and min(rest) >= 0.0 and habits._sound()):
            return cls()
        habits.events, habits.expected = rest[:HAZARDS], rest[HAZARDS : 2 * HAZARDS]
        days = rest[2 * HAZARDS :]
        habits.departures, habits.plugged_hours, habits.starts = days[:24], days[24:48], days[48:]
        count = (len(packed) - _FIXED.size) // 4
        ago = struct.unpack_from(f"<{count}f", packed, _FIXED.size)
        habits.calls = [habits.asked - span for span in ago]
        return habits


_INSTANTS: Final = 15
_NUMBERS: Final = 21
_COUNTS: Final = 7
_FLAGS: Final = 4
_SCALARS: Final = tuple(one.name for one in fields(Habits))[: _INSTANTS + _NUMBERS + _COUNTS + _FLAGS]
_scalars = attrgetter(*_SCALARS)
_KEPT_AHEAD: Final = frozenset({"sure", "expected_upload"})
_INSTANT_NAMES: Final = tuple(name for name in _SCALARS[:_INSTANTS] if name not in _KEPT_AHEAD)
_instants = attrgetter(*_INSTANT_NAMES)
_FIXED: Final = struct.Struct(f"<B{_INSTANTS}d{_NUMBERS}f{_COUNTS}B{_FLAGS}?{2 * HAZARDS + 3 * 24}f")

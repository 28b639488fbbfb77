"""A recorded life laid along the world's time, and what a command makes of it. Times are epoch seconds."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from evbatteryd.simulator.lives import Life, State

FIRST_MONDAY: Final = 1704067200
"""2024-01-01 00:00 UTC. Lives begin on a Monday; whole loops before and after it are the same."""
EMPTY: Final = 0.01
"""A fraction of the battery. A car that was kept from charging drives no further down than that."""
_SAME: Final = 1e-6
GRAIN: Final = 1e-9
"""What is driven is summed in whole grains: sums of floating point may fall by their last digit."""
_AROUND_S: Final = 300


class Run(NamedTuple):
    """A time of one state, as far as is known."""

    start: float
    end: float
    """``inf`` while nobody knows."""
    state: State
    before: State | None
    """The state it followed; None if a command began it."""
    soc_start: float
    goal: float
    """While charging: the fraction at which it will end."""
    rate: float
    """While charging: fractions per second, on average."""
    full_at: float | None
    """While charging: when it will end, if the recording knows."""


class Track:
    """One life, begun ``shift_s`` early, looped for ever."""

    __slots__ = ("_origin", "life")

    def __init__(self, life: Life, shift_s: int) -> None:
        self.life = life
        self._origin = FIRST_MONDAY - shift_s

    def _locate(self, t: float) -> tuple[int, float]:
        """The loop's number and the seconds within it."""
        loop, offset = divmod(t - self._origin, self.life.length)
        return int(loop), offset

    def run_at(self, t: float) -> Run:
        loop, offset = self._locate(t)
        stretch = self.life.stretch(offset)
        zero = self._origin + loop * self.life.length
        rate = 0.0
        if stretch.state is State.CHARGING:
            rate = (stretch.soc_end - stretch.soc_start) / (stretch.end - stretch.start)
        return Run(
            zero + stretch.start,
            zero + stretch.end,
            stretch.state,
            stretch.before,
            stretch.soc_start,
            stretch.soc_end,
            rate,
            zero + stretch.end,
        )

    def rate_at(self, t: float) -> float:
        """While charging: fractions per second around ``t``; less than on average near a full battery."""
        run = self.run_at(t)
        minute = run.start + (t - run.start) // 60 * 60
        since, until = max(run.start, minute - _AROUND_S), min(run.end, minute + _AROUND_S)
        soc_until = run.goal if until == run.end else self.soc_at(until)
        return (soc_until - self.soc_at(since)) / (until - since)

    def soc_at(self, t: float) -> float:
        """A fraction of the usable battery."""
        _, offset = self._locate(t)
        return self.life.soc[self.life.row(offset)]

    def driven_at(self, t: float) -> float:
        """Fractions of the battery ever driven. Never falls, whatever is charged between."""
        loop, offset = self._locate(t)
        row = self.life.row(offset)
        driven = round(self.life.driven[row] / GRAIN)
        if self.life.states[row] == State.DRIVING:
            begun = self.life.at[row]
            last = row + 1 == len(self.life.at)
            following = driven if last else round(self.life.driven[row + 1] / GRAIN)
            ended = self.life.length if last else self.life.at[row + 1]
            driven += int((following - driven) * (offset - begun) / (ended - begun))
        return (loop * round(self.life.driven_in_all / GRAIN) + driven) * GRAIN

    def next_row(self, t: float) -> float:
        """When the recording says something new after ``t``; the seam of the loop at the latest."""
        loop, offset = self._locate(t)
        row = bisect_right(self.life.at, offset)
        zero = self._origin + loop * self.life.length
        return zero + (self.life.at[row] if row < len(self.life.at) else self.life.length)


@dataclass(frozen=True, slots=True)
class Orders:
    """What commands have asked of a car. ``hold`` and ``force`` end when the cable is pulled out."""

    limit: float | None = None
    """The fraction to charge to; None: the owner's usual one."""
    hold: bool = False
    """Do not charge."""
    force: bool = False
    """Charge now, whatever the timer says."""


class Detour:
    """From a command on the battery goes its own way, until it is again where the recording has it.

    The car drives the same trips and is plugged in at the same times. It is worked out from its start
    onward, as far as anyone has asked, a recorded row or a minute of charging at a time.
    """

    def __init__(self, track: Track, start: float, soc: float, orders: Orders, *, was_charging: bool) -> None:
        self.start = start
        self.end = inf
        self.limit = orders.limit
        self._given = orders
        self._unplugged_at = inf
        """When the cable was pulled out for the first time, as far as is known."""
        self._track = track
        self._reached = start
        self._now = soc
        self._due = was_charging
        """Whether this time at the cable it has begun to charge, or had nothing to charge."""
        self._at = array("d")
        self._soc = array("d")
        self._runs: list[Run] = []
        self._run_starts = array("d")

    def covers(self, t: float) -> bool:
        """Whether the car is on this detour at ``t``."""
        while self._reached <= t and self.end == inf:
            self._step()
        return self.start <= t < self.end

    def run_at(self, t: float) -> Run:
        """Only where it covers ``t``."""
        place = bisect_right(self._run_starts, t) - 1
        end = self._run_starts[place + 1] if place + 1 < len(self._runs) else self.end
        return self._runs[place]._replace(end=end)

    def soc_at(self, t: float) -> float:
        """Only where it covers ``t``."""
        return self._soc[bisect_right(self._at, t) - 1]

    def orders_at(self, t: float) -> Orders:
        """What of the orders still holds. Only where it covers ``t``."""
        return self._given if t < self._unplugged_at else Orders(limit=self.limit)

    def cut(self, t: float) -> None:
        """Another command came at ``t``."""
        self.end = min(self.end, t)

    def _step(self) -> None:
        t = self._reached
        recorded, recorded_soc = self._track.run_at(t), self._track.soc_at(t)
        following = self._track.next_row(t)
        state, goal, rate = recorded.state, 0.0, 0.0
        if not state.plugged_in:
            self._unplugged_at = min(self._unplugged_at, t)
            self._due = False
        orders = self.orders_at(t)
        if state.plugged_in:
            life = self._track.life
            charging_there = state is State.CHARGING
            full_there = recorded_soc >= life.target - 0.005
            self._due = self._due or orders.force or charging_there or full_there
            goal = recorded.goal if charging_there else recorded_soc
            if orders.force:
                goal = max(goal, life.target)
            if orders.limit is not None:
                goal = orders.limit
            charges = self._due and not orders.hold and self._now < goal - _SAME
            state = State.CHARGING if charges else State.PLUGGED
            rate = recorded.rate if charging_there and recorded.rate > 0 else life.charge_rate
        if self._is_back(orders, recorded, recorded_soc, state):
            self.end = t
            return
        self._note(t, state, goal, rate)
        if state is State.CHARGING:
            following = min(following, t + 60.0)
            self._now = min(goal, self._now + rate * (following - t))
        elif state is State.DRIVING:
            driven = self._track.driven_at(following) - self._track.driven_at(t)
            self._now = max(EMPTY, self._now - driven)
        self._reached = following

    def _is_back(self, orders: Orders, recorded: Run, recorded_soc: float, state: State) -> bool:
        at_rest = orders.limit is None and not orders.hold and not orders.force
        return at_rest and state is recorded.state and abs(self._now - recorded_soc) <= _SAME

    def _note(self, t: float, state: State, goal: float, rate: float) -> None:
        if not self._at or self._soc[-1] != self._now:
            self._at.append(t)
            self._soc.append(self._now)
        before = self._runs[-1].state if self._runs else None
        if state is not before:
            self._runs.append(Run(t, inf, state, before, self._now, goal, rate, None))
            self._run_starts.append(t)

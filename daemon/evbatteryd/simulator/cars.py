"""A car: a battery as a function of time, and what the world can know of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, inf, pi
from typing import Final

from evbatteryd.simulator.clouds import DAY, Cloud
from evbatteryd.simulator.draws import between, mix
from evbatteryd.simulator.lives import Life, State
from evbatteryd.simulator.tracks import Detour, Orders, Run, Track

_CONSUMPTION, _FIRST_ODOMETER, _YEAR, _PLACE = range(4)
_AT_REST: Final = (State.PARKED, State.PLUGGED)
MAINS_VOLT: Final = 230
DC_VOLT: Final = 400
DC_ABOVE_KW: Final = 22.0
ONE_PHASE_UP_TO_KW: Final = 7.4
FORGET_DETOURS_AFTER_S: Final = 60 * DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole truth of a car at one instant (``at``: epoch seconds)."""

    at: float
    soc_percent: float
    state: State
    range_km: float
    odometer_km: float
    charge_limit_percent: float
    power_kw: float
    minutes_left: float
    """Until charging ends; 0 while it does not charge."""
    energy_added_kwh: float
    """Since charging began; 0 while it does not charge."""
    asleep: bool

    @property
    def phases(self) -> int:
        """Of the mains; 0 for direct current."""
        if self.power_kw > DC_ABOVE_KW:
            return 0
        return 1 if self.power_kw <= ONE_PHASE_UP_TO_KW else 3

    @property
    def voltage(self) -> int:
        return MAINS_VOLT if self.phases else DC_VOLT

    @property
    def amperage(self) -> float:
        return self.power_kw * 1000 / (self.voltage * (self.phases or 1))

    @property
    def fully_charged(self) -> bool:
        full = self.soc_percent >= min(self.charge_limit_percent, 100.0) - 0.5
        return self.state is State.PLUGGED and full


class Car:
    """One life behind one make's cloud. Small, for there may be 100,000: the rest follows from ``key``."""

    __slots__ = ("_detours", "cloud", "key", "track")

    def __init__(self, key: int, track: Track, cloud: Cloud) -> None:
        self.key = key
        self.track = track
        self.cloud = cloud
        self._detours: tuple[Detour, ...] = ()

    @property
    def life(self) -> Life:
        return self.track.life

    @property
    def capacity_kwh(self) -> float:
        return self.life.capacity_kwh

    @property
    def kwh_per_km(self) -> float:
        return between(self.key, _CONSUMPTION, 0.145, 0.205)

    @property
    def model(self) -> str:
        wanted, other = self.cloud.electric, self.cloud.hybrid
        if self.life.is_hybrid:
            wanted, other = other, wanted
        return wanted or other

    @property
    def powertrain(self) -> str:
        return "PHEV" if self.model == self.cloud.hybrid else "BEV"

    @property
    def year(self) -> int:
        return 2019 + mix(self.key, _YEAR) % 7

    def run_at(self, t: float) -> Run:
        """The run of one state around ``t``. It begins anew where a command or its end changed its course."""
        following = inf
        for detour in reversed(self._detours):
            if t < detour.start:
                following = detour.start
                continue
            if detour.covers(t):
                return _clipped(detour.run_at(t), -inf, following)
            return _clipped(self.track.run_at(t), detour.end, following)
        return _clipped(self.track.run_at(t), -inf, following)

    def soc_at(self, t: float) -> float:
        detour = self._detour_at(t)
        return detour.soc_at(t) if detour and detour.covers(t) else self.track.soc_at(t)

    def limit_at(self, t: float) -> float:
        """The fraction it charges to."""
        detour = self._detour_at(t)
        ordered = detour.limit if detour and detour.covers(t) else None
        return self.life.target if ordered is None else ordered

    def _detour_at(self, t: float) -> Detour | None:
        """The newest one begun by then, whether or not it has ended since."""
        return next((detour for detour in reversed(self._detours) if detour.start <= t), None)

    def order(self, t: float, *, charge: bool | None = None, limit: float | None = None) -> None:
        """A command at ``t``: start (True) or stop (False) charging, or a new limit as a fraction.

        ``t`` may lie ahead; a command before then takes its place.
        """
        run, soc, current = self.run_at(t), self.soc_at(t), self._detour_at(t)
        orders = current.orders_at(t) if current and current.covers(t) else Orders()
        if charge is not None:
            orders = replace(orders, force=charge, hold=not charge)
        if limit is not None:
            orders = replace(orders, limit=None if abs(limit - self.life.target) < 1e-9 else limit)
        if current is not None:
            current.cut(t)
        kept = (past for past in self._detours if past.start <= t and past.end > t - FORGET_DETOURS_AFTER_S)
        detour = Detour(self.track, t, soc, orders, was_charging=run.state is State.CHARGING)
        self._detours = (*kept, detour)

    def odometer_at(self, t: float) -> float:
        """Kilometres."""
        first = between(self.key, _FIRST_ODOMETER, 2_000.0, 60_000.0)
        return max(0.0, first + self.track.driven_at(t) * self.capacity_kwh / self.kwh_per_km)

    def range_at(self, t: float, soc: float) -> float:
        """Kilometres, fewer in winter."""
        season = cos(2 * pi * (t / DAY / 365.25))  # 1 at the turn of the year
        return soc * self.capacity_kwh / (self.kwh_per_km * (1.05 + 0.12 * season))

    def asleep_at(self, t: float) -> bool:
        run = self.run_at(t)
        return run.state in _AT_REST and t - run.start > self.cloud.sleep_after_s

    def deep_asleep_at(self, t: float) -> bool:
        """Neither driven nor charged for so long that no command reaches it any more."""
        after = self.cloud.deep_sleep_after_s
        if after is None:
            return False
        run = self.run_at(t)
        while run.state in _AT_REST and t - run.start <= after:
            run = self.run_at(run.start - 1)
        return run.state in _AT_REST

    def _charging_at(self, t: float, run: Run, soc: float) -> tuple[float, float]:
        """Fractions per second, and seconds until it ends."""
        if run.full_at is not None:
            return self.track.rate_at(t), run.full_at - t
        return run.rate, max(run.goal - soc, 0.0) / run.rate

    def snapshot(self, t: float) -> Snapshot:
        run, soc = self.run_at(t), self.soc_at(t)
        charging = run.state is State.CHARGING
        rate, seconds_left = self._charging_at(t, run, soc) if charging else (0.0, 0.0)
        return Snapshot(
            at=t,
            soc_percent=soc * 100,
            state=run.state,
            range_km=self.range_at(t, soc),
            odometer_km=self.odometer_at(t),
            charge_limit_percent=self.limit_at(t) * 100,
            power_kw=rate * 3600 * self.capacity_kwh,
            minutes_left=seconds_left / 60,
            energy_added_kwh=max(soc - run.soc_start, 0.0) * self.capacity_kwh if charging else 0.0,
            asleep=self.asleep_at(t),
        )


def _clipped(run: Run, start: float, end: float) -> Run:
    """``run`` within ``start`` and ``end``; a cut start is no event."""
    if run.start < start:
        return run._replace(start=start, before=run.state, end=min(run.end, end))
    return run._replace(end=end) if end < run.end else run

"""Tells when what was told of a car holds no more, at that instant, although nothing was heard of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from evbatteryd.domain.estimates import next_change
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import next_telling
from evbatteryd.domain.ports import Clock
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.timer import SLICE, Alarms


class FreshnessWatch:
    """An alarm per car; ``ring`` is called every second or so.

    It rings at the end of the car's freshness and, while that lasts long, now and then before it; at each
    point that its estimate rises, when it should have answered and hourly from then on, and when the estimate
    is withdrawn: at whichever comes first.
    ``flipped`` tells of the car anew, and has it followed again.
    """

    def __init__(self, fleet: Fleet, clock: Clock, flipped: Callable[[Car], None]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._flipped = flipped
        self._alarms = Alarms()

    def follow(self, car: Car) -> None:
        """The car is told as it is now: that holds until another instant."""
        now = self._clock.now()
        flips = self._fleet.fresh_until(car) if car.consented else None
        moves = next_change(car, now) if car.vehicle.withdrawn_at is None else None
        again = next_telling(self._fleet.profile(car), car.state, now)
        if flips is None or again is None or again >= flips:
            again = None
        ahead = [at for at in (flips, again, moves) if at is not None and at > now]
        self._alarms.arm(car.id, min(ahead, default=None))

    def ring(self) -> None:
        due = list(self._alarms.due(self._clock.now(), SLICE))
        for vehicle_id in due:
            self._flip(vehicle_id)
        if len(due) == SLICE:  # more may be due: after whatever else waits for the loop
            asyncio.get_running_loop().call_soon(self.ring)

    def _flip(self, vehicle_id: VehicleId) -> None:
        car = self._fleet.get(vehicle_id)
        if car is not None:
            self._flipped(car)

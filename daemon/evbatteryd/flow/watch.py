"""Tells when a value stops being fresh, at that instant, although nothing was heard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.ports import Clock
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.timer import SLICE, Alarms


class FreshnessWatch:
    """An alarm per car for the end of its freshness; ``ring`` is called every second or so."""

    def __init__(self, fleet: Fleet, clock: Clock, flipped: Callable[[Car], None]) -> None:
        self._fleet = fleet
        self._clock = clock
        self._flipped = flipped
        self._alarms = Alarms()

    def follow(self, car: Car) -> None:
        """The car changed: its value is fresh until another instant now."""
        until = self._fleet.fresh_until(car) if car.consented else None
        self._alarms.arm(car.id, until if until is not None and until > self._clock.now() else None)

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

"""What an operator does to a car."""

from __future__ import annotations

from collections.abc import Mapping

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import CannotChange, Log
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.roster import Roster


class CarSteward:
    """Implements :class:`evbatteryd.domain.ports.Steward`."""

    def __init__(self, cars: Cars, rosters: Mapping[str, Roster], log: Log) -> None:
        self._cars = cars
        self._rosters = rosters
        self._log = log

    async def rename(self, vehicle_id: VehicleId, *, name: str | None, slug: str | None) -> Car:
        before = self._cars.fleet[vehicle_id]
        after = await self._cars.rename(vehicle_id, name=name, slug=slug)
        if after.slug != before.slug:
            self._log.info("vehicle.renamed", vehicle=after.slug, before=before.slug)
        return after

    async def disconnect(self, vehicle_id: VehicleId, *, erase: bool) -> Car:
        car = self._cars.fleet[vehicle_id]
        application = car.vehicle.consent.application
        roster = self._rosters.get(application)
        if roster is not None:
            car = await roster.disconnect(car)
        elif car.vehicle.withdrawn_at is None:
            raise CannotChange(
                f"Its Smartcar application {application!r} is not configured, so the consent cannot be ended "
                "from here. Nothing was changed: configure it again, or have the owner end the consent at "
                "https://my.smartcar.com."
            )
        if erase:
            car = await self._cars.erase(vehicle_id)
            self._log.warning("vehicle.erased", vehicle=car.slug)
        return car

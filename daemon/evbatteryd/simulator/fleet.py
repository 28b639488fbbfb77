"""Vehicles, the users who own them, and what these consented to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clouds import Cloud
from evbatteryd.simulator.draws import key_of, mix, uuid_of
from evbatteryd.simulator.lives import Life
from evbatteryd.simulator.tracks import Track

PERMISSIONS: Final = ("control_charge", "read_battery", "read_charge", "read_odometer", "read_vehicle_info")
SHARED_EVERY: Final = 7
"""Every so many-th vehicle belongs to the user of the one before it."""
DAYS_APART: Final = 28
HOURS_APART: Final = 5

_LIFE, _SHIFT, _VEHICLE_ID, _USER_ID, _SUBSCRIPTION_ID, _FIRST_CONNECTION_ID = 9, 10, 100, 101, 102, 200


class Vehicle:
    """A car in a fleet: its ids and its owner's consent."""

    __slots__ = (
        "car",
        "consented_at",
        "consents",
        "id",
        "number",
        "permissions",
        "stands",
        "subscribed",
        "user_id",
    )

    def __init__(self, number: int, vehicle_id: str, user_id: str, car: Car) -> None:
        self.number = number
        self.id = vehicle_id
        self.user_id = user_id
        self.car = car
        self.subscribed = True
        """To the application's webhook: without it Smartcar's store holds nothing of the car.

        Changed by the fleet.
        """
        self.consents = 1
        """How often its owner has consented."""
        self.consented_at: float | None = None
        """Epoch seconds of the newest consent; None: before the world began."""
        self.permissions: tuple[str, ...] = PERMISSIONS
        """Those of the newest consent. Shared by all vehicles with the same."""
        self.stands = True
        """Whether the newest consent stands. Changed by the fleet."""

    @property
    def reports(self) -> bool:
        """Whether the application's webhook hears of it."""
        return self.stands and self.subscribed

    @property
    def connection_id(self) -> str | None:
        """None while there is no consent. A new consent has a new id."""
        return uuid_of(self.car.key, _FIRST_CONNECTION_ID + self.consents) if self.stands else None

    @property
    def subscription_id(self) -> str:
        return uuid_of(self.car.key, _SUBSCRIPTION_ID)


class Fleet:
    """All vehicles of the application, in the order they came."""

    def __init__(
        self, clouds: Sequence[Cloud], lives: Sequence[Life], seed: int, *, auto_subscribe: bool = True
    ) -> None:
        self._clouds = clouds
        self._lives = lives
        self._key = key_of("fleet", seed)
        self._auto_subscribe = auto_subscribe
        """Whether a consent alone subscribes a vehicle to the application's webhook."""
        self._vehicles: list[Vehicle] = []
        self._by_id: dict[str, Vehicle] = {}
        self._connected: list[Vehicle] | None = None
        """Those whose consent stands; None when that may have changed."""
        self._watchers: list[Callable[[Vehicle], None]] = []

    def __len__(self) -> int:
        return len(self._vehicles)

    def __iter__(self) -> Iterator[Vehicle]:
        return iter(self._vehicles)

    def get(self, vehicle_id: str) -> Vehicle | None:
        return self._by_id.get(vehicle_id)

    def add(self, cloud: Cloud | None = None, at: float | None = None) -> Vehicle:
        """The next vehicle; of the next make if none is given. ``at``: see ``Vehicle.consented_at``."""
        number = len(self._vehicles)
        key = mix(self._key, number)
        cloud = cloud or self._clouds[number % len(self._clouds)]
        shares = number % SHARED_EVERY == SHARED_EVERY - 1
        user_id = self._vehicles[-1].user_id if shares else uuid_of(key, _USER_ID)
        vehicle = self._enter(self._car(key, number, cloud), user_id)
        vehicle.consented_at = at
        self._changed(vehicle)
        return vehicle

    def car_of(self, key: int, cloud: Cloud) -> Car:
        """A car that is not, or not yet, one of the fleet's; always the same for a key and a make."""
        return self._car(key, mix(key, _LIFE), cloud)

    def connect(self, car: Car, user_id: str, permissions: tuple[str, ...], at: float) -> Vehicle:
        """The owner of ``car`` has just consented, be it for the first time or anew."""
        vehicle = self.get(_vehicle_id(car))
        if vehicle is None:
            vehicle = self._enter(car, user_id)
            vehicle.consented_at = at
        else:
            self._renew(vehicle, at)
        vehicle.permissions = permissions
        self._changed(vehicle)
        return vehicle

    def withdraw(self, vehicle: Vehicle) -> None:
        """Its owner no longer consents."""
        vehicle.stands = False
        self._connected = None
        self._changed(vehicle)

    def consent(self, vehicle: Vehicle, at: float) -> None:
        """Anew, unless the consent stands: then nothing changes."""
        if not vehicle.stands:
            self._renew(vehicle, at)
            self._changed(vehicle)

    def _car(self, key: int, turn: int, cloud: Cloud) -> Car:
        shift = mix(key, _SHIFT)
        days, hours = shift % DAYS_APART, shift // DAYS_APART % HOURS_APART
        return Car(key, Track(self._life_for(turn, cloud), days * 86400 + hours * 3600), cloud)

    def _enter(self, car: Car, user_id: str) -> Vehicle:
        vehicle = Vehicle(len(self._vehicles), _vehicle_id(car), user_id, car)
        vehicle.subscribed = self._auto_subscribe
        self._vehicles.append(vehicle)
        self._by_id[vehicle.id] = vehicle
        self._connected = None
        return vehicle

    def _renew(self, vehicle: Vehicle, at: float) -> None:
        """The vehicle keeps its id, the connection gets another one. A subscription ends with its consent."""
        vehicle.subscribed = self._auto_subscribe or (vehicle.stands and vehicle.subscribed)
        vehicle.stands = True
        vehicle.consents += 1
        vehicle.consented_at = at
        self._connected = None

    def subscribe(self, vehicle: Vehicle) -> None:
        """To the application's webhook."""
        vehicle.subscribed = True
        self._changed(vehicle)

    def unsubscribe(self, vehicle: Vehicle) -> None:
        vehicle.subscribed = False
        self._changed(vehicle)

    def order(
        self, vehicle: Vehicle, now: float, *, charge: bool | None = None, limit: float | None = None
    ) -> None:
        """A command to its car, as ``Car.order`` takes it."""
        vehicle.car.order(now, charge=charge, limit=limit)
        self._changed(vehicle)

    @contextmanager
    def watched(self, changed: Callable[[Vehicle], None]) -> Iterator[None]:
        """Meanwhile ``changed`` is told of each vehicle that came, or was changed by the fleet."""
        self._watchers.append(changed)
        try:
            yield
        finally:
            self._watchers.remove(changed)

    def _changed(self, vehicle: Vehicle) -> None:
        for changed in self._watchers:
            changed(vehicle)

    def _life_for(self, turn: int, cloud: Cloud) -> Life:
        """The lives in turn, passing over those of a size that the make does not sell."""
        in_turn = (self._lives[(turn + step) % len(self._lives)] for step in range(len(self._lives)))
        fitting = (life for life in in_turn if (cloud.hybrid if life.is_hybrid else cloud.electric))
        return next(fitting, self._lives[turn % len(self._lives)])

    def connected(self, *, vehicle_id: str | None = None, user_id: str | None = None) -> Sequence[Vehicle]:
        """Those whose consent stands, the newest consent last."""
        if self._connected is None:
            self._connected = sorted(
                (vehicle for vehicle in self._vehicles if vehicle.stands),
                key=lambda vehicle: vehicle.consented_at or 0.0,
            )
        found: Sequence[Vehicle] = self._connected
        if vehicle_id is not None:
            vehicle = self.get(vehicle_id)
            found = [vehicle] if vehicle is not None and vehicle.stands else []
        if user_id is not None:
            found = [vehicle for vehicle in found if vehicle.user_id == user_id]
        return found


def _vehicle_id(car: Car) -> str:
    return uuid_of(car.key, _VEHICLE_ID)

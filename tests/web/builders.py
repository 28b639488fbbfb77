"""Cars and fleets to look at."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from evbatteryd.domain.fleet import Car, Fleet, Schedule, Trouble
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState, Measurement, Signal, Value
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from tests.fakes import START

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

PROFILE = BrandProfile(
    brand="example",
    name="Example",
    makes=("EXAMPLE",),
    reports=10 * MINUTE,
    silence=timedelta(days=4),
    driving=15 * MINUTE,
    charging=20 * MINUTE,
    parked=2 * HOUR,
    idle=6 * HOUR,
    floor=5 * MINUTE,
    latency=timedelta(seconds=8),
)


def state(
    values: Mapping[Signal, Value], *, measured_at: datetime | None = START, fetched_at: datetime = START
) -> BatteryState:
    return BatteryState(
        {signal: Measurement(signal, value, measured_at, fetched_at) for signal, value in values.items()}
    )


def car(
    number: int = 1,
    *,
    slug: str | None = None,
    name: str | None = None,
    make: str = "EXAMPLE",
    model: str | None = "One",
    values: Mapping[Signal, Value] | None = None,
    measured_at: datetime | None = START,
    fetched_at: datetime = START,
    activity: Activity = Activity.PARKED,
    due: datetime | None = START + HOUR,
    reason: str = "parked; Example every 2 h",
    trouble: Trouble | None = None,
    withdrawn_at: datetime | None = None,
) -> Car:
    consent = Consent(
        application="home",
        connection_id=f"connection-{number}",
        vehicle_ref=f"vehicle-{number}",
        user_ref=f"user-{number}",
        make=make,
        model=model,
        year=2024,
    )
    vehicle = Vehicle(
        id=VehicleId(number),
        slug=slug or f"car_{number}",
        name=f"Car {number}" if name is None else name,
        brand="example",
        consent=consent,
        enrolled_at=START,
        withdrawn_at=withdrawn_at,
    )
    return Car(
        vehicle=vehicle,
        schedule=Schedule(due=due, reason=reason, outcome="new", activity=activity),
        state=state(
            {Signal.SOC: 57.0} if values is None else values, measured_at=measured_at, fetched_at=fetched_at
        ),
        trouble=trouble,
        reading_id=f"reading-{number}",
    )


def fleet(*cars: Car) -> Fleet:
    built = Fleet({"example": PROFILE})
    for one in cars:
        built.put(one)
    return built

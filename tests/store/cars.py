"""Consents, schedules, states and answers for the tests of the store."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from evbatteryd.domain.fleet import Car, Schedule
from evbatteryd.domain.ledger import Bucket
from evbatteryd.domain.ports import Polled, Reservation, Store
from evbatteryd.domain.reading import (
    BatteryState,
    ChargeState,
    Measurement,
    Origin,
    Reading,
    Rejected,
    Signal,
)
from evbatteryd.domain.vehicle import Consent, VehicleId

START = datetime(2026, 11, 1, 8, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DUE = Schedule(due=START + 15 * MINUTE, reason="newly enrolled: first reading", gain=7.25)


def consent(number: int = 1) -> Consent:
    return Consent(
        application="home",
        connection_id=f"connection-{number}",
        vehicle_ref=f"vehicle-{number}",
        user_ref=f"user-{number}",
        make="RENAULT",
        model="Zoe",
        year=2021,
        powertrain="BEV",
        permissions=frozenset({"read_battery", "read_charge"}),
    )


async def enrolled(store: Store, number: int = 1, *, slug: str | None = None) -> Car:
    return await store.enrol(
        consent(number),
        slug=slug or f"zoe_{number}",
        name=f"Zoe {number}",
        brand="renault",
        schedule=DUE,
        at=START,
    )


def renamed(car: Car, slug: str) -> Car:
    former = (*car.vehicle.former_slugs, car.slug)
    return replace(car, vehicle=replace(car.vehicle, slug=slug, former_slugs=former))


def state(soc: float, measured: datetime | None, fetched: datetime) -> BatteryState:
    """As a poll brings it: all signals of one time, but for an odometer that is older."""
    values = {
        Signal.SOC: soc,
        Signal.RANGE: soc * 3,
        Signal.CHARGE_STATE: ChargeState.NOT_CHARGING,
        Signal.PLUGGED_IN: True,
    }
    signals = {signal: Measurement(signal, value, measured, fetched) for signal, value in values.items()}
    odometer = Measurement(Signal.ODOMETER, 1234.5, START - 90 * MINUTE, fetched, Origin.WEBHOOK)
    return BatteryState({**signals, Signal.ODOMETER: odometer})


def answer(
    car: Car,
    minutes: float,
    *,
    soc: float = 60.0,
    news: bool = True,
    measured: datetime | None = None,
    rejected: tuple[Rejected, ...] = (),
    excerpt: str | None = None,
    event_id: str | None = None,
) -> Polled:
    """What a poll brings ``minutes`` after the start: measured then unless told, fetched a minute later."""
    then = START + minutes * MINUTE
    fetched = then + MINUTE
    after = replace(
        car,
        state=state(soc, measured or then, fetched),
        schedule=replace(car.schedule, due=fetched + 15 * MINUTE, answered_at=fetched, outcome="new"),
    )
    return Polled(car=after, news=news, at=fetched, rejected=rejected, excerpt=excerpt, event_id=event_id)


async def recorded(store: Store, car: Car, minutes: float, *, soc: float = 60.0) -> Reading:
    _, reading = await store.record(answer(car, minutes, soc=soc))
    assert reading is not None
    return reading


def request(
    vehicle_id: VehicleId | None,
    *,
    application: str = "home",
    window: datetime = START,
    level: float = 119.0,
    due: datetime | None = None,
    at: datetime = START + 5 * MINUTE,
) -> Reservation:
    return Reservation(
        application=application,
        vehicle_id=vehicle_id,
        window_start=window,
        bucket=Bucket(level, START),
        at=at,
        due=due,
    )


async def all_readings(store: Store) -> list[Reading]:
    """The whole journal: what a sink is owed that nobody has heard of."""
    return await store.readings([position for position, _ in await store.owed("nobody", 0, 1_000_000)])

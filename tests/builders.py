"""Short ways to make what the domain is made of. Times default to a noon; every argument may be given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from evbatteryd.domain.fleet import Car, Fleet, Schedule, Trouble
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Reading, Signal, Value
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
UPLOAD = timedelta(seconds=30)
"""How long after it was measured a value is fetched, if a test does not say."""


def profile(brand: str = "acme", **figures: object) -> BrandProfile:
    """A brand that reports every 10 minutes; ``figures`` are fields of its profile."""
    usual: dict[str, object] = {
        "name": brand.title(),
        "makes": (brand.upper(),),
        "reports": timedelta(minutes=10),
        "silence": timedelta(days=3),
        "driving": timedelta(minutes=15),
        "charging": timedelta(minutes=15),
        "parked": timedelta(hours=1),
        "idle": timedelta(hours=6),
        "floor": timedelta(minutes=5),
        "latency": timedelta(seconds=8),
    }
    return BrandProfile(brand=brand, **(usual | figures))  # type: ignore[arg-type]


def measurement(
    signal: Signal | str,
    value: Value,
    *,
    measured_at: datetime | None = NOON,
    fetched_at: datetime | None = None,
    origin: Origin = Origin.POLL,
) -> Measurement:
    fetched = fetched_at or (measured_at or NOON) + UPLOAD
    signal = Signal(signal)
    if signal is Signal.CHARGE_STATE and isinstance(value, str):
        value = ChargeState(value)
    return Measurement(signal, value, measured_at, fetched, origin)


def state(
    *,
    measured_at: datetime | None = NOON,
    fetched_at: datetime | None = None,
    origin: Origin = Origin.POLL,
    **values: Value,
) -> BatteryState:
    """``state(soc=55, charging=True)``: all measured and fetched together."""
    found = [
        measurement(name, value, measured_at=measured_at, fetched_at=fetched_at, origin=origin)
        for name, value in values.items()
    ]
    return BatteryState({one.signal: one for one in found})


def vehicle(
    number: int = 1,
    *,
    slug: str | None = None,
    brand: str = "acme",
    application: str = "home",
    withdrawn_at: datetime | None = None,
) -> Vehicle:
    consent = Consent(
        application=application,
        connection_id=f"connection-{number}",
        vehicle_ref=f"vehicle-{number}",
        user_ref=f"user-{number}",
        make=brand.upper(),
    )
    slug = slug or f"car_{number}"
    return Vehicle(
        id=VehicleId(number),
        slug=slug,
        name=slug.replace("_", " ").title(),
        brand=brand,
        consent=consent,
        enrolled_at=NOON - timedelta(days=30),
        withdrawn_at=withdrawn_at,
    )


def car(
    number: int = 1,
    *,
    state: BatteryState | None = None,
    reading_id: str | None = None,
    slug: str | None = None,
    brand: str = "acme",
    application: str = "home",
    withdrawn_at: datetime | None = None,
    trouble: Trouble | None = None,
    activity: Activity = Activity.PARKED,
    due: datetime | None = None,
) -> Car:
    """A car; without a state, one that was never heard of."""
    return Car(
        vehicle=vehicle(number, slug=slug, brand=brand, application=application, withdrawn_at=withdrawn_at),
        schedule=Schedule(due=due, reason="", activity=activity),
        state=state or BatteryState(),
        trouble=trouble,
        reading_id=reading_id,
    )


def reading(
    seq: int = 1,
    *,
    number: int = 1,
    state: BatteryState,
    reading_id: str | None = None,
    fetched_at: datetime | None = None,
    origin: Origin = Origin.POLL,
) -> Reading:
    """The ``seq``-th reading of the journal, of car ``number``."""
    return Reading(
        seq=seq,
        reading_id=reading_id or f"r{seq}",
        vehicle_id=VehicleId(number),
        state=state,
        fetched_at=fetched_at or max((one.fetched_at for one in state), default=NOON),
        origin=origin,
    )


def fleet(*cars: Car, profiles: dict[str, BrandProfile] | None = None) -> Fleet:
    made = Fleet(profiles or {"acme": profile()})
    for one in cars:
        made.put(one)
    return made

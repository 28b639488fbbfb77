"""Signals of Smartcar's API v3: what a make's store says of a car, as JSON:API resources.

Bodies and units are those of recorded answers (github.com/wbyoung/smartcar, ``tests/fixtures``;
github.com/trooperthorn/ha_int_smartcar, ``tests/fixtures/api``); where these and Smartcar's documents
differ, the recordings are followed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import floor
from typing import Any, Final

from evbatteryd.simulator import clouds
from evbatteryd.simulator.cars import Car, Snapshot
from evbatteryd.simulator.clouds import Cloud
from evbatteryd.simulator.errors import ERRORS, signal_error
from evbatteryd.simulator.lives import State
from evbatteryd.simulator.uploads import Upload, newest_upload

Json = dict[str, Any]

SOC: Final = "tractionbattery-stateofcharge"
CHARGING: Final = "charge-ischarging"
STATUS: Final = "charge-detailedchargingstatus"

_IDLE_SIGNALS: Final = frozenset(
    {clouds.WATTAGE, clouds.AMPERAGE, clouds.VOLTAGE, clouds.RATE, clouds.ENERGY, clouds.TIME_LEFT}
)
_INGESTED_AFTER_MS: Final = 700
"""Between Smartcar's fetching and its store: a recording shows up to two minutes, mostly it is less."""


def shown_soc(cloud: Cloud, soc_percent: float) -> float:
    """Percent, in the make's steps."""
    steps = soc_percent / cloud.soc_step_percent
    shown = (floor(steps + 1e-6) if cloud.soc_floor else floor(steps + 0.5)) * cloud.soc_step_percent
    return int(shown) if shown == int(shown) else shown


def _charging_status(truth: Snapshot) -> str:
    if truth.state is State.CHARGING:
        return "CHARGING"
    return "FULLY_CHARGED" if truth.fully_charged else "NOT_CHARGING"


def _limits(cloud: Cloud, truth: Snapshot) -> Json:
    limit = round(truth.charge_limit_percent)
    values: list[Json] = []
    for kind in cloud.limit_types:
        match kind:
            case "CHARGING_TYPE":
                values.append({"type": kind, "limit": limit, "condition": {"chargingType": "AC"}})
                values.append({"type": kind, "limit": 80, "condition": {"chargingType": "DC"}})
            case "LOCATION":
                values.append({"type": kind, "limit": limit, "condition": {"name": "Home"}})
            case _:
                values.append({"type": kind, "limit": limit})
    known = "GLOBAL" in cloud.limit_types or truth.state.plugged_in
    return {"values": values, "activeLimit": limit if known else None, "unit": "percent"}


def _range(truth: Snapshot) -> Json:
    return {"value": round(truth.range_km), "type": "DEFAULT", "additionalValues": [], "unit": "km"}


def _capacity(car: Car) -> Json:
    return {
        "capacity": car.capacity_kwh,
        "source": "SMARTCAR",
        "availableCapacities": [],
        "unit": "kWh",
    }


_BODIES: Final[Mapping[str, Callable[[Car, Snapshot], Json]]] = {
    clouds.AMPERAGE: lambda _, truth: {"value": round(truth.amperage, 1), "unit": "ampere"},
    clouds.LIMITS: lambda car, truth: _limits(car.cloud, truth),
    clouds.RATE: lambda car, truth: {"value": round(truth.power_kw / car.kwh_per_km), "unit": "km/h"},
    clouds.TIMERS: lambda _, truth: {"values": []},
    STATUS: lambda _, truth: {"value": _charging_status(truth)},
    clouds.ENERGY: lambda _, truth: {"value": round(truth.energy_added_kwh, 2), "unit": "kWh"},
    CHARGING: lambda _, truth: {"value": truth.state is State.CHARGING},
    clouds.CABLE: lambda _, truth: {"value": truth.state.plugged_in},
    clouds.LATCH: lambda _, truth: {"value": truth.state.plugged_in},
    clouds.FAST: lambda _, truth: {"value": truth.state is State.CHARGING and not truth.phases},
    clouds.TIME_LEFT: lambda _, truth: {"value": round(truth.minutes_left)},
    clouds.VOLTAGE: lambda _, truth: {"value": truth.voltage if truth.power_kw else 0, "unit": "volts"},
    clouds.WATTAGE: lambda _, truth: {"value": round(truth.power_kw * 1000), "unit": "watts"},
    clouds.ASLEEP: lambda _, truth: {"value": truth.asleep},
    clouds.ONLINE: lambda _, truth: {"value": not truth.asleep},
    clouds.AUX_BATTERY: lambda car, _: {"value": 70 + car.key % 25, "unit": "percent"},
    clouds.ODOMETER: lambda _, truth: {"value": round(truth.odometer_km, 1), "unit": "km"},
    clouds.CAPACITY: lambda car, _: _capacity(car),
    clouds.RANGE: lambda _, truth: _range(truth),
    SOC: lambda car, truth: {"value": shown_soc(car.cloud, truth.soc_percent), "unit": "percent"},
}
_NAMES: Final = {
    clouds.AMPERAGE: "Amperage",
    clouds.LIMITS: "ChargeLimits",
    clouds.RATE: "ChargeRate",
    clouds.TIMERS: "ChargeTimers",
    STATUS: "DetailedChargingStatus",
    clouds.ENERGY: "EnergyAdded",
    CHARGING: "IsCharging",
    clouds.CABLE: "IsChargingCableConnected",
    clouds.LATCH: "IsChargingCableLatched",
    clouds.FAST: "IsFastChargerPresent",
    clouds.TIME_LEFT: "TimeToComplete",
    clouds.VOLTAGE: "Voltage",
    clouds.WATTAGE: "Wattage",
    clouds.ASLEEP: "IsAsleep",
    clouds.ONLINE: "IsOnline",
    clouds.AUX_BATTERY: "StateOfCharge",
    clouds.ODOMETER: "TraveledDistance",
    clouds.CAPACITY: "NominalCapacity",
    clouds.RANGE: "Range",
    SOC: "StateOfCharge",
}
_GROUPS: Final = {
    "charge": "Charge",
    "connectivitystatus": "ConnectivityStatus",
    "lowvoltagebattery": "LowVoltageBattery",
    "odometer": "Odometer",
    "tractionbattery": "TractionBattery",
}
_STATIC: Final = frozenset({clouds.CAPACITY})
CODES: Final = tuple(sorted(_BODIES))


def named(code: str) -> Json:
    """A signal's name, code and group; for one that is not served, what its code suggests."""
    group, _, name = code.partition("-")
    return {
        "name": _NAMES.get(code, name.title()),
        "code": code,
        "group": _GROUPS.get(group, group.title()),
    }


def signals_of(car: Car, now: float, base: str) -> list[Json]:
    """All signals of the store at ``now`` (epoch seconds), by code; empty if nothing ever arrived.

    ``base`` is the address of the vehicle, for the links.
    """
    upload = newest_upload(car, now)
    if upload is None:
        return []
    former = newest_upload(car, now, before=upload.measured_at) if car.cloud.trailing else None
    current = (upload, car.snapshot(upload.measured_at))
    trailing = (former, car.snapshot(former.measured_at)) if former else current
    return [
        _resource(car, code, *(trailing if code in car.cloud.trailing else current), base)
        for code in CODES
        if code not in car.cloud.without
    ]


def _resource(car: Car, code: str, upload: Upload, truth: Snapshot, base: str) -> Json:
    cloud = car.cloud
    attributes: Json = {"code": code, "name": _NAMES[code], "group": _GROUPS[code.partition("-")[0]]}
    retrieved_ms = round(upload.available_at * 1000)
    meta: Json = {
        "ingestedAt": retrieved_ms + _INGESTED_AFTER_MS,
        "retrievedAt": retrieved_ms,
        "oemUpdatedAt": round(upload.measured_at * 1000),
    }
    silent = cloud.idle if code in _IDLE_SIGNALS and truth.state is not State.CHARGING else "zero"
    if code in cloud.incapable:
        attributes["status"] = signal_error(ERRORS["COMPATIBILITY:VEHICLE_NOT_CAPABLE"])
        del meta["retrievedAt"], meta["oemUpdatedAt"]
    elif silent == "error":
        attributes["status"] = signal_error(ERRORS["VEHICLE_STATE:NOT_CHARGING"])
    elif silent == "unavailable":
        attributes["status"] = {"value": "UNAVAILABLE"}
    else:
        attributes["status"] = {"value": "SUCCESS"}
        attributes["body"] = _BODIES[code](car, truth)
        if code in _STATIC and cloud.static_time_zero:
            meta["oemUpdatedAt"] = 0
    return {
        "id": code,
        "type": "signal",
        "attributes": attributes,
        "meta": meta,
        "links": {"self": f"{base}/signals/{code}", "values": f"{base}/signals", "vehicle": base},
    }

"""A real Home Assistant shows what we tell it, and nothing for longer than it holds.

One Home Assistant and one broker serve all tests of this file; each has a base topic and a car of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any, Final

import aiomqtt
import pytest
import pytest_asyncio

from evbatteryd.domain.commanding import CommandKind
from evbatteryd.sinks.discovery import Device, discovery_json, discovery_topic
from tests.foreign.homeassistant import UNAVAILABLE, UNKNOWN, Entity, HomeAssistant
from tests.mosquitto import LOOPBACK, Mosquitto, Witness

pytestmark = [pytest.mark.foreign, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PREFIX: Final = "homeassistant"
STATE: Final[dict[str, Any]] = {
    "vehicle": "car",
    "soc": 55,
    "range_km": 240.5,
    "capacity_kwh": 60,
    "charge_state": "charging",
    "charging": True,
    "plugged_in": True,
    "charge_limit": 80,
    "charge_power_kw": 7.4,
    "time_to_full_s": 5400,
    "odometer_km": 12345.6,
    "measured_at": "2026-11-22T12:00:03.000Z",
    "fetched_at": "2026-11-22T12:05:00.000Z",
    "soc_estimate": 57.5,
    "soc_estimate_low": 56,
    "soc_estimate_high": 59,
    "estimate_until": "2026-11-22T13:00:00.000Z",
    "published_at": "2026-11-22T12:05:00.100Z",
    "source": "poll",
    "freshness": "fresh",
    "replayed": False,
    "reading_id": "r1",
    "schema": 1,
    "times": {},
}
POLLING: Final[dict[str, Any]] = {
    "measured_at": "2026-11-22T12:00:03.000Z",
    "fetched_at": "2026-11-22T12:05:00.000Z",
    "next_poll": "2026-11-22T12:20:00.000Z",
    "reason": "it charges",
    "outcome": "reading",
    "problem": None,
    "calls_left": 420,
    "calls": 500,
    "renews_at": "2026-12-01T00:00:00.000Z",
    "commands": ["charge_limit", "charging", "poll"],
    "published_at": "2026-11-22T12:05:00.100Z",
}
PROBLEM: Final = {
    "outcome": "asleep",
    "code": "VEHICLE_STATE:ASLEEP",
    "detail": "it sleeps",
    "since": "2026-11-22T12:00:00.000Z",
}

SHOWN: Final = {
    "sensor.{}_soc": "55",
    "sensor.{}_range": "240.5",
    "sensor.{}_capacity": "60",
    "binary_sensor.{}_charging": "on",
    "binary_sensor.{}_plugged_in": "on",
    "sensor.{}_charge_state": "charging",
    "sensor.{}_charge_power": "7.4",
    "sensor.{}_charge_limit": "80",
    "sensor.{}_time_to_full": "90.0",
    "sensor.{}_odometer": "12345.6",
    "sensor.{}_measured_at": "2026-11-22T12:00:03+00:00",
    "sensor.{}_fetched_at": "2026-11-22T12:05:00+00:00",
    "sensor.{}_freshness": "fresh",
    "binary_sensor.{}_problem": "off",
    "sensor.{}_next_poll": "2026-11-22T12:20:00+00:00",
    "switch.{}_charging": "on",
    "number.{}_charge_limit": "80",
}
"""What a car with STATE and POLLING looks like to whoever has changed nothing."""
ON_WISH: Final = {
    "sensor.{}_calls_left": "420",
    "sensor.{}_soc_estimate": "57.5",
    "sensor.{}_soc_estimate_low": "56",
    "sensor.{}_soc_estimate_high": "59",
    "button.{}_refresh": UNKNOWN,
}
"""What it shows beside to whoever enables it. The state of a button is when it was pressed."""
UNCOMMANDED: Final = {
    pattern: state for pattern, state in SHOWN.items() if not pattern.startswith(("switch.", "number."))
}
"""What a car shows that can be commanded nothing."""
AGEING: Final = {
    "sensor.{}_soc",
    "sensor.{}_range",
    "binary_sensor.{}_charging",
    "binary_sensor.{}_plugged_in",
    "sensor.{}_charge_state",
    "sensor.{}_charge_power",
    "sensor.{}_charge_limit",
    "sensor.{}_time_to_full",
    "switch.{}_charging",
    "number.{}_charge_limit",
}
LASTING: Final = {"sensor.{}_capacity", "sensor.{}_odometer"}
LOOKS: Final[dict[str, dict[str, Any]]] = {
    "sensor.{}_soc": {"device_class": "battery", "unit_of_measurement": "%", "state_class": "measurement"},
    "sensor.{}_range": {
        "device_class": "distance",
        "unit_of_measurement": "km",
        "state_class": "measurement",
    },
    "sensor.{}_capacity": {
        "device_class": "energy_storage",
        "unit_of_measurement": "kWh",
        "state_class": "measurement",
    },
    "binary_sensor.{}_charging": {"device_class": "battery_charging"},
    "binary_sensor.{}_plugged_in": {"device_class": "plug"},
    "sensor.{}_charge_state": {
        "device_class": "enum",
        "options": ["charging", "not_charging", "fully_charged"],
        "unit_of_measurement": None,
        "state_class": None,
    },
    "sensor.{}_charge_power": {
        "device_class": "power",
        "unit_of_measurement": "kW",
        "state_class": "measurement",
    },
    "sensor.{}_charge_limit": {"device_class": None, "unit_of_measurement": "%", "state_class": None},
    "sensor.{}_time_to_full": {
        "device_class": "duration",
        "unit_of_measurement": "min",
        "state_class": "measurement",
    },
    "sensor.{}_odometer": {
        "device_class": "distance",
        "unit_of_measurement": "km",
        "state_class": "total_increasing",
    },
    "sensor.{}_measured_at": {"device_class": "timestamp", "state_class": None},
    "sensor.{}_fetched_at": {"device_class": "timestamp", "state_class": None},
    "sensor.{}_freshness": {"device_class": "enum", "options": ["fresh", "stale", "offline"]},
    "binary_sensor.{}_problem": {"device_class": "problem"},
    "sensor.{}_next_poll": {"device_class": "timestamp", "reason": "it charges"},
    "number.{}_charge_limit": {"min": 50, "max": 100, "step": 1, "unit_of_measurement": "%"},
}
CATEGORIES: Final = {
    "sensor.{}_capacity": "diagnostic",
    "sensor.{}_measured_at": "diagnostic",
    "sensor.{}_fetched_at": "diagnostic",
    "sensor.{}_freshness": "diagnostic",
    "binary_sensor.{}_problem": "diagnostic",
    "sensor.{}_next_poll": "diagnostic",
    "sensor.{}_calls_left": "diagnostic",
    "button.{}_refresh": "diagnostic",
    "number.{}_charge_limit": "config",
}


@dataclass
class Car:
    """Tells a broker of one car as we do, below a base topic of its own."""

    client: aiomqtt.Client
    slug: str
    device: Device
    base: str
    json_state: bool = True

    async def discovered(self, **changes: Any) -> None:
        self.device = replace(self.device, **changes)
        payload = discovery_json(self.device, base=self.base, version="1.2.3", json_state=self.json_state)
        await self._retain(discovery_topic(PREFIX, self.base, self.slug), payload)

    async def forgotten(self) -> None:
        await self._retain(discovery_topic(PREFIX, self.base, self.slug), b"")

    async def bridge(self, word: str) -> None:
        await self._retain(f"{self.base}/bridge/state", word)

    async def availability(self, word: str) -> None:
        await self._retain(f"{self.base}/{self.slug}/availability", word)

    async def state(self, *, retain: bool = True, **changes: Any) -> None:
        topic, payload = f"{self.base}/{self.slug}/state", json.dumps(STATE | changes)
        await self.client.publish(topic, payload, qos=1, retain=retain)

    async def polling(self, **changes: Any) -> None:
        await self._retain(f"{self.base}/{self.slug}/polling", json.dumps(POLLING | changes))

    async def scalar(self, field: str, value: object) -> None:
        await self._retain(f"{self.base}/{self.slug}/{field}", "" if value is None else str(value))

    async def emptied(self, leaf: str) -> None:
        await self._retain(f"{self.base}/{self.slug}/{leaf}", b"")

    async def told(self) -> None:
        """Everything there is to tell."""
        await self.bridge("online")
        await self.availability("fresh")
        await self.state()
        await self.polling()

    async def _retain(self, topic: str, payload: str | bytes) -> None:
        await self.client.publish(topic, payload, qos=1, retain=True)

    def named(self, pattern: str) -> str:
        """The entity that a pattern means of this car."""
        return pattern.format(self.slug)

    def all_of(self, expected: dict[str, str]) -> dict[str, str]:
        return {self.named(pattern): state for pattern, state in expected.items()}

    def mine(self, states: dict[str, Any]) -> dict[str, Any]:
        """Those of this car."""
        return {entity: state for entity, state in states.items() if f".{self.slug}_" in entity}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(broker: Mosquitto, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HomeAssistant]:
    async with HomeAssistant(tmp_path_factory.mktemp("homeassistant"), broker.port) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def ha(shared: HomeAssistant) -> AsyncIterator[HomeAssistant]:
    """It may complain of nothing that a test tells it."""
    earlier = len(shared.complaints())
    yield shared
    assert shared.complaints()[earlier:] == []


@pytest_asyncio.fixture(loop_scope="module")
async def car(broker: Mosquitto, request: pytest.FixtureRequest) -> AsyncIterator[Car]:
    slug = re.sub("[^a-z0-9]+", "_", request.node.name).strip("_").removeprefix("test_")
    async with aiomqtt.Client(LOOPBACK, broker.port) as client:
        yield car_called(slug, client)


def car_called(slug: str, client: aiomqtt.Client) -> Car:
    device = Device(
        slug=slug,
        name="Blue car",
        make="Renault",
        model="Megane E-Tech",
        year=2024,
        commands=frozenset(CommandKind),
        expire_after_s=3600,
    )
    return Car(client, slug, device, f"ev/{slug}")


async def shows(ha: HomeAssistant, car: Car, expected: dict[str, str]) -> None:
    """Until the car's entities, all of them, are as expected."""
    wanted = car.all_of(expected)
    try:
        await ha.until_states(lambda states: car.mine(states) == wanted)
    except BaseException:
        assert car.mine(await ha.states()) == wanted
        raise


async def devices_of(ha: HomeAssistant, car: Car) -> list[Entity]:
    identifier = f"ev_{car.slug}_{car.slug}"
    return [found for found in await ha.devices() if ["mqtt", identifier] in found["identifiers"]]


async def test_a_car_is_one_device(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    (device,) = await devices_of(ha, car)
    assert (device["name"], device["manufacturer"], device["model"]) == (
        "Blue car",
        "Renault",
        "Megane E-Tech 2024",
    )
    kept = car.mine(await ha.registered())
    assert {entity["device_id"] for entity in kept.values()} == {device["id"]}
    assert kept.keys() == (car.all_of(SHOWN) | car.all_of(ON_WISH)).keys()
    assert {key: entity["entity_category"] for key, entity in kept.items() if entity["entity_category"]} == (
        car.all_of(CATEGORIES)
    )
    disabled = {key for key, entity in kept.items() if entity["disabled_by"] == "integration"}
    assert disabled == car.all_of(ON_WISH).keys()


async def test_looks(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    for pattern, looks in LOOKS.items():
        entity = await ha.entity(car.named(pattern))
        assert entity is not None
        assert {key: entity["attributes"].get(key) for key in looks} == looks, pattern
    soc = await ha.entity(car.named("sensor.{}_soc"))
    assert soc is not None
    assert soc["attributes"]["friendly_name"] == "Blue car"
    told = {key: soc["attributes"][key] for key in ("measured_at", "fetched_at", "freshness", "source")}
    assert told == {key: STATE[key] for key in told}


async def test_what_is_disabled_shows_when_it_is_enabled(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    await ha.enable(*car.all_of(ON_WISH))
    await shows(ha, car, SHOWN | ON_WISH)
    estimate = await ha.entity(car.named("sensor.{}_soc_estimate"))
    assert estimate is not None
    assert estimate["attributes"]["estimate_until"] == STATE["estimate_until"]
    await car.state(soc_estimate=None, soc_estimate_low=None, soc_estimate_high=None, estimate_until=None)
    gone = dict.fromkeys((key for key in ON_WISH if "estimate" in key), UNKNOWN)
    await shows(ha, car, SHOWN | ON_WISH | gone)


async def test_nothing_is_available_while_the_daemon_is_away(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    await car.bridge("offline")
    await shows(ha, car, dict.fromkeys(SHOWN, UNAVAILABLE))
    await car.bridge("online")
    await shows(ha, car, SHOWN)


@pytest.mark.parametrize(
    ("word", "gone"),
    [("stale", AGEING), ("offline", AGEING | LASTING), ("", AGEING | LASTING)],
    ids=["stale", "offline", "deleted"],
)
async def test_availability(ha: HomeAssistant, car: Car, word: str, gone: set[str]) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    await car.availability(word)
    told = {"sensor.{}_freshness": word or UNKNOWN}
    await shows(ha, car, SHOWN | dict.fromkeys(gone, UNAVAILABLE) | told)


async def test_what_is_not_told_again_expires(ha: HomeAssistant, car: Car) -> None:
    await car.discovered(expire_after_s=2)
    await car.told()
    await shows(ha, car, SHOWN)
    expiring = {key for key in AGEING if "sensor" in key}
    await shows(ha, car, SHOWN | dict.fromkeys(expiring, UNAVAILABLE))
    await car.state()
    await shows(ha, car, SHOWN)


@pytest.mark.parametrize("how", ["null", "missing"])
async def test_what_is_not_known_is_unknown(ha: HomeAssistant, car: Car, how: str) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    if how == "null":
        await car.state(**(dict.fromkeys(STATE) | {"freshness": "fresh"}))
    else:
        await car.client.publish(f"{car.base}/{car.slug}/state", '{"freshness":"fresh"}', qos=1, retain=True)
    await car.polling(**dict.fromkeys(("measured_at", "fetched_at", "next_poll", "calls_left")))
    still = {key: SHOWN[key] for key in ("sensor.{}_freshness", "binary_sensor.{}_problem")}
    await shows(ha, car, dict.fromkeys(SHOWN, UNKNOWN) | still)


async def test_deleted_topics_leave_no_value(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    await car.emptied("state")
    await car.emptied("polling")
    await shows(ha, car, dict.fromkeys(SHOWN, UNKNOWN) | {"sensor.{}_freshness": "fresh"})


async def test_a_limit_below_what_can_be_set_is_shown_by_the_sensor_alone(
    ha: HomeAssistant, car: Car
) -> None:
    await car.discovered()
    await car.told()
    await car.state(charge_limit=40)
    changed = {"sensor.{}_charge_limit": "40", "number.{}_charge_limit": UNKNOWN}
    await shows(ha, car, SHOWN | changed)


async def test_a_reading_that_comes_late_is_not_taken_for_the_present(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    await car.state(retain=False, soc=12, charging=False, freshness="stale", replayed=True, odometer_km=12000)
    late = dict.fromkeys(AGEING, UNKNOWN) | {"sensor.{}_odometer": "12000"}
    await shows(ha, car, SHOWN | late)
    await car.state()
    await shows(ha, car, SHOWN)


async def test_a_problem_is_told_with_its_reason(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await car.polling(problem=PROBLEM)
    await shows(ha, car, SHOWN | {"binary_sensor.{}_problem": "on"})
    shown = await ha.entity(car.named("binary_sensor.{}_problem"))
    assert shown is not None
    assert shown["attributes"].items() >= PROBLEM.items()
    await car.polling()
    await shows(ha, car, SHOWN)
    shown = await ha.entity(car.named("binary_sensor.{}_problem"))
    assert shown is not None
    assert not shown["attributes"].keys() & PROBLEM.keys()


async def test_scalars_do_without_the_json(ha: HomeAssistant, car: Car) -> None:
    car.json_state = False
    await car.discovered()
    await car.bridge("online")
    await car.availability("fresh")
    await car.polling()
    for field in STATE:
        value = STATE[field]
        await car.scalar(field, str(value).lower() if isinstance(value, bool) else value)
    await shows(ha, car, SHOWN)
    await ha.enable(*car.all_of(ON_WISH))
    await shows(ha, car, SHOWN | ON_WISH)
    await car.emptied("charge_power_kw")
    await car.emptied("time_to_full_s")
    ended = dict.fromkeys(("sensor.{}_charge_power", "sensor.{}_time_to_full"), UNKNOWN)
    await shows(ha, car, SHOWN | ON_WISH | ended)
    for field in STATE:
        await car.emptied(field)
    of_polling = ("freshness", "next_poll", "measured_at", "fetched_at")
    still = {
        key: SHOWN[key] for key in ("binary_sensor.{}_problem", *(f"sensor.{{}}_{of}" for of in of_polling))
    }
    calls = {"sensor.{}_calls_left": "420"}
    await shows(ha, car, dict.fromkeys(SHOWN | ON_WISH, UNKNOWN) | still | calls)


async def test_commands_are_published_and_not_retained(
    ha: HomeAssistant, car: Car, broker: Mosquitto
) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    button = car.named("button.{}_refresh")
    await ha.enable(button)
    await shows(ha, car, SHOWN | {"button.{}_refresh": UNKNOWN})
    async with Witness(broker.port, f"{car.base}/+/+/set") as witness:
        await ha.call("button.press", button)
        await ha.call("switch.turn_off", car.named("switch.{}_charging"))
        await ha.call("switch.turn_on", car.named("switch.{}_charging"))
        await ha.call("number.set_value", car.named("number.{}_charge_limit"), value=75)
        await witness.until(lambda heard: len(heard.heard) == 4)
        assert [(said.topic, said.text, said.retain) for said in witness.heard] == [
            (f"{car.base}/{car.slug}/poll/set", "now", False),
            (f"{car.base}/{car.slug}/charging/set", "off", False),
            (f"{car.base}/{car.slug}/charging/set", "on", False),
            (f"{car.base}/{car.slug}/charge_limit/set", "75", False),
        ]
    assert await ha.state(car.named("number.{}_charge_limit")) == "80", "until the car says so"


async def test_a_command_that_is_possible_no_more_is_gone(ha: HomeAssistant, car: Car) -> None:
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    await ha.enable(car.named("button.{}_refresh"))
    commanded = SHOWN | {"button.{}_refresh": UNKNOWN}
    await shows(ha, car, commanded)
    await car.discovered(commands=frozenset())
    await shows(ha, car, UNCOMMANDED)
    kept = car.mine(await ha.registered())
    assert not [key for key in kept if key.startswith(("switch.", "number.", "button."))]
    await car.discovered(commands=frozenset(CommandKind))
    await car.state()
    await shows(ha, car, commanded)


async def test_a_car_that_can_be_commanded_nothing(ha: HomeAssistant, car: Car) -> None:
    await car.discovered(commands=frozenset())
    await car.told()
    await shows(ha, car, UNCOMMANDED)


async def test_a_car_that_is_withdrawn_is_gone(shared: HomeAssistant, car: Car) -> None:
    """For each entity that was disabled Home Assistant deletes the topic once more, and warns of that."""
    earlier = len(shared.complaints())
    await car.discovered()
    await car.told()
    await shows(shared, car, SHOWN)
    await car.forgotten()
    await shows(shared, car, {})
    assert car.mine(await shared.registered()) == {}
    assert await devices_of(shared, car) == []
    warning = f"No device components to cleanup for ev_{car.slug}_{car.slug}"
    await shared.until_warned(warning, len(ON_WISH))
    assert [line for line in shared.complaints()[earlier:] if warning not in line] == []


async def test_a_restart_of_home_assistant(ha: HomeAssistant, car: Car) -> None:
    """What is retained is shown again under the same ids; what went stale meanwhile is not."""
    await car.discovered()
    await car.told()
    await shows(ha, car, SHOWN)
    known = car.mine(await ha.registered())
    await ha.restart()
    await shows(ha, car, SHOWN)
    assert {key: entity["id"] for key, entity in car.mine(await ha.registered()).items()} == (
        {key: entity["id"] for key, entity in known.items()}
    )
    await ha.stop()
    await car.availability("stale")
    await ha.start()
    await shows(ha, car, SHOWN | dict.fromkeys(AGEING, UNAVAILABLE) | {"sensor.{}_freshness": "stale"})


async def test_a_broker_that_was_away(shared: HomeAssistant, broker: Mosquitto) -> None:
    """Nothing is shown meanwhile. It is the last test: Home Assistant complains, and the broker forgets."""
    slug = "a_broker_that_was_away"
    async with aiomqtt.Client(LOOPBACK, broker.port) as client:
        car = car_called(slug, client)
        await car.discovered()
        await car.told()
        await shows(shared, car, SHOWN)
    await broker.stop()
    await shows(shared, car, dict.fromkeys(SHOWN, UNAVAILABLE))
    await broker.start()
    async with aiomqtt.Client(LOOPBACK, broker.port) as client:
        car = car_called(slug, client)
        await car.discovered()
        await car.told()
        await shows(shared, car, SHOWN)

"""The example automations for Home Assistant: what they speak of is there, and a real one obeys them."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiomqtt
import pytest
import yaml

from evbatteryd.domain.commanding import CommandKind
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.hinting import hint_named
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.sinks.discovery import Device, discovery_json
from evbatteryd.sinks.hearing import ControlTopics
from tests.foreign.homeassistant import HomeAssistant
from tests.foreign.telling import state_payload
from tests.mosquitto import LOOPBACK, PATIENCE_S, Mosquitto, Witness

TEXT = (Path(__file__).parents[2] / "examples" / "home-assistant" / "automations.yaml").read_text()
AUTOMATIONS: list[dict[str, Any]] = yaml.safe_load(TEXT)
HINTS, STALE, *_ = AUTOMATIONS


def discovery() -> bytes:
    """What is told of a car that can be commanded everything."""
    device = Device(
        slug="zoe",
        name="Zoe",
        make="Renault",
        model=None,
        year=None,
        commands=frozenset(CommandKind),
        expire_after_s=None,
    )
    return discovery_json(device, base="evbatteryd", version="1", json_state=True)


def announced() -> dict[str, dict[str, Any]]:
    """Its entities by their ids."""
    return {entity["def_ent_id"]: entity for entity in json.loads(discovery())["cmps"].values()}


def test_every_entity_of_the_car_is_announced() -> None:
    named = set(re.findall(r"\b(?:sensor|binary_sensor|switch|number|button)\.zoe_\w+", TEXT))
    assert named
    assert named <= set(announced())


def test_the_wall_box_hints_what_we_understand() -> None:
    told = [hint_named(trigger["id"]) for trigger in HINTS["triggers"]]
    assert told == [Hint.PLUGGED_IN, Hint.UNPLUGGED, Hint.CHARGING, Hint.CHARGING_STOPPED]
    (action,) = HINTS["actions"]
    assert ControlTopics("evbatteryd", "homeassistant").read(action["data"]["topic"]) == ("zoe", "event")
    assert action["data"]["retain"] is False


def test_the_notification_waits_for_words_that_are_told() -> None:
    lost, back = STALE["triggers"]
    assert {*lost["to"], back["to"]} == {*Freshness, "unavailable"}
    assert set(announced()[lost["entity_id"]]["ops"]) == set(Freshness)


def test_the_limit_is_one_that_can_be_set() -> None:
    (action,) = next(one for one in AUTOMATIONS if one["id"].endswith("_limit"))["actions"]
    number = announced()[action["target"]["entity_id"]]
    assert number["min"] <= action["data"]["value"] <= number["max"]


# Carried out

HOUSE = """
automation: !include automations.yaml
mqtt:
  - binary_sensor:
      - { name: cable, default_entity_id: binary_sensor.wallbox_plugged_in, state_topic: wallbox/cable }
      - { name: current, default_entity_id: binary_sensor.wallbox_charging, state_topic: wallbox/current }
"""


class Automated(HomeAssistant):
    """One that has the automations, and a wall box. Nobody waits half an hour in it."""

    async def start(self) -> None:
        (self.folder / "automations.yaml").write_text(TEXT.replace('"00:30:00"', '"00:00:00"'))
        with (self.folder / "configuration.yaml").open("a") as configuration:
            configuration.write(HOUSE)
        await super().start()

    async def notified(self) -> list[str]:
        """Titles of the notifications it shows."""
        shown = await self.ask("persistent_notification/get")
        return [one["title"] for one in shown if one["notification_id"] == "evbatteryd_zoe"]


class House:
    """A Home Assistant that knows the car, and is told of it and of the wall box."""

    def __init__(self, home: Automated, publisher: aiomqtt.Client, witness: Witness) -> None:
        self.home = home
        self.witness = witness
        self._publisher = publisher

    async def tell(self, topic: str, payload: str | bytes) -> None:
        await self._publisher.publish(topic, payload, qos=1, retain=True)

    async def tell_car(self, freshness: Freshness = Freshness.FRESH, **values: Any) -> None:
        await self.tell("evbatteryd/zoe/availability", freshness.value)
        await self.tell(
            "evbatteryd/zoe/state", state_payload(datetime.now(UTC), freshness=freshness, **values)
        )

    async def hears(self, topic: str, *payloads: str) -> None:
        """Until these, and no others, were commanded or hinted there."""
        await self.witness.until(lambda witness: len(witness.on(topic)) >= len(payloads))
        assert [(heard.text, heard.retain) for heard in self.witness.on(topic)] == [
            (payload, False) for payload in payloads
        ]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with (
        Mosquitto(tmp_path / "mosquitto") as broker,
        aiomqtt.Client(LOOPBACK, broker.port) as publisher,
        Witness(broker.port, "evbatteryd/#") as witness,
        Automated(tmp_path / "home", broker.port) as home,
    ):
        found = House(home, publisher, witness)
        await found.tell("evbatteryd/bridge/state", "online")
        await found.tell("homeassistant/device/evbatteryd_zoe/config", discovery())
        await found.home.until("sensor.zoe_freshness", "unknown")
        yield found


@pytest.mark.foreign
@pytest.mark.slow
async def test_home_assistant_carries_them_out(house: House) -> None:
    home = house.home
    await house.tell("wallbox/cable", "OFF")
    await house.tell("wallbox/current", "OFF")
    await home.until("binary_sensor.wallbox_plugged_in", "off")
    await home.until("binary_sensor.wallbox_charging", "off")
    await house.tell_car(soc=70, plugged_in=False, charging=False, charge_limit=100)
    await home.until("number.zoe_charge_limit", "100")

    await house.tell("wallbox/cable", "ON")
    await house.hears("evbatteryd/zoe/event/set", "plugged_in")
    await house.tell_car(soc=70, plugged_in=True, charging=False, charge_limit=100)
    await house.hears("evbatteryd/zoe/charge_limit/set", "80")

    await house.tell("wallbox/current", "ON")
    await house.hears("evbatteryd/zoe/event/set", "plugged_in", "charging")
    await house.tell_car(soc=78, plugged_in=True, charging=True, charge_limit=80)
    await home.until("switch.zoe_charging", "on")
    await house.tell_car(soc=80, plugged_in=True, charging=True, charge_limit=80)
    await house.hears("evbatteryd/zoe/charging/set", "off")

    await house.tell_car(Freshness.STALE, soc=80, plugged_in=True, charging=True, charge_limit=80)
    await home.until("sensor.zoe_freshness", "stale")
    await home.until("sensor.zoe_soc", "unavailable")
    await until_notified(home, ["Zoe: stale"])
    await house.tell_car(soc=81, plugged_in=True, charging=False, charge_limit=80)
    await until_notified(home, [])

    # A car that comes back plugged in was not plugged in just now, and its limit is the one wanted.
    await house.tell("wallbox/cable", "OFF")
    await house.hears("evbatteryd/zoe/event/set", "plugged_in", "charging", "unplugged")
    await house.hears("evbatteryd/zoe/charge_limit/set", "80")
    await house.hears("evbatteryd/zoe/charging/set", "off")


async def until_notified(home: Automated, titles: list[str]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await home.notified() != titles:  # noqa: ASYNC110 (nothing tells of it)
            await asyncio.sleep(0.05)

"""The example for Node-RED, run by a real Node-RED against a real broker."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from evbatteryd.domain.commanding import CommandAnswer, CommandKind, CommandOutcome
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.hinting import hint_named
from evbatteryd.sinks.hearing import ControlTopics, answer_json
from tests.foreign.nodered import Node, NodeRed
from tests.foreign.telling import state_payload
from tests.mosquitto import LOOPBACK, PATIENCE_S, Mosquitto, Witness

pytestmark = [pytest.mark.foreign, pytest.mark.slow]

Seen = TypeVar("Seen")

FLOW: list[Node] = json.loads(
    (Path(__file__).parents[2] / "examples" / "node-red" / "flows.json").read_text()
)
(TAB,) = (node for node in FLOW if node["type"] == "tab")
MAX_AGE = timedelta(seconds=int(next(one["value"] for one in TAB["env"] if one["name"] == "MAX_AGE_S")))
FRESH = "probe/fresh"
"""Where our probe publishes what the flow passes on as fresh."""


def probed() -> list[Node]:
    """The flow, with something behind the node that passes fresh readings on."""
    probe: list[Node] = [
        {"id": "probe", "type": "change", "z": TAB["id"], "rules": [TO_PROBE], "wires": [["probe_out"]]},
        {
            "id": "probe_out",
            "type": "mqtt out",
            "z": TAB["id"],
            "topic": "",
            "broker": "evbatteryd_broker",
            "wires": [],
        },
    ]
    wired = [
        {**node, "wires": [[*node["wires"][0], "probe"]]} if node["id"] == "keep" else node for node in FLOW
    ]
    return wired + probe


TO_PROBE = {"t": "set", "p": "topic", "pt": "msg", "to": FRESH, "tot": "str"}


class House:
    """A broker, a Node-RED that runs the example, somebody who publishes and somebody who listens."""

    def __init__(
        self, broker: Mosquitto, node_red: NodeRed, publisher: aiomqtt.Client, witness: Witness
    ) -> None:
        self.broker = broker
        self.node_red = node_red
        self.publisher = publisher
        self.witness = witness

    async def tell(self, topic: str, payload: str | bytes) -> None:
        await self.publisher.publish(topic, payload, qos=1, retain=True)

    async def tell_car(self, published_at: datetime | None = None, **changes: object) -> None:
        await self.tell("evbatteryd/zoe/state", state_payload(published_at or now(), **changes))  # type: ignore[arg-type]

    async def row(self, vehicle: str = "zoe") -> tuple[str, ...] | None:
        """What the page shows of a car: its state of charge, when that was measured, its state."""
        cells = re.findall(r"<td>(.*?)</td>", await self.node_red.get("/cars"))
        rows = {cells[at]: tuple(cells[at + 1 : at + 4]) for at in range(0, len(cells), 4)}
        return rows.get(vehicle)

    async def shows(self, *expected: str, vehicle: str = "zoe") -> None:
        await eventually(lambda: self.row(vehicle), lambda row: row == expected)

    async def passed_on(self, at_least: int) -> list[object]:
        """The states of charge that the flow passed on as fresh."""
        await self.witness.until(lambda witness: len(witness.on(FRESH)) >= at_least)
        return [heard.json["soc"] for heard in self.witness.on(FRESH)]

    def hints(self) -> list[str]:
        return [heard.text for heard in self.witness.on("evbatteryd/zoe/event/set")]


async def eventually(look: Callable[[], Awaitable[Seen]], holds: Callable[[Seen], object]) -> None:
    """Look again and again until it holds."""
    seen = await look()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not holds(seen):
                await asyncio.sleep(0.02)
                seen = await look()
    except TimeoutError:
        pytest.fail(f"never came true; last seen: {seen}")


def now() -> datetime:
    return datetime.now(UTC)


async def subscribed(broker: Mosquitto) -> None:
    """Until the broker knows of every subscription of the flow."""
    wanted = {node["topic"] for node in FLOW if node["type"] == "mqtt in"}
    log = broker.folder / "mosquitto.log"

    async def missing() -> set[str]:
        text = log.read_text()
        return {topic for topic in wanted if f" 1 {topic}\n" not in text}

    await eventually(missing, lambda left: not left)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with (
        Mosquitto(tmp_path / "mosquitto", settings="log_type subscribe") as broker,
        aiomqtt.Client(LOOPBACK, broker.port) as publisher,
        Witness(broker.port, "#") as witness,
        NodeRed(tmp_path / "nodered", probed(), broker.port) as node_red,
    ):
        await subscribed(broker)
        yield House(broker, node_red, publisher, witness)


async def test_it_shows_what_is_fresh_with_its_age(house: House) -> None:
    await house.tell("evbatteryd/bridge/state", "online")
    await house.tell_car(soc=62.5, measured_at=now() - timedelta(minutes=12, seconds=5))
    await house.tell("evbatteryd/zoe/availability", "fresh")
    await house.shows("62.5 %", "12 min ago", "fresh")
    # It ages: it is told so, and nothing takes it for fresh any more.
    await house.tell("evbatteryd/zoe/availability", "stale")
    await house.tell_car(
        soc=62.5, measured_at=now() - timedelta(minutes=12, seconds=5), freshness=Freshness.STALE
    )
    await house.shows("-", "12 min ago", "stale, was 62.5 %")

    # An outage's backlog passes by, and what is newest counts.
    await house.tell_car(soc=50, freshness=Freshness.STALE, superseded=True)
    await house.tell_car(soc=70, measured_at=now())
    await house.tell("evbatteryd/zoe/availability", "fresh")
    await house.shows("70 %", "0 min ago", "fresh")

    # evbatteryd dies, and the broker tells it.
    await house.tell("evbatteryd/bridge/state", "offline")
    await house.shows("-", "0 min ago", "lost, was 70 %")
    assert await house.passed_on(2) == [62.5, 70]


async def test_it_does_not_believe_what_a_broker_revives(house: House) -> None:
    await house.tell("evbatteryd/bridge/state", "online")
    await house.tell("evbatteryd/zoe/availability", "fresh")
    await house.tell_car(now() - MAX_AGE - timedelta(minutes=1), soc=62)
    minutes = int(MAX_AGE.total_seconds() // 60) + 1
    await house.shows("-", f"{minutes} min ago", "lost, was 62 %")
    await house.tell_car(soc=63)
    assert await house.passed_on(1) == [63]


async def test_unknown_is_shown_as_unknown_and_a_removed_car_not_at_all(house: House) -> None:
    await house.tell("evbatteryd/zoe/availability", "fresh")
    await house.tell_car(range_km=240)
    await house.tell("evbatteryd/leaf/availability", "offline")
    await house.shows("-", "at a time unknown", "fresh")
    await house.shows("-", "-", "offline", vehicle="leaf")
    await house.tell("evbatteryd/zoe/state", "")
    await eventually(house.row, lambda row: row is None)


@pytest.mark.parametrize(
    ("topic", "said", "hints"),
    [
        (
            "evcc/loadpoints/1/connected",
            ["false", "true", "true", "", "true", "false"],
            ["plugged_in", "unplugged"],
        ),
        ("evcc/loadpoints/1/charging", ["false", "true", "false"], ["charging", "charging_stopped"]),
        ("openWB/chargepoint/3/get/plug_state", ["true", "false", "true"], ["unplugged", "plugged_in"]),
        ("openWB/chargepoint/3/get/charge_state", ["false", "true"], ["charging"]),
        (
            "go-eCharger/123456/car",
            ["1", "3", "2", "0", "4", "1"],
            ["plugged_in", "charging", "charging_stopped", "unplugged"],
        ),
    ],
)
async def test_a_wall_box_hints_at_every_change_and_only_then(
    house: House, topic: str, said: list[str], hints: list[str]
) -> None:
    for text in said:
        await house.tell(topic, text)
    await house.witness.until(lambda _: len(house.hints()) >= len(hints))
    assert house.hints() == hints
    assert all(hint_named(hint) for hint in hints)
    assert not any(heard.retain for heard in house.witness.on("evbatteryd/zoe/event/set"))


async def test_a_car_is_asked_and_the_answer_is_known_again(house: House) -> None:
    await house.node_red.press("ask_now")
    await house.witness.until(lambda w: w.on("evbatteryd/zoe/poll/set"))
    (asked,) = house.witness.on("evbatteryd/zoe/poll/set")
    assert (asked.text, asked.retain) == ("now", False)
    where = ControlTopics("evbatteryd", "homeassistant").response(asked.properties.ResponseTopic)
    assert where is not None

    await answer(house, where, asked.properties.CorrelationData, CommandOutcome.DONE, "62 % as of 12:00")
    await eventually(lambda: house.node_red.get("/cars"), lambda page: "done: 62 % as of 12:00" in page)

    await answer(house, where, b"somebody else's", CommandOutcome.NOT_NOW, "it is asleep")
    await house.tell("evbatteryd/zoe/availability", "stale")  # when this is seen, that has been
    await house.shows("-", "-", "stale")
    assert "done: 62 % as of 12:00" in await house.node_red.get("/cars")


async def answer(house: House, where: str, correlation: bytes, outcome: CommandOutcome, reason: str) -> None:
    """As evbatteryd answers."""
    properties = Properties(PacketTypes.PUBLISH)
    properties.CorrelationData = correlation
    told = CommandAnswer(
        command=CommandKind.POLL,
        value=None,
        outcome=outcome,
        reason=reason,
        final=True,
        calls=1,
        calls_left=41,
    )
    async with aiomqtt.Client(LOOPBACK, house.broker.port, protocol=aiomqtt.ProtocolVersion.V5) as evbatteryd:
        await evbatteryd.publish(where, answer_json(told), qos=1, properties=properties)

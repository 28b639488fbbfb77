"""Commands over a real broker: every answer arrives where it is awaited, and nothing is commanded twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from evbatteryd.domain.commanding import CommandAnswer, CommandKind, CommandOutcome
from evbatteryd.sinks import hearing
from tests.builders import NOON, car, reading, state
from tests.fakes import until
from tests.mosquitto import LOOPBACK, Gate, Heard, Mosquitto, Witness
from tests.sinks.conftest import Station
from tests.sinks.world import Obedient, all_kept

BASE = "evbatteryd/car_1"
SET, RESULT = f"{BASE}/charging/set", f"{BASE}/charging/result"
ANSWERS = (CommandOutcome.PENDING, CommandOutcome.DONE, CommandOutcome.CONFIRMED)


@dataclass
class Slow(Obedient):
    """Commands whose answers come when the test lets them."""

    steps: asyncio.Queue[None] = field(default_factory=asyncio.Queue)

    async def give(
        self, slug: str, kind: CommandKind, text: str, origin: str
    ) -> AsyncIterator[CommandAnswer]:
        async for answer in super().give(slug, kind, text, origin):
            await self.steps.get()
            yield answer

    def go_on(self, answers: int = 1) -> None:
        for _ in range(answers):
            self.steps.put_nowait(None)


class Tell(Protocol):
    async def __call__(self, payload: str = ..., topic: str = ..., **options: object) -> None: ...


@asynccontextmanager
async def automation(broker: Mosquitto) -> AsyncIterator[Tell]:
    async with aiomqtt.Client(LOOPBACK, broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:

        async def tell(payload: str = "on", topic: str = SET, **options: object) -> None:
            await client.publish(topic, payload, qos=1, **options)  # type: ignore[arg-type]

        yield tell


async def listening(station: Station, commands: Obedient, tell: Tell) -> None:
    """Until what is told is heard: what was told until then is forgotten."""
    await station.connected()
    given = commands.given
    async with asyncio.timeout(20):
        while not given:
            await tell("probe", topic=f"{BASE}/poll/set")
            await asyncio.sleep(0.02)
    await tell("last", topic=f"{BASE}/poll/set")
    await until(lambda: any(text == "last" for _, _, text, _ in given))
    given.clear()


def asking(topic: str, correlation: bytes | None = None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


def outcomes(heard: list[Heard]) -> list[object]:
    return [message.json["outcome"] for message in heard]


def each_once(told: list[object]) -> list[object]:
    """Without what was told twice in a row."""
    return [outcome for outcome, _ in groupby(told)]


@pytest.mark.parametrize(("kind", "text"), [("poll", "now"), ("charging", "off"), ("charge_limit", "80")])
async def test_every_answer_of_a_command_arrives(
    broker: Mosquitto, protocol: str, kind: str, text: str
) -> None:
    commands = Obedient(answers=ANSWERS)
    async with (
        Station(broker.port, car(1), protocol=protocol, commands=commands) as station,
        Witness(broker.port, f"evbatteryd/+/{kind}/result") as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        await until(lambda: not station.sink._ears._commanding)
        before = len(witness.heard)
        await tell(text, topic=f"{BASE}/{kind}/set")
        await witness.until(lambda w: any(m.json["value"] == text for m in w.heard[before:]))
        await witness.until(lambda w: outcomes([m for m in w.heard if m.json["value"] == text]) == [*ANSWERS])
        assert commands.given == [("car_1", kind, text, "mqtt")]
        own = [message for message in witness.heard if message.json["value"] == text]
        assert [message.json["final"] for message in own] == [False, False, True]
        assert own[0].json == {
            "command": kind,
            "value": text,
            "result": "pending",
            "outcome": "pending",
            "reason": "so it is",
            "final": False,
            "calls": 0,
            "calls_left": None,
            "next_poll": None,
            "reading_id": None,
        }
        assert {message.topic for message in own} == {f"{BASE}/{kind}/result"}
        assert not any(message.retain for message in witness.heard)
    assert not any("result" in topic for topic in await all_kept(broker.port))


async def test_a_requester_gets_every_answer_where_it_asked_for_it(broker: Mosquitto) -> None:
    commands = Obedient(answers=ANSWERS)
    async with (
        Station(broker.port, car(1), commands=commands) as station,
        Witness(broker.port, "#") as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        await tell("on", properties=asking("wallbox/7/answers", b"\x00\xff42"))
        await witness.until(lambda w: len(w.on("wallbox/7/answers")) == len(ANSWERS))
        answers = witness.on("wallbox/7/answers")
        assert outcomes(answers) == outcomes(witness.on(RESULT)) == [*ANSWERS]
        assert {answer.properties.CorrelationData for answer in answers} == {b"\x00\xff42"}
        assert {answer.properties.ContentType for answer in answers} == {"application/json"}
        assert not any(answer.retain for answer in answers)
        assert not any(hasattr(m.properties, "CorrelationData") for m in witness.on(RESULT))


@pytest.mark.parametrize("topic", [f"{BASE}/state", SET, "evbatteryd", "$share/x/y"])
async def test_nobody_can_have_us_answer_on_our_own_topics(broker: Mosquitto, topic: str) -> None:
    commands = Obedient()
    async with (
        Station(broker.port, car(1), commands=commands) as station,
        Witness(broker.port, "#") as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        await tell("on", properties=asking(topic))
        await tell("off", properties=asking("elsewhere"))
        await witness.until(lambda w: w.on("elsewhere"))
        assert [text for _, _, text, _ in commands.given] == ["on", "off"]
        assert len(witness.on(RESULT)) == 2
        assert not any('"outcome"' in message.text for message in witness.on(topic))


async def test_a_retained_command_is_not_given(broker: Mosquitto, protocol: str) -> None:
    """Neither what is there when we come, at every connection again, nor what is retained from then on."""
    commands = Obedient()
    async with automation(broker) as tell:
        await tell("off", retain=True)
        await tell("80", topic=f"{BASE}/charge_limit/set", retain=True)
        async with Station(broker.port, car(1), protocol=protocol, commands=commands) as station:
            await listening(station, commands, tell)
            await tell("on", retain=True)
            await tell("off", topic=f"{BASE}/charging/set")
            await until(lambda: ("car_1", "charging", "off", "mqtt") in commands.given)
            counted = station.tally.commands
            if protocol == "5":
                assert len(commands.given) == 1
                assert counted == {("charging", "retained"): 1}
            else:  # it comes without the flag to whoever is there
                assert len(commands.given) == 2
                assert counted == {("charging", "retained"): 1, ("charge_limit", "retained"): 1}
            (line,) = station.events("mqtt.control_retained")
            assert "without the retain flag" in str(line["mend"])


async def test_an_answer_that_comes_while_the_connection_is_down_arrives_when_it_is_back(
    broker: Mosquitto, protocol: str, impatient: None
) -> None:
    commands = Slow(answers=ANSWERS)
    async with (
        Gate(broker.port) as gate,
        Witness(broker.port, "#") as witness,
        Station(gate.port, car(1), protocol=protocol, commands=commands) as station,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        commands.go_on(len(ANSWERS) * 100)  # of the probes
        await until(lambda: not station.sink._ears._commanding)
        while not commands.steps.empty():
            commands.steps.get_nowait()
        await tell("on", properties=asking("asked/for", b"7"))
        await until(lambda: bool(commands.given))
        commands.go_on()
        await witness.until(lambda w: len(w.on(RESULT)) == 1)
        if protocol == "5":
            await witness.until(lambda w: len(w.on("asked/for")) == 1)
        gate.shut()
        await station.connected(False)
        commands.go_on()
        await asyncio.sleep(0.05)
        assert len(witness.on(RESULT)) == 1
        gate.open()
        await station.connected()
        await witness.until(lambda w: outcomes(w.on(RESULT))[-1:] == [ANSWERS[1]])
        commands.go_on()
        # The first one comes twice if its acknowledgement went with the connection.
        await witness.until(lambda w: each_once(outcomes(w.on(RESULT))) == [*ANSWERS])
        if protocol == "5":
            await witness.until(lambda w: each_once(outcomes(w.on("asked/for"))) == [*ANSWERS])
        assert len(commands.given) == 1


async def test_an_answer_that_the_connection_took_with_it_is_told_again(
    broker: Mosquitto, protocol: str, impatient: None
) -> None:
    commands = Slow()
    async with (
        Gate(broker.port) as gate,
        Station(gate.port, car(1), protocol=protocol, commands=commands) as station,
    ):
        async with automation(broker) as tell:
            await listening(station, commands, tell)
            commands.go_on(100)
            await until(lambda: not station.sink._ears._commanding)
            while not commands.steps.empty():
                commands.steps.get_nowait()
            await tell("on")
            await until(lambda: bool(commands.given))
        broker.freeze()
        commands.go_on()
        await asyncio.sleep(0.05)  # it is on the wire, to a broker that takes nothing
        gate.shut()
        await station.connected(False)
        await broker.kill()
        await broker.start()
        async with Witness(broker.port) as witness:
            gate.open()
            await witness.until(lambda w: outcomes(w.on(RESULT)) == ["done"])


async def test_a_command_that_takes_long_holds_up_no_other(broker: Mosquitto, protocol: str) -> None:
    commands = Slow()
    async with (
        Station(broker.port, car(1), car(2), protocol=protocol, commands=commands) as station,
        Witness(broker.port) as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        for number in range(1, 2 * hearing.HEARERS):
            await tell("on", topic=f"evbatteryd/ghost_{number}/charging/set")
        await tell("on", topic="evbatteryd/car_2/charging/set")
        await until(lambda: ("car_2", "charging", "on", "mqtt") in commands.given)
        await station.publish([reading(1, state=state(soc=61))])
        await witness.until(lambda w: w.last(f"{BASE}/soc") == "61")
        commands.go_on(1_000)
        await witness.until(lambda w: w.on("evbatteryd/car_2/charging/result"))


@dataclass(eq=False)
class Shared:
    """A command whose answers come when the test lets them, for however many joined it."""

    kind: CommandKind
    text: str
    go_on: asyncio.Event

    async def __aiter__(self) -> AsyncIterator[CommandAnswer]:
        for number, outcome in enumerate(ANSWERS, 1):
            await self.go_on.wait()
            final = number == len(ANSWERS)
            yield CommandAnswer(
                command=self.kind, value=self.text, outcome=outcome, reason="so it is", final=final
            )


@dataclass
class Joining(Obedient):
    """Commands that are joined by whoever says the same; whatever is not understood is refused."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    going: dict[tuple[str, str], Shared] = field(default_factory=dict)

    def give(self, slug: str, kind: CommandKind, text: str, origin: str) -> AsyncIterable[CommandAnswer]:
        if text not in ("on", "off"):
            refusing = Obedient(answers=(CommandOutcome.NOT_UNDERSTOOD,), given=self.given)
            return refusing.give(slug, kind, text, origin)
        self.given.append((slug, kind, text, origin))
        return self.going.setdefault((slug, text), Shared(kind, text, self.go_on))


async def test_a_command_that_many_repeat_is_answered_once_for_all(broker: Mosquitto, protocol: str) -> None:
    """And neither keeps its car from another command, nor any other car."""
    commands = Joining()
    async with (
        Station(broker.port, car(1), car(2), protocol=protocol, commands=commands) as station,
        Witness(broker.port, "#") as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        for number in range(300):
            await tell("on")
            if number % 5 == 4:  # no more than may wait to be taken
                await until(lambda number=number: len(commands.given) == number + 1)
        await tell("off")
        await tell("on", topic="evbatteryd/car_2/charging/set")
        await until(lambda: len(commands.given) == 302)
        commands.go_on.set()
        await witness.until(lambda w: len(w.on(RESULT)) == 2 * len(ANSWERS))
        await witness.until(lambda w: len(w.on("evbatteryd/car_2/charging/result")) == len(ANSWERS))
        for value in ("on", "off"):
            own = [message for message in witness.on(RESULT) if message.json["value"] == value]
            assert outcomes(own) == [*ANSWERS]
        assert station.tally.commands == {}


async def test_so_many_requesters_may_join_a_command(broker: Mosquitto) -> None:
    commands = Joining()
    async with (
        Station(broker.port, car(1), commands=commands) as station,
        Witness(broker.port, "#") as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        asked = 1 + hearing.MOST_REQUESTERS_EACH + 3
        for number in range(asked):
            await tell("on", properties=asking(f"asked/{number}"))
            await until(lambda number=number: len(commands.given) == number + 1)
        assert station.tally.commands == {("charging", "dropped"): 3}
        commands.go_on.set()
        await until(lambda: not station.sink._ears._commanding)
        await witness.until(lambda w: len(w.on(RESULT)) == len(ANSWERS))
        told = [len(witness.on(f"asked/{number}")) for number in range(asked)]
        assert told == [len(ANSWERS)] * (asked - 3) + [0] * 3
        assert not station.sink._ears._awaited
        assert not station.sink._ears._requesters


async def test_nonsense_is_not_answered_as_fast_as_it_is_sent(
    broker: Mosquitto, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one car, and of all that are none together; another car's command is given all the same."""
    commands = Joining()
    commands.go_on.set()
    async with (
        Station(broker.port, car(1), car(2), protocol=protocol, commands=commands) as station,
        Witness(broker.port, "#") as witness,
        automation(broker) as tell,
    ):
        await listening(station, commands, tell)
        await until(lambda: not station.sink._ears._commanding)
        monkeypatch.setattr(hearing, "REFUSALS_APART_S", 60.0)
        for number in range(100):
            await tell("nonsense", topic=SET if number % 2 else f"evbatteryd/ghost_{number}/charging/set")
        await station.until(lambda: len(commands.given) + station.tally.commands.total() == 100)
        assert len(commands.given) == 2 * hearing.MOST_COMMANDS_EACH
        assert station.tally.commands == {("charging", "dropped"): 100 - len(commands.given)}
        assert len(station.events("mqtt.control_dropped")) == 1
        await tell("on", topic="evbatteryd/car_2/charging/set")
        await witness.until(lambda w: len(w.on("evbatteryd/car_2/charging/result")) == len(ANSWERS))


async def test_an_end_leaves_no_command_behind(broker: Mosquitto) -> None:
    commands = Slow()
    async with automation(broker) as tell:
        async with Station(broker.port, car(1), commands=commands) as station:
            await listening(station, commands, tell)
            await tell("on")
            await until(lambda: bool(commands.given))
            assert station.sink._ears._commanding
        await until(lambda: not station.sink._ears._commanding)


async def test_what_a_car_can_be_commanded_is_told_with_its_polling(broker: Mosquitto) -> None:
    commands = Obedient(kinds=frozenset({CommandKind.POLL, CommandKind.CHARGING}))
    async with (
        Witness(broker.port) as witness,
        Station(broker.port, car(1, due=NOON), commands=commands) as station,
    ):
        await witness.until(lambda w: w.on(f"{BASE}/polling"))
        assert witness.on(f"{BASE}/polling")[-1].json["commands"] == ["charging", "poll"]
        commands.kinds = frozenset({CommandKind.POLL})
        station.sink.touch(car(1).id)
        await witness.until(lambda w: len(w.on(f"{BASE}/polling")) == 2)
        assert witness.on(f"{BASE}/polling")[-1].json["commands"] == ["poll"]

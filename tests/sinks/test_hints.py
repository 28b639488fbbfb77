"""What wall boxes tell over a real broker: taken once, answered, and never in the way of readings."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from evbatteryd.domain.hinting import HintAnswer, HintOutcome, hint_named
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.sinks import connection, hearing, subscriptions
from evbatteryd.sinks.hearing import EVENT, KINDS, ControlTopics, Heard, Inbox, text_of
from evbatteryd.sinks.subscriptions import TURNED_AWAY
from tests.builders import NOON, car, reading, state
from tests.fakes import until
from tests.mosquitto import LOOPBACK, PATIENCE_S, Gate, Mosquitto, Witness
from tests.sinks.conftest import PASSWORD, Station
from tests.sinks.world import kept, packet, packet_id, server

SET = "evbatteryd/car_1/event/set"
RESULT = "evbatteryd/car_1/event/result"


class ToldHints:
    """Hints that remember what they were told. ``gate``: they answer no sooner."""

    def __init__(self) -> None:
        self.told_of: list[tuple[str, str, str]] = []
        self.outcome = HintOutcome.TAKEN
        self.gate = asyncio.Event()
        self.gate.set()

    async def told(self, slug: str, event: str, origin: str) -> HintAnswer:
        self.told_of.append((slug, event, origin))
        await self.gate.wait()
        hint = hint_named(event)
        if hint is None:
            return HintAnswer(event="?", outcome=HintOutcome.UNKNOWN_EVENT, reason="no event")
        return HintAnswer(event=hint, outcome=self.outcome, reason="asked soon", next_poll=NOON)


@pytest.fixture
def hints() -> ToldHints:
    return ToldHints()


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody rests after a refusal."""
    monkeypatch.setattr(hearing, "REFUSALS_APART_S", 0.0)


@asynccontextmanager
async def wall_box(broker: Mosquitto) -> AsyncIterator[Callable]:
    async with aiomqtt.Client(LOOPBACK, broker.port, protocol=aiomqtt.ProtocolVersion.V5) as client:

        async def tell(payload: object = "plugged_in", topic: str = SET, **options: object) -> None:
            await client.publish(topic, payload, qos=1, **options)

        yield tell


async def listening(broker: Mosquitto, station: Station, hints: ToldHints) -> None:
    """Until what is told is heard. All of it is answered then, and forgotten."""
    await station.connected()
    async with Witness(broker.port, RESULT) as answers, wall_box(broker) as tell:
        async with asyncio.timeout(PATIENCE_S):
            while not hints.told_of:
                await tell("plugged_in")
                await asyncio.sleep(0.05)
        await tell("departed")
        await until(lambda: ("car_1", "departed", "mqtt") in hints.told_of)
        await answers.until(lambda w: len(w.heard) == len(hints.told_of))
    hints.told_of.clear()
    station.tally.hints.clear()


def asking(topic: object, correlation: bytes | None = None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)
    properties.ResponseTopic = topic
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


async def test_a_hint_is_taken_and_answered(broker: Mosquitto, protocol: str, hints: ToldHints) -> None:
    async with (
        Station(broker.port, car(1), protocol=protocol, hints=hints) as station,
        Witness(broker.port, RESULT) as witness,
        wall_box(broker) as tell,
    ):
        await listening(broker, station, hints)
        for payload in ("arrived", " Arrived\n", '"arrived"', "nonsense"):
            await tell(payload)
        await witness.until(lambda w: sum(one.json["event"] in ("arrived", "?") for one in w.heard) == 4)
        assert [(slug, hint_named(text), way) for slug, text, way in hints.told_of] == [
            *(("car_1", Hint.ARRIVED, "mqtt"),) * 3,
            ("car_1", None, "mqtt"),
        ]
        answers = [one.json for one in witness.heard if one.json["event"] in ("arrived", "?")]
        *taken, refused = sorted(answers, key=lambda said: said["event"] == "?")
        said = {"result": "taken", "reason": "asked soon", "next_poll": "2026-11-22T12:00:00.000Z"}
        assert taken == [{"event": "arrived", **said}] * 3
        assert refused == {"event": "?", "result": "refused", "reason": "no event", "next_poll": None}
        assert not any(message.retain for message in witness.heard)
    assert await kept(broker.port, RESULT) == {}


async def test_nothing_retained_is_taken(broker: Mosquitto, protocol: str, hints: ToldHints) -> None:
    """Neither what is there when we come nor, if the protocol tells, what is retained from then on."""
    async with wall_box(broker) as tell:
        await tell("departed", retain=True)
        async with Station(broker.port, car(1), protocol=protocol, hints=hints) as station:
            await listening(broker, station, hints)
            await tell("arrived", retain=True)
            await tell("charging")
            await until(lambda: "charging" in {text for _, text, _ in hints.told_of})
            told = [text for _, text, _ in hints.told_of]
            if protocol == "5":
                assert told == ["charging"]
                assert station.tally.hints == {("arrived", "retained"): 1}
                (line,) = station.events("mqtt.control_retained")
                assert "without the retain flag" in line["mend"]
            else:
                assert told == ["arrived", "charging"]  # it comes without the flag to whoever is there


async def test_what_was_retained_before_we_came_is_counted_with_3_1_1(
    broker: Mosquitto, hints: ToldHints
) -> None:
    async with wall_box(broker) as tell:
        await tell("departed", retain=True)
        async with Station(broker.port, car(1), protocol="3.1.1", hints=hints) as station:
            await station.until(lambda: station.tally.hints)
            assert station.tally.hints == {("departed", "retained"): 1}
            assert hints.told_of == []


async def test_hints_are_heard_again_after_each_connection(
    broker: Mosquitto, protocol: str, hints: ToldHints, impatient: None
) -> None:
    async with (
        Gate(broker.port) as gate,
        Station(gate.port, car(1), protocol=protocol, hints=hints) as station,
    ):
        for times in (1, 2, 3):
            await station.logged("mqtt.connected", times=times)
            await listening(broker, station, hints)
            gate.shut()
            await station.connected(False)
            gate.open()


async def test_a_requester_gets_its_answer_where_it_asked_for_it(broker: Mosquitto, hints: ToldHints) -> None:
    async with (
        Station(broker.port, car(1), hints=hints) as station,
        Witness(broker.port, "#") as witness,
        wall_box(broker) as tell,
    ):
        await listening(broker, station, hints)
        await tell("arrived", properties=asking("wallbox/7/answers", b"\x00\xff42"))
        await witness.until(lambda w: w.on("wallbox/7/answers"))
        (answer,) = witness.on("wallbox/7/answers")
        assert answer.json == witness.on(RESULT)[-1].json
        assert answer.properties.CorrelationData == b"\x00\xff42"
        assert answer.properties.ContentType == "application/json"
        assert not answer.retain


@pytest.mark.parametrize("topic", ["evbatteryd/car_1/state", "evbatteryd", SET, "$share/x/y"])
async def test_nobody_can_have_us_speak_on_our_own_topics(
    broker: Mosquitto, hints: ToldHints, topic: str
) -> None:
    async with (
        Station(broker.port, car(1), hints=hints) as station,
        Witness(broker.port, "#") as witness,
        wall_box(broker) as tell,
    ):
        await listening(broker, station, hints)
        await tell(properties=asking(topic))
        await tell(properties=asking("elsewhere"))
        await witness.until(lambda w: w.on("elsewhere"))
        assert [text for _, text, _ in hints.told_of] == ["plugged_in"] * 2
        assert not any("result" in message.text for message in witness.on(topic))


async def test_what_is_large_is_kept_from_us(broker: Mosquitto, hints: ToldHints) -> None:
    async with Station(broker.port, car(1), hints=hints) as station, wall_box(broker) as tell:
        await listening(broker, station, hints)
        await tell(b"x" * (2 * connection.LARGEST_HEARD))
        await tell(b"x" * 4_000)
        await tell("arrived")
        await until(lambda: len(hints.told_of) == 2)
        assert [len(text) <= hearing.LONGEST_HINT + 1 for _, text, _ in hints.told_of] == [True, True]
        assert hints.told_of[1][1] == "arrived"


async def test_a_flood_crowds_out_nobody_and_is_dropped_with_a_count(
    broker: Mosquitto, protocol: str, hints: ToldHints
) -> None:
    """While the store takes nothing: what waits stays bounded, readings are told, another car is heard."""
    async with (
        Station(broker.port, car(1), car(2), protocol=protocol, hints=hints) as station,
        wall_box(broker) as tell,
    ):
        await listening(broker, station, hints)
        hints.gate.clear()
        bound = hearing.HEARERS + hearing.MOST_WAITING_EACH
        for number in range(400):
            await tell("arrived" if number % 2 else "departed")
            await tell("arrived", topic=f"evbatteryd/ghost_{number}/event/set")
        await station.publish([reading(1, state=state(soc=61))])
        await tell("charging", topic="evbatteryd/car_2/event/set")
        await station.until(lambda: station.tally.hints.total() >= 800 - 2 * bound)
        assert len(station.sink._ears._inbox) <= 2 * hearing.MOST_WAITING_EACH + 1
        dropped = station.tally.hints.total()
        assert {outcome for _, outcome in station.tally.hints} == {"dropped"}
        hints.gate.set()
        await until(lambda: ("car_2", "charging", "mqtt") in hints.told_of)
        assert len(hints.told_of) + dropped == 801
        assert len(station.events("mqtt.control_dropped")) == 1


async def test_readings_are_told_while_a_flood_is_heard(broker: Mosquitto, hints: ToldHints) -> None:
    async with Station(broker.port, car(1), hints=hints) as station:
        await listening(broker, station, hints)
        hints.outcome = HintOutcome.CHATTERING

        async def flood() -> None:
            async with aiomqtt.Client(LOOPBACK, broker.port) as client:
                while True:
                    for _ in range(50):
                        await client.publish(SET, "arrived")
                    await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        try:
            await station.until(lambda: station.tally.hints["arrived", "dropped"] > 100)
            for number in range(1, 21):
                await station.publish([reading(number, state=state(soc=61))])
        finally:
            flooding.cancel()
        assert len(station.sink._ears._inbox) <= hearing.MOST_WAITING_EACH


async def test_hints_that_came_before_the_connection_broke_are_taken(
    broker: Mosquitto, hints: ToldHints, impatient: None
) -> None:
    """And answered over the next one."""
    async with (
        Gate(broker.port) as gate,
        Witness(broker.port, RESULT) as witness,
        Station(gate.port, car(1), hints=hints) as station,
        wall_box(broker) as tell,
    ):
        await listening(broker, station, hints)
        await witness.until(lambda w: w.heard)
        hints.gate.clear()
        await tell("arrived")
        await until(lambda: hints.told_of)
        gate.shut()
        await station.connected(False)
        gate.open()
        await station.connected()
        hints.gate.set()
        await witness.until(lambda w: w.heard[-1].json["event"] == "arrived")


async def test_a_message_that_cannot_be_read_is_dropped_with_the_session_that_kept_it(
    broker: Mosquitto, hints: ToldHints, impatient: None
) -> None:
    unreadable = Properties(PacketTypes.PUBLISH)
    unreadable.UserProperty = ("from", "\ufeff")
    async with (
        Gate(broker.port) as gate,
        Station(gate.port, car(1), hints=hints, session_expiry=60) as station,
    ):
        await listening(broker, station, hints)
        gate.shut()
        await station.connected(False)
        async with wall_box(broker) as tell:
            await tell("plugged_in", properties=unreadable)
        gate.open()
        await station.logged("mqtt.session_dropped")
        await listening(broker, station, hints)
        await station.publish([reading(1, state=state(soc=61))])
        assert len(station.events("mqtt.session_dropped")) == 1


# Brokers that refuse


def _dynamic_security(*, subscribe: bool) -> str:
    """What the plugin keeps: one user, who may publish everything (what the plugin itself is told, too),
    and subscribe to all or nothing."""
    salt = b"twelve bytes"
    digest = hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), salt, 101)
    rules = {"acltype": "publishClientSend", "topic": "$CONTROL/#", "allow": True}
    names = ("publishClientSend", "publishClientReceive", "unsubscribe")
    return json.dumps(
        {
            "defaultACLAccess": dict.fromkeys(names, True) | {"subscribe": subscribe},
            "clients": [
                {
                    "username": "evbatteryd",
                    "password": base64.b64encode(digest).decode(),
                    "salt": base64.b64encode(salt).decode(),
                    "iterations": 101,
                    "roles": [{"rolename": "ruler"}],
                }
            ],
            "groups": [],
            "roles": [{"rolename": "ruler", "acls": [rules]}],
        }
    )


def _plugin() -> str:
    for folder in ("/usr/lib", "/usr/local/lib"):
        for found in Path(folder).rglob("mosquitto_dynamic_security.so"):
            return str(found)
    pytest.skip("mosquitto's dynamic security plugin is not installed")


async def test_a_broker_that_refuses_the_subscription_gets_the_readings(
    tmp_path: Path, protocol: str, hints: ToldHints, impatient: None
) -> None:
    rules = tmp_path / "rules.json"
    rules.write_text(_dynamic_security(subscribe=False))
    settings = f"plugin {_plugin()}\nplugin_opt_config_file {rules}"
    async with (
        Mosquitto(tmp_path / "broker", settings=settings) as broker,
        Station(broker.port, car(1), protocol=protocol, hints=hints) as station,
    ):
        line = await station.logged("mqtt.subscription_refused")
        assert "Allow this user to subscribe" in line["mend"]
        assert line["topic"] == "evbatteryd/#"
        await station.publish([reading(1, state=state(soc=61))])
        await broker.restart()
        await station.logged("mqtt.connected", times=2)
        await station.publish([reading(2, state=state(soc=60))])
        assert len(station.events("mqtt.subscription_refused")) == 1
        assert station.events("mqtt.publish_refused") == []
        await broker.stop()
        rules.write_text(_dynamic_security(subscribe=True))
        await broker.start()
        await station.logged("mqtt.heard")


async def test_a_broker_that_allows_the_subscription_meanwhile_is_heard_in_the_same_connection(
    tmp_path: Path, protocol: str, hints: ToldHints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "LISTEN_AGAIN_S", 0.1)
    rules = tmp_path / "rules.json"
    rules.write_text(_dynamic_security(subscribe=False))
    settings = f"plugin {_plugin()}\nplugin_opt_config_file {rules}"
    allowed = {"command": "setDefaultACLAccess", "acls": [{"acltype": "subscribe", "allow": True}]}
    user = {"username": "evbatteryd", "password": PASSWORD}
    async with (
        Mosquitto(tmp_path / "broker", settings=settings) as broker,
        Station(broker.port, car(1), protocol=protocol, hints=hints) as station,
        aiomqtt.Client(LOOPBACK, broker.port, **user) as admin,
    ):
        await station.logged("mqtt.subscription_refused")
        await asyncio.sleep(0.3)
        assert station.events("mqtt.heard") == []
        await admin.publish("$CONTROL/dynamic-security/v1", json.dumps({"commands": [allowed]}), qos=1)
        await station.logged("mqtt.heard")
        await admin.publish(SET, "departed", qos=1)
        await until(lambda: ("car_1", "departed", "mqtt") in hints.told_of)
        assert station.tally.up == [True]
        assert len(station.events("mqtt.subscription_refused")) == 1
        assert len(station.events("mqtt.heard")) == 1


async def test_a_broker_that_hangs_up_on_whoever_subscribes_gets_the_readings(
    hints: ToldHints, impatient: None
) -> None:
    """Some do that instead of answering: https://docs.aws.amazon.com/iot/latest/developerguide/mqtt.html"""
    subscriptions = 0

    async def strict(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal subscriptions
        try:
            while True:
                kind, body = await packet(reader)
                if kind == 0x80:
                    subscriptions += 1
                    return
                if kind == 0x10:
                    writer.write(b"\x20\x02\x00\x00")
                elif kind == 0x30:
                    writer.write(b"\x40\x02" + packet_id(body))
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.transport.abort()

    async with server(strict) as port, Station(port, car(1), protocol="3.1.1", hints=hints) as station:
        line = await station.logged("mqtt.subscription_refused")
        assert "closes the connection" in line["reason"]
        await station.deliver([reading(1, state=state(soc=61))])
        await station.deliver([reading(2, state=state(soc=60))])
        assert subscriptions == TURNED_AWAY
        assert station.sink.connected


# The pieces


@pytest.mark.parametrize("kind", KINDS)
def test_topics_name_cars_and_kinds(kind: str) -> None:
    topics = ControlTopics("home/ev", "homeassistant")
    assert f"home/ev/+/{kind}/set" in topics.patterns
    assert len(topics.patterns) == len(KINDS)
    assert topics.read(f"home/ev/car_1/{kind}/set") == ("car_1", kind)
    assert topics.result("car_1", kind) == f"home/ev/car_1/{kind}/result"
    assert topics.read(f"home/ev/{'x' * hearing.LONGEST_LEVEL}/{kind}/set") is not None
    assert topics.read(f"home/ev/{'x' * hearing.LONGEST_LEVEL}x/{kind}/set") is None
    assert topics.read(f"home/ev//{kind}/set") is None
    assert topics.read(f"home/ev/car_1/{kind}x/set") is None


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("a/b", True),
        ("evbatteryd2/x", True),
        ("evbatteryd", False),
        ("evbatteryd/x", False),
        ("homeassistant/device/x/config", False),
        ("a/+", False),
        ("#", False),
        ("a\0b", False),
        ("$SYS/x", False),
        ("", False),
        ("x" * (hearing.LONGEST_RESPONSE_TOPIC + 1), False),
        (None, False),
    ],
)
def test_answers_go_where_they_may(asked: object, granted: bool) -> None:
    assert ControlTopics("evbatteryd", "homeassistant").response(asked) == (asked if granted else None)


@given(st.binary())
def test_whatever_a_payload_holds_it_is_a_short_text(payload: bytes) -> None:
    assert len(text_of(payload)) <= hearing.LONGEST_HINT + 1


@given(
    st.sampled_from(Hint), st.sampled_from([str.upper, str.lower, str.title]), st.text(" \t\r\n", max_size=4)
)
def test_hints_are_known_however_they_are_written(hint: Hint, case: Callable[[str], str], blank: str) -> None:
    plain = f"{blank}{case(hint)}{blank}"
    assert hint_named(text_of(plain.encode())) is hint
    assert hint_named(text_of(blank.encode() + orjson.dumps(plain))) is hint


async def test_the_inbox_is_bounded_for_each_car_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "MOST_WAITING", 20)
    inbox = Inbox({"a", "b", "c", "d"})

    def put(level: str, times: int) -> int:
        return sum(inbox.put(Heard(level, EVENT, "arrived")) for _ in range(times))

    each = hearing.MOST_WAITING_EACH
    assert put("a", 50) == each
    assert put("ghost", each - 1) + put("spirit", 50) == each
    assert put("b", 50) == 20 - 2 * each
    assert [(await inbox.take()).level for _ in range(each)] == ["a"] * each
    assert put("a", 50) == each
    for _ in range(20):
        await inbox.take()
    assert len(inbox) == 0
    waiting = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    assert put("c", 1) == 1
    assert (await waiting).level == "c"
    assert not inbox._each

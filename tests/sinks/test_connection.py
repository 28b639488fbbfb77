"""One connection, made to real brokers that limit, refuse and forget, and to brokers that follow a script."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiomqtt
import paho.mqtt.client as paho
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd.sinks.connection import (
    IN_FLIGHT,
    MENDING,
    Connection,
    Limits,
    MqttOptions,
    mending,
    packet_size,
    trust,
    words_of,
)
from evbatteryd.sinks.payload import Message
from tests.mosquitto import LOOPBACK, PATIENCE_S, Mosquitto, Witness, program
from tests.sinks.world import kept, packet, packet_id, server, websocket_front

WILL = Message("evbatteryd/bridge/state", b"offline")
NEWS = Message("evbatteryd/car_1/soc", b"61")
PROTOCOLS = ["5", "3.1.1"]
ACCEPTED = {"5": b"\x20\x03\x00\x00\x00", "3.1.1": b"\x20\x02\x00\x00"}


def options(port: int, **further: object) -> MqttOptions:
    return MqttOptions(port=port, **({"host": LOOPBACK} | further))  # type: ignore[arg-type]


@asynccontextmanager
async def connected(
    port: int, heard: list[paho.MQTTMessage] | None = None, **further: object
) -> AsyncIterator[Connection]:
    chosen = options(port, **further)
    tls = trust(chosen) if chosen.tls else None
    connection = Connection(chosen, WILL, tls, None if heard is None else heard.append)
    async with asyncio.timeout(PATIENCE_S):
        await connection.enter()
    try:
        yield connection
    finally:
        connection.drop()


async def complaint(port: int, **further: object) -> tuple[str, str]:
    """Why there is no connection, and what helps against it, in words."""
    told = None
    try:
        async with connected(port, **further):
            pass
    except (aiomqtt.MqttError, OSError) as error:
        told = words_of(error), mending(error)
    gc.collect()  # paho leaves the socket of a failed handshake to it
    assert told is not None
    return told


async def tell(connection: Connection, message: Message = NEWS) -> ReasonCode | None:
    async with asyncio.timeout(PATIENCE_S):
        await connection.slot()
        return await connection.send(message)


async def ended(connection: Connection) -> str:
    """Wait for the end of a connection: its reason."""
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(aiomqtt.MqttError):
            await connection.watch()
    return connection.reason


def connack(*properties: bytes, code: int = 0) -> bytes:
    told = b"".join(properties)
    return bytes([0x20, 3 + len(told), 0, code, len(told)]) + told


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handle: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A broker of our own, with all of its connections closed when it ends."""
    under_way: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, OSError):
            await handle(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    listening = await asyncio.start_server(serve, LOOPBACK, 0, ssl=tls)
    async with listening:
        yield listening.sockets[0].getsockname()[1]
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*filter(None, under_way))


@asynccontextmanager
async def scripted(
    answer: bytes, granted: bytes = b""
) -> AsyncIterator[tuple[int, asyncio.Queue[tuple[int, bytes]]]]:
    """A broker that answers CONNECT so, and SUBSCRIBE, and acknowledges; and what it was sent."""
    sent: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            kind, body = await packet(reader)
            sent.put_nowait((kind, body))
            match kind:
                case 0x10:
                    writer.write(answer)
                case 0x30:
                    writer.write(b"\x40\x02" + packet_id(body))
                case 0x80:
                    writer.write(bytes([0x90, 2 + len(granted)]) + body[:2] + granted)
                case 0xC0:
                    writer.write(b"\xd0\x00")

    async with serving(serve) as port:
        yield port, sent


async def until_sent(sent: asyncio.Queue[tuple[int, bytes]], kind: int) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found, body = await sent.get()
            if found == kind:
                return body


# Ways to the broker


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it signed: ``localhost`` and ``client``."""
    folder = tmp_path_factory.mktemp("certificates")
    openssl = program("openssl")

    def run(*arguments: str) -> None:
        subprocess.run([openssl, *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    run("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    for name in ("localhost", "client"):
        request = ("-addext", f"subjectAltName=DNS:{name}", "-subj", f"/CN={name}")
        authority = ("-CA", "ca.pem", "-CAkey", "ca.key")
        run("req", "-x509", *key, *request, *authority, "-keyout", f"{name}.key", "-out", f"{name}.pem")
    return folder


@pytest.fixture
async def tls_broker(certificates: Path, tmp_path: Path) -> AsyncIterator[Mosquitto]:
    """Speaks TLS as ``localhost``, and lets in whom the authority knows."""
    lines = [
        f"cafile {certificates}/ca.pem",
        f"certfile {certificates}/localhost.pem",
        f"keyfile {certificates}/localhost.key",
        "require_certificate true",
        "use_identity_as_username true",
    ]
    async with Mosquitto(tmp_path / "tls", settings="\n".join(lines)) as broker:
        yield broker


def ours(folder: Path) -> dict[str, object]:
    return {
        "tls": True,
        "ca_file": folder / "ca.pem",
        "client_certificate": folder / "client.pem",
        "client_key": folder / "client.key",
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_certificates_of_both_sides_lead_there(
    tls_broker: Mosquitto, certificates: Path, protocol: str
) -> None:
    way = {**ours(certificates), "host": "localhost", "protocol": protocol}
    async with connected(tls_broker.port, **way) as connection:
        answer = await tell(connection)
        assert answer is not None
        assert not answer.is_failure
        assert str(connection.encryption).startswith("TLSv1.")


async def test_a_broker_under_another_name_is_known_by_its_certificate(
    tls_broker: Mosquitto, certificates: Path
) -> None:
    way = {**ours(certificates), "host": LOOPBACK, "tls_server_name": "localhost"}
    async with connected(tls_broker.port, **way) as connection:
        assert await tell(connection) is not None


@pytest.mark.filterwarnings(
    "ignore:unclosed <ssl.SSLSocket:ResourceWarning"
)  # paho, after a failed handshake
@pytest.mark.parametrize(
    ("way", "words", "mend"),
    [
        ({"ca_file": None}, "not trusted", "mqtt.ca_file"),
        ({"host": LOOPBACK}, "not trusted: IP address mismatch", "mqtt.tls_server_name"),
        ({"tls_server_name": "broker.example.org"}, "not valid for 'broker.example.org'", "tls_server_name"),
        ({"ca_file": Path("missing.pem")}, "no such file or directory", "mqtt.ca_file"),
        ({"client_certificate": None, "client_key": None}, "mqtt.client_certificate", ""),
        ({"tls": False}, "mqtts://", ""),
    ],
)
async def test_a_certificate_that_is_not_right_leads_nowhere_and_is_named(
    tls_broker: Mosquitto, certificates: Path, way: dict[str, object], words: str, mend: str
) -> None:
    said, help_ = await complaint(tls_broker.port, **({**ours(certificates), "host": "localhost"} | way))
    assert words in said
    assert mend in help_


async def test_a_key_that_is_of_another_certificate_is_named(
    tls_broker: Mosquitto, certificates: Path
) -> None:
    way = {**ours(certificates), "host": "localhost", "client_key": certificates / "localhost.key"}
    said, _ = await complaint(tls_broker.port, **way)
    assert "is not the key of" in said


@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
async def test_tls_to_a_port_without_it_is_said(broker: Mosquitto, certificates: Path) -> None:
    way = {"host": "localhost", "tls": True, "ca_file": certificates / "ca.pem"}
    _, help_ = await complaint(broker.port, **way)
    assert "this port speaks TLS" in help_ or "host and port" in help_


@pytest.mark.parametrize(
    ("way", "name"),
    [({"host": "localhost"}, "localhost"), ({"host": LOOPBACK, "tls_server_name": "localhost"}, "localhost")],
)
async def test_the_server_is_named_before_it_shows_its_certificate(
    certificates: Path, way: dict[str, object], name: str
) -> None:
    """SNI: one address may serve several brokers."""
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "localhost.pem", certificates / "localhost.key")
    context.sni_callback = lambda _, asked_for, __: asked.append(asked_for)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(ACCEPTED["5"])
        await reader.read()

    trusted = certificates / "ca.pem"
    async with serving(serve, context) as port, connected(port, tls=True, ca_file=trusted, **way):
        assert asked == [name]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_websocket_leads_there_by_its_path_and_host(broker: Mosquitto, protocol: str) -> None:
    async with websocket_front(broker.port, "/ws") as (port, asked):
        way = {"host": "localhost", "websocket_path": "/ws?a=b", "protocol": protocol}
        async with connected(port, **way) as connection, Witness(broker.port) as witness:
            assert await tell(connection) is not None
            await witness.until(lambda w: w.last(NEWS.topic) == "61")
        assert asked == [f"localhost:{port} http://localhost:{port} /ws?a=b"]


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # paho, after a failed handshake
async def test_a_websocket_that_is_not_there_is_said(broker: Mosquitto) -> None:
    async with websocket_front(broker.port, "/ws") as (port, _):
        said, help_ = await complaint(port, websocket_path="/mqtt")
        assert said == "the WebSocket was not accepted"
        assert "path in mqtt.url" in help_


async def test_a_broker_that_is_not_there_is_said() -> None:
    async with server(lambda _, writer: writer.close()) as port:
        pass
    said, help_ = await complaint(port)
    assert said == "connection refused"
    assert help_.startswith("Start the broker")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_who_knows_the_password_gets_in(tmp_path: Path, protocol: str) -> None:
    async with Mosquitto(tmp_path / "mosquitto", users={"ev": "right"}) as broker:
        known = {"username": "ev", "protocol": protocol}
        async with connected(broker.port, password="right", **known) as connection:
            assert await tell(connection) is not None
        said, help_ = await complaint(broker.port, password="wrong", **known)
        assert said == "not authorized"
        assert "mqtt.password" in help_


# What the broker allows


@pytest.mark.parametrize(
    ("setting", "limits"),
    [
        ("", Limits(in_flight=20)),
        ("max_inflight_messages 3", Limits(in_flight=3)),
        ("max_packet_size 500", Limits(in_flight=20, largest_packet=500)),
        ("max_keepalive 20", Limits(in_flight=20, keepalive=20)),
        ("retain_available false", Limits(in_flight=20, retains=False)),
    ],
)
async def test_mosquitto_says_what_it_allows(tmp_path: Path, setting: str, limits: Limits) -> None:
    async with (
        Mosquitto(tmp_path / "mosquitto", settings=setting) as broker,
        connected(broker.port) as connection,
    ):
        assert connection.limits == limits
        assert connection.retains is limits.retains


@pytest.mark.parametrize(
    ("properties", "limits"),
    [
        (b"\x21\x00\x07", Limits(in_flight=7)),
        (b"\x27\x00\x00\x04\x00", Limits(largest_packet=1024)),
        (b"\x24\x01", Limits()),
        (b"\x25\x00", Limits(retains=False)),
        (b"\x28\x00", Limits(wildcards=False)),
        (b"\x13\x00\x0f", Limits(keepalive=15)),
        (b"\x11\x00\x00\x00\x05", Limits(session_expiry=5)),
        (b"\x12\x00\x02ab\x22\x00\x00", Limits()),
    ],
)
async def test_what_any_broker_allows_is_taken_from_its_first_answer(
    properties: bytes, limits: Limits
) -> None:
    async with scripted(connack(properties)) as (port, _), connected(port) as connection:
        assert connection.limits == limits


async def test_a_message_that_is_too_large_is_refused_without_being_sent(tmp_path: Path) -> None:
    """The others pass, and what it had reserved is free again."""
    fitting = Message(NEWS.topic, b"x" * 400, expiry=60, json=True)
    largest = 0
    async with scripted(ACCEPTED["5"]) as (port, sent), connected(port) as connection:
        await tell(connection, fitting)
        largest = 3 + len(await until_sent(sent, 0x30))  # one for its kind, two for its length
    async with (
        Mosquitto(tmp_path / "mosquitto", settings=f"max_packet_size {largest}") as broker,
        connected(broker.port) as connection,
        Witness(broker.port) as witness,
    ):
        for _ in range(2 * IN_FLIGHT):
            answer = await tell(connection, fitting._replace(payload=b"x" * 401))
            assert answer is not None
            assert answer.is_failure
            assert str(answer) == "Packet too large"
            assert "max_packet_size" in MENDING[answer.value]
        answer = await tell(connection, fitting)
        assert answer is not None
        assert not answer.is_failure
        await witness.until(lambda w: w.heard)
        assert [len(message.payload) for message in witness.heard] == [400]


@given(
    topic=st.text(
        st.characters(exclude_characters="+#\0", exclude_categories=["Cs"]), min_size=1, max_size=90
    ),
    payload=st.binary(max_size=300) | st.integers(16_000, 17_000).map(bytes),
    expiry=st.none() | st.integers(1, 2**32 - 1),
)
def test_the_size_of_a_packet_is_that_of_what_is_written(
    topic: str, payload: bytes, expiry: int | None
) -> None:
    properties = None
    if expiry is not None:
        properties = Properties(PacketTypes.PUBLISH)
        properties.MessageExpiryInterval = expiry
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client._sock = object()  # type: ignore[assignment]
    client._on_socket_register_write = lambda *_: None
    client._send_publish(1, topic.encode(), payload, 1, False, False, None, properties)
    (written,) = client._out_packet
    client._sock = None
    assert packet_size(topic, payload, properties) == len(written["packet"])


async def test_no_more_is_in_flight_than_the_broker_allows(tmp_path: Path) -> None:
    async with (
        Mosquitto(tmp_path / "mosquitto", settings="max_inflight_messages 3") as broker,
        connected(broker.port) as connection,
    ):
        broker.freeze()
        answers = []
        for _ in range(3):
            await asyncio.wait_for(connection.slot(), PATIENCE_S)
            answers.append(connection.send(NEWS))
        fourth = asyncio.create_task(connection.slot())
        await asyncio.sleep(0.05)
        assert not fourth.done()
        broker.thaw()
        await asyncio.wait_for(fourth, PATIENCE_S)
        await asyncio.wait_for(asyncio.gather(*answers), PATIENCE_S)


async def test_a_broker_hears_of_us_as_often_as_it_wants() -> None:
    """Server Keep Alive of a second, where we had offered an hour."""
    async with scripted(connack(b"\x13\x00\x01")) as (port, sent), connected(port, keepalive=3600.0):
        await until_sent(sent, 0xC0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_broker_is_told_how_often_it_hears_of_us(protocol: str) -> None:
    async with scripted(ACCEPTED[protocol]) as (port, sent):
        async with connected(port, keepalive=77.0, protocol=protocol):
            body = await until_sent(sent, 0x10)
        assert body[8:10] == (77).to_bytes(2, "big")  # after "MQTT", version and flags


async def test_a_broker_that_is_silent_for_too_long_is_given_up(broker: Mosquitto) -> None:
    async with connected(broker.port, keepalive=1.0) as connection:
        broker.freeze()
        assert await ended(connection) == "the broker was not heard of for too long"
        assert connection.mend is None


async def test_a_broker_that_does_not_acknowledge_is_refused(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path / "mosquitto", settings="max_qos 0") as broker:
        for said, help_ in (await complaint(broker.port), await refusal(connack(b"\x24\x00"))):
            assert said == "qos not supported"
            assert "max_qos" in help_


async def refusal(answer: bytes) -> tuple[str, str]:
    async with scripted(answer) as (port, _):
        return await complaint(port)


async def test_a_broker_that_retains_nothing_is_told_all_the_same(tmp_path: Path) -> None:
    """The last will, too: it would refuse one to be retained."""
    async with (
        Mosquitto(tmp_path / "mosquitto", settings="retain_available false") as broker,
        Witness(broker.port) as witness,
    ):
        async with connected(broker.port) as connection:
            assert not connection.retains
            answer = await tell(connection)
            assert answer is not None
            assert not answer.is_failure
        await witness.until(lambda w: w.last(WILL.topic) == "offline")
        assert [(m.topic, m.retain) for m in witness.heard] == [(NEWS.topic, False), (WILL.topic, False)]
        assert await kept(broker.port) == {}


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_is_to_be_retained_is(broker: Mosquitto, protocol: str) -> None:
    async with connected(broker.port, protocol=protocol) as connection:
        assert connection.retains
        await tell(connection)
        assert await kept(broker.port) == {NEWS.topic: "61"}
    async with Witness(broker.port, WILL.topic) as witness:
        await witness.until(lambda w: w.last(WILL.topic) == "offline")


# Listening


@pytest.mark.parametrize("retained", [True, False])
async def test_what_is_retained_comes_only_if_it_is_wanted(broker: Mosquitto, retained: bool) -> None:
    heard: list[paho.MQTTMessage] = []
    async with connected(broker.port, heard) as connection:
        await tell(connection, Message("a/1", b"kept"))
        await tell(connection, Message("b/1", b"kept"))
        assert await connection.listen(["a/+", "b/+"], retained=retained) == {}
        await tell(connection, Message("c", b""))
        await tell(connection, Message("a/1", b"new"))
        await until_heard(heard, "a/1", b"new")
        told = sorted((message.topic, message.payload) for message in heard if message.payload == b"kept")
        assert told == ([("a/1", b"kept"), ("b/1", b"kept")] if retained else [])
        # Whoever wants what is retained can tell it from what is published from now on; others hear of
        # what is published from now on whether it is to be retained.
        assert [m.retain for m in heard if m.payload == b"kept"] == [True] * len(told)
        assert [m.retain for m in heard if m.payload == b"new"] == [not retained]


async def until_heard(heard: list[paho.MQTTMessage], topic: str, payload: bytes) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not heard or (heard[-1].topic, heard[-1].payload) != (topic, payload):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("protocol", "granted", "words"),
    [("5", b"\x00\x01\x87\x00", "Not authorized"), ("3.1.1", b"\x01\x80\x00", "Unspecified error")],
)
async def test_what_the_broker_does_not_let_be_heard_is_named(
    protocol: str, granted: bytes, words: str
) -> None:
    """One of three; the last is granted with QoS 0, which is a grant."""
    async with (
        scripted(ACCEPTED[protocol], granted) as (port, sent),
        connected(port, protocol=protocol) as connection,
    ):
        refused = await connection.listen(["ours/+/set", "theirs/+/set", "else/#"])
        assert {pattern: str(code) for pattern, code in refused.items()} == {"theirs/+/set": words}
        asked = await until_sent(sent, 0x80)
        assert all(pattern in asked for pattern in (b"ours/+/set", b"theirs/+/set", b"else/#"))


async def test_a_broker_without_wildcards_is_asked_for_none() -> None:
    async with scripted(connack(b"\x28\x00")) as (port, _), connected(port) as connection:
        refused = await connection.listen(["a/+/set", "a/#"])
        assert {str(code) for code in refused.values()} == {"Wildcard subscription not supported"}
        assert list(refused) == ["a/+/set", "a/#"]


# The session


@pytest.mark.parametrize(
    ("protocol", "expiry", "arrives"), [("5", 60, True), ("5", 0, False), ("3.1.1", 60, False)]
)
async def test_what_was_sent_while_the_connection_was_broken_arrives_if_the_session_was_kept(
    broker: Mosquitto, protocol: str, expiry: int, arrives: bool
) -> None:
    way = {"protocol": protocol, "session_expiry": expiry}
    heard: list[paho.MQTTMessage] = []
    async with connected(broker.port, **way) as connection:
        assert not connection.resumed
        assert await connection.listen(["evbatteryd/+/poll/set"]) == {}
    async with connected(broker.port, client_id="automation") as other:
        await tell(other, Message("evbatteryd/car_1/poll/set", b"now"))
        await tell(other, Message("evbatteryd/car_1/poll/set", b""))  # not retained any longer
    async with connected(broker.port, heard, **way) as connection:
        assert connection.resumed is arrives
        assert await connection.listen(["evbatteryd/+/poll/set"]) == {}
        await tell(connection, Message("evbatteryd/car_2/poll/set", b"then"))
        await until_heard(heard, "evbatteryd/car_2/poll/set", b"then")
        assert [message.payload for message in heard] == ([b"now", b"", b"then"] if arrives else [b"then"])


async def test_what_was_sent_longer_ago_than_the_session_is_kept_does_not_arrive(broker: Mosquitto) -> None:
    heard: list[paho.MQTTMessage] = []
    async with connected(broker.port, session_expiry=1) as connection:
        assert await connection.listen(["evbatteryd/+/poll/set"]) == {}
    async with connected(broker.port, client_id="automation") as other:
        await tell(other, Message("evbatteryd/car_1/poll/set", b"now"))
    await asyncio.sleep(3)  # mosquitto looks for sessions to forget once a second
    async with connected(broker.port, heard, session_expiry=1) as connection:
        assert not connection.resumed
        assert await connection.listen(["evbatteryd/+/poll/set"]) == {}
        await tell(connection, Message("evbatteryd/car_2/poll/set", b"then"))
        await until_heard(heard, "evbatteryd/car_2/poll/set", b"then")
        assert [message.payload for message in heard] == [b"then"]


# Why it ended, why it never began


async def test_two_daemons_with_one_client_id_are_told_what_it_may_be(broker: Mosquitto) -> None:
    """mosquitto 2.0 closes the connection of the first without a word; see below for brokers that say it."""
    async with connected(broker.port) as first, connected(broker.port) as second:
        assert await ended(first) == "the connection broke"
        assert "mqtt.client_id" in str(first.mend)
        assert await tell(second) is not None


@pytest.mark.parametrize(
    ("farewell", "reason", "mend"),
    [
        (b"\xe0\x01\x8e", "session taken over", "mqtt.client_id"),
        (b"\xe0\x01\x8b", "server shutting down", "again"),
        (b"\xe0\x01\x8d", "keep alive timeout", "mqtt.keepalive"),
        (b"\xe0\x01\x97", "quota exceeded", "quota"),
        (b"\xe0\x07\x9d\x05\x1c\x00\x02b2", "server moved (b2)", "mqtt.url"),
        (b"\xe0\x0b\x98\x09\x1f\x00\x06go\x07out", "administrative action (go out)", "runs the broker"),
        (b"\xe0\x00", "the broker closed the connection", None),
    ],
)
async def test_why_a_broker_ended_the_connection_is_said(
    farewell: bytes, reason: str, mend: str | None
) -> None:
    said = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await packet(reader)
        writer.write(ACCEPTED["5"])
        await said.wait()
        writer.write(farewell)

    async with serving(serve) as port, connected(port) as connection:
        said.set()
        assert await ended(connection) == reason
        assert connection.mend is None if mend is None else mend in str(connection.mend)


@pytest.mark.parametrize(
    ("answer", "words", "mend"),
    [
        (connack(code=0x85), "client identifier not valid", "mqtt.client_id"),
        (connack(code=0x86), "bad user name or password", "mqtt.password"),
        (connack(b"\x1c\x00\x07b2:1883", code=0x9C), "use another server (b2:1883)", "mqtt.url"),
        (connack(b"\x1f\x00\x03why", code=0x8A), "banned (why)", "banned"),
        (connack(code=0x89), "server busy", "again"),
        (b"\x20\x02\x00\x01", "unsupported protocol version", "mqtt.protocol"),
        (
            connack(code=0xF0),
            "what the broker answered cannot be read: does it speak this mqtt.protocol?",
            "mqtt.protocol",
        ),
        (
            b"\x20\x01\x00",
            "what the broker answered cannot be read: does it speak this mqtt.protocol?",
            "mqtt.protocol",
        ),
    ],
)
async def test_why_a_broker_lets_nobody_in_is_said(answer: bytes, words: str, mend: str) -> None:
    said, help_ = await refusal(answer)
    assert said == words
    assert mend in help_


async def test_what_a_broker_says_is_cut_to_a_line() -> None:
    long = ("x" * 250).encode()
    said = b"\x1f" + len(long).to_bytes(2, "big") + long
    length = len(said)
    answer = bytes(
        [0x20, (length + 4) & 127 | 128, (length + 4) >> 7, 0, 0x8A, length & 127 | 128, length >> 7]
    )
    words, _ = await refusal(answer + said)
    assert words == f"banned ({'x' * 200})"


@pytest.mark.parametrize("code", [code for code in ReasonCode.names if code >= 128])
def test_every_reason_to_fail_comes_with_what_helps(code: int) -> None:
    assert MENDING[code].endswith(".")


async def test_a_failed_attempt_leaves_no_task_and_no_socket_behind() -> None:
    await refusal(connack(code=0x89))
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() if "_misc_loop" in repr(task) and not task.done()} == set()


def test_options_do_not_show_the_password() -> None:
    assert "hunter2" not in repr(options(1883, username="me", password="hunter2"))

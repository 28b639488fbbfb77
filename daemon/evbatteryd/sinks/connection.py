"""One connection to an MQTT broker, as :mod:`evbatteryd.sinks.mqtt` needs it: what is sent is answered for.

aiomqtt carries it. What is its own here: the broker's answer to every message, its limits, and why a
connection could not be made or ended, in words and with how to mend it.

Of a broker's limits (MQTT 5, CONNACK) paho heeds the packet identifiers alone. Here: what may be in flight,
how large a packet may be, that nothing is retained, that no wildcard is subscribed to, how often it wants to
hear of us. A broker without QoS 1 is refused, for without acknowledgements readings would be lost unseen.
Topic aliases are not used.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from evbatteryd.sinks.payload import SCHEMA, Message

CONNECT_TIMEOUT_S = 15.0
ACK_TIMEOUT_S = 15.0
"""A broker that acknowledges nothing for this long, up to twice as long, is given up: it may be frozen."""
IN_FLIGHT = 64
"""Messages that wait for their acknowledgement at a time. More gain nothing."""
LARGEST_HEARD: Final = 16 * 1024
"""Bytes of a packet. A broker keeps larger ones from us (MQTT 5)."""
ANSWER_KEPT_S: Final = 60
"""How long a broker keeps an answer for somebody who is away."""

_AGAIN: Final = "Nothing: it is tried again and again."
_ITS_LOG: Final = "Look into the broker's log."
_ITS_LIMITS: Final = "Look into the broker's log and limits."
MENDING: Final = {
    128: _ITS_LOG,
    129: "Look into the broker's log: it takes what we send for malformed.",
    130: "Look into the broker's log: it takes what we send for a breach of the protocol.",
    131: _ITS_LOG,
    132: 'Set mqtt.protocol to the other of "5" and "3.1.1".',
    133: "Set another mqtt.client_id; or a shorter mqtt.keepalive, if the broker limits that.",
    134: "Check mqtt.username and mqtt.password.",
    135: "Check mqtt.username and mqtt.password, and what the broker allows this user.",
    136: _AGAIN,
    137: _AGAIN,
    138: "Ask whoever runs the broker why this client is banned.",
    139: _AGAIN,
    140: "The broker wants another way of signing in than by user name and password.",
    141: "If it goes on, raise mqtt.keepalive: the network or this machine stands still for longer.",
    142: "Another client came with the same mqtt.client_id: two daemons, perhaps. Give each its own.",
    143: "Check mqtt.base_topic and mqtt.discovery_prefix: the broker does not let this be subscribed to.",
    144: "Check mqtt.base_topic and mqtt.discovery_prefix: the broker does not take this topic.",
    145: _ITS_LOG,
    146: _ITS_LOG,
    147: _ITS_LIMITS,
    148: _ITS_LOG,
    149: "Raise the broker's limit on the size of packets (mosquitto: max_packet_size).",
    150: "Raise the broker's limit on the rate of messages.",
    151: "Raise the broker's quota for this client.",
    152: "Ask whoever runs the broker why it ended the connection.",
    153: _ITS_LOG,
    154: "Let the broker retain messages (mosquitto: retain_available true).",
    155: "Let the broker take QoS 1 (mosquitto: max_qos 1): without acknowledgements readings would be lost.",
    156: "Set mqtt.url to the server that the broker names, or ask whoever runs it.",
    157: "Set mqtt.url to the server that the broker names, or ask whoever runs it.",
    158: _ITS_LOG,
    159: _AGAIN,
    160: "Raise the broker's limit on how long a client may stay.",
    161: _ITS_LOG,
    162: "Let the broker take subscriptions with wildcards: commands and events of every car need one.",
}
"""By the reason codes of MQTT 5 (2.4), to which those of 3.1.1 are mapped."""
RETAIN_NOT_SUPPORTED: Final = 154
_QOS_NOT_SUPPORTED: Final = ReasonCode(PacketTypes.CONNACK, identifier=155)
_PACKET_TOO_LARGE: Final = ReasonCode(PacketTypes.DISCONNECT, identifier=149)
"""paho knows it of no PUBACK: brokers end the connection instead, so such a packet is not sent."""
_NO_WILDCARDS: Final = ReasonCode(PacketTypes.SUBACK, identifier=162)
_PROTOCOL_ERROR: Final = 130
_KEEP_ALIVE_TIMEOUT: Final = 141

_CLOSED: Final = {0: "the broker closed the connection", 128: "the connection broke"}
"""What the codes mean that paho gives a connection which ended without one."""
_UNREAD: Final = "what the broker answered cannot be read: does it speak this mqtt.protocol?"
_SILENT: Final = "the broker was not heard of for too long"
_BROKEN_OFTEN: Final = "If it goes on, see whether another client has the same mqtt.client_id."
"""mosquitto 2.0 does not say that a session was taken over, as MQTT 5 has it (3.1.4)."""
_LONGEST_SAID: Final = 200
"""Characters of what a broker says of its own accord."""
_WRONG_NAME: Final = frozenset({62, 63, 64})
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, EMAIL_MISMATCH and IP_ADDRESS_MISMATCH (openssl/x509_vfy.h)."""

_QUICK_ACK: Final[int | None] = getattr(socket, "TCP_QUICKACK", None)
"""Linux has it. It wears off, so it is set again and again."""

_quiet = logging.getLogger("evbatteryd.sinks.mqtt.aiomqtt")
"""For aiomqtt and paho: everything they log is told by what they raise."""
_quiet.propagate = False
_quiet.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MqttOptions:
    """Where the broker is and how to speak to it."""

    host: str
    port: int
    tls: bool = False
    ca_file: Path | None = None
    """The authorities to trust; None: those of the system."""
    client_certificate: Path | None = None
    client_key: Path | None = None
    websocket_path: str | None = None
    """None: plain MQTT."""
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_id: str = "evbatteryd"
    base_topic: str = "evbatteryd"
    discovery: bool = True
    """Home Assistant is told of the cars."""
    discovery_prefix: str = "homeassistant"
    protocol: Literal["5", "3.1.1"] = "5"
    json_state: bool = True
    scalars: bool = True
    keepalive: float = 30.0
    """Seconds; a broker that speaks MQTT 5 may want another figure."""
    session_expiry: int = 0
    """Seconds for which the broker keeps what was sent to us while we are away; 0: not at all. MQTT 5."""
    tls_server_name: str | None = None
    """Whose certificate is expected; None: that of ``host``."""

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


class Silent(aiomqtt.MqttError):
    """The broker has stopped answering, but not hung up."""


class Refused(aiomqtt.MqttCodeError):
    """The broker did not let us in, or is none that we can use. ``rc`` is the reason."""

    def __init__(self, reason: ReasonCode, said: str = "") -> None:
        """``said``: by the broker, beside the reason."""
        super().__init__(reason)
        self.words = _with(code_words(reason), said)

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the broker allows, as its CONNACK says. On MQTT 3.1.1 it says nothing: then these defaults."""

    in_flight: int = 65535
    """Messages that wait for their acknowledgement."""
    largest_packet: int | None = None
    """Bytes; None: no limit."""
    acknowledges: bool = True
    """It takes QoS 1."""
    retains: bool = True
    wildcards: bool = True
    keepalive: int | None = None
    """Seconds; None: ours will do."""
    session_expiry: int | None = None
    """Seconds; None: as long as we asked for."""

    @classmethod
    def of(cls, properties: Properties | None) -> Limits:
        """``properties``: of a CONNACK."""

        def told(name: str, default: Any) -> Any:
            return getattr(properties, name, default)

        return cls(
            in_flight=told("ReceiveMaximum", 65535),
            largest_packet=told("MaximumPacketSize", None),
            acknowledges=told("MaximumQoS", 2) > 0,
            retains=bool(told("RetainAvailable", 1)),
            wildcards=bool(told("WildcardSubscriptionAvailable", 1)),
            keepalive=told("ServerKeepAlive", None),
            session_expiry=told("SessionExpiryInterval", None),
        )


class Connection(aiomqtt.Client):
    """One connection to the broker, used once.

    Fresh for each connection, because paho delivers what an earlier one left unacknowledged after the news.
    aiomqtt's own ``publish`` takes a refusal of the broker for its acknowledgement, and lets every message
    of a broken connection wait for its full timeout; :meth:`send` gives the broker's answer, or None as soon
    as the connection is dropped.

    ``limits``: what the broker allows. ``retains``: whether it keeps anything for who comes later; if not,
    nothing is sent to be retained. ``resumed``: whether it has kept our subscriptions, and what was sent to
    us meanwhile. All hold from :meth:`enter` on.
    """

    def __init__(
        self,
        options: MqttOptions,
        will: Message | None,
        tls: ssl.SSLContext | None,
        heard: Callable[[paho.MQTTMessage], None] | None = None,
        *,
        careful: bool = False,
    ) -> None:
        """``heard``: is handed every message that arrives, and must not raise. None: none are wanted.
        ``careful``: one message is in flight at a time, until :meth:`trust` is called.

        With a session that the broker keeps, messages may arrive before anything was subscribed to.
        """
        fifth = options.protocol == "5"
        websocket = options.websocket_path is not None
        super().__init__(
            options.host,
            options.port,
            username=options.username,
            password=options.password,
            logger=_quiet,
            identifier=options.client_id,
            protocol=aiomqtt.ProtocolVersion.V5 if fifth else aiomqtt.ProtocolVersion.V311,
            will=None if will is None else _last(will, retain=_to_be_retained(will)),
            clean_session=None if fifth else True,
            clean_start=not options.session_expiry if fifth else paho.MQTT_CLEAN_START_FIRST_ONLY,
            transport="websockets" if websocket else "tcp",
            websocket_path=options.websocket_path,
            websocket_headers=_websocket_headers(options) if websocket else None,
            timeout=CONNECT_TIMEOUT_S,
            keepalive=round(options.keepalive),
            tls_context=tls,
            # A reading is several small packets: Nagle's algorithm would hold back all but the first.
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
            properties=_wishes(options.session_expiry) if fifth else None,
            # We count what is in flight ourselves: paho cannot learn the broker's limit once it is connected.
            max_inflight_messages=0,
        )
        self.limits = Limits()
        self.careful = careful
        self.retains = True
        self.resumed = False
        self._fifth = fifth
        self._options = options
        self._will = will
        self._heard = heard
        self._acknowledgements: dict[int, asyncio.Future[ReasonCode | None]] = {}
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._dropped = False
        self._farewell: ReasonCode | None = None
        self._farewell_said = ""
        self._farewell_came = False

    async def enter(self) -> None:
        """Connect. Raises MqttError. Leaves no socket behind if it fails or is cancelled."""
        try:
            try:
                await self._connect()
            finally:
                _heed_cancellation()
        except BaseException:
            self.drop()
            raise

    async def _connect(self) -> None:
        try:
            await self.__aenter__()
        except Refused as refusal:
            if refusal.rc != RETAIN_NOT_SUPPORTED or self._will is None or not self.retains:
                raise
            # A broker that retains nothing must refuse a last will to be retained (MQTT 5, 3.1.2.7).
            self.retains = False
            self._client.will_set(self._will.topic, self._will.payload, qos=1, retain=False)
            self._farewell, self._farewell_said = None, ""
            await self.__aenter__()

    async def watch(self) -> None:
        """Until the connection is lost: then raises MqttError."""
        async for _ in self.messages:
            pass

    async def watch_acknowledgements(self) -> None:
        """Raises MqttError when the broker has stopped answering. Pings alone would notice it much later."""
        oldest = None
        while True:
            await asyncio.sleep(ACK_TIMEOUT_S)
            if oldest is not None and not oldest.done():
                raise Silent("the broker acknowledges nothing any more")
            waiting = (answer for answer in self._acknowledgements.values() if not answer.done())
            oldest = next(waiting, None)

    async def slot(self) -> None:
        """Wait until one more message may be in flight. Raises MqttError if the connection is gone."""
        await self._slots.acquire()
        if self.ended:
            self._slots.release()  # whoever waits behind us has to know as well
            raise aiomqtt.MqttError("the connection broke")

    @property
    def ended(self) -> bool:
        """Whether nothing can be sent over it any more."""
        return self._dropped or self._disconnected.done()

    def trust(self) -> None:
        """As many messages may be in flight as the broker and we allow."""
        if self.careful:
            self.careful = False
            for _ in range(min(self.limits.in_flight, IN_FLIGHT) - 1):
                self._slots.release()

    def free_slot(self) -> None:
        """Give back a slot that was not needed."""
        self._slots.release()

    def send(self, message: Message) -> asyncio.Future[ReasonCode | None]:
        """Put one message on the wire, in the slot that was waited for. The answer comes later.

        One that is larger than the broker takes is not sent: its answer is there at once, a refusal.
        Raises MqttError if the connection is gone.
        """
        properties = _properties(message.expiry, message.json) if self._fifth else None
        retain = self.retains and _to_be_retained(message)
        return self._publish(message.topic, message.payload, properties, retain=retain)

    def answer(
        self, topic: str, payload: bytes, correlation: bytes | None
    ) -> asyncio.Future[ReasonCode | None]:
        """Like :meth:`send`, but nothing to be retained."""
        properties = _answer_properties(correlation) if self._fifth else None
        return self._publish(topic, payload, properties, retain=False)

    def _publish(
        self, topic: str, payload: bytes, properties: Properties | None, *, retain: bool
    ) -> asyncio.Future[ReasonCode | None]:
        acknowledgement: asyncio.Future[ReasonCode | None] = self._loop.create_future()
        largest = self.limits.largest_packet
        if largest is not None and packet_size(topic, payload, properties) > largest:
            self._slots.release()
            acknowledgement.set_result(_PACKET_TOO_LARGE)
            return acknowledgement
        sent = self._client.publish(topic, payload, 1, retain, properties)
        if sent.rc != paho.MQTT_ERR_SUCCESS:
            self._slots.release()
            raise aiomqtt.MqttCodeError(sent.rc)
        self._acknowledgements[sent.mid] = acknowledgement
        return acknowledgement

    async def listen(self, patterns: Sequence[str], *, retained: bool = False) -> dict[str, ReasonCode]:
        """Subscribe to all of these at once; those that the broker refused, and why.

        ``retained``: what is retained there is wanted, too, marked as such, and nothing is repeated. On MQTT
        3.1.1 it always comes.
        Raises MqttError if the connection is gone. Waits for as long as the broker says nothing.
        """
        refused = {} if self.limits.wildcards else {p: _NO_WILDCARDS for p in patterns if {*p} & {*"+#"}}
        asked = [pattern for pattern in patterns if pattern not in refused]
        if not asked:
            return refused
        qos = 0 if retained else 1
        if self._fifth:
            handling = (
                SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if retained else SubscribeOptions.RETAIN_DO_NOT_SEND
            )
            # As published: or what is retained from now on would look as if it were not. Who wants what is
            # retained already tells that by the same flag from what is published from now on.
            options = SubscribeOptions(qos=qos, retainAsPublished=not retained, retainHandling=handling)
            codes = await self.subscribe([(pattern, options) for pattern in asked], timeout=math.inf)
        else:
            codes = await self.subscribe([(pattern, qos) for pattern in asked], timeout=math.inf)
        answers = zip(asked, codes, strict=False)
        return refused | {p: code for p, code in answers if isinstance(code, ReasonCode) and code.is_failure}

    async def leave(self) -> None:
        """Disconnect politely: the broker forgets our last will."""
        await self.__aexit__(None, None, None)

    def drop(self) -> None:
        """Close the socket, whatever state it is in, and answer all who still wait. May be repeated."""
        self._dropped = True
        self._client._sock_close()  # disconnect() would wait for its turn in paho's queue
        for acknowledgement in self._acknowledgements.values():
            if not acknowledgement.done():
                acknowledgement.set_result(None)
            self._slots.release()
        self._acknowledgements.clear()

    @property
    def reason(self) -> str:
        """Why the connection ended, in words; empty if the socket told nothing."""
        if self._farewell is not None:
            return _with(self._farewell_words(self._farewell), self._farewell_said)
        error = self._failure()
        return "" if error is None else words_of(error)

    def _farewell_words(self, code: ReasonCode) -> str:
        ours = code.value == _KEEP_ALIVE_TIMEOUT and not self._farewell_came
        return _SILENT if ours else code_words(code)

    @property
    def mend(self) -> str | None:
        """What helps against why the connection ended; None: that it is made anew."""
        if self._farewell is None or self._farewell.value == 0:
            return None
        if self._farewell_came:
            return MENDING.get(self._farewell.value)
        return None if self._farewell.value == _KEEP_ALIVE_TIMEOUT else _BROKEN_OFTEN

    @property
    def encryption(self) -> str | None:
        """Version of TLS; None: the connection is not encrypted, or there is none."""
        sock: Any = self._client.socket()
        inner = getattr(sock, "_socket", sock)  # below paho's WebSocket
        return inner.version() if isinstance(inner, ssl.SSLSocket) else None

    def _failure(self) -> BaseException | None:
        ended = self._disconnected
        return ended.exception() if ended.done() and not ended.cancelled() else None

    # What aiomqtt lets paho call

    def _on_connect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.ConnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        if self._connected.done():
            return
        limits = Limits.of(properties)
        if reason_code.is_failure:
            self._connected.set_exception(Refused(reason_code, _said(properties)))
            return
        if not limits.acknowledges:
            self._connected.set_exception(Refused(_QOS_NOT_SUPPORTED))
            return
        if limits.keepalive is not None:
            client._keepalive = limits.keepalive  # from paho 2.2 on it does so itself
        self.limits = limits
        self.retains = self.retains and limits.retains
        self.resumed = flags.session_present
        self._slots = asyncio.Semaphore(1 if self.careful else min(limits.in_flight, IN_FLIGHT))
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(
        self,
        client: paho.Client,
        userdata: Any,
        flags: paho.DisconnectFlags,
        reason_code: ReasonCode,
        properties: Properties | None = None,
    ) -> None:
        # aiomqtt would let a connection that is closed instead of answered run into its timeout.
        if not self._connected.done():
            unread = reason_code.value == _PROTOCOL_ERROR
            words = _UNREAD if unread else _unanswered(self._options)
            self._connected.set_exception(aiomqtt.MqttError(words))
        self._farewell, self._farewell_said = reason_code, _said(properties)
        self._farewell_came = flags.is_disconnect_packet_from_server
        super()._on_disconnect(client, userdata, flags, reason_code, properties)
        # Looked at, so that nobody misses it: aiomqtt throws the future away if the connection ended at once.
        self._failure()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        # Not into aiomqtt's queue: whoever is handed it bounds what waits, and counts what does not.
        if self._heard is not None:
            self._heard(message)

    def _on_publish(
        self, client: paho.Client, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        acknowledgement = self._acknowledgements.pop(mid, None)
        if acknowledgement is None:
            return
        self._slots.release()
        if not acknowledgement.done():
            acknowledgement.set_result(reason_code)
        if self._acknowledgements:
            self._expect_more()

    def _expect_more(self) -> None:
        """Have the kernel acknowledge at once what it gets, or the broker's Nagle holds back the rest."""
        sock = self._client.socket()
        if _QUICK_ACK is not None and isinstance(sock, socket.socket):
            sock.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)

    def _on_socket_open(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        # Called in the thread that connects, which goes on when we are cancelled.
        if self._dropped:
            sock.close()
        else:
            super()._on_socket_open(client, userdata, sock)

    def _on_socket_register_write(self, client: paho.Client, userdata: Any, sock: Any) -> None:
        if not self._dropped:
            self._loop.call_soon_threadsafe(self._await_writable, sock)

    def _await_writable(self, sock: Any) -> None:
        # By now the socket may be closed, and its number be that of another one: aiomqtt does not look.
        if sock.fileno() >= 0:
            self._loop.add_writer(sock.fileno(), self._write)

    def _write(self) -> None:
        try:
            self._client.loop_write()
        except Exception as error:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)


def _heed_cancellation() -> None:
    """Raise the CancelledError that the ``asyncio.wait_for`` of Python 3.11 swallows if it ends just then."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class _Packed(Properties):
    """Properties that are written out once: paho takes longer for that than for sending them."""

    @cached_property
    def _packed(self) -> bytes:
        return bytes(super().pack())  # type: ignore[no-untyped-call]

    def pack(self) -> bytes:
        return self._packed


@lru_cache(maxsize=1024)
def _properties(expiry: int | None, json: bool) -> Properties | None:
    """What MQTT 5 says beside a message."""
    if expiry is None and not json:
        return None
    properties = _Packed(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    if json:
        properties.ContentType = "application/json"
        properties.UserProperty = ("schema", str(SCHEMA))
    return properties


def _answer_properties(correlation: bytes | None) -> Properties:
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    properties.MessageExpiryInterval = ANSWER_KEPT_S
    properties.ContentType = "application/json"
    if correlation is not None:
        properties.CorrelationData = correlation
    return properties


def packet_size(topic: str, payload: bytes, properties: Properties | None) -> int:
    """Bytes of a PUBLISH with QoS 1 (MQTT 5, 3.3)."""
    described = 1 if properties is None else len(properties.pack())  # type: ignore[no-untyped-call]
    body = 2 + len(topic.encode()) + 2 + described + len(payload)
    length = VariableByteIntegers.encode(body)  # type: ignore[no-untyped-call]
    return 1 + len(length) + body


def _wishes(session_expiry: int) -> Properties:
    """What a broker may send us, and for how long it is to keep it while we are away."""
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = LARGEST_HEARD
    if session_expiry:
        properties.SessionExpiryInterval = session_expiry
    return properties


def _to_be_retained(message: Message) -> bool:
    return bool(message.retain)


def _last(will: Message, *, retain: bool) -> aiomqtt.Will:
    return aiomqtt.Will(will.topic, will.payload, qos=1, retain=retain)


def _websocket_headers(options: MqttOptions) -> dict[str, str]:
    """By the name that the certificate is for, which is what proxies go by; paho forgets IPv6's brackets."""
    name = options.tls_server_name or options.host
    host = f"[{name}]" if ":" in name else name
    if options.port != (443 if options.tls else 80):
        host += f":{options.port}"
    return {"Host": host, "Origin": f"{'https' if options.tls else 'http'}://{host}"}


class _ForName(ssl.SSLContext):
    """A client's context that names and expects one server, whatever name it is reached by."""

    server_name: str

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*args, **{**options, "server_hostname": self.server_name})


def trust(options: MqttOptions) -> ssl.SSLContext:
    """Read anew for each connection: certificates are renewed while we run. Raises OSError."""
    if options.tls_server_name is None:
        context = ssl.create_default_context(cafile=options.ca_file)
    else:
        context = _for_name(options.tls_server_name, options.ca_file)
    if options.client_certificate is not None:
        context.load_cert_chain(options.client_certificate, options.client_key)
    return context


def _for_name(server_name: str, ca_file: Path | None) -> ssl.SSLContext:
    context = _ForName(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = server_name
    if ca_file is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(ca_file)
    return context


# What went wrong, in words


def code_words(code: ReasonCode) -> str:
    return _CLOSED.get(code.value) or str(code).lower()


def _said(properties: Properties | None) -> str:
    """What a broker says beside a reason code: the server to use instead, a sentence of its own."""
    parts = (getattr(properties, name, "") for name in ("ServerReference", "ReasonString"))
    text = "; ".join(filter(None, parts))[:_LONGEST_SAID]
    return "".join(sign if sign.isprintable() else " " for sign in text)


def _with(words: str, said: str) -> str:
    return f"{words} ({said})" if said else words


def _unanswered(options: MqttOptions) -> str:
    """What a connection may lack that is closed before any answer."""
    if not options.tls:
        lacking = "does it want TLS (mqtts://), "
    elif options.client_certificate is None:
        lacking = "does it want a certificate of ours (mqtt.client_certificate), "
    else:
        lacking = ""
    return f"the broker closed the connection unanswered: {lacking}does it speak this mqtt.protocol?"


def words_of(error: BaseException) -> str:
    """What went wrong, without codes and class names."""
    if isinstance(error, Refused):
        return error.words
    if isinstance(error, aiomqtt.MqttCodeError):
        return code_words(error.rc) if isinstance(error.rc, ReasonCode) else _CLOSED[128]
    # aiomqtt turns the error of a socket into one of its own that holds nothing but its text.
    cause = _cause(error)
    match cause:
        case ssl.SSLCertVerificationError():
            key = "mqtt.tls_server_name" if cause.verify_code in _WRONG_NAME else "mqtt.ca_file"
            return f"the broker's certificate is not trusted: {cause.verify_message} (see {key})"
        case ssl.SSLError(reason="KEY_VALUES_MISMATCH"):
            return "mqtt.client_key is not the key of mqtt.client_certificate"
        case ssl.SSLError():
            return f"TLS failed: {(cause.reason or str(cause)).replace('_', ' ').lower()}"
        case paho.WebsocketConnectionError():
            return "the WebSocket was not accepted"
        case OSError():
            return (cause.strerror or str(cause) or str(error)).lower()
        case aiomqtt.MqttError():
            return str(cause)
        case _:
            return "what the broker said cannot be read"


def mending(error: BaseException) -> str:
    """What helps against it."""
    if isinstance(error, aiomqtt.MqttCodeError) and isinstance(error.rc, ReasonCode):
        return MENDING.get(error.rc.value, _AGAIN)
    cause = _cause(error)
    match cause:
        case ssl.SSLCertVerificationError() if cause.verify_code in _WRONG_NAME:
            return "Write the name that the certificate is for into mqtt.url, or into mqtt.tls_server_name."
        case ssl.SSLCertVerificationError():
            return "Name in mqtt.ca_file the authority that signed the broker's certificate."
        case ssl.SSLError():
            return (
                "Check that this port speaks TLS, and mqtt.ca_file, mqtt.client_certificate and client_key."
            )
        case paho.WebsocketConnectionError():
            return "Check the path in mqtt.url, and what stands between here and the broker."
        case socket.gaierror():
            return "Check the host in mqtt.url."
        case FileNotFoundError() | PermissionError():
            return "Check mqtt.ca_file, mqtt.client_certificate and mqtt.client_key."
        case OSError():
            return "Start the broker, or check host and port in mqtt.url."
        case _:
            return "Check mqtt.url and mqtt.protocol, and look into the broker's log."


def _cause(error: BaseException) -> BaseException:
    return error.__context__ if isinstance(error.__context__, OSError) else error

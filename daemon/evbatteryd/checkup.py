"""What the configuration names is tried: Smartcar's sign-in, the store's folder, the listener, the broker.

No call of a plan is spent, and a daemon that runs meanwhile is not disturbed: the broker gets a client of
another name, and one message on a topic of its own that it does not keep.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import aiomqtt
import paho.mqtt.client as paho
from paho.mqtt.reasoncodes import ReasonCode

from evbatteryd import localkey
from evbatteryd.domain.commanding import CommandKind
from evbatteryd.domain.errors import ApplicationRefused, SourceError
from evbatteryd.domain.ports import Clock
from evbatteryd.operate import NoSuchThing, NotDone, open_operator
from evbatteryd.options import mqtt_options, smartcar_options
from evbatteryd.secret import Secret
from evbatteryd.settings import Listen, MqttSettings, Settings, SmartcarSettings, is_placeholder
from evbatteryd.sinks.connection import (
    MENDING,
    Connection,
    MqttOptions,
    code_words,
    mending,
    trust,
    words_of,
)
from evbatteryd.sinks.discovery import discovery_topic
from evbatteryd.sinks.payload import Message
from evbatteryd.sources.smartcar import SmartcarSource, open_http

T = TypeVar("T")

PATIENCE_S: Final = 20.0
"""Real seconds that anything has to answer."""
ECHO_S: Final = 2.0
"""Real seconds in which a message comes back from a broker that has acknowledged it."""
LEAST_FREE_BYTES: Final = 100 * 1024 * 1024
_UNSEEN: Final = (
    "Have systemd hand it over, as it does for the daemon: systemd-run --pipe --wait "
    "--property=LoadCredential=NAME:/path/to/secret evbatteryd check --online"
)


class Verdict(StrEnum):
    GOOD = "good"
    FAILED = "error"
    UNKNOWN = "not known"
    """The answer proves nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was tried. Holds no secret."""

    what: str
    where: str
    verdict: Verdict
    said: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what} ({self.where}): {self.said}. {self.mend}".rstrip()


async def findings(settings: Settings, clock: Clock) -> AsyncIterator[Finding]:
    """Each as soon as it is there."""
    for name, application in settings.smartcar.items():
        yield await _signing_in(name, application, clock)
    yield await asyncio.to_thread(_keeping, settings.store.url.path)
    yield await _listening_for_http(settings.http.listen, settings.store.url.path)
    if settings.mqtt is not None:
        async for finding in _broker(settings.mqtt):
            yield finding


# Smartcar


class _NoCall:
    """A :class:`~evbatteryd.domain.ports.Ticket` for what costs nothing: signing in is no vehicle's call."""

    async def spend(self) -> None:
        return


async def _signing_in(name: str, settings: SmartcarSettings, clock: Clock) -> Finding:
    what, where = f"Smartcar application {name}", settings.origins.iam
    if is_placeholder(settings.client_secret):
        return _unseen(what, where, settings.client_secret)
    try:
        async with asyncio.timeout(PATIENCE_S), open_http(clock) as http:
            source = SmartcarSource(smartcar_options(name, settings), http, clock, _NoCall, lambda _: None)
            await source.sign_in()
    except ApplicationRefused as error:
        mend = "Copy client_id and client_secret anew from the credentials at https://dashboard.smartcar.com."
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=error.detail, mend=mend)
    except (SourceError, TimeoutError) as error:
        said = error.detail if isinstance(error, SourceError) else "no answer in time"
        mend = "See whether this machine gets there at all: name server, proxy, firewall, Smartcar's status."
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    return Finding(what=what, where=where, verdict=Verdict.GOOD, said="the credentials are accepted")


def _unseen(what: str, where: str, secret: Secret) -> Finding:
    said = f"not tried, for only systemd hands over the credential {secret.reveal().partition(',')[0]!r}"
    return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=_UNSEEN)


# The store


def _keeping(path: Path) -> Finding:
    what, where = "store", str(path)
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"written")
            file.flush()
            os.fsync(file.fileno())
        free = os.statvfs(folder)
    except OSError as error:
        mend = f"Let this user write to {folder}, or run this as the user that evbatteryd runs as."
        said = f"{folder} cannot be written to ({error.strerror})"
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        mend = "Run this as the user that evbatteryd runs as, or give that user the file."
        said = "the file may not be written by this user"
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    free_bytes = free.f_bavail * free.f_frsize
    said = f"{folder} can be written to, {free_bytes // 1024**2} MiB are free"
    if free_bytes < LEAST_FREE_BYTES:
        mend = "Make room: what is read must be kept before anybody is told."
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    return Finding(what=what, where=where, verdict=Verdict.GOOD, said=said)


# The listener


async def _listening_for_http(listen: Listen, db_path: Path) -> Finding:
    what, where = "HTTP", str(listen)
    try:
        await asyncio.to_thread(_try_to_bind, listen)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return await _who_listens(listen, db_path)
        mend = {
            errno.EACCES: "Give [http] listen a port from 1024 on, or a folder that this user may write to.",
            errno.EADDRNOTAVAIL: "This machine has no such address: mend [http] listen.",
        }.get(error.errno or 0, "Mend [http] listen.")
        said = f"cannot listen ({error.strerror or error})"
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    return Finding(what=what, where=where, verdict=Verdict.GOOD, said="free")


def _try_to_bind(listen: Listen) -> None:
    """Raises OSError if the daemon could not listen there, EADDRINUSE if somebody else does."""
    if listen.unix_path is not None:
        with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(str(listen.unix_path))
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        if not os.access(listen.unix_path.parent, os.W_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return
    for family, kind, protocol, _, address in socket.getaddrinfo(
        listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()


async def _who_listens(listen: Listen, db_path: Path) -> Finding:
    what, where = "HTTP", str(listen)
    try:
        key, owner = localkey.load(db_path), localkey.owner(db_path)
        async with open_operator(
            host=listen.host, port=listen.port, unix_path=listen.unix_path, key=key, owner=owner
        ) as operator:
            with suppress(NoSuchThing):  # which only whoever has the key is told
                await operator.enrolment(0)
    except (OSError, localkey.UnusableKey, NotDone) as error:
        said = f"in use, and not known to be by evbatteryd: {error}"
        mend = "Stop that program, or give [http] listen another address."
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    said = "the evbatteryd of this configuration runs there"
    return Finding(what=what, where=where, verdict=Verdict.GOOD, said=said)


# The broker


async def _broker(settings: MqttSettings) -> AsyncIterator[Finding]:
    what, where = "MQTT broker", str(settings.url)
    if settings.password is not None and is_placeholder(settings.password):
        yield _unseen(what, where, settings.password)
        return
    client_id = f"{settings.client_id}-check-{secrets.token_hex(3)}"
    options = replace(mqtt_options(settings), client_id=client_id, session_expiry=0)
    try:
        async with _connected(options) as connection:
            yield Finding(what=what, where=where, verdict=Verdict.GOOD, said=_described(options, connection))
    except (aiomqtt.MqttError, OSError) as error:
        said = f"{words_of(error) or 'no answer in time'} (tried as client {client_id!r})"
        yield Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mending(error))
        return
    own = Message(f"{settings.base_topic}/bridge/check", b"check", retain=False)
    yield await _publishing(options, own, settings.base_topic)
    commands = [f"{settings.base_topic}/+/{kind}/set" for kind in (*CommandKind, "event")]
    yield await _subscribing(options, commands)
    if settings.discovery:
        # Home Assistant takes an empty one for the end of a device; no car's slug ends like this.
        topic = discovery_topic(settings.discovery_prefix, settings.base_topic, "check_")
        yield await _publishing(options, Message(topic, b"", retain=False), settings.discovery_prefix)


@asynccontextmanager
async def _connected(
    options: MqttOptions, heard: asyncio.Queue[paho.MQTTMessage] | None = None
) -> AsyncIterator[Connection]:
    """Raises MqttError or OSError."""
    tls = await asyncio.to_thread(trust, options) if options.tls else None
    connection = Connection(options, None, tls, None if heard is None else heard.put_nowait)
    async with asyncio.timeout(PATIENCE_S):
        await connection.enter()
    try:
        yield connection
        with suppress(aiomqtt.MqttError, TimeoutError):
            async with asyncio.timeout(ECHO_S):
                await connection.leave()
    finally:
        connection.drop()


def _described(options: MqttOptions, connection: Connection) -> str:
    limits = connection.limits
    parts = [f"speaks MQTT {options.protocol}", connection.encryption or "not encrypted"]
    if options.protocol == "5":
        parts.append(f"at most {limits.in_flight} messages unacknowledged")
    if limits.largest_packet is not None:
        parts.append(f"at most {limits.largest_packet} bytes a packet")
    if limits.keepalive is not None:
        parts.append(f"wants to hear of us every {limits.keepalive} s")
    if not connection.retains:
        parts.append("keeps nothing for who subscribes later, so Home Assistant finds no car after a restart")
    return ", ".join(parts)


async def _publishing(options: MqttOptions, message: Message, below: str) -> Finding:
    what, where = "MQTT publishing", message.topic
    mend = f"Allow this user to publish to {below}/#."
    echoes: asyncio.Queue[paho.MQTTMessage] = asyncio.Queue()
    try:
        async with _connected(options, echoes) as connection:
            if options.protocol == "3.1.1":
                await _while_connected(connection, connection.listen([message.topic]))
            await connection.slot()
            sent = connection.send(message)
            answer = await _while_connected(connection, _result(sent))
            if answer is not None and answer.is_failure:
                mend = mend if answer.value == 135 else MENDING.get(answer.value, mend)
                said = f"refused: {code_words(answer)}"
                return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
            # A broker acknowledges also what it throws away, if it speaks a version that cannot say so.
            if options.protocol == "3.1.1" and not await _comes_back(echoes):
                said = "acknowledged, which in MQTT 3.1.1 proves nothing, and it did not come back"
                mend += " If it may publish there and not subscribe, all is well; MQTT 5 would tell."
                return Finding(what=what, where=where, verdict=Verdict.UNKNOWN, said=said, mend=mend)
    except (aiomqtt.MqttError, OSError) as error:
        said = f"the connection ended when it was tried ({words_of(error)}): so some brokers refuse"
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    return Finding(what=what, where=where, verdict=Verdict.GOOD, said="taken")


async def _comes_back(echoes: asyncio.Queue[paho.MQTTMessage]) -> bool:
    try:
        async with asyncio.timeout(ECHO_S):
            await echoes.get()
    except TimeoutError:
        return False
    return True


async def _subscribing(options: MqttOptions, patterns: list[str]) -> Finding:
    what, where = "MQTT subscribing", ", ".join(patterns)
    mend = "Allow this user to subscribe to it."
    try:
        async with _connected(options) as connection:
            refused = await _while_connected(connection, connection.listen(patterns))
    except (aiomqtt.MqttError, OSError) as error:
        said = f"the connection ended when it was tried ({words_of(error)}): so some brokers refuse"
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    if refused:
        said = "refused: " + "; ".join(f"{pattern}: {code_words(code)}" for pattern, code in refused.items())
        return Finding(what=what, where=where, verdict=Verdict.FAILED, said=said, mend=mend)
    return Finding(what=what, where=where, verdict=Verdict.GOOD, said="granted")


async def _result(answer: asyncio.Future[ReasonCode | None]) -> ReasonCode | None:
    return await answer


async def _while_connected(connection: Connection, doing: Coroutine[Any, Any, T]) -> T:
    """What it returns. Raises MqttError if the connection ends before, or nothing comes in time."""
    watching, done = asyncio.create_task(connection.watch()), asyncio.create_task(doing)
    try:
        await asyncio.wait({watching, done}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if done.done():
            return done.result()
        if watching.done():
            raise aiomqtt.MqttError(connection.reason or "the connection broke")
        raise aiomqtt.MqttError("no answer in time")
    finally:
        for task in (watching, done):
            task.cancel()
        await asyncio.gather(watching, done, return_exceptions=True)

"""A real broker for tests, and someone who listens to it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiomqtt
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

LOOPBACK = "127.0.0.1"
PATIENCE_S = 15.0
"""Real seconds after which something that should have happened is taken for missing."""


def program(name: str) -> str:
    """Where a program is that a test needs. Skips the test without it, but fails in CI."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class Mosquitto:
    """A mosquitto of its own on a free loopback port, as an async context manager.

    ``settings``: further lines of its configuration; :meth:`start` reads them anew.
    """

    def __init__(
        self,
        folder: Path,
        *,
        persistent: bool = False,
        users: dict[str, str] | None = None,
        settings: str = "",
    ) -> None:
        self.port = free_port()
        self.folder = folder
        self.persistent = persistent
        self.users = users
        self.settings = settings
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"mqtt://{LOOPBACK}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        """Start; return when it accepts connections."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "mosquitto.conf"
        config.write_text(await self._config())
        with (self.folder / "mosquitto.log").open("ab") as told:
            self._process = await asyncio.create_subprocess_exec(
                program("mosquitto"), "-c", str(config), stdout=asyncio.subprocess.DEVNULL, stderr=told
            )
        async with asyncio.timeout(PATIENCE_S):
            while not await self._accepts():
                if self._process.returncode is not None:
                    raise RuntimeError((self.folder / "mosquitto.log").read_text())
                await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """As systemd would: it saves what it keeps, if it keeps anything."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """As the kernel would."""
        await self._end(signal.SIGKILL)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    def freeze(self) -> None:
        """The process stays and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    async def reload(self) -> None:
        """Read users and access lists anew."""
        await self._config()
        self._signal(signal.SIGHUP)

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(
                ProcessLookupError
            ):  # not send_signal(): it reaps the process behind asyncio's back
                os.kill(process.pid, number)
                os.kill(process.pid, signal.SIGCONT)
            await process.wait()

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(LOOPBACK, self.port)
        except OSError:
            return False
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True

    async def _config(self) -> str:
        lines = [f"listener {self.port} {LOOPBACK}", "max_queued_messages 0"]
        if os.getuid() == 0:
            lines.append("user root")
        if self.persistent:
            lines += ["persistence true", f"persistence_location {self.folder}/"]
        if self.users is None:
            lines.append("allow_anonymous true")
        else:
            passwords = self.folder / "passwords"
            passwords.touch(mode=0o600)
            for name, password in self.users.items():
                command = (program("mosquitto_passwd"), "-b", str(passwords), name, password)
                changed = await asyncio.create_subprocess_exec(*command)
                assert await changed.wait() == 0
            lines.append(f"password_file {passwords}")
        return "\n".join([*lines, self.settings, ""])


@dataclass(frozen=True, slots=True)
class Heard:
    """One message as it arrived."""

    topic: str
    payload: bytes
    retain: bool
    """For a live message: as it was published. For one that the broker kept: true."""
    properties: Properties

    @property
    def text(self) -> str:
        return self.payload.decode()

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.payload)
        return found


class Witness:
    """Subscribes, and notes every message in order. An async context manager: inside, it has subscribed."""

    def __init__(
        self,
        port: int,
        pattern: str = "evbatteryd/#",
        *,
        qos: int = 1,
        retained: bool = True,
        **options: object,
    ) -> None:
        """``retained``: what the broker kept is wanted, too. ``options``: of aiomqtt's client."""
        self.heard: list[Heard] = []
        options = {"protocol": aiomqtt.ProtocolVersion.V5, **options}
        self._fifth = options["protocol"] is aiomqtt.ProtocolVersion.V5
        self._client = aiomqtt.Client(LOOPBACK, port, **options)  # type: ignore[arg-type]
        self._pattern = pattern
        self._qos = qos
        self._handling = (
            SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if retained else SubscribeOptions.RETAIN_DO_NOT_SEND
        )
        self._news = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        if self._fifth:
            options = SubscribeOptions(qos=self._qos, retainAsPublished=True, retainHandling=self._handling)
            await self._client.subscribe(self._pattern, options=options)
        else:
            await self._client.subscribe(self._pattern, qos=self._qos)
        self._listening = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._listening is not None
        self._listening.cancel()
        with suppress(asyncio.CancelledError, aiomqtt.MqttError):
            await self._listening
        with suppress(aiomqtt.MqttError):
            await self._client.__aexit__(None, None, None)

    async def _listen(self) -> None:
        async for message in self._client.messages:
            assert isinstance(message.payload, bytes)
            properties = message.properties or Properties(PacketTypes.PUBLISH)
            self.heard.append(Heard(message.topic.value, message.payload, message.retain, properties))
            self._news.set()

    async def ended(self) -> None:
        """Until the broker is gone, and all that it had sent was read."""
        assert self._listening is not None
        async with asyncio.timeout(PATIENCE_S):
            with suppress(aiomqtt.MqttError):
                await self._listening

    def on(self, topic: str) -> list[Heard]:
        """What was heard on one topic, oldest first."""
        return [message for message in self.heard if message.topic == topic]

    def last(self, topic: str) -> str | None:
        """What was last heard on a topic; None if nothing."""
        on = self.on(topic)
        return on[-1].text if on else None

    async def until(self, predicate: Callable[[Witness], object]) -> None:
        """Until ``predicate`` holds of this witness. Fails, with what was heard, if it never does."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not predicate(self):
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            told = "\n".join(f"{message.topic} {message.text}" for message in self.heard[-40:])
            pytest.fail(f"never heard what was waited for; heard:\n{told}")


class Gate:
    """A TCP way to the broker that a test can shut: a client behind it sees its connection break; or nothing
    at all."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._to = port
        self._server: asyncio.Server | None = None
        self._ways: set[asyncio.StreamWriter] = set()
        self._open = True
        self._swallows = False

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._pass, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self.shut()
        self._server.close()
        await self._server.wait_closed()

    def open(self) -> None:
        self._open = True

    def swallow(self) -> None:
        """Lose every byte either way from now on. Connections stand, and new ones are accepted."""
        self._swallows = True

    def deliver(self) -> None:
        """The opposite. What was lost stays lost."""
        self._swallows = False

    def shut(self) -> None:
        """Break every connection and let nobody in."""
        self._open = False
        for way in self._ways:
            way.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ways.add(writer)
        try:
            if not self._open:
                return
            there, away = await asyncio.open_connection(LOOPBACK, self._to)
            self._ways.add(away)
            try:
                here, yonder = writer.get_extra_info("socket"), away.get_extra_info("socket")
                await asyncio.gather(self._pump(reader, here, away), self._pump(there, yonder, writer))
            finally:
                self._ways.discard(away)
                away.transport.abort()
        except OSError:
            pass
        finally:
            self._ways.discard(writer)
            writer.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, source: socket.socket, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if not self._swallows:
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

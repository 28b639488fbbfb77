"""What a sink is told and stands on, what a broker keeps of it, and brokers that follow a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import aiomqtt
from aiohttp import web

from evbatteryd.domain.commanding import CommandAnswer, CommandKind, CommandOutcome
from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.hinting import HintAnswer, HintOutcome
from evbatteryd.domain.ports import Published
from evbatteryd.domain.reading import Reading
from tests.builders import NOON, reading, state
from tests.mosquitto import LOOPBACK, PATIENCE_S


def later(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def readings_of(number: int, count: int, first: int = 1, step: int = 1) -> list[Reading]:
    """``count`` readings of a car, a minute apart, each one percent lower."""
    return [
        reading(
            first + index * step, number=number, state=state(soc=100 - index, measured_at=later(-60 + index))
        )
        for index in range(count)
    ]


def at_its_newest(known: Car, readings: list[Reading]) -> Car:
    """The car after these readings were committed."""
    own = [one for one in readings if one.vehicle_id == known.id]
    return replace(known, state=own[-1].state, reading_id=own[-1].reading_id) if own else known


@dataclass
class Notes:
    """A manifest that survives whoever writes it, as the store's does."""

    rows: dict[tuple[str, str], Published] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    full: bool = False
    """Nothing more can be written."""
    written: int = 0

    async def published(self) -> list[Published]:
        return list(self.rows.values())

    async def note_published(self, notes: Iterable[Published]) -> None:
        if self.full:
            raise StoreError("database or disk is full")
        for note in notes:
            self.written += 1
            if note.leaves or note.gone:
                self.rows[note.place, note.slug] = note
            else:
                self.rows.pop((note.place, note.slug), None)

    async def mark(self, sink: str) -> str | None:
        return self.marks.pop(sink, None)

    async def keep_mark(self, sink: str, mark: str) -> None:
        if self.full:
            raise StoreError("database or disk is full")
        self.marks[sink] = mark

    def leaves(self, slug: str) -> set[str]:
        """What is noted to hold something, wherever it is."""
        return {leaf for note in self.rows.values() if note.slug == slug for leaf in note.leaves}


class NoHints:
    """Takes none."""

    async def told(self, slug: str, event: str, origin: str) -> HintAnswer:
        return HintAnswer(event=event, outcome=HintOutcome.NOT_READ, reason="nobody listens")


@dataclass
class Obedient:
    """Commands that are done at once, with as many answers as it is told to give."""

    kinds: frozenset[CommandKind] = frozenset()
    answers: tuple[CommandOutcome, ...] = (CommandOutcome.DONE,)
    given: list[tuple[str, str, str, str]] = field(default_factory=list)

    async def give(
        self, slug: str, kind: CommandKind, text: str, origin: str
    ) -> AsyncIterator[CommandAnswer]:
        self.given.append((slug, kind, text, origin))
        for number, outcome in enumerate(self.answers, 1):
            final = number == len(self.answers)
            yield CommandAnswer(command=kind, value=text, outcome=outcome, reason="so it is", final=final)

    def possible(self, car: Car) -> frozenset[CommandKind]:
        return self.kinds


def values_of(kept: dict[str, str]) -> dict[str, str]:
    """What is kept, without what stands beside the values: the marks and how cars are polled."""
    beside = {"mark", "polling"}
    return {topic: text for topic, text in kept.items() if topic.rpartition("/")[2] not in beside}


async def kept(port: int, pattern: str = "evbatteryd/#") -> dict[str, str]:
    """The values that the broker retains: what a subscriber who comes now is told of each topic."""
    return values_of(await all_kept(port, pattern))


async def all_kept(port: int, pattern: str = "#") -> dict[str, str]:
    """Everything that the broker retains."""
    async with aiomqtt.Client(LOOPBACK, port, protocol=aiomqtt.ProtocolVersion.V5) as subscriber:
        await subscriber.subscribe("end/of/what/is/kept", qos=1)  # or it would overtake the others
        await subscriber.subscribe(pattern, qos=1)
        await subscriber.publish("end/of/what/is/kept", qos=1)
        found: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            async for message in subscriber.messages:
                if message.topic.value == "end/of/what/is/kept":
                    return found
                if message.retain:  # else it is published just now
                    assert isinstance(message.payload, bytes)
                    found[message.topic.value] = message.payload.decode()
    raise AssertionError("the broker closed the connection")


@asynccontextmanager
async def server(handler: object) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, LOOPBACK, 0)  # type: ignore[arg-type]
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def websocket_front(broker_port: int, path: str) -> AsyncIterator[tuple[int, list[str]]]:
    """A WebSocket in front of the broker, as a reverse proxy would have it. Its port; and what it was asked
    for: host, origin and path."""
    asked: list[str] = []

    async def pass_on(request: web.Request) -> web.WebSocketResponse:
        asked.append(f"{request.headers['Host']} {request.headers['Origin']} {request.path_qs}")
        socket = web.WebSocketResponse(protocols=["mqtt"])
        await socket.prepare(request)
        reader, writer = await asyncio.open_connection(LOOPBACK, broker_port)

        async def back() -> None:
            while data := await reader.read(65536):
                await socket.send_bytes(data)
            await socket.close()

        answering = asyncio.create_task(back())
        async for message in socket:
            writer.write(message.data)
        writer.transport.abort()
        await answering
        return socket

    app = web.Application()
    app.router.add_get(path, pass_on)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, LOOPBACK, 0).start()
    try:
        yield runner.addresses[0][1], asked
    finally:
        await runner.cleanup()


def packet_id(publish: bytes) -> bytes:
    """The identifier of a PUBLISH, which comes after its topic."""
    topic_length = int.from_bytes(publish[:2], "big")
    return publish[2 + topic_length : 4 + topic_length]


async def packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One MQTT packet: its type and what follows its length."""
    (kind,) = await reader.readexactly(1)
    length, shift = 0, 0
    while True:
        (byte,) = await reader.readexactly(1)
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return kind & 0xF0, await reader.readexactly(length)

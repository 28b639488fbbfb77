"""What a sink is told, what a broker keeps of it, and brokers that follow a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta

import aiomqtt

from evbatteryd.domain.fleet import Car
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


async def kept(port: int, pattern: str = "evbatteryd/#") -> dict[str, str]:
    """Everything that the broker retains: what a subscriber who comes now is told of each topic."""
    async with aiomqtt.Client(LOOPBACK, port, protocol=aiomqtt.ProtocolVersion.V5) as subscriber:
        await subscriber.subscribe("end/of/what/is/kept")
        await subscriber.subscribe(pattern, qos=1)
        await subscriber.publish("end/of/what/is/kept", qos=1)
        found: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            async for message in subscriber.messages:
                if message.topic.value == "end/of/what/is/kept":
                    return found
                assert message.retain
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

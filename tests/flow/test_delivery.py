"""A sink walks the journal from where it left off; what it did not take is offered again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.delivery import Delivery
from tests.fakes import VirtualClock, until
from tests.flow.world import World, world


class TakingSink:
    name = "taking"

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.refuse = 0

    async def publish(self, readings: Sequence[Reading]) -> None:
        if self.refuse:
            self.refuse -= 1
            self.taken += [reading.seq for reading in readings[:1]]  # half a batch got through
            raise SinkError("the connection broke")
        self.taken += [reading.seq for reading in readings]

    def touch(self, vehicle_id: VehicleId) -> None:
        raise AssertionError("deliveries touch nothing")


@asynccontextmanager
async def delivering(w: World, sink: TakingSink) -> AsyncIterator[Delivery]:
    # A clock in time-lapse, so that the pause after a failure is short.
    delivery = Delivery(w.store, sink, VirtualClock(speed=1000), w.metrics, structlog.get_logger())
    running = asyncio.create_task(delivery.run())
    try:
        yield delivery
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_readings_are_taken_in_order_and_the_cursor_survives(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(5)
        await w.poll(*cars)
        sink = TakingSink()
        async with delivering(w, sink) as delivery:
            await delivery.caught_up()
            w.source.soc = 60
            await w.poll(cars[0])
            delivery.wake()
            await until(lambda: len(sink.taken) == 6)
            await delivery.caught_up()
            assert delivery.waiting == 0
        assert sink.taken == [1, 2, 3, 4, 5, 6]
        again = TakingSink()
        async with delivering(w, again) as delivery:
            await delivery.caught_up()
        assert again.taken == []


async def test_what_a_sink_did_not_take_is_offered_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.poll(*await w.enrol(3))
        sink = TakingSink()
        sink.refuse = 2
        async with delivering(w, sink) as delivery:
            await delivery.caught_up()
        assert sink.taken == [1, 1, 1, 2, 3]
        assert await w.store.cursor("taking") == 3

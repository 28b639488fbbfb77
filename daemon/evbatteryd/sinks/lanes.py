"""Two lanes over one connection.

The *journal lane* tells every reading, in order per car, and takes it for told when the broker has
acknowledged its messages. A reading that is superseded by then is told to whoever listens and retained for
nobody. The *latest lane* tells what changed without a reading (a confirmation, freshness, consent, the next
poll, what Home Assistant discovers): a set of cars, so that it is bounded by the fleet and only the newest
counts. It never overtakes the journal lane: while a reading of a car is owed, that car's state waits.

A car may be renamed, withdrawn or erased at any moment, also between two messages that belong together. So
each message is made just before it is sent, and none is made for a slug that the car has no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import aiomqtt

from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.fleet import Fleet
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ports import Clock
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks.courier import Courier
from evbatteryd.sinks.payload import Message
from evbatteryd.sinks.retained import Retained
from evbatteryd.sinks.session import Session
from evbatteryd.sinks.statements import Statements

SLICE = 256
"""Cars that the latest lane takes up at a time."""


class JournalLane:
    """Tells readings."""

    def __init__(self, fleet: Fleet, statements: Statements, retained: Retained, courier: Courier) -> None:
        self._fleet = fleet
        self._statements = statements
        self._retained = retained
        self._courier = courier
        # Positions in the journal: how far we were handed readings, and how far those of a car are erased.
        self._offered = 0
        self._erased: dict[VehicleId, int] = {}

    def offered(self, readings: Sequence[Reading]) -> None:
        """Readings of one car were handed to us. They may be told much later."""
        self._offered = max(self._offered, readings[-1].seq)
        self.note_erasure(readings[0].vehicle_id)

    def note_erasure(self, vehicle_id: VehicleId) -> None:
        """If the car was erased: so were its readings, of which some may be in hand."""
        car = self._fleet.get(vehicle_id)
        if car is not None and car.vehicle.withdrawn_at is not None and car.reading_id is None:
            self._erased[vehicle_id] = self._offered

    async def tell(self, session: Session, readings: Sequence[Reading]) -> None:
        """Each when the one before it is acknowledged. Raises SinkError."""
        taken = 0
        try:
            for reading in readings:
                refused = await self._tell(session, reading)
                if refused is not None:
                    raise SinkError(f"the MQTT broker refuses {refused}", taken=taken)
                taken = reading.seq
        except aiomqtt.MqttError as error:
            words = "the connection to the MQTT broker broke before all was acknowledged"
            raise SinkError(words, taken=taken) from error

    async def _tell(self, session: Session, reading: Reading) -> str | None:
        """Tell one reading under the slug that its car has. What was refused, and why.

        Begun anew if the slug changes meanwhile, or is emptied; ended by a withdrawal.
        """
        whole = False

        def messages(slug: str) -> Iterator[Message]:
            nonlocal whole
            if self._may_tell(reading, slug):
                for message in self._statements.reading(reading, session.opened_at):
                    if not self._may_tell(reading, slug):
                        return
                    yield message
                whole = True

        while not whole and (slug := self._slug_for(reading)) is not None:
            await self._retained.prepare({slug: self._statements.leaves})
            refused = await self._courier.tell(session, messages(slug), session.journal_slots)
            if refused is not None and self._slug_for(reading) == slug:
                return refused
        return None

    def _may_tell(self, reading: Reading, slug: str) -> bool:
        """Whether the reading is to be told under this slug, and that is noted."""
        return self._slug_for(reading) == slug and self._statements.leaves <= self._retained[slug].leaves

    def _slug_for(self, reading: Reading) -> str | None:
        """What a reading is to be told under; None: its car was withdrawn or erased since."""
        car = self._fleet[reading.vehicle_id]
        erased = reading.seq <= self._erased.get(car.id, 0)
        return None if erased or car.vehicle.withdrawn_at is not None else car.slug


class Touched:
    """Cars that wait for the latest lane, in the order in which they came."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._waiting: dict[VehicleId, None] = {}
        self._more = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[VehicleId]:
        return iter(self._waiting)

    def touch(self, vehicle_id: VehicleId) -> None:
        self._waiting[vehicle_id] = None
        self._more.set()

    def touch_slug(self, slug: str) -> None:
        """The car that has it or had it, if there is one."""
        car = self._fleet.by_slug(slug) or self._fleet.by_former_slug(slug)
        if car is not None:
            self.touch(car.id)

    def touch_all(self) -> None:
        self._waiting = dict.fromkeys(car.id for car in self._fleet)
        self._more.set()

    async def more(self) -> None:
        """Until one was touched, or put back, since this returned last."""
        await self._more.wait()
        self._more.clear()

    def take_up(self, most: int) -> list[VehicleId]:
        """Those that came first."""
        taken_up = list(islice(self._waiting, most))
        for vehicle_id in taken_up:
            del self._waiting[vehicle_id]
        return taken_up

    def put_back(self, vehicle_ids: Iterable[VehicleId]) -> None:
        """Whoever took them up could not tell them."""
        self._waiting.update(dict.fromkeys(vehicle_ids))
        self._more.set()


class LatestLane:
    """Tells how the cars stand that were touched."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        statements: Statements,
        retained: Retained,
        courier: Courier,
        touched: Touched,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._statements = statements
        self._retained = retained
        self._courier = courier
        self._touched = touched

    async def serve(self, session: Session) -> None:
        """Whenever a car is touched. Raises MqttError."""
        while True:
            await self._touched.more()
            await self.tell(session)

    async def tell(self, session: Session) -> None:
        """Until no car waits any more. Raises MqttError."""
        while self._touched:
            taken_up = self._touched.take_up(SLICE)
            try:
                await self._retained.prepare(self._wanted(taken_up))
                await self._courier.tell(session, self._latest(session, taken_up))
            except BaseException:
                self._touched.put_back(taken_up)
                raise
            await self._retained.settle()
        vehicles = len(self._fleet) - len(session.withdrawn)
        if vehicles != session.vehicles:
            session.vehicles = vehicles
            await self._courier.tell(session, [self._statements.info(vehicles)])

    async def tell_ended(self, session: Session) -> None:
        """Of all cars that wait: the availability of those that are not fresh. Raises MqttError."""
        touched = list(self._touched)
        for start in range(0, len(touched), SLICE):
            now = self._clock.now()
            cars = filter(None, map(self._fleet.get, touched[start : start + SLICE]))
            ended = [
                car
                for car in cars
                if car.vehicle.withdrawn_at is None and self._fleet.freshness(car, now) is not Freshness.FRESH
            ]
            await self._retained.prepare({car.slug: self._statements.leaves_of(car) for car in ended})
            await self._courier.tell(session, chain.from_iterable(map(self._statements.availability, ended)))

    def _wanted(self, vehicle_ids: Iterable[VehicleId]) -> dict[str, frozenset[str]]:
        """The topics that cars fill, by slug."""
        cars = (self._fleet.get(vehicle_id) for vehicle_id in vehicle_ids)
        return {car.slug: self._statements.leaves_of(car) for car in cars if car is not None}

    def _latest(self, session: Session, vehicle_ids: Iterable[VehicleId]) -> Iterator[Message]:
        for vehicle_id in vehicle_ids:
            if vehicle_id not in self._fleet:
                continue
            # The car of each moment: it may change while one of its messages waits to be sent.
            yield from self._statements.former(self._fleet[vehicle_id])
            if self._fleet[vehicle_id].vehicle.withdrawn_at is None:
                session.withdrawn.discard(vehicle_id)
            else:
                session.withdrawn.add(vehicle_id)
                yield from self._statements.farewell(self._fleet[vehicle_id])
            for aspect in self._statements.aspects(session.opened_at):
                car = self._fleet[vehicle_id]
                if not self._statements.leaves_of(car) <= self._retained[car.slug].leaves:
                    self._touched.put_back([vehicle_id])  # it changed since that was noted: once more
                    break
                if car.vehicle.withdrawn_at is None:
                    yield from aspect(car)

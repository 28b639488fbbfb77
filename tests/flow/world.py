"""The flow with a real store, virtual time, and a source that answers as told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import structlog

from evbatteryd.domain.commanding import Command
from evbatteryd.domain.errors import SourceError, StoreError
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.ports import Store, Ticket
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Measurement, Observation, Reading, Signal
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.lores import Lores
from evbatteryd.flow.poller import Poller
from evbatteryd.flow.purse import Purse
from evbatteryd.flow.roster import Roster
from evbatteryd.flow.timer import CohortTimer
from evbatteryd.sinks.prometheus import Metrics
from evbatteryd.store.sqlite import open_store
from tests.fakes import VirtualClock, until

RENAULT = BrandProfile(
    brand="renault",
    name="Renault",
    makes=("RENAULT",),
    reports=timedelta(minutes=30),
    silence=timedelta(days=7),
    driving=timedelta(minutes=30),
    charging=timedelta(minutes=30),
    parked=timedelta(hours=2),
    idle=timedelta(hours=6),
    floor=timedelta(minutes=5),
    latency=timedelta(seconds=8),
)
UNKNOWN = BrandProfile(
    brand="unknown",
    name="an unknown brand",
    makes=(),
    reports=timedelta(hours=1),
    silence=timedelta(days=7),
    driving=timedelta(hours=1),
    charging=timedelta(minutes=30),
    parked=timedelta(hours=2),
    idle=timedelta(hours=6),
    floor=timedelta(minutes=30),
    latency=timedelta(seconds=8),
)
PROFILES = {"renault": RENAULT, "unknown": UNKNOWN}


def consent(number: int, make: str = "RENAULT", connection: str = "") -> Consent:
    return Consent(
        application="home",
        connection_id=connection or f"c{number}",
        vehicle_ref=f"v{number}",
        user_ref=f"u{number}",
        make=make,
        model="Megane",
    )


def _brand_of(make: str) -> str:
    return make.lower() if make.lower() in PROFILES else "unknown"


Answer = Callable[[Vehicle], Awaitable[Observation]]
Obey = Callable[[Vehicle, Command], Awaitable[bool]]


class ToldSource:
    """Spends a ticket like a real source, then answers what ``answer`` says; remembers who was asked when."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.asked: list[tuple[str, VehicleId]] = []
        self.pages = 1
        self.answer: Answer = self.parked
        self.consent_list: list[Consent] = []
        self.unlisted: set[str] = set()
        self.list_error: SourceError | None = None
        self.revoked: list[str] = []
        self.revoke_error: SourceError | None = None
        self.subscribed: list[tuple[str, str]] = []
        self.subscribe_errors: dict[str, SourceError] = {}
        self.soc = 50.0
        self.commanded: list[Command] = []
        self.obey: Obey = self.done

    async def done(self, vehicle: Vehicle, command: Command) -> bool:
        return True

    async def command(self, vehicle: Vehicle, command: Command, ticket: Ticket) -> bool:
        await ticket.spend()
        self.commanded.append(command)
        return await self.obey(vehicle, command)

    async def parked(self, vehicle: Vehicle) -> Observation:
        return self.observation(self.soc)

    def observation(self, soc: float, age: timedelta = timedelta(minutes=1), **more: object) -> Observation:
        now = self._clock.now()
        found = {Signal.SOC: soc, Signal.CHARGING: False, **{Signal[name]: v for name, v in more.items()}}
        return Observation(
            fetched_at=now, measurements=tuple(Measurement(s, v, now - age, now) for s, v in found.items())
        )

    def failing(self, error: SourceError) -> None:
        async def fail(vehicle: Vehicle) -> Observation:
            raise type(error)(error.code, error.detail, **_extras(error))

        self.answer = fail

    async def fetch(self, vehicle: Vehicle, profile: BrandProfile, ticket: Ticket) -> Observation:
        for _ in range(self.pages):
            await ticket.spend()
        self.asked.append((self._clock.now().isoformat(), vehicle.id))
        return await self.answer(vehicle)

    async def consents(self, ticket: Ticket) -> AsyncIterator[Consent]:
        await ticket.spend()
        for number, listed in enumerate(self.consent_list):
            if self.list_error is not None and number == 1:
                raise self.list_error
            if listed.vehicle_ref not in self.unlisted:
                yield listed
        if self.list_error is not None:
            raise self.list_error

    async def consent_stands(self, consent: Consent, ticket: Ticket) -> bool:
        await ticket.spend()
        return any(listed.vehicle_ref == consent.vehicle_ref for listed in self.consent_list)

    async def consents_of(self, user_ref: str, ticket: Ticket) -> list[Consent]:
        await ticket.spend()
        if self.list_error is not None:
            raise self.list_error
        return [listed for listed in self.consent_list if listed.user_ref == user_ref]

    async def revoke(self, consent: Consent, ticket: Ticket) -> None:
        await ticket.spend()
        if self.revoke_error is not None:
            raise self.revoke_error
        self.revoked.append(consent.connection_id)

    async def subscribe(self, consent: Consent, webhook_id: str, ticket: Ticket) -> None:
        await ticket.spend()
        if error := self.subscribe_errors.get(consent.vehicle_ref):
            raise error
        self.subscribed.append((consent.vehicle_ref, webhook_id))


def _extras(error: SourceError) -> dict[str, object]:
    return {} if error.retry_after is None else {"retry_after": error.retry_after}


class FlakyStore:
    """A real store whose disk is full for the methods named in ``full``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.full: set[str] = set()

    def __getattr__(self, name: str) -> object:
        if name in self.full:

            async def refuse(*_: object, **__: object) -> None:
                raise StoreError("the disk is full")

            return refuse
        return getattr(self._store, name)


class World:
    """Everything between the timer and the journal."""

    def __init__(self, store: Store, clock: VirtualClock, budget: Budget, max_in_flight: int) -> None:
        self.log_lines: list[dict[str, object]] = []
        log = structlog.wrap_logger(
            None, processors=[self._keep], wrapper_class=structlog.make_filtering_bound_logger(0)
        )
        self.log = log
        self.store, self.clock = FlakyStore(store), clock
        store = self.store
        self.bugs: list[BaseException] = []
        self.heard: list[tuple[Car, Reading | None]] = []
        self.source = ToldSource(clock)
        self.fleet = Fleet(PROFILES)
        self.metrics = Metrics()
        self.timer = CohortTimer(clock, self.bugs.append)
        self.lores = Lores({"home"}, store, clock, log, offset=lambda at: 0.0)
        self.cars = Cars(self.fleet, store, clock, self.timer, log, brand_of=_brand_of, lores=self.lores)
        self.cars.listen(lambda car, reading: self.heard.append((car, reading)))
        self.purse = Purse("home", budget, store, clock, self.metrics)
        self.poller = Poller(
            self.cars,
            clock,
            self.timer,
            self.metrics,
            log,
            applications={"home": (self.source, self.purse)},
            max_in_flight=max_in_flight,
            lores=self.lores,
            redact=lambda text: text,
            on_bug=self.bugs.append,
        )
        self.roster = Roster(
            "home",
            self.source,
            self.purse,
            self.cars,
            clock,
            log,
            every=timedelta(minutes=15),
        )

    def _keep(self, _: object, method: str, event: dict[str, object]) -> str:
        self.log_lines.append({"level": method, **event})
        raise structlog.DropEvent

    def said(self, event: str) -> list[dict[str, object]]:
        return [line for line in self.log_lines if line["event"] == event]

    async def enrol(self, count: int = 1, make: str = "RENAULT") -> list[Car]:
        first = len(self.fleet)
        cars = [await self.cars.enrol(consent(first + n, make)) for n in range(count)]
        await self.roster.count()
        return cars

    async def poll(self, *cars: Car) -> list[Car]:
        """Ring for these cars and wait until each was answered and committed."""
        for car in cars:
            self.poller.due(car.id)
        await until(lambda: self.poller.in_flight == 0 and self.poller.waiting == 0)
        return [self.fleet[car.id] for car in cars]

    async def poll_when_due(self, car: Car) -> Car:
        due = self.fleet[car.id].schedule.due
        assert due is not None
        if due > self.clock.now():
            await self.clock.advance(due - self.clock.now())
        (after,) = await self.poll(car)
        return after


@asynccontextmanager
async def world(
    path: Path, budget: Budget | None = None, max_in_flight: int = 64, clock: VirtualClock | None = None
) -> AsyncIterator[World]:
    async with open_store(path / "evbatteryd.db") as store:
        made = World(store, clock or VirtualClock(), budget or Budget(), max_in_flight)
        await made.purse.open()
        await made.cars.load({"home"})
        running = asyncio.create_task(made.poller.run())
        try:
            yield made
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
            await made.poller.drain(0.0)
            assert made.bugs == []

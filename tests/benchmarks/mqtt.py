"""Readings to a real mosquitto: how fast, how late, how much of an outage is made up for, what waiting costs.

The daemon's own delivery and sink, over a real store, beside a bare aiomqtt loop that publishes the same
messages (QoS 1, retained, expiring) from as many tasks as the sink has messages in flight. The broker is a
process of its own and shares the machine's cores with us, so rates are compared per second of *our* CPU time;
what the clock on the wall made of it stands beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import logging
import math
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from evbatteryd.brands import load_profiles
from evbatteryd.clock import WallClock
from evbatteryd.domain.fleet import Car, Fleet, Schedule
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.outlook import Estimate
from evbatteryd.domain.ports import Polled, Published
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.settling import settle
from evbatteryd.domain.vehicle import Consent, VehicleId
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.delivery import Delivery
from evbatteryd.flow.lores import Lores
from evbatteryd.flow.timer import CohortTimer
from evbatteryd.logs import configure, get_logger
from evbatteryd.sinks.connection import IN_FLIGHT, MqttOptions
from evbatteryd.sinks.mqtt import MqttSink
from evbatteryd.sinks.payload import AVAILABILITY, DISCOVERY, FIELDS, POLLING, STATE
from evbatteryd.sinks.prometheus import Metrics
from evbatteryd.sources.smartcar_answers import observe
from evbatteryd.store.sqlite import SqliteStore, open_store
from tests.benchmarks.end_to_end import on_fastest_loop
from tests.benchmarks.memory import _resident
from tests.benchmarks.upstream import signals
from tests.mosquitto import LOOPBACK, Heard, Mosquitto, Witness, program
from tests.sinks.world import NoHints, Obedient

APPLICATION: Final = "bench"
BASE: Final = "evbatteryd"
WAITING_AT_ONCE: Final = 256
"""New readings that are offered and not told yet, while the rate is measured."""
READINGS_PER_SECOND: Final = 100
"""At which the time to the acknowledgement is measured."""
NEWS_PER_SECOND: Final = 20
"""Of random cars, while an outage is made up for."""
READINGS_A_DAY: Final = 48
"""Of one car: every half an hour."""
DAY_OF_CARS: Final = 10_000
QUIET_S: Final = 0.3
"""Without work for so long, all is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rate_cars: int
    rate_scalars: int
    """Readings, with a topic for each scalar."""
    rate_state: int
    """Readings, with the state's topic alone."""
    steady_seconds: float
    calm_seconds: float
    """Of new readings without a backlog."""
    cars: int
    backlog: int
    memory: int
    manifest: int


USUAL: Final = Size(
    rate_cars=2_000,
    rate_scalars=4_000,
    rate_state=12_000,
    steady_seconds=6.0,
    calm_seconds=10.0,
    cars=10_000,
    backlog=200_000,
    memory=1_000_000,
    manifest=100_000,
)
QUICK: Final = Size(
    rate_cars=400,
    rate_scalars=400,
    rate_state=1_000,
    steady_seconds=1.0,
    calm_seconds=2.0,
    cars=1_000,
    backlog=8_000,
    memory=50_000,
    manifest=10_000,
)


def run(options: argparse.Namespace) -> None:
    on_fastest_loop(_measure(QUICK if options.quick else USUAL))


async def _measure(size: Size) -> None:
    configure("error", "json")
    gc.set_threshold(50_000, 50, 1_000)  # as the daemon does, for both sides
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await _rates(folder, size, scalars=True)
        await _rates(folder, size, scalars=False)
        fleet = folder / "fleet.db"
        async with Mosquitto(folder / "broker") as broker:
            bare = await _starts(fleet, broker, size)
            await _outage(fleet, broker, size, bare)
        await _memory(folder / "memory.db", size)
        await _manifest(folder / "manifest.db", size)


# Arithmetic


@dataclass(frozen=True, slots=True)
class Pace:
    """How many of something were done, in how long."""

    count: int
    wall_s: float
    cpu_s: float

    @property
    def per_second(self) -> float:
        return self.count / self.wall_s

    @property
    def per_core_second(self) -> float:
        return self.count / self.cpu_s


@dataclass(frozen=True, slots=True)
class Waits:
    """How long each of some things took: seconds."""

    seconds: Sequence[float]

    def quantile(self, share: float) -> float:
        """The shortest time within which this share of them was done. NaN: there were none."""
        ordered = sorted(self.seconds)
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan

    def __str__(self) -> str:
        return f"p50 {1000 * self.quantile(0.5):.1f} ms, p99 {1000 * self.quantile(0.99):.1f} ms"

    def beside(self, other: Waits) -> str:
        """Medians and 99th percentiles as ratios."""
        shares = (self.quantile(share) / other.quantile(share) for share in (0.5, 0.99))
        return " and ".join(f"{ratio:.1f}" for ratio in shares)


def minutes_of_a_day(per_second: float) -> float:
    """How long a day of 10,000 cars takes at that rate of readings."""
    return DAY_OF_CARS * READINGS_A_DAY / per_second / 60


def beside(ours: float, bare: float) -> str:
    return f"bare {bare:,.0f}: {ours / bare:.2f} of bare"


def _tell(what: str, figures: str) -> None:
    print(f"{what:<42} {figures}", flush=True)


# The daemon's parts


class CountingMetrics(Metrics):
    """The daemon's metrics, which also tell how many messages were published."""

    def __init__(self) -> None:
        super().__init__()
        self.messages = 0

    def published(self, messages: int) -> None:
        super().published(messages)
        self.messages += messages


class TimedSink(MqttSink):
    """The daemon's sink, which also tells when a reading was acknowledged."""

    told: Callable[[Reading], None] = staticmethod(lambda reading: None)

    async def publish(self, readings: Sequence[Reading], over: int | None = None) -> None:
        await super().publish(readings, over)
        for reading in readings:
            self.told(reading)


@dataclass(slots=True, kw_only=True)
class Daemon:
    """As much of the daemon as publishes, with a fleet from its store."""

    cars: Cars
    lores: Lores
    sink: TimedSink
    delivery: Delivery
    metrics: CountingMetrics
    offers: bool = True
    """Whether a committed reading is offered at once."""
    committed: list[tuple[Car, Reading]] = field(default_factory=list)
    """If it is not: what was."""

    async def news_of(self, vehicle_id: VehicleId) -> None:
        """An answer with news of this car, settled and committed."""
        await self.cars.record(vehicle_id, partial(_answered, lores=self.lores, fleet=self.cars.fleet))

    def heard(self, car: Car, reading: Reading | None) -> None:
        if reading is None:
            self.sink.touch(car.id)
        elif self.offers:
            self.delivery.offer(reading)
        else:
            self.committed.append((car, reading))

    async def quiet(self) -> None:
        """Until nothing is left to do."""
        busy = QUIET_S
        while busy > QUIET_S / 20:
            cpu = time.process_time()
            await asyncio.sleep(QUIET_S)
            busy = time.process_time() - cpu

    async def committed_readings(self, count: int) -> list[tuple[Car, Reading]]:
        """New readings of all cars in turn, committed and not offered yet; with the car as it was then."""
        self.offers = False
        ids = itertools.islice(itertools.cycle([car.id for car in self.cars.fleet]), count)
        while slice_ := list(itertools.islice(ids, 500)):
            await asyncio.gather(*map(self.news_of, slice_))
        self.offers = True
        committed, self.committed = self.committed, []
        return committed

    def offer(self, car: Car, reading: Reading) -> None:
        self.cars.fleet.put(car)
        self.delivery.offer(reading)


def _share(now: datetime) -> Share:
    return Share(
        calls_left=400,
        calls=500,
        began_at=now.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
        renews_at=now.replace(day=28, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=9),
        application_interval=timedelta(minutes=10),
    )


def _answered(car: Car, *, lores: Lores, fleet: Fleet) -> Polled:
    """A poll of the car has just been answered, with news."""
    now = WallClock().now()
    observation = observe(tuple(signals(20 + car.id % 60, now)), now)
    settled = settle(
        car,
        observation,
        fleet.profile(car),
        _share(now),
        lores[APPLICATION],
        calls=1,
        began=now,
        now=now,
    )
    return Polled(car=settled.car, news=settled.news, at=now)


@asynccontextmanager
async def _daemon(store: SqliteStore, port: int, *, scalars: bool) -> AsyncIterator[Daemon]:
    """Loaded from the store; not connected yet."""
    clock, log, metrics = WallClock(), get_logger("bench"), CountingMetrics()
    fleet = Fleet(load_profiles())
    lores = Lores({APPLICATION}, store, clock, log, offset=lambda at: 0.0)
    timer = CohortTimer(clock, lambda bug: None)
    cars = Cars(fleet, store, clock, timer, log, brand_of=lambda make: "renault", lores=lores)

    def estimate(car: Car, now: datetime) -> Estimate | None:
        return polling.estimate(car, fleet.profile(car), lores[APPLICATION], now)

    def owes(vehicle_id: VehicleId) -> bool:
        return delivery.owes(vehicle_id)

    share = _share(clock.now())
    sink = TimedSink(
        MqttOptions(host=LOOPBACK, port=port, base_topic=BASE, scalars=scalars),
        fleet,
        clock,
        metrics,
        log,
        owes=owes,
        manifest=store,
        estimate=estimate,
        share_of=lambda car: share,
        hints=NoHints(),
        commands=Obedient(),
    )
    delivery = Delivery(store, sink, clock, metrics, log, most=10**9, longest=timedelta(days=3650))
    daemon = Daemon(cars=cars, lores=lores, sink=sink, delivery=delivery, metrics=metrics)
    await cars.load({APPLICATION})
    await sink.open()
    await delivery.open()
    cars.listen(daemon.heard)
    gc.collect()
    gc.freeze()
    yield daemon


@asynccontextmanager
async def _talking(daemon: Daemon) -> AsyncIterator[None]:
    """While it talks to the broker; ended as the daemon ends it."""
    tasks = [asyncio.create_task(daemon.sink.run()), asyncio.create_task(daemon.delivery.run())]
    try:
        await daemon.sink.reachable()
        yield
    finally:
        for task in reversed(tasks):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await daemon.delivery.close()
        await daemon.sink.close(60.0)


async def _enrol(path: Path, cars: int) -> None:
    """A fleet, each car with its first reading, all of which are told."""
    clock = WallClock()
    async with open_store(path) as store:

        async def one(number: int) -> None:
            now = clock.now()
            consent = Consent(
                application=APPLICATION,
                connection_id=f"{number:032x}-c",
                vehicle_ref=f"{number:032x}-v",
                user_ref=f"{number:032x}-u",
                make="RENAULT",
                model="Megane E-Tech",
                year=2024,
                permissions=frozenset({"read_battery", "read_charge"}),
            )
            schedule = Schedule(due=now + timedelta(minutes=30), reason="parked; Renault every 2 h")
            car = await store.enrol(
                consent, slug=f"renault_{number}", name="Renault", brand="renault", schedule=schedule, at=now
            )
            await store.record(_answered(car, lores=lores, fleet=fleet))

        fleet = Fleet(load_profiles())
        lores = Lores({APPLICATION}, store, clock, get_logger("bench"), offset=lambda at: 0.0)
        for first in range(0, cars, 500):
            await asyncio.gather(*(one(number) for number in range(first, min(first + 500, cars))))
        await store.delivered(MqttSink.name, {}, store.head)


def wait_in(path: Path, rounds: int) -> None:
    """Readings that nobody was told: ``rounds`` of each car, like its newest one, a minute apart."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA synchronous = OFF")
    columns = [name for _, name, *_ in database.execute("PRAGMA table_info(reading)") if name != "seq"]
    shifted = ", ".join(
        f"reading.{name} + 60000 * ?1" if name in {"fetched_ms", "measured_ms"} else f"reading.{name}"
        for name in columns
    )
    with database:
        for number in range(1, rounds + 1):
            database.execute(
                f"INSERT INTO reading ({', '.join(columns)}) SELECT {shifted}"
                " FROM latest JOIN reading ON reading.seq = latest.reading_seq ORDER BY reading.seq",
                (number - rounds,),
            )
        database.execute(
            "UPDATE latest SET reading_seq = newest.seq"
            " FROM (SELECT vehicle_id, max(seq) AS seq FROM reading GROUP BY vehicle_id) AS newest"
            " WHERE newest.vehicle_id = latest.vehicle_id"
        )
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


# The bare loop


@dataclass(frozen=True, slots=True)
class Sample:
    """The messages of one reading, as somebody heard them."""

    messages: tuple[Heard, ...]

    def only(self, *leaves: str) -> Sample:
        return Sample(tuple(one for one in self.messages if one.topic.rpartition("/")[2] in leaves))

    def superseded(self) -> Sample:
        """As told when there is a newer reading: kept for nobody."""
        empty = Properties(PacketTypes.PUBLISH)
        return Sample(tuple(Heard(one.topic, one.payload, False, empty) for one in self.messages))


def publishes(sample: Sample, cars: int) -> Iterator[tuple[str, bytes, bool, int | None]]:
    """The sample's messages of all cars in turn: topic, payload, whether it is retained, and expiry."""
    for number in itertools.cycle(range(cars)):
        for one in sample.messages:
            expiry = getattr(one.properties, "MessageExpiryInterval", None)
            yield f"bare/renault_{number}/{one.topic.rpartition('/')[2]}", one.payload, one.retain, expiry


def _bare_client(port: int) -> aiomqtt.Client:
    quiet = logging.getLogger("bench.aiomqtt")
    quiet.setLevel(logging.CRITICAL)  # it complains of every eleventh message in flight
    return aiomqtt.Client(
        LOOPBACK,
        port,
        protocol=aiomqtt.ProtocolVersion.V5,
        logger=quiet,
        max_inflight_messages=IN_FLIGHT,
        socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)],
    )


async def _publish(
    client: aiomqtt.Client, topic: str, payload: bytes, retain: bool, expiry: int | None
) -> None:
    properties = Properties(PacketTypes.PUBLISH)
    if expiry is not None:
        properties.MessageExpiryInterval = expiry
    await client.publish(topic, payload, qos=1, retain=retain, properties=properties)


async def _bare_pace(port: int, sample: Sample, cars: int, count: int) -> Pace:
    messages = itertools.islice(publishes(sample, cars), count)
    async with _bare_client(port) as client:

        async def hand() -> None:
            for message in messages:
                await _publish(client, *message)

        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(hand() for _ in range(IN_FLIGHT)))
        return Pace(count, time.perf_counter() - wall, time.process_time() - cpu)


async def _bare_waits(port: int, sample: Sample, cars: int, seconds: float) -> Waits:
    waits: list[float] = []
    messages = publishes(sample, cars)
    async with _bare_client(port) as client:

        async def one() -> None:
            some = list(itertools.islice(messages, len(sample.messages)))
            begun = time.perf_counter()
            await asyncio.gather(*(_publish(client, *message) for message in some))
            waits.append(time.perf_counter() - begun)

        async with asyncio.TaskGroup() as group:
            async for _ in _ticks(READINGS_PER_SECOND, seconds):
                group.create_task(one())
    return Waits(waits)


async def _ticks(per_second: float, seconds: float) -> AsyncIterator[None]:
    """So many a second, whatever becomes of them."""
    begun = time.perf_counter()
    for number in range(int(per_second * seconds)):
        await asyncio.sleep(max(begun + number / per_second - time.perf_counter(), 0))
        yield


# What is measured


async def _rates(folder: Path, size: Size, *, scalars: bool) -> None:
    """New readings, as fast as they can be told and at a moderate rate."""
    what = "state and scalars" if scalars else "state alone"
    path = folder / f"rates-{scalars}.db"
    await _enrol(path, size.rate_cars)
    async with Mosquitto(folder / f"rates-{scalars}") as broker, open_store(path) as store:
        async with _daemon(store, broker.port, scalars=scalars) as daemon, _talking(daemon):
            await daemon.quiet()
            sample = await _sample(daemon, broker.port)
            news = await daemon.committed_readings(size.rate_scalars if scalars else size.rate_state)
            before = daemon.metrics.messages
            ours = await _pace(daemon, news)
            messages = daemon.metrics.messages - before
            steady = await daemon.committed_readings(int(READINGS_PER_SECOND * size.steady_seconds))
            waits = await _waits(daemon, steady)
        bare = await _bare_pace(broker.port, sample, size.rate_cars, messages)
        journal = sample.only(STATE, *FIELDS)
        bare_waits = await _bare_waits(broker.port, journal, size.rate_cars, size.steady_seconds)
    sent, each = Pace(messages, ours.wall_s, ours.cpu_s), messages / ours.count
    _tell(
        f"publish, {what}",
        f"{ours.per_core_second:,.0f} readings = {sent.per_core_second:,.0f} messages per core-second;"
        f" {beside(sent.per_core_second, bare.per_core_second)}",
    )
    _tell(
        "  by the clock on the wall",
        f"{ours.per_second:,.0f} readings/s; {beside(ours.per_second, bare.per_second / each)}",
    )
    _tell(
        f"  acknowledged, at {READINGS_PER_SECOND} readings/s",
        f"{waits}; bare {bare_waits}: {waits.beside(bare_waits)} of bare",
    )


async def _sample(daemon: Daemon, port: int) -> Sample:
    """What is said when there is news of a car that was told before."""
    car = next(iter(daemon.cars.fleet))
    async with Witness(port, f"{BASE}/{car.slug}/#") as witness:
        await daemon.quiet()
        kept = len(witness.heard)
        await daemon.news_of(car.id)
        await witness.until(lambda known: any(one.topic.endswith(POLLING) for one in known.heard[kept:]))
        return Sample(tuple(witness.heard[kept:]))


async def _pace(daemon: Daemon, news: Iterable[tuple[Car, Reading]]) -> Pace:
    """How long until all of them are told; and our CPU time until all else is that is said of their cars."""
    free, count = asyncio.Semaphore(WAITING_AT_ONCE), 0
    daemon.sink.told = lambda reading: free.release()
    wall, cpu = time.perf_counter(), time.process_time()
    for car, reading in news:
        await free.acquire()
        daemon.offer(car, reading)
        count += 1
    await daemon.delivery.caught_up()
    wall = time.perf_counter() - wall
    await daemon.quiet()
    return Pace(count, wall, time.process_time() - cpu)


async def _waits(daemon: Daemon, news: Sequence[tuple[Car, Reading]]) -> Waits:
    """From the offer to the acknowledgement of the reading's last message."""
    begun: dict[int, float] = {}
    waits: list[float] = []
    daemon.sink.told = lambda reading: waits.append(time.perf_counter() - begun.pop(reading.seq))
    waiting = iter(news)
    async for _ in _ticks(READINGS_PER_SECOND, len(news) / READINGS_PER_SECOND):
        car, reading = next(waiting)
        begun[reading.seq] = time.perf_counter()
        daemon.offer(car, reading)
    await daemon.delivery.caught_up()
    return Waits(waits)


async def _starts(path: Path, broker: Mosquitto, size: Size) -> Pace:
    """With a broker that knows nothing, and with one that remembers all. The bare pace for what comes."""
    await _enrol(path, size.cars)
    async with open_store(path) as store, _daemon(store, broker.port, scalars=True) as daemon:
        # Of all that is said of a car, how it is polled comes last.
        pattern = f"{BASE}/+/{POLLING}"
        witness = await asyncio.create_subprocess_exec(
            program("mosquitto_sub"), "-p", str(broker.port), "-t", pattern, "-C", str(size.cars), "-F", "",
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        begun, cpu = time.perf_counter(), time.process_time()
        async with _talking(daemon):
            await witness.wait()
            took, cpu = time.perf_counter() - begun, time.process_time() - cpu
            await daemon.quiet()
            sent = daemon.metrics.messages
            sample = await _sample(daemon, broker.port)
    _tell(
        f"start, {size.cars:,} cars, forgetful broker",
        f"{took:.1f} s until all is told: {sent:,} messages, {sent / cpu:,.0f} per core-second",
    )
    async with (
        open_store(path) as store,
        _daemon(store, broker.port, scalars=True) as daemon,
        _talking(daemon),
    ):
        await daemon.quiet()
        sent = daemon.metrics.messages
    _tell(f"start, {size.cars:,} cars, it remembers", f"{sent:,} messages")
    superseded = sample.only(STATE).superseded()
    return await _bare_pace(broker.port, superseded, size.cars, size.backlog // 4)


async def _outage(path: Path, broker: Mosquitto, size: Size, bare: Pace) -> None:
    """What waited is made up for, and new readings come all the while."""
    await asyncio.to_thread(wait_in, path, size.backlog // size.cars)
    begun: dict[int, float] = {}
    waits: list[float] = []

    def told(reading: Reading) -> None:
        if reading.seq in begun:
            waits.append(time.perf_counter() - begun.pop(reading.seq))

    async with open_store(path) as store, _daemon(store, broker.port, scalars=True) as daemon:
        heard = daemon.delivery.offer

        def offer(reading: Reading) -> None:
            begun[reading.seq] = time.perf_counter()
            heard(reading)

        daemon.sink.told, daemon.delivery.offer = told, offer  # type: ignore[method-assign]
        waiting = daemon.delivery.waiting
        vehicles, dice = [car.id for car in daemon.cars.fleet], random.Random(0)

        async def news(seconds: float) -> None:
            async with asyncio.TaskGroup() as group:
                async for _ in _ticks(NEWS_PER_SECOND, seconds):
                    group.create_task(daemon.news_of(dice.choice(vehicles)))

        async with _talking(daemon):
            sent, wall, cpu = daemon.metrics.messages, time.perf_counter(), time.process_time()
            coming = asyncio.create_task(news(3600.0))
            await _down_to(daemon.delivery, size.backlog // 100)
            made_up = waiting - daemon.delivery.waiting
            ours = Pace(made_up, time.perf_counter() - wall, time.process_time() - cpu)
            messages = Pace(daemon.metrics.messages - sent, ours.wall_s, ours.cpu_s)
            behind = Waits(list(waits))
            coming.cancel()
            with suppress(asyncio.CancelledError):
                await coming
            await daemon.delivery.caught_up()
            await daemon.quiet()
            waits.clear()
            await news(size.calm_seconds)
            await daemon.delivery.caught_up()
    _tell(
        f"outage, {waiting:,} readings waited",
        f"{ours.per_second:,.0f} readings/s; {ours.per_core_second:,.0f} readings ="
        f" {messages.per_core_second:,.0f} messages per core-second;"
        f" {beside(messages.per_core_second, bare.per_core_second)}",
    )
    _tell(f"  a day of {DAY_OF_CARS:,} cars", f"{minutes_of_a_day(ours.per_second):.1f} minutes")
    _tell(
        f"  news meanwhile, {NEWS_PER_SECOND} a second",
        f"{behind}; without a backlog {Waits(waits)}: {behind.beside(Waits(waits))} times that",
    )


async def _down_to(delivery: Delivery, waiting: int) -> None:
    while delivery.waiting > waiting:  # noqa: ASYNC110 - looking must not change what is measured
        await asyncio.sleep(0.02)


@dataclass(frozen=True, slots=True)
class TakenUp:
    """What a process of its own tells of its start from a store."""

    seconds: float
    resident: int
    """Bytes of the whole process."""
    held: int
    """Bytes of what was taken up."""

    @classmethod
    async def of(cls, path: Path) -> TakenUp:
        """Once as it is, and once with Python counting, which takes its time and memory."""
        seconds, resident, _ = await _child(path)
        _, _, held = await _child(path, "-X", "tracemalloc")
        return cls(seconds, int(resident), int(held))


async def _child(path: Path, *options: str) -> tuple[float, ...]:
    command = (sys.executable, *options, "-m", "tests.benchmarks.mqtt", str(path))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    told, _ = await process.communicate()
    return tuple(map(float, told.split()))


async def _memory(path: Path, size: Size) -> None:
    """A process takes up what waits."""
    await _enrol(path, size.cars)
    empty = _bytes_of(path)
    await asyncio.to_thread(wait_in, path, size.memory // size.cars)
    found, stored = await TakenUp.of(path), _bytes_of(path) - empty
    _tell(
        f"memory, {size.memory:,} readings wait",
        f"{found.held / size.memory:.1f} bytes each, {found.resident / 2**20:.0f} MiB resident; taken up"
        f" in {found.seconds:.2f} s; {stored / size.memory:.0f} bytes each in the store",
    )


async def _manifest(path: Path, size: Size) -> None:
    """A process takes up what was published of many cars."""
    leaves = frozenset({STATE, AVAILABILITY, POLLING, DISCOVERY, *FIELDS})
    place, told = f"{BASE}\nhomeassistant", bytes([1] * 32)
    async with open_store(path) as store:
        await store.note_published(
            Published(place, f"renault_{number}", leaves, digest=told) for number in range(size.manifest)
        )
    found = await TakenUp.of(path)
    _tell(
        f"manifest of {size.manifest:,} cars",
        f"{found.held / size.manifest:.1f} bytes each, {found.resident / 2**20:.0f} MiB resident; taken up"
        f" in {found.seconds:.2f} s; {_bytes_of(path) / size.manifest:.0f} bytes each in the store",
    )


def _bytes_of(path: Path) -> int:
    return path.stat().st_size


async def _take_up(path: Path) -> None:
    """The start of sink and delivery, in the child: seconds, bytes resident, bytes that they hold."""
    async with open_store(path) as store:
        clock, log, metrics = WallClock(), get_logger("bench"), CountingMetrics()
        sink = MqttSink(
            MqttOptions(host=LOOPBACK, port=1, base_topic=BASE),
            Fleet(load_profiles()),
            clock,
            metrics,
            log,
            owes=lambda vehicle_id: False,
            manifest=store,
            estimate=lambda car, now: None,
            share_of=lambda car: None,
            hints=NoHints(),
            commands=Obedient(),
        )
        delivery = Delivery(store, sink, clock, metrics, log, most=10**9, longest=timedelta(days=3650))
        gc.collect()
        held, began = tracemalloc.get_traced_memory()[0], time.perf_counter()
        await sink.open()
        await delivery.open()
        seconds = time.perf_counter() - began
        gc.collect()
        print(seconds, _resident(), tracemalloc.get_traced_memory()[0] - held)


if __name__ == "__main__":
    asyncio.run(_take_up(Path(sys.argv[1])))

"""Cars that are renamed, withdrawn, erased and consented to anew, while a real broker comes and goes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.ports import Published
from evbatteryd.domain.reading import BatteryState, Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.sinks import mark
from evbatteryd.sinks.payload import ESTIMATED, FIELDS
from tests.builders import NOON, car, reading, state
from tests.fakes import settle, until
from tests.mosquitto import PATIENCE_S, Gate, Mosquitto, Witness
from tests.sinks.conftest import Station
from tests.sinks.world import Notes, at_its_newest, kept, later, packet, packet_id, readings_of, server

EVERYTHING = {"state", *FIELDS, "availability", "polling"}
"""Whatever may be retained of a car."""


def renamed(known: Car, slug: str) -> Car:
    former = tuple(one for one in (*known.vehicle.former_slugs, known.slug) if one != slug)
    return replace(known, vehicle=replace(known.vehicle, slug=slug, former_slugs=former))


def withdrawn(known: Car) -> Car:
    return replace(known, vehicle=replace(known.vehicle, withdrawn_at=later(1)))


def erased(known: Car) -> Car:
    """Withdrawn, and its history deleted."""
    schedule = replace(known.schedule, polled_at=NOON)
    return Car(vehicle=withdrawn(known).vehicle, schedule=schedule)


def consented_anew(known: Car) -> Car:
    return replace(known, vehicle=replace(known.vehicle, withdrawn_at=None))


def read(number: int = 1, soc: float = 61) -> Car:
    """A car with a fresh reading that this sink took earlier."""
    return car(number, state=state(soc=soc, range_km=240), reading_id=f"r{number}")


def topics(slug: str, fields: Iterable[str]) -> set[str]:
    return {f"evbatteryd/{slug}/{name}" for name in fields}


TOLD = {"state", "soc", "range_km", "measured_at", "fetched_at", "availability"}
"""What is retained of :func:`read`."""


def deletions(witness: Witness, slug: str) -> list[str]:
    """The fields that were deleted under a slug, each as often as it was."""
    return [
        message.topic.rpartition("/")[2]
        for message in witness.heard
        if message.topic.startswith(f"evbatteryd/{slug}/") and not message.payload
    ]


@asynccontextmanager
async def quiet(station: Station, witness: Witness, number: int = 99) -> AsyncIterator[None]:
    """On leaving, everything that was touched before has been told."""
    yield
    other = car(number)
    station.told(other)
    await witness.until(lambda w: w.last(f"evbatteryd/{other.slug}/availability"))


# Renamed


async def test_a_renamed_car_moves_to_its_new_topics_at_once(broker: Mosquitto, protocol: str) -> None:
    cars = [read(1), read(2, soc=30)]
    async with Station(broker.port, *cars, protocol=protocol) as station, Witness(broker.port) as witness:
        await witness.until(lambda w: w.on("evbatteryd/car_2/fetched_at"))
        station.told(renamed(cars[0], "blue"))
        await witness.until(lambda w: w.on("evbatteryd/blue/fetched_at"))
        found = await kept(broker.port, "evbatteryd/+/+")
        bridge = {"evbatteryd/bridge/state", "evbatteryd/bridge/info"}
        assert set(found) == topics("blue", TOLD) | topics("car_2", TOLD) | bridge
        assert found["evbatteryd/blue/availability"] == "fresh"
        assert found["evbatteryd/blue/soc"] == "61"
        whole = witness.on("evbatteryd/blue/state")[-1].json
        assert (whole["vehicle"], whole["reading_id"]) == ("blue", "r1")
        assert deletions(witness, "car_2") == []


async def test_a_former_slug_is_deleted_once_a_connection(broker: Mosquitto, impatient: None) -> None:
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, read(1)) as station,
    ):
        await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        async with quiet(station, witness, 90):
            station.told(renamed(read(1), "blue"))
        station.told(renamed(renamed(read(1), "blue"), "red"))
        async with quiet(station, witness, 91):
            station.sink.touch(VehicleId(1))
        for slug in ("car_1", "blue"):
            assert sorted(deletions(witness, slug)) == sorted(EVERYTHING)
        gate.shut()
        await station.logged("mqtt.lost")
        gate.open()
        await station.logged("mqtt.connected", times=2)
        async with quiet(station, witness, 92):
            station.sink.touch(VehicleId(1))
        for slug in ("car_1", "blue"):
            assert sorted(deletions(witness, slug)) == sorted([*EVERYTHING, *EVERYTHING])
        assert set(deletions(witness, "red")) <= set(ESTIMATED)


async def test_a_name_taken_back_is_told_anew_and_deleted_when_it_is_left_again(broker: Mosquitto) -> None:
    async with Station(broker.port, read(1)) as station, Witness(broker.port) as witness:
        known = read(1)
        for round_trip in range(1, 4):
            for slug, other in (("blue", "car_1"), ("car_1", "blue")):
                known = renamed(known, slug)
                async with quiet(station, witness, 100 * round_trip + len(slug)):
                    station.told(known)
                assert set(await kept(broker.port, f"evbatteryd/{slug}/+")) == topics(slug, TOLD)
                assert await kept(broker.port, f"evbatteryd/{other}/+") == {}


async def test_the_availability_of_a_slug_left_twice_is_deleted_twice(broker: Mosquitto) -> None:
    async with Station(broker.port, car(1)) as station, Witness(broker.port) as witness:
        known = car(1)
        for number, slug in enumerate(("blue", "car_1", "blue"), 90):
            known = renamed(known, slug)
            async with quiet(station, witness, number):
                station.told(known)
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}
        assert await kept(broker.port, "evbatteryd/blue/+") == {"evbatteryd/blue/availability": "stale"}


async def test_a_former_slug_that_another_car_has_is_left_alone(broker: Mosquitto) -> None:
    usurper = replace(read(2), vehicle=replace(read(2).vehicle, slug="blue"))
    heir = replace(read(1), vehicle=replace(read(1).vehicle, former_slugs=("blue", "old")))
    async with Witness(broker.port) as witness, Station(broker.port, heir, usurper) as station:
        async with quiet(station, witness):
            station.sink.touch(VehicleId(1))
        assert sorted(deletions(witness, "old")) == sorted(EVERYTHING)
        assert set(deletions(witness, "blue")) <= set(ESTIMATED)
        assert set(await kept(broker.port, "evbatteryd/blue/+")) == topics("blue", TOLD)


async def test_a_stale_car_that_is_renamed_says_so_under_its_new_slug(broker: Mosquitto) -> None:
    old = car(1, state=state(soc=61, measured_at=NOON - timedelta(days=9)), reading_id="r1")
    async with Station(broker.port, old) as station, Witness(broker.port) as witness:
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "stale")
        station.told(renamed(old, "blue"))
        await witness.until(lambda w: w.on("evbatteryd/blue/state"))
        assert witness.last("evbatteryd/blue/availability") == "stale"
        assert witness.on("evbatteryd/blue/state")[-1].json["freshness"] == "stale"
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "")


async def test_a_car_without_consent_stays_offline_under_its_new_slug(broker: Mosquitto) -> None:
    lost = replace(read(1), trouble=Trouble("consent_lost", "CONSENT", "withdrawn in the app", NOON))
    async with Station(broker.port, lost) as station, Witness(broker.port) as witness:
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "offline")
        station.told(renamed(lost, "blue"))
        await witness.until(lambda w: w.on("evbatteryd/blue/state"))
        assert witness.last("evbatteryd/blue/availability") == "offline"
        assert witness.on("evbatteryd/blue/state")[-1].json["freshness"] == "offline"
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "")


async def test_a_withdrawn_car_leaves_nothing_under_its_former_slugs(
    broker: Mosquitto, protocol: str
) -> None:
    async with Station(broker.port, read(1), protocol=protocol) as station, Witness(broker.port) as witness:
        await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        async with quiet(station, witness):
            station.told(renamed(withdrawn(read(1)), "blue"))
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}
        assert await kept(broker.port, "evbatteryd/blue/+") == {}


@pytest.mark.parametrize("persistent", [False, True], ids=["forgetful", "persistent"])
async def test_a_car_renamed_while_the_broker_is_away_moves_when_it_is_back(
    tmp_path: Path, protocol: str, impatient: None, persistent: bool
) -> None:
    async with (
        Mosquitto(tmp_path / "broker", persistent=persistent) as broker,
        Gate(broker.port) as gate,
        Station(gate.port, read(1), protocol=protocol) as station,
    ):
        async with Witness(broker.port) as witness:
            await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        await broker.stop()
        await station.logged("mqtt.lost")
        gate.shut()
        station.told(renamed(read(1), "blue"))
        await broker.start()
        assert bool(await kept(broker.port, "evbatteryd/car_1/+")) is persistent
        async with Witness(broker.port, "evbatteryd/blue/+") as witness:
            gate.open()
            await witness.until(lambda w: w.on("evbatteryd/blue/fetched_at"))
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}
        assert set(await kept(broker.port, "evbatteryd/blue/+")) == topics("blue", TOLD)


async def test_what_a_broker_kept_under_former_slugs_is_deleted_by_the_next_process(
    tmp_path: Path, protocol: str
) -> None:
    async with Mosquitto(tmp_path / "broker", persistent=True) as broker:
        for slug in ("first", "second"):
            before = replace(read(1), vehicle=replace(read(1).vehicle, slug=slug))
            async with (
                Station(broker.port, before, protocol=protocol),
                Witness(broker.port, f"evbatteryd/{slug}/+") as witness,
            ):
                await witness.until(lambda w, slug=slug: w.on(f"evbatteryd/{slug}/fetched_at"))
        await broker.restart()
        assert set(await kept(broker.port, "evbatteryd/first/+")) == topics("first", TOLD)
        now = replace(read(1), vehicle=replace(read(1).vehicle, former_slugs=("first", "second")))
        async with (
            Station(broker.port, now, protocol=protocol),
            Witness(broker.port, "evbatteryd/car_1/+") as witness,
        ):
            await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        assert await kept(broker.port, "evbatteryd/first/+") == {}
        assert await kept(broker.port, "evbatteryd/second/+") == {}
        assert set(await kept(broker.port, "evbatteryd/car_1/+")) == topics("car_1", TOLD)


async def test_readings_that_are_owed_are_told_under_the_present_slug(
    broker: Mosquitto, protocol: str, impatient: None
) -> None:
    journal = readings_of(1, 20)
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, car(1), protocol=protocol) as station,
    ):
        await station.publish(journal[:5])
        gate.shut()
        await station.connected(False)
        telling = asyncio.create_task(station.deliver(journal[5:]))
        await settle()
        station.told(renamed(at_its_newest(car(1), journal), "blue"))
        gate.open()
        await telling
        await witness.until(lambda w: w.on("evbatteryd/blue/fetched_at"))
        told = [message.json for message in witness.on("evbatteryd/blue/state")]
        assert [one["reading_id"] for one in told] == [one.reading_id for one in journal[5:]]
        assert {one["vehicle"] for one in told} == {"blue"}
        await witness.until(lambda w: w.last(f"evbatteryd/car_1/{max(EVERYTHING)}") == "")
        assert len([m for m in witness.on("evbatteryd/car_1/state") if m.payload]) == 5
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}


# In the middle of a reading


class SlowBroker:
    """Takes one message at a time, and waits before it takes certain ones: topics, "-" before a deletion."""

    def __init__(self, *holds: str) -> None:
        self.told: list[tuple[str, bytes]] = []
        self._holds = list(holds)
        self._held: asyncio.Queue[None] = asyncio.Queue()
        self._released: asyncio.Queue[None] = asyncio.Queue()
        self._news = asyncio.Event()

    async def held(self) -> None:
        """Until the next of the messages is waiting."""
        await asyncio.wait_for(self._held.get(), PATIENCE_S)

    def release(self) -> None:
        self._released.put_nowait(None)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                kind, body = await packet(reader)
                if kind == 0x10:
                    writer.write(b"\x20\x06\x00\x00\x03\x21\x00\x01")  # Receive Maximum 1
                elif kind == 0x30:
                    await self._take(body)
                    writer.write(b"\x40\x02" + packet_id(body))
        writer.close()

    async def _take(self, body: bytes) -> None:
        end = 2 + int.from_bytes(body[:2], "big")
        topic, payload = body[2:end].decode().removeprefix("evbatteryd/"), body[end + 3 + body[end + 2] :]
        self.told.append((topic, payload))
        self._news.set()
        if self._holds and self._holds[0] == (topic if payload else f"-{topic}"):
            del self._holds[0]
            self._held.put_nowait(None)
            await self._released.get()

    async def hears_the_rest(self, station: Station, number: int = 99) -> None:
        """Until everything that was touched before has been told."""
        station.told(car(number))
        async with asyncio.timeout(PATIENCE_S):
            while not self.said(f"car_{number}"):
                await self._news.wait()
                self._news.clear()

    def kept(self, slug: str) -> set[str]:
        """The values that it would retain."""
        found = {topic for topic, payload in dict(self.told).items() if payload} - {f"{slug}/polling"}
        return {topic.removeprefix(f"{slug}/") for topic in found if topic.startswith(f"{slug}/")}

    def said(self, slug: str) -> list[str]:
        """The values that were told under a slug, in that order."""
        found = [topic for topic, payload in self.told if payload and topic != f"{slug}/polling"]
        return [topic.removeprefix(f"{slug}/") for topic in found if topic.startswith(f"{slug}/")]


FIRST = reading(1, state=state(soc=61, range_km=240))
"""What :func:`read` is at."""


async def test_a_reading_under_way_begins_anew_under_the_new_slug() -> None:
    broker = SlowBroker("car_1/soc")
    async with server(broker.serve) as port, Station(port, car(1)) as station:
        telling = asyncio.create_task(station.publish([FIRST]))
        await broker.held()
        station.told(renamed(read(1), "blue"))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    assert [name for name in broker.said("car_1") if name != "availability"] == ["state", "soc"]
    assert broker.kept("car_1") == set()
    assert broker.kept("blue") == TOLD
    assert len(broker.said("blue")) == len(TOLD)


async def test_a_confirmation_under_way_ends_and_is_told_under_the_new_slug() -> None:
    broker = SlowBroker("car_1/soc")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        station.told(renamed(read(1), "blue"))
        broker.release()
        await broker.hears_the_rest(station)
    assert broker.said("car_1") == ["availability", "state", "soc"]
    assert broker.kept("car_1") == set()
    assert broker.kept("blue") == TOLD


async def test_a_car_renamed_while_its_former_slug_is_being_deleted_is_told_under_the_last_alone() -> None:
    broker = SlowBroker("car_1/fetched_at", "-car_1/availability")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(renamed(read(1), "blue"))
        await broker.held()
        station.told(renamed(renamed(read(1), "blue"), "red"))
        broker.release()
        await broker.hears_the_rest(station)
    assert broker.said("blue") == []
    assert broker.kept("car_1") == set()
    assert broker.kept("red") == TOLD


async def test_a_slug_taken_back_while_it_is_being_deleted_is_told_anew() -> None:
    broker = SlowBroker("car_1/fetched_at", "-car_1/range_km")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(renamed(read(1), "blue"))
        await broker.held()
        station.told(renamed(renamed(read(1), "blue"), "car_1"))
        broker.release()
        await broker.hears_the_rest(station)
    assert broker.kept("car_1") == TOLD
    assert broker.kept("blue") == set()


async def test_a_slug_taken_back_while_it_is_being_deleted_keeps_what_is_told_then() -> None:
    broker = SlowBroker("car_1/fetched_at", "-car_1/range_km")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(renamed(read(1), "blue"))
        await broker.held()
        telling = asyncio.create_task(station.publish([reading(2, state=FIRST.state)]))
        await settle()
        station.told(replace(renamed(renamed(read(1), "blue"), "car_1"), reading_id="r2"))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    assert broker.kept("car_1") == TOLD
    assert broker.kept("blue") == set()


async def test_a_slug_taken_back_for_a_moment_while_it_is_being_deleted_is_deleted_in_whole() -> None:
    broker = SlowBroker("car_1/fetched_at", "-car_1/range_km", "-car_1/soc", "car_1/state")
    blue = replace(renamed(read(1), "blue"), reading_id="r2")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(blue)
        await broker.held()
        telling = asyncio.create_task(station.publish([reading(2, state=FIRST.state)]))
        await settle()
        broker.release()
        await broker.held()
        station.told(renamed(blue, "car_1"))  # the turn is the reading's
        broker.release()
        await broker.held()
        station.told(renamed(renamed(blue, "car_1"), "blue"))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    assert broker.kept("car_1") == set()
    assert broker.kept("blue") == TOLD


async def test_what_a_reading_told_under_a_slug_taken_back_is_deleted_when_it_is_left_again() -> None:
    broker = SlowBroker("car_1/fetched_at")
    blue = renamed(car(1), "blue")
    async with server(broker.serve) as port, Station(port, car(1)) as station:
        await broker.hears_the_rest(station, 97)
        station.told(blue)
        await broker.hears_the_rest(station, 98)
        station.fleet.put(renamed(blue, "car_1"))  # the latest lane has not come to it yet
        telling = asyncio.create_task(station.publish([FIRST]))
        await broker.held()
        station.told(renamed(renamed(replace(read(1), vehicle=blue.vehicle), "car_1"), "blue"))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    assert broker.kept("car_1") == set()
    assert broker.kept("blue") == TOLD


async def test_a_withdrawal_ends_the_reading_under_way() -> None:
    broker = SlowBroker("car_1/soc")
    journal = readings_of(1, 3)
    async with server(broker.serve) as port, Station(port, car(1)) as station:
        telling = asyncio.create_task(station.publish(journal))
        await broker.held()
        station.told(withdrawn(at_its_newest(car(1), journal)))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    told = [name for name in broker.said("car_1") if name != "availability"]
    assert told == ["state", "state", "state", "soc"]
    assert broker.kept("car_1") == set()


async def test_an_end_in_the_middle_of_deleting_deletes_the_rest() -> None:
    broker = SlowBroker("car_1/fetched_at", "-car_1/state")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(withdrawn(read(1)))
        await broker.held()
        ending = asyncio.create_task(station.stop())
        await asyncio.sleep(0)
        broker.release()
        await ending
    assert broker.kept("car_1") == set()


async def test_a_withdrawn_car_says_so_before_its_topics_go() -> None:
    broker = SlowBroker()
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.hears_the_rest(station, 98)
        before = len(broker.told)
        station.told(withdrawn(read(1)))
        await broker.hears_the_rest(station)
    told = [one for one in broker.told[before:] if one[0].startswith("car_1/")]
    assert told[0] == ("car_1/availability", b"offline")
    assert sorted(topic for topic, _ in told[1:]) == sorted(f"car_1/{leaf}" for leaf in EVERYTHING)
    assert {payload for _, payload in told[1:]} == {b""}


async def test_a_car_withdrawn_while_its_availability_is_told_says_that_it_is_gone() -> None:
    broker = SlowBroker("car_1/availability")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        station.told(withdrawn(read(1)))
        broker.release()
        await broker.hears_the_rest(station)
    told = [payload for topic, payload in broker.told if topic == "car_1/availability"]
    assert told == [b"fresh", b"offline", b""]
    assert broker.kept("car_1") == set()


async def test_a_car_consented_to_anew_while_it_says_that_it_is_gone_keeps_its_values() -> None:
    broker = SlowBroker("car_1/fetched_at", "car_1/availability")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(withdrawn(read(1)))
        await broker.held()
        station.told(read(1))
        broker.release()
        await broker.hears_the_rest(station)
    told = [payload for topic, payload in broker.told if topic == "car_1/availability"]
    assert told == [b"fresh", b"offline", b"fresh"]
    assert all(payload for _, payload in broker.told)
    assert broker.kept("car_1") == TOLD


async def test_a_car_consented_to_anew_while_its_topics_are_deleted_is_told_anew() -> None:
    broker = SlowBroker("car_1/fetched_at", "-car_1/availability")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(withdrawn(read(1)))
        await broker.held()
        station.told(read(1))
        broker.release()
        await broker.hears_the_rest(station)
    assert broker.said("car_1")[-len(TOLD) :][:2] == ["availability", "state"]
    assert broker.kept("car_1") == TOLD


async def test_a_car_that_is_back_for_a_moment_while_its_turn_comes_leaves_nothing() -> None:
    broker = SlowBroker("car_1/fetched_at", "car_2/availability")
    async with server(broker.serve) as port, Station(port, read(1), withdrawn(read(2))) as station:
        await broker.held()
        station.told(read(2))
        broker.release()
        await broker.held()
        station.told(withdrawn(read(2)))
        broker.release()
        await broker.hears_the_rest(station)
    assert broker.kept("car_2") == set()
    assert dict(broker.told).get("car_2/polling", b"") == b""


class SlowNotes(Notes):
    """Keeps what it is told when the test says so, each by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[asyncio.Event] = []
        self.at_once = True

    async def note_published(self, notes: Iterable[Published]) -> None:
        await super().note_published(notes)
        if not self.at_once:
            self.waiting.append(asyncio.Event())
            await self.waiting[-1].wait()

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        self.at_once = False
        try:
            yield
        finally:
            self.at_once = True
            for note in self.waiting:
                note.set()


async def test_a_slug_left_and_taken_back_while_it_is_noted_leaves_nothing() -> None:
    """A reading waits for the note of its topics; by then they were deleted."""
    broker, notes = SlowBroker("car_1/state"), SlowNotes()
    async with server(broker.serve) as port, Station(port, car(1), notes=notes) as station:
        await station.connected()
        await broker.hears_the_rest(station, 97)
        await until(lambda: broker.told[-1][0] == "bridge/info")  # told when all else is told and noted
        blue = renamed(read(1), "blue")
        with notes.one_at_a_time():
            telling = asyncio.create_task(station.publish([FIRST]))
            await until(lambda: len(notes.waiting) == 1)
            station.told(blue)
            await until(lambda: len(notes.waiting) == 2)
            notes.waiting[1].set()
            await until(lambda: len(notes.waiting) == 3)
            assert broker.kept("car_1") == set()
            station.told(renamed(blue, "car_1"))
            notes.at_once = True
            notes.waiting[0].set()
            await broker.held()
            station.told(renamed(renamed(blue, "car_1"), "blue"))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    assert broker.kept("car_1") == set()
    assert broker.kept("blue") == TOLD


async def test_a_car_that_was_offline_already_is_withdrawn_without_saying_so_again() -> None:
    broker = SlowBroker()
    lost = replace(read(1), trouble=Trouble("consent_lost", "CONSENT", "withdrawn in the app", NOON))
    async with server(broker.serve) as port, Station(port, lost) as station:
        await broker.hears_the_rest(station, 98)
        station.told(withdrawn(lost))
        await broker.hears_the_rest(station)
    told = [payload for topic, payload in broker.told if topic == "car_1/availability"]
    assert told == [b"offline", b""]


@pytest.mark.parametrize("gone", [withdrawn, erased], ids=["withdrawn", "erased"])
async def test_a_broker_that_was_away_is_told_once_that_a_car_is_gone_and_forgets_it(
    tmp_path: Path, protocol: str, impatient: None, gone: Callable[[Car], Car]
) -> None:
    async with (
        Mosquitto(tmp_path / "broker", persistent=True) as broker,
        Gate(broker.port) as gate,
        Station(gate.port, read(1), protocol=protocol) as station,
        Witness(broker.port) as witness,
    ):
        await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        gate.shut()
        await station.logged("mqtt.lost")
        station.told(gone(read(1)))
        assert set(await kept(broker.port, "evbatteryd/car_1/+")) == topics("car_1", TOLD)
        gate.open()
        await station.logged("mqtt.connected", times=2)
        async with quiet(station, witness, 90):
            pass
        async with quiet(station, witness, 91):
            station.sink.touch(VehicleId(1))
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}
        told = [m.text for m in witness.on("evbatteryd/car_1/availability")]
        assert (told[-2:], told.count("offline")) == (["offline", ""], 1)
        assert sorted(deletions(witness, "car_1")) == sorted(EVERYTHING)
        async with quiet(station, witness, 92):
            station.told(read(1))
        assert set(await kept(broker.port, "evbatteryd/car_1/+")) == topics("car_1", TOLD)


async def test_a_reading_told_while_its_car_is_still_being_cleared_stays() -> None:
    """The owner consents anew, and the car is read, before all of its old values are deleted."""
    broker = SlowBroker("car_1/fetched_at", "-car_1/range_km")
    async with server(broker.serve) as port, Station(port, read(1)) as station:
        await broker.held()
        broker.release()
        station.told(withdrawn(read(1)))
        await broker.held()
        station.told(read(1))
        telling = asyncio.create_task(station.publish([reading(2, state=FIRST.state)]))
        await settle()
        station.told(replace(read(1), reading_id="r2"))
        broker.release()
        await telling
        await broker.hears_the_rest(station)
    assert broker.kept("car_1") == TOLD


# Erased


async def test_an_erased_car_is_told_no_more_and_its_readings_in_hand_are_passed_over(
    broker: Mosquitto, protocol: str, impatient: None
) -> None:
    """Also when its owner consents anew before the broker is back: the readings in hand are erased ones."""
    journal = readings_of(1, 10)
    known = at_its_newest(car(1), journal)
    async with (
        Witness(broker.port) as witness,
        Gate(broker.port) as gate,
        Station(gate.port, car(1), car(2), protocol=protocol) as station,
    ):
        await station.publish(journal[:5])
        gate.shut()
        await station.connected(False)
        other = reading(11, number=2, state=state(soc=20))
        telling = asyncio.create_task(station.deliver([*journal[5:], other]))
        await settle()
        station.told(withdrawn(known))
        station.told(erased(known))
        station.told(consented_anew(erased(known)))
        gate.open()
        await telling
        await witness.until(lambda w: w.last("evbatteryd/car_2/soc") == "20")
        async with quiet(station, witness):
            pass
        # What was told before the erasure is deleted, though the car is not withdrawn any more.
        availability = {"evbatteryd/car_1/availability": "stale"}
        assert await kept(broker.port, "evbatteryd/car_1/+") == availability
        told = [m.json["reading_id"] for m in witness.on("evbatteryd/car_1/state") if m.payload]
        assert told == [one.reading_id for one in journal[:5]]
        new = reading(12, state=state(soc=44, measured_at=later(2)))
        station.fleet.put(at_its_newest(consented_anew(erased(known)), [new]))
        await station.publish([new])
        await witness.until(lambda w: w.last("evbatteryd/car_1/soc") == "44")
        await witness.until(lambda w: w.last("evbatteryd/car_1/availability") == "fresh")
        fields = {"state", "soc", "measured_at", "fetched_at", "availability"}
        assert set(await kept(broker.port, "evbatteryd/car_1/+")) == topics("car_1", fields)


async def test_a_connected_car_that_is_erased_is_wiped_and_starts_anew(
    broker: Mosquitto, protocol: str
) -> None:
    async with Witness(broker.port) as witness, Station(broker.port, read(1), protocol=protocol) as station:
        await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        async with quiet(station, witness, 90):
            station.told(erased(read(1)))
        assert await kept(broker.port, "evbatteryd/car_1/+") == {}
        async with quiet(station, witness, 91):
            station.told(consented_anew(erased(read(1))))
        assert await kept(broker.port, "evbatteryd/car_1/+") == {"evbatteryd/car_1/availability": "stale"}
        new = reading(7, state=state(soc=44))
        station.told(at_its_newest(consented_anew(erased(read(1))), [new]))
        await station.publish([new])
        async with quiet(station, witness, 92):
            pass
        assert (await kept(broker.port, "evbatteryd/car_1/+"))["evbatteryd/car_1/soc"] == "44"
        assert [m.json["vehicles"] for m in witness.on("evbatteryd/bridge/info")] == [1, 3, 4]


async def test_what_a_broker_kept_of_an_erased_car_is_deleted_after_a_new_consent_too(
    tmp_path: Path, protocol: str
) -> None:
    """It was erased and consented to anew while we could not reach the broker, and then we were restarted."""
    async with Mosquitto(tmp_path / "broker", persistent=True) as broker:
        async with (
            Station(broker.port, read(1), protocol=protocol),
            Witness(broker.port) as witness,
        ):
            await witness.until(lambda w: w.on("evbatteryd/car_1/fetched_at"))
        await broker.restart()
        never_heard_of = car(2)
        revived = consented_anew(erased(read(1)))
        async with (
            Witness(broker.port) as witness,
            Station(broker.port, revived, never_heard_of, protocol=protocol) as station,
        ):
            async with quiet(station, witness):
                pass
            assert await kept(broker.port, "evbatteryd/car_1/+") == {"evbatteryd/car_1/availability": "stale"}
            assert deletions(witness, "car_2") == []  # there is nothing to delete of a new car


# All of it together


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_the_broker_keeps_what_is_true_and_nothing_else(
    tmp_path: Path, protocol: str, impatient: None, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Readings, renames, withdrawals, erasures, new consents and breaks in random order.

    With a broker that forgets nothing and proves it: what it was told stays told, what not is told again.
    """
    monkeypatch.setattr(mark, "MARK_EVERY_S", 0.005)
    chance = random.Random(seed)
    numbers = range(1, 5)
    async with (
        Mosquitto(tmp_path / "broker", persistent=True) as broker,
        Gate(broker.port) as gate,
        Station(gate.port, *(car(number) for number in numbers), protocol=protocol) as station,
        Witness(broker.port) as witness,
    ):
        journal: dict[int, Reading] = {}
        news = asyncio.Event()
        ended = False

        def change(known: Car, seq: int) -> None:
            kind = chance.choice(["read"] * 6 + ["rename"] * 2 + ["withdraw", "erase", "consent", "consent"])
            if kind == "rename":
                slugs = (f"{letter}_{known.id}" for letter in chance.sample("abc", 3))
                station.told(renamed(known, next(slug for slug in slugs if slug != known.slug)))
            elif kind == "withdraw":
                station.told(withdrawn(known))
            elif kind == "erase":
                for one in [one for one in journal.values() if one.vehicle_id == known.id]:
                    del journal[one.seq]
                station.told(erased(known))
            elif kind == "consent":
                station.told(consented_anew(known))
            elif known.vehicle.withdrawn_at is None:
                found = state(soc=seq % 100, range_km=seq, measured_at=NOON + timedelta(milliseconds=seq))
                one = reading(seq, number=known.id, state=found)
                journal[seq] = one
                station.commit(one)
                station.sink.touch(known.id)
                news.set()

        async def live() -> None:
            nonlocal ended
            for seq in range(1, 400):
                change(station.fleet[VehicleId(chance.choice(numbers))], seq)
                if seq % 100 == 50:
                    gate.shut()
                elif seq % 100 == 70:
                    gate.open()
                await asyncio.sleep(chance.choice([0, 0, 0, 0.002, 0.005]))
            gate.open()
            ended = True
            news.set()

        async def deliver() -> None:
            cursor = 0
            while True:
                news.clear()
                while batch := [one for seq, one in journal.items() if seq > cursor][:20]:
                    await station.deliver(batch, commit=False)
                    cursor = batch[-1].seq
                if ended:
                    return
                await news.wait()

        async with asyncio.TaskGroup() as living:
            living.create_task(live())
            living.create_task(deliver())
        async with quiet(station, witness):
            pass
        found = await kept(broker.port, "evbatteryd/+/+")
        expected: set[str] = topics("bridge", ("state", "info")) | topics("car_99", ("availability",))
        for known in station.fleet:
            if known.id in numbers:
                expected |= topics(known.slug, _retained(known))
        assert set(found) == expected
        for known in station.fleet:
            if _is_told(known):
                assert found[f"evbatteryd/{known.slug}/soc"] == f"{known.state.soc_percent:.0f}"
        assert station.events("mqtt.lost")


def _is_told(known: Car) -> bool:
    return known.vehicle.withdrawn_at is None and known.state != BatteryState()


def _retained(known: Car) -> set[str]:
    if known.vehicle.withdrawn_at is not None:
        return set()
    return TOLD if _is_told(known) else {"availability"}

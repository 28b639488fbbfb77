"""What every store promises about what a sink has taken and what it is owed."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import Store
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.store import open_store
from evbatteryd.store.threads import Threads
from tests.store.cars import MINUTE, START, all_readings, enrolled, recorded
from tests.store.conftest import Opener

NOBODY = VehicleId(4711)


async def journal(store: Store, cars: list[Car], owners: str) -> list[Reading]:
    """A reading a minute, each of the car whose number stands at its place."""
    return [await recorded(store, cars[int(owner)], minute) for minute, owner in enumerate(owners)]


def owing(readings: list[Reading]) -> list[tuple[int, VehicleId]]:
    return [(reading.seq, reading.vehicle_id) for reading in readings]


async def walked(store: Store, sink: str, limit: int, after: int = 0) -> list[tuple[int, VehicleId]]:
    """As a sink takes up what it is owed."""
    found: list[tuple[int, VehicleId]] = []
    while slice_ := await store.owed(sink, after, limit):
        assert len(slice_) <= limit
        found += slice_
        after = slice_[-1][0]
    return found


async def test_a_sink_is_owed_whatever_it_has_not_taken(opener: Opener) -> None:
    async with opener() as store:
        cars = [await enrolled(store, number) for number in range(3)]
        assert await store.owed("mqtt", 0, 10) == []
        readings = await journal(store, cars, "0120102")
        assert await store.owed("mqtt", 0, 10) == owing(readings)
        await store.delivered("mqtt", {cars[0].id: readings[3].seq, cars[2].id: readings[2].seq})
    async with opener() as store:
        left = [readings[at] for at in (1, 4, 5, 6)]
        assert await store.owed("mqtt", 0, 10) == owing(left)
        assert await store.owed("mqtt", 0, 2) == owing(left[:2])
        assert await store.owed("mqtt", readings[4].seq, 2) == owing(left[2:])
        assert await store.owed("mqtt", readings[6].seq, 2) == []
        assert await store.owed("remote", 0, 10) == owing(readings)
        assert await store.cursor("mqtt") == 0
        await store.delivered("mqtt", {cars[0].id: readings[5].seq}, readings[4].seq)
        assert await store.owed("mqtt", 0, 10) == owing(readings[6:])
        assert await store.cursor("mqtt") == readings[4].seq
        assert await store.owed("remote", 0, 10) == owing(readings)


async def test_nothing_goes_back(opener: Opener) -> None:
    async with opener() as store:
        cars = [await enrolled(store, number) for number in range(2)]
        readings = await journal(store, cars, "010101")
        await store.delivered("mqtt", {cars[0].id: readings[4].seq}, readings[1].seq)
        await store.delivered("mqtt", {cars[0].id: readings[2].seq, cars[1].id: readings[0].seq})
        await store.delivered("mqtt", {}, 0)
    async with opener() as store:
        assert await store.cursor("mqtt") == readings[1].seq
        assert await store.owed("mqtt", 0, 10) == owing([readings[3], readings[5]])
        await store.delivered("mqtt", {}, readings[5].seq)
        await store.delivered("mqtt", {cars[0].id: readings[1].seq}, readings[2].seq)
        assert await store.owed("mqtt", 0, 10) == []
        assert await store.cursor("mqtt") == readings[5].seq


async def test_a_vehicle_nobody_knows_keeps_the_others_from_being_noted(store: Store) -> None:
    car = await enrolled(store)
    first, second = [await recorded(store, car, minute) for minute in (1, 2)]
    with pytest.raises(StoreError, match="no such vehicle"):
        await store.delivered("mqtt", {car.id: second.seq, NOBODY: second.seq}, first.seq)
    assert await store.owed("mqtt", 0, 10) == owing([first, second])
    assert await store.cursor("mqtt") == 0


async def test_what_was_erased_is_owed_to_nobody_and_what_comes_next_is(opener: Opener) -> None:
    async with opener() as store:
        cars = [await enrolled(store, number) for number in range(2)]
        readings = await journal(store, cars, "01010")
        await store.delivered("mqtt", {cars[0].id: readings[2].seq})
        await store.erase(cars[0].id)
        assert await store.owed("mqtt", 0, 10) == owing([readings[1], readings[3]])
    async with opener() as store:
        following = await recorded(store, cars[0], 9)
        assert await store.owed("mqtt", 0, 10) == owing([readings[1], readings[3], following])


async def test_pruning_waits_for_every_sink_vehicle_by_vehicle(store: Store) -> None:
    cars = [await enrolled(store, number) for number in range(2)]
    readings = await journal(store, cars, "010101")
    await store.delivered("mqtt", {cars[0].id: readings[4].seq})
    await store.delivered("remote", {cars[0].id: readings[2].seq}, readings[1].seq)
    assert await store.prune(START + timedelta(days=1)) == 2
    assert await all_readings(store) == [readings[at] for at in (1, 3, 4, 5)]
    assert await store.owed("mqtt", 0, 10) == owing([readings[at] for at in (1, 3, 5)])
    assert await store.owed("remote", 0, 10) == owing([readings[at] for at in (3, 4, 5)])


async def test_a_sink_that_was_told_of_single_vehicles_alone_loses_nothing_of_the_others(
    store: Store,
) -> None:
    cars = [await enrolled(store, number) for number in range(2)]
    readings = await journal(store, cars, "01")
    await store.delivered("new", {cars[0].id: readings[0].seq})
    assert await store.prune(START + timedelta(days=1)) == 1
    assert await all_readings(store) == readings[1:]


async def test_readings_are_looked_up_by_position(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evbatteryd.store.sqlite._LOOKED_UP", 2)
    cars = [await enrolled(store, number) for number in range(2)]
    readings = await journal(store, cars, "0101011")
    await store.erase(cars[0].id)
    everywhere = reversed([reading.seq for reading in readings])
    assert await store.readings(everywhere) == [readings[at] for at in (1, 3, 5, 6)]
    assert await store.readings([readings[3].seq, 0, readings[3].seq, 999_999]) == [readings[3]]
    assert await store.readings([]) == []


async def test_a_walk_meets_what_is_committed_while_it_is_under_way(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evbatteryd.store.outbox._OWED_SLICE", 3)
    car = await enrolled(store)
    for minute in range(4):
        await recorded(store, car, minute)
    read = Threads.read

    async def read_as_others_write(threads: Threads, query: Any) -> Any:
        found = await read(threads, query)
        if store.head < 50:
            await recorded(store, car, store.head)
        return found

    monkeypatch.setattr(Threads, "read", read_as_others_write)
    assert await walked(store, "mqtt", 2) == [(position, car.id) for position in range(1, 51)]


async def test_no_note_is_kept_that_the_cursor_has_overtaken(path: Path) -> None:
    def noted() -> list[tuple[str, int, int]]:
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute("SELECT sink, vehicle_id, seq FROM told ORDER BY 1, 2").fetchall()

    async with open_store(path) as store:
        cars = [await enrolled(store, number) for number in range(3)]
        one, two, three = (car.id for car in cars)
        await store.delivered("mqtt", {one: 3, two: 5, three: 7})
        await store.delivered("remote", {one: 3})
        await store.delivered("mqtt", {}, 5)
        assert noted() == [("mqtt", three, 7), ("remote", one, 3)]
        await store.delivered("mqtt", {one: 5, two: 6})
        assert noted() == [("mqtt", two, 6), ("mqtt", three, 7), ("remote", one, 3)]


# Laws

SINKS = ("mqtt", "remote")
PLACES = st.integers(0, 2)
"""Which car."""
POSITIONS = st.integers(0, 20)
"""Cut back to those that were given."""
OPERATIONS = st.one_of(
    st.tuples(st.just("record"), PLACES),
    st.tuples(st.just("record"), PLACES),
    st.tuples(
        st.just("delivered"),
        st.sampled_from(SINKS),
        st.dictionaries(PLACES, POSITIONS),
        st.none() | POSITIONS,
    ),
    st.tuples(st.just("erase"), PLACES),
    st.tuples(st.just("prune"), POSITIONS),
    st.tuples(st.just("cursor"), st.sampled_from(SINKS)),
)


@dataclass
class Model:
    """The law: what is committed, and neither delivered, nor erased, nor pruned after delivery, is owed."""

    committed: dict[int, VehicleId] = field(default_factory=dict)
    """By position, which is the minute of its measurement too."""
    cursors: dict[str, int] = field(default_factory=dict)
    told: dict[tuple[str, VehicleId], int] = field(default_factory=dict)

    def taken(self, sink: str, position: int) -> bool:
        own = self.told.get((sink, self.committed[position]), 0)
        return position <= max(own, self.cursors.get(sink, 0))

    def owed(self, sink: str) -> list[tuple[int, VehicleId]]:
        return [(at, of) for at, of in self.committed.items() if not self.taken(sink, at)]

    def delivered(self, sink: str, positions: Mapping[VehicleId, int], cursor: int | None) -> None:
        self.cursors[sink] = max(self.cursors.get(sink, 0), cursor or 0)
        for of, at in positions.items():
            self.told[sink, of] = max(self.told.get((sink, of), 0), at)

    def prune(self, before: int) -> int:
        gone = [at for at in self.committed if at < before and all(self.taken(s, at) for s in self.cursors)]
        for at in gone:
            del self.committed[at]
        return len(gone)


async def carry_out(store: Store, model: Model, cars: list[Car], operation: tuple[Any, ...]) -> None:
    match operation:
        case ("record", place):
            reading = await recorded(store, cars[place], store.head + 1)
            model.committed[reading.seq] = reading.vehicle_id
        case ("delivered", sink, places, cursor):
            positions = {cars[place].id: min(at, store.head) for place, at in places.items()}
            cursor = None if cursor is None else min(cursor, store.head)
            await store.delivered(sink, positions, cursor)
            model.delivered(sink, positions, cursor)
        case ("erase", place):
            await store.erase(cars[place].id)
            model.committed = {at: of for at, of in model.committed.items() if of != cars[place].id}
        case ("prune", before):
            # Each reading was fetched a minute after it was measured.
            assert await store.prune(START + (before + 1) * MINUTE) == model.prune(before)
        case ("cursor", sink):
            assert await store.cursor(sink) == model.cursors.setdefault(sink, 0)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPERATIONS, max_size=30), st.integers(1, 4))
def test_what_is_owed_is_what_was_committed_and_neither_delivered_nor_erased(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[Any, ...]], limit: int
) -> None:
    async def live(path: Path) -> None:
        model = Model()
        async with open_store(path) as store:
            cars = [await enrolled(store, number) for number in range(3)]
            for operation in operations:
                await carry_out(store, model, cars, operation)
                for sink in SINKS:
                    assert await store.owed(sink, 0, 100) == model.owed(sink)
        async with open_store(path) as store:
            assert [reading.seq for reading in await all_readings(store)] == list(model.committed)
            for sink in SINKS:
                cursor = await store.cursor(sink)
                assert cursor == model.cursors.get(sink, 0)
                assert await walked(store, sink, limit, cursor) == model.owed(sink)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("evbatteryd.store.sqlite._SLICE", 3)
        patch.setattr("evbatteryd.store.outbox._OWED_SLICE", 2)
        asyncio.run(live(tmp_path_factory.mktemp("outbox") / "evbatteryd.db"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=20),
    st.booleans(),
    st.integers(0, 23),
)
def test_the_position_before_an_instant_is_where_those_before_it_end(
    tmp_path_factory: pytest.TempPathFactory, life: list[tuple[int, bool]], in_order: bool, minute: int
) -> None:
    """Which leaves one position alone where the journal is in order. Some readings are gone from it."""
    instant = START + minute * MINUTE

    async def live(path: Path) -> None:
        async with open_store(path) as store:
            car, erased = await enrolled(store, 1), await enrolled(store, 2)
            for when, stays in sorted(life) if in_order else life:
                await recorded(store, car if stays else erased, when)
            await store.erase(erased.id)
            readings = await all_readings(store)
            found = await store.position_before(instant)
            up_to = [reading for reading in readings if reading.seq <= found]
            beyond = readings[len(up_to) :]
            assert [reading.seq for reading in up_to[-1:]] == ([found] if found else [])
            assert all(reading.fetched_at < instant for reading in up_to[-1:])
            assert all(reading.fetched_at >= instant for reading in beyond[:1])

    asyncio.run(live(tmp_path_factory.mktemp("positions") / "evbatteryd.db"))


async def test_the_instant_itself_is_not_before_it(store: Store) -> None:
    assert await store.position_before(START) == 0
    car = await enrolled(store)
    first, second = [await recorded(store, car, minute) for minute in (1, 2)]
    assert await store.position_before(first.fetched_at) == 0
    assert await store.position_before(second.fetched_at) == first.seq
    assert await store.position_before(second.fetched_at + timedelta(microseconds=1)) == second.seq

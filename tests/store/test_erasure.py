"""What was erased is in no byte of any file; what was begun is finished."""

from __future__ import annotations

import sqlite3
import struct
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import Store
from evbatteryd.domain.reading import Rejected, Signal
from evbatteryd.store import open_store, sqlite
from evbatteryd.store.threads import Threads
from tests.store.cars import START, all_readings, answer, enrolled, recorded, request
from tests.store.processes import child
from tests.store.wal import commits

SOC = 61.803398874989
TRACES = (struct.pack(">d", SOC), struct.pack(">d", 3 * SOC), b"<personal", b"<unreadable", b"<habits")
CLEAN = [0] * len(TRACES)
"""Numbers as SQLite writes them: https://sqlite.org/fileformat2.html#record_format"""


def traces(path: Path) -> list[int]:
    """How often each trace is found in the database and its log."""
    data = b"".join(file.read_bytes() for file in (path, path.with_name(path.name + "-wal")) if file.exists())
    return [data.count(trace) for trace in TRACES]


async def history(store: Store, cars: list[Car]) -> None:
    """A life with much that is overwritten and displaced, of the first car with values of its own."""
    for minute in range(60):
        for car in cars:
            own = car is cars[0]
            raw = "<personal" if own else "x" * (minute % 40)
            rejected = (Rejected(Signal.SOC, raw, "above 100 %", None, START),) * (minute % 2)
            excerpt = "<unreadable" * (minute % 20) if own else "y" * (minute * 7 % 300)
            grown = replace(
                car,
                schedule=replace(car.schedule, reason="z" * (minute * 11 % 90)),
                learned=(b"<habits" if own else b"others") * (minute * 13 % 1000),
            )
            soc = SOC if own else float(minute)
            await store.record(answer(grown, minute, soc=soc, rejected=rejected, excerpt=excerpt or None))


async def test_nothing_of_it_is_left_in_the_files(path: Path) -> None:
    async with open_store(path) as store:
        cars = [await enrolled(store, number) for number in range(12)]
        await history(store, cars)
        assert all(traces(path))
        await store.erase(cars[0].id)
        assert traces(path) == CLEAN
        await store.update(cars[0])  # as it is once it is erased: nothing of it comes back
        assert traces(path) == CLEAN
        assert len(await all_readings(store)) == 60 * 11
    assert traces(path) == CLEAN
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_pruned_readings_leave_nothing_behind_either(path: Path) -> None:
    async with open_store(path) as store:
        car = await enrolled(store)
        await history(store, [car])
        await store.record(answer(car, 61, soc=1.0, excerpt="<other>"))
        assert await store.prune(START + sqlite._LONGEST_PERIOD) == 61
    assert traces(path)[:2] == [0, 0]


async def test_a_program_that_holds_the_log_is_told_holds_up_nobody_and_a_second_call_cleans_up(
    path: Path,
) -> None:
    async with open_store(path) as store:
        car = await enrolled(store)
        await recorded(store, car, 1, soc=SOC)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            assert other.execute("SELECT count(*) FROM reading").fetchone() == (1,)
            assert not await store.erase(car.id)
            assert await all_readings(store) == []
            assert traces(path)[0] > 0
            await store.reserve(request(car.id))  # nobody else is held up
        assert await store.erase(car.id)
        assert traces(path) == CLEAN


async def test_erasing_goes_through_the_journal_in_slices(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_SLICE", 3)
    async with open_store(path) as store:
        car, other = await enrolled(store, 1), await enrolled(store, 2)
        for of in (car, other, other, other, other, other, car, car, car, other):
            await recorded(store, of, 1)
        emptied = watch_emptying(path, monkeypatch)
        before = commits(path)
        await store.erase(car.id)
        # The first and the third slice (the second holds nothing of it), the rest together with the state.
        assert [log - before for log in emptied] == [3]
        assert {reading.vehicle_id for reading in await all_readings(store)} == {other.id}
        assert len(await all_readings(store)) == 6


def watch_emptying(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commits the log held whenever it was about to be emptied."""
    seen: list[int] = []
    empty = Threads.empty_log

    async def watched(threads: Threads) -> bool:
        seen.append(commits(path))
        return await empty(threads)

    monkeypatch.setattr(Threads, "empty_log", watched)
    return seen


async def test_an_erasure_that_was_killed_is_finished_by_a_second_call(path: Path) -> None:
    with child("erase_by_half", path) as process:
        assert process.wait() == -9
    async with open_store(path) as store:
        car, other = await store.cars()
        left = [reading.vehicle_id for reading in await all_readings(store)]
        assert 0 < left.count(car.id) < left.count(other.id) == 20
        await store.erase(car.id)
        assert {reading.vehicle_id for reading in await all_readings(store)} == {other.id}
        erased, same = await store.cars()
        assert (erased.reading_id, erased.state.signals) == (None, {})
        assert same == other
    assert traces(path) == CLEAN

"""Killed processes, full disks, locked files: what was acknowledged is there, and nothing by half."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from evbatteryd.domain.enrolment import Ending
from evbatteryd.domain.errors import StoreError
from evbatteryd.store import open_store
from tests.store.cars import MINUTE, START, all_readings, enrolled, recorded, request
from tests.store.enrolments import digest
from tests.store.processes import child
from tests.store.wal import commits


@pytest.mark.parametrize("acknowledgements", [1, 50, 1000])
async def test_what_was_acknowledged_survives_a_kill(path: Path, acknowledgements: int) -> None:
    with child("hammer", path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        # The last line may have been cut off by the kill.
        lines += [line for line in process.stdout if line.endswith("\n")]
    told = [json.loads(line) for line in lines]
    recordings = [one for one in told if "recorded" in one]
    async with open_store(path) as store:
        readings = await all_readings(store)
        cars = await store.cars()
        spent = (await store.account("home", START)).spent
        excerpts = {car.id: await store.excerpt(car.id) for car in cars}
        assert store.head == len(readings)
    by_seq = {reading.seq: reading for reading in readings}
    for one in recordings:
        reading = by_seq[one["seq"]]
        assert (reading.vehicle_id, reading.reading_id) == (one["recorded"], one["reading_id"])
        assert reading.state.soc_percent == one["minute"] % 101
    for one in told:
        if "reserved" in one:
            assert spent[one["reserved"]] >= one["calls"]
    for car in cars:
        own = [reading for reading in readings if reading.vehicle_id == car.id]
        # One transaction each: a request and its due time, an answer in car, journal and excerpt.
        unanswered = spent.get(car.id, 0) - len(own)
        assert unanswered in (0, 1)
        assert car.schedule.polled_at == (START + 5 * MINUTE if unanswered else None)
        if own:
            assert car.learned == f"learnt by {len(own) - 1}".encode()
            assert (car.reading_id, car.state) == (own[-1].reading_id, own[-1].state)
            assert excerpts[car.id] == str(len(own) - 1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("acknowledgements", [1, 200])
async def test_how_an_enrolment_was_told_to_have_ended_survives_a_kill(
    path: Path, acknowledgements: int
) -> None:
    with child("consent", path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        # The last line may have been cut off by the kill.
        lines += [line for line in process.stdout if line.endswith("\n")]
    async with open_store(path) as store:
        for line in lines:
            told = json.loads(line)
            enrolment = await store.enrolment(digest(f"state {told['number']}"))
            invitation = await store.invitation(digest(f"token {told['number']}"))
            assert enrolment is not None
            assert invitation is not None
            assert [[enrolment.ending, enrolment.user_ref]] == told["counted"]
            assert (invitation.used_at is not None) == (enrolment.ending is Ending.CONSENTED)
        # One transaction: no consent without its invitation used, no invitation used without its consent.
        used = [one for one in await store.invitations(100_000) if one.used_at is not None]
        assert len(used) == len(await store.awaited())


@pytest.mark.parametrize("acknowledgements", [1, 50, 1000])
async def test_what_was_delivered_and_noted_survives_a_kill(path: Path, acknowledgements: int) -> None:
    with child("tell", path) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(acknowledgements)]
        process.kill()
        # The last line may have been cut off by the kill.
        lines += [line for line in process.stdout if line.endswith("\n")]
    told = [json.loads(line) for line in lines]

    def last(what: str) -> int:
        return max((one[what] for one in told if what in one), default=-1)

    noted, taken = last("noted"), last("taken")
    async with open_store(path) as store:
        owed = dict(await store.owed("mqtt", 0, 1_000_000))
        readings = await all_readings(store)
        assert store.head == len(readings)
        assert await store.cursor("mqtt") >= last("cursor")
        for one in told:
            if "delivered" in one:
                assert one["seq"] not in owed
        # At most the one reading of each car that was on its way is owed.
        assert len(set(owed.values())) == len(owed)
        # One transaction: all of them are of one round, the last one told of or the one on its way.
        published = await store.published()
        rounds = {leaf for note in published for leaf in note.leaves - {"state"}}
        assert rounds in [{f"field_{number}"} if number >= 0 else set() for number in (noted, noted + 1)]
        assert len(published) == 5 * len(rounds)
        for number in range(taken + 1):
            assert await store.mark(f"sink {number}") is None
        for number in range(taken + 2, last("kept") + 1):  # the one between them may be on its way
            assert await store.mark(f"sink {number}") == f"mark {number}"


async def test_a_full_disk_is_said_and_outlived(path: Path) -> None:
    with child("fill", path) as process:
        assert process.stdout is not None
        full, after = (json.loads(line) for line in process.stdout)
        assert process.wait() == 0
    assert "the disk is full" in full["words"]
    assert full["kept"] > 0
    assert full["readings"] == full["head"] == full["kept"]
    assert full["refused"] == ["StoreError"] * 34
    assert full["excerpt"] is None
    assert (full["owed"], full["published"]) == (full["kept"], 0)
    assert after == {"seq": full["kept"] + 1, "readings": full["kept"] + 1}
    async with open_store(path) as store:
        assert len(await all_readings(store)) == full["kept"] + 1
        assert [car.vehicle.name for car in await store.cars()] == ["Zoe 1"]
        assert await store.mark("mqtt") is None


async def test_a_second_process_is_refused_until_the_first_is_gone(path: Path) -> None:
    path.with_name(path.name + ".lock").write_text("123456789012\n")  # of a process long gone
    with child("hold", path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreError, match=f"already in use by process {process.pid}$"):
            async with open_store(path):
                pass
        process.kill()
        process.wait()
        async with open_store(path) as store:
            await enrolled(store)


async def test_a_second_opening_in_one_process_is_refused_too(path: Path) -> None:
    async with open_store(path):
        with pytest.raises(StoreError, match="already in use"):
            async with open_store(path):
                pass
    async with open_store(path):
        pass


async def test_what_waits_is_committed_together(path: Path) -> None:
    async with open_store(path) as store:
        car = await enrolled(store)
        before = commits(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = [asyncio.create_task(recorded(store, car, minute)) for minute in range(200)]
            assert len(await store.cars()) == 1  # who reads does not wait for who writes
            assert not any(task.done() for task in waiting)
            other.execute("ROLLBACK")
        readings = await asyncio.gather(*waiting)
        assert await all_readings(store) == readings
        # What had arrived when the writer came to the lock, and what came while it stood there.
        assert commits(path) - before <= 2


async def test_each_write_is_committed_before_it_is_acknowledged(path: Path) -> None:
    async with open_store(path) as store:
        car = await enrolled(store)
        before = commits(path)
        for number in range(1, 6):
            await store.reserve(request(car.id))
            assert commits(path) - before == number


async def test_a_file_that_another_program_holds_is_said_to_be_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evbatteryd.store.database.BUSY_SECONDS", 0.05)
    async with open_store(path) as store:
        car = await enrolled(store)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked by another program"):
                await recorded(store, car, 1)
            other.execute("ROLLBACK")
        reading = await recorded(store, car, 2)
        assert await all_readings(store) == [reading]

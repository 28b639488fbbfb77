"""The database file: who may read it, whose it is, which version, what a reader beside the daemon sees."""

from __future__ import annotations

import gc
import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain.errors import StoreError
from evbatteryd.store import database, failures, open_store, sqlite
from tests.store.cars import START, all_readings, answer, enrolled, recorded
from tests.store.enrolments import invited
from tests.store.wal import commits


async def attempt(path: Path, *, read_only: bool = False, create: bool = True) -> None:
    async with open_store(path, read_only=read_only, create=create) as store:
        await store.cars()
        await all_readings(store)


def content(path: Path) -> bytes:
    return path.read_bytes()


def foreign(path: Path, script: str | None) -> bytes:
    """A file that is not ours: another program's database, or no database at all."""
    if script is None:
        path.write_text("Dear diary, " * 1000)
    else:
        with closing(sqlite3.connect(path)) as connection:
            connection.executescript(script)
    return content(path)


def damage(path: Path) -> None:
    """Overwrite everything behind the first page."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
async def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    async with open_store(folder / "evbatteryd.db") as store:
        await enrolled(store)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes.keys() >= {"evbatteryd.db", "evbatteryd.db-wal", "evbatteryd.db.lock"}
    assert set(modes.values()) == {0o600}


async def test_an_empty_file_becomes_a_store_and_a_current_one_stays_as_it_is(path: Path) -> None:
    database.make_file(path)
    assert content(path) == b""
    async with open_store(path) as store:
        car, reading = await store.record(answer(await enrolled(store), 1))
    with closing(sqlite3.connect(path)) as connection:
        before = list(connection.iterdump())
    async with open_store(path, create=False) as store:
        assert await store.cars() == [car]
        assert await all_readings(store) == [reading]
    with closing(sqlite3.connect(path)) as connection:
        assert list(connection.iterdump()) == before


async def test_two_stores_never_give_the_same_reading_id(tmp_path: Path) -> None:
    ids = set()
    for name in ("one.db", "two.db"):
        async with open_store(tmp_path / name) as store:
            ids.add((await recorded(store, await enrolled(store), 1)).reading_id)
    assert len(ids) == 2


async def test_leaving_folds_the_log_into_the_database_even_beside_a_reader(path: Path) -> None:
    log = path.with_name(path.name + "-wal")
    async with open_store(path) as store:
        await enrolled(store)
        # Who closes last does it anyway: that is not us here.
        other = sqlite3.connect(path)
        assert other.execute("SELECT count(*) FROM vehicle").fetchone() == (1,)
        assert log.stat().st_size > 0
    with closing(other):
        assert log.stat().st_size == 0


def test_commits_are_flushed_to_the_disk(path: Path) -> None:
    database.make_file(path)
    with closing(database.open_for_writing(path)) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_missing_file_is_not_made_unasked(path: Path, read_only: bool) -> None:
    with pytest.raises(StoreError, match="there is no database"):
        await attempt(path, read_only=read_only, create=False)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        ("CREATE TABLE theirs (x); PRAGMA user_version = 1", "another program's database"),
        ("PRAGMA application_id = 7", "another program's database"),
        (None, "not an SQLite database"),
    ],
)
async def test_a_foreign_file_is_refused_and_left_alone(
    path: Path, make: str | None, words: str, read_only: bool
) -> None:
    before = foreign(path, make)
    with pytest.raises(StoreError, match=words):
        await attempt(path, read_only=read_only)
    assert content(path) == before


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_newer_database_is_refused(path: Path, read_only: bool) -> None:
    await attempt(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StoreError, match=r"newer evbatteryd \(schema 999"):
        await attempt(path, read_only=read_only)


async def test_a_step_of_the_schema_is_taken_whole_or_not_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(path) as store:
        car = await enrolled(store)
    steps = database._migrations()

    def tables() -> set[str]:
        with closing(sqlite3.connect(path)) as connection:
            return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}

    monkeypatch.setattr(database, "_migrations", lambda: [*steps, "CREATE TABLE extra (x); SELECT nonsense"])
    with pytest.raises(StoreError, match="older evbatteryd"):
        await attempt(path, read_only=True)
    with pytest.raises(StoreError, match="nonsense"):
        await attempt(path)
    assert "extra" not in tables()
    monkeypatch.setattr(database, "_migrations", lambda: [*steps, "CREATE TABLE extra (x)"])
    async with open_store(path) as store:
        assert await store.cars() == [car]
    assert "extra" in tables()
    await attempt(path)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="newer evbatteryd"):
        await attempt(path)


async def test_damage_is_said_with_what_to_do(path: Path) -> None:
    async with open_store(path) as store:
        car = await enrolled(store)
        for minute in range(100):
            await recorded(store, car, minute)
    damage(path)
    with pytest.raises(StoreError, match="the database is damaged: move it away"):
        await attempt(path)


async def test_an_unusable_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file"):
        await attempt(tmp_path / "file" / "evbatteryd.db")
    with pytest.raises(StoreError, match="directory"):
        await attempt(tmp_path)


async def test_an_old_sqlite_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(StoreError, match=r"SQLite 3\.38\.0 or newer"):
        await attempt(path)


async def test_reading_beside_the_daemon(path: Path) -> None:
    async with open_store(path) as store:
        car, first = await store.record(answer(await enrolled(store), 1))
        async with open_store(path, read_only=True) as reader:
            assert await reader.cars() == [car]
            assert await all_readings(reader) == [first]
            assert await reader.cursor("new") == 0
            second = await recorded(store, car, 2)
            assert await reader.owed("new", reader.head, 10) == [(second.seq, car.id)]
            with pytest.raises(StoreError, match="reading only"):
                await reader.update(replace(car, reading_id=None))
            with pytest.raises(StoreError, match="reading only"):
                await reader.prune(START + timedelta(days=1))
            with pytest.raises(StoreError, match="reading only"):
                await reader.erase(car.id)
            with pytest.raises(StoreError, match="reading only"):
                await reader.delivered("new", {car.id: second.seq})
            with pytest.raises(StoreError, match="reading only"):
                await reader.mark("new")
            invitation = await invited(store)
            assert await reader.invitations(5) == [invitation]
            with pytest.raises(StoreError, match="reading only"):
                await reader.revoke_invitation(invitation.id, START)
        third = await recorded(store, car, 3)
    async with open_store(path, read_only=True) as reader:
        assert await all_readings(reader) == [first, second, third]


async def test_pruning_goes_through_the_journal_in_slices(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_SLICE", 3)
    async with open_store(path) as store:
        car = await enrolled(store)
        readings = [await recorded(store, car, minute) for minute in range(10)]
        await store.delivered("mqtt", {}, readings[7].seq)
        before = commits(path)
        assert await store.prune(readings[-1].fetched_at) == 8
        assert await all_readings(store) == readings[8:]
        assert commits(path) - before == 3


async def test_loading_leaves_the_garbage_collector_as_it_was(path: Path) -> None:
    async with open_store(path) as store:
        await store.cars()
        assert gc.isenabled()
        gc.disable()
        try:
            await store.cars()
            assert not gc.isenabled()
        finally:
            gc.enable()


def test_every_error_of_sqlite_is_told_in_plain_words(tmp_path: Path) -> None:
    path = tmp_path / "errors.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute("PRAGMA max_page_count = 3")
        with pytest.raises(sqlite3.OperationalError) as full:
            connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
        connection.execute("BEGIN IMMEDIATE")
        with (
            closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other,
            pytest.raises(sqlite3.OperationalError) as locked,
        ):
            other.execute("BEGIN IMMEDIATE")
    with (
        closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection,
        pytest.raises(sqlite3.OperationalError) as forbidden,
    ):
        connection.execute("INSERT INTO t VALUES (1)")
    with pytest.raises(sqlite3.OperationalError) as missing:
        sqlite3.connect(tmp_path / "nowhere" / "x.db")
    words = [
        (full, "disk is full"),
        (locked, "locked"),
        (forbidden, "read-only"),
        (missing, "cannot be opened"),
    ]
    for raised, word in words:
        told = failures.explained(raised.value, path)
        assert isinstance(told, StoreError)
        assert word in str(told)
        assert str(path) in str(told)

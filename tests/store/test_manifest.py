"""What every store promises about the notes of what was published."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.ports import Published
from evbatteryd.store import SqliteStore, open_store
from tests.store.conftest import Opener
from tests.store.wal import commits

ZOE = Published("evbatteryd", "zoe", frozenset({"state", "soc", "availability"}), digest=b"\x00\x01")
LEAF = Published("evbatteryd", "leaf", frozenset({"state"}), frozenset({"range_km", "capacity_kwh"}))
ELSEWHERE = Published("cars", "zoe", frozenset(), frozenset({"state"}))


async def test_notes_are_there_after_a_restart(opener: Opener) -> None:
    async with opener() as store:
        assert await store.published() == []
        await store.note_published([ZOE, LEAF, ELSEWHERE])
    async with opener() as store:
        assert await store.published() == [ELSEWHERE, LEAF, ZOE]


async def test_a_note_takes_the_place_of_the_one_before(store: SqliteStore) -> None:
    await store.note_published([ZOE, ELSEWHERE])
    smaller = Published("evbatteryd", "zoe", frozenset({"state"}), frozenset({"soc"}))
    await store.note_published([smaller])
    assert await store.published() == [ELSEWHERE, smaller]
    await store.note_published([smaller, LEAF, ZOE])  # of two at once, the later one
    assert await store.published() == [ELSEWHERE, LEAF, ZOE]


async def test_what_is_nowhere_any_more_is_forgotten(opener: Opener) -> None:
    nothing = Published("evbatteryd", "zoe", frozenset(), digest=b"\x01")
    async with opener() as store:
        await store.note_published([nothing])
        assert await store.published() == []
        await store.note_published([ZOE, LEAF, ELSEWHERE])
        await store.note_published([nothing])
        await store.note_published([ZOE, Published("cars", "zoe", frozenset()), LEAF, nothing])
    async with opener() as store:
        assert await store.published() == [LEAF]


@pytest.mark.parametrize(
    "bad",
    [
        Published("evbatteryd", "a lone surrogate \ud800", frozenset({"state"})),
        Published("evbatteryd", "leaf", frozenset({"two words"})),
        Published("evbatteryd", "leaf", frozenset({"state"}), frozenset({""})),
    ],
)
async def test_notes_are_kept_all_of_them_or_none(store: SqliteStore, bad: Published) -> None:
    await store.note_published([ZOE])
    with pytest.raises(StoreError, match="cannot be kept"):
        await store.note_published([Published("evbatteryd", "zoe", frozenset()), LEAF, bad])
    assert await store.published() == [ZOE]


async def test_thousands_of_notes_are_one_transaction(path: Path) -> None:
    fleet = [Published("evbatteryd", f"car_{number:04}", ZOE.leaves) for number in range(3000)]
    async with open_store(path) as store:
        before = commits(path)
        await store.note_published(iter(fleet))
        assert commits(path) - before == 1
        assert await store.published() == fleet


async def test_a_mark_is_found_once(opener: Opener) -> None:
    async with opener() as store:
        assert await store.mark("mqtt") is None
        await store.keep_mark("mqtt", "first")
        await store.keep_mark("mqtt", "second")
        await store.keep_mark("remote", "theirs")
    async with opener() as store:
        assert await store.mark("mqtt") == "second"
        assert await store.mark("mqtt") is None
    async with opener() as store:
        assert await store.mark("mqtt") is None
        assert await store.mark("remote") == "theirs"


async def test_of_two_who_ask_for_a_mark_at_once_one_finds_it(store: SqliteStore) -> None:
    await store.keep_mark("mqtt", "mark")
    found = await asyncio.gather(*(store.mark("mqtt") for _ in range(5)))
    assert sorted(found, key=str) == [None] * 4 + ["mark"]


async def test_a_mark_is_gone_from_the_file_before_it_is_returned(path: Path) -> None:
    async with open_store(path) as store:
        await store.keep_mark("mqtt", "mark")
        before = commits(path)
        assert await store.mark("mqtt") == "mark"
        assert commits(path) - before == 1


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.frozensets(TEXTS.filter(lambda name: name != "" and " " not in name), max_size=6)
NOTES = st.builds(Published, st.sampled_from(["", "a", "b/c"]), TEXTS, NAMES, NAMES, st.binary(max_size=40))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(NOTES, max_size=6), max_size=4), st.dictionaries(TEXTS, TEXTS, max_size=3))
def test_notes_and_marks_come_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[Published]], marks: dict[str, str]
) -> None:
    async def there_and_back(path: Path) -> None:
        known: dict[tuple[str, str], Published] = {}
        async with open_store(path) as store:
            for notes in rounds:
                await store.note_published(notes)
                known |= {(note.place, note.slug): note for note in notes}
            for sink, mark in marks.items():
                await store.keep_mark(sink, mark)
        async with open_store(path) as store:
            found = await store.published()
            assert {(note.place, note.slug): note for note in found} == {
                key: note for key, note in known.items() if note.leaves or note.gone
            }
            assert {sink: await store.mark(sink) for sink in marks} == marks

    asyncio.run(there_and_back(tmp_path_factory.mktemp("manifest") / "evbatteryd.db"))

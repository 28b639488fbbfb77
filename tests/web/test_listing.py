"""Found, ordered and cut, without holding anybody up."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.domain.freshness import Freshness
from evbatteryd.web import listing
from evbatteryd.web.listing import CARS_PER_SLICE, Query, find
from tests.fakes import START
from tests.web.builders import HOUR, car, fleet


@settings(deadline=None)
@given(
    names=st.lists(st.sampled_from(["Zoe", "zoe", "i3", "Äpfel", "é", ""]), max_size=25),
    offset=st.integers(0, 30),
    limit=st.integers(1, 30),
)
def test_pages_are_pieces_of_the_whole_by_name(names: list[str], offset: int, limit: int) -> None:
    cars = [car(number, name=name) for number, name in enumerate(names)]
    whole = sorted(cars, key=lambda one: (one.vehicle.name.casefold(), one.slug))

    async def cut() -> list[object]:
        found = await find(fleet(*cars), Query(), START)
        assert found.total == len(cars)
        return list(await found.cut(offset, limit))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing, "CARS_PER_SLICE", 4)
        assert asyncio.run(cut()) == whole[offset : offset + limit]


@pytest.mark.parametrize(
    ("text", "slugs"),
    [
        ("", ["blue", "red"]),
        ("ZOE", ["blue"]),
        ("blue zoe", ["blue"]),
        ("example blu", ["blue"]),
        ("red zoe", []),
        ("example", ["blue", "red"]),
        ("  ", ["blue", "red"]),
    ],
)
async def test_every_word_has_to_occur(text: str, slugs: list[str]) -> None:
    cars = fleet(car(1, slug="blue", name="B", model="Zoe"), car(2, slug="red", name="R", model=None))
    found = await find(cars, Query(text), START)
    assert [one.slug for one in await found.cut(0, 10)] == slugs


async def test_freshness_is_counted_and_chosen() -> None:
    old = START - 200 * HOUR
    cars = fleet(car(1), car(2, measured_at=old), car(3, measured_at=old), car(4, withdrawn_at=START))
    found = await find(cars, Query(freshness=Freshness.STALE), START)
    assert found.enrolled == 3
    assert found.total == 2
    assert dict(found.by_freshness) == {Freshness.FRESH: 1, Freshness.STALE: 2}
    assert [one.slug for one in await found.cut(0, 10)] == ["car_2", "car_3"]


async def test_withdrawn_cars_are_found_only_by_those_who_ask() -> None:
    cars = fleet(car(1), car(2, withdrawn_at=START))
    found = await find(cars, Query(withdrawn=True), START)
    assert (found.enrolled, found.total) == (2, 2)
    assert [one.slug for one in await found.cut(0, 10)] == ["car_1", "car_2"]
    assert (await find(cars, Query(), START)).total == 1


async def test_others_have_their_turn() -> None:
    slices = 6
    cars = fleet(*(car(number) for number in range(slices * CARS_PER_SLICE)))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    found = await find(cars, Query(), START)
    searching = turns
    await found.cut((slices - 1) * CARS_PER_SLICE, 100)
    other.cancel()
    assert searching >= slices
    assert turns - searching >= slices - 1

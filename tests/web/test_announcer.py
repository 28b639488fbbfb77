"""A slow listener costs a bounded amount, and misses nothing for good."""

from __future__ import annotations

import asyncio

from evbatteryd.domain.reading import Signal
from evbatteryd.web.announcer import MOST_PENDING, Announcer
from tests.web.builders import car

LONG_S = 60.0


async def test_changes_of_one_car_are_told_once_and_newest() -> None:
    announcer = Announcer()
    with announcer.listen() as listener:
        for soc in (50.0, 51.0, 52.0):
            announcer.changed(car(1, values={Signal.SOC: soc}))
        announcer.changed(car(2))
        news = await listener.news(LONG_S)
    assert [(told.slug, told.state.soc_percent) for told in news.cars] == [("car_1", 52.0), ("car_2", 57.0)]
    assert not news.missed


async def test_one_who_falls_far_behind_is_told_to_look_again() -> None:
    announcer = Announcer()
    with announcer.listen() as listener:
        for number in range(MOST_PENDING * 3 + 1):
            announcer.changed(car(number))
        news = await listener.news(LONG_S)
        assert news.missed
        assert 0 < len(news.cars) <= MOST_PENDING
        announcer.changed(car(5))
        news = await listener.news(LONG_S)
        assert (len(news.cars), news.missed) == (1, False)


async def test_nothing_is_told_of_cars_not_asked_for() -> None:
    announcer = Announcer()
    with announcer.listen(frozenset({"car_2"})) as listener:
        announcer.changed(car(1))
        announcer.changed(car(2))
        assert [told.slug for told in (await listener.news(LONG_S)).cars] == ["car_2"]


async def test_a_listener_waits_no_longer_than_it_wants() -> None:
    with Announcer().listen() as listener:
        assert (await listener.news(0.001)).cars == ()


async def test_closing_wakes_everybody() -> None:
    announcer = Announcer()
    with announcer.listen() as listener:
        waiting = asyncio.create_task(listener.news(LONG_S))
        await asyncio.sleep(0)
        announcer.close()
        await waiting
        assert listener.closed
    with announcer.listen() as late:
        assert late.closed


async def test_who_left_is_forgotten() -> None:
    announcer = Announcer()
    with announcer.listen() as gone:
        pass
    announcer.changed(car(1))
    assert (await gone.news(0.001)).cars == ()

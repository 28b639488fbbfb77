"""A sink's way through the journal: in order per car, nobody waits for another, nothing is lost."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.domain.errors import SinkError
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import Polled
from evbatteryd.domain.reading import Reading
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow import delivery
from evbatteryd.flow.delivery import GIVEN_UP_SAID, Delivery
from tests.builders import state
from tests.fakes import VirtualClock, settle, until
from tests.flow.world import World, world

LONG = timedelta(days=365)


@pytest.fixture(autouse=True)
def brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody rests for long, and how far the cars are is noted soon."""
    hasten(monkeypatch)


def hasten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "SHORTEST_REST_S", 0.001)
    monkeypatch.setattr(delivery, "LONGEST_REST_S", 0.002)
    monkeypatch.setattr(delivery, "NOTED_EVERY_S", 0.001)


class TakingSink:
    """Takes what it is told, unless the test has it refuse, break or wait."""

    name = "taking"

    def __init__(self) -> None:
        self.told: list[tuple[int, int]] = []
        """Cars and positions, in the order in which they were taken."""
        self.offers: list[list[int]] = []
        self.touched: list[int] = []
        self.refused: set[int] = set()
        """Cars that it takes nothing of."""
        self.breaks: list[int] = []
        """How many readings of the next offers it takes before the connection breaks."""
        self.there = asyncio.Event()
        self.there.set()
        self.connection = 1
        self.loses = False
        """What it takes is gone with its connection."""
        self.gates: dict[int, asyncio.Event] = {}
        """Cars whose offers it holds in hand."""
        self.in_hand = 0

    @property
    def connected(self) -> bool:
        return self.there.is_set()

    async def reachable(self) -> None:
        await self.there.wait()

    async def settle(self) -> bool:
        return self.connected and not self.loses

    def reconnect(self) -> None:
        self.connection += 1

    async def publish(self, readings: Sequence[Reading], over: int | None = None) -> None:
        number = readings[0].vehicle_id
        assert {reading.vehicle_id for reading in readings} == {number}
        self.offers.append([reading.seq for reading in readings])
        self.in_hand += 1
        try:
            if number in self.gates:
                await self.gates[number].wait()
        finally:
            self.in_hand -= 1
        if number in self.refused:
            raise SinkError("that car is not wanted")
        taken = self.breaks.pop(0) if self.breaks else len(readings)
        for reading in readings[:taken]:
            self.told.append((number, reading.seq))
        if taken < len(readings):
            raise SinkError("the connection broke", taken=readings[taken - 1].seq if taken else 0)

    def touch(self, vehicle_id: VehicleId) -> None:
        self.touched.append(vehicle_id)

    def of(self, car: Car) -> list[int]:
        return [seq for number, seq in self.told if number == car.id]

    @property
    def positions(self) -> list[int]:
        return [seq for _, seq in self.told]


class Counting:
    """What of the Tally a delivery counts."""

    def __init__(self) -> None:
        self.waiting: int | None = None
        self.gone: Counter[tuple[str, str]] = Counter()

    def outbox(self, sink: str, readings: int) -> None:
        self.waiting = readings

    def given_up(self, sink: str, reason: str, readings: int) -> None:
        self.gone[sink, reason] += readings


class Post:
    """A delivery to one sink out of a real store; a start of it ends in a crash or in order."""

    def __init__(self, w: World, sink: TakingSink, most: int = 1_000_000, longest: timedelta = LONG) -> None:
        self.w = w
        self.sink = sink
        self.tally = Counting()
        self.delivery = Delivery(w.store, sink, w.clock, self.tally, w.log, most=most, longest=longest)
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.delivery.open()
        self._running = asyncio.create_task(self.delivery.run())
        await settle()

    async def crash(self) -> None:
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running

    async def end(self) -> None:
        await self.crash()
        await self.delivery.close()

    async def commit(self, car: Car, soc: float = 50.0, *, offer: bool = True) -> Reading:
        found = await commit(self.w, car, soc)
        if offer:
            self.delivery.offer(found)
        return found

    async def caught_up(self) -> None:
        async with asyncio.timeout(20):
            await self.delivery.caught_up()


async def commit(w: World, car: Car, soc: float = 50.0) -> Reading:
    """A reading is in the journal."""
    now = w.clock.now()
    known = replace(car, state=state(soc=soc, measured_at=now, fetched_at=now))
    _, found = await w.store.record(Polled(car=known, news=True, at=now))
    assert found is not None
    return found


@asynccontextmanager
async def posted(w: World, sink: TakingSink, **limits: object) -> AsyncIterator[Post]:
    post = Post(w, sink, **limits)  # type: ignore[arg-type]
    await post.start()
    try:
        yield post
    finally:
        await post.end()


def in_order(positions: list[int]) -> bool:
    return all(before < after for before, after in pairwise(positions))


# In order, once


async def test_readings_are_taken_in_order_and_that_they_were_survives(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(5)
        for car in cars:
            await commit(w, car)
        async with posted(w, sink := TakingSink()) as post:
            await post.caught_up()
            await post.commit(cars[0])
            await post.commit(cars[0])
            await post.caught_up()
            assert post.delivery.waiting == 0
        assert sorted(sink.positions) == [1, 2, 3, 4, 5, 6, 7]
        assert sink.of(cars[0]) == [1, 6, 7]
        async with posted(w, again := TakingSink()) as post:
            await post.caught_up()
        assert again.told == []
        assert await w.store.cursor("taking") == 7


async def test_what_a_break_left_untaken_is_offered_again_and_nothing_else(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        for _ in range(6):
            await commit(w, car)
        sink = TakingSink()
        sink.breaks = [2, 0, 3]
        async with posted(w, sink) as post:
            await post.caught_up()
        assert sink.positions == [1, 2, 3, 4, 5, 6]
        assert sink.offers == [[1, 2, 3, 4, 5, 6], [3, 4, 5, 6], [3, 4, 5, 6], [6]]
        assert len(w.said("delivery.failing")) == len(w.said("delivery.recovered")) == 1


async def test_a_car_says_how_it_stands_when_it_owes_nothing_any_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        for _ in range(3):
            await commit(w, car)
        sink = TakingSink()
        sink.breaks = [1]
        async with posted(w, sink) as post:
            await post.caught_up()
            await until(lambda: bool(sink.touched))
            assert sink.touched == [car.id]
            assert not post.delivery.owes(car.id)


async def test_whose_readings_wait_is_known_from_the_commit_on(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        await commit(w, one)
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink) as post:
            assert post.delivery.owes(one.id)
            assert not post.delivery.owes(other.id)
            await post.commit(other)
            assert post.delivery.owes(other.id)
            assert post.delivery.waiting == 2
            sink.there.set()
            await post.caught_up()
            assert not post.delivery.owes(one.id)
            assert not post.delivery.owes(other.id)


# Nobody waits for another


async def test_a_car_that_is_refused_holds_up_nobody_and_is_tried_again(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(4)
        for _ in range(3):
            for car in cars:
                await commit(w, car)
        sink = TakingSink()
        sink.refused = {cars[0].id}
        async with posted(w, sink) as post:
            await until(lambda: len(sink.told) == 9)
            for _ in range(3):
                await post.commit(cars[0])
                await post.commit(cars[1])
            await until(lambda: len(sink.told) == 12)
            assert sink.of(cars[0]) == []
            attempts = len(sink.offers)
            await until(lambda: len(sink.offers) > attempts + 2)
            sink.refused.clear()
            await post.caught_up()
            assert sink.of(cars[0]) == [1, 5, 9, 13, 15, 17]
            assert all(in_order(sink.of(car)) for car in cars)
        assert [line["level"] for line in w.said("delivery.failing")] == ["warning"]
        assert len(w.said("delivery.recovered")) == 1


async def test_a_car_that_is_refused_rests_longer_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "SHORTEST_REST_S", 1.0)
    monkeypatch.setattr(delivery, "LONGEST_REST_S", 600.0)
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        await commit(w, car)
        sink = TakingSink()
        sink.refused = {car.id}
        chance = NoChance()
        monkeypatch.setattr(delivery, "random", chance)
        async with posted(w, sink):
            await until(lambda: len(chance.spans) >= 14)
        longest = [min(2.0**times, 600.0) for times in range(14)]
        assert chance.spans[:14] == [(most / 2, most) for most in longest]


class NoChance:
    """Remembers between what it was to choose, and chooses nothing."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []

    def uniform(self, low: float, high: float) -> float:
        self.spans.append((low, high))
        return 0.0


async def test_a_car_that_takes_long_holds_up_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(5)
        for car in cars:
            await commit(w, car)
        sink = TakingSink()
        sink.gates[cars[0].id] = gate = asyncio.Event()
        async with posted(w, sink) as post:
            await until(lambda: len(sink.told) == 4)
            later = [(await post.commit(car)).seq for car in cars]
            await until(lambda: len(sink.told) == 8)
            assert sink.of(cars[0]) == []
            gate.set()
            await post.caught_up()
            assert sink.of(cars[0]) == [1, later[0]]


async def test_news_overtakes_the_backlog_of_others_but_not_its_own_cars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "HANDS", 1)
    async with world(tmp_path) as w:
        cars = await w.enrol(6)
        for _ in range(2):
            for car in cars:
                await commit(w, car)
        sink = TakingSink()
        sink.gates[cars[0].id] = gate = asyncio.Event()
        async with posted(w, sink) as post:
            await until(lambda: sink.in_hand == 1)
            news = await post.commit(cars[5])
            gate.set()
            await post.caught_up()
        assert [number for number, _ in sink.told][:5] == [cars[0].id] * 2 + [cars[5].id] * 3
        assert sink.of(cars[5]) == [6, 12, news.seq]
        assert all(in_order(sink.of(car)) for car in cars)


async def test_what_came_during_an_outage_is_no_news_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "HANDS", 1)
    async with world(tmp_path) as w:
        cars = await w.enrol(4)
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink) as post:
            for car in cars:
                await post.commit(car)
            sink.gates[cars[0].id] = gate = asyncio.Event()
            sink.there.set()
            await until(lambda: sink.in_hand == 1)
            await post.commit(cars[3])
            gate.set()
            await post.caught_up()
        assert sink.positions == [1, 4, 5, 2, 3]


async def test_a_long_backlog_lets_others_have_their_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "HANDS", 1)
    monkeypatch.setattr(delivery, "CHUNK", 2)
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        for _ in range(6):
            await commit(w, one)
        await commit(w, other)
        async with posted(w, sink := TakingSink()) as post:
            await post.caught_up()
        assert sink.positions == [1, 2, 7, 3, 4, 5, 6]


# Across starts


async def test_after_a_crash_at_most_what_was_not_noted_is_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        post = Post(w, sink := TakingSink())
        await post.start()
        for car in cars:
            await post.commit(car)
        await post.caught_up()
        await _noted(w, 3)
        monkeypatch.setattr(delivery, "NOTED_EVERY_S", 3600.0)
        await post.crash()
        post = Post(w, sink)
        await post.start()
        for car in cars:
            await post.commit(car)
        await post.caught_up()
        await post.crash()
        assert sorted(sink.positions) == [1, 2, 3, 4, 5, 6]
        async with posted(w, again := TakingSink()) as post:
            await post.caught_up()
        assert sorted(again.positions) == [4, 5, 6]


async def _noted(w: World, cursor: int) -> None:
    async with asyncio.timeout(20):
        while await w.store.cursor("taking") < cursor:  # noqa: ASYNC110 - another task writes it
            await asyncio.sleep(0.001)


async def test_how_far_a_car_is_survives_although_another_holds_up_the_cursor(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        for _ in range(4):
            for car in cars:
                await commit(w, car)
        sink = TakingSink()
        sink.refused = {cars[0].id}
        async with posted(w, sink):
            await until(lambda: len(sink.told) == 8)
        assert await w.store.cursor("taking") == 0
        async with posted(w, again := TakingSink()) as post:
            await post.caught_up()
        assert again.positions == [1, 4, 7, 10]
        assert await w.store.cursor("taking") == 12


async def test_a_long_backlog_is_taken_up_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "LOADED", 7)
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        for _ in range(10):
            for car in cars:
                await commit(w, car)
        async with posted(w, sink := TakingSink()) as post:
            await post.caught_up()
        assert sorted(sink.positions) == list(range(1, 31))
        assert all(in_order(sink.of(car)) for car in cars)


async def test_what_a_connection_took_with_it_is_told_over_the_next_one_before_anything_else(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        sink = TakingSink()
        sink.loses = True
        async with posted(w, sink) as post:
            first, second = await post.commit(one), await post.commit(other)
            await until(lambda: len(sink.told) >= 2)
            assert await w.store.cursor("taking") == 0
            sink.told.clear()
            sink.loses = False
            sink.reconnect()
            third = await post.commit(one)
            await post.caught_up()
            await _noted(w, 3)
            assert list(dict.fromkeys(sink.of(one))) == [first.seq, third.seq]
            assert sink.of(other)[:1] == [second.seq]


# Erased


async def test_erased_readings_are_passed_over(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink) as post:
            for _ in range(3):
                await post.commit(one)
                await post.commit(other)
            await w.store.erase(one.id)
            sink.there.set()
            await post.caught_up()
            assert sink.of(one) == []
            assert sink.of(other) == [2, 4, 6]
            await post.commit(one)
            await post.caught_up()
            assert sink.of(one) == [7]


async def test_a_reading_that_waits_alone_is_passed_over_once_it_is_erased(tmp_path: Path) -> None:
    """Its owner may have consented anew by the time the other side is back."""
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink) as post:
            await post.commit(car)
            await w.store.erase(car.id)
            post.delivery.forget(car.id)
            assert not post.delivery.owes(car.id)
            assert post.delivery.waiting == 0
            sink.there.set()
            await post.caught_up()
            later = await post.commit(car)
            await post.caught_up()
            assert sink.positions == [later.seq]


# What is too much


async def test_too_many_readings_go_oldest_first_and_are_counted(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink, most=10) as post:
            await post.commit(cars[0])
            for _ in range(7):
                await post.commit(cars[1])
                await post.commit(cars[2])
            await post.delivery.trim()
            assert (post.delivery.waiting, post.tally.waiting) == (10, 10)
            assert post.tally.gone == {("taking", "size"): 5}
            assert sink.touched == [cars[0].id]
            assert not post.delivery.owes(cars[0].id)
            (line,) = w.said("delivery.given_up")
            assert (line["level"], line["readings"], line["reason"], line["waiting"], line["sink"]) == (
                "error",
                5,
                "more than 10 wait",
                10,
                "taking",
            )
            assert "history" in str(line["mend"])
            await post.delivery.trim()
            assert post.tally.gone.total() == 5
            sink.there.set()
            await post.caught_up()
            assert sorted(sink.positions) == list(range(6, 16))
        assert await w.store.cursor("taking") == 15


async def test_readings_that_waited_too_long_go(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink, longest=timedelta(days=7)) as post:
            await post.commit(one)
            await post.commit(other)
            await w.clock.advance(timedelta(days=4))
            await post.commit(other)
            await post.delivery.trim()
            assert post.delivery.waiting == 3
            await w.clock.advance(timedelta(days=3, seconds=1))
            await post.delivery.trim()
            assert post.tally.gone == {("taking", "age"): 2}
            assert sink.touched == [one.id]
            assert w.said("delivery.given_up")[0]["reason"] == "older than 7 days"
            sink.there.set()
            await post.caught_up()
            assert sink.positions == [3]


async def test_what_is_given_up_does_not_come_back_with_the_next_start(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(2)
        sink = TakingSink()
        sink.there.clear()
        post = Post(w, sink, most=3)
        await post.start()
        for _ in range(4):
            for car in cars:
                await post.commit(car)
        await post.delivery.trim()
        await post.crash()
        async with posted(w, again := TakingSink()) as post:
            await post.caught_up()
        assert sorted(again.positions) == [6, 7, 8]


async def test_giving_up_is_said_once_an_hour_and_counted_always(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink, most=1) as post:
            await post.commit(car)
            for lines, passed in ((1, timedelta()), (1, GIVEN_UP_SAID / 2), (2, GIVEN_UP_SAID / 2)):
                await w.clock.advance(passed)
                await post.commit(car)
                await post.delivery.trim()
                assert len(w.said("delivery.given_up")) == lines
            assert post.tally.gone == {("taking", "size"): 3}


async def test_what_is_in_hand_while_it_is_given_up_does_no_harm(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        for _ in range(3):
            await commit(w, car)
        sink = TakingSink()
        sink.gates[car.id] = gate = asyncio.Event()
        async with posted(w, sink, most=1) as post:
            await until(lambda: sink.in_hand == 1)
            await post.delivery.trim()
            assert post.delivery.waiting == 1
            await post.commit(car)
            gate.set()
            await post.caught_up()
            assert sink.positions == [1, 2, 3, 4]
            assert post.delivery.waiting == 0


async def test_giving_up_that_the_store_does_not_keep_is_counted_when_it_does(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        sink = TakingSink()
        sink.there.clear()
        async with posted(w, sink, most=2) as post:
            for _ in range(5):
                await post.commit(car)
            w.store.full = {"delivered"}
            await post.delivery.trim()
            w.store.full = set()
            await post.delivery.trim()
            assert post.delivery.waiting == 2
            assert post.tally.gone == {("taking", "size"): 3}


async def test_a_car_that_was_refused_until_it_was_given_up_is_no_trouble_any_more(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, other = await w.enrol(2)
        sink = TakingSink()
        sink.refused = {one.id}
        async with posted(w, sink, longest=timedelta(days=7)) as post:
            await post.commit(one)
            await until(lambda: bool(w.said("delivery.failing")))
            await w.clock.advance(timedelta(days=8))
            await post.delivery.trim()
            await post.commit(other)
            await post.caught_up()
            await until(lambda: bool(w.said("delivery.recovered")))


# A store that fails for a while


async def test_nothing_is_lost_while_the_store_cannot_be_read(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        for _ in range(3):
            for car in cars:
                await commit(w, car)
        w.store.full = {"readings"}
        async with posted(w, sink := TakingSink()) as post:
            await until(lambda: bool(w.said("delivery.failing")))
            assert post.delivery.waiting == 9
            w.store.full = set()
            await post.caught_up()
            assert sorted(sink.positions) == list(range(1, 10))
            assert all(in_order(sink.of(car)) for car in cars)
            await until(lambda: bool(w.said("delivery.recovered")))
        assert len(w.said("delivery.failing")) == 1


async def test_readings_are_told_while_it_cannot_be_noted_and_noted_when_it_can(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars = await w.enrol(3)
        async with posted(w, sink := TakingSink()) as post:
            w.store.full = {"delivered"}
            for _ in range(3):
                for car in cars:
                    await post.commit(car)
            await post.caught_up()
            assert sorted(sink.positions) == list(range(1, 10))
            await until(lambda: bool(w.said("delivery.failing")))
            assert await w.store.cursor("taking") == 0
            w.store.full = set()
            await _noted(w, 9)
        async with posted(w, again := TakingSink()):
            pass
        assert again.told == []


async def test_a_bug_in_a_sink_ends_the_delivery(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await w.enrol()
        await commit(w, car)
        sink = TakingSink()

        async def buggy(readings: Sequence[Reading], over: int | None = None) -> None:
            raise ZeroDivisionError

        sink.publish = buggy  # type: ignore[method-assign]
        taking = Delivery(w.store, sink, w.clock, Counting(), w.log, most=10, longest=LONG)
        await taking.open()
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(20):
                await taking.run()


# All of it together

NUMBERS = 3
steps = st.lists(
    st.one_of(
        st.tuples(st.just("commit"), st.integers(0, NUMBERS - 1)),
        st.tuples(st.sampled_from(["leave", "come", "crash", "restart", "trim", "wait", "day"]), st.just(0)),
        st.tuples(st.sampled_from(["refuse", "accept"]), st.integers(0, NUMBERS - 1)),
        st.tuples(st.just("break"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["full", "space"]), st.sampled_from(["readings", "delivered", "owed"])),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(steps)
def test_whatever_happens_all_that_was_committed_was_told_given_up_or_waits(
    happenings: list[tuple[str, int | str]],
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        hasten(patched)
        patched.setattr(delivery, "CHUNK", 2)
        patched.setattr(delivery, "HANDS", 2)
        asyncio.run(_lives(Path(folder), happenings))


async def _lives(folder: Path, happenings: list[tuple[str, int | str]]) -> None:
    async with world(folder, clock=VirtualClock()) as w:
        cars = await w.enrol(NUMBERS)
        committed: dict[int, list[int]] = {car.id: [] for car in cars}
        sink, counted = TakingSink(), 0
        post = Post(w, sink, most=6, longest=timedelta(days=2))
        await post.start()
        for what, argument in happenings:
            match what:
                case "commit":
                    one = await post.commit(cars[int(argument)])
                    committed[one.vehicle_id].append(one.seq)
                case "leave":
                    sink.there.clear()
                case "come":
                    sink.there.set()
                case "refuse":
                    sink.refused.add(cars[int(argument)].id)
                case "accept":
                    sink.refused.discard(cars[int(argument)].id)
                case "break":
                    sink.breaks.append(int(argument))
                case "trim":
                    await post.delivery.trim()
                case "day":
                    await w.clock.advance(timedelta(days=1))
                case "wait":
                    await asyncio.sleep(0.005)
                case "full":
                    w.store.full.add(str(argument))
                case "space":
                    w.store.full.discard(str(argument))
                case _:
                    await (post.crash() if what == "crash" else post.end())
                    counted += post.tally.gone.total()
                    w.store.full.clear()
                    post = Post(w, sink, most=6, longest=timedelta(days=2))
                    await post.start()
            known_untold = sum(len(set(committed[car.id]) - set(sink.of(car))) for car in cars)
            assert post.delivery.waiting + counted + post.tally.gone.total() >= known_untold
        w.store.full.clear()
        sink.breaks.clear()
        sink.refused.clear()
        sink.there.set()
        await post.caught_up()
        await post.end()
        counted += post.tally.gone.total()
        untold = 0
        for car in cars:
            first_told = list(dict.fromkeys(sink.of(car)))
            assert in_order(first_told)
            assert set(first_told) <= set(committed[car.id])
            untold += len(set(committed[car.id]) - set(first_told))
        assert untold <= counted
        assert await w.store.owed("taking", await w.store.cursor("taking"), 1000) == []

"""A scarce request goes where it buys most; nobody starves; a cloud that is down is left in peace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain import errors
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.reading import Observation
from evbatteryd.domain.vehicle import Vehicle, VehicleId
from evbatteryd.domain.worth import Claim
from evbatteryd.flow.outages import Outages
from evbatteryd.flow.waiting import WaitingRoom
from tests.fakes import START, settle, until
from tests.flow.world import PROFILES, RENAULT, World, world

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
BRANDS = ("kia", "renault", "volvo")


def claim(slope: float = 0.01, *, seen_h: float = 3, due_h: float = 1) -> Claim:
    """Last seen and due so many hours before START."""
    return Claim(START - due_h * HOUR, START - seen_h * HOUR, slope)


def everyone(brand: str) -> bool:
    return True


claims = st.builds(
    claim, st.floats(1e-5, 100), seen_h=st.floats(0.01, 40), due_h=st.floats(0, 6).map(lambda h: round(h, 3))
)
waiting_cars = st.lists(st.tuples(st.sampled_from(BRANDS), claims), min_size=1, max_size=60)


@given(waiting_cars)
def test_whoever_is_taken_has_nearly_the_highest_worth_of_all_that_wait(
    cars: list[tuple[str, Claim]],
) -> None:
    room, worth = WaitingRoom(), {}
    for number, (brand, bid) in enumerate(cars):
        room.enter(VehicleId(number), brand, bid)
        room.enter(VehicleId(number), brand, bid)  # a second bell changes nothing
        worth[VehicleId(number)] = bid.worth(START)
    assert len(room) == len(worth)
    while (car := room.take(START, everyone)) is not None:
        assert worth.pop(car) >= 2**-0.5 * max(worth.values(), default=0.0) * (1 - 1e-9)
    assert worth == {}


@given(waiting_cars, st.sets(st.sampled_from(BRANDS)))
def test_among_cars_of_one_slope_and_of_brands_with_room_the_longest_unseen_goes_first(
    cars: list[tuple[str, Claim]], refused: set[str]
) -> None:
    room, since = WaitingRoom(), {}
    for number, (brand, bid) in enumerate(cars):
        same = replace(bid, slope=0.5)
        room.enter(VehicleId(number), brand, same)
        if brand not in refused:
            since[VehicleId(number)] = same.since
    taken = []
    while (car := room.take(START, lambda brand: brand not in refused)) is not None:
        taken.append(since.pop(car))
    assert since == {}
    assert taken == sorted(taken)
    assert len(room) == sum(1 for brand, _ in cars if brand in refused)
    assert all(room.waiting(brand) == [b for b, _ in cars].count(brand) for brand in refused)


def test_who_is_ahead_changes_with_time() -> None:
    room = WaitingRoom()
    room.enter(VehicleId(1), "kia", claim(0.01, seen_h=6))  # parked, unseen for long
    room.enter(VehicleId(2), "kia", claim(0.04, seen_h=1))  # charging, seen lately
    assert room.take(START, everyone) == 1
    room.enter(VehicleId(1), "kia", claim(0.01, seen_h=6))
    assert room.take(START + 2 * HOUR, everyone) == 2


def test_a_car_that_waited_too_long_goes_before_all_that_gain_more_and_the_oldest_first() -> None:
    room = WaitingRoom(timedelta(hours=12))
    room.enter(VehicleId(1), "kia", claim(100.0, due_h=1))
    room.enter(VehicleId(2), "kia", claim(1e-5, due_h=12))
    room.enter(VehicleId(3), "volvo", claim(1e-4, due_h=14))
    room.enter(VehicleId(4), "volvo", claim(1e-5, due_h=11.9))
    assert [room.take(START, everyone) for _ in range(5)] == [3, 2, 1, 4, None]


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_awaited_cars_have_every_second_call_and_no_more_while_others_wait(kinds: list[bool]) -> None:
    room = WaitingRoom()
    for number, awaited in enumerate(kinds):
        room.enter(VehicleId(number), "kia", claim(100.0), awaited=awaited)
    taken = [kinds[room.take(START, everyone)] for _ in kinds]
    both = 2 * min(taken.count(True), taken.count(False))
    assert taken[:both] == [True, False] * (both // 2)


def test_awaited_cars_wait_for_each_other_in_the_order_in_which_they_fell_due() -> None:
    room = WaitingRoom()
    for number, due_h in enumerate([2, 5, 3]):
        room.enter(VehicleId(number), "kia", claim(due_h=due_h), awaited=True)
    assert [room.take(START, everyone) for _ in range(3)] == [1, 2, 0]


def test_whoever_waits_already_waits_by_the_newest_claim_alone() -> None:
    room = WaitingRoom()
    room.enter(VehicleId(1), "kia", claim(10.0))
    room.enter(VehicleId(2), "kia", claim(1.0))
    room.enter(VehicleId(1), "kia", claim(0.1))
    assert len(room) == 2
    assert [room.take(START, everyone) for _ in range(3)] == [2, 1, None]


def test_a_brand_that_has_enough_under_way_waits_and_others_pass() -> None:
    room = WaitingRoom()
    room.enter(VehicleId(1), "volvo", claim(10.0, due_h=20))
    room.enter(VehicleId(2), "renault", claim())
    room.enter(VehicleId(3), "volvo", claim(), awaited=True)
    assert room.take(START, lambda brand: brand != "volvo") == 2
    assert room.take(START, lambda brand: brand != "volvo") is None
    assert {room.take(START, everyone), room.take(START, everyone)} == {1, 3}


def _most_kept(room: WaitingRoom) -> int:
    """Entries of the longest line."""
    lines = (room._by_due, room._awaited, *room._grades.values())
    return max(sum(map(len, line._queues.values())) + len(line._leads) for line in lines)


@given(st.lists(st.tuples(st.integers(0, 5), claims, st.booleans()), min_size=1, max_size=40))
def test_who_has_left_leaves_nothing_behind_that_grows(moves: list[tuple[int, Claim, bool]]) -> None:
    room = WaitingRoom()
    room.enter(VehicleId(99), "kia", claim(1e-5, due_h=9))  # always the last, and always the first to be due
    for number, bid, stays in moves * (1000 // len(moves)):
        room.enter(VehicleId(number), BRANDS[number % 3], bid)
        if not stays:
            room.leave(VehicleId(number))
    assert _most_kept(room) <= 200
    for number in range(6):
        room.leave(VehicleId(number))
    assert room.take(START, everyone) == 99
    assert len(room._grades) == 0


def test_nor_do_the_many_who_pass_one_that_stays() -> None:
    room = WaitingRoom()
    room.enter(VehicleId(1), "kia", claim(seen_h=2, due_h=1))
    for _ in range(1000):
        room.enter(VehicleId(2), "kia", claim(seen_h=3, due_h=2))
        room.enter(VehicleId(3), "volvo", claim(seen_h=1, due_h=0))
        assert room.take(START, everyone) == 2
        assert room.take(START, lambda brand: brand != "kia") == 3
    assert _most_kept(room) <= 200
    assert room.take(START, everyone) == 1


# --- on the way through the poller ----------------------------------------------------------------------


SCARCE = Budget(bucket=2, refill_per_minute=1, calls_per_vehicle=100_000)


async def seen(w: World, cars: list[Car], gain: float) -> list[Car]:
    """As if they had been polled an hour ago and were due now, worth ``gain``."""
    for car in cars:
        schedule = replace(
            car.schedule,
            due=w.clock.now(),
            polled_at=w.clock.now() - HOUR,
            answered_at=w.clock.now() - HOUR,
            outcome="new",
            gain=gain,
        )
        await w.cars.change(car.id, lambda now, schedule=schedule: replace(now, schedule=schedule))
    return cars


async def asked_in_turn(w: World, cars: list[Car]) -> list[VehicleId]:
    """In which order they are asked while each request takes a minute to come back."""
    await w.purse.token()  # so that none is free
    for car in cars:
        w.poller.due(car.id)
    while w.poller.waiting:
        asked = len(w.source.asked)
        await w.clock.advance(MINUTE + timedelta(seconds=1))
        await until(lambda asked=asked: len(w.source.asked) == asked + 1 and w.poller.in_flight == 0)
    return [car for _, car in w.source.asked]


async def test_the_gain_that_the_policy_expects_decides_who_gets_a_scarce_request(tmp_path: Path) -> None:
    async with world(tmp_path, SCARCE) as w:
        cars = await w.enrol(3)
        for car, gain in zip(cars, (100.0, 10_000.0, 1_000.0), strict=True):
            await seen(w, [car], gain)
        assert await asked_in_turn(w, cars) == [cars[1].id, cars[2].id, cars[0].id]


async def test_a_new_car_and_one_whose_answer_is_awaited_take_turns_with_routine(tmp_path: Path) -> None:
    async with world(tmp_path, SCARCE) as w:
        cars = await w.enrol(4)
        routine = await seen(w, cars[:2], 1e6)
        (hurried,) = await seen(w, [cars[2]], 1.0)
        w.poller.hurry(hurried.id)
        w.clock._now += timedelta(seconds=10)  # the new one falls due after the hurried one
        new = cars[3]
        order = await asked_in_turn(w, [*routine, hurried, new])
        assert set(order[:4:2]) == {hurried.id, new.id}
        assert set(order[1::2]) == {car.id for car in routine}


async def test_a_car_that_waits_already_can_be_hurried(tmp_path: Path) -> None:
    async with world(tmp_path, SCARCE) as w:
        routine = await seen(w, await w.enrol(5), 1e6)
        (late,) = await seen(w, await w.enrol(1), 1.0)
        await w.purse.token()
        for car in (*routine, late):
            w.poller.due(car.id)
        w.poller.hurry(late.id)
        await w.clock.advance(MINUTE + timedelta(seconds=1))
        await until(lambda: len(w.source.asked) == 1)
        assert w.source.asked[0][1] == late.id


async def test_why_a_due_car_has_not_been_asked_yet(tmp_path: Path) -> None:
    async with world(tmp_path, SCARCE) as w:
        cars = await w.enrol(3)
        await w.purse.token()
        for car in cars:
            w.poller.due(car.id)
        assert "as 3 cars do" in str(w.poller.why_waiting(cars[0].id))
        await w.clock.advance(4 * MINUTE)
        await until(lambda: w.poller.in_flight == 0 and w.poller.waiting == 0)
        assert w.poller.why_waiting(cars[0].id) is None


# --- a brand's cloud is down ----------------------------------------------------------------------------


DOWN = errors.Unreachable("UPSTREAM:NO_RESPONSE", "down")
AMPLE = Budget(bucket=10_000, refill_per_minute=600, calls_per_vehicle=100_000)


def renault_down(w: World) -> Callable[[], None]:
    """Renault's cloud fails until the returned function is called; others answer."""
    down = True

    async def answer(vehicle: Vehicle) -> Observation:
        if down and vehicle.brand == "renault":
            raise errors.Unreachable(DOWN.code, DOWN.detail)
        return w.source.observation(50)

    def up() -> None:
        nonlocal down
        down = False

    w.source.answer = answer
    return up


async def close_renault(w: World, cars: list[Car]) -> None:
    for car in cars[:3]:
        w.poller.due(car.id)
    await until(lambda: w.poller.in_flight == 0 and w.poller.waiting == 0)
    (said,) = w.said("brand.closed")
    assert (said["brand"], said["failed"]) == ("renault", 3)


async def pass_a_minute(w: World) -> None:
    await w.clock.advance(MINUTE)
    await until(lambda: w.poller.in_flight == 0)


async def test_a_brand_whose_cloud_is_down_costs_one_call_at_a_time_and_opens_with_the_first_answer(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, AMPLE) as w:
        cars = await w.enrol(40)
        (other,) = await w.enrol(1, "LADA")
        up = renault_down(w)
        await close_renault(w, cars)
        for car in (*cars[3:], other):
            w.poller.due(car.id)
        await until(lambda: w.fleet[other.id].reading_id is not None)
        assert w.poller.waiting == 37
        assert len(w.source.asked) == 4
        tries = []
        for _ in range(300):
            await pass_a_minute(w)
            tries.append(len(w.source.asked) - 4)
        at = [tries.index(number) for number in range(8)]
        pauses = [later - sooner for sooner, later in pairwise(at)]
        assert all(
            0 <= pause - told <= 2 for pause, told in zip(pauses, [5, 10, 20, 40, 60, 60, 60], strict=True)
        )
        up()
        for _ in range(65):
            await pass_a_minute(w)
        await until(lambda: w.poller.in_flight == 0 and w.poller.waiting == 0)
        assert len(w.said("brand.closed")) == len(w.said("brand.opened")) == 1


async def test_when_the_cloud_is_back_the_waiting_cars_do_not_rush_in(tmp_path: Path) -> None:
    async with world(tmp_path, AMPLE) as w:
        cars = await w.enrol(40)
        up = renault_down(w)
        await close_renault(w, cars)
        for car in cars[3:]:
            w.poller.due(car.id)
        up()
        hold = asyncio.Semaphore(0)

        async def slow(vehicle: Vehicle) -> Observation:
            await hold.acquire()
            return w.source.observation(50)

        w.source.answer = slow
        await w.clock.advance(RENAULT.floor + timedelta(seconds=1))
        rounds: list[int] = []
        while sum(rounds) < 37:
            await until(lambda: w.poller.in_flight > 0)
            await settle()
            rounds.append(w.poller.in_flight)
            for _ in range(rounds[-1]):
                hold.release()
            await until(lambda: sum(car.reading_id is not None for car in w.fleet) == sum(rounds))
        assert rounds == [1, 2, 4, 8, 16, 6]


async def test_a_try_that_ends_in_a_full_disk_is_not_the_last_one(tmp_path: Path) -> None:
    async with world(tmp_path, AMPLE) as w:
        cars = await w.enrol(8)
        up = renault_down(w)
        await close_renault(w, cars)
        for car in cars[3:]:
            w.poller.due(car.id)
        w.store.full = {"reserve"}
        await w.clock.advance(2 * RENAULT.floor)
        await until(lambda: len(w.said("poll.not_noted")) > 0)
        w.store.full = set()
        up()
        await w.clock.advance(HOUR)
        await until(lambda: any(car.reading_id for car in w.fleet))


async def test_why_the_cars_of_a_brand_wait(tmp_path: Path) -> None:
    async with world(tmp_path, AMPLE) as w:
        cars = await w.enrol(8)
        renault_down(w)
        await close_renault(w, cars)
        for car in cars[3:]:
            w.poller.due(car.id)
        await settle()
        await w.clock.advance(3 * MINUTE)
        assert w.poller.why_waiting(cars[4].id) == (
            "Renault's cloud has not answered for 3 min: 5 cars wait for one to get through; "
            "one tries in 2 min"
        )
        assert w.poller.why_waiting(cars[0].id) is None


async def test_the_trouble_of_one_car_closes_no_brand(tmp_path: Path) -> None:
    async with world(tmp_path, AMPLE) as w:
        broken, fine = await w.enrol(2)

        async def answer(vehicle: Vehicle) -> Observation:
            if vehicle.id == broken.id:
                raise errors.Unreachable(DOWN.code, DOWN.detail)
            return w.source.observation(50)

        w.source.answer = answer
        for _ in range(5):
            await w.poll_when_due(broken)
        (after,) = await w.poll(fine)
        assert after.reading_id is not None
        assert w.said("brand.closed") == []


async def test_counting_cars_is_not_repeated_for_each_failure_of_an_outage(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        cars, counted = await w.enrol(30), []

        def count(application: str, brand: str) -> int:
            counted.append((application, brand))
            return 30

        outages = Outages(w.log, most=4, cars_of=count)
        for car in cars:
            outages.begun(car)
        for car in cars:
            outages.answered(car, DOWN, PROFILES["renault"], START)
            outages.ended(car, START)
        assert counted == [("home", "renault")] * 2

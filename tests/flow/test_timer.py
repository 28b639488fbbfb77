"""Alarms against a plain model, and bells that ring late but never not at all."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.timer import Alarms, CohortTimer, _ahead
from tests.fakes import START, VirtualClock

steps = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 8), st.integers(0, 50)),
        st.tuples(st.just("silence"), st.integers(0, 8), st.just(0)),
        st.tuples(st.just("due"), st.integers(0, 60), st.integers(1, 5)),
    ),
    max_size=200,
)


@given(steps)
def test_alarms_ring_like_a_dictionary_of_times(commands: list[tuple[str, int, int]]) -> None:
    alarms, model = Alarms(), dict[VehicleId, int]()
    for command, first, second in commands:
        if command == "arm":
            alarms.arm(VehicleId(first), START + timedelta(seconds=second))
            model[VehicleId(first)] = second
        elif command == "silence":
            alarms.arm(VehicleId(first), None)
            model.pop(VehicleId(first), None)
        else:
            rang = list(alarms.due(START + timedelta(seconds=first), second))
            expected = sorted((at, car) for car, at in model.items() if at <= first)[:second]
            assert [model.pop(car) for car in rang] == [at for at, _ in expected]
        assert len(alarms) == len(model)


def test_setting_an_alarm_again_and_again_does_not_grow_the_heap() -> None:
    alarms = Alarms()
    for second in range(10_000):
        alarms.arm(VehicleId(1), START + timedelta(seconds=second))
    assert len(alarms._heap) < 200
    assert list(alarms.due(START + timedelta(days=1), 10)) == [1]


async def test_ten_thousand_cars_due_at_once_all_ring_and_the_loop_breathes_between() -> None:
    rang: list[VehicleId] = []
    turns = 0
    done = asyncio.Event()

    def on_due(vehicle_id: VehicleId) -> None:
        rang.append(vehicle_id)
        if len(rang) == 10_000:
            done.set()

    async def others() -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    timer = CohortTimer(VirtualClock(speed=100), lambda bug: None)
    for number in range(10_000):
        timer.arm(VehicleId(number), "renault", START)
    timer.start(on_due)
    other = asyncio.create_task(others())
    await asyncio.wait_for(done.wait(), 30)
    timer.stop()
    await other
    assert sorted(rang) == list(range(10_000))
    assert turns > 10_000 // 256


async def test_a_bug_in_a_bell_is_not_swallowed() -> None:
    bugs: asyncio.Queue[BaseException] = asyncio.Queue()

    def broken(vehicle_id: VehicleId) -> None:
        raise RuntimeError("a bug")

    timer = CohortTimer(VirtualClock(speed=100), bugs.put_nowait)
    timer.arm(VehicleId(1), "renault", START)
    timer.start(broken)
    bug = await asyncio.wait_for(bugs.get(), 30)
    timer.stop()
    assert str(bug) == "a bug"


async def test_a_car_that_moves_to_another_brand_rings_once() -> None:
    rang: asyncio.Queue[VehicleId] = asyncio.Queue()
    timer = CohortTimer(VirtualClock(speed=100), lambda bug: None)
    timer.arm(VehicleId(1), "renault", START)
    timer.arm(VehicleId(1), "renault", None)
    timer.arm(VehicleId(1), "dacia", START)
    assert len(timer) == 1
    timer.start(rang.put_nowait)
    assert await asyncio.wait_for(rang.get(), 30) == 1
    assert len(timer) == 0
    timer.stop()


async def test_when_the_machines_clock_is_set_back_the_bells_ring_on() -> None:
    rang: asyncio.Queue[VehicleId] = asyncio.Queue()
    timer = CohortTimer(VirtualClock(speed=100), lambda bug: None)
    timer.arm(VehicleId(1), "renault", START)
    timer.start(rang.put_nowait)
    # Set back an hour, APScheduler's next ring is an hour ahead.
    for job in timer._bells.get_jobs():
        job.modify(next_run_time=job.next_run_time + timedelta(hours=1))
    timer._mind_the_clock(_ahead() + 3600.0)
    assert await asyncio.wait_for(rang.get(), 30) == 1
    timer.stop()

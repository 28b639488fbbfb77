"""The most urgent car goes first, however many wait."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.cadence import urgency
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.waiting import Kind, WaitingRoom
from tests.fakes import START

INTERVALS = {
    ("renault", Activity.CHARGING): timedelta(minutes=30),
    ("renault", Activity.PARKED): timedelta(hours=2),
    ("volvo", Activity.CHARGING): timedelta(minutes=5),
}
waiting_cars = st.lists(
    st.tuples(st.sampled_from(sorted(INTERVALS)), st.integers(0, 10_000)), min_size=1, max_size=40
)


def interval(kind: Kind) -> timedelta:
    return INTERVALS[kind]


@given(waiting_cars)
def test_cars_are_taken_by_urgency_and_each_once(cars: list[tuple[Kind, int]]) -> None:
    now = START + timedelta(hours=4)
    room = WaitingRoom()
    worth: dict[VehicleId, float] = {}
    for number, (kind, late) in enumerate(cars):
        due = now - timedelta(seconds=late)
        room.enter(VehicleId(number), kind, due)
        room.enter(VehicleId(number), kind, due)  # a second bell changes nothing
        worth[VehicleId(number)] = urgency(due, interval(kind), now)
    assert len(room) == len(worth)
    taken = []
    while (car := room.take(now, interval, lambda brand: True)) is not None:
        taken.append(worth.pop(car))
    assert worth == {}
    assert taken == sorted(taken, reverse=True)


def test_a_brand_that_has_enough_under_way_waits_and_others_pass() -> None:
    room = WaitingRoom()
    room.enter(VehicleId(1), ("volvo", Activity.CHARGING), START - timedelta(hours=1))
    room.enter(VehicleId(2), ("renault", Activity.PARKED), START)
    assert room.take(START, interval, lambda brand: brand != "volvo") == 2
    assert room.take(START, interval, lambda brand: brand != "volvo") is None
    assert room.take(START, interval, lambda brand: True) == 1

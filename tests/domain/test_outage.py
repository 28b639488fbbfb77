"""A brand's cloud is down: one car tries for all the others."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from evbatteryd.domain import errors
from evbatteryd.domain.outage import ENOUGH_CARS, FIRST_LET_IN, HEALTHY, LONGEST_PAUSE, Line, cloud_answered
from evbatteryd.domain.reading import Observation
from evbatteryd.domain.vehicle import VehicleId
from tests.domain.facts import HOUR, MINUTE, NOW

FLOOR = 5 * MINUTE
MOST = 8


def car(number: int) -> VehicleId:
    return VehicleId(number)


def closed(now: datetime = NOW, cars: int = 100, floor: timedelta = FLOOR) -> Line:
    line = HEALTHY
    for number in range(min(ENOUGH_CARS, cars)):
        line = line.failing(car(number), cars, floor, now)
    assert line.closed
    return line


@pytest.mark.parametrize(
    ("answer", "up"),
    [
        (Observation(fetched_at=NOW, measurements=()), True),
        (errors.Asleep("VEHICLE_STATE:ASLEEP", "asleep"), True),
        (errors.Unreachable("UPSTREAM:NO_RESPONSE", "down"), False),
        (errors.Unreachable("TIMEOUT", "no answer"), False),
        (errors.Unreachable("HTTP_503", "maintenance"), False),
        (errors.Unreadable("BUG", "ours"), None),
        (errors.NothingYet("RESOURCE_NOT_FOUND", "nothing"), None),
        (errors.RateLimited("RATE_LIMIT:VEHICLE", "wait"), None),
        (errors.ApplicationRateLimited("RATE_LIMIT:SMARTCAR_API", "wait"), None),
        (errors.ConsentLost("PERMISSION", "gone"), None),
        (errors.BudgetSpent("BUDGET", "spent"), None),
    ],
)
def test_only_what_the_cloud_itself_must_know_counts(answer, up) -> None:
    assert cloud_answered(answer) is up


def test_three_cars_that_fail_in_a_row_close_it() -> None:
    line = HEALTHY.failing(car(1), 100, FLOOR, NOW).failing(car(2), 100, FLOOR, NOW + MINUTE)
    assert line.admits(50, NOW)
    line = line.failing(car(3), 100, FLOOR, NOW + 2 * MINUTE)
    assert line.closed
    assert line.since == NOW
    assert line.probe_at == NOW + 2 * MINUTE + FLOOR
    assert not line.admits(0, NOW + 2 * MINUTE)


def test_all_cars_of_a_small_fleet_close_it() -> None:
    line = HEALTHY.failing(car(1), 2, FLOOR, NOW)
    assert not line.closed
    assert line.failing(car(2), 2, FLOOR, NOW).closed
    assert HEALTHY.failing(car(1), 1, FLOOR, NOW).closed


@given(st.integers(2, 100), st.integers(1, 500))
def test_the_trouble_of_one_car_closes_it_to_no_other(cars: int, times: int) -> None:
    line = HEALTHY
    for turn in range(times):
        line = line.failing(car(7), cars, FLOOR, NOW + turn * HOUR)
    assert not line.closed


def test_an_answer_in_between_begins_the_count_anew() -> None:
    line = HEALTHY.failing(car(1), 100, FLOOR, NOW).failing(car(2), 100, FLOOR, NOW)
    line = line.answering(MOST).failing(car(3), 100, FLOOR, NOW)
    assert not line.closed
    assert HEALTHY.failing(car(1), 100, FLOOR, NOW).answering(MOST).healthy


@given(st.timedeltas(timedelta(), timedelta(days=2)))
def test_tries_come_further_and_further_apart_up_to_an_hour(floor: timedelta) -> None:
    line, now, pauses = closed(floor=floor), NOW, []
    for number in range(12):
        assert line.probe_at is not None
        pauses.append(line.probe_at - now)
        now = line.probe_at
        assert not line.admits(0, now - timedelta(microseconds=1))
        assert line.admits(0, now)
        line = line.begun(car(number))
        now += timedelta(seconds=8)
        line = line.failing(car(number), 100, floor, now).ended(car(number), now)
    assert pauses[0] == min(max(floor, MINUTE), LONGEST_PAUSE)
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE


def test_while_one_tries_no_other_does_however_long_it_takes() -> None:
    line = closed().begun(car(9))
    assert not line.admits(0, NOW + 9 * HOUR)


def test_failures_of_cars_that_were_asked_before_change_nothing() -> None:
    line = closed()
    assert line.failing(car(50), 100, FLOOR, NOW + MINUTE) == line
    trying = line.begun(car(9))
    assert trying.failing(car(50), 100, FLOOR, NOW + MINUTE).probe == car(9)
    assert trying.ended(car(50), NOW + MINUTE) == trying


def test_a_try_that_shows_nothing_is_followed_by_another_car_after_the_same_pause() -> None:
    line = closed().begun(car(9)).ended(car(9), NOW + HOUR)
    assert line.probe is None
    assert line.probe_at == NOW + HOUR + FLOOR


def test_one_answer_opens_it_and_the_others_are_let_in_bit_by_bit() -> None:
    line = closed().begun(car(9)).answering(MOST)
    assert not line.closed
    admitted = []
    while not line.healthy:
        admitted.append(sum(1 for under_way in range(MOST) if line.admits(under_way, NOW)))
        line = line.answering(MOST)
    assert admitted == list(range(FIRST_LET_IN, MOST))
    assert line.admits(10**6, NOW)


def test_a_failure_while_it_opens_slows_it_down() -> None:
    line = closed().answering(MOST).answering(MOST).answering(MOST)
    assert line.let_in == 4
    line = line.failing(car(1), 100, FLOOR, NOW)
    assert line.let_in == 2
    assert line.failing(car(2), 100, FLOOR, NOW).let_in == 1
    assert line.failing(car(2), 100, FLOOR, NOW).admits(0, NOW)


class Cloud(RuleBasedStateMachine):
    """Whatever cars are asked and however they end, in whatever order."""

    def __init__(self) -> None:
        super().__init__()
        self.line: Line = HEALTHY
        self.now: datetime = NOW
        self.cars = 6
        self.under_way: set[VehicleId] = set()
        self.trying: set[VehicleId] = set()

    @rule(number=st.integers(0, 5))
    def a_car_wants_to_be_asked(self, number: int) -> None:
        if car(number) not in self.under_way and self.line.admits(len(self.under_way), self.now):
            self.under_way.add(car(number))
            if self.line.closed:
                self.trying.add(car(number))
            self.line = self.line.begun(car(number))

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), up=st.sampled_from([True, False, None]))
    def one_is_answered(self, data: st.DataObject, up: bool | None) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.under_way)))
        if up is False:
            self.line = self.line.failing(chosen, self.cars, FLOOR, self.now)
        elif up:
            self.line = self.line.answering(MOST)
            assert not self.line.closed
            self.trying.clear()
        self.line = self.line.ended(chosen, self.now)
        self.under_way.discard(chosen)
        self.trying.discard(chosen)

    @rule(minutes=st.integers(1, 120))
    def time_passes(self, minutes: int) -> None:
        self.now += minutes * MINUTE

    @invariant()
    def at_most_one_tries(self) -> None:
        assert self.trying == (set() if self.line.probe is None else {self.line.probe})

    @invariant()
    def nobody_waits_longer_than_an_hour_for_the_next_try(self) -> None:
        if self.line.probe_at is not None and self.line.probe is None:
            assert self.line.probe_at - self.now <= LONGEST_PAUSE

    @invariant()
    def somebody_is_admitted_within_the_hour_when_nobody_is_under_way(self) -> None:
        if not self.under_way:
            assert self.line.admits(0, self.now + LONGEST_PAUSE)

    @invariant()
    def it_remembers_since_when(self) -> None:
        if self.line.closed:
            assert self.line.since is not None
            assert self.line.since <= self.now


TestCloud = Cloud.TestCase

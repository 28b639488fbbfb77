"""What a scarce call is worth to a car that is due."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.fleet import Schedule
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.worth import FIRST_TRIES, NEUTRAL_GAIN, awaited, claim
from tests.domain.facts import HOUR, MINUTE, NOW, PROFILE, SECOND, profiles

PARKED = Schedule(due=NOW, reason="", polled_at=NOW - 3 * HOUR, answered_at=NOW - 3 * HOUR, outcome="new")

gains = st.floats(1e-3, 1e9)
lates = st.timedeltas(timedelta(), timedelta(days=30))


@given(profiles(), gains, st.timedeltas(timedelta(seconds=1), timedelta(days=9)))
def test_when_it_falls_due_a_poll_is_worth_what_the_policy_expects(profile, gain, ago) -> None:
    schedule = replace(PARKED, gain=gain, polled_at=NOW - ago, answered_at=NOW - ago)
    assert claim(schedule, profile, NOW).worth(NOW) == pytest.approx(gain, rel=1e-6)


@given(profiles(), st.sampled_from(Activity), lates)
def test_where_a_rule_decided_it_is_worth_its_lateness_in_its_own_paces(profile, doing, late) -> None:
    schedule = replace(PARKED, activity=doing, polled_at=NOW - MINUTE)
    paces = 1 + late / profile.interval(doing)
    assert claim(schedule, profile, NOW).worth(NOW + late) == pytest.approx(NEUTRAL_GAIN * paces**2, rel=1e-6)


@given(profiles(), st.just(0.0) | gains, lates, lates)
def test_it_only_grows_and_its_root_in_a_straight_line(profile, gain, sooner, later) -> None:
    bid = claim(replace(PARKED, gain=gain), profile, NOW)
    roots = [math.sqrt(bid.worth(NOW + late)) for late in (sooner, sooner + later)]
    assert roots[1] - roots[0] == pytest.approx(bid.slope * later.total_seconds(), rel=1e-6, abs=1e-6)


def test_nothing_is_worth_anything_before_it_was_last_seen() -> None:
    bid = claim(replace(PARKED, gain=9000), PROFILE, NOW)
    assert bid.worth(NOW - 4 * HOUR) == 0
    assert bid.worth(NOW - 3 * HOUR + SECOND) > 0


def test_twice_as_long_unseen_is_worth_four_times_as_much() -> None:
    bid = claim(replace(PARKED, gain=9000), PROFILE, NOW)
    assert bid.since == NOW - 3 * HOUR
    assert bid.worth(NOW + 3 * HOUR) == pytest.approx(4 * 9000)


def test_a_webhook_counts_as_a_look_and_one_from_after_it_fell_due_makes_no_car_priceless() -> None:
    pushed = claim(replace(PARKED, gain=9000, pushed_at=NOW - HOUR), PROFILE, NOW)
    assert pushed.since == NOW - HOUR
    later = claim(replace(PARKED, gain=9000, pushed_at=NOW + HOUR), PROFILE, NOW + HOUR)
    assert later.since == NOW - PROFILE.floor
    assert later.worth(NOW) == pytest.approx(9000)


def test_a_charging_car_is_worth_more_than_a_parked_one_that_is_as_late() -> None:
    charging = claim(replace(PARKED, activity=Activity.CHARGING), PROFILE, NOW)
    assert charging.worth(NOW + HOUR) > claim(PARKED, PROFILE, NOW).worth(NOW + HOUR)


def test_who_has_just_enrolled_a_car_waits_for_it_but_not_for_ever() -> None:
    new = Schedule(due=NOW, reason="newly enrolled")
    assert awaited(new)
    assert awaited(replace(new, polled_at=NOW, outcome="nothing_yet", failures=FIRST_TRIES))
    assert not awaited(replace(new, polled_at=NOW, outcome="nothing_yet", failures=FIRST_TRIES + 1))
    assert not awaited(replace(new, answered_at=NOW))
    assert not awaited(replace(new, pushed_at=NOW))

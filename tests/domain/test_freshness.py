"""No stale value looks fresh, and what is fresh turns stale by itself."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.freshness import GRACE, Freshness, fresh_until, judge
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState, Signal

from .facts import HOUR, MINUTE, NOW, PROFILE, profiles, state, told

ages = st.timedeltas(timedelta(), timedelta(days=60))
doings = st.sampled_from(Activity)


def soc(measured_at: datetime | None, fetched_at: datetime = NOW) -> BatteryState:
    return state(told(Signal.SOC, 50.0, measured_at, fetched_at))


@given(profiles(), doings, ages, ages)
def test_newer_is_fresh_for_longer_or_as_long(
    profile: BrandProfile, doing: Activity, one: timedelta, other: timedelta
) -> None:
    older, newer = max(one, other), min(one, other)

    def until(measured: timedelta, fetched: timedelta) -> datetime:
        found = fresh_until(profile, soc(NOW - measured, NOW - fetched), doing)
        assert found is not None
        return found

    assert until(older, newer) <= until(newer, newer)
    assert until(older, older) <= until(older, newer)


@given(profiles(), doings, ages, st.timedeltas(timedelta(), timedelta(days=90)))
def test_a_value_older_than_the_brand_delivers_is_not_fresh(
    profile: BrandProfile, doing: Activity, fetched_ago: timedelta, age: timedelta
) -> None:
    until = fresh_until(profile, soc(NOW - age, NOW - min(fetched_ago, age)), doing)
    allowed = (
        profile.silence if doing is Activity.PARKED else 2 * max(profile.reports, profile.interval(doing))
    )
    if age >= allowed + GRACE:
        assert judge(until, reachable=True, consented=True, now=NOW) is Freshness.STALE


@given(profiles(), ages)
def test_a_parked_car_nobody_asked_for_long_is_not_fresh(profile: BrandProfile, ago: timedelta) -> None:
    until = fresh_until(profile, soc(NOW - ago, NOW - ago), Activity.PARKED)
    assert until is not None
    assert until <= NOW - ago + 2 * profile.interval(Activity.PARKED) + GRACE


@given(profiles(), doings)
def test_without_the_car_s_time_nothing_is_fresh(profile: BrandProfile, doing: Activity) -> None:
    assert fresh_until(profile, soc(None), doing) is None
    assert fresh_until(profile, BatteryState(), doing) is None
    assert fresh_until(profile, state(told(Signal.RANGE, 200.0)), doing) is None


def test_a_parked_car_stays_fresh_while_polls_confirm_it() -> None:
    confirmed = soc(NOW - 3 * 24 * HOUR, NOW)
    assert fresh_until(PROFILE, confirmed, Activity.PARKED) == NOW + 4 * HOUR + GRACE
    assert fresh_until(PROFILE, confirmed, Activity.CHARGING) == NOW - 72 * HOUR + 40 * MINUTE + GRACE


def test_a_car_last_heard_of_charging_is_not_fresh_as_a_parked_one_is() -> None:
    charging = state(
        told(Signal.SOC, 50.0, NOW - 30 * HOUR, NOW), told(Signal.CHARGING, True, NOW - 30 * HOUR, NOW)
    )
    until = fresh_until(PROFILE, charging, Activity.PARKED)
    assert until == NOW - 30 * HOUR + 40 * MINUTE + GRACE


LATER, SOONER = NOW + MINUTE, NOW - MINUTE


@pytest.mark.parametrize(
    ("until", "reachable", "consented", "verdict"),
    [
        (LATER, True, True, Freshness.FRESH),
        (LATER, False, True, Freshness.FRESH),
        (LATER, True, False, Freshness.OFFLINE),
        (LATER, False, False, Freshness.OFFLINE),
        (NOW, True, True, Freshness.STALE),
        (SOONER, True, True, Freshness.STALE),
        (SOONER, False, True, Freshness.OFFLINE),
        (SOONER, True, False, Freshness.OFFLINE),
        (None, True, True, Freshness.STALE),
        (None, False, True, Freshness.OFFLINE),
        (None, True, False, Freshness.OFFLINE),
    ],
)
def test_the_verdict(until: datetime | None, reachable: bool, consented: bool, verdict: Freshness) -> None:
    assert judge(until, reachable=reachable, consented=consented, now=NOW) is verdict

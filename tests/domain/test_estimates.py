"""What is told of an estimate holds until it is told anew; and an estimate keeps within its bounds."""

from __future__ import annotations

import functools
import random
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.estimates import (
    ANSWER_AWAITED,
    Estimator,
    is_worth_showing,
    next_change,
    step,
    told_estimate,
)
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.outlook import Estimate, Trend
from tests.builders import NOON, car, state

from .policy.lives import START, Cloud, Desk, People, desk_of

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

percents = st.floats(0, 100, allow_nan=False) | st.integers(0, 1000).map(lambda tenths: tenths / 10)
spans = st.timedeltas(timedelta(), timedelta(days=2))


@st.composite
def trends(draw: st.DrawFn) -> Trend:
    return Trend(
        soc_percent=draw(percents),
        since=NOON,
        percent_per_hour=draw(st.just(0.0) | st.floats(0, 600, allow_nan=False) | st.sampled_from([7, 11.0])),
        target_percent=draw(percents),
        until=NOON + draw(spans),
    )


def expecting(trend: Trend | None, due: datetime | None = NOON + 40 * DAY, **values: object) -> Car:
    return replace(car(state=state(**({"soc": 50.0} | values)), due=due), trend=trend)


def changes(known: Car, now: datetime) -> list[datetime]:
    """Every instant at which the car is told anew, as long as nothing is heard of it."""
    found = []
    while (following := next_change(known, now)) is not None:
        assert following > now
        found.append(following)
        now = following
    return found


@given(trends(), spans, spans)
def test_an_estimate_never_falls_and_stays_between_measurement_and_target(
    trend: Trend, passed: timedelta, more: timedelta
) -> None:
    before, after = trend.at(NOON + passed), trend.at(NOON + passed + more)
    for percent in (before, after):
        if percent is not None:
            assert trend.soc_percent <= percent <= max(trend.soc_percent, trend.target_percent)
    if before is not None and after is not None:
        assert before <= after
    assert after is None or before is not None


@given(trends(), spans)
def test_what_was_told_is_never_more_than_a_point_off(trend: Trend, passed: timedelta) -> None:
    known, now = expecting(trend), NOON + passed
    for following in changes(known, now):
        told = trend.at(now)
        just_before = trend.at(following - timedelta(microseconds=1))
        assert told is not None
        assert just_before is not None
        assert just_before - told <= 1.001
        now = following


@given(trends(), spans)
def test_at_each_change_there_is_something_else_to_tell_and_before_it_there_is_not(
    trend: Trend, passed: timedelta
) -> None:
    known, now = expecting(trend), NOON + passed
    for following in changes(known, now):
        assert step(known, now + (following - now) / 2) == step(known, now) != step(known, following)
        now = following
    assert step(known, now) is None


@given(trends(), spans)
def test_only_a_rising_estimate_changes_more_than_once(trend: Trend, passed: timedelta) -> None:
    found = changes(expecting(trend), NOON + passed)
    if NOON + passed >= trend.until:
        assert found == []
    elif trend.percent_per_hour == 0 or trend.target_percent <= trend.soc_percent:
        assert found == [trend.until]
    else:
        assert len(found) <= trend.target_percent - trend.soc_percent + 2
        assert found[-1] == trend.until


def test_a_charging_car_is_told_at_each_point_up_to_its_target() -> None:
    known = expecting(Trend(50.0, NOON, 10.0, 53.5, NOON + 2 * HOUR))
    minutes = [(at - NOON) / timedelta(minutes=1) for at in changes(known, NOON + timedelta(minutes=8))]
    assert minutes == [12, 18, 120]


# Cars that are overdue


def minutes_told(due: datetime | None, until: datetime, begin: datetime = NOON) -> list[float]:
    parked = expecting(Trend(50.0, NOON, 0.0, 50.0, until), due)
    return [(at - NOON) / MINUTE for at in changes(parked, begin)]


def test_a_parked_car_is_not_told_again_before_it_should_have_answered() -> None:
    assert minutes_told(NOON + 20 * HOUR, NOON + 8 * HOUR) == [8 * 60]


def test_an_overdue_car_is_told_every_hour_until_nothing_is_claimed() -> None:
    assert minutes_told(NOON + 2 * HOUR, NOON + 5 * HOUR) == [130, 190, 250, 300]
    assert minutes_told(NOON + 2 * HOUR, NOON + 5 * HOUR, begin=NOON + 200 * MINUTE) == [250, 300]


def test_a_car_that_is_not_asked_is_told_every_hour() -> None:
    assert minutes_told(None, NOON + 150 * MINUTE) == [60, 120, 150]


@given(st.none() | st.timedeltas(-2 * DAY, 2 * DAY), spans, spans)
def test_a_parked_car_is_told_at_most_once_an_overdue_hour(
    due_in: timedelta | None, claimed: timedelta, passed: timedelta
) -> None:
    due, begin, until = None if due_in is None else NOON + due_in, NOON + passed, NOON + claimed
    found = changes(expecting(Trend(50.0, NOON, 0.0, 50.0, until), due), begin)
    overdue_from = begin if due is None else max(begin, due + ANSWER_AWAITED)
    assert len(found) <= max((until - overdue_from) / HOUR, 0) + 2


def test_a_poll_that_is_put_off_is_a_step_of_its_own() -> None:
    trend = Trend(50.0, NOON, 0.0, 50.0, NOON + 9 * HOUR)
    soon, later = expecting(trend, NOON + HOUR), expecting(trend, NOON + 3 * HOUR)
    assert step(soon, NOON) != step(later, NOON)


# The band


@functools.cache
def lived(quarters: int) -> tuple[Desk, list[tuple[datetime, Car]]]:
    """A fleet's three weeks with the policy itself, so many quarters of an hour east of Greenwich."""
    dice = random.Random(quarters)
    desk = desk_of(
        Cloud(People(dice, timer=1.0 if quarters % 2 else None).live(30)), offset=lambda _: quarters * 900.0
    )
    desk.enrol(Cloud(People(dice, slope=3.0).live(30)))
    desk.run(14 * DAY)
    known = list[tuple[datetime, Car]]()
    while desk.now < START + 21 * DAY:
        desk.run(HOUR * dice.uniform(0.1, 3))
        known += [(desk.now, one) for one in desk.cars.values()]
    return desk, known


def estimator_of(desk: Desk) -> Estimator:
    return lambda one, at: polling.estimate(one, desk.profile, desk.lore, at)


fractions = st.floats(0, 1, exclude_max=True)


@given(
    st.sampled_from([0, 8, 22, -14]), fractions, st.timedeltas(timedelta(), 12 * HOUR), st.lists(fractions)
)
def test_what_was_told_of_the_band_holds_until_it_is_told_anew(
    quarters: int, which: float, passed: timedelta, moments: list[float]
) -> None:
    """The estimate at any moment lies within the band that was told last, however long the car is silent."""
    desk, known = lived(quarters)
    seen_at, one = known[int(which * len(known))]
    turns = timedelta(seconds=-quarters * 900 % 3600)
    now = seen_at + passed
    for following in changes(one, now):
        told = told_estimate(one, now, estimator_of(desk), past_the_hour=turns)
        assert told is not None
        for moment in [0.0, *moments, 1.0]:
            then = estimator_of(desk)(
                one, min(now + moment * (following - now), following - timedelta(microseconds=1))
            )
            if then is None:
                assert one.trend is not None
                assert one.trend.until - following < timedelta(milliseconds=1)
                continue
            assert told.low_percent <= then.low_percent
            assert told.high_percent >= then.high_percent
            assert told.low_percent <= told.soc_percent <= told.high_percent
        now = following


def test_a_band_that_widens_is_told_as_wide_as_it_will_be_when_the_car_has_answered() -> None:
    def widening(_: Car, at: datetime) -> Estimate:
        return Estimate(50.0, 50.0 - (at - NOON) / HOUR, 50.0, NOON + DAY)

    parked = expecting(Trend(50.0, NOON, 0.0, 50.0, NOON + DAY), NOON + 3 * HOUR)
    low = [told_estimate(parked, at, widening) for at in (NOON, *changes(parked, NOON)[:2])]
    due = 3 + ANSWER_AWAITED / HOUR
    assert [told and told.low_percent for told in low] == pytest.approx([50 - due, 49 - due, 48 - due])


def test_a_band_that_is_widest_in_between_is_told_that_wide() -> None:
    def at_one(_: Car, at: datetime) -> Estimate:
        return Estimate(50.0, 50.0, 60.0 if at.hour == 13 else 51.0, NOON + DAY)

    parked = expecting(Trend(50.0, NOON, 0.0, 50.0, NOON + DAY), NOON + 3 * HOUR)
    told = told_estimate(parked, NOON, at_one)
    assert told is not None
    assert told.high_percent == 60.0


def test_nothing_claimed_is_not_told() -> None:
    assert told_estimate(expecting(None), NOON, lambda *_: None) is None


def test_nothing_claimed_never_changes() -> None:
    assert next_change(expecting(None), NOON) is None
    assert step(expecting(None), NOON) is None


def test_a_rise_slower_than_any_calendar_is_no_rise() -> None:
    slow = expecting(Trend(50.0, NOON, 1e-300, 80.0, NOON + HOUR))
    assert next_change(slow, NOON) == NOON + HOUR


@pytest.mark.parametrize(
    ("values", "percent", "shown"),
    [
        ({"soc": 50.0}, 50.4, False),
        ({"soc": 50.0}, 50.5, True),
        ({"soc": 50.0}, 49.5, True),
        ({"soc": 50.0, "charging": True}, 50.0, True),
        ({"soc": 50.0, "charging": False}, 50.0, False),
    ],
)
def test_an_estimate_is_shown_if_it_says_more(values: dict[str, object], percent: float, shown: bool) -> None:
    assert is_worth_showing(expecting(None, **values), percent) is shown


def test_an_estimate_is_not_shown_without_a_measurement() -> None:
    assert not is_worth_showing(replace(car(), trend=Trend(50.0, NOON, 0.0, 50.0, NOON + HOUR)), 50.0)

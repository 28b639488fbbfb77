"""Periods tile time, shares last, buckets neither leak nor fill by themselves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from evbatteryd.domain.ledger import Bucket, Budget, Period, Share, window

from .facts import MINUTE, NOW, instants, zones

budgets = st.builds(
    Budget,
    bucket=st.integers(1, 1000),
    refill_per_minute=st.floats(0.01, 1000),
    period=st.sampled_from(Period),
    anchor_day=st.integers(1, 31),
)
INSTANT = timedelta(microseconds=1)


@given(budgets, instants)
def test_every_instant_lies_in_one_period_and_periods_tile_time(budget: Budget, now: datetime) -> None:
    period = window(budget, now)
    assert period.start <= now < period.end
    assert window(budget, period.start) == period
    assert window(budget, period.end - INSTANT) == period
    assert window(budget, period.end).start == period.end
    assert window(budget, period.start - INSTANT).end == period.start


@given(budgets, instants, zones)
def test_a_period_turns_at_midnight_utc_wherever_one_looks_from(
    budget: Budget, now: datetime, zone: timezone
) -> None:
    period = window(budget, now.astimezone(zone))
    assert period == window(budget, now)
    for edge in (period.start, period.end):
        assert edge.utcoffset() == timedelta()
        assert (edge.hour, edge.minute, edge.second, edge.microsecond) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("anchor_day", "now", "start", "end"),
    [
        (1, "2026-08-05", "2026-08-01", "2026-09-01"),
        (1, "2026-12-31", "2026-12-01", "2027-01-01"),
        (15, "2026-01-14", "2025-12-15", "2026-01-15"),
        (15, "2026-01-15", "2026-01-15", "2026-02-15"),
        (31, "2026-02-27", "2026-01-31", "2026-02-28"),
        (31, "2026-02-28", "2026-02-28", "2026-03-31"),
        (31, "2026-03-30", "2026-02-28", "2026-03-31"),
        (30, "2026-03-01", "2026-02-28", "2026-03-30"),
        (29, "2028-02-29", "2028-02-29", "2028-03-29"),
        (29, "2027-02-28", "2027-02-28", "2027-03-29"),
        (31, "2028-02-29", "2028-02-29", "2028-03-31"),
        (31, "2026-05-01", "2026-04-30", "2026-05-31"),
    ],
)
def test_an_anchor_beyond_the_month_means_its_last_day(
    anchor_day: int, now: str, start: str, end: str
) -> None:
    period = window(Budget(anchor_day=anchor_day), datetime.fromisoformat(now).replace(tzinfo=UTC))
    assert (f"{period.start:%Y-%m-%d}", f"{period.end:%Y-%m-%d}") == (start, end)


def test_a_daily_period_is_the_day() -> None:
    period = window(Budget(period=Period.DAY, anchor_day=31), NOW)
    assert (period.start, period.end) == (NOW.replace(hour=0), NOW.replace(hour=0) + timedelta(days=1))


@given(
    st.integers(0, 300),
    st.integers(1, 5),
    st.timedeltas(timedelta(hours=1), timedelta(days=31)),
    st.timedeltas(timedelta(), timedelta(hours=1)),
)
def test_calls_at_the_share_s_pace_last_until_the_period_turns(
    calls: int, per_poll: int, period: timedelta, application: timedelta
) -> None:
    renews_at, now, left = NOW + period, NOW, calls
    while left >= per_poll:
        left -= per_poll
        share = Share(
            calls_left=left, calls=calls, began_at=NOW, renews_at=renews_at, application_interval=application
        )
        pace = share.interval(per_poll, now)
        assert pace >= application * per_poll
        now += pace
        if now >= renews_at:
            break
    # Dividing rounds to microseconds: once for each poll.
    assert now >= renews_at - calls * INSTANT or calls < per_poll


@given(st.integers(-3, 500), st.integers(1, 5), st.timedeltas(timedelta(), timedelta(days=31)))
def test_fewer_calls_never_come_faster(calls: int, per_poll: int, left: timedelta) -> None:
    def pace(calls_left: int) -> timedelta:
        share = Share(
            calls_left=calls_left,
            calls=501,
            began_at=NOW,
            renews_at=NOW + left,
            application_interval=timedelta(seconds=30),
        )
        return share.interval(per_poll, NOW)

    assert pace(calls) >= pace(calls + 1)
    assert pace(calls) <= max(left, timedelta(seconds=30) * per_poll)


levels = st.floats(-10, 1000)
looks = st.lists(st.timedeltas(timedelta(), timedelta(hours=3)), min_size=1, max_size=5)


@given(budgets, levels, instants, st.timedeltas(timedelta(days=-400), timedelta(days=400)))
def test_a_bucket_is_never_over_full_and_gains_nothing_when_time_goes_back(
    budget: Budget, level: float, at: datetime, passed: timedelta
) -> None:
    before = Bucket(level, at)
    after = before.now(budget, at + passed)
    assert after.level <= budget.bucket
    assert after.at == at + passed
    if passed <= timedelta():
        assert after.level == min(level, budget.bucket)
    else:
        assert after.level >= min(level, budget.bucket)


@given(
    budgets,
    levels,
    instants,
    st.lists(st.timedeltas(timedelta(), timedelta(hours=3)), min_size=1, max_size=5),
)
def test_looking_often_fills_it_no_faster(
    budget: Budget, level: float, at: datetime, steps: list[timedelta]
) -> None:
    looked = Bucket(level, at)
    for step in steps:
        looked = looked.now(budget, looked.at + step)
    assert looked.level == pytest.approx(Bucket(level, at).now(budget, looked.at).level)


@given(budgets, levels, instants, st.floats(0.5, 5))
def test_after_the_wait_the_tokens_are_there_and_no_sooner(
    budget: Budget, level: float, at: datetime, tokens: float
) -> None:
    assume(tokens <= budget.bucket)
    bucket = Bucket(level, at)
    wait = bucket.wait(budget, tokens)
    then = bucket.now(budget, at + wait)
    assert not then.wait(budget, tokens)
    if level >= tokens:
        assert wait == timedelta()
    else:
        per_microsecond = budget.refill_per_minute / 60_000_000
        assert tokens - 1e-8 <= then.level <= tokens + per_microsecond + 1e-8


def test_taking_and_giving_back() -> None:
    bucket = Bucket(2.0, NOW).take()
    assert bucket == Bucket(1.0, NOW)
    assert bucket.take(-1.0) == Bucket(2.0, NOW)
    assert Bucket(0.0, NOW).wait(Budget(refill_per_minute=2.0)) == MINUTE / 2


@pytest.mark.parametrize(
    ("calls", "kept"), [(0, 0), (9, 0), (10, 1), (16, 1), (100, 1), (240, 2), (500, 5), (1000, 5)]
)
def test_a_few_calls_of_a_period_are_kept_for_hints(calls: int, kept: int) -> None:
    share = Share(
        calls_left=calls,
        calls=calls,
        began_at=NOW,
        renews_at=NOW + timedelta(days=1),
        application_interval=timedelta(seconds=1),
    )
    assert share.reserve == kept

"""How a period ends: the arithmetic by example and by law, and the policy's model against made-up errors."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.forecast import (
    REALISED,
    SILENT_FOR,
    SURE_AFTER,
    Binding,
    CarFacts,
    Forecast,
    Standing,
    Survey,
    Terms,
    advice,
    car_forecast,
    facts_of,
    saved_percent,
)
from evbatteryd.domain.ledger import Budget, Period, window
from evbatteryd.domain.policy.pacing import COURTESY
from evbatteryd.domain.profile import CallLimit
from tests import builders

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
START = datetime(2026, 11, 1, tzinfo=UTC)
"""Of a month of 30 days."""
MIDDLE = START + 15 * DAY
END = START + 30 * DAY
NO_LIMIT = 1.0
"""Calls per second that no brand would want."""


def terms(
    now: datetime = MIDDLE,
    *,
    calls: int = 600,
    cars: int = 1,
    pool_spent: int | None = None,
    refill_per_minute: float = 60.0,
    tokens: float = 0.0,
    period: Period = Period.MONTH,
) -> Terms:
    budget = Budget(
        calls_per_vehicle=calls,
        refill_per_minute=refill_per_minute,
        period=period,
        pooled=pool_spent is not None,
    )
    return Terms(
        application="home",
        budget=budget,
        window=window(budget, now),
        cars=cars,
        pool_spent=pool_spent,
        tokens=tokens,
    )


def facts(
    spent: int = 300,
    *,
    since: datetime = START,
    standing: Standing = Standing.POLLED,
    calls_per_poll: int = 1,
    most_per_s: float = NO_LIMIT,
    price: float = 1000.0,
    next_poll: datetime | None = None,
) -> CarFacts:
    return CarFacts(
        spent=spent,
        since=since,
        standing=standing,
        calls_per_poll=calls_per_poll,
        most_per_s=most_per_s,
        price=price,
        next_poll=next_poll,
    )


def forecast(
    *cars: CarFacts, now: datetime = MIDDLE, other_calls: int | None = None, **given_terms: object
) -> Forecast:
    survey = Survey(terms(now, **{"cars": len(cars), **given_terms}), now, other_calls)
    for car in cars:
        survey.add(car)
    return survey.forecast()


# The model: error that accumulates between looks


@given(
    c=st.floats(1e-6, 1e3),
    calls_per_s=st.floats(1e-7, 1e-2),
    times=st.floats(0.1, 10),
)
def test_what_other_calls_save_is_the_difference_of_the_errors(
    c: float, calls_per_s: float, times: float
) -> None:
    def error_percent(n: float) -> float:
        return c / n

    step = calls_per_s * 1e-6
    price = (error_percent(calls_per_s) - error_percent(calls_per_s + step)) / step
    saved = saved_percent(price, calls_per_s, calls_per_s * times)
    really = error_percent(calls_per_s) - error_percent(calls_per_s * times)
    assert saved == pytest.approx(really, rel=1e-4, abs=1e-4 * error_percent(calls_per_s))


def test_a_car_that_is_never_asked_saves_nothing() -> None:
    assert saved_percent(1000, 0, 1) == saved_percent(1000, 1, 0) == 0


@given(st.lists(st.tuples(st.floats(1e-5, 1e-2), st.integers(1, 3)), min_size=1, max_size=5), st.data())
def test_the_gain_of_a_fleet_is_the_mean_of_its_cars_errors(
    cars: list[tuple[float, int]], data: st.DataObject
) -> None:
    """Cars that spend the plan evenly, each with an error c/n of its own."""
    other = data.draw(st.integers(601, 6000))
    n, n2 = 600 / (30 * 86400), other / (30 * 86400)
    shown = forecast(*(facts(300, price=c / n**2) for c, _ in cars), other_calls=other)
    saved = sum(c / n - c / n2 for c, _ in cars) / len(cars)
    assert shown.gain_percent == pytest.approx(REALISED * saved)


@given(st.lists(st.integers(2, 3000), min_size=2, max_size=6), st.booleans())
def test_a_larger_plan_never_buys_less(others: list[int], pooled: bool) -> None:
    gains = [
        forecast(facts(), facts(320), other_calls=other, pool_spent=620 if pooled else None).gain_percent
        for other in sorted(others)
    ]
    assert gains == sorted(gains)
    assert all((gain >= 0) is (other >= 600) for gain, other in zip(gains, sorted(others), strict=True))


# How the period ends


def test_who_goes_on_evenly_spends_the_plan() -> None:
    shown = forecast(facts(300), facts(290))
    assert (shown.plan, shown.spent, shown.left, shown.expected) == (1200, 590, 610, 1180)
    assert (shown.even_per_day, shown.pace_per_day) == (pytest.approx(610 / 15), pytest.approx(590 / 15))
    assert shown.interval == timedelta(days=30) / 590
    assert (shown.run_out, shown.first_out, shown.binding) == (0, None, Binding.PLAN)
    assert shown.price == 1000
    assert shown.other_calls == 1200


def test_who_spends_too_fast_runs_out() -> None:
    shown = forecast(facts(300), facts(400), facts(450))
    assert shown.run_out == 2
    assert shown.first_out == MIDDLE + 5 * DAY  # 150 calls at 30 a day
    assert shown.expected == 1800


def test_a_few_hours_are_left_to_the_policy() -> None:
    assert forecast(facts(304)).run_out == 0  # out 9 h early
    assert forecast(facts(308)).run_out == 1  # out 18 h early


def test_who_has_run_out_has_run_out_now() -> None:
    shown = forecast(facts(600, standing=Standing.SPENT))
    assert (shown.run_out, shown.first_out, shown.expected) == (1, MIDDLE, 600)
    assert shown.interval is None
    assert shown.binding is Binding.PLAN
    over = forecast(facts(700, standing=Standing.SPENT))
    assert (over.expected, over.left) == (700, 0), "a plan made smaller"


@pytest.mark.parametrize(
    ("hours", "spent", "a_day"),
    [
        (0, 0, 20.0),
        (1.5, 2, 8 + 0.75 * 598 / (30 - 1.5 / 24)),
        (3, 10, 40 + 0.5 * 590 / 29.875),
        (6, 10, 40),
        (48, 10, 5.0),
    ],
)
def test_a_young_period_is_mixed_with_the_even_pace(hours: float, spent: int, a_day: float) -> None:
    now = START + hours * HOUR
    assert forecast(facts(spent, since=START), now=now).pace_per_day == pytest.approx(a_day)


def test_a_young_car_likewise() -> None:
    came = MIDDLE - 1.5 * HOUR
    shown = forecast(facts(2, since=came))
    assert shown.pace_per_day == pytest.approx(8 + 0.75 * 598 / 15)
    day = forecast(facts(1, since=START), now=START + 3 * HOUR, period=Period.DAY, calls=24)
    assert day.pace_per_day == pytest.approx(4 + 0.5 * 24 * 23 / 21)


def test_a_large_plan_does_not_hide_that_the_car_is_asked_seldom() -> None:
    """A plan of a call every 5 minutes, and a parked car that is worth one every half an hour."""
    large = 30 * 288
    shown = forecast(facts(6, since=START), now=START + 3 * HOUR, calls=large)
    assert shown.pace_per_day == pytest.approx(0.5 * 48 + 0.5 * 2 * 48)
    paged = facts(6, since=START, calls_per_poll=3)
    shown = forecast(paged, now=START + 3 * HOUR, calls=large)
    assert shown.pace_per_day > 0.5 * 288, "asked twice: that says nothing yet"
    settled = forecast(facts(12, since=START), now=START + 6 * HOUR, calls=large)
    assert settled.pace_per_day == pytest.approx(48)
    assert settled.interval == HOUR / 2


def test_nobody_runs_out_before_a_day_was_seen() -> None:
    eager = facts(60, since=MIDDLE - SURE_AFTER + HOUR)
    assert forecast(eager).run_out == 0, "its first readings say nothing yet of its pace"
    assert forecast(eager, now=MIDDLE + HOUR).run_out == 1
    assert SURE_AFTER == DAY


def test_nobody_runs_out_before_the_next_poll() -> None:
    soon, late = facts(450, next_poll=MIDDLE + HOUR), facts(450, next_poll=MIDDLE + 9.6 * DAY)
    assert forecast(soon).first_out == MIDDLE + HOUR + 5 * DAY  # 150 calls at 30 a day
    assert forecast(late).run_out == 0, "out 10 h early"
    assert forecast(facts(450, next_poll=MIDDLE - HOUR)).first_out == MIDDLE + 5 * DAY, "overdue"
    pool = forecast(soon, late, pool_spent=900)
    assert (pool.run_out, pool.first_out) == (2, MIDDLE + HOUR + 5 * DAY)
    unread = facts(599, standing=Standing.SPENT, calls_per_poll=2, next_poll=END)
    assert forecast(unread).first_out == MIDDLE, "a call is left, but a poll takes two"


def test_a_day_that_ends_early_by_hours_is_the_policys() -> None:
    def at(hour: int, spent: int, next_poll: int) -> Forecast:
        car = facts(spent, calls_per_poll=2, next_poll=START + next_poll * HOUR)
        return forecast(car, now=START + hour * HOUR, period=Period.DAY, calls=48)

    assert at(14, 42, 15).first_out == START + 17 * HOUR  # 6 calls at 3 an hour
    assert at(14, 42, 16).run_out == 0, "out at 18:00"
    assert forecast(facts(48, standing=Standing.SPENT), now=START + 19 * HOUR, period=Period.DAY).run_out == 0
    assert forecast(facts(48, standing=Standing.SPENT), now=START + 17 * HOUR, period=Period.DAY).run_out == 1


@pytest.mark.parametrize("standing", [Standing.PUSHED, Standing.SILENT])
def test_cars_that_need_few_calls_are_not_expected_to_take_more(standing: Standing) -> None:
    shown = forecast(facts(1, since=MIDDLE, standing=standing))
    assert shown.pace_per_day == pytest.approx(1)
    assert (shown.expected, shown.interval, shown.binding) == (16, None, Binding.NEED)
    assert shown.gain_percent == 0


def test_cars_that_are_not_asked_count_for_nothing() -> None:
    shown = forecast(facts(), facts(500, standing=Standing.NOT_ASKED))
    assert (shown.cars, shown.plan, shown.spent, shown.expected) == (1, 600, 300, 600)
    assert shown.standings[Standing.NOT_ASKED] == 1
    none = forecast(facts(standing=Standing.NOT_ASKED))
    assert (none.cars, none.expected, none.interval, none.gain_percent) == (0, 0, None, 0)
    assert forecast().expected == 0


def test_a_pool_is_everybodys() -> None:
    shown = forecast(facts(100), facts(500), pool_spent=600)
    assert (shown.plan, shown.spent, shown.left, shown.expected) == (1200, 600, 600, 1200)
    assert shown.run_out == 0, "who spends much takes what others leave"
    fast = forecast(facts(300), facts(500), pool_spent=800)
    assert (fast.run_out, fast.first_out) == (2, MIDDLE + timedelta(days=7.5))
    mine = [car_forecast(car, fast).calls_per_day for car in (facts(300), facts(500))]
    assert mine == pytest.approx([10, 50 / 3])
    gone = forecast(facts(300), facts(500), pool_spent=900)
    assert gone.spent == 900, "what cars have spent that are gone is spent"


def test_the_bucket_holds_back() -> None:
    shown = forecast(facts(300), facts(300), refill_per_minute=0.01, tokens=84)
    assert shown.expected == 600 + 216 + 84
    assert shown.binding is Binding.BUCKET
    assert car_forecast(facts(300), shown).calls_per_day == pytest.approx(10)
    assert shown.interval == DAY / 10


def test_a_poll_may_take_several_calls() -> None:
    shown = forecast(facts(300, calls_per_poll=3))
    assert shown.interval == timedelta(hours=3.6)
    assert car_forecast(facts(300, calls_per_poll=3), shown).interval == timedelta(hours=3.6)


def test_one_car_in_a_row() -> None:
    shown = forecast(facts())
    one = car_forecast(facts(150, price=0), shown)
    assert (one.spent, one.left, one.calls_per_day) == (150, 450, pytest.approx(10))
    assert (one.interval, one.standing, one.price) == (DAY / 10, Standing.POLLED, None)
    asleep = car_forecast(facts(0, standing=Standing.SILENT), shown)
    assert (asleep.calls_per_day, asleep.interval) == (0, None)


# What limits, and what would help


def test_the_brands_limit() -> None:
    tesla = facts(45, most_per_s=3 / 86400)
    shown = forecast(tesla, tesla, facts())
    assert shown.binding is Binding.BRAND
    assert forecast(tesla).expected == 90
    assert forecast(tesla).gain_percent == 0
    assert "as often as their brands allow" in advice(shown)
    assert "buys nothing" in advice(forecast(tesla))
    assert "buys only about" in advice(forecast(tesla, tesla, facts(price=2e6)))


def test_the_bucket_of_smartcars_default() -> None:
    """2 requests a minute are 86,400 in 30 days: 500 calls are too many for the 173rd car."""
    few, many = [facts(250)] * 172, [facts(250)] * 173
    assert forecast(*few, calls=500, refill_per_minute=2).binding is Binding.PLAN
    shown = forecast(*many, calls=500, refill_per_minute=2)
    assert shown.binding is Binding.BUCKET
    assert "buys nothing" in advice(shown)
    assert "2 requests a minute, 16.6 a day for each car" in advice(shown)


def test_who_nearly_spends_the_plan_is_held_back_by_it() -> None:
    late = START + 28 * DAY
    assert forecast(facts(540), now=late).binding is Binding.PLAN, "although much is left for two days"
    assert forecast(facts(500), now=late).binding is Binding.NEED


def test_the_need() -> None:
    shown = forecast(facts(100))
    assert (shown.binding, shown.gain_percent) == (Binding.NEED, 0)
    assert "buy nothing" in advice(shown)


@pytest.mark.parametrize(
    ("prices", "binding"),
    [
        ((COURTESY, COURTESY), Binding.NEED),
        ((1.05 * COURTESY, 1.05 * COURTESY), Binding.NEED),
        ((1.06 * COURTESY, 1.06 * COURTESY), Binding.BRAND),
        ((COURTESY, COURTESY, 1e5), Binding.NEED),
        ((COURTESY, 1e5, 1e5), Binding.BRAND),
        ((0.0, 0.0), Binding.BRAND),
    ],
)
def test_what_is_not_worth_a_call_is_not_held_back_by_the_brand(
    prices: tuple[float, ...], binding: Binding
) -> None:
    """A plan so large that the brand's floor is what it would come to."""
    cars = [facts(45, most_per_s=3 / 86400, price=price) for price in prices]
    shown = forecast(*cars)
    assert shown.binding is binding
    assert ("as often as it is worth" in advice(shown)) is (binding is Binding.NEED)
    assert ("brands" in advice(shown)) is (binding is Binding.BRAND)


def test_the_least_worth_does_not_hold_who_has_nothing_left() -> None:
    spent = facts(600, standing=Standing.SPENT, price=COURTESY)
    assert forecast(spent, spent).binding is Binding.PLAN


@pytest.mark.parametrize(("pushed", "help_"), [(0, True), (1, True), (2, False), (5, False)])
def test_webhooks_are_not_advised_to_who_has_them(pushed: int, help_: bool) -> None:
    fed = [facts(1, standing=Standing.PUSHED)] * pushed
    held = [facts(45, most_per_s=3 / 86400)] * 2
    by_brand = forecast(*fed, *held)
    by_bucket = forecast(*fed, facts(), facts(), refill_per_minute=0.01)
    assert (by_brand.binding, by_bucket.binding) == (Binding.BRAND, Binding.BUCKET)
    assert ("ebhooks" in advice(by_brand)) is help_
    assert ("ebhooks" in advice(by_bucket)) is help_
    assert "another application" in advice(by_bucket)


def test_the_plan() -> None:
    n = 600 / (30 * 86400)  # so that a price of 4 / n means an error of 4 percentage points
    assert advice(forecast(facts(price=4 / n))) == (
        "1200 calls per vehicle and month instead of 600 would lower the mean error of the state of charge "
        "by about 1.4 percentage points."
    )
    assert "raise the mean error of the state of charge by about 2.8" in advice(
        forecast(facts(price=4 / n), other_calls=300)
    )
    assert "not known yet" in advice(forecast(facts(price=0)))
    assert forecast(facts(price=0)).price is None
    assert forecast(facts(price=0)).gain_percent is None


# A car's facts


def standing_of(car: Car, *, spent: int = 0, **given_terms: object) -> Standing:
    return facts_of(car, builders.profile(), spent, 1.0, terms(**given_terms), MIDDLE).standing


def test_what_the_plan_is_to_a_car() -> None:
    state = builders.state(soc=50, measured_at=MIDDLE - HOUR)
    car = builders.car(state=state, due=MIDDLE + HOUR)
    assert standing_of(car) is Standing.POLLED
    assert standing_of(car, spent=599) is Standing.POLLED
    assert standing_of(car, spent=600) is Standing.SPENT
    thirsty = replace(car, schedule=replace(car.schedule, calls_per_poll=3))
    assert standing_of(thirsty, spent=598) is Standing.SPENT
    assert standing_of(car, spent=600, pool_spent=600, cars=2) is Standing.POLLED
    assert standing_of(car, spent=10, pool_spent=1200, cars=2) is Standing.SPENT
    assert standing_of(replace(car, schedule=replace(car.schedule, pushed_at=MIDDLE))) is Standing.PUSHED
    assert standing_of(builders.car(state=state)) is Standing.NOT_ASKED
    lost = Trouble("consent_lost", "PERMISSION", "", MIDDLE)
    assert standing_of(replace(car, trouble=lost)) is Standing.NOT_ASKED


def test_a_car_of_which_nothing_was_heard_for_long() -> None:
    old = builders.state(soc=50, measured_at=MIDDLE - SILENT_FOR - HOUR)
    assert standing_of(builders.car(state=old, due=MIDDLE)) is Standing.SILENT
    lively = builders.state(soc=50, measured_at=MIDDLE - SILENT_FOR + HOUR)
    assert standing_of(builders.car(state=lively, due=MIDDLE)) is Standing.POLLED
    car = builders.car(due=MIDDLE)
    assert standing_of(car) is Standing.SILENT, "enrolled for weeks, and never answered"
    new = replace(car, vehicle=replace(car.vehicle, enrolled_at=MIDDLE - DAY))
    assert standing_of(new) is Standing.POLLED


def test_the_rest_of_a_cars_facts() -> None:
    profile = builders.profile(limit=CallLimit(6, DAY))
    old = builders.car(due=MIDDLE)
    found = facts_of(old, profile, 7, 2.5, terms(), MIDDLE)
    assert (found.spent, found.price, found.since, found.calls_per_poll) == (7, 2.5, START, 1)
    assert found.next_poll == MIDDLE
    assert found.most_per_s == pytest.approx(6 / 86400)
    new = replace(old, vehicle=replace(old.vehicle, enrolled_at=MIDDLE - HOUR))
    assert facts_of(new, profile, 7, 2.5, terms(), MIDDLE).since == MIDDLE - HOUR
    paged = replace(old, schedule=replace(old.schedule, calls_per_poll=3))
    free = facts_of(paged, builders.profile(floor=5 * timedelta(minutes=1)), 7, 2.5, terms(), MIDDLE)
    assert free.most_per_s == pytest.approx(3 / 300)


# Whatever the figures


any_car = st.builds(
    facts,
    st.integers(0, 2000),
    since=st.timedeltas(timedelta(), timedelta(days=29)).map(lambda ago: START + ago),
    standing=st.sampled_from(Standing),
    calls_per_poll=st.integers(1, 4),
    most_per_s=st.floats(1e-6, 1),
    price=st.floats(0, 1e7),
    next_poll=st.none() | st.timedeltas(-DAY, timedelta(days=40)).map(lambda ahead: START + ahead),
)


@given(
    cars=st.lists(any_car, max_size=6),
    now=st.timedeltas(timedelta(), 30 * DAY - timedelta(seconds=1)).map(lambda ago: START + ago),
    other_calls=st.none() | st.integers(1, 10_000),
    given_terms=st.fixed_dictionaries(
        {
            "calls": st.integers(1, 1000),
            "pool_spent": st.none() | st.integers(0, 10_000),
            "refill_per_minute": st.floats(0.001, 100),
            "tokens": st.floats(-1, 120),
        }
    ),
)
def test_laws(
    cars: list[CarFacts], now: datetime, other_calls: int | None, given_terms: dict[str, object]
) -> None:
    cars = [replace(car, since=min(car.since, now)) for car in cars]
    shown = forecast(*cars, now=now, other_calls=other_calls, **given_terms)
    assert shown.spent <= shown.expected <= shown.spent + shown.left
    if all(car.spent <= shown.terms.budget.calls_per_vehicle for car in cars) and shown.spent <= shown.plan:
        assert shown.expected <= shown.plan
    assert 0 <= shown.scale <= 1
    assert shown.run_out <= shown.cars <= len(cars)
    assert (shown.first_out is None) is (shown.run_out == 0)
    assert shown.first_out is None or now <= shown.first_out < END
    asked = [car for car in cars if car.standing is not Standing.NOT_ASKED]
    some_left = all(shown.terms.left(car.spent) >= 1 for car in asked) and not shown.standings[Standing.SPENT]
    if shown.first_out is not None and some_left:
        assert shown.first_out >= min(car.next_poll or now for car in asked)
    assert shown.interval is None or shown.interval > timedelta()
    if shown.gain_percent is not None and shown.other_calls >= shown.terms.budget.calls_per_vehicle:
        assert shown.gain_percent >= 0
    days_left = (END - now) / DAY
    each = [car_forecast(car, shown) for car in cars]
    coming = sum(one.calls_per_day for one in each) * days_left
    assert coming == pytest.approx(shown.expected - shown.spent, abs=0.51)
    rate = shown.terms.budget.refill_per_minute * 1440
    assert coming <= max(shown.terms.tokens, 0) + rate * days_left + 1e-6
    assert advice(shown).endswith(".")

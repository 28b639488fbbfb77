"""What the policy learns, each in a small life in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from datetime import timedelta
from itertools import pairwise

import pytest

from evbatteryd.domain.ledger import Budget, Period
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.habits import DEPARTURE
from evbatteryd.domain.policy.outlook import Hint
from tests import builders

from .lives import HOUR, START, Cloud, Desk, People, at_rest, berlin, desk_of

DAY = timedelta(days=1)
MONTHLY = Budget(calls_per_vehicle=500)
RICH = Budget(calls_per_vehicle=1000)


def people(seed: int = 6, **ways: object) -> People:
    return People(random.Random(seed), **ways)  # type: ignore[arg-type]


def by_day(desk: Desk, number: int = 1) -> list[int]:
    """Polls on each day since the start."""
    counts = Counter((asked.at - START).days for asked in desk.asked[number])
    return [counts[day] for day in range((desk.now - START).days)]


# --------------------------------------------------------------------------------------------------- charges
@pytest.mark.parametrize("period", [300.0, 600.0, 900.0, 1800.0, 3600.0])
def test_how_often_a_brand_uploads_is_found_from_looks(period: float) -> None:
    desk = desk_of(Cloud(people(5).live(40), period), RICH)
    desk.run(30 * DAY)
    brand = desk.lore.brand("acme")
    assert brand.regular
    assert brand.period == period


def test_a_brand_that_uploads_at_no_fixed_times_is_not_taken_for_regular() -> None:
    cloud, dice = Cloud(people(5).live(40), 60.0), random.Random(1)
    cloud.uploads = [upload for upload in cloud.uploads if dice.random() < 0.08 or not upload.charging]
    cloud._there = [upload.there for upload in cloud.uploads]
    desk = desk_of(cloud, RICH)
    desk.run(30 * DAY)
    assert len(desk.lore.brand("acme").gaps) >= 6
    assert not desk.lore.brand("acme").regular


def test_another_rhythm_of_uploads_is_learnt_anew() -> None:
    life = people(5).live(80)
    desk = desk_of(Cloud(life, 600.0), RICH)
    desk.run(40 * DAY)
    assert desk.lore.brand("acme").period == 600.0
    desk.clouds[1] = Cloud(life, 1800.0)
    desk.run(35 * DAY)
    assert desk.lore.brand("acme").regular
    assert desk.lore.brand("acme").period == 1800.0


def test_a_look_at_a_charge_comes_just_after_an_upload() -> None:
    desk = desk_of(Cloud(people(5).live(50), 1800.0), RICH)
    desk.run(25 * DAY)
    known, ages = desk.now, []
    desk.run(20 * DAY)
    for asked in desk.asked[1]:
        if asked.at > known and "just after the next upload" in asked.why:
            answered = asked.at.timestamp() + 8.0
            ages.append(answered - desk.clouds[1].newest(answered).measured)
    assert len(ages) > 20
    soon = sum(age < 300 for age in ages)
    assert soon > 0.45 * len(ages)  # by chance it were one in six


@pytest.mark.parametrize(("slope", "target"), [(5.0, 80.0), (10.0, 100.0), (20.0, 70.0), (35.0, 90.0)])
def test_how_fast_a_car_charges_and_how_far_is_learnt(slope: float, target: float) -> None:
    desk = desk_of(Cloud(people(slope=slope, target=target).live(50)), MONTHLY)
    desk.run(45 * DAY)
    habits = desk.habits()
    assert habits.slope * HOUR == pytest.approx(slope, rel=0.12)
    assert habits.target == pytest.approx(target, abs=0.6)


@pytest.mark.parametrize("late", [0.0, 330.0])
def test_the_end_of_a_charge_is_looked_for_when_the_brand_tells_of_it(late: float) -> None:
    """Some upload minutes after something has ended: Hyundai and Kia five after the ignition is off."""
    cloud = Cloud(people(5).live(70), 300.0, ends_late=late)
    desk = desk_of(cloud, MONTHLY)
    desk.run(30 * DAY)
    assert late - 60 < desk.lore.brand("acme").ends_late < late + 150
    known = desk.now
    desk.run(38 * DAY)
    lasts = [
        asked.at.timestamp() + 8.0
        for asked in desk.asked[1]
        if "it should have reached" in asked.why and asked.at > known
    ]
    assert len(lasts) > 15
    assert sum(not cloud.newest(at).charging for at in lasts) > 0.6 * len(lasts)


def test_no_look_at_a_charge_comes_just_before_its_end() -> None:
    """It would make the next one, that finds the end, be worth nothing."""
    cloud = Cloud(people(5).live(70), 180.0)
    desk = desk_of(cloud, MONTHLY)
    desk.run(68 * DAY)
    apart = []
    for stretch, following in pairwise(cloud.life.stretches):
        if stretch.charging and stretch.at > (START + 20 * DAY).timestamp():
            times = [asked.at.timestamp() for asked in desk.asked[1]]
            during = [at for at in times if stretch.at < at < following.at]
            if during:
                apart.append((following.at - during[-1]) / (following.at - stretch.at))
    assert len(apart) > 20
    assert sorted(apart)[len(apart) // 4] > 0.2  # at any moment of the charge: 0.1 with two looks at it


@pytest.mark.parametrize(
    ("known_days", "kw", "expected"), [(0, 2.2, 2.6), (0, 150.0, 180.0), (45, 150.0, 180.0)]
)
def test_the_power_that_a_car_tells_is_the_slope_of_its_charge(
    known_days: int, kw: float, expected: float
) -> None:
    """Until two looks have shown how fast it is; with 75 kWh and what is lost on the way."""
    desk = desk_of(Cloud(people(slope=10.0).live(60)), MONTHLY)
    desk.run(known_days * DAY)
    car, at = desk.cars[1], desk.now
    state = builders.state(
        soc=30,
        charging=True,
        plugged_in=True,
        charge_power_kw=kw,
        capacity_kwh=75,
        measured_at=at,
        fetched_at=at,
    )
    found = polling.after_answer(car, state, desk.profile, desk.share(1), desk.lore, at)
    assert found.trend is not None
    assert found.trend.percent_per_hour == pytest.approx(expected, rel=0.15)


def test_a_power_that_still_rises_does_not_outweigh_what_is_known_of_a_car() -> None:
    desk = desk_of(Cloud(people(slope=10.0).live(60)), MONTHLY)
    desk.run(45 * DAY)
    at = desk.now
    state = builders.state(
        soc=30,
        charging=True,
        plugged_in=True,
        charge_power_kw=1,
        capacity_kwh=75,
        measured_at=at,
        fetched_at=at,
    )
    found = polling.after_answer(desk.cars[1], state, desk.profile, desk.share(1), desk.lore, at)
    assert found.trend is not None
    assert found.trend.percent_per_hour == pytest.approx(10.0, rel=0.12)


def test_two_cars_of_one_brand_each_have_their_own_slope() -> None:
    desk = Desk(builders.profile(), MONTHLY)
    for slope in (6.0, 24.0):
        desk.enrol(Cloud(people(slope=slope).live(45)))
    desk.run(40 * DAY)
    assert desk.habits(1).slope * HOUR == pytest.approx(6.0, rel=0.12)
    assert desk.habits(2).slope * HOUR == pytest.approx(24.0, rel=0.12)


def test_a_new_target_is_taken_over() -> None:
    first, then = people(target=80.0).live(30), people(target=70.0).live(60, soc=60.0)
    stretches = [one for one in first.stretches if one.at < (START + 30 * DAY).timestamp()]
    stretches += [one for one in then.stretches if one.at >= (START + 30 * DAY).timestamp()]
    desk = desk_of(Cloud(type(first)(stretches)), MONTHLY)
    desk.run(30 * DAY)
    assert desk.habits().target == 80.0
    desk.run(29 * DAY)
    assert desk.habits().target == 70.0


def test_looks_that_lie_days_apart_are_not_taken_for_one_charge() -> None:
    slopes = []
    for plan in (16, 30, 60):
        for seed in range(3):
            desk = desk_of(Cloud(people(seed, slope=10.0).live(366)), Budget(calls_per_vehicle=plan))
            for _ in range(12):
                desk.run(30 * DAY)
                slopes.append(desk.habits().slope * HOUR)
    assert min(slopes) > 7.0


def test_a_charge_that_waits_for_its_timer_is_looked_for_at_its_hour() -> None:
    desk = desk_of(Cloud(people(timer=23.0).live(60)), MONTHLY)
    desk.run(50 * DAY)
    starts = desk.habits().starts
    assert sum(starts) > 4
    assert starts[22] + starts[23] + starts[0] > 0.9 * sum(starts)
    patient = desk_of(Cloud(people(timer=None).live(60)), MONTHLY)
    patient.run(50 * DAY)
    assert sum(patient.habits().starts) < 2
    assert patient.habits().prompt / patient.habits().plugins > 0.6 > 0.3
    assert desk.habits().prompt / desk.habits().plugins < 0.3


def test_an_hour_of_a_timer_is_local() -> None:
    desk = Desk(builders.profile(), MONTHLY, now=START + 120 * DAY, offset=berlin)
    desk.enrol(Cloud(people(timer=2.0, offset=berlin).live(180)))
    desk.run(50 * DAY)
    starts = desk.habits().starts
    assert starts[1] + starts[2] + starts[3] > 0.9 * sum(starts) > 3


@pytest.mark.parametrize("hour", [5, 10])
def test_when_a_car_sets_out_is_learnt(hour: int) -> None:
    desk = desk_of(Cloud(people(leaves=hour + 0.4, plugs_in_below=90.0).live(60)), MONTHLY)
    desk.run(50 * DAY)
    rates = desk.lore.rates(desk.habits(), DEPARTURE)
    assert max(range(24), key=rates.__getitem__) == hour
    assert rates[hour] > 2 * desk.lore.average(DEPARTURE)[hour] / HOUR or rates[hour] * HOUR > 0.5


# ----------------------------------------------------------------------------------------------------- plans
@pytest.mark.parametrize("calls", [120, 500, 1000])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_calls_of_a_month_last_to_its_last_day_and_are_used(calls: int, seed: int) -> None:
    desk = desk_of(Cloud(people(seed).live(125)), Budget(calls_per_vehicle=calls))
    desk.run(121 * DAY)  # January to April
    assert desk.turned_away == []
    for spent in desk.periods()[:4]:
        assert 0.9 * calls <= spent <= calls
    days = by_day(desk)
    for last in (30, 59, 90, 120):
        assert sum(days[last - 2 : last + 1]) >= 0.5 * 3 * calls / 31


def test_no_month_begins_with_a_burst() -> None:
    desk = desk_of(Cloud(people(1).live(100)), MONTHLY)
    desk.run(92 * DAY)
    for first in (31, 60):
        assert sum(by_day(desk)[first : first + 3]) < 2 * 3 * 500 / 30


def test_a_car_that_comes_late_in_the_month_has_its_calls_until_the_month_ends() -> None:
    desk = Desk(builders.profile(), MONTHLY, now=START + 20 * DAY)
    desk.enrol(Cloud(people().live(100)))
    desk.run(11 * DAY + 10 * DAY)
    spent, afterwards = desk.periods()
    assert 250 <= spent <= 500
    assert min(by_day(desk)[20:31]) >= 10
    assert 100 <= afterwards <= 250  # and February's are not spent like January's


def test_a_plan_that_is_doubled_amid_the_month_is_used() -> None:
    desk = desk_of(Cloud(people(8).live(100)), MONTHLY)
    desk.run(45 * DAY)
    before = sum(by_day(desk)[35:45]) / 10
    desk.budget = RICH
    desk.run(15 * DAY)
    assert 900 <= desk.periods()[1] <= 1000
    assert sum(by_day(desk)[46:60]) / 14 > 1.7 * before


def test_a_plan_that_is_halved_amid_the_month_lasts() -> None:
    desk = desk_of(Cloud(people(8).live(100)), RICH)
    desk.run(40 * DAY)  # nine days into February: some 300 of what is now 500
    desk.budget = MONTHLY
    desk.run(20 * DAY)
    assert 450 <= desk.periods()[1] <= 500
    assert min(by_day(desk)[42:58]) >= 2


def test_ten_days_away_leave_more_for_the_rest_and_no_burst() -> None:
    desk = desk_of(Cloud(people(8).live(100)), MONTHLY)
    desk.run(38 * DAY)
    desk.restart(away=10 * DAY)
    desk.run(12 * DAY)
    days = by_day(desk)
    assert sum(days[38:48]) == 0
    assert max(days[48:60]) < 4 * 500 / 29
    assert desk.periods()[1] > 420
    assert desk.turned_away == []


def test_what_was_learnt_outlives_a_restart() -> None:
    going, restarted = (desk_of(Cloud(people(3).live(30)), MONTHLY) for _ in range(2))
    for _ in range(10):
        going.run(2 * DAY)
        restarted.run(2 * DAY)
        restarted.restart()
    assert restarted.habits().slope == pytest.approx(going.habits().slope, rel=0.05)
    assert len(restarted.asked[1]) == pytest.approx(len(going.asked[1]), rel=0.05)
    assert restarted.cars[1].trend is not None


def test_a_pool_goes_where_something_happens() -> None:
    budget = Budget(calls_per_vehicle=240, pooled=True, refill_per_minute=60)
    desk = Desk(builders.profile(), budget)
    for seed in range(50):
        still = seed % 5 == 0
        desk.enrol(Cloud(at_rest(50.0) if still else people(seed).live(33)))
    desk.run(31 * DAY - timedelta(seconds=1))
    assert 0.9 * 240 * 50 <= desk.spent_by_all <= 240 * 50
    assert desk.turned_away == []
    calls = {number: len(asked) for number, asked in desk.asked.items()}
    still = [calls[number] for number in calls if number % 5 == 1]
    moving = [calls[number] for number in calls if number % 5 != 1]
    assert max(still) < 0.6 * min(moving)
    assert min(still) > 31  # nobody is forgotten
    days = [sum(by_day(desk, number)[day] for number in calls) for day in (1, 15, 29)]
    assert min(days) > 0.7 * max(days)


def test_a_plan_of_sixteen_calls_a_day_lasts_into_the_evening() -> None:
    desk = desk_of(Cloud(people(8).live(60)), Budget(calls_per_vehicle=16, period=Period.DAY))
    desk.run(40 * DAY)
    days = by_day(desk)
    assert max(days) <= 16
    assert sum(days[3:]) > 0.8 * 16 * len(days[3:])
    late = {(asked.at - START).days for asked in desk.asked[1] if asked.at.hour >= 18}
    assert len(late) >= 39
    assert desk.turned_away == []


def test_the_price_follows_the_plan() -> None:
    prices = []
    for calls in (120, 500, 1000):
        desk = desk_of(Cloud(people(2).live(45)), Budget(calls_per_vehicle=calls))
        desk.run(40 * DAY)
        prices.append(polling.price_of(desk.cars[1], desk.lore))
    assert prices[0] > 4 * prices[1] > 8 * prices[2]


def test_calls_are_kept_for_hints_until_the_last_day() -> None:
    """A pace that went wrong: all but the reserve is gone in mid-month."""
    desk = desk_of(Cloud(people(2).live(45)), MONTHLY)
    desk.run(10 * DAY)
    reserve = desk.share().reserve
    assert reserve == 5
    desk.spent[START, 1] = 500 - reserve - 1
    desk.run(10 * DAY)
    assert desk.share().calls_left == reserve
    assert "but for hints and commands" in desk.cars[1].schedule.reason
    desk.run(timedelta(hours=12))
    assert desk.share().calls_left == reserve


def test_a_hint_on_an_ordinary_day_is_followed_within_minutes() -> None:
    desk = desk_of(Cloud(people(2).live(45)), Budget(calls_per_vehicle=120))
    desk.run(10 * DAY + timedelta(hours=3))
    before = desk.cars[1].schedule.due
    assert before is not None
    assert before - desk.now > timedelta(minutes=40)
    hinted = desk.hint(Hint.PLUGGED_IN)
    assert hinted.at is not None
    assert hinted.at - desk.now < timedelta(minutes=20)
    assert "plugged in" in hinted.reason


def test_nothing_is_known_of_a_car_before_its_first_look() -> None:
    desk = desk_of(Cloud(at_rest(50.0)))
    assert polling.estimate(desk.cars[1], desk.profile, desk.lore, desk.now) is None
    assert desk.hint(Hint.PLUGGED_IN).at is None
    assert not desk.habits().known
    desk.run(timedelta(minutes=5))
    assert desk.habits().known

"""Odd cars and brands: parked for months, asleep, out of their fence, without a key, in steps, sold."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from evbatteryd.brands import load_profiles
from evbatteryd.domain.errors import Asleep, ConsentLost, SourceError
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.outlook import Hint

from .lives import HOUR, START, Cloud, Desk, Life, People, Stretch, Upload, at_rest, berlin, desk_of

DAY, WEEK = timedelta(days=1), timedelta(days=7)
PROFILES = load_profiles()
LEFT = 28
"""The day on which a car is parked for months."""
UNTRUSTED = 0.35
"""A share of hints that come true at which they are heard only now and then."""
MONTHLY = Budget(calls_per_vehicle=500)


def parked(brand: str, *, back: int | None = None, plan: Budget = MONTHLY) -> Desk:
    """A car that is driven for four weeks, and then stands, until day ``back``."""
    life = People(random.Random(3)).live(40)
    stretches = [one for one in life.stretches if one.at < (START + LEFT * DAY).timestamp()]
    if back is not None:
        begins = (START + back * DAY + timedelta(hours=9)).timestamp()
        stretches.append(Stretch(begins, stretches[-1].soc, -20 / HOUR))
        stretches.append(Stretch(begins + 0.5 * HOUR, stretches[-1].soc - 10.0))
    desk = desk_of(Cloud(Life(stretches)), plan, PROFILES[brand])
    desk.run(LEFT * DAY)
    return desk


def polls(desk: Desk, begin: datetime, span: timedelta) -> int:
    return sum(begin <= asked.at < begin + span for asked in desk.asked[1])


# ----------------------------------------------------------------------------------------- parked for months
def test_a_parked_car_is_asked_less_and_less() -> None:
    desk = parked("renault")
    desk.run(120 * DAY)
    weeks = [polls(desk, START + LEFT * DAY + week * WEEK, WEEK) for week in range(17)]
    usual = polls(desk, START + WEEK, 3 * WEEK) / 3
    assert weeks[8] < 0.5 * usual
    assert weeks[16] < 0.35 * usual
    assert weeks[16] >= 1
    assert sum(weeks[:2]) > sum(weeks[4:8]) >= sum(weeks[12:16])


def test_a_car_that_is_parked_for_months_is_hardly_asked() -> None:
    desk = parked("renault")
    desk.run(120 * DAY)
    assert polls(desk, desk.now - 4 * WEEK, 4 * WEEK) <= 4 * 7


def test_the_reason_says_for_how_long_a_car_was_silent() -> None:
    desk = parked("renault")
    desk.run(60 * DAY)
    why = desk.cars[1].schedule.reason
    assert re.match(r"silent for (5[0-9]|60) days", why)
    assert "parked for long" in why
    assert "until the first sign of life" in why


@pytest.mark.parametrize(
    ("brand", "sentence"),
    [
        ("chevrolet", "Chevrolet stops telling after some days without a trip"),
        ("bmw", "away from the address where BMW tells anything"),
    ],
)
def test_the_reason_names_what_the_brand_is_known_for(brand: str, sentence: str) -> None:
    desk = parked(brand)
    assert sentence not in desk.cars[1].schedule.reason
    desk.run(40 * DAY)
    assert sentence in desk.cars[1].schedule.reason


def test_a_car_that_falls_silent_is_not_called_silent_at_once() -> None:
    desk = parked("chevrolet")
    desk.run(timedelta(hours=30))
    assert not any("silent" in asked.then.reason for asked in desk.asked[1])


def test_the_first_news_wakes_the_policy() -> None:
    desk = parked("renault", back=LEFT + 60)
    desk.run(60 * DAY + timedelta(hours=9))
    before = polls(desk, desk.now - WEEK, WEEK)
    desk.run(WEEK)
    heard = next(a.at for a in desk.asked[1] if a.at > START + (LEFT + 60) * DAY and a.label == "new")
    assert polls(desk, heard, DAY) > 2 * before / 7
    afterwards = [asked.why for asked in desk.asked[1] if heard < asked.at < heard + DAY]
    assert not any("silent" in why for why in afterwards)


def test_a_hint_wakes_the_policy() -> None:
    desk = parked("renault", back=LEFT + 60)
    desk.run(60 * DAY + timedelta(hours=9, minutes=31))
    hinted = desk.hint(Hint.CHARGING)
    assert hinted.at is not None
    assert hinted.at - desk.now < timedelta(minutes=15)
    told, at = desk.now, hinted.at
    desk.run(timedelta(hours=1))
    heard = next(asked for asked in desk.asked[1] if asked.at >= told)
    assert heard.at == at
    assert heard.label == "new"
    assert "silent" not in desk.cars[1].schedule.reason


def test_a_webhook_wakes_the_policy() -> None:
    desk = parked("renault", back=LEFT + 60)
    desk.run(60 * DAY + timedelta(hours=9))
    assert "silent" in desk.cars[1].schedule.reason
    assert desk.habits().silent > 3.0
    desk.now += timedelta(hours=1)
    desk.push()
    assert desk.habits().silent < 0.1
    found = polling.after_answer(
        desk.cars[1], desk.cars[1].state, desk.profile, desk.share(), desk.lore, desk.now
    )
    assert found.wanted is not None
    assert "silent" not in found.wanted.reason


def test_a_car_that_sleeps_is_not_taken_for_broken() -> None:
    asleep = (START + 10 * DAY, START + 20 * DAY)

    def mishap(_: int, now: datetime) -> SourceError | None:
        return Asleep("VEHICLE_STATE:ASLEEP", "asleep") if asleep[0] <= now < asleep[1] else None

    desk = desk_of(Cloud(at_rest(60.0)), MONTHLY, PROFILES["chevrolet"], mishap=mishap)
    desk.run(19 * DAY)
    assert desk.cars[1].schedule.reason.startswith("asleep for 7 d")
    assert 4 <= polls(desk, START + 12 * DAY, WEEK) <= 14
    desk.run(3 * DAY)
    assert desk.asked[1][-1].label == "unchanged"


def test_a_car_that_was_sold_is_not_asked_again() -> None:
    sold = START + 10 * DAY

    def mishap(_: int, now: datetime) -> SourceError | None:
        return ConsentLost("PERMISSION", "403") if now >= sold else None

    desk = desk_of(Cloud(People(random.Random(1)).live(40)), MONTHLY, mishap=mishap)
    desk.run(30 * DAY)
    assert desk.asked[1][-1].label == "consent_lost"
    assert polls(desk, sold, 30 * DAY) == 1
    assert desk.cars[1].schedule.due is None
    assert "consent" in desk.cars[1].schedule.reason


def test_a_night_of_maintenance_costs_little_and_is_got_over() -> None:
    down = (START + 10 * DAY, START + 10 * DAY + timedelta(hours=8))
    deaf = [(down[0].timestamp(), down[1].timestamp())]
    life = People(random.Random(2)).live(40)

    def mishap(_: int, now: datetime) -> SourceError | None:
        return SourceError("SERVER:INTERNAL", "maintenance") if down[0] <= now < down[1] else None

    desk = desk_of(Cloud(life, deaf=deaf), MONTHLY, mishap=mishap)
    desk.run(30 * DAY)
    assert polls(desk, down[0], down[1] - down[0]) <= 12
    assert polls(desk, down[1], DAY) >= 5


# --------------------------------------------------------------------------------------------------- Tesla
class Keyless(Cloud):
    """A Tesla without Smartcar's virtual key: read once in eight hours, until it streams."""

    def __init__(self, life: Life, until: datetime) -> None:
        super().__init__(life, 300.0)
        read, at, dice = list[Upload](), life.stretches[0].at, random.Random(1)
        while at < until.timestamp():
            soc, stretch = life.at(at)
            read.append(Upload(at + 30.0, at, float(round(soc)), stretch.charging, stretch.plugged))
            at += 8 * HOUR + dice.uniform(0, 20)
        self.uploads = read + [one for one in self.uploads if one.measured >= until.timestamp()]
        self._there = [one.there for one in self.uploads]


def tesla(without_key: timedelta) -> Desk:
    life = People(random.Random(3)).live(60)
    return desk_of(Keyless(life, START + without_key), MONTHLY, PROFILES["tesla"])


def test_a_tesla_without_virtual_key_is_asked_once_in_eight_hours() -> None:
    desk = tesla(40 * DAY)
    desk.run(30 * DAY)
    assert polls(desk, START + 10 * DAY, 20 * DAY) <= 20 * 6
    keyless = [asked for asked in desk.asked[1] if "without Smartcar's virtual key" in asked.why]
    assert len(keyless) > 40
    assert sum(asked.label == "new" for asked in keyless) > 0.8 * len(keyless)


def test_hardly_a_look_at_a_tesla_without_virtual_key_is_for_nothing() -> None:
    desk = tesla(40 * DAY)
    desk.run(30 * DAY)
    assert polls(desk, START + 10 * DAY, 20 * DAY) <= 20 * 3.5


def test_a_tesla_that_has_got_its_key_is_asked_like_others() -> None:
    desk = tesla(20 * DAY)
    desk.run(20 * DAY)
    before = polls(desk, START + 12 * DAY, WEEK)
    desk.run(20 * DAY)
    assert polls(desk, START + 30 * DAY, WEEK) > 2 * before
    assert not any("virtual key" in asked.why for asked in desk.asked[1] if asked.at > START + 22 * DAY)


def test_a_tesla_that_streams_is_never_taken_for_one_without_key() -> None:
    desk = tesla(timedelta())
    desk.run(30 * DAY)
    assert not any("virtual key" in asked.why for asked in desk.asked[1])


# ------------------------------------------------------------------------------------------- Hyundai and Kia
@pytest.mark.parametrize("brand", ["hyundai", "kia"])
def test_a_brand_of_steps_is_asked_just_after_one(brand: str) -> None:
    cloud = Cloud(People(random.Random(3)).live(70), steps=10.0)
    desk = desk_of(cloud, MONTHLY, PROFILES[brand])
    desk.run(60 * DAY)
    late = [
        asked.at.timestamp() - cloud.newest(asked.at.timestamp()).measured
        for asked in desk.asked[1]
        if "just after the next 10 % step" in asked.why and asked.at > START + 15 * DAY
    ]
    assert len(late) > 15
    assert sorted(late)[len(late) // 2] < 10 * 60  # of an hour between two


def test_a_rolling_limit_is_not_used_up_in_the_first_hours_of_a_new_life() -> None:
    """Twenty calls at once would leave none for half a day, and the charge in it."""
    life = People(random.Random(3)).live(60)
    awhile = [one for one in life.stretches if one.at < (START + LEFT * DAY).timestamp()]
    begins = START + 42 * DAY
    cloud = Cloud(Life(awhile + [one for one in life.stretches if one.at > begins.timestamp()]), steps=10.0)
    desk = desk_of(cloud, Budget(calls_per_vehicle=900), PROFILES["kia"])
    desk.run(55 * DAY)
    woken = next(one.at for one in desk.asked[1] if one.at > begins and one.label == "new")
    asked = [one.at for one in desk.asked[1] if one.at >= woken]
    by_day = [later - at for at, later in pairwise(asked) if 6 <= at.hour < 22]
    assert len(by_day) > 100
    assert max(by_day) < timedelta(hours=3.5)


def test_a_brand_that_may_be_woken_is_asked_less_than_one_that_is_not() -> None:
    """Where the plan is no bound, the 12 V battery is."""
    rich, counts = Budget(calls_per_vehicle=20_000), []
    for quirks in (frozenset(), PROFILES["nissan"].quirks):
        desk = desk_of(Cloud(at_rest(60.0)), rich, replace(PROFILES["nissan"], quirks=quirks))
        desk.run(20 * DAY)
        counts.append(len(desk.asked[1]))
    assert counts[1] < 0.6 * counts[0]


# ---------------------------------------------------------------------------------------------- wall boxes
def test_a_lying_wall_box_loses_its_trust_and_an_honest_one_keeps_it() -> None:
    desk = desk_of(Cloud(at_rest(50.0)), MONTHLY)
    desk.run(10 * DAY)
    for _ in range(10):
        desk.hint(Hint.CHARGING)
        desk.run(timedelta(hours=6))
    assert desk.habits().trust < UNTRUSTED
    desk.hint(Hint.CHARGING)
    desk.run(timedelta(minutes=15))
    refused = desk.hint(Hint.CHARGING)
    assert refused.at is None
    assert "seldom found true" in refused.reason


def _chattering(seed: int, every: timedelta) -> int:
    desk, dice = desk_of(Cloud(at_rest(50.0)), MONTHLY), random.Random(seed)
    desk.run(5 * DAY)
    for _ in range(int(10 * DAY / every)):
        desk.hint(dice.choice([Hint.PLUGGED_IN, Hint.CHARGING, Hint.ARRIVED, Hint.UNPLUGGED]))
        desk.run(every)
    return polls(desk, START, 15 * DAY)


def test_a_chattering_wall_box_cannot_burn_the_budget() -> None:
    """It may spend what the plan would have bought anyway, and hardly a day's calls more."""
    for every in (timedelta(minutes=2), timedelta(minutes=20)):
        assert _chattering(1, every) <= 16.5 * 500 / 31


def test_a_wall_box_that_is_honest_again_is_believed_again() -> None:
    life = People(random.Random(9), plugs_in_below=80.0).live(60)
    desk = desk_of(Cloud(life), Budget(calls_per_vehicle=800))
    desk.run(5 * DAY)
    for _ in range(14):
        desk.hint(Hint.CHARGING)
        desk.run(timedelta(hours=5))
    low = desk.habits().trust
    assert low < UNTRUSTED
    now = desk.now.timestamp()
    starts = [one for one in life.stretches if one.charging and one.at > now]
    for stretch in starts[:30]:
        desk.run(START + timedelta(seconds=stretch.at - START.timestamp()) - desk.now)
        desk.hint(Hint.CHARGING)
    desk.run(DAY)
    assert desk.habits().trust > max(low + 0.2, UNTRUSTED)


def test_holidays_in_summer_time_end_with_the_first_trip() -> None:
    people = People(random.Random(4), offset=berlin, holidays=range(100, 121))
    desk = desk_of(Cloud(people.live(140)), MONTHLY, PROFILES["volvo"], offset=berlin)
    desk.run(140 * DAY)
    days = Counter((asked.at - START).days for asked in desk.asked[1])
    home = sum(days[day] for day in range(114, 121)) / 7
    again = sum(days[day] for day in range(124, 138)) / 14
    assert home < 0.75 * again

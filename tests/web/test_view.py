"""How a car is worded."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from evbatteryd.domain.fleet import Trouble
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.policy.outlook import Estimate
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.reading import ChargeState, Signal, Value
from evbatteryd.web import view
from tests.fakes import START
from tests.web.builders import HOUR, MINUTE, PROFILE, car, estimate, rising


@pytest.mark.parametrize(
    ("values", "activity", "words"),
    [
        ({}, Activity.PARKED, "Not known yet"),
        ({Signal.CAPACITY: 52.0}, Activity.PARKED, "Not known yet"),
        ({Signal.SOC: 57.0}, Activity.PARKED, "Parked"),
        ({Signal.SOC: 57.0}, Activity.DRIVING, "Driving"),
        ({Signal.PLUGGED_IN: True}, Activity.DRIVING, "Plugged in"),
        ({Signal.PLUGGED_IN: False}, Activity.PARKED, "Parked"),
        ({Signal.CHARGE_STATE: ChargeState.FULLY_CHARGED}, Activity.PARKED, "Fully charged"),
        ({Signal.CHARGING: True}, Activity.CHARGING, "Charging"),
        ({Signal.CHARGING: True, Signal.CHARGE_POWER: 7.44}, Activity.CHARGING, "Charging, 7.4 kW"),
        ({Signal.CHARGING: True, Signal.CHARGE_POWER: 49.7}, Activity.CHARGING, "Charging, 50 kW"),
        ({Signal.CHARGING: False, Signal.CHARGE_POWER: 0.0}, Activity.PARKED, "Parked"),
    ],
)
def test_what_a_car_does(values: dict[Signal, Value], activity: Activity, words: str) -> None:
    assert view.doing(car(values=values, activity=activity)).words == words


def test_when_charging_ends() -> None:
    charging = car(values={Signal.CHARGING: True, Signal.TIME_TO_FULL: 5400.0})
    assert view.doing(charging).detail == "full in 1 h 30 min"


def test_a_car_whose_make_has_no_profile_keeps_its_make() -> None:
    row = view.row(car(make="RARE BADGE", model=None), PROFILE, Freshness.FRESH)
    assert row.what == "Rare Badge · 2024"


def test_a_badge_is_not_said_twice() -> None:
    named = car(make="RARE BADGE", model="One")
    badge = replace(named, vehicle=replace(named.vehicle, name="Rare Badge One"))
    own = replace(named, vehicle=replace(named.vehicle, name="Blue car"))
    assert view.row(badge, PROFILE, Freshness.FRESH).what == "2024"
    assert view.row(own, PROFILE, Freshness.FRESH).what == "Rare Badge One · 2024"


def test_what_is_not_known_is_null_in_json() -> None:
    told = view.as_json(car(values={}, due=None, model=None), Freshness.STALE, None, START)
    for key in ("soc", "range_km", "charging", "plugged_in", "measured_at", "age_s", "next_poll", "trouble"):
        assert told[key] is None, key


def test_json_keeps_percent_km_and_kwh() -> None:
    values: dict[Signal, Value] = {
        Signal.SOC: 57.5,
        Signal.RANGE: 214.5,
        Signal.CAPACITY: 52.0,
        Signal.CHARGE_LIMIT: 80.0,
    }
    told = view.as_json(car(values=values, measured_at=START - 2 * MINUTE), Freshness.FRESH, None, START)
    assert [told[key] for key in ("soc", "range_km", "capacity_kwh", "charge_limit", "age_s")] == [
        57.5,
        214.5,
        52.0,
        80.0,
        120,
    ]


def test_nothing_personal_is_in_json() -> None:
    told = str(view.as_json(car(7), Freshness.FRESH, None, START) | view.consent_json(car(7)))
    for secret in ("user-7", "connection-7", "vehicle-7"):
        assert secret not in told


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(milliseconds=400), "just now"),
        (-5 * MINUTE, "just now"),
        (timedelta(seconds=40), "40 s ago"),
        (12 * MINUTE, "12 min ago"),
        (26 * HOUR, "26 h ago"),
    ],
)
def test_ago(span: timedelta, words: str) -> None:
    assert view.ago(START - span, START) == words


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (12 * MINUTE, "in 12 min"),
        (timedelta(), "now"),
        (-5 * MINUTE, "now"),
        (-8 * MINUTE, "overdue by 8 min"),
    ],
)
def test_ahead(span: timedelta, words: str) -> None:
    assert view.ahead(START + span, START) == words


@pytest.mark.parametrize(
    ("outcome", "title", "grave"),
    [
        ("unreachable", "No answer", False),
        ("asleep", "Asleep", False),
        ("consent_lost", "Consent lost", True),
        ("budget_spent", "The plan's calls are used up", True),
        ("something_new", "No reading", False),
    ],
)
def test_trouble_in_plain_words(outcome: str, title: str, grave: bool) -> None:
    plight = view.plight(Trouble(outcome, "TYPE:CODE", "what it means", START))
    assert (plight.title, plight.grave) == (title, grave)


# Estimates

CHARGING: dict[Signal, Value] = {Signal.SOC: 57.0, Signal.CHARGING: True}


def test_json_has_the_estimate_beside_the_measured_value() -> None:
    expecting = car(values=CHARGING, trend=rising(12.1))
    now = START + 30 * MINUTE
    told = view.as_json(expecting, Freshness.FRESH, estimate(expecting, now), now)
    without = view.as_json(expecting, Freshness.FRESH, None, now)
    fields = ("soc_estimate", "soc_estimate_low", "soc_estimate_high", "estimate_until")
    assert [told[field] for field in fields] == [63.0, 62.0, 65.0, START + 4 * HOUR]
    assert [without[field] for field in fields] == [None] * 4
    assert {key: value for key, value in told.items() if key not in fields} == {
        key: value for key, value in without.items() if key not in fields
    }


def test_a_guess_is_rounded_and_its_band_outwards() -> None:
    expecting = car(values=CHARGING)
    told = view.guess(expecting, Estimate(62.5, 60.9, 65.1, START + HOUR))
    assert told == view.Guess(soc=63, low=60, high=66, until=START + HOUR)


@pytest.mark.parametrize(
    ("values", "percent", "shown"),
    [
        ({Signal.SOC: 57.0}, 57.3, False),
        ({Signal.SOC: 57.0}, 57.5, True),
        (CHARGING, 57.0, True),
        ({Signal.RANGE: 200.0}, 57.0, False),
    ],
)
def test_a_guess_is_made_if_it_says_more_than_was_measured(
    values: dict[Signal, Value], percent: float, shown: bool
) -> None:
    found = view.row(
        car(values=values),
        PROFILE,
        Freshness.FRESH,
        Estimate(percent, percent - 1, percent + 1, START + HOUR),
    )
    assert (found.guess is not None) is shown
    assert found.soc == values.get(Signal.SOC)

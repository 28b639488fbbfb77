"""The fleet finds cars by id and by slug, and judges them by what troubles them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from evbatteryd.domain.cadence import Answered, Failed, Outcome
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    Asleep,
    BudgetSpent,
    ConsentLost,
    NothingYet,
    RateLimited,
    SourceError,
)
from evbatteryd.domain.fleet import Car, Fleet, Schedule, Trouble, facts_of
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.reading import Signal
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId

from .facts import ERRORS, GENEROUS, HOUR, NOW, PROFILE, state, told


def car(number: int = 1, slug: str = "zoe") -> Car:
    consent = Consent(application="home", connection_id="c", vehicle_ref="v", user_ref="u", make="EXAMPLE")
    vehicle = Vehicle(
        id=VehicleId(number), slug=slug, name=slug, brand="example", consent=consent, enrolled_at=NOW
    )
    return Car(
        vehicle=vehicle,
        schedule=Schedule(due=NOW, reason="newly enrolled"),
        state=state(told(Signal.SOC, 50.0)),
    )


def renamed(known: Car, slug: str) -> Car:
    return replace(known, vehicle=replace(known.vehicle, slug=slug))


def fleet(*cars: Car) -> Fleet:
    made = Fleet({"example": PROFILE})
    for one in cars:
        made.put(one)
    return made


def test_a_decision_knows_since_when_the_trouble_lasts_that_goes_on() -> None:
    def since(trouble: Trouble | None, outcome: Outcome) -> datetime | None:
        return facts_of(replace(car(), trouble=trouble), PROFILE, outcome, GENEROUS).since

    asleep = Trouble("asleep", "A", "a", NOW - HOUR)
    assert since(asleep, Failed(Asleep("A", "a"), 3)) == NOW - HOUR
    assert since(asleep, Failed(RateLimited("B", "b"), 3)) is None
    assert since(asleep, Answered(frozenset())) is None
    assert since(None, Failed(Asleep("A", "a"), 1)) is None


def test_cars_are_found_by_what_their_source_calls_them() -> None:
    cars = fleet(car(1))
    assert cars.by_ref("home", "v") is cars[VehicleId(1)]
    assert cars.by_ref("another", "v") is None
    assert cars.by_ref("home", "w") is None


def test_cars_are_found_by_id_and_slug_in_order_of_enrolment() -> None:
    second, first = car(2, "leaf"), car(1, "zoe")
    cars = fleet(second, first)
    assert list(cars) == [second, first]
    assert len(cars) == 2
    assert VehicleId(1) in cars
    assert VehicleId(3) not in cars
    assert cars[VehicleId(1)] is first
    assert cars.get(VehicleId(3)) is None
    assert cars.by_slug("leaf") is second
    assert cars.by_slug("ioniq") is None
    assert cars.slugs == {"zoe", "leaf"}
    assert cars.profile(first) is PROFILE


def test_putting_a_car_again_replaces_it_where_it_stands() -> None:
    cars = fleet(car(1, "zoe"), car(2, "leaf"))
    newer = replace(car(1, "zoe"), reading_id="r2")
    cars.put(newer)
    assert next(iter(cars)) is newer
    assert cars.by_slug("zoe") is newer
    assert len(cars) == 2


def test_a_renamed_car_is_found_by_its_new_slug_alone() -> None:
    cars = fleet(car(1, "zoe"))
    cars.put(renamed(cars[VehicleId(1)], "family_car"))
    assert cars.by_slug("zoe") is None
    assert cars.by_slug("family_car") is cars[VehicleId(1)]
    assert cars.slugs == {"family_car"}


def test_two_cars_may_exchange_their_slugs() -> None:
    cars = fleet(car(1, "zoe"), car(2, "leaf"))
    cars.put(renamed(cars[VehicleId(1)], "leaf"))
    cars.put(renamed(cars[VehicleId(2)], "zoe"))
    assert [(slug, found.id) for slug in ("leaf", "zoe") if (found := cars.by_slug(slug))] == [
        ("leaf", 1),
        ("zoe", 2),
    ]


def test_the_fleet_may_change_while_it_is_walked() -> None:
    cars = fleet(car(1, "zoe"))
    for known in cars:
        cars.put(replace(car(known.id + 1, f"zoe_{known.id + 1}")))
    assert len(cars) == 2


ANSWERS = {Asleep, NothingYet, RateLimited, ApplicationRateLimited, BudgetSpent, ConsentLost}
"""Errors after which the source still speaks for the car, or for its consent."""


@pytest.mark.parametrize("kind", ERRORS)
def test_an_old_value_of_a_car_in_trouble(kind: type[SourceError]) -> None:
    troubled = replace(car(), trouble=Trouble(kind.outcome, "TYPE:CODE", "in words", NOW))
    cars = fleet(troubled)
    verdict = cars.freshness(troubled, NOW + 100 * HOUR)
    lost = kind is ConsentLost
    assert troubled.consented is not lost
    assert verdict is (Freshness.STALE if kind in ANSWERS and not lost else Freshness.OFFLINE)
    assert cars.freshness(troubled, NOW) is (Freshness.OFFLINE if lost else Freshness.FRESH)


def test_a_withdrawn_car_is_offline_however_fresh_its_value() -> None:
    known = car()
    withdrawn = replace(known, vehicle=replace(known.vehicle, withdrawn_at=NOW))
    assert not withdrawn.consented
    assert fleet(withdrawn).freshness(withdrawn, NOW) is Freshness.OFFLINE


def test_freshness_flips_by_itself_at_its_instant() -> None:
    parked = car()
    driving = replace(parked, schedule=replace(parked.schedule, activity=Activity.DRIVING))
    cars = fleet(parked)
    for known in (parked, driving):
        until = cars.fresh_until(known)
        assert until is not None
        assert cars.freshness(known, until - HOUR / 3600) is Freshness.FRESH
        assert cars.freshness(known, until) is Freshness.STALE
    assert cars.fresh_until(driving) != cars.fresh_until(parked)

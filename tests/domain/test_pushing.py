"""What a webhook means: values by the rules of truth, trouble by what it proves, polls as a safety net."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.cadence import DAY, trip_known_for, webhook_wait
from evbatteryd.domain.errors import (
    Asleep,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    PlanRefused,
    RateLimited,
    SourceError,
    Unreachable,
)
from evbatteryd.domain.fleet import Car, Schedule, Trouble
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.pushing import (
    DELIVERY_TAKES,
    OF_ASKING,
    after_error,
    after_push,
    missed_by_webhooks,
    silent_for_long,
)
from evbatteryd.domain.reading import BatteryState, Measurement, Origin, Signal, merge
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from evbatteryd.domain.webhook import ToldError

from .facts import GENEROUS, HOUR, MINUTE, NOW, PROFILE, SECOND, measurements, state, told

CONSENT = Consent(application="home", connection_id="c", vehicle_ref="v", user_ref="u", make="EXAMPLE")


def car(
    *known: Measurement,
    due: datetime | None = NOW + HOUR,
    trouble: SourceError | None = None,
    since: datetime = NOW - HOUR,
    **schedule: object,
) -> Car:
    vehicle = Vehicle(
        id=VehicleId(1), slug="car", name="Car", brand="example", consent=CONSENT, enrolled_at=NOW - DAY
    )
    about = None if trouble is None else Trouble(trouble.outcome, trouble.code, trouble.detail, since)
    plan = Schedule(due=due, reason="as before", polled_at=NOW - 3 * HOUR, outcome="new", failures=2)
    return Car(vehicle=vehicle, schedule=replace(plan, **schedule), state=state(*known), trouble=about)


def soc(value: float, measured_at: datetime | None = NOW) -> Measurement:
    return Measurement(Signal.SOC, value, measured_at, NOW, Origin.WEBHOOK)


def pushed(before: Car, *values: Measurement) -> Car:
    return after_push(before, PROFILE, GENEROUS, values, NOW)[0]


# --- when webhooks count as delivering -----------------------------------------------------------------


def test_a_pushed_state_of_charge_puts_the_next_poll_off_and_ends_failures() -> None:
    after = pushed(car(), soc(50))
    assert after.state.soc_percent == 50
    assert after.schedule.pushed_at == NOW
    assert after.schedule.due == NOW + webhook_wait(PROFILE, Activity.PARKED)
    assert after.schedule.failures == 0


def test_the_same_state_of_charge_again_counts_too() -> None:
    before = car(soc(50, NOW - HOUR))
    assert pushed(before, soc(50, NOW - HOUR)).schedule.pushed_at == NOW


@pytest.mark.parametrize(
    "values",
    [
        [told(Signal.ODOMETER, 100.0)],
        [soc(50, None)],
        [soc(50, NOW - 2 * HOUR)],
        [],
    ],
    ids=["no soc", "no time", "older than known", "nothing"],
)
def test_what_could_not_stand_in_for_a_poll_puts_none_off(values: list[Measurement]) -> None:
    before = car(soc(60, NOW - HOUR), trouble=Unreachable("HTTP_503", "failed"))
    after = pushed(before, *values)
    assert after.schedule == replace(before.schedule, activity=after.schedule.activity)
    assert after.trouble == before.trouble


def long_silent(error: SourceError, due: datetime | None = NOW + 2 * DAY) -> Car:
    return car(soc(60, NOW - 10 * DAY), trouble=error, since=NOW - 9 * DAY, due=due)


@pytest.mark.parametrize("error", [Asleep("A", "a"), Unreachable("B", "b")])
def test_any_sign_of_life_has_a_car_asked_that_was_silent_for_long(error: SourceError) -> None:
    before = long_silent(error)
    after = pushed(before, told(Signal.ODOMETER, 100.0, NOW - HOUR))
    assert after.schedule.due == NOW
    assert after.trouble == replace(before.trouble, since=NOW - HOUR), "it may have fallen asleep again"
    assert after.schedule.reason == "a webhook reports a sign of life: asking once to make sure"
    just_asked = replace(before, schedule=replace(before.schedule, polled_at=NOW - MINUTE))
    assert pushed(just_asked, told(Signal.ODOMETER, 100.0)).schedule.due == NOW - MINUTE + PROFILE.parked
    assert pushed(before, soc(60)).schedule.due == NOW + webhook_wait(PROFILE, Activity.PARKED)


def test_what_was_measured_before_it_fell_silent_or_never_is_no_sign_of_life() -> None:
    before = long_silent(Asleep("A", "a"))
    for values in ([told(Signal.ODOMETER, 100.0, NOW - 10 * DAY)], [told(Signal.ODOMETER, 100.0, None)], []):
        assert pushed(before, *values).schedule.due == NOW + 2 * DAY
    waits = long_silent(RateLimited("X", "x"))
    assert pushed(waits, told(Signal.ODOMETER, 100.0)).schedule.due == NOW + 2 * DAY
    unconfigured, _ = after_push(before, PROFILE, None, [told(Signal.ODOMETER, 100.0)], NOW)
    assert unconfigured.schedule.due == NOW + 2 * DAY


def test_a_car_of_an_application_that_is_not_configured_is_told_and_not_asked() -> None:
    after, news = after_push(car(due=None), PROFILE, None, [soc(50)], NOW)
    assert news == {Signal.SOC}
    assert after.schedule.due is None


@given(st.lists(measurements(), max_size=6), st.lists(measurements(), max_size=6))
def test_the_state_is_that_of_the_rules_of_truth(known: list[Measurement], values: list[Measurement]) -> None:
    before = car(*known)
    after, news = after_push(before, PROFILE, GENEROUS, values, NOW)
    assert (after.state, news) == merge(before.state, values)
    assert after.schedule.due is not None


# --- trouble --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Asleep("A", "a"), Unreachable("B", "b")])
def test_a_measurement_from_after_it_began_ends_a_trouble_of_the_car(error: SourceError) -> None:
    assert pushed(car(trouble=error), soc(50)).trouble is None
    before = car(trouble=error)
    after = pushed(before, soc(50, NOW - 2 * HOUR))
    assert after.trouble == before.trouble, "it was measured before"
    assert after.schedule.due == before.schedule.due


@pytest.mark.parametrize("kind", [ConsentLost, NotCapable])
def test_a_car_that_was_given_up_is_asked_again_only_on_proof_and_then_soon(kind: type[SourceError]) -> None:
    given_up = car(trouble=kind("X", "x"), due=None)
    late = pushed(given_up, soc(50, NOW - 2 * HOUR))
    assert (late.trouble, late.schedule.due) == (given_up.trouble, None)
    unmeasured = pushed(given_up, told(Signal.ODOMETER, 100.0))
    assert (unmeasured.trouble, unmeasured.schedule.due) == (given_up.trouble, None)
    proved = pushed(given_up, soc(50, NOW - MINUTE))
    assert proved.trouble is None
    assert proved.schedule.due == NOW, "the last poll was longer ago than the parked pace"


@pytest.mark.parametrize("kind", [RateLimited, PlanRefused, BudgetSpent])
def test_a_webhook_neither_ends_nor_shortens_a_wait_of_asking(kind: type[SourceError]) -> None:
    told_to_wait = car(trouble=kind("X", "x"), due=NOW + 20 * HOUR)
    after = pushed(told_to_wait, soc(50))
    assert after.trouble == told_to_wait.trouble
    assert after.schedule.due == NOW + 20 * HOUR
    assert after.schedule.failures == 2
    assert after.state.soc_percent == 50
    soon = pushed(car(trouble=kind("X", "x"), due=NOW + MINUTE), soc(50))
    assert soon.schedule.due == NOW + webhook_wait(PROFILE, Activity.PARKED)


def erring(
    error: SourceError, *, resolved: bool = False, signals: frozenset[Signal] | None = None
) -> ToldError:
    return ToldError(error, resolved, signals)


def test_an_error_of_single_signals_is_theirs_unless_it_is_the_state_of_charge() -> None:
    limit = erring(Unreachable("UPSTREAM", "u"), signals=frozenset({Signal.CHARGE_LIMIT}))
    assert after_error(car(), PROFILE, limit, NOW) == car()
    both = erring(Unreachable("UPSTREAM", "u"), signals=frozenset({Signal.CHARGE_LIMIT, Signal.SOC}))
    assert after_error(car(), PROFILE, both, NOW).trouble == Trouble("unreachable", "UPSTREAM", "u", NOW)


@pytest.mark.parametrize("kind", [ConsentLost, NotCapable])
def test_bad_news_for_good_is_asked_for_and_not_believed(kind: type[SourceError]) -> None:
    after = after_error(car(due=NOW + DAY), PROFILE, erring(kind("X:Y", "x")), NOW)
    assert after.trouble is None
    assert after.schedule.due == NOW
    assert "X:Y" in after.schedule.reason
    just_asked = car(due=NOW + DAY, polled_at=NOW - MINUTE)
    later = after_error(just_asked, PROFILE, erring(kind("X:Y", "x")), NOW)
    assert later.schedule.due == NOW - MINUTE + PROFILE.parked


def test_the_end_of_a_trouble_is_believed_and_looked_into() -> None:
    asleep = Asleep("VEHICLE_STATE:ASLEEP", "asleep")
    after = after_error(car(trouble=asleep, due=NOW + DAY), PROFILE, erring(asleep, resolved=True), NOW)
    assert after.trouble is None
    assert after.schedule.due == NOW
    other = car(trouble=Unreachable("HTTP_503", "failed"))
    assert after_error(other, PROFILE, erring(asleep, resolved=True), NOW) == other


@pytest.mark.parametrize("outcome", sorted(OF_ASKING))
def test_troubles_of_asking_are_none_that_a_webhook_has(outcome: str) -> None:
    (kind,) = {kind for kind in all_errors() if kind.outcome == outcome}
    assert after_error(car(), PROFILE, erring(kind("X", "x")), NOW) == car()


def all_errors() -> set[type[SourceError]]:
    found, kinds = {SourceError}, [SourceError]
    while kinds:
        below = set(kinds.pop().__subclasses__()) - found
        found |= below
        kinds += below
    return found


# --- what it is doing -----------------------------------------------------------------------------------


def on_a_trip(age: timedelta) -> Car:
    return car(soc(60, NOW - age), told(Signal.ODOMETER, 100.0, NOW - age), activity=Activity.DRIVING)


def test_a_repeated_or_late_delivery_does_not_park_a_car_on_a_trip() -> None:
    before = on_a_trip(5 * MINUTE)
    assert pushed(before, soc(60, NOW - 5 * MINUTE)).schedule.activity is Activity.DRIVING
    assert pushed(before, soc(70, NOW - HOUR)).schedule.activity is Activity.DRIVING
    assert pushed(before, told(Signal.CAPACITY, 60.0)).schedule.activity is Activity.DRIVING


def test_a_trip_ends_with_the_cable_or_when_nothing_is_heard_of_it() -> None:
    plugged = told(Signal.PLUGGED_IN, True, NOW)
    assert pushed(on_a_trip(5 * MINUTE), plugged).schedule.activity is Activity.PARKED
    long_ago = on_a_trip(trip_known_for(PROFILE) + SECOND)
    assert pushed(long_ago, told(Signal.CAPACITY, 60.0)).schedule.activity is Activity.PARKED


# --- falling silent -------------------------------------------------------------------------------------


def missed(before: BatteryState, *found: Measurement, pushed_ago: timedelta = MINUTE) -> bool:
    after, _ = merge(before, found)
    return missed_by_webhooks(before, after, NOW - pushed_ago, PROFILE, Activity.PARKED, NOW)


KNOWN = state(told(Signal.SOC, 50.0, NOW - HOUR), told(Signal.CHARGING, False, NOW - HOUR))


def test_a_change_that_a_webhook_had_time_to_bring_was_missed() -> None:
    assert missed(KNOWN, told(Signal.SOC, 51.0, NOW - DELIVERY_TAKES - SECOND))
    assert not missed(KNOWN, told(Signal.SOC, 51.0, NOW - MINUTE)), "it may be on its way"
    assert not missed(KNOWN, told(Signal.SOC, 50.0, NOW - MINUTE)), "nothing changed"


def test_a_cloud_that_always_has_a_recent_value_hides_no_silence() -> None:
    assert missed(KNOWN, told(Signal.SOC, 51.0, NOW - MINUTE), pushed_ago=PROFILE.parked + HOUR)


def test_what_a_webhook_may_well_leave_out_is_no_silence() -> None:
    for signal, value in ((Signal.PLUGGED_IN, True), (Signal.ODOMETER, 5.0), (Signal.CHARGE_STATE, "x")):
        assert not missed(KNOWN, told(signal, value, NOW - DAY))


def test_a_day_without_a_webhook_proves_nothing_any_more() -> None:
    assert not silent_for_long(NOW - DAY, PROFILE, Activity.PARKED, NOW)
    assert silent_for_long(NOW - DAY - SECOND, PROFILE, Activity.PARKED, NOW)
    slow = replace(PROFILE, parked=DAY)
    assert not silent_for_long(NOW - DAY - HOUR, slow, Activity.PARKED, NOW)

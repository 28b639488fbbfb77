"""What an answer makes of a car: state, trouble, what is learnt, and when it is asked again."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from evbatteryd.domain.cadence import DAY, webhook_wait
from evbatteryd.domain.errors import (
    Asleep,
    OwnerMustAct,
    RateLimited,
    SourceError,
    Unreachable,
    Unreadable,
)
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.profile import Activity, BrandProfile, CallLimit
from evbatteryd.domain.pushing import DELIVERY_TAKES
from evbatteryd.domain.reading import Measurement, Observation, Rejected, Signal
from evbatteryd.domain.settling import Settled, settle
from tests import builders

from .facts import GENEROUS, HOUR, MINUTE, NOW, PROFILE, SECOND, observed, state, told

DOWN = Unreachable("HTTP_500", "down")
LATENCY = 8 * SECOND
SHARE = replace(GENEROUS, calls=500, calls_left=333)


def car(*known: Measurement, **schedule: object) -> Car:
    """One that is due, and was never asked unless said otherwise."""
    found = builders.car(due=NOW, state=state(*known))
    return replace(found, schedule=replace(found.schedule, **schedule))


def settled(
    before: Car,
    answer: Observation | SourceError,
    *,
    profile: BrandProfile = PROFILE,
    share: Share = SHARE,
    calls: int = 1,
    now: datetime = NOW,
    lore: Lore | None = None,
) -> Settled:
    lore = lore or Lore(lambda _: 0.0)
    return settle(before, answer, profile, share, lore, calls=calls, began=now - LATENCY, now=now)


def parked(soc: float = 50.0, measured_at: datetime = NOW - MINUTE) -> Observation:
    return observed(told(Signal.SOC, soc, measured_at), told(Signal.CHARGING, False, measured_at))


# --- an answer ------------------------------------------------------------------------------------------


def test_an_answer_ends_every_trouble_and_is_learnt_from() -> None:
    before = settled(settled(car(), DOWN).car, DOWN, now=NOW + HOUR).car
    found = settled(before, parked(), now=NOW + 2 * HOUR)
    after, schedule = found.car, found.car.schedule
    assert found.news
    assert after.state.soc_percent == 50.0
    assert after.trouble is None
    assert after.learned != before.learned
    assert (schedule.outcome, schedule.failures, schedule.answered_at) == ("new", 0, NOW + 2 * HOUR)
    assert schedule.due >= NOW + 2 * HOUR + PROFILE.floor
    assert schedule.gain > 0


def test_an_older_measurement_is_no_news_and_overwrites_nothing() -> None:
    before = car(*parked().measurements)
    found = settled(before, parked(90.0, NOW - 5 * HOUR))
    assert not found.news
    assert found.car.state == before.state
    assert found.car.schedule.outcome == "unchanged"


def test_what_cannot_be_is_handed_back_and_the_rest_is_taken() -> None:
    wrong = Rejected(Signal.RANGE, "{'unit': 'leagues'}", "unknown unit", None, NOW)
    answer = replace(observed(told(Signal.SOC, 255.0), told(Signal.PLUGGED_IN, True)), rejected=(wrong,))
    found = settled(car(), answer)
    assert {rejected.signal for rejected in found.rejected} == {Signal.SOC, Signal.RANGE}
    assert set(found.car.state.signals) == {Signal.PLUGGED_IN}


def test_cars_that_were_enrolled_together_do_not_stay_in_step() -> None:
    vehicles = [builders.vehicle(number) for number in range(1, 6)]

    def due(**schedule: object) -> set[datetime | None]:
        cars = [replace(car(**schedule), vehicle=vehicle) for vehicle in vehicles]
        return {settled(one, parked()).car.schedule.due for one in cars}

    assert len(due()) == len(vehicles)
    assert len(due(outcome="new")) == 1, "but later the policy alone decides"


def test_of_a_car_that_charges_it_is_claimed_how_it_goes_on() -> None:
    lore = Lore(lambda _: 0.0)
    charging = observed(told(Signal.SOC, 60.0, NOW - MINUTE), told(Signal.CHARGING, True, NOW - MINUTE))
    after = settled(car(), charging, lore=lore).car
    assert after.schedule.activity is Activity.CHARGING
    assert "charging" in after.schedule.reason
    assert after.state.soc_percent == 60.0
    assert after.trend.at(NOW + HOUR) > 60.0


def test_what_is_learnt_of_an_application_helps_its_other_cars() -> None:
    lore = Lore(lambda _: 0.0)
    fresh = lore.document()
    settled(car(), parked(), lore=lore)
    assert lore.document() != fresh


# --- what was sent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [parked(), DOWN])
def test_a_car_counts_as_asked_from_when_its_request_began(answer: Observation | SourceError) -> None:
    assert settled(car(polled_at=NOW - HOUR), answer).car.schedule.polled_at == NOW - LATENCY


def test_a_car_for_which_no_request_was_sent_was_not_asked() -> None:
    before = car(polled_at=NOW - HOUR)
    assert settled(before, DOWN, calls=0).car.schedule.polled_at == NOW - HOUR


def test_how_many_calls_an_answer_takes_is_learnt_from_answers_alone() -> None:
    paged = settled(car(), parked(), calls=3).car
    assert paged.schedule.calls_per_poll == 3
    assert settled(paged, DOWN, calls=1).car.schedule.calls_per_poll == 3


# --- a failure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (RateLimited("RATE_LIMIT:VEHICLE", "wait", retry_after=42 * MINUTE), 42 * MINUTE),
        (Asleep("VEHICLE_STATE:ASLEEP", "asleep"), PROFILE.idle),
        (OwnerMustAct("CONNECTED_SERVICES_ACCOUNT:SUBSCRIPTION", "pay"), DAY),
    ],
)
def test_failures_with_a_known_wait(error: SourceError, wait: timedelta) -> None:
    after = settled(car(), error, share=GENEROUS).car
    assert after.schedule.due == NOW + wait
    assert (after.trouble.code, after.trouble.since) == (error.code, NOW)
    assert after.schedule.outcome == error.outcome


def test_a_failure_leaves_what_is_known_as_it_is_and_promises_no_gain() -> None:
    known = settled(car(), parked()).car
    found = settled(known, DOWN, now=NOW + HOUR)
    assert not found.news
    assert (found.car.state, found.car.trend) == (known.state, known.trend)
    assert found.car.schedule.answered_at == NOW
    assert found.car.schedule.gain == 0.0


def test_a_failure_counts_towards_the_limit_of_the_brand_if_it_was_sent() -> None:
    limited = replace(PROFILE, limit=CallLimit(10, DAY))
    known = settled(car(), parked(), profile=limited).car
    sent, unsent = (
        settled(known, DOWN, profile=limited, calls=calls, now=NOW + HOUR).car for calls in (1, 0)
    )
    assert sent.learned != known.learned
    assert unsent.learned == known.learned


def test_a_trouble_goes_on_under_another_code_and_another_one_begins_anew() -> None:
    first = settled(car(), DOWN).car
    same = settled(first, Unreachable("HTTP_502", "still down"), now=NOW + HOUR).car
    other = settled(same, Unreadable("NOT_JSON", "HTML"), now=NOW + 2 * HOUR).car
    assert (same.trouble.code, same.trouble.since) == ("HTTP_502", NOW)
    assert (other.trouble.code, other.trouble.since) == ("NOT_JSON", NOW + 2 * HOUR)
    assert [one.schedule.failures for one in (first, same, other)] == [1, 2, 3]


# --- where webhooks deliver -----------------------------------------------------------------------------


def pushed(pushed_ago: timedelta = HOUR) -> Car:
    return car(*parked(50.0, NOW - HOUR).measurements, pushed_at=NOW - pushed_ago, outcome="new")


def test_while_webhooks_deliver_a_poll_is_a_safety_net_and_no_gain_is_expected_of_it() -> None:
    found = settled(pushed(), parked(50.0))
    assert not found.missed
    assert found.car.schedule.pushed_at == NOW - HOUR
    assert found.car.schedule.due == NOW + webhook_wait(PROFILE, Activity.PARKED)
    assert found.car.schedule.gain == 0.0


def test_webhooks_that_missed_a_change_have_fallen_silent() -> None:
    found = settled(pushed(), parked(40.0, NOW - DELIVERY_TAKES - MINUTE))
    assert found.missed
    assert found.car.schedule.pushed_at is None
    assert "webhooks have fallen silent" in found.car.schedule.reason
    assert found.car.schedule.gain > 0


def test_webhooks_of_which_nothing_was_heard_for_long_missed_nothing_that_is_known() -> None:
    found = settled(pushed(DAY + SECOND), parked(50.0))
    assert not found.missed
    assert found.car.schedule.pushed_at is None
    assert "webhooks have fallen silent" in found.car.schedule.reason


def test_a_failure_tells_nothing_about_webhooks() -> None:
    found = settled(pushed(2 * DAY), DOWN)
    assert found.car.schedule.pushed_at == NOW - 2 * DAY
    assert "silent" not in found.car.schedule.reason

"""Hints are free, bounded and committed; no wall box, lying or chattering, burns the budget."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import cycle, islice
from pathlib import Path

import pytest

from evbatteryd.domain.errors import (
    ApplicationRefused,
    Asleep,
    BudgetSpent,
    PlanRefused,
    RateLimited,
    SourceError,
    Unreachable,
)
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.hinting import HintOutcome
from evbatteryd.domain.ledger import Budget, Share
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.domain.policy.polling import Hinted, after_answer, after_hint
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Measurement, Signal, merge
from evbatteryd.flow import hints as hints_module
from evbatteryd.flow.hints import MOST_AN_HOUR, SAID_JUST_BEFORE, STILL_SO, CarHints, Policy
from tests.fakes import START, until
from tests.flow.world import RENAULT, World, world

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)


@dataclass
class Eager:
    """A policy that finds every hint worth a call at once, and remembers what it was told."""

    told: list[tuple[str, Hint]] = field(default_factory=list)
    wait: timedelta = timedelta()

    def __call__(
        self, car: Car, profile: BrandProfile, share: Share, lore: Lore, hint: Hint, now: datetime
    ) -> Hinted:
        self.told.append((car.slug, hint))
        return Hinted(f"learnt {len(self.told)}".encode(), now + self.wait, f"asked, for {hint}", 42.0)


def hints_of(w: World, policy: Policy, applications: tuple[str, ...] = ("home",)) -> CarHints:
    return CarHints(
        w.cars,
        w.clock,
        w.metrics,
        w.log,
        policy,
        share_of=lambda car: w.purse.share(car.id) if car.vehicle.consent.application == "home" else None,
        lores={name: Lore(lambda _: 0.0) for name in applications},
        hurry=w.poller.hurry,
    )


def counted(w: World, event: str, outcome: str) -> float:
    return (
        w.metrics._registry.get_sample_value("evbatteryd_hints_total", {"event": event, "outcome": outcome})
        or 0.0
    )


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        await made.enrol()
        yield made


@pytest.fixture
def eager() -> Eager:
    return Eager()


@pytest.fixture
def hints(w: World, eager: Eager) -> CarHints:
    return hints_of(w, eager)


def the_car(w: World) -> Car:
    (car,) = w.fleet
    return car


async def calm(w: World, **schedule: object) -> Car:
    """The car was just read, and is due in three hours."""
    usual = {"due": w.clock.now() + 3 * HOUR, "reason": "parked", "outcome": "new"}
    return await w.cars.change(
        the_car(w).id, lambda car: replace(car, schedule=replace(car.schedule, **(usual | schedule)))
    )


# What becomes of a hint


async def test_a_hint_brings_the_next_poll_forward_and_is_committed(
    w: World, hints: CarHints, eager: Eager
) -> None:
    car, eager.wait = await calm(w), 3 * MINUTE
    answer = await hints.told(car.slug, " Plugged_In ", "mqtt")
    assert answer.document() == {
        "event": "plugged_in",
        "result": "taken",
        "reason": "asked, for plugged_in",
        "next_poll": START + 3 * MINUTE,
    }
    for known in (the_car(w), (await w.store.cars())[0]):
        assert known.schedule.due == START + 3 * MINUTE
        assert (known.schedule.reason, known.schedule.gain) == ("asked, for plugged_in", 42.0)
        assert known.learned == b"learnt 1"
    assert counted(w, "plugged_in", "taken") == 1
    rang: list[object] = []
    w.timer.start(rang.append)
    await w.clock.advance(3 * MINUTE)
    await until(lambda: rang == [car.id])
    w.timer.stop()


async def test_the_earliest_due_time_stays(w: World, hints: CarHints, eager: Eager) -> None:
    car, eager.wait = await calm(w, due=START + MINUTE), 3 * MINUTE
    answer = await hints.told(car.slug, "plugged_in", "mqtt")
    assert (answer.outcome, answer.next_poll) == (HintOutcome.PUT_OFF, START + MINUTE)
    assert (the_car(w).schedule, the_car(w).learned) == (car.schedule, b"learnt 1")


async def test_a_policy_that_wants_no_call_gets_none(w: World) -> None:
    car = await calm(w)
    hints = hints_of(w, lambda *_: Hinted(b"learnt", None, "not worth a call", 0.0))
    answer = await hints.told(car.slug, "unplugged", "mqtt")
    assert (answer.document()["result"], answer.reason) == ("put_off", "not worth a call")
    assert (the_car(w).schedule, the_car(w).learned) == (car.schedule, b"learnt")


async def test_a_poll_is_never_put_in_the_past(w: World, hints: CarHints, eager: Eager) -> None:
    car, eager.wait = await calm(w), -HOUR
    assert (await hints.told(car.slug, "arrived", "mqtt")).next_poll == START


# What is refused


@pytest.mark.parametrize("event", ["", "plugged", "plugged_in2", "\x1b[31m" + "x" * 999])
async def test_what_is_no_event_is_refused_and_said_once_an_hour(
    w: World, hints: CarHints, eager: Eager, event: str
) -> None:
    car = await calm(w)
    for _ in range(3):
        answer = await hints.told(car.slug, event, "mqtt")
    assert (answer.outcome, answer.document()["result"]) == (HintOutcome.UNKNOWN_EVENT, "refused")
    assert "known: plugged_in, unplugged" in answer.reason
    assert len(answer.reason) < 200
    assert "\x1b" not in answer.reason + answer.event
    assert counted(w, "other", "unknown_event") == 3
    assert len(w.said("hint.refused")) == 1
    await w.clock.advance(HOUR)
    await hints.told(car.slug, event, "mqtt")
    assert len(w.said("hint.refused")) == 2
    assert eager.told == []


async def test_a_car_that_there_is_not_is_refused_and_one_that_was_renamed_is_found(
    w: World, hints: CarHints, eager: Eager
) -> None:
    car = await calm(w)
    answer = await hints.told("ghost", "arrived", "http")
    assert answer.outcome is HintOutcome.UNKNOWN_VEHICLE
    assert answer.reason == "no vehicle is called 'ghost'"
    await w.cars.rename(car.id, name=None, slug="zoe")
    answer = await hints.told(car.slug, "arrived", "http")
    assert answer.outcome is HintOutcome.UNKNOWN_VEHICLE
    assert answer.reason == "this vehicle is called 'zoe' now: send its events there"
    assert (await hints.told("zoe", "arrived", "http")).outcome is HintOutcome.TAKEN
    assert counted(w, "arrived", "unknown_vehicle") == 2
    assert eager.told == [("zoe", Hint.ARRIVED)]


async def test_a_withdrawn_car_is_not_read_whatever_is_told(w: World, hints: CarHints, eager: Eager) -> None:
    car = await calm(w)
    gone = await w.cars.change(
        car.id, lambda one: replace(one, vehicle=replace(one.vehicle, withdrawn_at=START))
    )
    assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.NOT_READ
    assert (the_car(w), eager.told) == (gone, [])


async def test_a_car_of_an_application_that_is_not_configured_is_not_read(w: World, eager: Eager) -> None:
    car = await calm(w)
    answer = await hints_of(w, eager, applications=()).told(car.slug, "arrived", "mqtt")
    assert answer.outcome is HintOutcome.NOT_READ
    assert "'home' is not configured" in answer.reason
    assert the_car(w) == car


async def test_a_store_that_takes_nothing_is_not_waited_for(
    w: World, hints: CarHints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hints_module, "ANSWERED_WITHIN_S", 0.05)
    car = await calm(w)
    w.store.full.add("update")
    assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.NOT_KEPT
    assert the_car(w) == car
    w.store.full.clear()
    assert (await hints.told(car.slug, "plugged_in", "mqtt")).outcome is HintOutcome.TAKEN


async def test_a_hint_that_was_not_kept_is_listened_to_when_it_is_told_again(
    w: World, hints: CarHints, eager: Eager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As automations do: the same state, time and again, while the disk is full."""
    monkeypatch.setattr(hints_module, "ANSWERED_WITHIN_S", 0.05)
    car = await calm(w)
    w.store.full.add("update")
    for _ in range(2):
        assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.NOT_KEPT
    w.store.full.clear()
    assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.TAKEN
    assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.REPEATED


async def test_hints_that_came_to_nothing_are_no_chatter(w: World, eager: Eager) -> None:
    car, broken = await calm(w), True

    def sometimes(*told: object) -> Hinted:
        if broken:
            raise ZeroDivisionError
        return eager(*told)

    hints = hints_of(w, sometimes)
    for _ in range(2 * MOST_AN_HOUR):
        assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.FAILED
    broken = False
    assert (await hints.told(car.slug, "arrived", "mqtt")).outcome is HintOutcome.TAKEN


async def test_a_hint_that_came_to_nothing_leaves_what_was_heard_before(w: World, eager: Eager) -> None:
    """The one of five minutes ago still stands: nothing changed since."""
    car, broken = await calm(w), False

    def sometimes(*told: object) -> Hinted:
        if broken:
            raise ZeroDivisionError
        return eager(*told)

    hints = hints_of(w, sometimes)
    await hints.told(car.slug, "charging", "mqtt")
    broken = True
    await w.clock.advance(5 * MINUTE)
    assert (await hints.told(car.slug, "charging_stopped", "mqtt")).outcome is HintOutcome.FAILED
    broken = False
    assert (await hints.told(car.slug, "charging", "mqtt")).outcome is HintOutcome.REPEATED
    assert (await hints.told(car.slug, "charging_stopped", "mqtt")).outcome is HintOutcome.PUT_OFF


async def test_a_bug_in_one_cars_hint_is_that_hints_alone(w: World) -> None:
    car = await calm(w)

    def broken(*_: object) -> Hinted:
        raise ZeroDivisionError

    answer = await hints_of(w, broken).told(car.slug, "arrived", "mqtt")
    assert answer.outcome is HintOutcome.FAILED
    assert len(w.said("hint.bug")) == 1
    assert the_car(w) == car


# Waits that stand


_IMPOSED: list[SourceError] = [
    RateLimited("RATE_LIMIT:VEHICLE", "too often", retry_after=5 * HOUR),
    BudgetSpent("BILLING", "used up"),
    PlanRefused("BILLING", "refused"),
    ApplicationRefused("AUTH", "refused"),
    Unreachable("SERVER", "500"),
]


@pytest.mark.parametrize("error", _IMPOSED, ids=lambda error: error.outcome)
async def test_what_the_source_or_the_plan_imposed_stands_and_the_hint_is_learnt(
    w: World, hints: CarHints, error: SourceError
) -> None:
    w.source.failing(error)
    (car,) = await w.poll(the_car(w))
    answer = await hints.told(car.slug, "plugged_in", "mqtt")
    assert (answer.outcome, answer.reason) == (HintOutcome.PUT_OFF, car.schedule.reason)
    assert answer.next_poll == car.schedule.due
    assert the_car(w).schedule == car.schedule
    assert the_car(w).learned == b"learnt 1"


async def test_a_sleeping_car_may_be_woken_by_a_hint(w: World, hints: CarHints) -> None:
    w.source.failing(Asleep("VEHICLE_STATE:ASLEEP", "asleep"))
    (car,) = await w.poll(the_car(w))
    assert (await hints.told(car.slug, "charging", "mqtt")).outcome is HintOutcome.TAKEN


async def silent(w: World, since: timedelta, asked: timedelta, due: timedelta, outcome: str) -> Car:
    """A car that was not to be reached for so long, was asked so long ago, and is due in that time."""
    now = w.clock.now()
    await calm(w, polled_at=now - asked, due=now + due, outcome=outcome)
    trouble = Trouble(outcome, "SERVER", "500", now - since)
    return await w.cars.change(the_car(w).id, lambda car: replace(car, trouble=trouble))


@pytest.mark.parametrize("outcome", ["asleep", "unreachable", "failed", "unreadable"])
async def test_a_car_that_was_silent_for_long_may_be_woken_by_a_hint(
    w: World, hints: CarHints, outcome: str
) -> None:
    car = await silent(w, since=9 * DAY, asked=7 * HOUR, due=20 * HOUR, outcome=outcome)
    answer = await hints.told(car.slug, "plugged_in", "mqtt")
    assert (answer.outcome, answer.next_poll) == (HintOutcome.TAKEN, START)
    assert car.trouble is not None
    woken = replace(car.trouble, since=START)
    assert the_car(w).trouble == woken, "it is not left alone for days because it does not answer at once"


@pytest.mark.parametrize(
    ("since", "asked", "due"),
    [
        (20 * HOUR, 7 * HOUR, 0.3 * HOUR),  # backing off as on the first day
        (9 * DAY, 5 * HOUR, 22 * HOUR),  # asked just before
        (9 * DAY, 7 * HOUR, 21.5 * HOUR),  # more than calm: it was told to wait
    ],
)
async def test_other_waits_of_a_car_out_of_reach_stand(
    w: World, hints: CarHints, since: timedelta, asked: timedelta, due: timedelta
) -> None:
    car = await silent(w, since, asked, due, "unreachable")
    answer = await hints.told(car.slug, "plugged_in", "mqtt")
    assert (answer.outcome, answer.next_poll) == (HintOutcome.PUT_OFF, car.schedule.due)
    assert the_car(w).trouble == car.trouble


async def test_a_car_that_is_asked_no_more_until_its_owner_acts_stays_so(w: World, hints: CarHints) -> None:
    car = await calm(w, due=None, reason="consent lost")
    await w.cars.change(
        car.id, lambda one: replace(one, trouble=Trouble("consent_lost", "CONSENT", "gone", START))
    )
    answer = await hints.told(car.slug, "plugged_in", "mqtt")
    assert (answer.outcome, answer.reason) == (HintOutcome.PUT_OFF, "consent lost")
    assert the_car(w).schedule.due is None
    assert the_car(w).learned == b"learnt 1"


async def test_where_webhooks_deliver_a_hint_only_teaches(w: World, hints: CarHints) -> None:
    car = await calm(w, pushed_at=START - MINUTE)
    answer = await hints.told(car.slug, "plugged_in", "mqtt")
    assert (answer.outcome, answer.next_poll) == (HintOutcome.PUT_OFF, car.schedule.due)
    assert "webhooks" in answer.reason
    assert (the_car(w).schedule, the_car(w).learned) == (car.schedule, b"learnt 1")


async def test_a_plan_that_is_used_up_is_used_up(tmp_path: Path, eager: Eager) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=1)) as w:
        await w.enrol()
        await w.poll(the_car(w))
        car = await calm(w)
        answer = await hints_of(w, eager).told(car.slug, "plugged_in", "mqtt")
        assert answer.outcome is HintOutcome.PUT_OFF
        assert "used up until 2026-12-01" in answer.reason
        assert (the_car(w).schedule, the_car(w).learned) == (car.schedule, b"learnt 1")


async def test_a_wait_that_stands_costs_the_policy_none_of_its_allowance(w: World) -> None:
    """It is asked as if the car were due: then nothing is brought forward, whatever it thinks."""
    car = await calm(w, outcome="rate_limited")
    dues: list[datetime | None] = []

    def watching(known: Car, *_: object) -> Hinted:
        dues.append(known.schedule.due)
        return Hinted(b"", None, "", 0.0)

    await hints_of(w, watching).told(car.slug, "plugged_in", "mqtt")
    assert dues == [START]


# Chatter


async def test_a_hint_that_was_just_said_is_not_considered_again(
    w: World, hints: CarHints, eager: Eager
) -> None:
    car = await calm(w)
    for _ in range(2):
        for event in ("plugged_in", "unplugged"):
            answer = await hints.told(car.slug, event, "mqtt")
    assert (answer.outcome, answer.document()["result"]) == (HintOutcome.REPEATED, "put_off")
    assert answer.reason == "it was said 0 s before"
    assert [hint for _, hint in eager.told] == [Hint.PLUGGED_IN, Hint.UNPLUGGED]
    await w.clock.advance(SAID_JUST_BEFORE)
    await hints.told(car.slug, "plugged_in", "mqtt")
    assert len(eager.told) == 3


async def test_an_automation_that_repeats_its_state_does_not_chatter(
    w: World, hints: CarHints, eager: Eager
) -> None:
    car = await calm(w)
    for _ in range(6 * 60):
        await hints.told(car.slug, "charging", "mqtt")
        await w.clock.advance(10 * SECOND)
    assert len(eager.told) == HOUR / STILL_SO
    await hints.told(car.slug, "charging_stopped", "mqtt")
    assert eager.told[-1] == (car.slug, Hint.CHARGING_STOPPED)
    assert w.said("hint.chattering") == []


async def test_chatter_is_refused_and_said_once_an_hour(w: World, hints: CarHints, eager: Eager) -> None:
    car, (other,) = await calm(w), await w.enrol()
    outcomes = []
    for event in islice(cycle(Hint), 2 * MOST_AN_HOUR):
        outcomes.append((await hints.told(car.slug, event, "mqtt")).outcome)
        await w.clock.advance(MINUTE)
    assert len(eager.told) == MOST_AN_HOUR
    assert set(outcomes[MOST_AN_HOUR:]) == {HintOutcome.CHATTERING}
    (line,) = w.said("hint.chattering")
    assert (line["level"], line["vehicle"]) == ("warning", car.slug)
    assert sum(counted(w, hint, "chattering") for hint in Hint) == MOST_AN_HOUR
    await hints.told(other.slug, "arrived", "mqtt")
    assert eager.told[-1][0] == other.slug
    await w.clock.advance(HOUR)
    await hints.told(car.slug, "arrived", "mqtt")
    assert eager.told[-1] == (car.slug, Hint.ARRIVED)


async def test_a_clock_that_is_set_back_silences_nobody(w: World, hints: CarHints, eager: Eager) -> None:
    car = await calm(w)
    for event in islice(cycle([*Hint]), 2 * MOST_AN_HOUR):
        await hints.told(car.slug, event, "mqtt")
        await w.clock.advance(SAID_JUST_BEFORE)
    heard = len(eager.told)
    w.clock._now -= DAY
    await hints.told(car.slug, "arrived", "mqtt")
    assert len(eager.told) == heard + 1


async def test_cars_that_have_been_silent_are_forgotten(w: World, hints: CarHints) -> None:
    cars = await w.enrol(5)
    for car in cars:
        await hints.told(car.slug, "arrived", "mqtt")
    assert len(hints._heard) == 5
    await w.clock.advance(HOUR)
    await hints.told(cars[0].slug, "arrived", "mqtt")
    assert list(hints._heard) == [cars[0].id]


async def test_hints_of_one_car_are_taken_one_after_the_other(
    w: World, hints: CarHints, eager: Eager
) -> None:
    car = await calm(w)
    answers = await asyncio.gather(*(hints.told(car.slug, hint, "mqtt") for hint in Hint))
    assert [answer.event for answer in answers] == [hint for _, hint in eager.told] == list(Hint)
    assert the_car(w).learned == f"learnt {len(Hint)}".encode()


# With the policy itself


class Parked:
    """A car that stands still for weeks, is asked when it is due, and whose wall box makes things up."""

    def __init__(self, w: World, plan: int, wall_box: Sequence[str]) -> None:
        self._w = w
        self._plan = plan
        self._tells = cycle(wall_box)
        self._lore = Lore(lambda _: 0.0)
        self._hints = CarHints(
            w.cars,
            w.clock,
            w.metrics,
            w.log,
            after_hint,
            share_of=lambda _: self._share(),
            lores={"home": self._lore},
            hurry=w.poller.hurry,
        )
        self.calls = 0

    async def live(self, span: timedelta, *, hints: int) -> int:
        """Let ``span`` pass with so many hints, evenly; the calls that it took."""
        began, calls = self._w.clock.now(), self.calls
        events = [(began + span * number / hints, True) for number in range(hints)] + [(began + span, False)]
        for at, tells in events:
            while (due := the_car(self._w).schedule.due) is not None and due < at:
                self._w.clock._now = max(due, self._w.clock.now())
                await self._ask()
            self._w.clock._now = at
            if tells:
                await self._hints.told(the_car(self._w).slug, next(self._tells), "mqtt")
        return self.calls - calls

    async def _ask(self) -> None:
        now = self._w.clock.now()
        self.calls += 1
        known = {Signal.SOC: 60.0, Signal.CHARGING: False, Signal.PLUGGED_IN: False, Signal.ODOMETER: 9_000.0}
        measurements = tuple(Measurement(signal, value, START, now) for signal, value in known.items())

        def answered(car: Car) -> Car:
            state, _ = merge(car.state, measurements)
            decision = after_answer(car, state, RENAULT, self._share(), self._lore, now)
            schedule = replace(
                car.schedule,
                due=decision.wanted.at,
                reason=decision.wanted.reason,
                gain=decision.gain,
                polled_at=now,
                answered_at=now,
                outcome="unchanged",
            )
            return replace(car, state=state, schedule=schedule, learned=decision.learned)

        await self._w.cars.change(the_car(self._w).id, answered)

    def _share(self) -> Share:
        return Share(
            calls_left=self._plan - self.calls,
            calls=self._plan,
            began_at=START,
            renews_at=START + 30 * DAY,
            application_interval=30 * SECOND,
        )


@pytest.mark.parametrize("wall_box", [["plugged_in", "unplugged"], ["charging"], list(Hint)])
async def test_a_thousand_lies_a_day_cost_a_couple_of_calls_an_hour_and_no_budget(
    w: World, wall_box: list[str]
) -> None:
    """The first day; after that it is believed less, and what it cost is saved."""
    plan = 500
    parked = Parked(w, plan, wall_box)
    await parked.live(3 * DAY, hints=0)
    usual = await parked.live(DAY, hints=0)
    assert usual > 0
    first = await parked.live(DAY, hints=1_000)
    assert usual < first <= usual + 2 * 24
    second = await parked.live(DAY, hints=1_000)
    assert second <= 1.5 * plan / 30
    assert parked.calls <= plan * 6 / 30 + 2 * 24

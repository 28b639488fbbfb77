"""A simulated year of every brand: no plan overspent, no floor broken, no car forgotten.

Once with the polling policy and ordinary lives, and once by the rules alone, as cars are asked while webhooks
deliver or while nothing is known of their charge: there the dice choose every outcome.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from evbatteryd.brands import load_profiles
from evbatteryd.domain.cadence import Answered, Facts, Failed, Outcome, first_poll, next_poll
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    Asleep,
    BudgetSpent,
    OwnerMustAct,
    RateLimited,
    SourceError,
    Unreachable,
)
from evbatteryd.domain.ledger import Budget, Period, Share, window
from evbatteryd.domain.policy import looking
from evbatteryd.domain.profile import Activity, BrandProfile, CallLimit, Quirk
from evbatteryd.domain.reading import Signal

from .facts import HOUR, MINUTE, SECOND
from .policy.lives import Cloud, Desk, Mishap, People, berlin

PROFILES = load_profiles()
START = datetime(2027, 12, 1, tzinfo=UTC)  # so that February has 29 days
DAY = timedelta(days=1)
DAYS_OF_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
HOLIDAYS = {4: 0.5, 7: 0.2, 8: 0.4}
"""Months with days on which nobody drives, and the least share of the calls that is used in them."""
MODEST, RICH = 120, 500
ERRORS = (
    Asleep("VEHICLE_STATE:ASLEEP", "asleep"),
    Unreachable("SERVER:INTERNAL", "500"),
    RateLimited("RATE_LIMIT:VEHICLE", "429", retry_after=2 * MINUTE),
    RateLimited("UPSTREAM:RATE_LIMIT", "502"),
    ApplicationRateLimited("RATE_LIMIT:SMARTCAR_API", "429"),
    OwnerMustAct("CONNECTED_SERVICES_ACCOUNT:ACCOUNT_ISSUE", "terms"),
)
SMARTCAR = Budget(calls_per_vehicle=500)
FREE = Budget(calls_per_vehicle=15, period=Period.DAY)


@dataclass
class Life:
    """One car in virtual time: asked when it is due, answered by the dice."""

    profile: BrandProfile
    budget: Budget
    calls_per_poll: int
    dice: random.Random
    now: datetime = START
    calls: dict[datetime, int] = field(default_factory=dict)
    """Spent per period, by its start."""
    polls: list[datetime] = field(default_factory=list)
    outcome: Outcome = field(default_factory=lambda: Answered(frozenset()))
    failures: int = 0

    def share(self) -> Share:
        period = window(self.budget, self.now)
        return Share(
            calls_left=self.budget.calls_per_vehicle - self.calls.get(period.start, 0),
            calls=self.budget.calls_per_vehicle,
            began_at=period.start,
            renews_at=period.end,
            application_interval=30 * SECOND,
        )

    def throw(self) -> Outcome:
        roll = self.dice.random()
        if roll < 0.75:
            self.failures = 0
            return Answered(frozenset({Signal.SOC}) if roll < 0.5 else frozenset())
        self.failures += 1
        error = self.dice.choice(ERRORS)
        return Failed(error, self.failures)

    def live(self, span: timedelta) -> None:
        due = first_poll(0.5, self.now).at
        while due is not None and due < START + span:
            assert due >= self.now
            self.now = due
            self.poll()
            decision = next_poll(
                Facts(
                    profile=self.profile,
                    outcome=self.outcome,
                    activity=self.dice.choice(list(Activity)),
                    share=self.share(),
                    calls_per_poll=self.calls_per_poll,
                    spread=0.4,
                ),
                self.now,
            )
            due = decision.at
        assert due is not None

    def poll(self) -> None:
        assert self.share().calls_left >= self.calls_per_poll, "due without the calls for it"
        start = window(self.budget, self.now).start
        self.calls[start] = self.calls.get(start, 0) + self.calls_per_poll
        self.polls.append(self.now)
        self.now += self.profile.latency * self.dice.uniform(0.2, 5)
        self.outcome = self.throw()


def mishaps(profile: BrandProfile, seed: str) -> Mishap:
    """One poll in twenty fails, by the dice."""
    dice = random.Random(seed)

    def mishap(_: int, now: datetime) -> SourceError | None:
        return dice.choice(ERRORS) if dice.random() < 0.05 else None

    return mishap


def year_of(brand: str, calls: int) -> Desk:
    """A year of one car and its people, who live by central European time and have two holidays."""
    profile, holidays = PROFILES[brand], {*range(95, 103), *range(200, 222)}
    people = People(random.Random(brand), offset=berlin, holidays=holidays)
    steps = profile.soc_step_percent if Quirk.SOC_STEPS in profile.quirks else 0.0
    cloud = Cloud(people.live(366), profile.reports.total_seconds(), steps=steps)
    mishap = mishaps(profile, brand)
    desk = Desk(profile, Budget(calls_per_vehicle=calls), offset=berlin, mishap=mishap)
    desk.enrol(cloud)
    desk.run(timedelta(days=366))
    return desk


def assert_within_bounds(desk: Desk, calls: int) -> None:
    """Floor, brand limit, plan, longest wait and reasons of a year."""
    asked, profile = desk.asked[1], desk.profile
    gaps = [later.at - earlier.at for earlier, later in pairwise(asked)]
    assert min(gaps) >= profile.floor
    assert max(gaps) <= longest_gap(calls, profile)
    assert desk.turned_away == []
    assert len(desk.periods()) == 12
    assert max(desk.periods()) <= calls
    if profile.limit is not None:
        recent = deque[datetime]()
        for one in asked:
            recent.append(one.at)
            while recent[0] <= one.at - profile.limit.per:
                recent.popleft()
            assert len(recent) <= profile.limit.calls
    for one in asked:
        assert one.then.reason.isprintable()
        assert len(one.then.reason) > 10
        assert one.gain >= 0


def longest_gap(calls: int, profile: BrandProfile) -> timedelta:
    """The longest wait that is documented: of an ordinary car, or of one that is thought to be laid up during
    the holidays. A failure on top of it may take a day."""
    ordinary = max(looking.LONGEST_WAIT, looking.LONGEST_IN_INTERVALS * 31 * DAY.total_seconds() / calls)
    return timedelta(seconds=max(1.01 * ordinary, looking.LONGEST_SILENT_WAIT)) + DAY + profile.idle


def assert_plan_used(desk: Desk, calls: int) -> None:
    """Of each month without holidays at least four calls in five."""
    for month, spent in enumerate(desk.periods(), 1):
        assert spent >= HOLIDAYS.get(month, 0.8) * calls, month


@pytest.mark.parametrize("brand", sorted(PROFILES))
def test_a_year_of_ordinary_people_and_a_modest_plan(brand: str) -> None:
    desk = year_of(brand, MODEST)
    assert_within_bounds(desk, MODEST)
    assert_plan_used(desk, MODEST)


@pytest.mark.parametrize("brand", ["hyundai", "renault", "tesla"])
def test_a_year_of_ordinary_people_and_a_rich_plan(brand: str) -> None:
    desk = year_of(brand, RICH)
    assert_within_bounds(desk, RICH)
    assert_plan_used(desk, RICH)


def test_a_year_under_a_limit_that_binds() -> None:
    """A plan of 720 calls a month, of a brand that allows twelve in any 24 hours."""
    limited = replace(PROFILES["bmw"], limit=CallLimit(12, DAY))
    people = People(random.Random(5), offset=berlin)
    desk = Desk(limited, Budget(calls_per_vehicle=720), offset=berlin, mishap=mishaps(limited, "limited"))
    desk.enrol(Cloud(people.live(366), limited.reports.total_seconds()))
    desk.run(timedelta(days=366))
    assert_within_bounds(desk, 720)
    for spent, days in zip(desk.periods(), DAYS_OF_MONTHS, strict=True):
        assert spent > 0.6 * 12 * days


@pytest.mark.parametrize("brand", sorted(PROFILES))
def test_a_year_by_the_rules_alone_of(brand: str) -> None:
    life = Life(PROFILES[brand], SMARTCAR, 1, random.Random(brand))
    life.live(timedelta(days=366))
    gaps = [later - earlier for earlier, later in zip(life.polls, life.polls[1:], strict=False)]
    assert min(gaps) >= life.profile.floor
    assert max(gaps) <= max(25 * HOUR, life.profile.idle + HOUR)
    assert all(spent <= SMARTCAR.calls_per_vehicle for spent in life.calls.values())
    assert len(life.calls) >= 12
    assert min(list(life.calls.values())[:12]) >= 100


@pytest.mark.parametrize("brand", sorted(name for name, known in PROFILES.items() if known.limit))
def test_the_documented_limit_of(brand: str) -> None:
    """With a plan so large that only the brand itself limits."""
    life = Life(PROFILES[brand], Budget(calls_per_vehicle=10**6), 2, random.Random(brand))
    life.live(timedelta(days=10))
    limit = life.profile.limit
    assert limit is not None
    recent = deque[datetime]()
    for at in life.polls:
        recent.extend([at] * life.calls_per_poll)
        while recent[0] <= at - limit.per:
            recent.popleft()
        assert len(recent) <= max(limit.calls, life.calls_per_poll)


@pytest.mark.parametrize("calls_per_poll", [1, 2, 4, 15])
def test_a_scarce_daily_plan_lasts_the_day(calls_per_poll: int) -> None:
    life = Life(PROFILES["unknown"], FREE, calls_per_poll, random.Random(calls_per_poll))
    life.live(timedelta(days=60))
    assert all(spent <= FREE.calls_per_vehicle for spent in life.calls.values())
    assert len(life.calls) >= 40  # days: whoever has to act is asked once a day, not always the same hour


def test_a_plan_that_ran_out_at_the_other_end_is_left_alone_until_it_turns() -> None:
    life = Life(PROFILES["unknown"], SMARTCAR, 1, random.Random(1), now=START + timedelta(days=3))
    outcome = Failed(BudgetSpent("BILLING:VEHICLE_REQUEST_LIMIT", "430"), 1)
    facts = Facts(
        profile=life.profile, outcome=outcome, activity=Activity.CHARGING, share=life.share(), spread=0.9
    )
    at = next_poll(facts, life.now).at
    assert at is not None
    turned = window(SMARTCAR, life.now).end
    assert turned <= at <= turned + HOUR

"""A simulated year of every brand: no plan overspent, no floor broken, no car forgotten."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from evbatteryd.brands import load_profiles
from evbatteryd.domain.cadence import Answered, Facts, Failed, Outcome, first_poll, next_poll
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    Asleep,
    BudgetSpent,
    OwnerMustAct,
    RateLimited,
    Unreachable,
)
from evbatteryd.domain.ledger import Budget, Period, Share, window
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import Signal

from .facts import HOUR, MINUTE, SECOND

PROFILES = load_profiles()
START = datetime(2027, 12, 1, tzinfo=UTC)  # so that February has 29 days
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
            renews_at=period.end,
            application_interval=30 * SECOND,
        )

    def throw(self) -> Outcome:
        roll = self.dice.random()
        if roll < 0.75:
            self.failures = 0
            return Answered(frozenset({Signal.SOC}) if roll < 0.5 else frozenset())
        self.failures += 1
        error = self.dice.choice(
            [
                Asleep("VEHICLE_STATE:ASLEEP", "asleep"),
                Unreachable("SERVER:INTERNAL", "500"),
                RateLimited("RATE_LIMIT:VEHICLE", "429", retry_after=2 * MINUTE),
                RateLimited("UPSTREAM:RATE_LIMIT", "502"),
                ApplicationRateLimited("RATE_LIMIT:SMARTCAR_API", "429"),
                OwnerMustAct("CONNECTED_SERVICES_ACCOUNT:ACCOUNT_ISSUE", "terms"),
            ]
        )
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


@pytest.mark.parametrize("brand", sorted(PROFILES))
def test_a_year_of(brand: str) -> None:
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

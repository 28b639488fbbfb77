"""What an answer makes of a car: checked, merged, learnt from, and the next poll decided.

Pure but for the application's lore, which learns. The daemon's poller and the benchmark both settle by it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from evbatteryd.domain.cadence import Answered, Failed, NextPoll, Outcome, activity, next_poll
from evbatteryd.domain.errors import SourceError
from evbatteryd.domain.fleet import Car, Trouble, facts_of
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.plausibility import plausible
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.polling import after_answer, after_failure
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.pushing import missed_by_webhooks, silent_for_long
from evbatteryd.domain.reading import BatteryState, Observation, Rejected, merge


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What one answer comes to."""

    car: Car
    """As it is after the answer."""
    news: bool
    """Whether its state holds something new."""
    rejected: tuple[Rejected, ...]
    """What the source told and cannot be."""
    missed: bool
    """Whether the answer tells what a webhook should have brought: webhooks have fallen silent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """What an answer tells, before it is decided when to ask again."""

    car: Car
    outcome: Outcome
    wanted: NextPoll | None = None
    gain: float = 0.0
    rejected: tuple[Rejected, ...] = ()
    missed: bool = False
    not_before: datetime | None = None


def settle(
    car: Car,
    answer: Observation | SourceError,
    profile: BrandProfile,
    share: Share,
    lore: Lore,
    *,
    calls: int,
    began: datetime,
    now: datetime,
) -> Settled:
    """The car after its source was asked at ``began`` and had answered at ``now``.

    ``calls``: requests that this took; 0: none was sent, so the car counts as not asked.
    """
    if isinstance(answer, SourceError):
        heard = _failed(car, answer, profile, share, lore, calls, now)
    else:
        heard = _answered(car, answer, profile, share, lore, calls, now)
    schedule, outcome = heard.car.schedule, heard.outcome
    decision = next_poll(facts_of(heard.car, profile, outcome, share, heard.wanted), now)
    if decision.at is not None and heard.not_before is not None and decision.at < heard.not_before:
        why = f"{decision.reason}; but {profile.name} may not be asked sooner"
        decision = NextPoll(heard.not_before, why)
    silent = car.schedule.pushed_at is not None and schedule.pushed_at is None
    schedule = replace(
        schedule,
        due=decision.at,
        reason=f"{decision.reason} (webhooks have fallen silent)" if silent else decision.reason,
        polled_at=began if calls else schedule.polled_at,
        outcome=outcome.label,
        gain=heard.gain,
    )
    return Settled(
        car=replace(heard.car, schedule=schedule),
        news=isinstance(outcome, Answered) and bool(outcome.news),
        rejected=heard.rejected,
        missed=heard.missed,
    )


def _answered(
    car: Car, told: Observation, profile: BrandProfile, share: Share, lore: Lore, calls: int, now: datetime
) -> _Heard:
    checked = plausible(told, car.state, now)
    state, news = merge(car.state, checked.measurements)
    pushed_at, missed = _still_pushed(car, state, profile, now)
    schedule = replace(
        car.schedule,
        answered_at=now,
        failures=0,
        calls_per_poll=max(calls, 1),
        activity=activity(car.state, state, profile, now),
        pushed_at=pushed_at,
    )
    chosen = after_answer(replace(car, schedule=schedule), state, profile, share, lore, now)
    return _Heard(
        car=replace(
            car, state=state, schedule=schedule, trouble=None, learned=chosen.learned, trend=chosen.trend
        ),
        outcome=Answered(news),
        wanted=chosen.wanted,
        gain=chosen.gain if pushed_at is None else 0.0,
        rejected=checked.rejected,
        missed=missed,
    )


def _failed(
    car: Car, error: SourceError, profile: BrandProfile, share: Share, lore: Lore, calls: int, now: datetime
) -> _Heard:
    failed = Failed(error, car.schedule.failures + 1)
    unanswered = after_failure(car, profile, share, lore, calls, now)
    after = replace(
        car,
        schedule=replace(car.schedule, failures=failed.in_a_row),
        trouble=_trouble(car.trouble, error, now),
        learned=unanswered.learned,
        trend=unanswered.trend,
    )
    return _Heard(car=after, outcome=failed, not_before=unanswered.not_before)


def _trouble(before: Trouble | None, error: SourceError, now: datetime) -> Trouble:
    """The same trouble as before goes on since then; another one begins now."""
    since = before.since if before is not None and before.outcome == error.outcome else now
    return Trouble(error.outcome, error.code, error.detail, since)


def _still_pushed(
    car: Car, state: BatteryState, profile: BrandProfile, now: datetime
) -> tuple[datetime | None, bool]:
    """When a webhook last brought data, None if they are no longer taken to deliver; and whether one was
    missed, by what this poll found.
    """
    pushed_at, doing = car.schedule.pushed_at, car.schedule.activity
    if pushed_at is None or silent_for_long(pushed_at, profile, doing, now):
        return None, False
    missed = missed_by_webhooks(car.state, state, pushed_at, profile, doing, now)
    return (None if missed else pushed_at), missed

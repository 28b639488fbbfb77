"""When to ask a car again, and why in words: every rule about waiting.

Pure: facts and ``now`` in, a decision out. A simulated year runs in a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never

from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    Asleep,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    OwnerMustAct,
    PlanRefused,
    RateLimited,
    SourceError,
    Unreachable,
)
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState, Signal

DAY = timedelta(days=1)
LONGEST_BACK_OFF = timedelta(hours=6)
_AWAY = " (fell due while evbatteryd was away)"


@dataclass(frozen=True, slots=True)
class Answered:
    """The source answered. ``news``: with something not known before; without, the call was wasted."""

    news: frozenset[Signal]

    @property
    def label(self) -> str:
        return "new" if self.news else "unchanged"


@dataclass(frozen=True, slots=True)
class Failed:
    """The source did not answer with data, for the ``in_a_row``-th time."""

    error: SourceError
    in_a_row: int

    @property
    def label(self) -> str:
        return self.error.outcome


Outcome = Answered | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All that the decision rests on."""

    profile: BrandProfile
    outcome: Outcome
    activity: Activity
    share: Share
    calls_per_poll: int = 1
    spread: float = 0.5
    """A stable number in [0, 1) of this car."""


@dataclass(frozen=True, slots=True)
class NextPoll:
    """The decision. ``at`` None: not before something changes from outside (a new consent)."""

    at: datetime | None
    reason: str


def activity(before: BatteryState, after: BatteryState, profile: BrandProfile, now: datetime) -> Activity:
    """What the car is doing at ``now``, by the newest state and the one before it.

    No signal says "driving"; an odometer that moved or a SoC that fell, measured just now, does.
    """
    if after.charging:
        return Activity.CHARGING
    measured = after.measured_at
    if measured is None or now - measured > 2 * profile.reports + timedelta(minutes=10):
        return Activity.PARKED
    was, is_now = before.signals.get(Signal.ODOMETER), after.signals.get(Signal.ODOMETER)
    if was is not None and is_now is not None and float(is_now.value) > float(was.value):
        return Activity.DRIVING
    soc_was, soc_now = before.soc_percent, after.soc_percent
    fell = soc_was is not None and soc_now is not None and soc_was - soc_now >= profile.soc_step_percent
    return Activity.DRIVING if fell and not after.plugged_in else Activity.PARKED


def next_poll(facts: Facts, now: datetime) -> NextPoll:
    """When to ask next, never before the brand's floor, and the reason in one sentence."""
    match facts.outcome:
        case Answered():
            return _after_answer(facts, now)
        case Failed(error, in_a_row):
            return _after_failure(facts, error, in_a_row, now)
        case never:
            assert_never(never)


def _after_answer(facts: Facts, now: datetime) -> NextPoll:
    profile, share = facts.profile, facts.share
    pace = profile.interval(facts.activity)
    budget = share.interval(facts.calls_per_poll, now)
    if share.calls_left < facts.calls_per_poll:
        return NextPoll(
            max(share.renews_at, now + profile.floor),
            f"the plan's calls are used up until {_day(share.renews_at)}",
        )
    if budget > pace:
        return NextPoll(
            now + budget,
            f"{facts.activity}; {profile.name} allows every {words(pace)}, "
            f"the budget ({share.calls_left} calls left until {_day(share.renews_at)}) every {words(budget)}",
        )
    return NextPoll(now + pace, f"{facts.activity}; {profile.name} every {words(pace)}")


def _after_failure(facts: Facts, error: SourceError, in_a_row: int, now: datetime) -> NextPoll:
    profile = facts.profile
    budget = facts.share.interval(facts.calls_per_poll, now)
    match error:
        case ConsentLost():
            return NextPoll(None, "consent lost: only the owner can help, by consenting again")
        case NotCapable():
            return NextPoll(None, "this car can never answer: not asked again")
        case BudgetSpent():
            at = max(facts.share.renews_at, now + profile.floor)
            return NextPoll(at, f"the plan's calls are used up until {_day(at)}")
        case PlanRefused():
            return NextPoll(now + DAY, "the plan or the account is refused: once a day until it is put right")
        case OwnerMustAct():
            return NextPoll(now + DAY, "the owner has to act first: once a day until then")
        case ApplicationRefused():
            return _back_off(facts, in_a_row, now, "the application's credentials are refused")
        case ApplicationRateLimited(retry_after=wait):
            pause = max(wait or timedelta(minutes=1), profile.floor)
            return NextPoll(now + pause, f"the application is rate limited: all its cars wait {words(pause)}")
        case RateLimited(retry_after=timedelta() as wait):
            pause = max(wait, profile.floor)
            return NextPoll(now + pause, f"told to wait {words(pause)} for this car")
        case RateLimited():
            return _back_off(facts, in_a_row, now, "the OEM limits calls for this car")
        case Asleep():
            pause = max(profile.idle, profile.floor, budget)
            return NextPoll(
                now + pause, f"asleep or nothing new to have; {profile.name} every {words(pause)}"
            )
        case Unreachable() | SourceError():
            return _back_off(facts, in_a_row, now, f"failed {_times(in_a_row)} ({error.code})")
        case never:
            assert_never(never)


def _back_off(facts: Facts, in_a_row: int, now: datetime, why: str) -> NextPoll:
    """Exponential from the floor up to six hours, spread by a quarter, and no faster than the budget."""
    profile = facts.profile
    doubled = profile.floor * 2 ** min(in_a_row - 1, 12)
    pause = min(max(doubled, timedelta(minutes=1)), max(LONGEST_BACK_OFF, profile.floor))
    pause = max(pause * (1 + facts.spread / 4), min(facts.share.interval(facts.calls_per_poll, now), DAY))
    return NextPoll(now + pause, f"{why}: backing off for {words(pause)}")


def first_poll(spread: float, now: datetime) -> NextPoll:
    """A car that was just enrolled is asked within seconds."""
    return NextPoll(now + timedelta(seconds=5 * spread), "newly enrolled: first reading")


def resumed(due: datetime, reason: str, profile: BrandProfile, spread: float, now: datetime) -> NextPoll:
    """The schedule after a restart: as it stood, and what fell due meanwhile spread out, so nothing bursts."""
    if due >= now:
        return NextPoll(due, reason)
    room = min(profile.charging, timedelta(minutes=15))
    overdue = now - due
    pause = spread * min(room, max(overdue, timedelta(seconds=1)))
    return NextPoll(now + pause, reason.removesuffix(_AWAY) + _AWAY)


def urgency(due: datetime, interval: timedelta, now: datetime) -> float:
    """What a scarce call is worth to a waiting car: how late it is, in its own intervals."""
    return (now - due) / max(interval, timedelta(seconds=1))


def words(span: timedelta) -> str:
    """A duration as people say it: ``45 s``, ``15 min``, ``2 h 30 min``, ``3 d 4 h``."""
    seconds = max(round(span.total_seconds()), 0)
    if seconds < 90:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        hours, rest = divmod(minutes, 60)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, rest = divmod(round(minutes / 60), 24)
    return f"{days} d {rest} h" if rest else f"{days} d"


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times in a row"

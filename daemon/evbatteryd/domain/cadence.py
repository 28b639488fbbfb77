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
    NothingYet,
    OwnerMustAct,
    PlanRefused,
    RateLimited,
    SourceError,
    Unreachable,
    Unreadable,
)
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.profile import Activity, BrandProfile, Quirk
from evbatteryd.domain.reading import BatteryState, Measurement, Signal

DAY = timedelta(days=1)
LONGEST_BACK_OFF = timedelta(hours=6)
LONGEST_ASLEEP = timedelta(days=7)
"""The longest wait for a car that sleeps on and on ..."""
ASLEEP_SHARE = 0.25
"""... of the time for which it has slept."""
LONGEST_UNREACHABLE = timedelta(days=2)
"""The longest wait for a car that cannot be reached ..."""
UNREACHABLE_SHARE = 0.125
"""... of the time for which it could not, once that is a day."""
RESERVE_KEPT = 1 / 30
"""When so much of the plan's period is left, what was kept for hints may go to anything."""
LONGEST_WAIT = timedelta(days=31)
"""A plan's period. Whoever is told to wait longer was told wrongly: a header in milliseconds, say."""
SILENT_CHARGE = DAY
"""A charge of which nothing was heard for so long no longer sets the pace: the car may be anywhere."""
_AWAY = " (fell due while evbatteryd was away)"
_CALMED = frozenset(error.outcome for error in (Asleep, Unreachable, Unreadable, SourceError))


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
    first: bool = False
    """Whether this is the car's first outcome."""
    pushed_at: datetime | None = None
    """When a webhook last brought data of the car; None while webhooks do not deliver."""
    since: datetime | None = None
    """When the car's trouble began, of which the outcome is one more sign; None: just now."""
    wanted: NextPoll | None = None
    """What the polling policy chose after an answer; None while it knows no state of charge to go by: then
    the brand's own pace holds."""


@dataclass(frozen=True, slots=True)
class NextPoll:
    """The decision. ``at`` None: not before something changes from outside (a new consent)."""

    at: datetime | None
    reason: str


def activity(before: BatteryState, after: BatteryState, profile: BrandProfile, now: datetime) -> Activity:
    """What the car is doing at ``now``, by the newest state and the one before it.

    No signal says "driving"; an odometer that moved or a SoC that fell does, if it was measured just now and
    the car was not plugged in since.
    """
    if after.charging and not _silent(after, now):
        return Activity.CHARGING
    moved = movement(before, after, profile)
    if moved is None or moved.measured_at is None:
        return Activity.PARKED
    if now - moved.measured_at > trip_known_for(profile):
        return Activity.PARKED
    cable = after.signals.get(Signal.PLUGGED_IN)
    if cable is None or not cable.value:
        return Activity.DRIVING
    arrived = cable.measured_at is None or cable.measured_at >= moved.measured_at
    return Activity.PARKED if arrived else Activity.DRIVING


def trip_known_for(profile: BrandProfile) -> timedelta:
    """How long after a measurement a car that moved then is taken for still driving."""
    return 2 * profile.reports + timedelta(minutes=10)


def _silent(state: BatteryState, now: datetime) -> bool:
    times = [told.measured_at for told in state if told.measured_at is not None]
    return bool(times) and now - max(times) > SILENT_CHARGE


def movement(before: BatteryState, after: BatteryState, profile: BrandProfile) -> Measurement | None:
    """The measurement by which the car moved between two states."""
    km_was, km = before.number(Signal.ODOMETER), after.number(Signal.ODOMETER)
    if km_was is not None and km is not None and km > km_was:
        return after.signals[Signal.ODOMETER]
    soc_was, soc = before.soc_percent, after.soc_percent
    if soc_was is not None and soc is not None and soc_was - soc >= profile.soc_step_percent:
        return after.signals[Signal.SOC]
    return None


def next_poll(facts: Facts, now: datetime) -> NextPoll:
    """When to ask next, and the reason in one sentence.

    Never before the brand's floor, what the source told to wait, or the calls for it are there. What the
    policy chose is paced by its price; all else keeps to an even share of the plan and of the application's
    requests, whatever the outcome: a failure is a call too.
    """
    match facts.outcome:
        case Answered() if facts.wanted is not None and facts.pushed_at is None:
            return _within_reach(facts.wanted, facts, now)
        case Answered():
            return _within_budget(_after_answer(facts, now), facts, now)
        case Failed(error, in_a_row):
            wanted = _after_failure(facts, error, in_a_row, now)
            return _within_budget(_as_told(wanted, error, now), facts, now)
        case never:
            assert_never(never)


def webhook_wait(profile: BrandProfile, doing: Activity) -> timedelta:
    """How long the next webhook of a car is awaited before one poll makes sure.

    Twice the brand's pace: within the time for which a value is taken for fresh.
    """
    return 2 * profile.interval(doing)


def asked_to_make_sure(
    profile: BrandProfile, polled_at: datetime | None, why: str, now: datetime
) -> NextPoll:
    """One poll, at the brand's parked pace at most, to see whether what a webhook says of it is true."""
    at = now if polled_at is None else max(now, polled_at + profile.interval(Activity.PARKED))
    return NextPoll(at, f"a webhook reports {why}: asking once to make sure")


def _after_answer(facts: Facts, now: datetime) -> NextPoll:
    profile = facts.profile
    if facts.pushed_at is not None:
        pause = max(webhook_wait(profile, facts.activity), _brand_pace(facts))
        return NextPoll(
            now + pause,
            f"{facts.activity}; webhooks deliver, the last one at {_day(facts.pushed_at)}: polled only "
            f"if none comes for {words(pause)}",
        )
    pace = max(profile.interval(facts.activity), _brand_pace(facts))
    reason = f"{facts.activity}; {profile.name} every {words(pace)}"
    if facts.first:  # or cars that were enrolled together would be asked together for ever
        pace = max(pace * (1 - facts.spread / 2), _brand_pace(facts))
        reason = f"{reason}, the first time after {words(pace)}"
    return NextPoll(now + pace, reason)


def _as_told(wanted: NextPoll, error: SourceError, now: datetime) -> NextPoll:
    """A wait that came with an error holds, whatever the error."""
    if wanted.at is None or error.retry_after is None:
        return wanted
    told = min(error.retry_after, LONGEST_WAIT)
    if wanted.at >= now + told:
        return wanted
    return NextPoll(now + told, f"{wanted.reason}, told to wait {words(told)}")


def _brand_pace(facts: Facts) -> timedelta:
    """The floor, or what the brand's documented limit of calls allows; one poll may take several."""
    floor, limit = facts.profile.floor, facts.profile.limit
    return floor if limit is None else max(floor, limit.interval * facts.calls_per_poll)


def _within_budget(wanted: NextPoll, facts: Facts, now: datetime) -> NextPoll:
    """The poll that is wanted, at the pace that the brand, the plan and the application's bucket allow."""
    if wanted.at is None:
        return wanted
    share = facts.share
    if share.calls_left < facts.calls_per_poll:
        renewed = _renewed(facts, now)
        if wanted.at >= renewed:
            return wanted
        return NextPoll(
            renewed, f"{wanted.reason}; but the plan's calls are used up until {_day(share.renews_at)}"
        )
    pace = max(_brand_pace(facts), share.interval(facts.calls_per_poll, now))
    if wanted.at >= now + pace:
        return wanted
    if pace == _brand_pace(facts):
        bound = f"the limit of {facts.profile.name}"
    elif pace > share.application_interval * facts.calls_per_poll:
        bound = f"the budget ({share.calls_left} calls left until {_day(share.renews_at)})"
    else:
        bound = "the application's rate limit, shared by all its cars,"
    return NextPoll(now + pace, f"{wanted.reason}; but {bound} allows one every {words(pace)}")


def _within_reach(wanted: NextPoll, facts: Facts, now: datetime) -> NextPoll:
    """The poll that the policy chose, if the floor is kept and the plan has calls for it."""
    share = facts.share
    kept = share.reserve if share.renews_at - now > RESERVE_KEPT * (share.renews_at - share.began_at) else 0
    if wanted.at is None:
        return wanted
    # What was learnt by a clock that went wrong may lead anywhere.
    pause = max(min(wanted.at - now, LONGEST_WAIT), facts.profile.floor)
    if share.calls_left - kept < facts.calls_per_poll:
        renewed = _renewed(facts, now)
        if now + pause >= renewed:
            return NextPoll(now + pause, wanted.reason)
        rest = "" if share.calls_left < facts.calls_per_poll else ", but for hints and commands,"
        why = f"the plan's calls are used up{rest} until {_day(share.renews_at)}"
        return NextPoll(renewed, f"{wanted.reason}; but {why}")
    if facts.first:  # or cars that were enrolled together would be asked together for ever
        pause = max(pause * (1 - facts.spread / 2), facts.profile.floor)
    return NextPoll(now + pause, wanted.reason)


def _renewed(facts: Facts, now: datetime) -> datetime:
    """When the plan's period has turned: not for every car in the same second."""
    share = facts.share
    pace = max(_brand_pace(facts), share.application_interval * facts.calls_per_poll)
    return max(share.renews_at, now + pace) + facts.spread * _room(facts.profile)


def _room(profile: BrandProfile) -> timedelta:
    """Over how long cars that fall due together are spread."""
    return min(profile.charging, timedelta(minutes=15))


def _after_failure(facts: Facts, error: SourceError, in_a_row: int, now: datetime) -> NextPoll:
    profile = facts.profile
    match error:
        case ConsentLost():
            return NextPoll(None, "consent lost: only the owner can help, by consenting again")
        case NotCapable():
            return NextPoll(None, "this car can never answer: not asked again")
        case BudgetSpent():
            return NextPoll(
                _renewed(facts, now), f"the plan's calls are used up until {_day(facts.share.renews_at)}"
            )
        case PlanRefused():
            return NextPoll(now + DAY, "the plan or the account is refused: once a day until it is put right")
        case OwnerMustAct():
            return NextPoll(now + DAY, "the owner has to act first: once a day until then")
        case ApplicationRefused():
            return _back_off(facts, in_a_row, now, "the application's credentials are refused")
        case ApplicationRateLimited(retry_after=wait):
            pause = max(min(wait or timedelta(minutes=1), LONGEST_WAIT), profile.floor)
            pause += facts.spread * _room(profile)
            return NextPoll(now + pause, f"the application is rate limited: all its cars wait {words(pause)}")
        case RateLimited(retry_after=timedelta() as wait):
            pause = max(min(wait, LONGEST_WAIT), profile.floor)
            return NextPoll(now + pause, f"told to wait {words(pause)} for this car")
        case RateLimited():
            return _back_off(facts, in_a_row, now, "the OEM limits calls for this car")
        case NothingYet():
            # A car that was just enrolled has something to tell within minutes; another one may never have.
            soon = max(profile.floor * 4 ** min(in_a_row - 1, 6), timedelta(minutes=1))
            pause = max(min(soon, profile.idle), profile.floor)
            return NextPoll(now + pause, f"nothing to have of this car yet: asked again after {words(pause)}")
        case Asleep():
            return _asleep(facts, now)
        case Unreachable() | SourceError():
            return _unreachable(facts, in_a_row, now, f"failed {_times(in_a_row)} ({error.code})")
        case never:
            assert_never(never)


def calmed(outcome: str, since: datetime, now: datetime) -> bool:
    """Whether a car with that trouble has been silent for so long that the silence sets the pace: then
    whatever is heard of it may be the first sign that it is there again.
    """
    return outcome in _CALMED and now - since >= DAY


def longest_calm(since: datetime, now: datetime) -> timedelta:
    """How long the next poll of a car that could not be reached since then may be put off for that alone."""
    return max(1.25 * LONGEST_BACK_OFF, min(UNREACHABLE_SHARE * (now - since), LONGEST_UNREACHABLE))


def _asleep(facts: Facts, now: datetime) -> NextPoll:
    """At the idle interval, and the longer it sleeps the less."""
    profile, slept = facts.profile, _lasted(facts, now)
    usual = max(profile.idle, profile.floor)
    pause = max(usual, min(ASLEEP_SHARE * slept, LONGEST_ASLEEP))
    if pause == usual:
        return NextPoll(now + pause, f"asleep; {profile.name} every {words(pause)}")
    deep = f" ({profile.name} stops telling after some days without a trip)"
    named = deep if Quirk.DEEP_SLEEP in profile.quirks else ""
    return NextPoll(
        now + pause,
        f"asleep for {words(slept)}{named}; asked less and less until it wakes: in {words(pause)}",
    )


def _unreachable(facts: Facts, in_a_row: int, now: datetime, why: str) -> NextPoll:
    """Exponential at first; when that has lasted for a day, the longer it lasts the less."""
    backed_off, lasted = _back_off(facts, in_a_row, now, why), _lasted(facts, now)
    pause = min(UNREACHABLE_SHARE * lasted, LONGEST_UNREACHABLE)
    if lasted < DAY or backed_off.at is None or now + pause <= backed_off.at:
        return backed_off
    calm = f"asked less and less until it answers: in {words(pause)}"
    return NextPoll(now + pause, f"{why} for {words(lasted)}; {calm}")


def _lasted(facts: Facts, now: datetime) -> timedelta:
    return timedelta() if facts.since is None else max(now - facts.since, timedelta())


def _back_off(facts: Facts, in_a_row: int, now: datetime, why: str) -> NextPoll:
    """Exponential from the floor up to six hours, spread by a quarter."""
    profile = facts.profile
    doubled = profile.floor * 2 ** min(max(in_a_row - 1, 0), 12)
    pause = min(max(doubled, timedelta(minutes=1)), max(LONGEST_BACK_OFF, profile.floor))
    pause *= 1 + facts.spread / 4
    return NextPoll(now + pause, f"{why}: backing off for {words(pause)}")


def first_poll(spread: float, now: datetime) -> NextPoll:
    """A car that was just enrolled is asked within seconds."""
    return NextPoll(now + timedelta(seconds=5 * spread), "newly enrolled: first reading")


def consented_anew(
    profile: BrandProfile, spread: float, polled_at: datetime | None, now: datetime
) -> NextPoll:
    """A car whose owner consented again is asked like a new one, but not under the floor."""
    soonest = now + timedelta(seconds=5 * spread)
    at = soonest if polled_at is None else max(soonest, polled_at + profile.floor)
    return NextPoll(at, "consented anew: first reading")


def subscribed_now(profile: BrandProfile, polled_at: datetime | None, now: datetime) -> NextPoll:
    """A car that was just subscribed at the source has data soon; a webhook may well bring it first."""
    at = now + timedelta(minutes=1)
    return NextPoll(
        at if polled_at is None else max(at, polled_at + profile.floor), "subscribed: first reading"
    )


def resumed(due: datetime, reason: str, profile: BrandProfile, spread: float, now: datetime) -> NextPoll:
    """The schedule after a restart: as it stood, but what fell due meanwhile is spread out: no burst."""
    if due >= now:
        # No wait is longer than that: what stands beyond it was noted by a clock that went wrong.
        return NextPoll(min(due, now + LONGEST_WAIT + _room(profile)), reason)
    overdue = now - due
    pause = spread * min(_room(profile), max(overdue, timedelta(seconds=1)))
    return NextPoll(now + pause, reason.removesuffix(_AWAY) + _AWAY)


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

"""What a webhook means for a car: its values, its trouble, and when polls have to make sure. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta

from evbatteryd.domain.cadence import (
    DAY,
    Answered,
    activity,
    asked_to_make_sure,
    calmed,
    movement,
    next_poll,
    trip_known_for,
    webhook_wait,
)
from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    PlanRefused,
    RateLimited,
)
from evbatteryd.domain.fleet import Car, Trouble, facts_of
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState, Measurement, Signal, merge
from evbatteryd.domain.webhook import ToldError

DELIVERY_TAKES = timedelta(minutes=5)
"""Smartcar tries four times within 175 s, each for 15 s at most:
https://smartcar.com/docs/integrations/webhooks/best-practices/reliability"""
OF_ASKING = frozenset(
    error.outcome
    for error in (ApplicationRateLimited, ApplicationRefused, BudgetSpent, PlanRefused, RateLimited)
)
"""Troubles of asking, not of the car: a webhook neither has nor ends them, and shortens no wait of theirs."""
_STOPPED = frozenset({ConsentLost.outcome, NotCapable.outcome})
_ALWAYS_PUSHED = (Signal.SOC, Signal.CHARGING, Signal.CHARGE_STATE)
"""What a webhook for a battery daemon has triggers on. Others may be left out of one that works well."""


def after_push(
    car: Car,
    profile: BrandProfile,
    share: Share | None,
    measurements: Iterable[Measurement],
    now: datetime,
) -> tuple[Car, frozenset[Signal]]:
    """The car after it was told these, and what of them was news. ``share`` None: it is not asked at all.

    Webhooks count as delivering only if they bring the state of charge with the car's time, and not from
    before what is known: nothing else could stand in for a poll. But whatever was measured of a car that was
    silent for long shows that it is there again, and has it asked.
    """
    told = tuple(measurements)
    state, news = merge(car.state, told)
    doing = _doing(car, state, profile, now)
    after = replace(car, state=state, schedule=replace(car.schedule, activity=doing))
    measured_at = _soc_told_at(car.state, told)
    if measured_at is None:
        return _woken(after, profile, told, now) if share is not None else after, news
    after = replace(after, schedule=replace(after.schedule, pushed_at=now))
    trouble = car.trouble
    if share is None or (trouble is not None and not _ends(trouble, measured_at)):
        return _with_net(after, profile, share, now) if _of_asking(trouble) else after, news
    if trouble is not None and trouble.outcome in _STOPPED:
        schedule = after.schedule
        sure = asked_to_make_sure(profile, schedule.polled_at, f"news in spite of {trouble.code}", now)
        schedule = replace(schedule, due=sure.at, reason=sure.reason, failures=0)
        return replace(after, schedule=schedule, trouble=None), news
    after = replace(after, trouble=None, schedule=replace(after.schedule, failures=0, due=None))
    return _with_net(after, profile, share, now), news


def _soc_told_at(before: BatteryState, told: Iterable[Measurement]) -> datetime | None:
    """The car's time of the newest state of charge among these; None if it is older than the one known."""
    times = [m.measured_at for m in told if m.signal is Signal.SOC and m.measured_at is not None]
    newest = max(times, default=None)
    known = before.measured_at
    return newest if newest is None or known is None or newest >= known else None


def _woken(car: Car, profile: BrandProfile, told: Iterable[Measurement], now: datetime) -> Car:
    """Asked soon, if it was asked less and less and this was measured since.

    Whatever troubles it then has begun after that.
    """
    trouble = car.trouble
    if trouble is None or car.schedule.due is None or not calmed(trouble.outcome, trouble.since, now):
        return car
    times = [one.measured_at for one in told if one.measured_at is not None]
    alive_at = max(times, default=trouble.since)
    if alive_at <= trouble.since:
        return car
    car = replace(car, trouble=replace(trouble, since=min(alive_at, now)))
    return _made_sure(car, profile, "a sign of life", now)


def _ends(trouble: Trouble, measured_at: datetime) -> bool:
    """Whether a measurement of then shows that it is over: one from before shows nothing."""
    return trouble.outcome not in OF_ASKING and measured_at > trouble.since


def _of_asking(trouble: Trouble | None) -> bool:
    return trouble is not None and trouble.outcome in OF_ASKING


def _with_net(car: Car, profile: BrandProfile, share: Share | None, now: datetime) -> Car:
    """With the poll that makes sure should no further webhook come; it brings nothing forward."""
    if share is None:
        return car
    schedule, facts = car.schedule, facts_of(car, profile, Answered(frozenset()), share)
    net = next_poll(facts, now)
    if schedule.due is not None and (net.at is None or net.at <= schedule.due):
        return car
    return replace(car, schedule=replace(schedule, due=net.at, reason=net.reason))


def _doing(car: Car, state: BatteryState, profile: BrandProfile, now: datetime) -> Activity:
    """As :func:`activity` has it, but nobody on a trip has parked because a webhook tells nothing of it."""
    doing = activity(car.state, state, profile, now)
    if doing is not Activity.PARKED or car.schedule.activity is not Activity.DRIVING or state.plugged_in:
        return doing
    if movement(car.state, state, profile) is not None:  # of long ago, or ended by the cable
        return doing
    found = (state.signals.get(signal) for signal in (Signal.SOC, Signal.ODOMETER))
    times = [told.measured_at for told in found if told is not None and told.measured_at is not None]
    on_its_way = bool(times) and now - max(times) <= trip_known_for(profile)
    return Activity.DRIVING if on_its_way else Activity.PARKED


def after_error(car: Car, profile: BrandProfile, told: ToldError, now: datetime) -> Car:
    """The car after it was told an error, or the end of one.

    What concerns single signals is theirs alone, unless the state of charge is among them. Bad news that
    would stop the car for good is not taken on trust: Smartcar sends such errors for signals that have
    nothing to do with the battery (github.com/wbyoung/smartcar, ``FAQ.md``). One poll makes sure, and what
    that answers counts.
    """
    error, schedule = told.error, car.schedule
    if told.signals is not None and Signal.SOC not in told.signals:
        return car
    if told.resolved:
        over = car.trouble is not None and car.trouble.code == error.code
        return (
            _made_sure(replace(car, trouble=None), profile, f"the end of {error.code}", now) if over else car
        )
    if not car.consented or schedule.due is None or error.outcome in OF_ASKING:
        return car
    if error.outcome in _STOPPED:
        return _made_sure(car, profile, error.code, now)
    since = car.trouble.since if car.trouble is not None and car.trouble.outcome == error.outcome else now
    return replace(car, trouble=Trouble(error.outcome, error.code, error.detail, since))


def _made_sure(car: Car, profile: BrandProfile, why: str, now: datetime) -> Car:
    schedule = car.schedule
    sure = asked_to_make_sure(profile, schedule.polled_at, why, now)
    if sure.at is None or (schedule.due is not None and schedule.due <= sure.at):
        return car
    return replace(car, schedule=replace(schedule, due=sure.at, reason=sure.reason))


def missed_by_webhooks(
    before: BatteryState,
    after: BatteryState,
    pushed_at: datetime,
    profile: BrandProfile,
    doing: Activity,
    now: datetime,
) -> bool:
    """Whether a poll found what a webhook should have brought by ``now``: then they have fallen silent.

    Webhooks are sent for values that changed. One for a change of just now may be on its way, but not if the
    last one came long ago: a car whose cloud always has a recent value has changed before.
    """
    long_ago = now - pushed_at > profile.interval(doing) + DELIVERY_TAKES
    for signal in _ALWAYS_PUSHED:
        told, known = after.signals.get(signal), before.signals.get(signal)
        if told is None or known is None or told.value == known.value:
            continue
        on_its_way = told.measured_at is not None and now - told.measured_at <= DELIVERY_TAKES
        if long_ago or not on_its_way:
            return True
    return False


def silent_for_long(pushed_at: datetime, profile: BrandProfile, doing: Activity, now: datetime) -> bool:
    """Whether so long without a webhook proves nothing any more, though no poll found that one was missed."""
    return now - pushed_at > max(DAY, webhook_wait(profile, doing))

"""What a command is answered before it costs anything, when readings may show what it did, and whether one
does: every rule about commands. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from evbatteryd.domain.cadence import LONGEST_WAIT, words
from evbatteryd.domain.commanding import Action, Command, CommandKind, CommandOutcome
from evbatteryd.domain.errors import (
    Asleep,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    NothingYet,
    NotPermitted,
    OwnerMustAct,
    PlanRefused,
    RateLimited,
    SourceError,
)
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.hinting import AT_EASE, imposed_wait
from evbatteryd.domain.ledger import Budget, Share
from evbatteryd.domain.policy.habits import Habits, Told
from evbatteryd.domain.policy.polling import soonest
from evbatteryd.domain.profile import Activity, BrandProfile, Quirk
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Signal

CONTROL_CHARGE: Final = "control_charge"
"""Smartcar's permission for charge commands: https://smartcar.com/docs/api-reference/permissions."""
LIMIT_STEP_PERCENT: Final = 5
"""Brands round a charge limit to steps of so many percentage points at most."""
SOONEST_LOOK: Final = timedelta(minutes=1)
"""After a command, until a maker's cloud may show what it did."""
LOOK_TAKES: Final = timedelta(minutes=15)
"""At most, from when the last look at a commanded car is due until it is no longer awaited."""
LONGEST_TO_A_LOOK: Final = timedelta(hours=1)
"""Whoever commanded is not kept waiting for a look that is further away."""
CLOCKS_DIFFER: Final = timedelta(minutes=1)
"""By so much a car's clock may differ from ours."""
REFUSAL_STANDS: Final = timedelta(days=1)
"""For so long a car that may not be commanded is not tried again."""
AUTOMATED_SHARE: Final = 0.25
"""Of a plan's calls, what commands of automations regain in a period ..."""
AUTOMATED_AT_ONCE: Final = 12
"""... and the calls that they may spend in a row; of a small plan less: a hand's count of commands."""
FEWEST_AT_ONCE: Final = 3
"""A command to the car and two looks."""
_AT_EASE: Final = AT_EASE | {BudgetSpent.outcome}
"""Outcomes after which a car may be asked on command. Whether the plan has calls again, its share tells."""
_ASLEEP: Final = frozenset({Asleep.outcome, NothingYet.outcome})
_BINDING: Final = frozenset({RateLimited.outcome, OwnerMustAct.outcome, PlanRefused.outcome})
"""Outcomes of a poll after which a command to the car would be answered alike, at the price of a call."""
_DOES: Final = {
    Action.START: "be told to start charging",
    Action.STOP: "be told to stop charging",
    Action.LIMIT: "be given a charge limit",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a command is answered at no cost."""

    outcome: CommandOutcome
    reason: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A car's answer that it does not do something, which stands for a while."""

    connection_id: str
    """Of the consent under which it was answered."""
    until: datetime | None
    """None: until its owner consents anew."""
    verdict: Verdict

    def stands(self, car: Car, now: datetime) -> bool:
        anew = car.vehicle.consent.connection_id != self.connection_id
        return not anew and (self.until is None or now < self.until)


def refusals(car: Car, action: Action, error: SourceError | None, now: datetime) -> dict[Action, Refusal]:
    """What the answer to a command means for the next ones: none is worth a call while one stands."""
    connection_id = car.vehicle.consent.connection_id
    match error:
        case NotCapable():
            why = "this car has answered that it cannot do it"
            return {action: Refusal(connection_id, None, Verdict(CommandOutcome.NOT_CAPABLE, why))}
        case NotPermitted() | ConsentLost() | OwnerMustAct():
            verdict = Verdict(forbidden(error), error.detail)
            return dict.fromkeys(Action, Refusal(connection_id, now + REFUSAL_STANDS, verdict))
        case _:
            return {}


def forbidden(error: NotPermitted | ConsentLost | OwnerMustAct) -> CommandOutcome:
    """The car may go on being read, whatever forbids to command it."""
    must_act = isinstance(error, OwnerMustAct)
    return CommandOutcome.NOT_NOW if must_act else CommandOutcome.NOT_PERMITTED


def told_to_wait(car: Car, error: RateLimited, profile: BrandProfile, now: datetime) -> Car:
    """The car after a command was answered that it has to wait: nothing is asked of it meanwhile, as after a
    poll that was answered so."""
    wait = max(min(error.retry_after or profile.floor, LONGEST_WAIT), profile.floor)
    if not car.consented or car.schedule.due is None:
        return car
    schedule = replace(
        car.schedule,
        due=max(car.schedule.due, now + wait),
        reason=f"told to wait {words(wait)} for this car",
        outcome=error.outcome,
        gain=0.0,
    )
    return replace(car, schedule=schedule, trouble=Trouble(error.outcome, error.code, error.detail, now))


def automated(share: Share) -> Budget:
    """The calls that commands of automations may spend on one car, as a bucket of their own: an automation
    that repeats itself leaves the plan to the car's readings."""
    minutes = max((share.renews_at - share.began_at) / timedelta(minutes=1), 1.0)
    at_once = min(max(share.calls // 40, FEWEST_AT_ONCE), AUTOMATED_AT_ONCE)
    return Budget(bucket=at_once, refill_per_minute=AUTOMATED_SHARE * max(share.calls, 1) / minutes)


def spent_automated(wait: timedelta, now: datetime) -> Verdict | None:
    """``wait``: until the bucket of :func:`automated` holds a call again."""
    if not wait:
        return None
    why = "automations have used up their part of the plan's calls for this vehicle"
    return Verdict(CommandOutcome.CHATTERING, f"{why}: possible again at {_moment(now + wait, now)}")


def unread(car: Car, share: Share | None) -> Verdict | None:
    """Why this car can be commanded nothing at all. ``share``: None if its application is not configured."""
    if not car.consented:
        why = "this vehicle is not read any more: its owner's consent is gone"
        return Verdict(CommandOutcome.NOT_READ, why)
    if share is None:
        why = f"its Smartcar application {car.vehicle.consent.application!r} is not configured"
        return Verdict(CommandOutcome.NOT_READ, why)
    return None


def poll_verdict(car: Car, profile: BrandProfile, share: Share, now: datetime) -> Verdict | None:
    """Why a car that is read may not be polled at this moment; None if it may.

    A command may spend what is kept for hints and commands, and need not wait for the car's pace. What its
    source, its owner or its brand imposed stands.
    """
    schedule = car.schedule
    if schedule.due is None:
        return Verdict(CommandOutcome.NOT_CAPABLE, schedule.reason)
    if _left(share) < schedule.calls_per_poll:
        return Verdict(CommandOutcome.BUDGET_SPENT, _used_up(share))
    if (imposed := imposed_wait(car, now, at_ease=_AT_EASE)) is not None:
        return Verdict(CommandOutcome.NOT_NOW, f"{imposed}: possible again at {_moment(schedule.due, now)}")
    if Quirk.WAKES_ON_POLL in profile.quirks and schedule.outcome in _ASLEEP:
        why = f"it is asleep, and a call may wake a {profile.name} and draw on its 12 V battery"
        return Verdict(CommandOutcome.NOT_NOW, why)
    possible_at = soonest(car, profile, now)
    if possible_at <= now:
        return None
    if schedule.polled_at is not None and possible_at == schedule.polled_at + profile.floor:
        why = f"asked {words(now - schedule.polled_at)} ago; {profile.name} tells nothing newer within"
        why = f"{why} {words(profile.floor)}"
    else:
        why = f"{profile.name} limits how often it may be asked"
    return Verdict(CommandOutcome.NOT_NOW, f"{why}: possible again at {_moment(possible_at, now)}")


def never(car: Car, profile: BrandProfile, actions: Iterable[Action]) -> Verdict | None:
    """Why none of these actions can be asked of this car at all, whatever its state; None if one can."""
    consent = car.vehicle.consent
    if CONTROL_CHARGE not in consent.permissions:
        why = (
            f"its owner has not consented to commands: add {CONTROL_CHARGE!r} to permissions of "
            f"[smartcar.{consent.application}], and have the owner consent again"
        )
        return Verdict(CommandOutcome.NOT_PERMITTED, why)
    wanted = list(actions)
    if profile.actions is not None and profile.actions.isdisjoint(wanted):
        why = f"a {profile.name} cannot {_DOES[wanted[0]]} through Smartcar"
        return Verdict(CommandOutcome.NOT_CAPABLE, why)
    return None


def action_verdict(
    command: Command,
    car: Car,
    profile: BrandProfile,
    share: Share,
    now: datetime,
    *,
    commanded_at: datetime,
) -> Verdict | None:
    """What a command to a car that takes such commands is answered at no cost; None: it is to be carried out.

    ``commanded_at``: when it was last told to do otherwise, or may have been.
    """
    state, schedule = car.state, car.schedule
    if schedule.outcome in _BINDING and schedule.due is not None and now < schedule.due:
        why = f"{schedule.reason}: possible again at {_moment(schedule.due, now)}"
        return Verdict(CommandOutcome.NOT_NOW, why)
    told = _telling(command, state)
    if _does(command, state) and _lately(told, profile, now) and _dated_after(told, commanded_at):
        return Verdict(CommandOutcome.CONFIRMED, f"{_as_it_is(command, state)} already")
    if command.kind is CommandKind.CHARGING:
        soc, lowest = state.soc_percent, profile.start_stop_from_percent
        if soc is not None and soc < lowest and _lately(state.signals.get(Signal.SOC), profile, now):
            why = f"a {profile.name} neither starts nor stops below {lowest:g} %, and has {soc:g} %"
            return Verdict(CommandOutcome.NOT_NOW, why)
        if command.value and _unplugged(car, profile, now):
            return Verdict(CommandOutcome.NOT_NOW, "it is not plugged in: plug it in first")
    if _left(share) < 1 + schedule.calls_per_poll:
        why = "the command and the reading that shows what it did take more calls than are left"
        return Verdict(CommandOutcome.BUDGET_SPENT, f"{why} until {_day(share.renews_at)}")
    return None


def looks(car: Car, profile: BrandProfile, now: datetime) -> tuple[datetime, datetime]:
    """When a car that was commanded just now is asked whether it did it, at most."""
    first = max(now + max(profile.latency, SOONEST_LOOK), soonest(car, profile, now))
    return first, first + profile.interval(Activity.CHARGING)


def too_far(look_at: datetime, now: datetime) -> str | None:
    """Why nobody waits for the first look; None if somebody does."""
    far = look_at - now > LONGEST_TO_A_LOOK
    return f"the car cannot be asked before {_moment(look_at, now)}" if far else None


def look_verdict(car: Car, share: Share | None, profile: BrandProfile, now: datetime) -> str | None:
    """Why a commanded car will not be asked whether it did it; None if it can be."""
    if (gone := unread(car, share)) is not None:
        return gone.reason
    if car.schedule.due is None or share is None:
        return car.schedule.reason
    return _used_up(share) if _left(share) < car.schedule.calls_per_poll else None


def may_move(car: Car, now: datetime) -> bool:
    """Whether the poll of a commanded car may be brought forward: no wait was imposed on it."""
    return imposed_wait(car, now, at_ease=_AT_EASE) is None


def shown(command: Command, state: BatteryState, before: BatteryState, sent_at: datetime) -> str | None:
    """In words, what of ``state`` shows that a command of ``sent_at`` was carried out; None: nothing does.

    ``before``: the state as it was then. What may have been measured before the command shows it if it has
    changed alone. A limit may come back rounded to the brand's steps; one that is as it was shows nothing.
    """
    told = _telling(command, state)
    if told is None or not _since(told, sent_at):
        return None
    if _does(command, state):
        surely = told.measured_at is not None and told.measured_at >= sent_at
        return f"{_as_it_is(command, state)} now" if surely or _does_not(command, before) else None
    limit = state.number(Signal.CHARGE_LIMIT)
    if command.kind is not CommandKind.CHARGE_LIMIT or limit is None or command.value is None:
        return None
    rounded = abs(limit - command.value) < LIMIT_STEP_PERCENT
    moved = limit != before.number(Signal.CHARGE_LIMIT)
    return f"the car rounded it: its charge limit is {limit:g} % now" if rounded and moved else None


def not_shown(command: Command, state: BatteryState, sent_at: datetime) -> str:
    """In words, what is known instead."""
    told = _telling(command, state)
    if told is None:
        return "no reading tells of it"
    at = _at(told)
    if not _since(told, sent_at):
        return f"nothing newer has come than the reading of {_hour(at)}"
    if _does(command, state):
        return f"{_as_it_is(command, state)}, but nothing tells whether it was so before"
    return f"the reading of {_hour(at)} still says: {_as_it_is(command, state)}"


def _left(share: Share) -> int:
    """Calls that this car may spend: of a pool, what all cars have left of it."""
    return share.calls_left if share.pool_spent is None else share.calls * share.cars - share.pool_spent


def _used_up(share: Share) -> str:
    return f"the plan's calls are used up until {_day(share.renews_at)}"


def _telling(command: Command, state: BatteryState) -> Measurement | None:
    """The measurement that tells whether the car does what the command says."""
    if command.kind is CommandKind.CHARGE_LIMIT:
        return state.signals.get(Signal.CHARGE_LIMIT)
    if state.charging is None:
        return None
    signals = (Signal.CHARGING, Signal.CHARGE_STATE, Signal.PLUGGED_IN)
    told = [state.signals[signal] for signal in signals if signal in state.signals]
    # Among several, one that says what holds: a cable that is in says nothing of a charge.
    saying = [one for one in told if _says_charging(one) is state.charging]
    return max(saying, key=lambda one: (one.measured_at is not None, _at(one)), default=None)


def _at(told: Measurement) -> datetime:
    return told.measured_at or told.fetched_at


def _says_charging(told: Measurement) -> bool | None:
    match told.signal, told.value:
        case Signal.CHARGE_STATE, value:
            return value is ChargeState.CHARGING
        case Signal.PLUGGED_IN, plugged_in:
            return None if plugged_in else False
        case _, value:
            return bool(value)


def _since(told: Measurement, sent_at: datetime) -> bool:
    """Whether it was measured after that; where the car does not say when: fetched."""
    if told.measured_at is None:
        return told.fetched_at > sent_at
    return told.fetched_at > sent_at and told.measured_at >= sent_at - CLOCKS_DIFFER


def _does(command: Command, state: BatteryState) -> bool:
    if command.kind is CommandKind.CHARGE_LIMIT:
        return state.number(Signal.CHARGE_LIMIT) == command.value
    return state.charging is command.value


def _does_not(command: Command, state: BatteryState) -> bool:
    """Whether it was known that the car did not do it."""
    return _telling(command, state) is not None and not _does(command, state)


def _dated_after(told: Measurement | None, at: datetime) -> bool:
    """Whether it was measured after that, however the clocks may differ."""
    return told is not None and told.measured_at is not None and told.measured_at >= at + CLOCKS_DIFFER


def _lately(told: Measurement | None, profile: BrandProfile, now: datetime) -> bool:
    """Whether it was measured so lately that nothing is commanded because of it.

    A parked car counts as fresh for hours; a charge begins and ends faster. What the car does not say the
    time of may be of any.
    """
    if told is None or told.measured_at is None:
        return False
    return now - told.measured_at <= profile.interval(Activity.CHARGING)


def _unplugged(car: Car, profile: BrandProfile, now: datetime) -> bool:
    """Whether its cable was out just now, and no wall box has told otherwise since."""
    cable = car.state.signals.get(Signal.PLUGGED_IN)
    if cable is None or car.state.plugged_in is not False or not _lately(cable, profile, now):
        return False
    habits = Habits.unpack(car.learned)
    hinted = habits.told in (Told.PLUGGED, Told.CHARGING)
    return not (hinted and cable.measured_at and habits.hinted > cable.measured_at.timestamp())


def _as_it_is(command: Command, state: BatteryState) -> str:
    if command.kind is CommandKind.CHARGE_LIMIT:
        limit = state.number(Signal.CHARGE_LIMIT)
        return "its charge limit is not known" if limit is None else f"its charge limit is {limit:g} %"
    return "it is charging" if state.charging else "it is not charging"


def _moment(at: datetime, now: datetime) -> str:
    return _hour(at) if at.date() == now.date() else _day(at)


def _hour(at: datetime) -> str:
    return f"{at:%H:%M} UTC"


def _day(at: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M} UTC"

"""The door of the policy: a car as it is and what was heard of it in, when to ask again out.

Everything here is pure but for the :class:`Lore` that is handed in, which learns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import exp, log
from typing import Final

from evbatteryd.domain.cadence import NextPoll
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy.estimating import band, course
from evbatteryd.domain.policy.habits import HEARD_FOR, SILENT_FROM, TRUSTED, Doing, Habits, Told
from evbatteryd.domain.policy.hours import DAY, HOUR
from evbatteryd.domain.policy.learning import MINUTE, Look, learn
from evbatteryd.domain.policy.looking import Moment, Terms, next_look, resting
from evbatteryd.domain.policy.lore import BrandLore, Lore
from evbatteryd.domain.policy.outlook import Estimate, Hint, Trend
from evbatteryd.domain.policy.pacing import COURTESY, Plan, paced
from evbatteryd.domain.profile import BrandProfile, CallLimit, Quirk
from evbatteryd.domain.reading import BatteryState, Signal

MOST_COUNTED: Final = 60
"""Calls of a rolling limit that are counted one by one; larger limits are kept by spacing calls evenly."""
LONG_WINDOW: Final = 6 * HOUR
"""A rolling limit over a longer time is a budget; over a shorter one it is a floor."""
LIMIT_USED: Final = 0.8
"""Share of a brand's rolling limit that is planned with: the rest is for charges and hints."""
SPREAD_OUT: Final = 0.8
"""What a rolling limit still allows is spread over that share of the time until it allows more: whoever comes
back to life is not asked so often that its next charge is missed."""
WAKING: Final = 600.0
"""The least that a call must gain, pp*s, where it may wake the car and draw on its 12 V battery."""
KEYLESS_GAP: Final = 7 * HOUR
KEYLESS: Final = 8 * HOUR
"""How often a Tesla without Smartcar's virtual key tells anything new:
https://smartcar.com/docs/help/oem-integrations/tesla/virtual-key-tesla"""
GAPS_NEEDED: Final = 4
"""Uploads by which the missing key is recognised ..."""
KEY_TRIED: Final = 6
"""... and after so many of them it is tried whether it is there now."""
HINTS_AT_ONCE: Final = 4.0
HINT_REGAINED: Final = 45 * MINUTE
"""Hints may cause so many calls in a row, and one more in that time ..."""
HINT_SHARE: Final = 0.75
"""... or in that share of the plan's mean interval, if that is longer."""
CHARGED: Final = 0.9
"""Share of the power at the plug that reaches the battery. Which of the two a car tells is not known."""
SAME_HINT: Final = 10 * MINUTE
HINTED_WORTH: Final = 3.0
"""A poll after a hint is worth so many times the price of a call: it is known to find something."""
TOO_FAR_AHEAD: Final = 1.0
"""Days' worth of calls ahead of the pace at which hints cause no polls."""

_TOLD: Final = {
    Hint.PLUGGED_IN: Told.PLUGGED,
    Hint.ARRIVED: Told.ARRIVED,
    Hint.CHARGING: Told.CHARGING,
    Hint.CHARGING_STOPPED: Told.STOPPED,
    Hint.UNPLUGGED: Told.UNPLUGGED,
    Hint.DEPARTED: Told.UNPLUGGED,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """When to ask again."""

    wanted: NextPoll | None
    """None: no state of charge is known by which to decide."""
    gain: float
    """Expected, pp*s: percentage points of error that the poll ends, times how long they would have stood."""
    learned: bytes
    """The car's habits, to be kept with it."""
    trend: Trend | None


@dataclass(frozen=True, slots=True)
class Unanswered:
    """What a call without data changes."""

    learned: bytes
    trend: Trend | None
    not_before: datetime
    """The brand's rolling limit has no room sooner."""


@dataclass(frozen=True, slots=True)
class Hinted:
    """What a hint changes."""

    learned: bytes
    at: datetime | None
    """When to ask; None: as it was going to be."""
    reason: str
    gain: float
    trend: Trend | None = None


def after_answer(
    car: Car, state: BatteryState, profile: BrandProfile, share: Share, lore: Lore, now: datetime
) -> Decision:
    """The source answered, and ``state`` is what is known now; ``car`` is as it was before."""
    at, brand, calls = now.timestamp(), lore.brand(profile.brand), car.schedule.calls_per_poll
    habits = _habits(car, profile, at)
    _note_calls(habits, profile, calls, at)
    look = _look(habits, state, at, polled=True)
    if look is not None:
        learn(habits, brand, lore, look, steps=_steps(profile) > 0.0)
    price, ahead = _price(habits, lore, profile, share, at)
    lore.called(at, calls, _refill(share), price)
    if not habits.known:
        return Decision(None, 0.0, habits.pack(), None)
    moment = _next(habits, brand, lore, profile, share, calls, price, at)
    if look is not None:
        moment = _after_hint(habits, brand, look, moment, price, ahead)
    return _decision(habits, brand, profile, calls, moment, at)


def again(car: Car, profile: BrandProfile, share: Share, lore: Lore, decided_at: datetime) -> Decision:
    """What is chosen by what was known at ``decided_at``, without a new answer: with another plan, say."""
    at, brand, calls = decided_at.timestamp(), lore.brand(profile.brand), car.schedule.calls_per_poll
    habits = _habits(car, profile, at)
    if not habits.known:
        return Decision(None, 0.0, car.learned, None)
    pool, cars = lore.pool, lore.pool_cars
    price, _ = _price(habits, lore, profile, share, at)
    lore.pool, lore.pool_cars = pool, cars  # nobody has spent anything
    moment = _next(habits, brand, lore, profile, share, calls, price, at)
    return _decision(habits, brand, profile, calls, moment, at)


def after_failure(
    car: Car, profile: BrandProfile, share: Share, lore: Lore, calls: int, now: datetime
) -> Unanswered:
    """The source did not answer with data, which took ``calls`` all the same."""
    at, brand = now.timestamp(), lore.brand(profile.brand)
    habits = _habits(car, profile, at)
    if calls:
        _note_calls(habits, profile, calls, at)
        lore.called(at, calls, _refill(share), _kept_price(habits) if habits.price_at else lore.price)
    earliest = _earliest(habits, profile, car.schedule.calls_per_poll, at)
    line = _trend(habits, brand) if habits.known else None
    return Unanswered(habits.pack(), line, datetime.fromtimestamp(earliest, UTC))


def after_push(
    car: Car, state: BatteryState, profile: BrandProfile, lore: Lore, now: datetime
) -> tuple[bytes, Trend | None]:
    """A webhook brought ``state``: the habits after that, and how the charge goes on."""
    brand, habits = lore.brand(profile.brand), _habits(car, profile, now.timestamp())
    look = _look(habits, state, now.timestamp(), polled=False)
    if look is not None:
        learn(habits, brand, lore, look, steps=_steps(profile) > 0.0)
    return habits.pack(), _trend(habits, brand) if habits.known else None


def after_hint(
    car: Car, profile: BrandProfile, share: Share, lore: Lore, hint: Hint, now: datetime
) -> Hinted:
    """What a wall box told. At most it brings a poll forward, which an allowance of its own pays for."""
    at, brand, calls = now.timestamp(), lore.brand(profile.brand), car.schedule.calls_per_poll
    habits = _habits(car, profile, at)
    told, before = _TOLD[hint], habits.told
    repeated = told == before and at - habits.hinted < SAME_HINT
    regained = max(HINT_REGAINED, HINT_SHARE * DAY / _polls_per_day(profile, share, calls))
    habits.hint_level = min(HINTS_AT_ONCE, habits.hint_level + max(at - habits.hint_level_at, 0.0) / regained)
    habits.hint_level_at = at
    doubted = habits.trust < TRUSTED and habits.hint_level < HINTS_AT_ONCE
    if at - habits.hinted > HEARD_FOR:
        habits.tells = 0
    habits.hinted, habits.told = at, told
    habits.tells |= 1 << told
    if told == Told.UNPLUGGED and not doubted:
        habits.left = at
    if repeated:
        return _unmoved(habits, brand, f"{hint} was told just before")
    if doubted:
        habits.tries = 9
        return _unmoved(habits, brand, "what it tells was seldom found true of late")
    if not habits.known:
        return _unmoved(habits, brand, "it is about to be read for the first time")
    price, ahead = _price(habits, lore, profile, share, at)
    if ahead > TOO_FAR_AHEAD or share.calls_left < calls:
        return _unmoved(habits, brand, "the plan's calls are short")
    if habits.hint_level < 1.0:
        return _unmoved(habits, brand, "its hints have caused enough calls for now")
    terms = Terms(_steps(profile), _polls_per_day(profile, share, calls))
    moment = _moment_after(hint, habits, brand, lore, terms, price, at)
    when = max(moment.at, _soonest(car, habits, profile, at))
    due = car.schedule.due
    habits.tries = 0
    if due is not None and due.timestamp() <= when:
        return _unmoved(habits, brand, "it is read before that anyway")
    habits.hint_level -= 1.0
    habits.expected_upload = 0.0
    at_last = datetime.fromtimestamp(when, UTC)
    return Hinted(habits.pack(), at_last, moment.reason, moment.gain, _trend(habits, brand))


def soonest(car: Car, profile: BrandProfile, now: datetime) -> datetime:
    """When the brand's floor and its rolling limit have room for a poll of this car: now or later."""
    at = now.timestamp()
    return max(datetime.fromtimestamp(_soonest(car, _habits(car, profile, at), profile, at), UTC), now)


def _soonest(car: Car, habits: Habits, profile: BrandProfile, at: float) -> float:
    earliest = max(_earliest(habits, profile, car.schedule.calls_per_poll, at, floor=False), at)
    asked = car.schedule.polled_at
    return earliest if asked is None else max(earliest, asked.timestamp() + profile.floor.total_seconds())


def _unmoved(habits: Habits, brand: BrandLore, why: str) -> Hinted:
    line = _trend(habits, brand) if habits.known else None
    return Hinted(habits.pack(), None, why, 0.0, line)


def estimate(car: Car, profile: BrandProfile, lore: Lore, now: datetime) -> Estimate | None:
    """Where the state of charge is at ``now``; None when nothing is known, or it was too long ago."""
    if not car.learned:
        return None
    at = now.timestamp()
    habits = _habits(car, profile, at)
    if not habits.known:
        return None
    brand = lore.brand(profile.brand)
    until = course(habits, brand).until
    if at >= until:
        return None
    rounding = 1.0 if Quirk.SOC_STEPS in profile.quirks else profile.soc_step_percent
    found = band(habits, brand, lore, at, rounding)
    return Estimate(found.soc, found.low, found.high, datetime.fromtimestamp(until, UTC))


def trend(car: Car, profile: BrandProfile, lore: Lore) -> Trend | None:
    """How the charge goes on, by what is learnt: for a car that was just loaded."""
    if not car.learned:
        return None
    habits = Habits.unpack(car.learned)
    return _trend(habits, lore.brand(profile.brand)) if habits.known else None


def price_of(car: Car, lore: Lore) -> float:
    """What the car's calls cost of late, brakes aside: pp*s of error that one must end to be worth it."""
    return max(_kept_price(Habits.unpack(car.learned)), lore.bucket_price)


def forgotten(car: Car, lore: Lore, cars_left: int) -> None:
    """Its history is erased: nothing of it stays in ``lore`` by which it could be told.

    ``cars_left``: other cars of the application.
    """
    lore.forget(Habits.unpack(car.learned), cars_left)


def _kept_price(habits: Habits) -> float:
    return max(COURTESY, exp(habits.price_log))


def _next(
    habits: Habits,
    brand: BrandLore,
    lore: Lore,
    profile: BrandProfile,
    share: Share,
    calls: int,
    price: float,
    at: float,
) -> Moment:
    """``price``: of one call; a poll must be worth all of its calls."""
    terms = Terms(_steps(profile), _polls_per_day(profile, share, calls))
    return _second_thoughts(habits, profile, next_look(habits, brand, lore, terms, price * calls, at), at)


def _decision(
    habits: Habits, brand: BrandLore, profile: BrandProfile, calls: int, moment: Moment, at: float
) -> Decision:
    earliest, reason = _earliest(habits, profile, calls, at), moment.reason
    if earliest > moment.at + MINUTE:
        reason = f"{reason}; but {profile.name} may not be asked sooner"
    due = datetime.fromtimestamp(max(moment.at, earliest), UTC)
    habits.sure = moment.sure
    return Decision(NextPoll(due, reason), moment.gain, habits.pack(), _trend(habits, brand))


# ------------------------------------------------------------------------------------------ what is heard
def _habits(car: Car, profile: BrandProfile, now: float) -> Habits:
    habits = Habits.unpack(car.learned)
    habits.not_after(now)
    asked = car.schedule.polled_at
    if asked is not None and habits.asked < asked.timestamp() <= now:
        # Noted before it was sent, and its answer never came.
        _note_calls(habits, profile, car.schedule.calls_per_poll, asked.timestamp())
    return habits


def _look(habits: Habits, state: BatteryState, at: float, *, polled: bool) -> Look | None:
    """What ``state`` shows of charge, charging and cable; None if all of it was seen before."""
    soc = state.signals.get(Signal.SOC)
    if soc is None or state.soc_percent is None:
        return None
    signals = (Signal.SOC, Signal.CHARGING, Signal.CHARGE_STATE, Signal.PLUGGED_IN)
    found = [told for signal in signals if (told := state.signals.get(signal)) is not None]
    seen = min(max(told.fetched_at for told in found).timestamp(), at)
    if habits.known and seen <= habits.looked:
        return None
    charging, plugged = bool(state.charging), state.plugged_in
    same = (habits.soc, habits.charging) == (state.soc_percent, charging) and habits.known
    times = [told.measured_at.timestamp() for told in found if told.measured_at is not None]
    # Where the OEM tells no times, what changed was measured since we last looked.
    measured = min(max(times), at) if times else habits.measured if same else seen
    told_at = soc.measured_at
    return Look(
        at=seen,
        measured=measured,
        soc=state.soc_percent,
        soc_at=measured if told_at is None else min(told_at.timestamp(), at),
        confirmed=min(soc.fetched_at.timestamp(), at),
        charging=charging,
        plugged=plugged,
        limit=state.number(Signal.CHARGE_LIMIT),
        slope=_told_slope(state) if charging else None,
        polled=polled,
    )


def _told_slope(state: BatteryState) -> float | None:
    """Percent per second, by the power and the capacity that the car tells."""
    power, capacity = state.number(Signal.CHARGE_POWER), state.number(Signal.CAPACITY)
    if not power or not capacity:
        return None
    return 100 * CHARGED * power / capacity / HOUR


def _note_calls(habits: Habits, profile: BrandProfile, calls: int, at: float) -> None:
    if profile.limit is not None and profile.limit.calls <= MOST_COUNTED:
        window = profile.limit.per.total_seconds()
        counted = [call for call in habits.calls if call > at - window]
        habits.calls = [*counted, *[at] * calls][-profile.limit.calls :]
    else:
        habits.calls = []
    habits.asked = at


# --------------------------------------------------------------------------------------- what it may cost
def _refill(share: Share) -> float:
    """Calls per second that the application's bucket allows."""
    return share.cars / max(share.application_interval.total_seconds(), 1e-3)


def _polls_per_day(profile: BrandProfile, share: Share, calls: int) -> float:
    """At the plan's pace, or what the brand or the bucket allow if that is less."""
    days = (share.renews_at - share.began_at).total_seconds() / DAY
    rate = min(share.calls / max(days, 1e-3), _limit_rate(profile.limit), _refill(share) * DAY / share.cars)
    return max(rate / calls, 0.05)


def _limit_rate(limit: CallLimit | None) -> float:
    if limit is None:
        return float("inf")
    return LIMIT_USED * limit.calls / (limit.per.total_seconds() / DAY)


def _price(habits: Habits, lore: Lore, profile: BrandProfile, share: Share, at: float) -> tuple[float, float]:
    """What a call of this car costs now, and by how many days' worth of calls it is ahead of its pace."""
    began, ends = share.began_at.timestamp(), share.renews_at.timestamp()
    crowd = _crowd(habits, profile, share, at)
    if share.pool_spent is None:
        spent = share.calls - share.calls_left
        plan = Plan(share.calls - share.reserve, spent, began, ends, _limit_rate(profile.limit))
        habits.pace, price, ahead = paced(habits.pace, plan, lore.days, at, crowd)
    else:
        each = share.pool_spent / share.cars
        if lore.pool_cars != share.cars:  # the same price, but nobody is ahead or behind for their sake
            lore.pool = replace(lore.pool, anchored=at, anchor_spent=each)
            lore.pool_cars = share.cars
        plan = Plan(share.calls - share.reserve, each, began, ends)
        lore.pool, price, ahead = paced(lore.pool, plan, lore.days, at)
        if crowd is not None:  # its brand's limit has a price of its own
            own = Plan(share.calls, 0.0, began, ends, _limit_rate(profile.limit))
            habits.pace, limited, _ = paced(habits.pace, own, lore.days, at, crowd)
            price = max(price, limited)
        else:
            habits.price_log, habits.price_at = log(price), at
    least = WAKING if Quirk.WAKES_ON_POLL in profile.quirks else 0.0
    return max(price, lore.bucket_price, least), ahead


def _crowd(habits: Habits, profile: BrandProfile, share: Share, at: float) -> float | None:
    """How full the brand's rolling limit is, where that may bind rather than the plan."""
    limit = profile.limit
    if limit is None or limit.calls > MOST_COUNTED or limit.per.total_seconds() <= LONG_WINDOW:
        return None
    days = (share.renews_at - share.began_at).total_seconds() / DAY
    if share.pool_spent is None and _limit_rate(limit) >= share.calls / max(days, 1e-3):
        return None
    if not habits.anchored or at - habits.anchored < limit.per.total_seconds():
        return 1.0  # its window is not full yet: nothing can be said
    since = at - limit.per.total_seconds()
    return sum(call > since for call in habits.calls) / (LIMIT_USED * limit.calls)


def _steps(profile: BrandProfile) -> float:
    return profile.soc_step_percent if Quirk.SOC_STEPS in profile.quirks else 0.0


def _earliest(habits: Habits, profile: BrandProfile, calls: int, at: float, *, floor: bool = True) -> float:
    """Not before the brand's floor, nor before its rolling limit has room for a whole poll."""
    earliest = at + profile.floor.total_seconds() if floor else at
    limit = profile.limit
    if limit is None:
        return earliest
    window = limit.per.total_seconds()
    if limit.calls > MOST_COUNTED:
        return max(earliest, habits.asked + window / limit.calls * calls)
    room = limit.calls - calls
    if window > LONG_WINDOW and habits.doing not in (Doing.CHARGING, Doing.WAITING):
        room -= 1  # the last one of a window is kept for a charge
    room = max(room, 0)
    if len(habits.calls) > room:
        earliest = max(earliest, habits.calls[len(habits.calls) - room - 1] + window + 10.0)
    elif habits.calls and window > LONG_WINDOW:
        until_more = habits.calls[0] + window - at
        earliest = max(earliest, at + SPREAD_OUT * until_more / (room - len(habits.calls) + 1))
    return earliest


# ----------------------------------------------------------------------------------------- second thoughts
def _second_thoughts(habits: Habits, profile: BrandProfile, moment: Moment, at: float) -> Moment:
    """What this brand's cloud does not do."""
    keyless = habits.gaps >= GAPS_NEEDED and habits.shortest_gap > KEYLESS_GAP
    # One in so many times it is asked as if it had the key: or nobody would notice that it was added.
    if Quirk.VIRTUAL_KEY in profile.quirks and keyless and habits.gaps % KEY_TRIED != 0:
        due = max(moment.at, habits.measured + KEYLESS + MINUTE)
        if due > moment.at:
            why = f"{profile.name} without Smartcar's virtual key tells something new once in 8 h"
            return Moment(due, why, moment.gain)
    silence = at - habits.measured
    if silence > SILENT_FROM and habits.laid_up_at(at):
        return replace(moment, reason=_silent(profile, silence))
    return moment


def _silent(profile: BrandProfile, silence: float) -> str:
    since = f"silent for {silence / DAY:.0f} days"
    calm = "asked less and less until the first sign of life"
    if Quirk.DEEP_SLEEP in profile.quirks:
        return f"{since}: {profile.name} stops telling after some days without a trip; {calm}"
    if Quirk.GEOFENCE in profile.quirks:
        return f"{since}: parked, or away from the address where {profile.name} tells anything; {calm}"
    return f"{since}: parked for long; {calm}"


# -------------------------------------------------------------------------------------------------- hints
def _moment_after(
    hint: Hint, habits: Habits, brand: BrandLore, lore: Lore, terms: Terms, price: float, at: float
) -> Moment:
    worth = HINTED_WORTH * price
    match hint:
        case Hint.UNPLUGGED | Hint.DEPARTED:
            moment = resting(habits, lore, terms, price, at, Doing.UNPLUGGED)
            return Moment(moment.at, "it has set out, as its wall box tells", moment.gain)
        case Hint.PLUGGED_IN:
            return Moment(at + brand.lag_plugged, "plugged in, as its wall box tells", worth)
        case Hint.CHARGING:
            return Moment(at + brand.lag_charging, "charging, as its wall box tells", worth)
        case Hint.CHARGING_STOPPED:
            return Moment(at + brand.lag_stopped, "its charge has ended, as its wall box tells", worth)
        case Hint.ARRIVED:
            return Moment(at + brand.lag_plugged, "it has come home, as an automation tells", worth)


def _after_hint(
    habits: Habits, brand: BrandLore, look: Look, moment: Moment, price: float, ahead: float
) -> Moment:
    """Whether this look found what a hint had told; if not yet, when to look again."""
    if not habits.hinted or habits.tries >= 3 or habits.told in (Told.NOTHING, Told.UNPLUGGED):
        return moment
    found = look.measured >= habits.hinted - 90.0
    if habits.told == Told.PLUGGED:
        found = found or bool(look.plugged)
    elif habits.told == Told.CHARGING:
        found = look.charging
    if found:
        _adjust(brand, habits.told, -5.0)
        habits.tries = 9
        habits.trust += 0.1 * (1.0 - habits.trust)
        return moment
    _adjust(brand, habits.told, 20.0 if habits.tries == 0 else 5.0)
    habits.tries += 1
    hides = habits.told == Told.CHARGING and habits.plugged and brand.hidden > 0.4 * brand.waits
    if habits.tries > 2 or (hides and habits.tries > 1):
        habits.tries = 9
        habits.trust -= 0.0 if hides else 0.2 * habits.trust
        return moment
    waited = look.at - habits.hinted
    again = look.at + max(2 * MINUTE, min(waited, 15 * MINUTE))
    if again >= moment.at or habits.hint_level < 1.0 or ahead > TOO_FAR_AHEAD / 2:
        return moment
    habits.hint_level -= 1.0
    return Moment(again, "a hint is not confirmed yet: its upload may be late", HINTED_WORTH * price)


def _adjust(brand: BrandLore, told: int, by: float) -> None:
    """How long after a hint its upload is there to be read."""

    def within(lag: float) -> float:
        return max(45.0, min(lag + by, 900.0))

    match told:
        case Told.PLUGGED:
            brand.lag_plugged = within(brand.lag_plugged)
        case Told.CHARGING:
            brand.lag_charging = within(brand.lag_charging)
        case Told.STOPPED:
            brand.lag_stopped = within(brand.lag_stopped)


def _trend(habits: Habits, brand: BrandLore) -> Trend:
    line = course(habits, brand)
    return Trend(
        line.soc,
        datetime.fromtimestamp(habits.line_since, UTC),
        line.slope * HOUR,
        line.target,
        datetime.fromtimestamp(line.until, UTC),
        datetime.fromtimestamp(habits.sure, UTC),
    )

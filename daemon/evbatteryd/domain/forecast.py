"""How the plan's period will end: what is spent by then, how often each car is asked, what more would buy.

Pure: the ledger's figures and ``now`` in, a forecast out. It assumes that each car goes on at its pace:

* Its pace is what it has spent, divided by the time since the period began or, if later, the car came. Over
  the first hours (:data:`SETTLING`; a quarter of a shorter period) that is mixed with the even pace, which is
  what is left divided by the time that is left: by as much of those hours as is still missing. A car that has
  been asked a few times shows whether it is asked so often at all: then no more than :data:`MOST_TIMES` its
  own pace is mixed in.
* Nobody runs out before the next poll, and after it the calls last as long as they do at that pace. In the
  first day (:data:`SURE_AFTER`) nobody is said to run out: the hours of a day are not alike.
* Cars that webhooks feed, or of which nothing has been heard for :data:`SILENT_FOR`, need few calls. What
  they have spent, in a day at least, is all that is held against them: no even pace is mixed in.
* Nobody spends more than the plan has left, and all cars together no more than the bucket gives.

What more calls would buy rests on the policy's price: the percentage points of error, times the seconds they
would have stood, that one more call to a car must end (pp·s per call). What accumulates unseen between two
looks grows with the time between them, so a car's mean error is E = c/n at n calls per second. One more per
second lowers it by -dE/dn = c/n², which is the price p. So E = p·n, and with n₂ calls per second instead
p·n²/n₂: the difference is p·n·(1 - n/n₂). Errors that no call can end are in neither. The policy expects
somewhat more to happen than does, which :data:`REALISED` takes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Budget, Period, Window
from evbatteryd.domain.policy.pacing import COURTESY
from evbatteryd.domain.profile import BrandProfile

DAY: Final = timedelta(days=1)
SETTLING: Final = timedelta(hours=6)
"""After so long a car's own pace is believed alone."""
TIMES_ASKED: Final = 3
"""After so many polls a car's own pace says something."""
MOST_TIMES: Final = 2.0
"""Of that pace: as much of the even pace is mixed in at most."""
SURE_AFTER: Final = DAY
"""After so long (a quarter of a shorter period) it is told whose calls do not last."""
SILENT_FOR: Final = timedelta(days=14)
"""A car that has measured nothing for so long is parked for long, sold or out of reach: hardly asked."""
NOTABLY_EARLY: Final = 1 / 50
"""Of a period (14 hours of a month): calls that end by less before it does are the policy's to even out."""
EVENING: Final = timedelta(hours=6)
"""The same for a plan by the day: most cars need few calls in the last hours before midnight."""
LEAST_WORTH: Final = 1.05 * COURTESY
"""pp·s. Whose price is no higher is held back by what a call must be worth at least, not by any shortage."""
REALISED: Final = 0.7
"""Share of what that model says twice the calls end that they ended in the benchmark's lives: 0.60 to 0.75,
from 240, 500 and 720 calls a month (``docs/polling.md``)."""
ENOUGH: Final = 0.9
"""Of the plan: cars that will spend less than that are not held back by it."""
_DAY_S: Final = DAY.total_seconds()
_LONGEST_S: Final = 366 * _DAY_S
_WORTH_SAYING: Final = 0.05
"""Percentage points."""


class Binding(StrEnum):
    """What keeps the cars of an application from being asked more often."""

    PLAN = "plan"
    BRAND = "brand"
    """What the brands document as their limit, or the floor under which they have nothing newer."""
    BUCKET = "bucket"
    """The requests per minute that the application has for all its cars."""
    NEED = "need"
    """Nothing: the cars need no more, or a further call would not be worth it."""


class Standing(StrEnum):
    """What a car's share of the plan is to it."""

    POLLED = "polled"
    PUSHED = "pushed"
    """Webhooks bring its data."""
    SILENT = "silent"
    """Nothing was heard of it for long."""
    SPENT = "spent"
    """Its calls are used up."""
    NOT_ASKED = "not_asked"
    """Not before something changes from outside, like a new consent."""


_HUNGRY: Final = frozenset({Standing.POLLED, Standing.SPENT})
"""Cars that would be asked more often if they could be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """One application's plan and bucket, as they stand."""

    application: str
    budget: Budget
    window: Window
    cars: int
    """Cars of the application that are asked."""
    pool_spent: int | None
    """Calls of all cars in this period of a pooled plan; None: the plan is each car's."""
    tokens: float
    """Requests that the bucket would let pass at once."""

    @property
    def pool(self) -> int:
        """Calls that a pooled plan has for all cars in a period."""
        return self.budget.calls_per_vehicle * max(self.cars, 1)

    def left(self, spent: int) -> float:
        """Calls of a car that has spent so many; of a pool, its part of what is left there."""
        if self.pool_spent is not None:
            return max(self.pool - self.pool_spent, 0) / max(self.cars, 1)
        return float(max(self.budget.calls_per_vehicle - spent, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class CarFacts:
    """One car's part in it."""

    spent: int
    """Calls in this period."""
    since: datetime
    """From when on they are counted."""
    standing: Standing
    calls_per_poll: int
    most_per_s: float
    """Calls per second that its brand allows."""
    price: float
    """Of its next call, in pp·s; 0: nothing is known."""
    next_poll: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CarForecast:
    """How the period ends for one car."""

    spent: int
    left: float
    """Calls. Pooled: its part of what the pool has left."""
    calls_per_day: float
    """Expected from now on until the period ends."""
    interval: timedelta | None
    """Between its polls, on average until then; None: it will hardly be asked at all."""
    standing: Standing
    price: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How the period ends for an application. Calls are all its cars' together."""

    terms: Terms
    now: datetime
    cars: int
    """That are asked at all."""
    standings: Mapping[Standing, int]
    plan: int
    spent: int
    left: int
    expected: int
    """Spent when the period ends: more than ``plan`` only if cars had spent more than theirs already."""
    even_per_day: float
    """What is left, spread evenly over the time that is left."""
    pace_per_day: float
    """As the cars go on, before any plan or bucket stops them."""
    scale: float
    """By how much pool and bucket shorten what the cars would spend, 0 to 1."""
    interval: timedelta | None
    """Between the polls of a car that is polled, on average until the period ends; None: there is none."""
    run_out: int
    """Cars whose calls end notably before the period does, at this pace."""
    first_out: datetime | None
    """When the first of them would run out."""
    binding: Binding
    price: float | None
    """Mean of the cars that are polled, in pp·s per call; None: the policy knows nothing of them yet."""
    other_calls: int
    """The plan, per vehicle and period, that this one is compared with."""
    gain_percent: float | None
    """By how many percentage points that one would lower a car's mean error of SoC; negative: raise it.
    None: not known yet."""


def facts_of(
    car: Car, profile: BrandProfile, spent: int, price: float, terms: Terms, now: datetime
) -> CarFacts:
    """What the forecast rests on, of a car that has spent so many calls in the period."""
    schedule = car.schedule
    calls_per_poll = max(schedule.calls_per_poll, 1)
    most_per_s = calls_per_poll / profile.floor.total_seconds() if profile.floor else float("inf")
    if profile.limit is not None:
        most_per_s = min(most_per_s, 1 / profile.limit.interval.total_seconds())
    since = max(terms.window.start, car.vehicle.enrolled_at)
    if not car.consented or schedule.due is None:
        standing = Standing.NOT_ASKED
    elif _used_up(terms, spent, calls_per_poll):
        standing = Standing.SPENT
    elif schedule.pushed_at is not None:
        standing = Standing.PUSHED
    elif _silent(car, now):
        standing = Standing.SILENT
    else:
        standing = Standing.POLLED
    return CarFacts(
        spent=spent,
        since=min(since, now),
        standing=standing,
        calls_per_poll=calls_per_poll,
        most_per_s=most_per_s,
        price=price,
        next_poll=schedule.due,
    )


def _used_up(terms: Terms, spent: int, calls_per_poll: int) -> bool:
    if terms.pool_spent is not None:
        return terms.pool_spent >= terms.pool
    return spent + calls_per_poll > terms.budget.calls_per_vehicle


def _silent(car: Car, now: datetime) -> bool:
    heard = max((told.measured_at for told in car.state if told.measured_at is not None), default=None)
    return now - (heard or car.vehicle.enrolled_at) > SILENT_FOR


def saved_percent(price: float, calls_per_s: float, other_calls_per_s: float) -> float:
    """Percentage points of mean error that the other pace would end; see the module's docstring."""
    if calls_per_s <= 0 or other_calls_per_s <= 0:
        return 0.0
    return price * calls_per_s * (1 - calls_per_s / other_calls_per_s)


class Survey:
    """Adds up the cars of one application, one after the other, so that a large fleet is walked in slices.

    ``other_calls``: the plan to compare with, in calls per vehicle and period; None: twice the calls.
    """

    def __init__(self, terms: Terms, now: datetime, other_calls: int | None = None) -> None:
        self._terms = terms
        self._now = now
        self._other_calls = other_calls or 2 * terms.budget.calls_per_vehicle
        self._left_s = _left_s(terms, now)
        self._length_s = (terms.window.end - terms.window.start).total_seconds()
        self._refill_per_s = terms.budget.refill_per_minute / 60
        self._standings: Counter[Standing] = Counter()
        self._spent = 0
        self._left = 0
        self._pace_per_s = 0.0
        self._wanted = 0.0
        self._run_out = 0
        self._first_out: datetime | None = None
        self._next_poll: datetime | None = None
        self._hungry = _Hungry()
        self._other_per_s = 0.0
        self._error_now = 0.0
        self._error_then = 0.0

    def add(self, car: CarFacts) -> None:
        self._standings[car.standing] += 1
        if car.standing is Standing.NOT_ASKED:
            return
        terms = self._terms
        pace_per_s, left = _pace_per_s(car, terms, self._now), terms.left(car.spent)
        wanted = _wanted(car, terms, pace_per_s, self._left_s)
        self._spent += car.spent
        self._left += max(terms.budget.calls_per_vehicle - car.spent, 0)
        self._pace_per_s += pace_per_s
        self._wanted += wanted
        self._next_poll = min(filter(None, (self._next_poll, car.next_poll)), default=None)
        if terms.pool_spent is None:
            left_to_use = 0.0 if car.standing is Standing.SPENT else left
            self._note_end(left_to_use, pace_per_s, car.since, car.next_poll, 1)
        if car.standing in _HUNGRY:
            even_per_s = terms.budget.calls_per_vehicle / self._length_s
            self._hungry.add(car, wanted, left, even_per_s)
        self._compare(car, pace_per_s)

    def forecast(self) -> Forecast:
        terms, cars = self._terms, self._standings.total() - self._standings[Standing.NOT_ASKED]
        plan, spent, left = terms.budget.calls_per_vehicle * cars, self._spent, self._left
        if terms.pool_spent is not None:
            plan, spent = terms.pool, terms.pool_spent
            left = max(plan - spent, 0)
            self._note_end(left, self._pace_per_s, terms.window.start, self._next_poll, cars)
        bucket = max(terms.tokens, 0.0) + self._refill_per_s * self._left_s
        scale = _shortened(self._wanted, min(left, bucket))
        hungry, binding = self._hungry, self._binding()
        return Forecast(
            terms=terms,
            now=self._now,
            cars=cars,
            standings={standing: self._standings[standing] for standing in Standing},
            plan=plan,
            spent=spent,
            left=left,
            expected=spent + min(round(self._wanted * scale), left),
            even_per_day=left / self._left_s * _DAY_S,
            pace_per_day=self._pace_per_s * _DAY_S,
            scale=scale,
            interval=_interval(self._left_s * hungry.cars, hungry.polls * scale),
            run_out=self._run_out,
            first_out=self._first_out,
            binding=binding,
            price=hungry.price,
            other_calls=self._other_calls,
            gain_percent=self._gain_percent(binding, cars),
        )

    def _note_end(
        self, left: float, pace_per_s: float, since: datetime, next_poll: datetime | None, cars: int
    ) -> None:
        """Count ``cars`` if these calls end too early at that pace, once it is sure."""
        lasts_s = self._left_s
        if left < 1:
            lasts_s = 0.0
        elif pace_per_s > 0 and self._now - since >= _within(self._terms, SURE_AFTER):
            waits_s = 0.0 if next_poll is None else max((next_poll - self._now).total_seconds(), 0.0)
            lasts_s = min(waits_s + left / pace_per_s, lasts_s)
        if cars and self._left_s - lasts_s > self._notable_s:
            out = self._now + timedelta(seconds=lasts_s)
            self._run_out += cars
            self._first_out = out if self._first_out is None else min(self._first_out, out)

    @property
    def _notable_s(self) -> float:
        """By how much before the period calls must end for that to be told."""
        if self._terms.budget.period is Period.DAY:
            return EVENING.total_seconds()
        return NOTABLY_EARLY * self._length_s

    def _binding(self) -> Binding:
        """By whole periods, so that the answer does not change with the day of the month."""
        hungry = self._hungry
        if 2 * hungry.held_by_worth >= hungry.cars:
            return Binding.NEED
        fed_per_s = (self._wanted - hungry.wanted) / self._left_s
        if hungry.allowed_per_s + fed_per_s > self._refill_per_s:
            return Binding.BUCKET
        if 2 * hungry.held_by_brand > hungry.cars:
            return Binding.BRAND
        spared = hungry.spent + hungry.wanted < ENOUGH * (hungry.spent + hungry.left)
        return Binding.NEED if spared else Binding.PLAN

    def _compare(self, car: CarFacts, pace_per_s: float) -> None:
        """Add what the error is at this pace, and at that of the other plan, pool and bucket aside."""
        calls, other = self._terms.budget.calls_per_vehicle, self._other_calls
        other_per_s = pace_per_s
        if car.standing in _HUNGRY:
            if other >= calls:
                other_per_s = max(min(pace_per_s * other / calls, car.most_per_s), pace_per_s)
            elif self._terms.pool_spent is None:
                other_per_s = min(pace_per_s, other / self._length_s)
        self._other_per_s += other_per_s
        if pace_per_s > 0:
            error = car.price * pace_per_s
            saved = saved_percent(car.price, pace_per_s, other_per_s)
            self._error_now += REALISED * error
            self._error_then += REALISED * (error - saved)

    def _gain_percent(self, binding: Binding, cars: int) -> float | None:
        larger = self._other_calls >= self._terms.budget.calls_per_vehicle
        if binding is Binding.NEED and larger:
            return 0.0
        if self._hungry.price is None:
            return None
        # The pace p*n was reckoned with is held back by pool and bucket to the share ``now`` of it, the other
        # plan's to ``then``: E = p·n·now turns into p·(n·now)²/(n₂·then).
        now = _shortened(self._pace_per_s, self._most_per_s(self._terms.budget.calls_per_vehicle))
        then = _shortened(self._other_per_s, self._most_per_s(self._other_calls))
        gain = (self._error_now * now - self._error_then * now**2 / then) / cars
        return max(gain, 0.0) if larger else gain

    def _most_per_s(self, calls: int) -> float:
        """That all cars together can have with so many calls per vehicle."""
        if self._terms.pool_spent is None:
            return self._refill_per_s
        return min(self._refill_per_s, calls * max(self._terms.cars, 1) / self._length_s)


class _Hungry:
    """Sums over the cars that are polled: those whose calls the plan is about."""

    def __init__(self) -> None:
        self.cars = 0
        self.held_by_brand = 0
        self.held_by_worth = 0
        self.allowed_per_s = 0.0
        """That plan and brand allow, of a whole period."""
        self.spent = 0
        self.wanted = 0.0
        self.left = 0.0
        self.polls = 0.0
        self._prices = 0.0
        self._priced = 0

    def add(self, car: CarFacts, wanted: float, left: float, even_per_s: float) -> None:
        self.cars += 1
        self.held_by_brand += car.most_per_s < even_per_s
        self.held_by_worth += car.standing is Standing.POLLED and 0 < car.price <= LEAST_WORTH
        self.allowed_per_s += min(car.most_per_s, even_per_s)
        self.spent += car.spent
        self.wanted += wanted
        self.left += left
        self.polls += wanted / car.calls_per_poll
        self._prices += car.price
        self._priced += car.price > 0

    @property
    def price(self) -> float | None:
        return self._prices / self._priced if self._priced else None


def car_forecast(car: CarFacts, forecast: Forecast) -> CarForecast:
    """One car's part in its application's forecast."""
    terms, left_s = forecast.terms, _left_s(forecast.terms, forecast.now)
    pace_per_s = _pace_per_s(car, terms, forecast.now)
    coming = _wanted(car, terms, pace_per_s, left_s) * forecast.scale
    return CarForecast(
        spent=car.spent,
        left=terms.left(car.spent),
        calls_per_day=coming / left_s * _DAY_S,
        interval=_interval(left_s, coming / car.calls_per_poll),
        standing=car.standing,
        price=car.price if car.price > 0 else None,
    )


def advice(forecast: Forecast) -> str:
    """What the other plan would buy, or what would help instead, in a sentence or two."""
    budget, gain = forecast.terms.budget, forecast.gain_percent
    plans = (
        f"{forecast.other_calls} calls per vehicle and {budget.period} instead of {budget.calls_per_vehicle}"
    )
    larger = forecast.other_calls >= budget.calls_per_vehicle
    webhooks = 2 * forecast.standings[Standing.PUSHED] < forecast.cars
    match forecast.binding:
        case Binding.NEED if larger:
            return (
                "The plan holds no car back: they are asked as often as it is worth. More calls buy nothing."
            )
        case Binding.BUCKET if larger:
            rate = budget.refill_per_minute
            each = rate * 1440 / max(forecast.cars, 1)
            return (
                f"A larger plan buys nothing: the application's bucket gives {rate:g} requests a minute, "
                f"{each:.3g} a day for each car. A higher rate limit at Smartcar"
                f"{', webhooks,' * webhooks} or another application for some of the cars would help."
            )
        case Binding.BRAND if larger:
            return (
                f"A larger plan buys {_bought(gain)}: most cars that are polled are asked as often as their "
                f"brands allow.{' Webhooks would help.' * webhooks}"
            )
    if gain is None:
        return "What another plan would buy is not known yet: too little has been learnt of the cars."
    verb, points = "lower" if gain >= 0 else "raise", f"about {abs(gain):.2g} percentage points"
    return f"{plans} would {verb} the mean error of the state of charge by {points}."


def _bought(gain: float | None) -> str:
    if gain is None or gain < _WORTH_SAYING:
        return "nothing"
    return f"only about {gain:.2g} percentage points"


def _pace_per_s(car: CarFacts, terms: Terms, now: datetime) -> float:
    """Calls per second at which the car goes on; see the module's docstring."""
    if car.standing is Standing.NOT_ASKED:
        return 0.0
    hungry = car.standing in _HUNGRY
    settling = _within(terms, SETTLING if hungry else SURE_AFTER)
    known_for = now - car.since
    pace_per_s = car.spent / max(known_for, settling).total_seconds()
    if hungry and known_for < settling:
        pace_per_s += _even_per_s(car, terms, now) * (1 - known_for / settling)
    return min(pace_per_s, car.most_per_s)


def _even_per_s(car: CarFacts, terms: Terms, now: datetime) -> float:
    """Calls per second at which the car's last to the end, as far as it has not shown that it takes fewer."""
    even_per_s = min(
        terms.left(car.spent) / _left_s(terms, now),
        terms.budget.refill_per_minute / 60 / max(terms.cars, 1),
    )
    known_s = (now - car.since).total_seconds()
    if known_s > 0 and car.spent >= TIMES_ASKED * car.calls_per_poll:
        even_per_s = min(even_per_s, MOST_TIMES * car.spent / known_s)
    return even_per_s


def _within(terms: Terms, span: timedelta) -> timedelta:
    """``span``, but no more than a quarter of the period."""
    return min(span, (terms.window.end - terms.window.start) / 4)


def _wanted(car: CarFacts, terms: Terms, pace_per_s: float, left_s: float) -> float:
    """Calls until the period ends, if pool and bucket had enough for everybody."""
    wanted = pace_per_s * left_s
    return wanted if terms.pool_spent is not None else min(wanted, terms.left(car.spent))


def _left_s(terms: Terms, now: datetime) -> float:
    return max((terms.window.end - now).total_seconds(), 1.0)


def _shortened(wanted: float, most: float) -> float:
    """The share of ``wanted`` that there is, 0 to 1."""
    return 1.0 if wanted <= most else most / wanted


def _interval(span_s: float, polls: float) -> timedelta | None:
    """Between two of so many polls; None: that is longer than anybody waits."""
    if polls <= 0 or span_s / polls > _LONGEST_S:
        return None
    return timedelta(seconds=span_s / polls)

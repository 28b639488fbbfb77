"""Strategies for whatever may come: looks that contradict each other, clocks that jump, plans of any size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from evbatteryd.domain.cadence import Answered, NextPoll, activity, next_poll
from evbatteryd.domain.errors import Asleep, RateLimited, SourceError, Unreachable
from evbatteryd.domain.fleet import Car, facts_of
from evbatteryd.domain.ledger import Budget, Period, Share, window
from evbatteryd.domain.plausibility import plausible
from evbatteryd.domain.policy import polling
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.domain.profile import BrandProfile, CallLimit, Quirk
from evbatteryd.domain.reading import Measurement, Observation, Signal, merge
from evbatteryd.domain.settling import settle
from tests import builders

BEGIN = datetime(2028, 3, 25, 20, tzinfo=UTC)
"""The evening before a night in which an hour is missing."""

gaps = (
    st.integers(1, 7200)
    | st.integers(7200, 3 * 86400)
    | st.sampled_from([0, -1, -3600, -86400 * 3, 86400 * 40, 86400 * 400])
).map(lambda seconds: timedelta(seconds=seconds))
"""Between two events: mostly forward."""
ages = st.none() | (st.integers(-280, 900) | st.integers(-86400, 86400 * 3) | st.just(86400 * 900)).map(
    lambda seconds: timedelta(seconds=seconds)
)
"""How old a measurement is as it arrives; negative: from the future; None: the car names no time."""
percents = st.integers(0, 100).map(float) | st.floats(0, 100)
flags = st.none() | st.booleans()


@dataclass(frozen=True, slots=True)
class Step:
    """What happens, and how long after what happened before."""

    gap: timedelta
    what: str
    soc: float | None = None
    charging: bool | None = None
    plugged: bool | None = None
    limit: float | None = None
    age: timedelta | None = None
    hint: Hint = Hint.PLUGGED_IN
    calls: int = 0
    """Calls that were spent beside, of this car or by others of its pool."""


steps = st.lists(
    st.builds(
        Step,
        gap=gaps,
        what=st.sampled_from(["poll", "poll", "poll", "fail", "push", "hint"]),
        soc=st.none() | percents,
        charging=flags,
        plugged=flags,
        limit=st.none() | st.floats(1, 100),
        age=ages,
        hint=st.sampled_from(Hint),
        calls=st.sampled_from([0, 0, 0, 1, 7, 500]),
    ),
    min_size=1,
    max_size=12,
)
budgets = st.builds(
    Budget,
    calls_per_vehicle=st.sampled_from([1, 2, 16, 100, 500, 10_000, 1_000_000]) | st.integers(1, 2000),
    period=st.sampled_from(Period),
    anchor_day=st.integers(1, 31),
    pooled=st.booleans(),
)


@st.composite
def profiles(draw: st.DrawFn) -> BrandProfile:
    """Brands with any floor, limit and quirk."""
    minutes = st.sampled_from([1, 5, 30, 90]).map(lambda number: timedelta(minutes=number))
    limits = st.builds(
        CallLimit,
        st.sampled_from([1, 4, 20, 60, 61, 480]),
        st.sampled_from([timedelta(minutes=30), timedelta(hours=1), timedelta(days=1)]),
    )
    return builders.profile(
        floor=draw(minutes),
        limit=draw(st.none() | limits),
        soc_step_percent=draw(st.sampled_from([0.5, 1.0, 10.0])),
        quirks=draw(st.frozensets(st.sampled_from(Quirk))),
    )


@dataclass
class Told:
    """One event and what came of it."""

    step: Step
    before: Car
    after: Car
    share: Share
    now: datetime
    decision: polling.Decision | None = None
    hinted: polling.Hinted | None = None
    then: NextPoll | None = None


class Tale:
    """One car in whatever happens to it, treated as the poller treats it."""

    def __init__(self, profile: BrandProfile, budget: Budget, offset: float = 0.0, cars: int = 3) -> None:
        self.profile, self.budget = profile, budget
        self.lore = Lore(lambda at: offset)
        self.car, self.now, self.cars = builders.car(due=BEGIN), BEGIN, cars if budget.pooled else 1
        self.spent: dict[datetime, int] = {}
        self.others: dict[datetime, int] = {}

    def tell(self, steps: list[Step]) -> list[Told]:
        return [self.happen(step) for step in steps]

    def share(self) -> Share:
        period, calls, cars = window(self.budget, self.now), self.budget.calls_per_vehicle, self.cars
        own, others = self.spent.get(period.start, 0), self.others.get(period.start, 0)
        left = -(-(calls * cars - own - others) // cars) if self.budget.pooled else calls - own
        return Share(
            calls_left=max(left, 0),
            calls=calls,
            began_at=period.start,
            renews_at=period.end,
            application_interval=timedelta(seconds=30 * cars),
            cars=cars,
            pool_spent=own + others if self.budget.pooled else None,
        )

    def happen(self, step: Step) -> Told:
        self.now += step.gap
        start = window(self.budget, self.now).start
        spent = self.others if self.budget.pooled else self.spent
        spent[start] = spent.get(start, 0) + step.calls
        told = {"poll": self._poll, "fail": self._fail, "push": self._push, "hint": self._hint}[step.what](
            step
        )
        self.car = told.after
        return told

    def observed(self, step: Step) -> Observation:
        measured_at = None if step.age is None else self.now - step.age
        values = {
            Signal.SOC: step.soc,
            Signal.CHARGING: step.charging,
            Signal.PLUGGED_IN: step.plugged,
            Signal.CHARGE_LIMIT: step.limit,
        }
        found = [
            Measurement(signal, value, measured_at, self.now)
            for signal, value in values.items()
            if value is not None
        ]
        return Observation(fetched_at=self.now, measurements=tuple(found))

    def _spend(self) -> None:
        start = window(self.budget, self.now).start
        self.spent[start] = self.spent.get(start, 0) + self.car.schedule.calls_per_poll

    def _poll(self, step: Step) -> Told:
        self._spend()
        checked = plausible(self.observed(step), self.car.state, self.now)
        state, news = merge(self.car.state, checked.measurements)
        doing = activity(self.car.state, state, self.profile, self.now)
        schedule = replace(self.car.schedule, answered_at=self.now, failures=0, activity=doing)
        car, share = replace(self.car, schedule=schedule), self.share()
        found = polling.after_answer(car, state, self.profile, share, self.lore, self.now)
        then = next_poll(facts_of(car, self.profile, Answered(news), share, found.wanted), self.now)
        schedule = replace(
            schedule, due=then.at, reason=then.reason, polled_at=self.now, outcome="new", gain=found.gain
        )
        after = replace(car, schedule=schedule, state=state, learned=found.learned, trend=found.trend)
        return Told(step, self.car, after, share, self.now, decision=found, then=then)

    def _fail(self, step: Step) -> Told:
        self._spend()
        error: SourceError = {
            None: Asleep("VEHICLE_STATE:ASLEEP", ""),
            False: Unreachable("SERVER:INTERNAL", ""),
            True: RateLimited("RATE_LIMIT:VEHICLE", "", retry_after=timedelta(minutes=20)),
        }[step.charging]
        share = self.share()
        after = settle(
            self.car, error, self.profile, share, self.lore, calls=1, began=self.now, now=self.now
        ).car
        then = NextPoll(after.schedule.due, after.schedule.reason)
        return Told(step, self.car, after, share, self.now, then=then)

    def _push(self, step: Step) -> Told:
        checked = plausible(self.observed(step), self.car.state, self.now)
        state, _ = merge(self.car.state, checked.measurements)
        learned, trend = polling.after_push(self.car, state, self.profile, self.lore, self.now)
        after = replace(self.car, state=state, learned=learned, trend=trend)
        return Told(step, self.car, after, self.share(), self.now)

    def _hint(self, step: Step) -> Told:
        share = self.share()
        found = polling.after_hint(self.car, self.profile, share, self.lore, step.hint, self.now)
        after = replace(self.car, learned=found.learned, trend=found.trend)
        if found.at is not None:
            schedule = replace(after.schedule, due=found.at, reason=found.reason, gain=found.gain)
            after = replace(after, schedule=schedule)
        return Told(step, self.car, after, share, self.now, hinted=found)


@st.composite
def tales(draw: st.DrawFn) -> Tale:
    return Tale(draw(profiles()), draw(budgets), draw(st.sampled_from([0.0, 3600.0, -43200.0, 20700.0])))

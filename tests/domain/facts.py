"""Facts that the laws of the domain are tried on: examples to build upon, and strategies for any."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import strategies as st

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
from evbatteryd.domain.profile import BrandProfile, CallLimit
from evbatteryd.domain.reading import (
    BatteryState,
    ChargeState,
    Measurement,
    Observation,
    Origin,
    Signal,
    Value,
    merge,
)

NOW = datetime(2026, 8, 5, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)

PROFILE = BrandProfile(
    brand="example",
    name="Example",
    makes=("EXAMPLE",),
    reports=10 * MINUTE,
    silence=timedelta(days=4),
    driving=15 * MINUTE,
    charging=20 * MINUTE,
    parked=2 * HOUR,
    idle=6 * HOUR,
    floor=5 * MINUTE,
    latency=8 * SECOND,
)
GENEROUS = Share(
    calls_left=1_000_000,
    calls=1_000_000,
    began_at=NOW - timedelta(days=10),
    renews_at=NOW + timedelta(days=20),
    application_interval=timedelta(seconds=1),
)

BOOLEANS = frozenset({Signal.CHARGING, Signal.PLUGGED_IN})
ERRORS = (
    SourceError,
    Unreachable,
    RateLimited,
    ApplicationRateLimited,
    BudgetSpent,
    PlanRefused,
    Asleep,
    NothingYet,
    ConsentLost,
    OwnerMustAct,
    NotCapable,
    ApplicationRefused,
    Unreadable,
)
FINAL = (ConsentLost, NotCapable)
BEFORE_THE_EPOCH = datetime(1969, 7, 20, tzinfo=UTC)
PERSONAL = "36ab27d0-fd9d-4455-823a-ce30af709ffc"
"""What the detail of an error may hold by mistake and a reason never may: a user's id."""


def told(
    signal: Signal,
    value: Value,
    measured_at: datetime | None = NOW,
    fetched_at: datetime | None = None,
    origin: Origin = Origin.POLL,
) -> Measurement:
    """A measurement, fetched a minute after it was measured unless said otherwise."""
    return Measurement(signal, value, measured_at, fetched_at or (measured_at or NOW) + MINUTE, origin)


def state(*measurements: Measurement) -> BatteryState:
    return merge(BatteryState(), measurements)[0]


def observed(*measurements: Measurement) -> Observation:
    return Observation(fetched_at=NOW, measurements=measurements)


spans = st.integers(1, 14 * 24 * 60).map(lambda minutes: timedelta(minutes=minutes))
instants = st.timedeltas(timedelta(), timedelta(days=3000)).map(datetime(2024, 1, 1, tzinfo=UTC).__add__)
spreads = st.floats(0, 1, exclude_max=True)
zones = st.integers(-14 * 4, 14 * 4).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))


@st.composite
def near_instants(draw: st.DrawFn) -> datetime:
    """One of few instants, so that ties are common, as seen from any time zone."""
    return (NOW + draw(st.integers(0, 3)) * MINUTE).astimezone(draw(zones))


def values(signal: Signal) -> st.SearchStrategy[Value]:
    if signal in BOOLEANS:
        return st.booleans()
    if signal is Signal.CHARGE_STATE:
        return st.sampled_from(ChargeState)
    return st.sampled_from([0.0, 20.0, 50.0, 50.5, 100.0]) | st.floats(0, 100)


@st.composite
def measurements(draw: st.DrawFn, signals: tuple[Signal, ...] = tuple(Signal)) -> Measurement:
    signal = draw(st.sampled_from(signals))
    return Measurement(
        signal,
        draw(values(signal)),
        draw(st.none() | near_instants() | st.just(BEFORE_THE_EPOCH)),
        draw(near_instants()),
        draw(st.sampled_from(Origin)),
    )


@st.composite
def profiles(draw: st.DrawFn) -> BrandProfile:
    limit = st.builds(CallLimit, st.integers(1, 500), spans)
    return BrandProfile(
        brand="any",
        name="Any",
        makes=("ANY",),
        reports=draw(spans),
        silence=draw(spans),
        driving=draw(spans),
        charging=draw(spans),
        parked=draw(spans),
        idle=draw(spans),
        floor=draw(spans),
        latency=draw(spans),
        limit=draw(st.none() | limit),
        soc_step_percent=draw(st.sampled_from([0.5, 1.0, 10.0])),
    )


@st.composite
def shares(draw: st.DrawFn) -> Share:
    calls_left = draw(st.integers(-5, 20_000))
    return Share(
        calls_left=calls_left,
        calls=max(calls_left, 0) + draw(st.integers(0, 20_000)),
        began_at=NOW - draw(st.timedeltas(timedelta(), timedelta(days=31))),
        renews_at=NOW + draw(st.timedeltas(timedelta(), timedelta(days=31))),
        application_interval=draw(st.timedeltas(timedelta(), timedelta(days=2))),
    )


@st.composite
def errors(draw: st.DrawFn, kinds: tuple[type[SourceError], ...] = ERRORS) -> SourceError:
    kind = draw(st.sampled_from(kinds))
    if issubclass(kind, Unreadable):
        return kind("UNREADABLE", PERSONAL, excerpt=PERSONAL)
    wait = draw(st.none() | st.timedeltas(timedelta(days=-1), timedelta.max))
    return kind("TYPE:CODE", PERSONAL, retry_after=wait)

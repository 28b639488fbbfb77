"""Whatever a domain object holds comes back from a real file, its instants rounded down to milliseconds."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evbatteryd.domain.enrolment import Ending, Enrolment, Invitation
from evbatteryd.domain.fleet import Car, Schedule, Trouble
from evbatteryd.domain.ports import Polled
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Rejected, Signal
from evbatteryd.domain.vehicle import Consent
from evbatteryd.store import codec, open_store

ZONES = st.sampled_from([UTC, timezone(timedelta(hours=-9, minutes=-30)), timezone(timedelta(hours=14))])
INSTANTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=ZONES)  # noqa: DTZ001
NUMBERS = st.floats(allow_nan=False)
VALUES = dict.fromkeys(Signal, NUMBERS) | {
    Signal.CHARGE_STATE: st.sampled_from(ChargeState),
    Signal.CHARGING: st.booleans(),
    Signal.PLUGGED_IN: st.booleans(),
}
ORIGINS = st.sampled_from(Origin)
COUNTS = st.integers(0, 2**40)
TEXTS = st.text(max_size=30)


@st.composite
def states(draw: st.DrawFn) -> BatteryState:
    """Signals that mostly share few instants, as they do in life, or do not."""
    few = st.sampled_from(draw(st.lists(INSTANTS, min_size=1, max_size=3)))
    instants = few | INSTANTS
    signals = draw(st.sets(st.sampled_from(Signal)))
    return BatteryState(
        {
            signal: Measurement(
                signal, draw(VALUES[signal]), draw(st.none() | instants), draw(instants), draw(ORIGINS)
            )
            for signal in signals
        }
    )


SCHEDULES = st.builds(
    Schedule,
    due=st.none() | INSTANTS,
    reason=TEXTS,
    polled_at=st.none() | INSTANTS,
    answered_at=st.none() | INSTANTS,
    outcome=TEXTS,
    failures=COUNTS,
    activity=st.sampled_from(Activity),
    calls_per_poll=COUNTS,
    pushed_at=st.none() | INSTANTS,
    gain=NUMBERS,
)
LEARNED = st.binary(max_size=600)
TROUBLES = st.none() | st.builds(Trouble, TEXTS, TEXTS, TEXTS, INSTANTS)
CONSENTS = st.builds(
    Consent,
    application=TEXTS,
    connection_id=TEXTS,
    vehicle_ref=TEXTS,
    user_ref=TEXTS,
    make=TEXTS,
    model=st.none() | TEXTS,
    year=st.none() | st.integers(-(2**40), 2**40),
    powertrain=st.none() | TEXTS,
    permissions=st.frozensets(TEXTS, max_size=5),
)
REJECTED = st.builds(Rejected, st.sampled_from(Signal), TEXTS, TEXTS, st.none() | INSTANTS, INSTANTS)


def whole(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(microsecond=at.microsecond // 1000 * 1000)


def maybe_whole(at: datetime | None) -> datetime | None:
    return None if at is None else whole(at)


def whole_state(state: BatteryState) -> BatteryState:
    return BatteryState(
        {
            of.signal: replace(of, measured_at=maybe_whole(of.measured_at), fetched_at=whole(of.fetched_at))
            for of in state
        }
    )


def whole_car(car: Car) -> Car:
    schedule, trouble = car.schedule, car.trouble
    return replace(
        car,
        state=whole_state(car.state),
        schedule=replace(
            schedule,
            due=maybe_whole(schedule.due),
            polled_at=maybe_whole(schedule.polled_at),
            answered_at=maybe_whole(schedule.answered_at),
            pushed_at=maybe_whole(schedule.pushed_at),
        ),
        trouble=trouble and replace(trouble, since=whole(trouble.since)),
    )


@given(states(), INSTANTS, ORIGINS)
def test_a_state_comes_back_with_every_time_and_type(
    state: BatteryState, fetched: datetime, origin: Origin
) -> None:
    back = codec.decode_state(codec.encode_state(state, codec.to_ms(fetched), origin))
    assert back == whole_state(state)
    assert all(type(back.signals[of.signal].value) is type(of.value) for of in state)
    assert all(of.measured_at is None or of.measured_at.tzinfo is UTC for of in back)


@given(st.lists(INSTANTS, min_size=2, max_size=2))
def test_rounding_keeps_the_order(instants: list[datetime]) -> None:
    early, late = sorted(instants)
    assert codec.to_ms(early) <= codec.to_ms(late)
    assert codec.from_ms(codec.to_ms(early)) <= early <= codec.from_ms(codec.to_ms_up(early))
    assert codec.to_ms_up(early) - codec.to_ms(early) in (0, 1)


def test_a_usual_state_spends_no_bytes_on_times() -> None:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    state = BatteryState({signal: Measurement(signal, 1.0, at, at) for signal in (Signal.SOC, Signal.RANGE)})
    assert codec.encode_state(state, codec.to_ms(at), Origin.POLL)[-1] is None


@pytest.mark.parametrize("count", [2, 8])
def test_signals_measured_together_share_their_difference(count: int) -> None:
    at = datetime(2026, 11, 1, tzinfo=UTC)
    old = [signal for signal in Signal if signal is not Signal.SOC][:count]
    measured = dict.fromkeys(old, at - timedelta(hours=3)) | {Signal.SOC: at}
    values = {Signal.CHARGE_STATE: ChargeState.CHARGING}
    state = BatteryState(
        {signal: Measurement(signal, values.get(signal, True), when, at) for signal, when in measured.items()}
    )
    assert len(codec.encode_state(state, codec.to_ms(at), Origin.POLL)[-1]) == count + 4


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    consent=CONSENTS,
    schedules=st.tuples(SCHEDULES, SCHEDULES),
    state=states(),
    trouble=TROUBLES,
    rejected=st.lists(REJECTED, max_size=3).map(tuple),
    instants=st.tuples(INSTANTS, INSTANTS),
    origin=ORIGINS,
    names=st.tuples(TEXTS, TEXTS, TEXTS),
    learned=LEARNED,
)
def test_a_car_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    consent: Consent,
    schedules: tuple[Schedule, Schedule],
    state: BatteryState,
    trouble: Trouble | None,
    rejected: tuple[Rejected, ...],
    instants: tuple[datetime, datetime],
    origin: Origin,
    names: tuple[str, str, str],
    learned: bytes,
) -> None:
    async def there_and_back(path: Path) -> None:
        slug, name, brand = names
        async with open_store(path) as store:
            new = await store.enrol(
                consent, slug=slug, name=name, brand=brand, schedule=schedules[0], at=instants[0]
            )
            assert new.vehicle.enrolled_at == whole(instants[0])
            assert new == whole_car(replace(new, schedule=schedules[0]))
            assert await store.cars() == [new]
            answered = replace(new, state=state, schedule=schedules[1], trouble=trouble, learned=learned)
            kept, reading = await store.record(
                Polled(car=answered, news=True, at=instants[1], origin=origin, rejected=rejected)
            )
            assert kept == whole_car(replace(answered, reading_id=kept.reading_id))
            assert reading is not None
            assert (reading.state, reading.origin) == (kept.state, origin)
            assert reading.fetched_at == whole(instants[1])
        async with open_store(path) as store:
            assert await store.cars() == [kept]
            assert await store.readings([reading.seq]) == [reading]
            assert await store.rejections(kept.id) == [
                replace(of, measured_at=maybe_whole(of.measured_at), fetched_at=whole(of.fetched_at))
                for of in reversed(rejected)
            ]

    asyncio.run(there_and_back(tmp_path_factory.mktemp("round_trip") / "evbatteryd.db"))


VEHICLES = st.fixed_dictionaries(
    {
        "slug": TEXTS,
        "name": TEXTS,
        "invited": st.none() | TEXTS,
        "former_slugs": st.lists(TEXTS, max_size=4).map(tuple),
        "subscription": st.none() | TEXTS,
        "withdrawn_at": st.none() | INSTANTS,
        "consent": CONSENTS,
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VEHICLES, SCHEDULES, TROUBLES, TEXTS, LEARNED)
def test_a_changed_vehicle_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    fields: dict[str, Any],
    schedule: Schedule,
    trouble: Trouble | None,
    invited: str,
    learned: bytes,
) -> None:
    async def there_and_back(path: Path) -> None:
        async with open_store(path) as store:
            at = datetime(2026, 11, 1, tzinfo=UTC)
            new = await store.enrol(
                fields["consent"], slug="", name="", brand="", schedule=schedule, at=at, invited=invited
            )
            assert await store.cars() == [new]
            vehicle = replace(new.vehicle, **fields)
            changed = replace(new, vehicle=vehicle, schedule=schedule, trouble=trouble, learned=learned)
            await store.update(changed)
        whole_vehicle = replace(vehicle, withdrawn_at=maybe_whole(vehicle.withdrawn_at))
        async with open_store(path) as store:
            assert await store.cars() == [whole_car(replace(changed, vehicle=whole_vehicle))]

    asyncio.run(there_and_back(tmp_path_factory.mktemp("round_trip") / "evbatteryd.db"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(TEXTS, st.lists(st.binary(max_size=5000), min_size=1, max_size=3), max_size=4))
def test_what_was_learnt_across_cars_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory, lore: dict[str, list[bytes]]
) -> None:
    async def there_and_back(path: Path) -> None:
        async with open_store(path) as store:
            for application, versions in lore.items():
                for version in versions:
                    await store.keep_lore(application, version)
        async with open_store(path) as store:
            assert {of: await store.lore(of) for of in lore} == {of: last for of, (*_, last) in lore.items()}

    asyncio.run(there_and_back(tmp_path_factory.mktemp("round_trip") / "evbatteryd.db"))


DIGESTS = st.binary(max_size=40)
ENDINGS = st.tuples(st.sampled_from(Ending), st.none() | TEXTS, INSTANTS)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, TEXTS, DIGESTS, DIGESTS, st.none() | DIGESTS, st.tuples(INSTANTS, INSTANTS), ENDINGS)
def test_an_enrolment_comes_back_from_the_file(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    application: str,
    token: bytes,
    state: bytes,
    browser: bytes | None,
    instants: tuple[datetime, datetime],
    how: tuple[Ending, str | None, datetime],
) -> None:
    ending, user_ref, ended_at = how
    begun_at, expires_at = instants

    async def there_and_back(path: Path) -> None:
        async with open_store(path) as store:
            invitation = await store.invite(
                name=name, application=application, token=token, created_at=begun_at, expires_at=expires_at
            )
            assert invitation == Invitation(
                id=invitation.id,
                name=name,
                application=application,
                created_at=whole(begun_at),
                expires_at=whole(expires_at),
            )
            begun = await store.begin(
                application=application,
                state=state,
                browser=browser,
                invitation=None,
                begun_at=begun_at,
                expires_at=expires_at,
            )
            assert begun == Enrolment(
                id=begun.id,
                application=application,
                begun_at=whole(begun_at),
                expires_at=whole(expires_at),
                browser=browser,
            )
            ended = await store.end(begun.id, ending=ending, user_ref=user_ref, at=ended_at)
            assert ended == replace(begun, ending=ending, user_ref=user_ref, ended_at=whole(ended_at))
        async with open_store(path) as store:
            assert await store.invitation(token) == invitation
            assert await store.enrolment(state) == ended

    asyncio.run(there_and_back(tmp_path_factory.mktemp("round_trip") / "evbatteryd.db"))

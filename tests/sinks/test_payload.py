"""Payloads: valid whatever a car told, and nothing in them that it did not tell."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain.commanding import CommandKind
from evbatteryd.domain.fleet import Trouble
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.policy.outlook import Estimate, Trend
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Signal
from evbatteryd.sinks.discovery import Device
from evbatteryd.sinks.payload import (
    AVAILABILITY,
    DISCOVERY,
    ESTIMATED,
    FIELDS,
    POLLING,
    STATE,
    Message,
    Polling,
    Telling,
    Topics,
    newest,
    polling_json,
    state_json,
)
from tests.builders import NOON, UPLOAD, measurement, state

TOPICS = Topics("evbatteryd", "homeassistant")
FLAGS = {Signal.CHARGING, Signal.PLUGGED_IN}
NUMBERS = set(Signal) - FLAGS - {Signal.CHARGE_STATE}

instants = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
numbers = st.floats(0, 2_000_000, allow_nan=False) | st.integers(0, 2_000_000).map(float)


def values(signal: Signal) -> st.SearchStrategy[object]:
    if signal in FLAGS:
        return st.booleans()
    return st.sampled_from(ChargeState) if signal is Signal.CHARGE_STATE else numbers


@st.composite
def states(draw: st.DrawFn) -> BatteryState:
    """Any state: any signals, any order of times, with or without the car's own."""
    return BatteryState(
        {
            signal: Measurement(
                signal,
                draw(values(signal)),
                draw(st.none() | instants),
                draw(instants),
                draw(st.sampled_from(Origin)),
            )
            for signal in draw(st.sets(st.sampled_from(Signal)))
        }
    )


estimates = st.builds(
    Estimate,
    *(st.floats(0, 100, allow_nan=False) for _ in ("soc_percent", "low_percent", "high_percent")),
    instants,
)
GUESS = Estimate(63.04, 60.96, 66.0, NOON + timedelta(hours=4))
POLLED = Polling(
    measured_at=NOON,
    fetched_at=NOON + UPLOAD,
    next_poll=NOON + timedelta(hours=1),
    reason="parked",
    outcome="unreachable",
    problem=Trouble("unreachable", "network", "no way there", NOON),
    calls_left=400,
    calls=1000,
    renews_at=datetime(2026, 12, 1, tzinfo=UTC),
    commands=frozenset({CommandKind.POLL, CommandKind.CHARGE_LIMIT}),
)
DEVICE = Device(
    slug="zoe",
    name="Zoe",
    make="Renault",
    model="Zoe",
    year=2021,
    commands=frozenset({CommandKind.POLL}),
    expire_after_s=3600,
)


def telling(known: BatteryState, **changes: object) -> Telling:
    usual: dict[str, object] = {
        "slug": "zoe",
        "state": known,
        "reading_id": "r1",
        "origin": Origin.POLL,
        "freshness": Freshness.FRESH,
        "replayed": False,
        "superseded": False,
        "published_at": NOON,
        "fresh_until": None,
        "expiry": 60,
        "estimate": None,
        "estimate_expiry": 60,
    }
    return Telling(**(usual | changes))


def said(known: BatteryState, **changes: object) -> dict[str, object]:
    found: dict[str, object] = json.loads(state_json(telling(known, **changes)))
    return found


def scalars(known: BatteryState, **changes: object) -> dict[str, str]:
    return {
        message.topic.removeprefix("evbatteryd/zoe/"): message.payload.decode()
        for message in scalars_of(telling(known, **changes))
    }


def scalars_of(whole: Telling) -> list[Message]:
    return [*TOPICS.scalars(whole), *TOPICS.estimated(whole)]


def at(time: datetime | None) -> str | None:
    """RFC 3339 by the standard library, to compare with."""
    return None if time is None else time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_every_field_of_a_state_has_its_name_and_unit() -> None:
    known = state(
        soc=62.5,
        range_km=245.0,
        capacity_kwh=52,
        charge_state="charging",
        charging=True,
        plugged_in=True,
        charge_limit=80,
        charge_power_kw=7.3625,
        time_to_full_s=5400,
        odometer_km=48_211.123456,
    )
    assert said(known, replayed=True, published_at=NOON + timedelta(minutes=1)) == {
        "vehicle": "zoe",
        "soc": 62.5,
        "range_km": 245,
        "capacity_kwh": 52,
        "charge_state": "charging",
        "charging": True,
        "plugged_in": True,
        "charge_limit": 80,
        "charge_power_kw": 7.362,
        "time_to_full_s": 5400,
        "odometer_km": 48211.123,
        "measured_at": "2026-11-22T12:00:00.000Z",
        "fetched_at": "2026-11-22T12:00:30.000Z",
        "soc_estimate": None,
        "soc_estimate_low": None,
        "soc_estimate_high": None,
        "estimate_until": None,
        "published_at": "2026-11-22T12:01:00.000Z",
        "source": "poll",
        "freshness": "fresh",
        "replayed": True,
        "reading_id": "r1",
        "schema": 1,
        "times": {},
    }
    assert scalars(known) == {
        "soc": "62.5",
        "range_km": "245",
        "capacity_kwh": "52",
        "charge_state": "charging",
        "charging": "true",
        "plugged_in": "true",
        "charge_limit": "80",
        "charge_power_kw": "7.362",
        "time_to_full_s": "5400",
        "odometer_km": "48211.123",
        "measured_at": "2026-11-22T12:00:00.000Z",
        "fetched_at": "2026-11-22T12:00:30.000Z",
    }


def test_what_is_unknown_is_null_and_has_no_scalar() -> None:
    known = state(soc=0, measured_at=None)
    told = said(known)
    assert [field for field in FIELDS if told[field] is not None] == ["soc", "fetched_at"]
    assert scalars(known) == {"soc": "0", "fetched_at": "2026-11-22T12:00:30.000Z"}


def test_fields_measured_at_another_time_say_so() -> None:
    earlier = NOON - timedelta(hours=2)
    known = BatteryState(
        {
            Signal.SOC: measurement("soc", 50),
            Signal.RANGE: measurement("range_km", 200),
            Signal.ODOMETER: measurement("odometer_km", 4711, measured_at=earlier),
            Signal.CHARGE_LIMIT: measurement("charge_limit", 80, measured_at=None, fetched_at=NOON),
        }
    )
    assert said(known)["times"] == {
        "odometer_km": {"measured_at": at(earlier), "fetched_at": at(earlier + timedelta(seconds=30))},
        "charge_limit": {"measured_at": None, "fetched_at": at(NOON)},
    }


def test_a_state_that_one_signal_tells_of_another_has_the_time_of_the_one_that_told() -> None:
    later = NOON + timedelta(minutes=10)
    known = BatteryState(
        {
            Signal.SOC: measurement("soc", 50),
            Signal.CHARGE_STATE: measurement("charge_state", "charging"),
            Signal.PLUGGED_IN: measurement("plugged_in", False, measured_at=later),
        }
    )
    told = said(known)
    pulled = {"measured_at": at(later), "fetched_at": at(later + timedelta(seconds=30))}
    assert (told["charging"], told["charge_state"], told["plugged_in"]) == (False, "not_charging", False)
    assert told["times"] == {"charging": pulled, "charge_state": pulled, "plugged_in": pulled}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (50.0, "50"),
        (50.12345, "50.123"),
        (0.0004, "0"),
        (-0.0, "0"),
        (2.9999, "3"),
        (1e15, "1000000000000000"),
    ],
)
def test_numbers_are_plain(value: float, text: str) -> None:
    assert scalars(state(odometer_km=value))["odometer_km"] == text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_unknown(value: float) -> None:
    known = state(soc=50, range_km=value)
    assert said(known)["range_km"] is None
    assert "range_km" not in scalars(known)


def test_times_keep_every_digit_they_have() -> None:
    known = state(soc=50, measured_at=NOON + timedelta(milliseconds=7))
    assert said(known)["measured_at"] == "2026-11-22T12:00:00.007Z"


def test_every_topic_that_can_hold_a_value_can_be_emptied() -> None:
    known = state(**{signal.value: 1.0 for signal in NUMBERS}, charging=True, charge_state="charging")
    whole = telling(known, estimate=GUESS)
    told = [TOPICS.state(whole), *scalars_of(whole)]
    assert {message.topic for message in told} == {TOPICS.topic("zoe", leaf) for leaf in (STATE, *FIELDS)}
    emptied = list(TOPICS.emptied("zoe", [STATE, *FIELDS]))
    assert sorted(message.topic for message in emptied) == sorted(message.topic for message in told)
    assert {(message.payload, message.retain, message.slug) for message in emptied} == {(b"", True, "zoe")}


def test_all_that_is_told_of_a_car_can_be_emptied_wherever_it_is() -> None:
    told = [
        TOPICS.availability("zoe", Freshness.FRESH, 60),
        TOPICS.polling("zoe", POLLED, NOON),
        TOPICS.discovery(DEVICE, version="1.2.3", json_state=True),
    ]
    emptied = TOPICS.emptied("zoe", {AVAILABILITY, POLLING, DISCOVERY})
    assert {message.topic for message in emptied} == {message.topic for message in told}
    assert {message.topic for message in told} == {
        "evbatteryd/zoe/availability",
        "evbatteryd/zoe/polling",
        "homeassistant/device/evbatteryd_zoe/config",
    }
    assert all(message.retain and message.slug == "zoe" for message in told)
    assert [message.expiry for message in told] == [60, None, None]


def test_what_is_superseded_is_retained_for_nobody() -> None:
    told = TOPICS.state(telling(state(soc=57), superseded=True, replayed=True))
    assert (told.retain, told.expiry, told.topic) == (False, None, "evbatteryd/zoe/state")
    newest_one = TOPICS.state(telling(state(soc=57)))
    assert (newest_one.retain, newest_one.expiry) == (True, 60)
    assert json.loads(told.payload)["replayed"] is True


def test_messages_say_what_they_are_about() -> None:
    assert TOPICS.state(telling(state(soc=57))).slug == "zoe"
    assert TOPICS.availability("zoe", Freshness.FRESH).slug == "zoe"
    discovered = TOPICS.discovery(DEVICE, version="1", json_state=True)
    assert (discovered.slug, discovered.part) == ("zoe", DISCOVERY)
    assert {one.part for one in TOPICS.emptied("zoe", {"soc", DISCOVERY})} == {"", DISCOVERY}
    assert {one.part for one in TOPICS.emptied("zoe", {"soc", DISCOVERY}, part="x")} == {"x"}
    assert (TOPICS.online().slug, TOPICS.mark("1-1").slug) == ("", "")


@given(st.text("abc/_-", min_size=1), st.text("abc/_-", min_size=1))
def test_a_place_is_known_again(base: str, prefix: str) -> None:
    topics = Topics(base, prefix)
    assert Topics.at(topics.place) == topics


def test_how_a_car_is_polled_is_told_with_its_reasons() -> None:
    message = TOPICS.polling("zoe", POLLED, NOON + timedelta(seconds=5))
    assert message.json
    assert json.loads(message.payload) == {
        "measured_at": "2026-11-22T12:00:00.000Z",
        "fetched_at": "2026-11-22T12:00:30.000Z",
        "next_poll": "2026-11-22T13:00:00.000Z",
        "reason": "parked",
        "outcome": "unreachable",
        "problem": {
            "outcome": "unreachable",
            "code": "network",
            "detail": "no way there",
            "since": "2026-11-22T12:00:00.000Z",
        },
        "calls_left": 400,
        "calls": 1000,
        "renews_at": "2026-12-01T00:00:00.000Z",
        "commands": ["charge_limit", "poll"],
        "published_at": "2026-11-22T12:00:05.000Z",
    }


def test_what_is_not_known_of_polling_is_null() -> None:
    nothing = Polling(
        measured_at=None,
        fetched_at=None,
        next_poll=None,
        reason="",
        outcome="",
        problem=None,
        calls_left=None,
        calls=None,
        renews_at=None,
        commands=frozenset(),
    )
    told = json.loads(polling_json(nothing, NOON))
    assert {told.pop("reason"), told.pop("published_at")} == {"", at(NOON)}
    assert told.pop("commands") == []
    assert set(told.values()) == {None}


def test_the_bridge_tells_who_it_is() -> None:
    info = TOPICS.info(version="1.2.3", vehicles=4, started_at=NOON)
    assert info.topic == "evbatteryd/bridge/info"
    assert json.loads(info.payload) == {
        "version": "1.2.3",
        "vehicles": 4,
        "started_at": "2026-11-22T12:00:00.000Z",
    }
    assert TOPICS.online() == Message("evbatteryd/bridge/state", b"online")
    assert TOPICS.offline() == Message("evbatteryd/bridge/state", b"offline")
    assert TOPICS.mark("ab-1") == Message("evbatteryd/bridge/mark", b"ab-1")
    stale = Message("evbatteryd/zoe/availability", b"stale", slug="zoe")
    assert TOPICS.availability("zoe", Freshness.STALE) == stale


@given(states(), st.booleans(), st.sampled_from(Freshness))
def test_a_payload_tells_the_state_and_nothing_else(
    known: BatteryState, replayed: bool, freshness: Freshness
) -> None:
    told = said(known, replayed=replayed, freshness=freshness)
    for signal in NUMBERS:
        value = known.number(signal)
        assert (told[signal] is None) == (value is None)
        assert value is None or told[signal] == pytest.approx(value, abs=0.0006)
    assert told["charging"] == known.charging
    assert told["charge_state"] == known.charge_state
    assert told["plugged_in"] == known.plugged_in
    assert (told["measured_at"], told["fetched_at"]) == (at(known.measured_at), at(known.fetched_at))
    assert (told["replayed"], told["freshness"]) == (replayed, freshness)


@given(states())
def test_a_scalar_is_told_if_and_only_if_the_state_knows_it(known: BatteryState) -> None:
    told, alone = said(known), scalars(known)
    ended = {field for field in ("charge_power_kw", "time_to_full_s") if alone.get(field) == ""}
    assert all(told[field] is None and Signal(field) in known.signals for field in ended)
    assert set(alone) - ended == {field for field in FIELDS if told[field] is not None}
    for field, text in alone.items():
        if field in ended:
            continue
        assert text
        assert text == told[field] or json.loads(text) == told[field]


@given(states())
def test_every_known_field_has_the_times_of_a_measurement_that_was_made(known: BatteryState) -> None:
    told = said(known)
    made = {(at(one.measured_at), at(one.fetched_at)) for one in known}
    times = told["times"]
    assert isinstance(times, dict)
    top = (told["measured_at"], told["fetched_at"])
    for field in Signal:
        if told[field] is None:
            assert field not in times
        elif field in times:
            assert (times[field]["measured_at"], times[field]["fetched_at"]) in made - {top}
        else:
            assert top in made


@given(states())
def test_a_plain_signal_has_its_own_times(known: BatteryState) -> None:
    told = said(known)
    times = told["times"]
    assert isinstance(times, dict)
    for signal in NUMBERS & set(known.signals):
        found = known.signals[signal]
        if known.value(signal) is None:  # it ended with the charge
            assert signal not in times
            continue
        own = times.get(signal, {"measured_at": told["measured_at"], "fetched_at": told["fetched_at"]})
        assert own == {"measured_at": at(found.measured_at), "fetched_at": at(found.fetched_at)}


@given(states())
def test_the_newest_measurement_is_the_one_fetched_last(known: BatteryState) -> None:
    last = newest(known)
    if last is None:
        assert not list(known)
    else:
        assert all(one.fetched_at <= last.fetched_at for one in known)


def test_what_ended_with_the_charge_is_taken_off_its_topic() -> None:
    charging = state(charging=True, charge_power_kw=7.2, time_to_full_s=600.0)
    assert scalars(charging)["charge_power_kw"] == "7.2"
    ended = replace(
        charging,
        signals={
            **charging.signals,
            Signal.CHARGING: measurement("charging", False, measured_at=NOON + UPLOAD),
        },
    )
    assert said(ended)["charge_power_kw"] is None
    assert scalars(ended)["charge_power_kw"] == ""
    assert scalars(ended)["time_to_full_s"] == ""


# Estimates


def test_an_estimate_is_told_to_a_tenth_of_a_percent() -> None:
    guess = {
        "soc_estimate": 63,
        "soc_estimate_low": 60.9,
        "soc_estimate_high": 66,
        "estimate_until": "2026-11-22T16:00:00.000Z",
    }
    told = said(state(soc=57, charging=True), estimate=GUESS)
    assert {field: told[field] for field in ESTIMATED} == guess
    assert told["soc"] == 57
    alone = scalars(state(soc=57, charging=True), estimate=GUESS)
    assert {field: alone[field] for field in ESTIMATED} == {
        field: str(value) for field, value in guess.items()
    }
    assert scalars(state(soc=57), estimate=replace(GUESS, soc_percent=63.26))["soc_estimate"] == "63.3"


@given(estimates)
def test_a_band_is_rounded_outwards(guess: Estimate) -> None:
    told = said(state(soc=57), estimate=guess)
    assert guess.low_percent - 0.1001 <= told["soc_estimate_low"] <= guess.low_percent + 1e-6
    assert guess.high_percent - 1e-6 <= told["soc_estimate_high"] <= guess.high_percent + 0.1001


def test_the_scalars_of_an_estimate_hold_no_longer_than_it_does() -> None:
    whole = telling(state(soc=57), estimate=GUESS, expiry=60, estimate_expiry=7)
    expiries = {m.topic.rpartition("/")[2]: m.expiry for m in scalars_of(whole)}
    assert {expiries.pop(field) for field in ESTIMATED} == {7}
    assert set(expiries.values()) == {60}


def test_a_withdrawn_estimate_loses_its_topics_and_nothing_else() -> None:
    gone = list(TOPICS.emptied("zoe", ESTIMATED))
    assert {message.topic for message in gone} == {f"evbatteryd/zoe/{field}" for field in ESTIMATED}
    assert len(gone) == len(ESTIMATED)
    assert {message.payload for message in gone} == {b""}


@given(states(), estimates)
def test_what_is_measured_is_the_same_to_the_byte_with_and_without_an_estimate(
    known: BatteryState, guess: Estimate
) -> None:
    with_it, without = telling(known, estimate=guess), telling(known)
    before, own, after = _parted(state_json(with_it))
    assert (before, after) == _parted(state_json(without))[::2]
    assert set(json.loads(b"{" + own + b"}")) == set(ESTIMATED)
    assert list(TOPICS.scalars(with_it)) == list(TOPICS.scalars(without))
    assert list(TOPICS.estimated(without)) == []


def _parted(payload: bytes) -> tuple[bytes, bytes, bytes]:
    """A state's JSON before, in and after the fields of the estimate."""
    begin, end = payload.index(b'"soc_estimate"'), payload.index(b',"published_at"')
    return payload[:begin], payload[begin:end], payload[end:]


@given(st.floats(0, 100), st.floats(0, 300), st.floats(0, 100), st.timedeltas(timedelta(), timedelta(days=1)))
def test_a_charging_car_is_told_to_be_nowhere_below_what_it_measured_nor_above_its_target(
    soc: float, per_hour: float, target: float, passed: timedelta
) -> None:
    percent = Trend(soc, NOON, per_hour, target, NOON + timedelta(days=2)).at(NOON + passed)
    assert percent is not None
    told = said(
        state(soc=soc, charging=True), estimate=Estimate(percent, percent, percent, NOON + timedelta(days=2))
    )
    assert round(soc, 1) <= told["soc_estimate"] <= round(max(soc, target), 1)
    assert told["soc"] == pytest.approx(soc, abs=0.0006)

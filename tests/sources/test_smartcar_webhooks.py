"""What is posted to the webhook address, shape by shape; and the simulator's deliveries over HTTP."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import example, given
from hypothesis import strategies as st

from evbatteryd.domain import errors
from evbatteryd.domain.reading import ChargeState, Origin, Signal
from evbatteryd.domain.webhook import Challenge, Delivery, Event, NotTaken, ToldError
from evbatteryd.simulator import Simulator, SimulatorOptions
from evbatteryd.sources.smartcar_answers import SIGNALS
from evbatteryd.sources.smartcar_webhooks import LONGEST_ID, WebhookKey, read_delivery
from tests.fakes import until
from tests.simulator.conftest import HandClock

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MEASURED = datetime(2025, 12, 8, 1, 34, 15, tzinfo=UTC)
MEASURED_MS = 1765157655000

HOME = WebhookKey(application="home", token="home's token", webhook_id="w-home", simulated=False)
FLEET = WebhookKey(application="fleet", token="fleet's tökén", webhook_id="w-fleet", simulated=False)
LAB = WebhookKey(application="lab", token="lab's token", webhook_id=None, simulated=True)
KEYS = (HOME, FLEET, LAB)


def signed(message: bytes, key: WebhookKey = HOME) -> str:
    return hmac.new(key.token.encode(), message, hashlib.sha256).hexdigest()


def delivered(document: object, key: WebhookKey = HOME) -> tuple[Delivery, ...] | Challenge:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return read_delivery(body, signed(body, key), KEYS, NOW)


def one(document: object, key: WebhookKey = HOME) -> Delivery:
    read = delivered(document, key)
    assert isinstance(read, tuple)
    (delivery,) = read
    return delivery


def refused(body: bytes, signature: str | None = None, keys: tuple[WebhookKey, ...] = KEYS, **more: Any):
    """How it is counted and answered."""
    with pytest.raises(NotTaken) as told:
        read_delivery(body, signature, keys, NOW, **more)
    assert str(told.value)
    for key in KEYS:
        assert key.token not in str(told.value)
    return told.value.outcome, told.value.status


def values(delivery: Delivery) -> dict[Signal, object]:
    assert delivery.observation is not None
    return {m.signal: m.value for m in delivery.observation.measurements}


def signal(code: str, body: object = None, error: object = None, **changes: object) -> dict[str, object]:
    group, _, name = code.partition("-")
    found: dict[str, object] = {"code": code, "name": name, "group": group}
    if error is not None:
        return found | {"status": {"value": "ERROR", "error": error}} | changes
    times = {"oemUpdatedAt": MEASURED_MS, "retrievedAt": MEASURED_MS + 9453}
    return found | {"body": body, "meta": times, "status": {"value": "SUCCESS"}} | changes


SOC = signal("tractionbattery-stateofcharge", {"value": 54, "unit": "percent"})
NO_WATTAGE = signal("charge-wattage", error={"type": "COMPATIBILITY", "code": "VEHICLE_NOT_CAPABLE"})


def state(*signals: object, **changes: object) -> dict[str, Any]:
    """A delivery of version 4.0."""
    return {
        "eventId": "event-1",
        "eventType": "VEHICLE_STATE",
        "data": {
            "user": {"id": "user-1"},
            "vehicle": {"id": "vehicle-1", "make": "VOLKSWAGEN", "model": "ID.4", "year": 2021},
            "signals": list(signals),
        },
        "triggers": [{"type": "SIGNAL_UPDATED", "signal": {"code": "tractionbattery-stateofcharge"}}],
        "meta": {
            "version": "4.0",
            "webhookId": "w-home",
            "webhookName": "Home",
            "deliveryId": "delivery-1",
            "deliveredAt": MEASURED_MS + 9581,
            "mode": "LIVE",
            "signalCount": len(signals),
        },
    } | changes


def error_event(*told: object, **changes: object) -> dict[str, Any]:
    data = {"vehicle": {"id": "vehicle-1"}, "errors": list(told)}
    return state(eventType="VEHICLE_ERROR", data=data, **changes)


def verify(challenge: object, webhook_id: str | None = None) -> bytes:
    meta = {"version": "4.0", "webhookId": webhook_id, "deliveredAt": "2025-07-31T19:38:42.332Z"}
    return orjson.dumps({"eventType": "VERIFY", "data": {"challenge": challenge}, "meta": meta})


# --- whose it is --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.application)
def test_the_key_that_fits_says_whose_delivery_it_is(key: WebhookKey) -> None:
    assert one(state(SOC), key).application == key.application


@pytest.mark.parametrize(
    "spelt", [str.upper, str.lower, "  {}\t".format], ids=["upper case", "lower case", "padded"]
)
def test_case_and_space_around_a_signature_do_not_matter(spelt: Any) -> None:
    body = orjson.dumps(state(SOC))
    assert len(read_delivery(body, spelt(signed(body)), KEYS, NOW)) == 1


def test_the_signature_is_over_the_bytes_as_they_came() -> None:
    body = orjson.dumps(state(SOC))
    spaced = orjson.dumps(state(SOC), option=orjson.OPT_INDENT_2)
    assert orjson.loads(body) == orjson.loads(spaced)
    assert refused(spaced, signed(body)) == ("wrong_signature", 401)
    assert len(read_delivery(spaced, signed(spaced), KEYS, NOW)) == 1


@pytest.mark.parametrize(
    "signature",
    ["0", "f" * 64, "é" * 64, "\udc80" * 64, "\ud800", "\x00", "sha256=", "K" * 64],
    ids=["short", "wrong", "not ASCII", "escaped bytes", "half a character", "zero", "prefix", "no hex"],
)
def test_a_signature_that_is_none_is_refused_and_nothing_else_happens(signature: str) -> None:
    assert refused(orjson.dumps(state(SOC)), signature) == ("wrong_signature", 401)


@given(st.text(st.characters()), st.binary())
def test_no_signature_is_guessed(signature: str, body: bytes) -> None:
    outcome, status = refused(body, signature)
    assert (outcome, status) in {("wrong_signature", 401), ("unsigned", 401)}


@pytest.mark.parametrize("signature", [None, "", "  "])
@pytest.mark.parametrize("body", [orjson.dumps(state(SOC)), b"", b"nonsense", b"[]", b'"VERIFY"'])
def test_what_bears_no_signature_is_not_taken(body: bytes, signature: str | None) -> None:
    assert refused(body, signature) == ("unsigned", 401)


def test_without_an_application_that_has_a_token_there_are_no_webhooks() -> None:
    body = orjson.dumps(state(SOC))
    assert refused(body, signed(body), ()) == ("not_configured", 404)
    assert refused(body, signed(body), (), application="home") == ("not_configured", 404)


def test_an_address_that_names_an_application_takes_its_deliveries_alone() -> None:
    body = orjson.dumps(state(SOC))
    (delivery,) = read_delivery(body, signed(body), KEYS, NOW, application="home")
    assert delivery.application == "home"
    assert refused(body, signed(body), application="fleet") == ("wrong_signature", 401)
    assert refused(body, signed(body), application="nobody") == ("unknown_application", 404)


def test_a_key_never_shows_its_token() -> None:
    assert HOME.token not in repr(HOME)


# --- challenges ---------------------------------------------------------------------------------------------

V2_VERIFY = {"version": "2.0", "webhookId": "w-fleet", "eventName": "verify", "payload": {"challenge": "abc"}}


def answered(body: bytes, keys: tuple[WebhookKey, ...] = KEYS, **more: Any) -> str:
    challenge = read_delivery(body, None, keys, NOW, **more)
    assert isinstance(challenge, Challenge)
    return challenge.answer


@pytest.mark.parametrize(
    "body",
    [
        verify("abc"),
        orjson.dumps({"eventType": "VERIFY", "data": {"challenge": "abc"}}),
        orjson.dumps(V2_VERIFY),
    ],
    ids=["4.0", "as recorded", "2.0"],
)
def test_a_challenge_is_answered_with_what_only_we_can_know(body: bytes) -> None:
    # By hand: printf abc | openssl dgst -sha256 -hmac "home's token"
    assert answered(body, (HOME,)) == "5fc400275e4ebf3730d4f8d6012a4636856f0bada850768c98bb7c066c3d496b"


def test_a_challenge_goes_to_the_application_it_names_or_whose_webhook_it_is() -> None:
    assert answered(verify("abc"), application="lab") == signed(b"abc", LAB)
    assert answered(verify("abc", "w-home"), application="lab") == signed(b"abc", LAB)
    assert answered(verify("abc", "w-fleet")) == signed(b"abc", FLEET)
    assert answered(orjson.dumps(V2_VERIFY)) == signed(b"abc", FLEET)
    assert answered(verify("abc", "w-new"), (HOME,)) == signed(b"abc", HOME)


@pytest.mark.parametrize("webhook_id", [None, "w-unknown"])
def test_a_challenge_that_may_be_anybodys_is_not_answered(webhook_id: str | None) -> None:
    assert refused(verify("abc", webhook_id)) == ("ambiguous", 409)
    with pytest.raises(NotTaken, match="/webhooks/smartcar/NAME"):
        read_delivery(verify("abc", webhook_id), None, KEYS, NOW)


def test_a_signed_challenge_is_answered_with_the_key_that_signed_it() -> None:
    body = verify("abc")
    assert read_delivery(body, signed(body, FLEET), KEYS, NOW) == Challenge(signed(b"abc", FLEET))
    assert refused(body, "0" * 64) == ("wrong_signature", 401)


@pytest.mark.parametrize(
    "challenge",
    ["", None, 7, ["abc"], {"a": 1}, "a" * 257, "abc\n", "a b", '{"eventType":"VEHICLE_STATE"}', "[1]", "é"],
)
def test_only_random_text_is_signed(challenge: object) -> None:
    assert refused(verify(challenge), None, (HOME,)) == ("bad_challenge", 400)


# --- version 4.0 --------------------------------------------------------------------------------------------


def test_a_delivery_of_a_vehicle_s_state() -> None:
    delivery = one(
        state(
            SOC,
            NO_WATTAGE,
            signal("charge-detailedchargingstatus", {"value": "CHARGING"}),
            signal("tractionbattery-nominalcapacity", {"capacity": 90, "unit": "kWh"}),
            signal("location-preciselocation", {"latitude": 1.0, "longitude": 2.0}),
        )
    )
    assert (delivery.event, delivery.event_id, delivery.vehicle_ref) == (Event.STATE, "event-1", "vehicle-1")
    assert (delivery.received_at, delivery.test, delivery.errors) == (NOW, False, ())
    assert values(delivery) == {
        Signal.SOC: 54.0,
        Signal.CHARGE_STATE: ChargeState.CHARGING,
        Signal.CAPACITY: 90.0,
    }
    assert delivery.observation is not None
    assert [problem.signal for problem in delivery.observation.problems] == [Signal.CHARGE_POWER]
    for measurement in delivery.observation.measurements:
        assert (measurement.measured_at, measurement.fetched_at) == (MEASURED, NOW)
        assert measurement.origin is Origin.WEBHOOK
    assert delivery.observation.origin is Origin.WEBHOOK


def test_a_signal_without_status_has_its_value_as_before_november_2025() -> None:
    bare = {name: value for name, value in SOC.items() if name != "status"}
    assert values(one(state(bare))) == {Signal.SOC: 54.0}


RECORDED_2025 = state(
    SOC,
    triggers=[{"type": "SIGNAL_UPDATED", "signal": "Odometer.TraveledDistance"}],
    meta={"deliveryId": "d", "deliveredAt": 1758238783185, "deliveryTime": 1758238783185},
)
DOCUMENTED = state(
    eventId="event-1",
    vehicleId="vehicle-1",
    data={"signals": [SOC], "triggers": [{"type": "SIGNAL_UPDATED"}]},
    meta={"version": "4.0", "mode": "LIVE", "fetchedAt": "2026-01-01T00:00:00Z"},
)


@pytest.mark.parametrize(
    "document",
    [
        RECORDED_2025,
        DOCUMENTED,
        state(SOC, meta={"version": "4.1"}),
        state(SOC, meta={"version": 4}),
        state(SOC, meta={"version": None}),
        state(SOC, meta=None),
        state(SOC, triggers=None),
    ],
    ids=["September 2025", "documents", "4.1", "a number", "no version", "no meta", "no triggers"],
)
def test_every_shape_of_the_envelope(document: object) -> None:
    delivery = one(document)
    assert (delivery.event_id, delivery.vehicle_ref) == ("event-1", "vehicle-1")
    assert values(delivery) == {Signal.SOC: 54.0}


@pytest.mark.parametrize("version", ["5.0", "5", "3.0", "40.0", "2.0", 5, 5.1, True, "", "new", ["4.0"]])
@pytest.mark.parametrize("event", ["VEHICLE_STATE", "VEHICLE_ERROR", "VEHICLE_SOLD"])
def test_what_may_mean_something_else_by_the_same_shape_is_not_believed(event: str, version: object) -> None:
    body = orjson.dumps(state(SOC, eventType=event, meta={"version": version}))
    assert refused(body, signed(body)) == ("unknown_version", 200)


@pytest.mark.parametrize(
    ("changes", "webhook_id"),
    [
        ({}, "w-home"),
        ({"webhookId": "w-top"}, "w-home"),
        ({"webhookId": "w-top", "meta": {"version": "4.0"}}, "w-top"),
        ({"webhookId": "w-top", "meta": {"webhookId": 7}}, "w-top"),
        ({"meta": {"webhookId": ""}}, None),
        ({"meta": None}, None),
        ({"meta": {"webhookId": "w" * 10_000}}, "w" * LONGEST_ID),
    ],
)
@pytest.mark.parametrize("event", ["VEHICLE_STATE", "VEHICLE_ERROR", "VEHICLE_SOLD"])
def test_the_webhook_that_delivers(event: str, changes: dict[str, object], webhook_id: str | None) -> None:
    assert one(state(SOC, eventType=event, **changes)).webhook_id == webhook_id


@pytest.mark.parametrize(
    "signals",
    [[], None, "none", [NO_WATTAGE], [signal("closure-islocked", {"value": True})], [None, 7, "x", []]],
)
def test_a_delivery_without_a_value_that_we_read_is_taken_all_the_same(signals: object) -> None:
    delivery = one(state(data={"vehicle": {"id": "vehicle-1"}, "signals": signals}))
    assert (delivery.event, delivery.observation) == (Event.STATE, None)


def test_a_value_that_cannot_be_understood_is_kept_with_the_reason() -> None:
    delivery = one(state(signal("tractionbattery-stateofcharge", {"value": 0.5, "unit": "barrels"})))
    assert delivery.observation is not None
    assert [rejected.signal for rejected in delivery.observation.rejected] == [Signal.SOC]


@pytest.mark.parametrize(
    ("mode", "key", "test"),
    [
        ("TEST", HOME, True),
        ("test", HOME, True),
        ("LIVE", HOME, False),
        (None, HOME, False),
        ("TEST", LAB, False),
    ],
)
def test_what_the_dashboard_sends_to_try_is_marked(mode: object, key: WebhookKey, test: bool) -> None:
    assert one(state(SOC, meta={"version": "4.0", "mode": mode}), key).test is test


def test_without_an_event_id_the_same_bytes_are_the_same_event() -> None:
    document, other = state(SOC), state(NO_WATTAGE)
    del document["eventId"], other["eventId"]
    assert one(document).event_id == one(document).event_id
    assert one(document).event_id == f"body:{hashlib.sha256(orjson.dumps(document)).hexdigest()}"
    assert one(document).event_id != one(other).event_id


def test_no_id_is_longer_than_it_may_be() -> None:
    ids = [one(state(eventId="e" * 10_000 + end)).event_id for end in "ab"]
    assert len(set(ids)) == 2
    assert max(map(len, ids)) <= LONGEST_ID
    assert one(state(eventId="e" * LONGEST_ID)).event_id == "e" * LONGEST_ID
    assert len(one(state(data={"vehicle": {"id": "v" * 10_000}})).vehicle_ref) == LONGEST_ID


def test_an_event_of_an_unknown_type_is_taken_without_being_believed() -> None:
    delivery = one(state(SOC, eventType="VEHICLE_SOLD"))
    assert (delivery.event, delivery.vehicle_ref) == (Event.OTHER, "vehicle-1")
    assert (delivery.observation, delivery.errors) == (None, ())


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, ("unknown_event", 200)),
        ({"eventType": "APPLICATION_SOLD", "data": {}}, ("unknown_event", 200)),
        (state(data={"signals": [SOC]}), ("unknown_event", 200)),
        (state(data={"vehicle": {"id": 7}, "signals": [SOC]}), ("unknown_event", 200)),
        ({"eventType": "VEHICLE_STATE", "meta": {"version": "4.0"}}, ("unknown_event", 200)),
        ({"eventType": "VEHICLE_STATE", "meta": {"version": "4.1"}}, ("unknown_event", 200)),
        ({"version": "2.0", "eventName": "schedule", "payload": {"vehicles": []}}, ("unknown_event", 200)),
        ({"version": "2.0", "eventName": "sold", "payload": {}}, ("unknown_event", 200)),
        ({"event": {"kind": "state"}, "meta": {"version": "5.0"}}, ("unknown_version", 200)),
        ({"event": {"kind": "state"}, "version": "5.0"}, ("unknown_version", 200)),
        ({"meta": {"version": ["5.0"]}}, ("unknown_version", 200)),
    ],
)
def test_what_is_genuine_but_not_understood_is_not_sent_again(
    document: object, expected: tuple[str, int]
) -> None:
    body = orjson.dumps(document)
    assert refused(body, signed(body)) == expected


@pytest.mark.parametrize("body", [b"", b"nonsense", b"[]", b"7", b"null", b'"a"', b'{"a": NaN}', b"\xff{}"])
def test_what_is_signed_and_no_object_is_unreadable(body: bytes) -> None:
    assert refused(body, signed(body)) == ("unreadable", 400)


# --- errors -------------------------------------------------------------------------------------------------

REAUTHENTICATE = {
    "type": "PERMISSION",
    "code": None,
    "description": "Your application has insufficient permissions.",
    "resolution": {"type": "REAUTHENTICATE"},
    "state": "ERROR",
}


def told(*given: object) -> list[tuple[type[errors.SourceError], str, bool, frozenset[Signal] | None]]:
    delivery = one(error_event(*given))
    assert (delivery.event, delivery.observation) == (Event.ERROR, None)
    return [(type(e.error), e.error.code, e.resolved, e.signals) for e in delivery.errors]


def test_an_error_without_signals_is_the_vehicle_s() -> None:
    assert told(REAUTHENTICATE) == [(errors.ConsentLost, "PERMISSION", False, None)]
    assert told({**REAUTHENTICATE, "signals": []}) == [(errors.ConsentLost, "PERMISSION", False, None)]


def test_an_error_may_be_over() -> None:
    asleep = {"type": "VEHICLE_STATE", "code": "ASLEEP"}
    assert told({**asleep, "state": "RESOLVED"}) == [(errors.Asleep, "VEHICLE_STATE:ASLEEP", True, None)]
    assert told(asleep) == [(errors.Asleep, "VEHICLE_STATE:ASLEEP", False, None)]


@pytest.mark.parametrize(
    "named",
    [
        ["tractionbattery-stateofcharge", "charge-ischarging", "closure-islocked"],
        ["TractionBattery.StateOfCharge", "Charge.IsCharging"],
        [{"code": "tractionbattery-stateofcharge"}, {"code": "charge-ischarging"}],
        [{"group": "TractionBattery", "name": "StateOfCharge"}, "charge-ischarging"],
    ],
)
def test_the_signals_of_an_error_in_every_spelling(named: list[object]) -> None:
    error = {"type": "COMPATIBILITY", "code": "VEHICLE_NOT_CAPABLE", "signals": named}
    expected = frozenset({Signal.SOC, Signal.CHARGING})
    assert told(error) == [(errors.NotCapable, "COMPATIBILITY:VEHICLE_NOT_CAPABLE", False, expected)]


@pytest.mark.parametrize(
    "named",
    [
        [{"code": "vehicleuseraccount-permissions"}, {"code": "vehicleuseraccount-role"}],
        ["VehicleUserAccount.Role"],
        ["closure-islocked"],
        [7, None, {"code": 7}, {"group": ["Charge"], "name": "IsCharging"}],
        {"code": "closure-islocked"},
        "Closure.IsLocked",
    ],
)
def test_errors_of_signals_that_we_do_not_read_are_no_trouble_of_ours(named: object) -> None:
    kept = {"type": "BILLING"}
    assert told({**REAUTHENTICATE, "signals": named}, kept) == [(errors.BudgetSpent, "BILLING", False, None)]


def test_errors_in_odd_shapes() -> None:
    assert told("UPSTREAM:NO_RESPONSE", "COMPATIBILITY", 7, None, [], {}, {"type": 7}) == [
        (errors.Unreachable, "UPSTREAM:NO_RESPONSE", False, None),
        (errors.NotCapable, "COMPATIBILITY", False, None),
    ]
    assert one(state(eventType="VEHICLE_ERROR", data={"vehicle": {"id": "v"}, "errors": "none"})).errors == ()
    assert isinstance(one(error_event(REAUTHENTICATE)).errors[0], ToldError)


# --- version 2.0 --------------------------------------------------------------------------------------------

AGE = "2026-11-22T09:13:20.123Z"
AGED = datetime(2026, 11, 22, 9, 13, 20, 123000, tzinfo=UTC)


def batch(path: str, body: object, code: object = 200, **headers: str) -> dict[str, object]:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return {"path": path, "code": code, "body": body, "headers": {"sc-data-age": AGE} | names}


def v2(name: str, *vehicles: object, mode: str = "live") -> dict[str, object]:
    payload = {"vehicles": list(vehicles)}
    return {"version": "2.0", "webhookId": "w", "eventName": name, "mode": mode, "payload": payload}


BATTERY = batch("/battery", {"percentRemaining": 0.58, "range": 283.244544})


@pytest.mark.parametrize("name", ["schedule", "scheduled", "dynamic"])
def test_the_vehicles_of_version_2(name: str) -> None:
    read = delivered(
        v2(
            name,
            {
                "vehicleId": "a",
                "data": [
                    BATTERY,
                    batch("/charge", {"isPluggedIn": True, "state": "FULLY_CHARGED"}),
                    batch("/charge/limit", {"limit": 0.8}),
                    batch("/battery/nominal_capacity", {"capacity": {"nominal": 80.9, "source": "SMARTCAR"}}),
                    batch("/odometer", {"distance": 37829.5}),
                    batch("/location", {"latitude": 1, "longitude": 2}),
                ],
            },
            {"vehicleId": "b", "data": [batch("/battery/capacity", {"capacity": 77})]},
            {"vehicleId": 7, "data": [BATTERY]},
            {"vehicleId": "c", "data": [batch("/battery", {"type": "VEHICLE_STATE"}, 409)]},
        )
    )
    assert isinstance(read, tuple)
    assert [(delivery.event, delivery.vehicle_ref) for delivery in read] == [
        (Event.STATE, ref) for ref in "abc"
    ]
    assert len({delivery.event_id for delivery in read}) == 3
    assert [delivery.webhook_id for delivery in read] == ["w", "w", "w"]
    assert values(read[0]) == {
        Signal.SOC: 58.0,
        Signal.RANGE: 283.244544,
        Signal.PLUGGED_IN: True,
        Signal.CHARGE_STATE: ChargeState.FULLY_CHARGED,
        Signal.CHARGE_LIMIT: 80.0,
        Signal.CAPACITY: 80.9,
        Signal.ODOMETER: 37829.5,
    }
    assert values(read[1]) == {Signal.CAPACITY: 77.0}
    assert read[2].observation is None
    assert read[0].observation is not None
    assert {m.measured_at for m in read[0].observation.measurements} == {AGED}


def test_the_same_body_of_version_2_is_the_same_events_again() -> None:
    document = v2("schedule", {"vehicleId": "a", "data": [BATTERY]}, {"vehicleId": "a", "data": [BATTERY]})
    first, second = (delivered(document) for _ in range(2))
    assert first == second
    assert len({delivery.event_id for delivery in first}) == 2


def test_miles_are_not_taken_for_kilometres() -> None:
    document = v2(
        "schedule",
        {
            "vehicleId": "a",
            "data": [
                batch("/battery", {"percentRemaining": 1, "range": 100}, SC_Unit_System="imperial"),
                batch("/odometer", {"distance": 10}, sc_unit_system="metric"),
            ],
        },
    )
    assert values(one(document)) == {Signal.SOC: 100.0, Signal.RANGE: 160.9344, Signal.ODOMETER: 10.0}


def test_without_headers_the_car_s_time_is_unknown() -> None:
    delivery = one(v2("dynamic", {"vehicleId": "a", "data": [{**BATTERY, "headers": None}]}))
    assert delivery.observation is not None
    assert {m.measured_at for m in delivery.observation.measurements} == {None}


@pytest.mark.parametrize(
    ("share", "percent"),
    [(0, 0.0), (0.07, 7.0), (0.58, 58.0), (1, 100.0), ("0.29", 29.0), (0.123456, 12.3456)],
)
def test_a_share_becomes_percent(share: object, percent: float) -> None:
    document = v2("schedule", {"vehicleId": "a", "data": [batch("/battery", {"percentRemaining": share})]})
    assert values(one(document)) == {Signal.SOC: percent}


@pytest.mark.parametrize("share", [True, "full", [0.5], {"value": 0.5}, 1e308])
def test_a_share_that_is_no_number_is_kept_with_the_reason(share: object) -> None:
    document = v2("schedule", {"vehicleId": "a", "data": [batch("/battery", {"percentRemaining": share})]})
    observation = one(document).observation
    assert observation is not None
    assert [rejected.signal for rejected in observation.rejected] == [Signal.SOC]


@pytest.mark.parametrize(
    ("kind", "charging"),
    [("CHARGING_STARTED", True), ("CHARGING_STOPPED", False), ("CHARGING_COMPLETED", False)],
)
def test_an_event_of_version_2_says_that_charging_began_or_ended(kind: str, charging: bool) -> None:
    payload = {"eventId": "e-2", "vehicleId": "a", "eventType": kind, "eventTime": AGE}
    document = {"version": "2.0", "webhookId": "w", "eventName": "eventBased", "mode": "test"}
    delivery = one(document | {"payload": payload})
    assert (delivery.event, delivery.event_id, delivery.test) == (Event.STATE, "e-2", True)
    assert delivery.webhook_id == "w"
    assert values(delivery) == {Signal.CHARGING: charging}
    assert delivery.observation is not None
    assert delivery.observation.measurements[0].measured_at == AGED


def test_an_unknown_event_of_version_2_is_taken_without_being_believed() -> None:
    payload = {"eventId": "e-2", "vehicleId": "a", "eventType": "DOOR_OPENED", "eventTime": AGE}
    delivery = one({"version": "2.0", "eventName": "eventBased", "payload": payload})
    assert (delivery.event, delivery.observation) == (Event.OTHER, None)


# --- laws ---------------------------------------------------------------------------------------------------

_WORDS = st.sampled_from(
    [
        *("VEHICLE_STATE", "VEHICLE_ERROR", "VERIFY", "verify", "schedule", "eventBased", "TEST", "RESOLVED"),
        *("CHARGING_STARTED", "tractionbattery-stateofcharge", "charge-ischarging", "charge-chargelimits"),
        *("4.0", "2.0", "percent", "ERROR", "PERMISSION", "/battery", "Charge.IsCharging", "vehicle-1", ""),
    ]
)
_KEYS_OF_JSON = st.sampled_from(
    [
        *("eventId", "eventType", "eventName", "eventTime", "data", "payload", "meta", "version", "mode"),
        *("vehicle", "vehicleId", "vehicles", "id", "signals", "errors", "code", "body", "status", "value"),
        *("error", "type", "state", "group", "name", "unit", "oemUpdatedAt", "challenge", "webhookId"),
        *("path", "headers", "percentRemaining", "capacity", "limit", "activeLimit", "values", "sc-data-age"),
    ]
)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(max_size=8), _WORDS
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS_OF_JSON, inner, max_size=6),
    max_leaves=30,
)
WHOLE = [
    state(SOC, NO_WATTAGE),
    state(*(signal(code, {"value": 7, "unit": "percent"}) for code in SIGNALS)),
    DOCUMENTED,
    error_event(REAUTHENTICATE, {"type": "UPSTREAM", "code": "X", "signals": ["Charge.IsCharging"]}),
    error_event(
        {"type": "COMPATIBILITY", "signals": [{"code": "charge-wattage", "group": "G", "name": "N"}]}
    ),
    v2("schedule", {"vehicleId": "a", "data": [BATTERY]}, {"vehicleId": "b", "data": [BATTERY]}),
    {"eventName": "eventBased", "payload": {"vehicleId": "a", "eventType": "CHARGING_STOPPED"}},
    orjson.loads(verify("abc", "w-home")),
    V2_VERIFY,
]


@st.composite
def _spoilt(draw: st.DrawFn) -> object:
    """A whole document in which one or two things are something else, or missing."""
    document: Any = orjson.loads(orjson.dumps(draw(st.sampled_from(WHOLE))))
    for _ in range(draw(st.integers(1, 2))):
        place: Any = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.integers(0, 5)):
                place = place[key]
                continue
            if draw(st.integers(0, 5)):
                place[key] = draw(_JSON)
            else:
                del place[key]
            break
    return document


BODIES = st.one_of(st.binary(), _JSON, _spoilt(), _spoilt(), _spoilt()).map(
    lambda made: made if isinstance(made, bytes) else orjson.dumps(made)
)


def _nested(document: dict[str, Any], depth: int = 1000) -> bytes:
    """``document``, with something nested as deeply as JSON is read in place of ``"DEEP"``."""
    return orjson.dumps(document).replace(b'"DEEP"', b"[" * depth + b"1" + b"]" * depth)


DEEP = [
    _nested(document)
    for document in (
        state(SOC, eventId="DEEP"),
        state(SOC, meta="DEEP"),
        state(SOC, meta={"version": "DEEP", "mode": "DEEP"}),
        {"meta": {"version": "DEEP"}},
        state(signal("tractionbattery-stateofcharge", "DEEP")),
        state(signal("tractionbattery-stateofcharge", {"value": "DEEP"})),
        state(signal("tractionbattery-stateofcharge", {"value": 7, "unit": "DEEP"})),
        state(signal("charge-detailedchargingstatus", {"value": "DEEP"})),
        state(signal("charge-chargelimits", {"activeLimit": "DEEP"})),
        state(signal("tractionbattery-range", {"type": "DEEP", "value": 7, "additionalValues": "DEEP"})),
        state(SOC | {"meta": {"oemUpdatedAt": "DEEP"}}),
        state(SOC | {"status": "DEEP"}),
        state(SOC | {"code": "DEEP", "id": "DEEP"}),
        state(data={"vehicle": {"id": "DEEP"}}),
        error_event("DEEP", {"type": "PERMISSION", "code": "DEEP", "resolution": "DEEP", "state": "DEEP"}),
        error_event({"type": "PERMISSION", "signals": ["DEEP", {"group": "DEEP", "name": "DEEP"}]}),
        v2("schedule", {"vehicleId": "a", "data": [batch("/battery", {"percentRemaining": "DEEP"})]}),
        v2("schedule", {"vehicleId": "a", "data": [{**BATTERY, "headers": {"sc-data-age": "DEEP"}}]}),
        v2("schedule", {"vehicleId": "a", "data": [{**BATTERY, "code": "DEEP"}, {"path": "DEEP"}]}),
        {"eventType": "VERIFY", "data": {"challenge": "DEEP"}},
        {"eventType": "VERIFY", "data": {"challenge": "abc"}, "meta": {"webhookId": "DEEP"}},
    )
]
HOSTILE = [
    *DEEP,
    b"[" * 1_000_000,
    b'{"a":' * 100_000,
    b'{"eventType":"VERIFY","eventType":"VEHICLE_STATE","data":{"vehicle":{"id":"v"}},"data":1}',
    b'{"eventType":"VEHICLE_STATE","eventId":"\\ud800","data":{"vehicle":{"id":"v"}}}',
    b'{"eventType":"VEHICLE_STATE","data":{"vehicle":{"id":"v"},"signals":['
    b'{"code":"tractionbattery-stateofcharge","body":{"value":' + b"9" * 5000 + b"}}]}}",
    orjson.dumps(state(SOC | {"meta": {"oemUpdatedAt": 1e308}})),
    orjson.dumps(state(SOC | {"meta": {"oemUpdatedAt": "9" * 5000}})),
]


def _outcome(body: bytes, signature: str | None) -> tuple[Delivery, ...] | Challenge | NotTaken:
    try:
        return read_delivery(body, signature, KEYS, NOW)
    except NotTaken as refusal:
        return refusal


@pytest.mark.parametrize("signature", [signed, lambda body: None], ids=["signed", "unsigned"])
@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json_is_read_or_refused(body: bytes, signature: Any) -> None:
    assert _outcome(body, signature(body)) is not None


@given(BODIES, st.booleans())
def test_whatever_is_posted_it_is_read_or_refused(body: bytes, with_signature: bool) -> None:
    outcome = _outcome(body, signed(body) if with_signature else None)
    if isinstance(outcome, tuple):
        assert with_signature
        assert outcome
        assert len({delivery.event_id for delivery in outcome}) == len(outcome)
        for delivery in outcome:
            assert delivery.application == "home"
            assert max(len(delivery.event_id), len(delivery.vehicle_ref)) <= LONGEST_ID
    elif isinstance(outcome, NotTaken):
        assert outcome.status in {200, 400, 401, 404, 409}


@given(BODIES)
@example(orjson.dumps(state(SOC)))
@example(orjson.dumps({"eventType": "X", "vehicleId": "v", "data": {}}))
def test_no_forged_delivery_is_signed_as_a_challenge(body: bytes) -> None:
    if isinstance(_outcome(body, signed(body)), tuple):
        text = body.decode()
        for challenge in (verify(text), orjson.dumps(V2_VERIFY | {"payload": {"challenge": text}})):
            assert refused(challenge, None, (HOME,)) == ("bad_challenge", 400)


@given(st.from_regex(r"[A-Za-z0-9._~+/=:-]{1,256}", fullmatch=True) | _JSON)
@example("null")
@example("7")
def test_no_answer_to_a_challenge_is_the_signature_of_a_delivery(challenge: object) -> None:
    asked = _outcome(verify(challenge, "w-home"), None)
    if isinstance(asked, Challenge):
        assert isinstance(challenge, str)
        assert isinstance(_outcome(challenge.encode(), asked.answer), NotTaken)
    else:
        assert isinstance(asked, NotTaken)
        assert asked.outcome == "bad_challenge"


# --- the simulator ------------------------------------------------------------------------------------------


class Receiver:
    """An address that reads what it is sent as the daemon does."""

    def __init__(self) -> None:
        self.keys: list[WebhookKey] = []
        self.deliveries: list[Delivery] = []
        self.challenges = 0
        self.refusals: list[NotTaken] = []
        self.url = ""

    async def post(self, request: web.Request) -> web.Response:
        body, signature = await request.read(), request.headers.get("sc-signature")
        try:
            read = read_delivery(body, signature, self.keys, NOW)
        except NotTaken as refusal:
            self.refusals.append(refusal)
            return web.Response(status=refusal.status)
        if isinstance(read, Challenge):
            self.challenges += 1
            return web.json_response({"challenge": read.answer})
        self.deliveries.extend(read)
        return web.Response(status=204)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks/smartcar", receiver.post)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/webhooks/smartcar"
    yield receiver
    await runner.cleanup()


@asynccontextmanager
async def simulated(receiver: Receiver, clock: HandClock) -> AsyncIterator[Simulator]:
    clock.speed = 1.0
    options = SimulatorOptions(vehicles=3, latency_scale=0, webhook=receiver.url, management_token="t0ken")
    simulator = Simulator(options, clock)
    async with simulator.serving("127.0.0.1", 0):
        yield simulator


async def test_the_simulator_s_handshake_and_deliveries_are_read(receiver: Receiver) -> None:
    receiver.keys = [WebhookKey(application="sim", token="t0ken", webhook_id=None, simulated=False)]
    async with simulated(receiver, HandClock()) as simulator:
        await until(lambda: len(receiver.deliveries) == 3)
        expected = {vehicle.id for vehicle in simulator.world.fleet}
    assert (receiver.challenges, receiver.refusals) == (1, [])
    assert {delivery.vehicle_ref for delivery in receiver.deliveries} == expected
    assert len({delivery.event_id for delivery in receiver.deliveries}) == 3
    for delivery in receiver.deliveries:
        assert (delivery.application, delivery.event, delivery.test) == ("sim", Event.STATE, False)
        assert Signal.SOC in values(delivery)


async def test_the_simulator_does_not_believe_an_answer_made_with_another_token(receiver: Receiver) -> None:
    receiver.keys = [WebhookKey(application="sim", token="another", webhook_id=None, simulated=False)]
    clock = HandClock()
    async with simulated(receiver, clock):
        await until(lambda: receiver.challenges == 1)
        clock.advance(seconds=61)
        await until(lambda: receiver.challenges == 2)  # it asks again instead of delivering
    assert (receiver.deliveries, receiver.refusals) == ([], [])

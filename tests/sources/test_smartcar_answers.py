"""What Smartcar's answers mean, shape by shape. No network."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd.domain import errors
from evbatteryd.domain.reading import ChargeState, Observation, Signal
from evbatteryd.sources.smartcar_answers import (
    SIGNALS,
    Fault,
    decode,
    error_for,
    observe,
    parse_consents,
    parse_fault,
    parse_instant,
    parse_page,
    parse_retry_after,
    parse_token,
)

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MEASURED = datetime(2026, 1, 9, 1, 0, 1, tzinfo=UTC)
MEASURED_MS = 1767920401000


def signal(
    code: str, body: object = None, /, *, status: object = "SUCCESS", meta: object = None, **error: object
):
    attributes: dict[str, object] = {"code": code, "name": "N", "group": "G"}
    attributes["status"] = {"value": status, **({"error": error} if error else {})}
    if body is not None:
        attributes["body"] = body
    if meta is None:
        meta = {"retrievedAt": MEASURED_MS + 9000, "oemUpdatedAt": MEASURED_MS}
    return {"id": code, "type": "signal", "attributes": attributes, "meta": meta}


def values(*resources: object) -> dict[Signal, object]:
    return {m.signal: m.value for m in observe(resources, NOW).measurements}


@pytest.mark.parametrize(
    ("code", "body", "expected"),
    [
        ("tractionbattery-stateofcharge", {"unit": "percent", "value": 78}, 78.0),
        ("tractionbattery-stateofcharge", {"value": 0}, 0.0),
        ("tractionbattery-stateofcharge", {"value": "78.5", "unit": "percent"}, 78.5),
        ("tractionbattery-range", {"value": 275, "unit": "km", "type": "DEFAULT"}, 275.0),
        ("tractionbattery-range", {"value": 275, "unit": "kilometers"}, 275.0),
        ("tractionbattery-range", {"value": 100, "unit": "miles"}, 160.9344),
        (
            "tractionbattery-range",
            {
                "value": 300,
                "unit": "km",
                "type": "RATED",
                "additionalValues": [
                    {"type": "IDEAL_CONDITIONS", "value": 290},
                    {"type": "ESTIMATED", "value": 240},
                ],
            },
            240.0,
        ),
        ("tractionbattery-nominalcapacity", {"capacity": 77, "unit": "kWh", "source": "SMARTCAR"}, 77.0),
        ("tractionbattery-nominalcapacity", {"capacity": 77, "unit": "kWhr"}, 77.0),
        ("charge-detailedchargingstatus", {"value": "FULLY_CHARGED"}, ChargeState.FULLY_CHARGED),
        ("charge-ischarging", {"value": False}, False),
        ("charge-ischargingcableconnected", {"value": True}, True),
        ("charge-chargelimits", {"values": [], "activeLimit": 80, "unit": "percent"}, 80.0),
        (
            "charge-chargelimits",
            {
                "activeLimit": None,
                "unit": "percent",
                "values": [
                    {"type": "CHARGING_TYPE", "limit": 100, "condition": {"chargingType": "DC"}},
                    {"type": "global", "limit": 90},
                ],
            },
            90.0,
        ),
        ("charge-wattage", {"value": 7200, "unit": "watts"}, 7.2),
        ("charge-timetocomplete", {"value": 95}, 5700.0),
        ("odometer-traveleddistance", {"value": 37829.5, "unit": "km"}, 37829.5),
    ],
)
def test_a_body_becomes_a_value_in_our_units(code: str, body: object, expected: object) -> None:
    assert values(signal(code, body)) == {SIGNALS[code][0]: pytest.approx(expected)}


@pytest.mark.parametrize(
    ("code", "body", "reason"),
    [
        ("tractionbattery-stateofcharge", {"value": 0.78, "unit": "fraction"}, "unknown unit"),
        ("tractionbattery-range", {"value": 200, "unit": "leagues"}, "unknown unit"),
        ("tractionbattery-range", {"value": 200, "unit": 7}, "unknown unit"),
        ("tractionbattery-stateofcharge", {"value": "full"}, "not a number"),
        ("tractionbattery-stateofcharge", {"value": True}, "not a number"),
        ("tractionbattery-stateofcharge", {"value": [78]}, "not a number"),
        ("tractionbattery-stateofcharge", [78], "the body is no object"),
        ("charge-ischarging", {"value": "yes"}, "neither true nor false"),
        ("charge-detailedchargingstatus", {"value": "THINKING"}, "unknown charging status"),
    ],
)
def test_what_we_would_have_to_guess_is_kept_with_the_reason(code: str, body: object, reason: str) -> None:
    observation = observe((signal(code, body),), NOW)
    assert observation.measurements == ()
    assert [rejected.signal for rejected in observation.rejected] == [SIGNALS[code][0]]
    assert reason in observation.rejected[0].reason
    assert observation.rejected[0].measured_at == MEASURED


@pytest.mark.parametrize("body", [{"value": None}, {}, None])
def test_an_absent_value_stays_absent(body: object) -> None:
    others = signal("odometer-traveleddistance", {"value": 1, "unit": "km"})
    assert set(values(signal("tractionbattery-stateofcharge", body), others)) == {Signal.ODOMETER}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (MEASURED_MS, MEASURED),
        (MEASURED_MS // 1000, MEASURED),
        (str(MEASURED_MS), MEASURED),
        ("2026-01-09T01:00:01.000Z", MEASURED),
        ("2026-01-09T02:00:01+01:00", MEASURED),
        (0, None),
        ("0", None),
        (-5, None),
        (None, None),
        (True, None),
        ("", None),
        ("soon", None),
        ("0001-01-01T00:00:00+05:00", None),
        (float("nan"), None),
        (10**30, None),
        ({}, None),
    ],
)
def test_every_shape_of_a_time(raw: object, expected: datetime | None) -> None:
    assert parse_instant(raw) == expected


@given(st.integers(min_value=10**11, max_value=4 * 10**12))
def test_milliseconds_seconds_and_text_mean_the_same_instant(milliseconds: int) -> None:
    at = parse_instant(milliseconds)
    assert at is not None
    assert parse_instant(str(milliseconds)) == at
    assert parse_instant(at.isoformat()) == at
    if milliseconds % 1000 == 0:
        assert parse_instant(milliseconds // 1000) == at


def test_an_unknown_time_of_the_car_is_not_replaced_by_ours() -> None:
    resource = signal(
        "tractionbattery-stateofcharge", {"value": 50}, meta={"oemUpdatedAt": 0, "retrievedAt": 5}
    )
    (measurement,) = observe((resource,), NOW).measurements
    assert measurement.measured_at is None
    assert measurement.fetched_at == NOW


def test_a_failed_signal_does_not_take_the_others_with_it() -> None:
    observation = observe(
        (
            signal("tractionbattery-stateofcharge", {"value": 50}),
            signal("charge-ischarging", status="ERROR", type="COMPATIBILITY", code="VEHICLE_NOT_CAPABLE"),
            signal("charge-wattage", status="UNAVAILABLE"),
            signal("vehicleidentification-vin", {"value": "never kept"}),
        ),
        NOW,
    )
    assert [m.signal for m in observation.measurements] == [Signal.SOC]
    assert [(p.signal, p.code, p.permanent) for p in observation.problems] == [
        (Signal.CHARGING, "COMPATIBILITY:VEHICLE_NOT_CAPABLE", True)
    ]
    assert "never kept" not in repr(observation)


def test_what_a_car_has_not_in_its_present_state_is_no_failure() -> None:
    observation = observe(
        (
            signal("tractionbattery-stateofcharge", {"value": 61}),
            signal("charge-wattage", status="ERROR", type="VEHICLE_STATE", code="NOT_CHARGING"),
        ),
        NOW,
    )
    assert [m.signal for m in observation.measurements] == [Signal.SOC]
    assert observation.problems == ()


def test_when_every_signal_fails_the_state_of_charge_says_why() -> None:
    with pytest.raises(errors.ConsentLost) as told:
        observe(
            (
                signal("charge-ischarging", status="ERROR", type="UPSTREAM", code="NO_RESPONSE"),
                signal(
                    "tractionbattery-stateofcharge",
                    status="ERROR",
                    type="CONNECTED_SERVICES_ACCOUNT",
                    code="AUTHENTICATION_FAILED",
                ),
            ),
            NOW,
        )
    assert told.value.code == "CONNECTED_SERVICES_ACCOUNT:AUTHENTICATION_FAILED"


@pytest.mark.parametrize(("kind", "code"), [("COMPATIBILITY", "VEHICLE_NOT_CAPABLE"), ("PERMISSION", None)])
def test_one_signals_trouble_never_stops_the_car_for_good(kind: str, code: str | None) -> None:
    lost = signal("odometer-traveleddistance", status="ERROR", type=kind, code=code)
    asleep = signal("charge-wattage", status="ERROR", type="VEHICLE_STATE", code="ASLEEP")
    silent = signal("tractionbattery-stateofcharge", status="UNAVAILABLE")
    with pytest.raises(errors.NothingYet):
        observe((silent, lost), NOW)
    for resources in ((silent, lost, asleep), (asleep, lost, silent)):
        with pytest.raises(errors.Asleep) as told:
            observe(resources, NOW)
        assert told.value.code == "VEHICLE_STATE:ASLEEP"


def test_no_signal_at_all_is_a_car_that_sent_nothing_yet() -> None:
    with pytest.raises(errors.NothingYet):
        observe((), NOW)


@pytest.mark.parametrize(
    ("kind", "code", "status", "expected"),
    [
        ("RATE_LIMIT", "SMARTCAR_API", 429, errors.ApplicationRateLimited),
        ("RATE_LIMIT", "VEHICLE", 429, errors.RateLimited),
        ("UPSTREAM", "RATE_LIMIT", 502, errors.RateLimited),
        ("UPSTREAM", "NO_RESPONSE", 502, errors.Unreachable),
        ("BILLING", "VEHICLE_LIMIT", 430, errors.BudgetSpent),
        ("BILLING", "VEHICLE_REQUEST_LIMIT", 430, errors.BudgetSpent),
        ("BILLING", "INVALID_PLAN", 430, errors.BudgetSpent),
        ("BILLING", "ACCOUNT_SUSPENDED", 430, errors.BudgetSpent),
        ("PERMISSION", None, 403, errors.ConsentLost),
        ("VALIDATION", "PERMISSION_DENIED", 403, errors.ConsentLost),
        ("AUTHENTICATION", "ACCESS_DENIED", 403, errors.PlanRefused),
        ("AUTHENTICATION", "UNAUTHORIZED", 401, errors.ApplicationRefused),
        ("CONNECTED_SERVICES_ACCOUNT", "AUTHENTICATION_FAILED", 400, errors.ConsentLost),
        ("CONNECTED_SERVICES_ACCOUNT", "PERMISSION", 400, errors.ConsentLost),
        ("CONNECTED_SERVICES_ACCOUNT", "VIRTUAL_KEY_REQUIRED", 400, errors.OwnerMustAct),
        ("CONNECTED_SERVICES_ACCOUNT", "SUBSCRIPTION", 400, errors.OwnerMustAct),
        ("CONNECTED_SERVICES_ACCOUNT", "VEHICLE_MISSING", 400, errors.OwnerMustAct),
        ("VEHICLE_STATE", "ASLEEP", 409, errors.Asleep),
        ("VEHICLE_STATE", "UNREACHABLE", 409, errors.Asleep),
        ("RESOURCE_NOT_FOUND", "SIGNAL_NOT_FOUND", 404, errors.NothingYet),
        ("COMPATIBILITY", "VEHICLE_NOT_CAPABLE", 501, errors.NotCapable),
        ("COMPATIBILITY", "PLATFORM_NOT_CAPABLE", 501, errors.NotCapable),
        ("SERVER", "INTERNAL", 500, errors.Unreachable),
        ("VALIDATION", "INVALID_INPUT_FORMAT", 400, errors.Unreadable),
        ("SOMETHING_NEW", None, 418, errors.Unreachable),
    ],
)
def test_the_error_table(kind: str, code: str | None, status: int, expected: type) -> None:
    body = {"errors": [{"status": str(status), "type": kind, "code": code, "resolution": {"type": None}}]}
    fault = parse_fault(orjson.dumps(body))
    error = error_for(fault, status=status)
    assert type(error) is expected
    assert error.code == (f"{kind}:{code}" if code else kind)


@pytest.mark.parametrize("resolution", [None, "RETRY_LATER", {"type": "RETRY_LATER"}, {"type": None}])
def test_every_shape_of_a_resolution_and_the_older_error_body(resolution: object) -> None:
    body = {"type": "UPSTREAM", "code": None, "statusCode": 502, "resolution": resolution}
    assert parse_fault(orjson.dumps(body)) == Fault(
        "UPSTREAM", None, None if resolution in (None, {"type": None}) else "RETRY_LATER"
    )


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (403, errors.Unreachable),
        (404, errors.Unreachable),
        (409, errors.Unreachable),
        (501, errors.Unreachable),
        (502, errors.Unreachable),
        (429, errors.ApplicationRateLimited),
        (430, errors.BudgetSpent),
        (401, errors.ApplicationRefused),
    ],
)
def test_a_bare_status_of_some_gateway_is_never_a_lost_consent(status: int, expected: type) -> None:
    assert type(error_for(parse_fault(b"<html>no</html>"), status=status)) is expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("120", timedelta(seconds=120)),
        ("0", timedelta()),
        (None, None),
        ("soon", None),
        ("-1", None),
        ("inf", None),
    ],
)
def test_retry_after(raw: str | None, expected: timedelta | None) -> None:
    assert parse_retry_after(raw) == expected


def test_no_one_waits_for_more_than_a_day() -> None:
    assert parse_retry_after("999999999") == timedelta(days=1)


def test_a_token_is_renewed_before_it_expires_and_is_never_shown() -> None:
    token = parse_token(b'{"access_token":"s3cr3t-t0ken","token_type":"Bearer","expires_in":3600}', NOW)
    assert token.expires_at == NOW + timedelta(hours=1)
    assert NOW < token.renew_at < token.expires_at
    assert "s3cr3t" not in repr(token)
    assert "s3cr3t" not in str(token)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b'{"access_token":""}', b'{"access_token":7}', b'{"access_token":"a\\nb"}'],
)
def test_no_token_is_said_without_showing_the_answer(body: bytes) -> None:
    with pytest.raises(errors.Unreadable) as told:
        parse_token(body, NOW)
    assert told.value.excerpt == ""


def connection(**changes: object) -> dict[str, object]:
    return {
        "id": "c1",
        "type": "connection",
        "attributes": {
            "permissions": ["read_battery", 5],
            "vehicle": {"make": "Renault", "model": "Megane", "year": 2024, "powertrainType": "BEV"},
        },
        "relationships": {"vehicle": {"data": {"id": "v1"}}, "user": {"data": {"id": "u1"}}},
        **changes,
    }


def test_a_connection_is_a_consent() -> None:
    (consent,) = parse_consents((connection(),), "home")
    assert (consent.make, consent.model, consent.year) == ("RENAULT", "Megane", 2024)
    assert (consent.vehicle_ref, consent.user_ref, consent.connection_id) == ("v1", "u1", "c1")
    assert consent.permissions == {"read_battery"}


@pytest.mark.parametrize("changes", [{"id": None}, {"relationships": {}}, {"id": 7}])
def test_a_connection_that_names_nobody_spoils_the_list(changes: dict[str, object]) -> None:
    with pytest.raises(errors.Unreadable):
        list(parse_consents((connection(**changes),), "home"))


def test_a_connection_that_tells_little_of_the_car_is_one_all_the_same() -> None:
    (consent,) = parse_consents((connection(attributes={}),), "home")
    assert (consent.make, consent.model, consent.year) == ("UNKNOWN", None, None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
hostile_signals = st.builds(
    lambda code, body, status, meta: {
        "id": code,
        "attributes": {"code": code, "body": body, "status": status},
        "meta": meta,
    },
    st.sampled_from([*SIGNALS, "other"]) | json_values,
    json_values
    | st.dictionaries(
        st.sampled_from(["value", "unit", "capacity", "activeLimit", "values", "type", "additionalValues"]),
        json_values,
    ),
    json_values
    | st.fixed_dictionaries(
        {"value": st.sampled_from(["SUCCESS", "ERROR", "UNAVAILABLE"]), "error": json_values}
    ),
    json_values | st.dictionaries(st.just("oemUpdatedAt"), json_values),
)


@given(st.lists(hostile_signals | json_values, max_size=12))
def test_no_answer_breaks_the_parser_and_nothing_is_invented(resources: list[object]) -> None:
    try:
        observation = observe(tuple(resources), NOW)
    except errors.SourceError:
        return
    assert isinstance(observation, Observation)
    for measurement in observation.measurements:
        assert measurement.fetched_at == NOW
        assert measurement.value is not None
        assert measurement.value == measurement.value  # not NaN


@given(
    st.binary(max_size=200)
    | json_values.map(lambda v: orjson.dumps(v, default=str) if _dumps(v) else b"null")
)
def test_no_bytes_break_the_envelope(body: bytes) -> None:
    for read in (lambda: parse_page(body, "it"), lambda: decode(body, "it"), lambda: parse_token(body, NOW)):
        try:
            read()
        except errors.Unreadable:
            continue
    parse_fault(body)


def _dumps(value: object) -> bool:
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError:
        return False
    return True


@given(st.lists(json_values, max_size=5))
def test_no_list_of_connections_breaks_the_parser(resources: list[object]) -> None:
    try:
        list(parse_consents(tuple(resources), "home"))
    except errors.Unreadable:
        return


@pytest.mark.parametrize("code", SIGNALS)
@pytest.mark.parametrize("body", ["DEEP", '{"value": DEEP}', '{"value": 7, "unit": DEEP, "activeLimit": 7}'])
def test_what_is_nested_too_deeply_to_be_shown_is_kept_with_the_reason_all_the_same(
    code: str, body: str
) -> None:
    deep = orjson.loads(body.replace("DEEP", "[" * 1000 + "]" * 1000))
    soc = signal("tractionbattery-stateofcharge", {"value": 78, "unit": "percent"})
    observation = observe((soc, signal(code, deep)), NOW)
    assert {m.signal for m in observation.measurements} >= {Signal.SOC}
    for rejected in observation.rejected:
        assert rejected.reason
        assert len(rejected.raw) <= 200


@pytest.mark.parametrize("end", range(1970, 2010, 7))
def test_no_excerpt_holds_an_id_nor_a_part_of_one(end: int) -> None:
    user = b"7b1f4a52-0c1d-4f5e-9a37-2f1d6c9e8b10"
    body = user + b" " * (end - 2 * len(user)) + user + b" and more"
    with pytest.raises(errors.Unreadable) as told:
        decode(body, "the list of connections")
    assert "7b1f" not in told.value.excerpt
    assert len(told.value.excerpt) <= 2000

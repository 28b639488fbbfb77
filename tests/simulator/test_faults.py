"""Every fault gives on the wire what it says, and befalls whom it should."""

from __future__ import annotations

import asyncio
from datetime import datetime

import aiohttp
import pytest

from evbatteryd.simulator.errors import ERRORS
from evbatteryd.simulator.faults import HUGE_BYTES, NAMES, OUTCOMES, SHAPES, WIRE
from tests.simulator.conftest import Smartcar, StartSmartcar, eventually

SOC = "tractionbattery-stateofcharge"


async def fault(smartcar: Smartcar, name: str, path: str | None = "signals", **rule: object) -> None:
    match = {"path": path, **{key: rule.pop(key) for key in ("vehicle", "make") if key in rule}}
    await smartcar.control("POST", "faults", {"match": match, "fault": name, **rule})


def test_every_row_of_smartcars_table_is_there():
    rows = {
        400: {"VALIDATION", "VALIDATION:PARAMETER", "CONNECTED_SERVICES_ACCOUNT:AUTHENTICATION_FAILED"},
        401: {"AUTHENTICATION", "AUTHENTICATION:UNAUTHORIZED"},
        403: {"PERMISSION", "AUTHENTICATION:ACCESS_DENIED"},
        404: {"RESOURCE_NOT_FOUND:PATH", "RESOURCE_NOT_FOUND:SIGNAL_NOT_FOUND"},
        409: {"VEHICLE_STATE:ASLEEP", "VEHICLE_STATE:LOW_BATTERY", "VEHICLE_STATE:UNREACHABLE"},
        429: {"RATE_LIMIT:SMARTCAR_API", "RATE_LIMIT:VEHICLE"},
        430: {"BILLING:VEHICLE_REQUEST_LIMIT", "BILLING:ACCOUNT_SUSPENDED"},
        500: {"SERVER:INTERNAL"},
        501: {"COMPATIBILITY:VEHICLE_NOT_CAPABLE", "COMPATIBILITY:PLATFORM_NOT_CAPABLE"},
        502: {"UPSTREAM:RATE_LIMIT", "UPSTREAM:NO_RESPONSE"},
        504: {"UPSTREAM:TIMEOUT"},
    }
    for status, names in rows.items():
        assert {ERRORS[name].status for name in names} == {status}


async def test_every_error_of_the_table_comes_with_its_status_and_body(start: StartSmartcar):
    async with start(bucket=1000, calls_per_vehicle=None, brands=("tesla",)) as smartcar:
        vehicle = smartcar.vehicles[0]
        for name, kind in ERRORS.items():
            await fault(smartcar, name, count=1)
            answer = await smartcar.signals(vehicle)
            assert (answer.status, answer.error) == (kind.status, name)
            (error,) = answer.json["errors"]
            assert error["resolution"] == {"type": kind.resolution}
            assert answer.headers["content-type"].startswith("application/json")
            assert error["links"]["about"].startswith("https://smartcar.com/docs/errors/")
            assert error["meta"]["requestId"] == answer.headers["sc-request-id"]
            assert ("retry-after" in answer.headers) == (name == "RATE_LIMIT:VEHICLE")
            assert (await smartcar.signals(vehicle)).status == 200


async def test_retry_after_is_whole_seconds_and_can_be_chosen(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    await fault(smartcar, "RATE_LIMIT:VEHICLE", count=1)
    assert (await smartcar.signals(vehicle)).headers["retry-after"] == "60"
    await fault(smartcar, "RATE_LIMIT:VEHICLE", count=1, retry_after=119.2)
    assert (await smartcar.signals(vehicle)).headers["retry-after"] == "120"


async def test_an_error_at_the_door_is_not_billed_and_one_behind_it_is(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    for name in ("RATE_LIMIT:VEHICLE", "BILLING:VEHICLE_REQUEST_LIMIT", "AUTHENTICATION", "PERMISSION"):
        await fault(smartcar, name, count=1)
        await smartcar.signals(vehicle)
    stats = await smartcar.control("GET", "stats")
    assert stats["vehicles"][vehicle.id]["billed"] == 0
    for name in ("SERVER:INTERNAL", "VEHICLE_STATE:ASLEEP", "UPSTREAM:RATE_LIMIT"):
        await fault(smartcar, name, count=1)
        await smartcar.signals(vehicle)
    stats = await smartcar.control("GET", "stats")
    assert stats["vehicles"][vehicle.id] == {"requests": 7, "billed": 3, "most_in_flight": 1}


# --- the wire -------------------------------------------------------------------------------------------


async def test_html_instead_of_json(smartcar: Smartcar):
    await fault(smartcar, "html")
    answer = await smartcar.signals(smartcar.vehicles[0])
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert answer.body.startswith(b"<!DOCTYPE html>")


async def test_broken_json(smartcar: Smartcar):
    await fault(smartcar, "malformed")
    async with smartcar.http.get(*asking(smartcar)[0], **asking(smartcar)[1]) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        with pytest.raises(ValueError, match="Expecting"):
            await response.json()


def asking(smartcar: Smartcar) -> tuple[tuple[str], dict[str, object]]:
    vehicle = smartcar.vehicles[0]
    headers = {"Authorization": f"Bearer {smartcar.token}", "sc-user-id": vehicle.user_id}
    return (f"{smartcar.origin}/v3/vehicles/{vehicle.id}/signals",), {"headers": headers}


async def test_a_body_that_breaks_off(smartcar: Smartcar):
    await fault(smartcar, "truncated")
    where, how = asking(smartcar)
    async with smartcar.http.get(*where, **how) as response:
        promised = int(response.headers["content-length"])
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    await smartcar.control("DELETE", "faults")
    whole = await smartcar.signals(smartcar.vehicles[0], "")
    assert len(whole.body) == promised


async def test_ten_megabytes(smartcar: Smartcar):
    await fault(smartcar, "huge")
    answer = await smartcar.signals(smartcar.vehicles[0])
    assert answer.status == 200
    assert len(answer.body) > HUGE_BYTES == 10 * 1024 * 1024
    assert answer.json["data"] == []


async def test_a_redirect_to_elsewhere(smartcar: Smartcar):
    await fault(smartcar, "redirect")
    answer = await smartcar.signals(smartcar.vehicles[0])
    assert (answer.status, answer.headers["location"]) == (302, "http://elsewhere.invalid/")


async def test_an_empty_body(smartcar: Smartcar):
    await fault(smartcar, "empty")
    answer = await smartcar.signals(smartcar.vehicles[0])
    assert (answer.status, answer.body) == (200, b"")


async def test_a_connection_reset_without_an_answer(smartcar: Smartcar):
    await fault(smartcar, "reset")
    vehicle = smartcar.vehicles[0]
    host, port = smartcar.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /v3/vehicles/{vehicle.id}/signals HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {smartcar.token}\r\nsc-user-id: {vehicle.user_id}\r\n\r\n".encode()
    )
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    with pytest.raises(ConnectionResetError):
        await writer.wait_closed()
    assert (await smartcar.control("GET", "stats"))["requests"]["signals"] == {"reset": 1}


async def test_no_answer_until_the_client_gives_up(smartcar: Smartcar):
    await fault(smartcar, "hang")
    where, how = asking(smartcar)
    with pytest.raises(TimeoutError):
        async with smartcar.http.get(*where, **how, timeout=aiohttp.ClientTimeout(total=0.2)):
            pass

    async def has_ended() -> bool:
        stats = await smartcar.control("GET", "stats")
        return stats["requests"].get("signals") == {"hang": 1}

    await eventually(has_ended)
    await smartcar.control("DELETE", "faults")
    assert (await smartcar.signals(smartcar.vehicles[0])).status == 200


# --- shapes ---------------------------------------------------------------------------------------------


@pytest.fixture
async def plain(smartcar: Smartcar):
    """The signals of the first vehicle as they should be."""
    return (await smartcar.signals(smartcar.vehicles[0])).json


async def shaped(smartcar: Smartcar, name: str):
    await fault(smartcar, name)
    answer = await smartcar.signals(smartcar.vehicles[0])
    assert answer.status == 200
    return answer.json


def metas(document) -> list[dict[str, object]]:
    return [signal["meta"] for signal in document["data"]]


async def test_times_in_seconds(smartcar: Smartcar, plain):
    for meta, usual in zip(metas(await shaped(smartcar, "seconds")), metas(plain), strict=True):
        assert meta == {key: value // 1000 for key, value in usual.items()}


async def test_times_as_strings(smartcar: Smartcar, plain):
    for meta, usual in zip(metas(await shaped(smartcar, "strings")), metas(plain), strict=True):
        for key, value in usual.items():
            if value:
                at = datetime.fromisoformat(meta[key])
                assert meta[key].endswith("Z")
                assert round(at.timestamp() * 1000) == value


async def test_times_of_the_future(smartcar: Smartcar, plain):
    meta, usual = metas(await shaped(smartcar, "future_time"))[-1], metas(plain)[-1]
    assert meta["oemUpdatedAt"] - usual["oemUpdatedAt"] == 86_400_000
    assert meta["oemUpdatedAt"] / 1000 > smartcar.clock.now().timestamp()


async def test_times_of_zero(smartcar: Smartcar):
    assert {meta["oemUpdatedAt"] for meta in metas(await shaped(smartcar, "zero_time"))} == {0}


def bodies(document) -> dict[str, object]:
    return {signal["id"]: signal["attributes"].get("body") for signal in document["data"]}


async def test_values_of_wrong_types(smartcar: Smartcar):
    document = await shaped(smartcar, "wrong_types")
    assert bodies(document)[SOC]["value"] == {"is": ["odd"]}
    assert all(signal["meta"] == ["now"] for signal in document["data"])


async def test_units_nobody_knows(smartcar: Smartcar):
    units = {
        body["unit"] for body in bodies(await shaped(smartcar, "unknown_units")).values() if "unit" in body
    }
    assert units == {"furlong"}


async def test_signals_that_are_missing(smartcar: Smartcar, plain):
    left = bodies(await shaped(smartcar, "missing_signals"))
    gone = {SOC, "charge-ischarging", "charge-detailedchargingstatus"}
    assert left == {code: body for code, body in bodies(plain).items() if code not in gone}


async def test_no_signals_at_all(smartcar: Smartcar):
    document = await shaped(smartcar, "no_signals")
    assert (document["data"], document["meta"]["totalCount"]) == ([], 0)


async def test_bodies_that_are_null(smartcar: Smartcar):
    assert set(bodies(await shaped(smartcar, "null_body")).values()) == {None}


async def test_fields_and_signals_nobody_knows(smartcar: Smartcar, plain):
    document = await shaped(smartcar, "extra_fields")
    assert document["data"][-1]["id"] == "novelty-signal"
    assert {code: bodies(document)[code] for code in bodies(plain)} == bodies(plain)


async def test_sentinels_of_the_bus(smartcar: Smartcar):
    found = bodies(await shaped(smartcar, "sentinel"))
    assert found[SOC]["value"] == 255
    assert found["tractionbattery-range"]["value"] == 65535


async def test_miles_sold_as_kilometres(smartcar: Smartcar, plain):
    found, usual = (
        bodies(document)["tractionbattery-range"]
        for document in (await shaped(smartcar, "miles_as_km"), plain)
    )
    assert (found["unit"], found["value"]) == ("km", round(usual["value"] / 1.609344))


async def test_the_older_names_of_paging_and_a_single_signal_at_the_root(smartcar: Smartcar):
    document = await shaped(smartcar, "older_shapes")
    assert set(document["meta"]) == {"page", "pageSize", "totalCount"}
    assert set(document["links"]) == {"self", "first", "previous", "next", "last"}
    alone = await smartcar.signals(smartcar.vehicles[0], f"/{SOC}")
    assert alone.json["id"] == SOC
    assert alone.json["attributes"]["body"]["unit"] == "percent"


def test_every_fault_has_been_tried_here():
    tried = set(ERRORS) | set(OUTCOMES)
    tried |= {"html", "malformed", "truncated", "huge", "redirect", "empty", "reset", "hang"}
    tried |= {
        "seconds",
        "strings",
        "future_time",
        "zero_time",
        "wrong_types",
        "unknown_units",
        "missing_signals",
    }
    tried |= {"no_signals", "null_body", "extra_fields", "sentinel", "miles_as_km", "older_shapes"}
    assert tried == NAMES == set(ERRORS) | set(OUTCOMES) | set(WIRE) | set(SHAPES)


# --- whom it befalls ------------------------------------------------------------------------------------


async def test_a_rule_befalls_the_path_the_vehicle_and_the_make_it_names(smartcar: Smartcar):
    tesla, volkswagen, bmw = smartcar.vehicles
    await fault(smartcar, "SERVER:INTERNAL", path="connections")
    await fault(smartcar, "seconds", vehicle=volkswagen.id)
    await fault(smartcar, "VEHICLE_STATE:ASLEEP", path=None, make="bmw")
    assert (await smartcar.ask("GET", "/v3/connections")).status == 500
    assert (await smartcar.signals(bmw)).status == 409
    assert (await smartcar.ask("GET", f"/v3/vehicles/{bmw.id}")).status == 409
    times = [
        (await smartcar.signals(vehicle)).json["data"][-1]["meta"]["oemUpdatedAt"]
        for vehicle in (tesla, volkswagen)
    ]
    assert times[0] > 1e12 > times[1]


async def test_the_token_endpoint_can_fail_too(smartcar: Smartcar):
    for name, status in (("SERVER:INTERNAL", 500), ("AUTHENTICATION", 401), ("html", 200)):
        await fault(smartcar, name, path="token", count=1)
        async with smartcar.http.post(f"{smartcar.origin}/oauth2/token") as response:
            assert response.status == status
            assert (response.content_type == "text/html") == (name == "html")


async def test_a_rate_befalls_that_share_the_same_each_time(start: StartSmartcar):
    async def failures() -> list[int]:
        async with start(vehicles=2, bucket=1000, calls_per_vehicle=None, brands=("tesla",)) as smartcar:
            await fault(smartcar, "SERVER:INTERNAL", rate=0.3)
            return [
                (await smartcar.signals(vehicle)).status for _ in range(100) for vehicle in smartcar.vehicles
            ]

    once = await failures()
    assert once == await failures()
    assert 40 < once.count(500) < 80
    assert once[::2] != once[1::2]


async def test_a_count_runs_out_and_the_list_says_so(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    await fault(smartcar, "UPSTREAM:NO_RESPONSE", count=2)
    assert [(await smartcar.signals(vehicle)).status for _ in range(3)] == [502, 502, 200]
    (rule,) = await smartcar.control("GET", "faults")
    assert (rule["fault"], rule["count"], rule["fired"]) == ("UPSTREAM:NO_RESPONSE", 0, 2)
    assert await smartcar.control("DELETE", "faults") == []
    assert await smartcar.control("GET", "faults") == []


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ({"fault": "nonsense"}, "unknown fault"),
        ({"fault": "html", "rate": 2}, "rate"),
        ({"fault": "html", "count": 0}, "count"),
        ({"fault": "html", "match": {"path": "elsewhere"}}, "unknown path"),
        ({"fault": "html", "match": {"make": "trabant"}}, "unknown make"),
        ({"fault": "html", "match": {"vin": "x"}}, "unknown: vin"),
        ({"fault": "html", "often": 1}, "unknown: often"),
        ({"fault": "html", "retry_after": -1}, "retry_after"),
        ({"fault": "command_pending", "delay": -1}, "delay"),
        ({"fault": "command_pending", "delay": "1h"}, "delay"),
        ({"fault": "html", "match": []}, None),
        ("html", "object"),
    ],
)
async def test_a_rule_that_cannot_be_meant_is_refused_with_the_reason(smartcar: Smartcar, rule, why):
    async with smartcar.http.post(f"{smartcar.origin}/_control/faults", json=rule) as response:
        if why is None:
            assert response.status == 200
            return
        assert response.status == 400
        assert why in (await response.json())["error"]
    assert await smartcar.control("GET", "faults") == []

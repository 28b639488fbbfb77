"""The application's bucket, each vehicle's limit, and the plan: over HTTP, and as laws."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.simulator.clouds import Limit
from evbatteryd.simulator.limits import Bucket, RollingLimits
from tests.simulator.conftest import Smartcar, StartSmartcar


async def test_the_bucket_refuses_the_121st_request_and_refills_by_two_a_minute(smartcar: Smartcar):
    for _ in range(120):
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200
    vehicle = smartcar.vehicles[0]
    for answer in (await smartcar.ask("GET", "/v3/connections"), await smartcar.signals(vehicle)):
        assert (answer.status, answer.error) == (429, "RATE_LIMIT:SMARTCAR_API")
        assert answer.json["errors"][0]["resolution"] == {"type": "RETRY_LATER"}
    smartcar.clock.advance(seconds=30)
    assert (await smartcar.signals(vehicle)).status == 200
    assert (await smartcar.signals(vehicle)).status == 429
    smartcar.clock.advance(minutes=1)
    statuses = [(await smartcar.signals(vehicle)).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    stats = await smartcar.control("GET", "stats")
    assert stats["rejected"]["bucket"] == 4
    assert stats["vehicles"][vehicle.id]["billed"] == 3


async def test_tokens_and_the_management_api_take_nothing_from_the_bucket(start: StartSmartcar):
    async with start(bucket=1) as smartcar:
        for _ in range(3):
            await smartcar.sign_in()
            assert (await smartcar.ask("GET", "/v3/subscriptions")).status == 200
        assert (await smartcar.ask("GET", "/v3/connections", token="no")).status == 401
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200
        assert (await smartcar.ask("GET", "/v3/connections")).status == 429


async def test_a_makes_limit_tells_when_to_come_back(start: StartSmartcar):
    async with start(vehicles=2, brands=("chevrolet",)) as smartcar:
        vehicle, other = smartcar.vehicles  # two requests in half an hour
        assert (await smartcar.signals(vehicle)).status == 200
        smartcar.clock.advance(minutes=10)
        assert (await smartcar.signals(vehicle)).status == 200
        refused = await smartcar.signals(vehicle)
        assert (refused.status, refused.error) == (429, "RATE_LIMIT:VEHICLE")
        assert refused.headers["retry-after"] == "1200"
        assert b"\r\nretry-after: 1200\r\n" in await raw_headers(smartcar, vehicle)
        assert (await smartcar.signals(other)).status == 200
        smartcar.clock.advance(seconds=1199)
        assert (await smartcar.signals(vehicle)).headers["retry-after"] == "1"
        smartcar.clock.advance(seconds=1)
        assert (await smartcar.signals(vehicle)).status == 200
        stats = await smartcar.control("GET", "stats")
        assert stats["rejected"]["vehicle"] == 3
        assert stats["vehicles"][vehicle.id] == {"requests": 6, "billed": 3, "most_in_flight": 1}


async def raw_headers(smartcar: Smartcar, vehicle) -> bytes:
    """The head of an answer as it is on the wire: names in lower case matter to some SDKs."""
    host, port = smartcar.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        f"GET /v3/vehicles/{vehicle.id}/signals HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
        f"Authorization: Bearer {smartcar.token}\r\nsc-user-id: {vehicle.user_id}\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head


async def test_the_plan_ends_with_its_calls_and_turns_with_the_month(start: StartSmartcar):
    async with start(calls_per_vehicle=2, brands=("tesla",)) as smartcar:
        vehicle, other, _ = smartcar.vehicles
        statuses = [(await smartcar.signals(vehicle)).status for _ in range(3)]
        assert statuses == [200, 200, 430]
        refused = await smartcar.signals(vehicle)
        assert refused.error == "BILLING:VEHICLE_REQUEST_LIMIT"
        assert refused.json["errors"][0]["resolution"] == {"type": "CONTACT_SUPPORT"}
        assert (await smartcar.signals(other)).status == 200
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200
        assert (await smartcar.ask("GET", f"/v3/vehicles/{vehicle.id}")).status == 430
        smartcar.clock.at = smartcar.clock.at.replace(month=3, day=31, hour=23, minute=59)
        await smartcar.sign_in()
        assert (await smartcar.signals(vehicle)).status == 430
        smartcar.clock.advance(minutes=1)
        assert (await smartcar.signals(vehicle)).status == 200
        stats = await smartcar.control("GET", "stats")
        assert stats["rejected"]["plan"] == 4


async def test_a_plan_by_the_day_and_one_without_an_end(start: StartSmartcar):
    async with start(calls_per_vehicle=1, period="day", brands=("tesla",)) as smartcar:
        vehicle = smartcar.vehicles[0]
        assert [(await smartcar.signals(vehicle)).status for _ in range(2)] == [200, 430]
        smartcar.clock.advance(days=1)
        await smartcar.sign_in()
        assert (await smartcar.signals(vehicle)).status == 200
    async with start(calls_per_vehicle=None, bucket=1000, brands=("tesla",)) as smartcar:
        statuses = {(await smartcar.signals(smartcar.vehicles[0])).status for _ in range(510)}
        assert statuses == {200}


waits = st.lists(st.floats(0, 500), max_size=60)


@settings(deadline=None)
@given(waits, st.integers(1, 20), st.floats(0.1, 60))
def test_a_bucket_never_gives_more_than_it_held_and_was_refilled(spans, capacity, per_minute):
    bucket, now, given_out = Bucket(capacity, per_minute, 0.0), 0.0, 0
    for span in spans:
        now += span
        given_out += bucket.take(now)
        assert given_out <= capacity + now * per_minute / 60 + 1e-6
        assert 0 <= bucket.level(now) <= capacity


@settings(deadline=None)
@given(waits, st.integers(1, 5), st.floats(1, 1000))
def test_a_rolling_limit_lets_no_window_have_more_and_its_wait_is_exact(spans, calls, window_s):
    limits, limit, now, let_in = RollingLimits(), Limit(calls, window_s), 0.0, []
    for span in spans:
        now += span
        wait_s = limits.take(1, limit, now)
        if wait_s is None:
            let_in.append(now)
            assert len([at for at in let_in if at + window_s > now]) <= calls
        else:
            assert 0 < wait_s <= window_s * (1 + 1e-9)
            assert len([at for at in let_in if at + window_s > now]) == calls

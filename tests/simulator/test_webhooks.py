"""Webhooks over HTTP: the handshake, who is told what and when, and receivers that are no good."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf, nextafter
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from evbatteryd.simulator import Simulator, SimulatorOptions
from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clock import VirtualClock
from evbatteryd.simulator.clouds import CLOUDS, clouds_named
from evbatteryd.simulator.lives import State, load_lives
from evbatteryd.simulator.tracks import Track
from evbatteryd.simulator.uploads import Upload, newest_upload, next_upload, uploads_of
from tests.simulator.conftest import HandClock, Smartcar, eventually
from tests.simulator.test_uploads import NOW, car_of

TOKEN = "a management token"
DAY = 86400.0
SOC = "tractionbattery-stateofcharge"

Behaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


def hmac_of(message: bytes, token: str = TOKEN) -> str:
    return hmac.new(token.encode(), message, hashlib.sha256).hexdigest()


@dataclass
class Delivery:
    raw: bytes
    signature: str | None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def vehicle(self) -> str:
        return self.json["data"]["vehicle"]["id"]

    @property
    def is_first(self) -> bool:
        return self.json["triggers"] == [{"type": "FIRST_DELIVERY"}]

    def signal(self, code: str) -> Any:
        (found,) = (one for one in self.json["data"]["signals"] if one["code"] == code)
        return found


async def accepts(_: web.Request) -> web.StreamResponse:
    return web.Response(status=204)


async def knows_the_token(request: web.Request) -> web.StreamResponse:
    challenge = (await request.json())["data"]["challenge"]
    return web.json_response({"challenge": hmac_of(challenge.encode())})


@dataclass
class Receiver:
    """What a test lets stand at the other end."""

    url: str = ""
    verifies: Behaviour = knows_the_token
    receives: Behaviour = accepts
    challenges: list[Delivery] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)

    async def post(self, request: web.Request) -> web.StreamResponse:
        delivery = Delivery(await request.read(), request.headers.get("SC-Signature"), request.raw_headers)
        assert request.content_type == "application/json"
        if delivery.json["eventType"] == "VERIFY":
            self.challenges.append(delivery)
            return await self.verifies(request)
        self.deliveries.append(delivery)
        return await self.receives(request)

    async def gets(self, count: int) -> list[Delivery]:
        """Wait until it has been sent so many deliveries, and no more."""

        async def there_are() -> bool:
            assert len(self.deliveries) <= count, f"more than {count} deliveries"
            return len(self.deliveries) == count

        await eventually(there_are)
        return self.deliveries


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[Receiver]:
    app = web.Application(client_max_size=1 << 27)
    app.router.add_post("/hook", receiver.post)
    app.router.add_route("*", "/elsewhere", accepts)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with listening(Receiver()) as running:
        yield running


@asynccontextmanager
async def simulating(receiver: Receiver, speed: float = 5.0, **options: Any) -> AsyncIterator[Smartcar]:
    """The clock stands still; ``speed`` alone says how long 15 s are in truth."""
    clock = HandClock()
    clock.speed = speed
    chosen = {
        "vehicles": 1,
        "latency_scale": 0,
        "management_token": TOKEN,
        "webhook": receiver.url,
        **options,
    }
    simulator = Simulator(SimulatorOptions(**chosen), clock)
    async with simulator.serving("127.0.0.1", 0) as origin, aiohttp.ClientSession() as http:
        smartcar = Smartcar(simulator, clock, origin, http)
        await smartcar.sign_in()
        yield smartcar


async def counted(smartcar: Smartcar, **counts: Any) -> None:
    """Wait until the stats say so."""

    async def so() -> bool:
        told = (await smartcar.control("GET", "stats"))["webhooks"]
        return {name: told[name] for name in counts} == counts

    await eventually(so)


def turn_to(smartcar: Smartcar, at: float) -> None:
    """To the first millisecond from ``at`` (epoch seconds) on: what the clock can show."""
    smartcar.clock.advance(seconds=at - smartcar.clock.now().timestamp() + 0.001)


def to_the_next_upload(smartcar: Smartcar, number: int = 0) -> Upload:
    now = smartcar.clock.now().timestamp()
    upload = next_upload(smartcar.vehicles[number].car, now, now + 30 * DAY)
    assert upload is not None
    turn_to(smartcar, upload.available_at)
    return upload


# --- the handshake --------------------------------------------------------------------------------------


async def test_the_challenge_comes_first_unsigned_and_then_each_vehicle_for_the_first_time(
    receiver: Receiver,
):
    async with simulating(receiver, vehicles=3) as smartcar:
        deliveries = await receiver.gets(3)
        await counted(smartcar, verified=True, delivered=3, retried=0, dropped=0)
        (challenge,) = receiver.challenges
        assert challenge.signature is None
        document = challenge.json
        assert set(document) == {"eventId", "eventType", "data", "meta"}
        assert set(document["data"]) == {"challenge"}
        assert document["meta"]["version"] == "4.0"
        assert document["meta"]["webhookId"] == smartcar.simulator.webhook_id
        assert document["meta"]["deliveredAt"] == "2026-03-04T05:06:07.000Z"
        assert all(delivery.is_first for delivery in deliveries)
        assert {one.vehicle for one in deliveries} == {vehicle.id for vehicle in smartcar.vehicles}


def answers(status: int = 200, **response: Any) -> Behaviour:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, **response)

    return answer


async def knows_another_token(request: web.Request) -> web.StreamResponse:
    challenge = (await request.json())["data"]["challenge"]
    return web.json_response({"challenge": hmac_of(challenge.encode(), "another")})


async def knows_the_token_but_is_in_trouble(request: web.Request) -> web.StreamResponse:
    challenge = (await request.json())["data"]["challenge"]
    return web.json_response({"challenge": hmac_of(challenge.encode())}, status=500)


async def calls_it_text(request: web.Request) -> web.StreamResponse:
    challenge = (await request.json())["data"]["challenge"]
    return web.Response(text=json.dumps({"challenge": hmac_of(challenge.encode())}))


async def echoes(request: web.Request) -> web.StreamResponse:
    return web.json_response((await request.json())["data"])


async def writes_garbage(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"\x00 this is not HTTP\r\n\r\n")
    request.transport.close()
    return web.Response()


async def hangs_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def hangs(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError("it cannot get here")


@pytest.mark.parametrize(
    "wrong",
    [
        knows_another_token,
        knows_the_token_but_is_in_trouble,
        calls_it_text,
        echoes,
        writes_garbage,
        hangs_up,
        answers(204),
        answers(302, headers={"Location": "/elsewhere"}),
        answers(body=b"{", content_type="application/json"),
        answers(body=b"[]", content_type="application/json"),
        answers(body=b'{"challenge": 1}', content_type="application/json"),
        answers(body='{"challenge": "é"}'.encode(), content_type="application/json"),
        answers(404),
    ],
)
async def test_nothing_is_delivered_until_the_challenge_is_answered_right(receiver: Receiver, wrong):
    receiver.verifies = wrong

    async def challenged(times: int) -> None:
        async def so_often() -> bool:
            return len(receiver.challenges) == times

        await eventually(so_often)

    async with simulating(receiver, speed=1) as smartcar:
        await challenged(1)
        smartcar.clock.advance(seconds=59)
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200
        await asyncio.sleep(0.05)  # time for a challenge that must not come
        assert len(receiver.challenges) == 1
        smartcar.clock.advance(seconds=1)
        await challenged(2)
        await counted(smartcar, verified=False, delivered=0, failed=0)
        assert receiver.deliveries == []
        receiver.verifies = knows_the_token
        smartcar.clock.advance(seconds=60)
        (delivery,) = await receiver.gets(1)
        assert delivery.is_first
        assert len({one.json["data"]["challenge"] for one in receiver.challenges}) == 3
        await counted(smartcar, verified=True, delivered=1)


async def test_a_huge_answer_is_not_read_to_its_end(receiver: Receiver):
    ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def writes_megabytes(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        try:
            for _ in range(160):  # 16 MB: more than the buffers on the way hold
                await response.write(b"[" * 100_000)
            ended.set_result(True)
        finally:
            if not ended.done():
                ended.set_result(False)
        return response

    receiver.verifies = writes_megabytes
    async with simulating(receiver, speed=1):
        assert not await ended


async def test_a_receiver_that_is_down_is_found_once_it_is_up(unused_tcp_port: int):
    receiver = Receiver(url=f"http://127.0.0.1:{unused_tcp_port}/hook")
    async with simulating(receiver) as smartcar:
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200
        app = web.Application()
        app.router.add_post("/hook", receiver.post)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
        try:
            smartcar.clock.advance(seconds=60)
            await receiver.gets(1)
        finally:
            await runner.cleanup()


# --- what is told, to whom and when ---------------------------------------------------------------------


async def test_a_delivery_is_signed_over_its_raw_bytes_and_holds_what_the_store_holds(receiver: Receiver):
    async with simulating(receiver, brands=("volkswagen",)) as smartcar:
        (delivery,) = await receiver.gets(1)
        vehicle = smartcar.vehicles[0]
        assert delivery.signature == hmac_of(delivery.raw)
        document = delivery.json
        assert set(document) == {"eventId", "eventType", "data", "triggers", "meta"}
        assert document["eventType"] == "VEHICLE_STATE"
        assert document["data"]["user"] == {"id": vehicle.user_id}
        assert document["data"]["vehicle"] == {
            "id": vehicle.id,
            "make": "VOLKSWAGEN",
            "model": vehicle.car.model,
            "year": vehicle.car.year,
        }
        assert document["meta"] == {
            "version": "4.0",
            "webhookId": smartcar.simulator.webhook_id,
            "webhookName": "Simulated",
            "deliveryId": document["meta"]["deliveryId"],
            "deliveredAt": round(smartcar.clock.now().timestamp() * 1000),
            "mode": "LIVE",
            "signalCount": len(document["data"]["signals"]),
        }
        told = (await smartcar.signals(vehicle)).json["data"]
        assert len(told) == len(document["data"]["signals"]) > 5
        for resource, signal in zip(told, document["data"]["signals"], strict=True):
            times = {
                name: resource["meta"][name]
                for name in ("oemUpdatedAt", "retrievedAt")
                if name in resource["meta"]
            }
            assert {"meta": {}} | signal == {**resource["attributes"], "meta": times}
            assert signal["status"]["value"] in ("SUCCESS", "ERROR", "UNAVAILABLE")


async def test_simulated_vehicles_are_told_in_test_mode(receiver: Receiver):
    async with simulating(receiver, mode="simulated"):
        (delivery,) = await receiver.gets(1)
        assert delivery.json["meta"]["mode"] == "TEST"


def newer_ones(car: Car, since: float, until: float) -> list[Upload]:
    """Eagerly: what the newest upload became, one after another."""
    arrivals, t = set(), until
    while t > since - 2 * DAY:
        run = car.run_at(t)
        arrivals |= {sent.available_at for sent in uploads_of(car, run, until)}
        t = nextafter(run.start, -inf)
    instants = [since, *sorted(at for at in arrivals if since < at <= until)]
    newest = [newest_upload(car, at) for at in instants]
    return [after for before, after in pairwise(newest) if after != before]


async def test_every_newer_upload_is_told_once_when_it_has_arrived(receiver: Receiver):
    async with simulating(receiver, vehicles=6, brands=("tesla", "byd", "volvo"), seed=3) as smartcar:
        await receiver.gets(6)
        begin = smartcar.clock.now().timestamp()
        end = begin + 6 * 3600
        expected = sorted(
            (upload.available_at, vehicle.id, round(upload.measured_at * 1000))
            for vehicle in smartcar.vehicles
            for upload in newer_ones(vehicle.car, begin, end)
        )
        assert len(expected) > 20
        for number, (available_at, *_) in enumerate(expected, start=1):
            turn_to(smartcar, available_at)
            await receiver.gets(6 + number)
        turn_to(smartcar, end)
        await counted(smartcar, delivered=6 + len(expected), retried=0)
        told = receiver.deliveries[6:]
        assert [(one.vehicle, one.signal(SOC)["meta"]["oemUpdatedAt"]) for one in told] == [
            (vehicle, measured_ms) for _, vehicle, measured_ms in expected
        ]
        for delivery in told:
            soc, delivered_ms = delivery.signal(SOC), delivery.json["meta"]["deliveredAt"]
            assert 0 <= delivered_ms - soc["meta"]["retrievedAt"] <= 2
        assert len({one.json["eventId"] for one in receiver.deliveries}) == 6 + len(expected)
        assert len({one.json["meta"]["deliveryId"] for one in receiver.deliveries}) == 6 + len(expected)


async def test_triggers_name_the_signals_that_changed_or_else_the_state_of_charge(receiver: Receiver):
    async with simulating(receiver, vehicles=3, brands=("byd",), seed=3) as smartcar:
        last = {one.vehicle: one for one in await receiver.gets(3)}
        changes: list[bool] = []
        begin = smartcar.clock.now().timestamp()
        while len(set(changes)) < 2:
            smartcar.clock.advance(minutes=2)
            now = smartcar.clock.now().timestamp()
            assert now < begin + DAY
            told = sum(len(newer_ones(vehicle.car, begin, now)) for vehicle in smartcar.vehicles)
            await counted(smartcar, delivered=3 + told)
            for delivery in receiver.deliveries[3 + len(changes) :]:
                former, last[delivery.vehicle] = last[delivery.vehicle], delivery
                before = {one["code"]: one.get("body") for one in former.json["data"]["signals"]}
                changed = {
                    one["code"]
                    for one in delivery.json["data"]["signals"]
                    if one.get("body") != before[one["code"]]
                }
                changes.append(bool(changed))
                assert {one["type"] for one in delivery.json["triggers"]} == {"SIGNAL_UPDATED"}
                triggers = [one["signal"] for one in delivery.json["triggers"]]
                assert {one["code"] for one in triggers} == (changed or {SOC})
                for one in triggers:
                    signal = delivery.signal(one["code"])
                    assert one == {name: signal[name] for name in ("name", "code", "group")}


async def test_a_jump_of_the_clock_skips_what_is_more_than_an_hour_ago(receiver: Receiver):
    async with simulating(receiver, brands=("byd",), seed=3) as smartcar:
        await receiver.gets(1)
        now = smartcar.clock.now().timestamp() + 40 * DAY
        while len(newer_ones(smartcar.vehicles[0].car, now - 3600, now)) < 5:
            now += 600
        turn_to(smartcar, now)
        at = smartcar.clock.now().timestamp()
        car = smartcar.vehicles[0].car
        kept = [newest_upload(car, at - 3600), *newer_ones(car, at - 3600, at)]
        deliveries = await receiver.gets(1 + len(kept))
        told = {one.signal(SOC)["meta"]["oemUpdatedAt"] for one in deliveries[1:]}
        assert told == {round(upload.measured_at * 1000) for upload in kept}


async def test_a_vehicle_withdrawn_or_unsubscribed_sends_nothing_and_begins_anew(receiver: Receiver):
    async with simulating(receiver, vehicles=3, brands=("tesla",)) as smartcar:
        await receiver.gets(3)
        withdrawn, unsubscribed, other = smartcar.vehicles
        await smartcar.control("POST", f"vehicles/{withdrawn.id}/withdraw")
        gone = await smartcar.ask("DELETE", f"/v3/subscriptions/{unsubscribed.subscription_id}", token=TOKEN)
        assert gone.status == 204
        begin = smartcar.clock.now().timestamp()
        for vehicle in smartcar.vehicles:
            assert newer_ones(vehicle.car, begin, begin + DAY)
        for hour in range(1, 25):
            turn_to(smartcar, begin + hour * 3600)
            await counted(smartcar, delivered=3 + len(newer_ones(other.car, begin, begin + hour * 3600)))
        assert {one.vehicle for one in receiver.deliveries[3:]} == {other.id}
        told = len(receiver.deliveries)
        await smartcar.control("POST", f"vehicles/{withdrawn.id}/consent")
        await smartcar.control("POST", f"vehicles/{unsubscribed.id}/subscribe")
        anew = (await receiver.gets(told + 2))[told:]
        assert {one.vehicle for one in anew} == {withdrawn.id, unsubscribed.id}
        assert all(one.is_first for one in anew)


async def test_a_vehicle_added_while_it_runs_is_told_at_once(receiver: Receiver):
    async with simulating(receiver) as smartcar:
        await receiver.gets(1)
        added = await smartcar.control("POST", "vehicles", {"make": "kia"})
        _, delivery = await receiver.gets(2)
        assert delivery.vehicle == added["id"]
        assert delivery.is_first


async def test_a_command_is_told_with_the_upload_it_causes(receiver: Receiver):
    async with simulating(receiver, brands=("bmw",)) as smartcar:
        await receiver.gets(1)
        vehicle = smartcar.vehicles[0]
        run = vehicle.car.run_at(smartcar.clock.now().timestamp())
        while run.state is not State.PARKED or run.end - run.start < 7200:
            run = vehicle.car.run_at(run.end)
        await smartcar.control("POST", f"vehicles/{vehicle.id}/unsubscribe")
        turn_to(smartcar, run.start + 3600)
        await smartcar.control("POST", f"vehicles/{vehicle.id}/subscribe")
        await receiver.gets(2)
        now = smartcar.clock.now().timestamp()
        assert next_upload(vehicle.car, now, now + 600) is None
        await smartcar.sign_in()  # the token is of long ago
        assert (await smartcar.command(vehicle, "set-limit", _limit(65))).status == 200
        smartcar.clock.advance(seconds=600)
        delivery = (await receiver.gets(3))[-1]
        assert now <= delivery.signal(SOC)["meta"]["oemUpdatedAt"] / 1000 < now + 60
        assert 65 in [one["limit"] for one in delivery.signal("charge-chargelimits")["body"]["values"]]


def _limit(percent: int) -> Any:
    return {"data": {"attributes": {"percent": percent}}}


async def test_a_moving_clock_needs_no_push(receiver: Receiver):
    options = {"vehicles": 46, "latency_scale": 0, "management_token": TOKEN, "webhook": receiver.url}
    async with Simulator(SimulatorOptions(**options), VirtualClock(120)).serving("127.0.0.1", 0):

        async def one_update() -> bool:
            return any(not one.is_first for one in receiver.deliveries)

        await eventually(one_update)


# --- receivers that are no good -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [
        answers(500),
        answers(302, headers={"Location": "/elsewhere"}),
        answers(404),
        writes_garbage,
        hangs_up,
        hangs,
    ],
)
async def test_an_event_is_retried_thrice_as_the_same_event_and_then_dropped(receiver: Receiver, bad):
    receiver.receives = bad
    async with simulating(receiver, speed=150, brands=("ford",), seed=1) as smartcar:
        begin = smartcar.clock.now()
        assert next_upload(smartcar.vehicles[0].car, begin.timestamp(), begin.timestamp() + 600) is None
        for attempt, wait_s in enumerate((25, 50, 100), start=1):
            await receiver.gets(attempt)
            await counted(smartcar, failed=attempt)
            smartcar.clock.advance(seconds=wait_s)
        attempts = list(await receiver.gets(4))
        await counted(smartcar, delivered=0, failed=4, retried=3, dropped=1)
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200

        after_s = [_delivered_at(one) - begin.timestamp() for one in attempts]
        assert after_s == [0, 25, 75, 175]
        assert len({one.json["eventId"] for one in attempts}) == 1
        assert len({one.json["meta"]["deliveryId"] for one in attempts}) == 4
        for one in attempts:
            assert one.signature == hmac_of(one.raw)
            assert {**one.json, "meta": None} == {**attempts[0].json, "meta": None}

        receiver.receives = accepts
        to_the_next_upload(smartcar)
        *_, following = await receiver.gets(5)
        await counted(smartcar, delivered=1, retried=3, dropped=1)
        assert following.json["eventId"] != attempts[0].json["eventId"]


def _delivered_at(delivery: Delivery) -> float:
    return delivery.json["meta"]["deliveredAt"] / 1000


async def test_a_retry_that_succeeds_ends_it(receiver: Receiver):
    receiver.receives = answers(503)
    async with simulating(receiver, brands=("ford",), seed=1) as smartcar:
        await receiver.gets(1)
        await counted(smartcar, failed=1)
        receiver.receives = accepts
        smartcar.clock.advance(seconds=25)
        await receiver.gets(2)
        await counted(smartcar, delivered=1, failed=1, retried=1, dropped=0)


async def test_a_withdrawn_vehicle_is_not_retried(receiver: Receiver):
    receiver.receives = answers(500)
    async with simulating(receiver, brands=("ford",), vehicles=2) as smartcar:
        await receiver.gets(2)
        withdrawn, other = smartcar.vehicles
        await smartcar.control("POST", f"vehicles/{withdrawn.id}/withdraw")
        await counted(smartcar, failed=2)
        smartcar.clock.advance(seconds=25)
        *_, retried = await receiver.gets(3)
        assert retried.vehicle == other.id
        await counted(smartcar, retried=1)


async def test_no_more_than_32_attempts_are_under_way(receiver: Receiver):
    arrived, most, free = 0, 0, asyncio.Event()

    async def waits(_: web.Request) -> web.StreamResponse:
        nonlocal arrived, most
        arrived += 1
        most = max(most, arrived)
        await free.wait()
        arrived -= 1
        return web.Response()

    async def thirty_two() -> bool:
        return arrived == 32

    receiver.receives = waits
    async with simulating(receiver, speed=1, vehicles=50) as smartcar:
        await eventually(thirty_two)
        assert (await smartcar.ask("GET", "/v3/connections")).status == 200
        free.set()
        await counted(smartcar, delivered=50, retried=0)
        assert most == 32


async def test_the_simulator_ends_while_the_receiver_hangs(receiver: Receiver):
    receiver.receives = hangs
    async with simulating(receiver, speed=1, vehicles=40):

        async def begun() -> bool:
            return len(receiver.deliveries) == 32

        await eventually(begun)


# --- deliveries that misbehave on demand ----------------------------------------------------------------


async def behave(smartcar: Smartcar, **conduct: Any) -> Any:
    return await smartcar.control("POST", "webhooks", conduct)


def event_ids(deliveries: list[Delivery]) -> list[str]:
    return [one.json["eventId"] for one in deliveries]


def delivery_ids(deliveries: list[Delivery]) -> list[str]:
    return [one.json["meta"]["deliveryId"] for one in deliveries]


async def test_the_conduct_is_told_changed_bit_by_bit_and_ended(smartcar: Smartcar):
    proper = {
        "duplicate": 0,
        "shuffle_s": 0,
        "wrong_signature": 0,
        "reserialised": False,
        "unsigned": False,
        "header": "SC-Signature",
        "version": "4.0",
        "paused": False,
        "oversize_bytes": 0,
    }
    assert await smartcar.control("GET", "webhooks") == proper
    assert await behave(smartcar, duplicate=2) == proper | {"duplicate": 2}
    assert await behave(smartcar, version="2.0") == proper | {"duplicate": 2, "version": "2.0"}
    assert await smartcar.control("GET", "webhooks") == proper | {"duplicate": 2, "version": "2.0"}
    assert await smartcar.control("DELETE", "webhooks") == proper
    assert await smartcar.control("GET", "webhooks") == proper


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        {"duplicates": 1},
        {"duplicate": -1},
        {"duplicate": 1.5},
        {"duplicate": True},
        {"duplicate": 33},
        {"shuffle_s": "1"},
        {"shuffle_s": -1},
        {"wrong_signature": 1.1},
        {"reserialised": 1},
        {"unsigned": None},
        {"header": "SC Signature"},
        {"header": "x\r\ny"},
        {"header": ""},
        {"version": 4},
        {"paused": 0},
        {"oversize_bytes": 1 << 40},
    ],
)
async def test_a_conduct_that_cannot_be_is_refused_and_changes_nothing(smartcar: Smartcar, wrong):
    async with smartcar.http.post(f"{smartcar.origin}/_control/webhooks", json=wrong) as response:
        assert response.status == 400
        assert (await response.json())["error"]
    assert (await smartcar.control("GET", "webhooks"))["duplicate"] == 0


async def test_copies_are_the_same_event_sent_at_the_same_time(receiver: Receiver):
    together, arrived = asyncio.Event(), 0

    async def waits_for_three(_: web.Request) -> web.StreamResponse:
        nonlocal arrived
        arrived += 1
        if arrived == 3:
            together.set()
        await together.wait()
        return web.Response()

    async with simulating(receiver, speed=1, brands=("ford",), seed=1) as smartcar:
        await receiver.gets(1)
        receiver.receives = waits_for_three
        await behave(smartcar, duplicate=2)
        to_the_next_upload(smartcar)
        copies = (await receiver.gets(4))[1:]
        await counted(smartcar, delivered=2, duplicated=2, failed=0)
        assert len(set(event_ids(copies))) == 1
        assert len(set(delivery_ids(copies))) == 3
        for one in copies:
            assert one.signature == hmac_of(one.raw)


async def test_retries_and_their_copies_keep_the_event_and_have_deliveries_of_their_own(receiver: Receiver):
    receiver.receives = answers(500)
    async with simulating(receiver, brands=("ford",), seed=1) as smartcar:
        await receiver.gets(1)
        await counted(smartcar, failed=1)
        await behave(smartcar, duplicate=1)
        smartcar.clock.advance(seconds=25)
        deliveries = await receiver.gets(3)
        await counted(smartcar, failed=2, retried=1, duplicated=1)
        assert len(set(event_ids(deliveries))) == 1
        assert len(set(delivery_ids(deliveries))) == 3


async def test_shuffled_deliveries_come_out_of_order_and_none_is_lost(receiver: Receiver):
    async with simulating(receiver, vehicles=6, brands=("byd",), seed=3) as smartcar:
        await receiver.gets(6)
        await behave(smartcar, shuffle_s=1800)
        begin = smartcar.clock.now().timestamp()
        happened = sum(len(newer_ones(one.car, begin, begin + 6 * 3600)) for one in smartcar.vehicles)
        assert happened > 40
        for _ in range(36):
            smartcar.clock.advance(minutes=10)
            await asyncio.sleep(0.03)  # longer than the longest nap: uploads are noticed as they come
        await smartcar.control("DELETE", "webhooks")
        smartcar.clock.advance(minutes=30)

        def of_then() -> list[Delivery]:
            until_ms = (begin + 6 * 3600) * 1000
            later = receiver.deliveries[6:]
            return [one for one in later if one.signal(SOC)["meta"]["retrievedAt"] <= until_ms]

        async def none_is_lost() -> bool:
            return len(of_then()) == happened

        await eventually(none_is_lost)
        assert len(set(event_ids(of_then()))) == happened
        retrieved = [one.signal(SOC)["meta"]["retrievedAt"] for one in of_then()]
        assert retrieved != sorted(retrieved)


async def test_shuffling_delays_by_no_more_than_asked_and_each_time_alike(receiver: Receiver):
    async def delays_s(receiver: Receiver) -> dict[str, float]:
        async with simulating(receiver, vehicles=12, brands=("ford",), seed=1) as smartcar:
            await receiver.gets(12)
            await behave(smartcar, shuffle_s=60)
            told_at = smartcar.clock.now().timestamp()
            for vehicle in smartcar.vehicles:
                await smartcar.control("POST", f"vehicles/{vehicle.id}/error", UNREACHABLE)
            for _ in range(12):
                smartcar.clock.advance(seconds=5)
                await asyncio.sleep(0.03)  # longer than the longest nap: what is due is sent
            late = (await receiver.gets(24))[12:]
            return {one.vehicle: _delivered_at(one) - told_at for one in late}

    first = await delays_s(receiver)
    assert len(first) == 12
    assert len(set(first.values())) > 4
    assert max(first.values()) <= 60
    async with listening(Receiver()) as other:
        assert await delays_s(other) == first


async def test_a_wrong_signature_is_that_of_another_token_over_the_same_bytes(receiver: Receiver):
    async with simulating(receiver, vehicles=30) as smartcar:
        await receiver.gets(30)
        await behave(smartcar, wrong_signature=1)
        await smartcar.control("POST", f"vehicles/{smartcar.vehicles[0].id}/error", UNREACHABLE)
        wrong = (await receiver.gets(31))[-1]
        assert wrong.signature is not None
        assert len(wrong.signature) == 64
        assert wrong.signature != hmac_of(wrong.raw)
        await behave(smartcar, wrong_signature=0.5)
        for vehicle in smartcar.vehicles:
            await smartcar.control("POST", f"vehicles/{vehicle.id}/error", UNREACHABLE)
        half = (await receiver.gets(61))[31:]
        assert 5 < sum(one.signature == hmac_of(one.raw) for one in half) < 25


async def test_a_body_serialised_anew_says_the_same_in_other_bytes(receiver: Receiver):
    async with simulating(receiver) as smartcar:
        await receiver.gets(1)
        await behave(smartcar, reserialised=True)
        await smartcar.control("POST", f"vehicles/{smartcar.vehicles[0].id}/error", UNREACHABLE)
        delivery = (await receiver.gets(2))[-1]
        assert delivery.signature != hmac_of(delivery.raw)
        compact = json.dumps(delivery.json, separators=(",", ":"), ensure_ascii=False).encode()
        assert delivery.signature == hmac_of(compact)


async def test_unsigned_misspelt_and_otherwise_versioned_deliveries(receiver: Receiver):
    async with simulating(receiver) as smartcar:
        await receiver.gets(1)
        vehicle = smartcar.vehicles[0]

        async def next_one(**conduct: Any) -> Delivery:
            await behave(smartcar, **conduct)
            await smartcar.control("POST", f"vehicles/{vehicle.id}/error", UNREACHABLE)
            return (await receiver.gets(len(receiver.deliveries) + 1))[-1]

        assert (await next_one(unsigned=True)).signature is None
        spelt = await next_one(unsigned=False, header="sc-SIGNATURE")
        assert (b"sc-SIGNATURE", hmac_of(spelt.raw).encode()) in spelt.headers
        old = await next_one(version="2.0")
        assert old.json["meta"]["version"] == "2.0"
        assert old.signature == hmac_of(old.raw)
        large = await next_one(oversize_bytes=3_000_000)
        assert 3_000_000 <= len(large.raw) < 3_000_100
        assert large.signature == hmac_of(large.raw)


async def test_while_paused_nothing_is_sent_or_kept_and_afterwards_all_begin_anew(receiver: Receiver):
    receiver.receives = answers(500)
    async with simulating(receiver, vehicles=3, brands=("byd",), seed=3) as smartcar:
        await receiver.gets(3)
        await counted(smartcar, failed=3)
        receiver.receives = accepts
        await behave(smartcar, paused=True)
        hook = await smartcar.ask("GET", f"/v3/webhooks/{smartcar.simulator.webhook_id}")
        assert hook.json["data"]["attributes"]["isEnabled"] is False
        begin = smartcar.clock.now().timestamp()
        smartcar.clock.advance(hours=6)
        assert all(newer_ones(one.car, begin, begin + 6 * 3600) for one in smartcar.vehicles)
        await smartcar.control("POST", f"vehicles/{smartcar.vehicles[0].id}/error", UNREACHABLE)
        await asyncio.sleep(0.05)  # time for deliveries that must not come
        assert len(receiver.deliveries) == 3
        await behave(smartcar, paused=False)
        anew = (await receiver.gets(6))[3:]
        assert {one.vehicle for one in anew} == {vehicle.id for vehicle in smartcar.vehicles}
        assert all(one.is_first for one in anew)
        await counted(smartcar, delivered=3, retried=0)


async def test_a_pause_too_short_to_notice_counts_all_the_same(receiver: Receiver):
    async with simulating(receiver) as smartcar:
        await receiver.gets(1)
        await behave(smartcar, paused=True)
        await smartcar.control("DELETE", "webhooks")
        assert (await receiver.gets(2))[-1].is_first


# --- errors of vehicles ---------------------------------------------------------------------------------

UNREACHABLE = {"type": "VEHICLE_STATE", "code": "UNREACHABLE", "state": "ERROR"}


async def test_an_error_of_a_vehicle_and_its_end_are_told(receiver: Receiver):
    async with simulating(receiver, vehicles=2) as smartcar:
        await receiver.gets(2)
        vehicle = smartcar.vehicles[1]
        error = {
            "type": "CONNECTED_SERVICES_ACCOUNT",
            "code": "PERMISSION",
            "state": "ERROR",
            "signals": [SOC, "location-preciselocation"],
            "description": "It was withdrawn.",
        }
        await smartcar.control("POST", f"vehicles/{vehicle.id}/error", error)
        told = (await receiver.gets(3))[-1]
        assert told.json["eventType"] == "VEHICLE_ERROR"
        assert told.signature == hmac_of(told.raw)
        assert told.json["data"]["user"] == {"id": vehicle.user_id}
        assert told.vehicle == vehicle.id
        assert told.json["data"]["errors"] == [
            {
                "type": "CONNECTED_SERVICES_ACCOUNT",
                "code": "PERMISSION",
                "state": "ERROR",
                "description": "It was withdrawn.",
                "suggestedUserMessage": "Your request could not be completed.",
                "docURL": "https://smartcar.com/docs/errors/api-errors"
                "/connected-services-account-errors#permission",
                "resolution": {"type": "REAUTHENTICATE"},
                "signals": [
                    {"name": "StateOfCharge", "code": SOC, "group": "TractionBattery"},
                    {"name": "Preciselocation", "code": "location-preciselocation", "group": "Location"},
                ],
            }
        ]
        assert "triggers" not in told.json
        assert told.json["meta"]["mode"] == "LIVE"
        await smartcar.control("POST", f"vehicles/{vehicle.id}/error", UNREACHABLE | {"state": "RESOLVED"})
        (over,) = (await receiver.gets(4))[-1].json["data"]["errors"]
        assert over.pop("description")
        assert over == {"type": "VEHICLE_STATE", "code": "UNREACHABLE", "state": "RESOLVED"}
        assert len(set(event_ids(receiver.deliveries))) == 4


async def test_an_error_may_be_without_code_and_say_itself_what_to_do(receiver: Receiver):
    async with simulating(receiver) as smartcar:
        await receiver.gets(1)
        path = f"vehicles/{smartcar.vehicles[0].id}/error"
        await smartcar.control("POST", path, {"type": "PERMISSION", "code": None, "state": "ERROR"})
        (usual,) = (await receiver.gets(2))[-1].json["data"]["errors"]
        assert (usual["code"], usual["resolution"]) == (None, {"type": "REAUTHENTICATE"})
        own = {"type": "NEW", "code": "UNHEARD_OF", "state": "ERROR", "resolution": "CONTACT_SUPPORT"}
        await smartcar.control("POST", path, own)
        (new,) = (await receiver.gets(3))[-1].json["data"]["errors"]
        assert (new["type"], new["resolution"]) == ("NEW", {"type": "CONTACT_SUPPORT"})


async def test_an_error_is_retried_like_any_event(receiver: Receiver):
    async with simulating(receiver, brands=("ford",), seed=1) as smartcar:
        await receiver.gets(1)
        receiver.receives = answers(500)
        await smartcar.control("POST", f"vehicles/{smartcar.vehicles[0].id}/error", UNREACHABLE)
        await counted(smartcar, failed=1)
        smartcar.clock.advance(seconds=25)
        first, second = [one for one in await receiver.gets(3) if one.json["eventType"] == "VEHICLE_ERROR"]
        assert first.json["eventId"] == second.json["eventId"]
        assert first.json["meta"]["deliveryId"] != second.json["meta"]["deliveryId"]


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        [],
        {"type": "VEHICLE_STATE", "code": "ASLEEP"},
        UNREACHABLE | {"state": "OVER"},
        UNREACHABLE | {"type": ""},
        UNREACHABLE | {"code": 1},
        UNREACHABLE | {"signals": "all"},
        UNREACHABLE | {"signals": [1]},
        UNREACHABLE | {"description": 1},
        UNREACHABLE | {"more": 1},
    ],
)
async def test_an_error_that_cannot_be_is_refused(receiver: Receiver, wrong):
    async with simulating(receiver) as smartcar:
        path = f"{smartcar.origin}/_control/vehicles/{smartcar.vehicles[0].id}/error"
        async with smartcar.http.post(path, json=wrong) as response:
            assert response.status == 400


async def test_an_error_of_a_vehicle_that_is_not_told_of_is_refused(receiver: Receiver, smartcar: Smartcar):
    async with simulating(receiver) as other:
        vehicle = other.vehicles[0]
        await other.control("POST", f"vehicles/{vehicle.id}/unsubscribe")
        for origin, vehicle_id, status in (
            (other.origin, vehicle.id, 409),
            (other.origin, "nobody", 404),
            (smartcar.origin, smartcar.vehicles[0].id, 409),  # it has no webhook
        ):
            path = f"{origin}/_control/vehicles/{vehicle_id}/error"
            async with other.http.post(path, json=UNREACHABLE) as response:
                assert response.status == status


# --- subscribing and verifying on demand ----------------------------------------------------------------


async def connect(smartcar: Smartcar) -> str:
    """Somebody consents; the id of the new vehicle."""
    query = {
        "response_type": "code",
        "client_id": smartcar.simulator.application_id,
        "redirect_uri": "https://example.com/",
        "make": "kia",
    }
    form = {"email": "owner@example.com", "decision": "allow", "vehicle": "1"}
    async with smartcar.http.post(
        f"{smartcar.origin}/oauth/authorize", params=query, data=form, allow_redirects=False
    ) as response:
        assert response.status == 303
    return smartcar.vehicles[-1].id


async def test_a_vehicle_that_connect_brings_is_told_at_once(receiver: Receiver):
    async with simulating(receiver) as smartcar:
        await receiver.gets(1)
        connected = await connect(smartcar)
        delivery = (await receiver.gets(2))[-1]
        assert (delivery.vehicle, delivery.is_first) == (connected, True)
        await connect(smartcar)
        await asyncio.sleep(0.05)  # time for a delivery that must not come: the subscription stands
        assert len(receiver.deliveries) == 2


async def test_without_auto_subscription_it_is_told_once_it_is_subscribed(receiver: Receiver):
    async with simulating(receiver, auto_subscribe=False) as smartcar:
        connected = await connect(smartcar)
        await counted(smartcar, verified=True)
        await asyncio.sleep(0.05)  # time for a delivery that must not come
        assert receiver.deliveries == []
        user = smartcar.vehicles[-1].user_id
        wanted = {"webhookId": smartcar.simulator.webhook_id, "userId": user, "vehicleId": connected}
        body = {"data": {"attributes": wanted}}
        assert (await smartcar.ask("POST", "/v3/subscriptions", json=body)).status == 202
        (delivery,) = await receiver.gets(1)
        assert (delivery.vehicle, delivery.is_first) == (connected, True)


async def test_the_receiver_can_be_verified_again(receiver: Receiver, smartcar: Smartcar):
    async with simulating(receiver) as verifying:
        await counted(verifying, verified=True)
        assert await verifying.control("POST", "webhooks/verify") == {"verified": True}
        receiver.verifies = knows_another_token
        assert await verifying.control("POST", "webhooks/verify") == {"verified": False}
        assert len({one.json["data"]["challenge"] for one in receiver.challenges}) == 3
        assert all(one.signature is None for one in receiver.challenges)
    async with smartcar.http.post(f"{smartcar.origin}/_control/webhooks/verify") as response:
        assert response.status == 409


# --- the next upload: laws ------------------------------------------------------------------------------

LIVES = load_lives()
lives = st.integers(0, len(LIVES) - 1)
keys = st.integers(0, 2**64 - 1)
offsets = st.floats(0, 28 * DAY)


@settings(deadline=None)
@given(st.sampled_from(CLOUDS), lives, keys, offsets, st.floats(60, 2 * DAY))
def test_the_next_upload_is_the_first_that_makes_another_one_the_newest(cloud, life, key, offset, span):
    car, after = Car(key, Track(LIVES[life], 0), cloud), NOW + offset
    expected = newer_ones(car, after, after + span)
    assert next_upload(car, after, after + span) == (expected[0] if expected else None)


def test_the_next_upload_may_be_a_late_one_of_an_earlier_run():
    (kia,) = clouds_named(["KIA"])
    slow = replace(kia, event_lag_s=(2.0, 1800.0))
    late = 0
    for key in range(20):
        car = Car(key, Track(LIVES[5], 0), slow)
        for stretch in car.life.stretches[:60]:
            after = NOW + stretch.end + 5
            expected = newer_ones(car, after, after + 3600)
            found = next_upload(car, after, after + 3600)
            assert found == (expected[0] if expected else None)
            own = found is None or found in uploads_of(car, car.run_at(found.measured_at), after + 3600)
            late += not own
    assert late > 20


@settings(deadline=None)
@given(st.sampled_from(CLOUDS), lives, keys, offsets, st.integers(0, 3))
def test_the_next_upload_after_a_command_is_foreseen(cloud, life, key, offset, order):
    foreseen, asked = (Car(key, Track(LIVES[life], 0), cloud) for _ in range(2))
    t = NOW + offset
    for car in (foreseen, asked):
        command(car, t, order)
    asked.run_at(t + 2 * DAY)
    expected = newer_ones(asked, t, t + DAY)
    assert next_upload(foreseen, t, t + DAY) == (expected[0] if expected else None)


def command(car: Car, t: float, order: int) -> None:
    if order < 2:
        car.order(t, charge=bool(order))
    else:
        car.order(t, limit=0.5 + 0.25 * (order - 2))


@settings(deadline=None)
@given(
    st.sampled_from(CLOUDS),
    lives,
    keys,
    offsets,
    st.lists(st.tuples(st.integers(0, 3), st.floats(60, 6 * 3600)), min_size=2, max_size=6),
)
def test_looking_ahead_changes_nothing_whatever_is_commanded_later(cloud, life, key, offset, orders):
    one, other = (Car(key, Track(LIVES[life], 0), cloud) for _ in range(2))
    t = NOW + offset
    for order, span in orders:
        for car in (one, other):
            command(car, t, order)
        next_upload(other, t, t + DAY)
        t += span
        assert one.snapshot(t) == other.snapshot(t)
        assert newest_upload(one, t) == newest_upload(other, t)


def test_a_car_held_at_the_cable_is_held_also_after_somebody_has_looked_ahead():
    one, other = car_of("TESLA", 4), car_of("TESLA", 4)
    charge = next(s for s in one.life.stretches if s.state is State.CHARGING and s.end - s.start > 7200)
    t = NOW + charge.start + 600
    for car in (one, other):
        car.order(t, charge=False)
    next_upload(other, t, t + 3 * DAY)
    other.run_at(t + 3 * DAY)
    for car in (one, other):
        car.order(t + 600, limit=0.95)
    assert one.run_at(t + 1200).state is State.PLUGGED
    assert other.run_at(t + 1200).state is State.PLUGGED


def test_a_command_within_a_second_of_an_event_hides_nothing():
    calm, commanded = car_of("TESLA"), car_of("TESLA")
    parked = next(
        stretch
        for stretch in calm.life.stretches
        if (stretch.before, stretch.state) == (State.DRIVING, State.PARKED)
        and stretch.end - stretch.start > 3600
    )
    arrived = NOW + parked.start
    commanded.order(arrived + 0.5, charge=False)
    upload = newest_upload(calm, arrived + 1800)
    assert upload is not None
    assert upload.measured_at > arrived
    assert newest_upload(commanded, arrived + 1800) == upload


# --- options and command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "localhost:9782", "ftp://127.0.0.1/hook", "http://", "http://[::1", "http://h:99999/"]
)
def test_a_webhook_that_is_no_url_is_refused(url):
    with pytest.raises(ValueError, match="webhook must be a URL"):
        SimulatorOptions(webhook=url)


def test_a_password_in_the_url_does_not_show():
    assert "hush" not in repr(SimulatorOptions(webhook="https://me:hush@example.net/hook"))


async def test_without_the_option_nothing_is_sent(smartcar: Smartcar):
    silent = {"verified": False, "delivered": 0, "failed": 0, "retried": 0, "duplicated": 0, "dropped": 0}
    assert (await smartcar.control("GET", "stats"))["webhooks"] == silent


async def test_the_command_takes_a_webhook_and_says_what_a_receiver_must_know(receiver: Receiver):
    command = [sys.executable, "-m", "evbatteryd.simulator", "--listen", "127.0.0.1:0", "--vehicles", "1"]
    process = await asyncio.create_subprocess_exec(
        *command, "--webhook", receiver.url, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        lines = []
        while not lines or not lines[-1].startswith("period"):
            lines.append((await process.stdout.readline()).decode())
        printed = "".join(lines)
        table = tomllib.loads(printed[printed.index("[smartcar.sim]") :])["smartcar"]["sim"]

        async def challenged() -> bool:
            return len(receiver.challenges) == 1

        await eventually(challenged)
        assert receiver.challenges[0].json["meta"]["webhookId"] == table["webhook_id"]
        assert table["management_token"]
    finally:
        process.terminate()
        assert await process.wait() == 0


async def test_the_command_refuses_a_webhook_that_is_no_url():
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "evbatteryd.simulator", "--webhook", "here", stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert "webhook must be a URL" in errors.decode()

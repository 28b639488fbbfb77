"""The main job with nothing left out: simulator, broker, a daemon that is killed, and an outside witness."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from tests.mosquitto import Witness
from tests.whole.whole import CARS, Whole, everything, in_order, readings, served


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with everything(tmp_path) as made:
        yield made


async def test_nothing_is_lost_or_invented_by_kills_of_the_daemon_and_of_the_broker(whole: Whole) -> None:
    async with Witness(whole.broker.port) as first:
        await first.until(lambda w: len(readings(w)) >= CARS + 8)
        await whole.daemon.end(signal.SIGKILL)
        await whole.daemon.start()
        await first.until(lambda w: w.on("evbatteryd/bridge/state")[-1].text == "online")
        count = len(readings(first))
        await first.until(lambda w: len(readings(w)) >= count + 5)
        await whole.broker.kill()
        before = list(first.heard)
    # The broker is away; cars go on being read.
    committed = len(whole.committed())
    async with asyncio.timeout(30):
        while len(whole.committed()) < committed + 8:  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.1)
    # Someone listens from the first message on: the outage is told through the same port.
    await whole.broker.start()
    async with Witness(whole.broker.port) as second:
        await second.until(lambda w: whole.committed()[-1] in readings(w))
        assert await whole.daemon.end(signal.SIGTERM) == 0
        await second.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        second.heard[:0] = before
        told = readings(second)
        states = [m.json for m in second.heard if m.topic.endswith("/state") and m.payload.startswith(b"{")]
    assert in_order(told)
    assert set(told) == set(whole.committed())
    assert any(state["replayed"] for state in states)
    for state in states:
        assert state["measured_at"] is None or state["measured_at"] <= state["fetched_at"]
        assert state["fetched_at"] <= state["published_at"]
    stats = await whole.control.stats()
    assert whole.spent() >= served(stats) > 0
    assert stats["most_in_flight"] == 1


async def test_whatever_smartcar_answers_every_car_goes_on(whole: Whole) -> None:
    await whole.until_all(lambda car: car["soc"] is not None)
    for fault in ("html", "malformed", "truncated", "huge", "redirect", "empty", "reset", "wrong_types"):
        await whole.control.fault(fault, rate=0.5)
    for fault in ("SERVER:INTERNAL", "UPSTREAM:RATE_LIMIT", "VEHICLE_STATE:ASLEEP", "RATE_LIMIT:VEHICLE"):
        await whole.control.fault(fault, rate=0.2)
    async with asyncio.timeout(40):
        while len({car["last_outcome"] for car in await whole.vehicles()}) < 3:  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.1)
    await whole.control.clear()
    cars = await whole.until_all(lambda car: car["trouble"] is None)
    truth = {t["model"]: t for t in (await whole.control.truth()).values()}
    assert len(cars) == CARS
    assert truth
    assert await whole.daemon.end(signal.SIGTERM) == 0
    assert "poll.bug" not in whole.events()
    assert "vehicle.withdrawn" not in whole.events()


async def test_what_is_told_is_what_the_cloud_had(whole: Whole) -> None:
    async with Witness(whole.broker.port) as witness:
        await whole.until_all(lambda car: car["soc"] is not None)
        await witness.until(lambda w: len(readings(w)) >= CARS + 5)
        cloud = {
            (truth["upload"]["measured_at"], truth["upload"]["soc_percent"])
            for truth in (await whole.control.truth()).values()
        }
        told = {
            (_ms(m.json["measured_at"]), m.json["soc"])
            for m in witness.heard
            if m.topic.endswith("/state") and m.payload.startswith(b"{") and m.json["measured_at"]
        }
    # Most cars are parked: what the cloud has now is what it had when they were read.
    assert len(cloud & told) >= CARS // 2


async def test_consent_comes_and_goes(whole: Whole) -> None:
    await whole.until_all(lambda car: car["soc"] is not None)
    vehicle = next(iter(await whole.control.truth()))
    await whole.control.change(vehicle, "withdraw")
    async with asyncio.timeout(30):
        while "vehicle.withdrawn" not in whole.events():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.1)
    await whole.control.change(vehicle, "consent")
    async with asyncio.timeout(30):
        while "vehicle.consented_anew" not in whole.events():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.1)
    await whole.until_all(lambda car: car["soc"] is not None)
    assert len(await whole.vehicles()) == CARS


async def test_sigterm_ends_it_although_smartcar_hangs(whole: Whole) -> None:
    await whole.until_all(lambda car: car["soc"] is not None)
    await whole.control.fault("hang")

    async def hanging() -> float:
        async with aiohttp.ClientSession() as session, session.get(f"{whole.daemon.url}/metrics") as answer:
            return _metric(await answer.text(), "evbatteryd_polls_in_flight")

    async with asyncio.timeout(30):
        while await hanging() == 0:  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.05)
    assert await whole.daemon.end(signal.SIGTERM) == 0
    assert "evbatteryd.stopped" in whole.events()


def _metric(text: str, name: str) -> float:
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


def _ms(instant: object) -> int:
    return round(datetime.fromisoformat(str(instant)).timestamp() * 1000)

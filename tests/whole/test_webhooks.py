"""Webhooks as Smartcar sends them: repeated, in disorder, forged; and a daemon that is killed meanwhile."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from tests.mosquitto import Witness
from tests.whole.whole import Whole, everything, in_order, readings

CARS = 12


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    # Polls are so rare that what is heard was pushed; at this speed Smartcar's patience is real.
    async with everything(
        tmp_path, speed=300.0, vehicles=CARS, webhook=True, auto_subscribe=False, pace="30d"
    ) as made:
        yield made


def events(whole: Whole) -> set[str]:
    """Deliveries that are committed. In time-lapse their notes are deleted while a test looks on."""
    with closing(sqlite3.connect(whole.folder / "evbatteryd.db")) as db:
        return {event for (event,) in db.execute("SELECT event_id FROM webhook_event")}


async def delivered(whole: Whole, count: int, seen: set[str]) -> dict[str, int]:
    """Wait until Smartcar has had its 2xx for so many events; note in ``seen`` which are committed."""
    async with asyncio.timeout(60):
        while True:
            seen |= events(whole)
            stats = (await whole.control.stats())["webhooks"]
            if stats["delivered"] >= count:
                return stats
            await asyncio.sleep(0.1)


async def test_every_delivery_that_was_acknowledged_is_committed_and_told_once(whole: Whole) -> None:
    async with Witness(whole.broker.port) as witness:
        # Subscribed by the daemon, told by Smartcar.
        await whole.until_all(lambda car: car["pushed_at"] is not None)
        await whole.control.conduct(duplicate=2, shuffle_s=40, wrong_signature=0.2)
        seen: set[str] = set()
        begun = (await whole.control.stats())["webhooks"]["delivered"]
        await delivered(whole, begun + CARS, seen)
        await whole.daemon.end(signal.SIGKILL)
        await whole.daemon.start()
        stats = await delivered(whole, begun + 2 * CARS, seen)
        assert stats["duplicated"] > 0
        assert stats["failed"] > 0, "forged ones, and those that met nobody"
        await whole.control.conduct(paused=True)
        final = (await whole.control.stats())["webhooks"]["delivered"]
        seen |= events(whole)
        assert len(seen) >= final, "of an event that was acknowledged nothing is missing"
        assert await whole.daemon.end(signal.SIGTERM) == 0
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")
        told = readings(witness)
    assert in_order(told)
    assert set(told) == set(whole.committed())
    with closing(sqlite3.connect(whole.folder / "evbatteryd.db")) as db:
        twice = """SELECT vehicle_id, measured_ms, soc, times, range_km, charging, odometer_km, count(*)
            FROM reading GROUP BY 1, 2, 3, 4, 5, 6, 7 HAVING count(*) > 1"""
        assert db.execute(twice).fetchall() == [], "no reading was written twice"


async def metric(whole: Whole, outcome: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{whole.daemon.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = [line for line in lines if "evbatteryd_webhooks_total" in line and f'outcome="{outcome}"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found)


async def test_forged_deliveries_change_nothing_and_are_counted(whole: Whole) -> None:
    await whole.until_all(lambda car: car["pushed_at"] is not None)
    for how in ({"wrong_signature": 1.0}, {"reserialised": True}, {"unsigned": True}):
        await whole.control.conduct(
            **{"wrong_signature": 0.0, "reserialised": False, "unsigned": False, **how}
        )
        before = await metric(whole, "wrong_signature") + await metric(whole, "unsigned")
        async with asyncio.timeout(60):
            while await metric(whole, "wrong_signature") + await metric(whole, "unsigned") < before + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    committed = events(whole)
    await asyncio.sleep(0.5)
    assert events(whole) == committed
    log = whole.daemon.log.read_text()
    assert log.count("webhook.refused") <= 2 + 2 * 4, "said once an hour of each kind, not once a delivery"


async def test_trouble_is_shown_and_ends(whole: Whole) -> None:
    await whole.until_all(lambda car: car["pushed_at"] is not None)
    vehicle = next(iter(await whole.control.truth()))
    await whole.control.conduct(paused=False)
    for state, expected in (("ERROR", "VEHICLE_STATE:ASLEEP"), ("RESOLVED", None)):
        await whole.control.report(vehicle, type="VEHICLE_STATE", code="ASLEEP", state=state)
        async with asyncio.timeout(30):
            while True:
                troubles = [car["trouble"] for car in await whole.vehicles()]
                codes = {trouble["code"] for trouble in troubles if trouble}
                if (codes == {expected}) if expected else not codes:
                    break
                await asyncio.sleep(0.1)

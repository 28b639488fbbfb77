"""Every car is subscribed once for each consent, and one that cannot be holds up no other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from evbatteryd.domain import errors
from evbatteryd.flow.subscriber import Subscriber
from tests.fakes import START, settle, until
from tests.flow.world import RENAULT, World, consent, world


@asynccontextmanager
async def subscribing(w: World) -> AsyncIterator[Subscriber]:
    subscriber = Subscriber("home", "hook", w.source, w.purse, w.cars, w.clock, w.log)
    w.cars.listen(lambda car, _: subscriber.follow(car))
    running = asyncio.create_task(subscriber.run())
    try:
        yield subscriber
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def hours_pass(w: World, hours: int) -> None:
    """Time, with room for the store, which is a thread of its own."""
    for _ in range(6 * hours):
        await w.clock.advance(timedelta(minutes=10))
        await asyncio.sleep(0.005)
    await settle()


def calls(w: World) -> float | None:
    return w.metrics._registry.get_sample_value("evbatteryd_calls_total", {"application": "home"})


async def test_each_car_once_for_each_consent_also_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        async with subscribing(w):
            await until(lambda: len(w.source.subscribed) == 2)
            w.source.consent_list.append(consent(3))
            await w.roster.sync(w.purse.ticket(None))
            await until(lambda: len(w.source.subscribed) == 3)
            await until(lambda: all(car.vehicle.subscription for car in w.fleet))
        assert [car.vehicle.subscription for car in await w.store.cars()] == ["hook c1", "hook c2", "hook c3"]
        async with subscribing(w):
            await settle()
            w.source.consent_list[0] = consent(1, connection="anew")
            await w.roster.sync(w.purse.ticket(None))
            await until(lambda: len(w.source.subscribed) == 4)
        assert w.source.subscribed == [("v1", "hook"), ("v2", "hook"), ("v3", "hook"), ("v1", "hook")]


async def test_a_car_subscribed_before_its_first_reading_is_asked_soon(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        (car,) = w.fleet
        w.source.failing(errors.NothingYet("RESOURCE_NOT_FOUND", "not subscribed"))
        for _ in range(4):
            await w.poll_when_due(w.fleet[car.id])
        assert w.fleet[car.id].schedule.due - w.clock.now() > timedelta(hours=1)
        await w.clock.advance(RENAULT.floor)
        async with subscribing(w):
            await until(lambda: w.fleet[car.id].vehicle.subscription is not None)
        assert w.fleet[car.id].schedule.due == w.clock.now() + timedelta(minutes=1)


async def test_one_that_cannot_be_is_left_for_a_day_and_holds_up_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        w.source.subscribe_errors["v1"] = errors.NotCapable("COMPATIBILITY", "not this one")
        async with subscribing(w):
            await until(lambda: w.source.subscribed == [("v2", "hook")])
            await until(lambda: len(w.said("webhook.not_subscribed")) == 1)
            await w.clock.advance(timedelta(hours=1))
            w.source.subscribe_errors.clear()
            w.source.consent_list.append(consent(3))
            await w.roster.sync(w.purse.ticket(None))
            await until(lambda: ("v3", "hook") in w.source.subscribed)
            assert ("v1", "hook") not in w.source.subscribed


async def test_while_smartcar_is_away_it_waits_and_goes_on_by_itself(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(n) for n in range(1, 6)]
        await w.roster.sync(w.purse.ticket(None))
        away = errors.Unreachable("HTTP_503", "Smartcar failed")
        w.source.subscribe_errors = {f"v{n}": away for n in range(1, 6)}
        async with subscribing(w):
            # The list, and three cars in a row.
            await until(lambda: calls(w) == 1 + 3)
            await settle()
            assert calls(w) == 1 + 3
            assert len(w.said("webhook.not_subscribed")) == 1
            assert w.clock.now() == START
            w.source.subscribe_errors.clear()
            await hours_pass(w, 3)
            await until(lambda: len(w.source.subscribed) == 5)


async def test_one_for_which_smartcar_fails_holds_up_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        w.source.subscribe_errors["v1"] = errors.Unreachable("HTTP_500", "failed on this one")
        async with subscribing(w):
            await until(lambda: w.source.subscribed == [("v2", "hook")])
            w.source.subscribe_errors.clear()
            await hours_pass(w, 3)
            await until(lambda: len(w.source.subscribed) == 2)


async def test_who_does_not_consent_is_not_subscribed(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        w.source.consent_list = []
        await w.roster.sync(w.purse.ticket(None))
        async with subscribing(w):
            await settle()
            await w.clock.advance(timedelta(hours=1))
        assert w.source.subscribed == []

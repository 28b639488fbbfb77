"""The walk over the fleet: whose cars count, that nobody waits for it, and what the metrics say."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Budget, Share, window
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.forecaster import CARS_PER_SLICE, EVERY, Forecaster
from evbatteryd.sinks.prometheus import Metrics
from tests import builders
from tests.fakes import VirtualClock, settle

NOON = builders.NOON


class Book:
    """A ledger that a test writes."""

    def __init__(self, **budget: object) -> None:
        self.budget = Budget(**budget)
        self.tokens = 100.0
        self.calls: dict[VehicleId, int] = {}

    def share(self, vehicle_id: VehicleId | None) -> Share:
        period = window(self.budget, NOON)
        calls = self.budget.calls_per_vehicle
        return Share(
            calls_left=calls,
            calls=calls,
            began_at=period.start,
            renews_at=period.end,
            application_interval=timedelta(minutes=1),
            pool_spent=sum(self.calls.values()) if self.budget.pooled else None,
        )

    def spent(self, vehicle_id: VehicleId) -> int:
        return self.calls.get(vehicle_id, 0)


def polled(number: int, *, application: str = "home") -> Car:
    state = builders.state(soc=50)
    return builders.car(number, state=state, due=NOON + timedelta(hours=1), application=application)


def price_of(car: Car) -> float:
    return 1000.0 * car.id


async def test_each_application_has_its_own_cars() -> None:
    home, away = Book(), Book(calls_per_vehicle=100)
    home.calls = {VehicleId(1): 100, VehicleId(2): 200, VehicleId(4): 1}
    gone = builders.car(4, withdrawn_at=NOON)
    fleet = builders.fleet(polled(1), polled(2), polled(3, application="away"), gone)
    ledgers = {"home": home, "away": away}
    forecaster = Forecaster(fleet, ledgers, VirtualClock(NOON), Metrics(), price_of=price_of)
    assert set(forecaster.applications) == {"home", "away"}
    found = await forecaster.forecast("home")
    assert (found.cars, found.spent, found.plan, found.price) == (2, 300, 1000, 1500)
    assert found.expected == round(300 * 30 / 21.5)
    rows = [row async for some in forecaster.cars(found) for row in some]
    assert [(car.id, its.spent, its.price) for car, its in rows] == [(1, 100, 1000), (2, 200, 2000)]
    assert (await forecaster.forecast("away", 50)).other_calls == 50


async def test_a_large_fleet_keeps_nobody_waiting() -> None:
    fleet = builders.fleet(*(polled(number) for number in range(1, 10 * CARS_PER_SLICE + 1)))
    forecaster = Forecaster(fleet, {"home": Book()}, VirtualClock(NOON), Metrics(), price_of=price_of)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    alive = asyncio.create_task(others())
    found = await forecaster.forecast("home")
    assert found.cars == 10 * CARS_PER_SLICE
    assert turns >= 10
    turns = 0
    assert max([len(some) async for some in forecaster.cars(found)]) == CARS_PER_SLICE
    assert turns >= 10
    alive.cancel()


def told(metrics: Metrics) -> dict[str, float]:
    lines = b"".join(metrics.families()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if 'application="home"' in line)
    return {name.partition("{")[0]: float(value) for name, value in pairs}


async def test_the_metrics_follow() -> None:
    book, clock, metrics = Book(), VirtualClock(NOON), Metrics()
    book.calls[VehicleId(1)] = 215
    fleet = builders.fleet(polled(1))
    price = 1500.0
    forecaster = Forecaster(fleet, {"home": book}, clock, metrics, price_of=lambda _: price)
    running = asyncio.create_task(forecaster.run())
    await settle()
    assert told(metrics) == {
        "evbatteryd_calls_forecast": 300,
        "evbatteryd_poll_interval_expected_seconds": pytest.approx(8640),
        "evbatteryd_period_ends_timestamp_seconds": window(book.budget, NOON).end.timestamp(),
        "evbatteryd_call_price_percent_seconds": 1500,
    }
    fleet.put(replace(polled(1), schedule=replace(polled(1).schedule, due=None)))
    price = 0.0
    await clock.advance(EVERY - timedelta(seconds=1))
    assert told(metrics)["evbatteryd_calls_forecast"] == 300
    await clock.advance(timedelta(seconds=1))
    gone = told(metrics)
    assert set(gone) == {"evbatteryd_calls_forecast", "evbatteryd_period_ends_timestamp_seconds"}
    assert gone["evbatteryd_calls_forecast"] == 0, "no car is asked"
    running.cancel()

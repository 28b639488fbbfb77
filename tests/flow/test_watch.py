"""A value stops being fresh, an estimate moves or ends, each at its instant, and somebody is told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.freshness import Freshness, told_again_every
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.policy.outlook import Trend
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.flow.watch import FreshnessWatch
from tests.builders import NOON, car, fleet, state
from tests.fakes import VirtualClock, settle
from tests.flow.world import World, world

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


def measured_alone(w: World, known: Car) -> Car:
    """The car without an estimate, which is told at moments of its own."""
    w.fleet.put(replace(known, trend=None))
    return w.fleet[known.id]


async def test_the_end_of_freshness_rings_once_at_its_instant(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        flipped: list[Car] = []
        watch = FreshnessWatch(w.fleet, w.clock, flipped.append)
        car = measured_alone(w, *await w.poll(*await w.enrol(1)))
        watch.follow(car)
        until = w.fleet.fresh_until(car)
        assert until is not None
        await w.clock.advance(until - w.clock.now() - timedelta(seconds=1))
        watch.ring()
        assert flipped == []
        assert w.fleet.freshness(car, w.clock.now()) is Freshness.FRESH
        await w.clock.advance(timedelta(seconds=1))
        watch.ring()
        watch.ring()
        assert flipped == [car]
        assert w.fleet.freshness(car, w.clock.now()) is Freshness.STALE


async def test_a_new_measurement_puts_it_off(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        flipped: list[Car] = []
        watch = FreshnessWatch(w.fleet, w.clock, flipped.append)
        car = measured_alone(w, *await w.poll(*await w.enrol(1)))
        watch.follow(car)
        until = w.fleet.fresh_until(car)
        assert until is not None
        w.source.soc = 60
        watch.follow(measured_alone(w, await w.poll_when_due(car)))
        await w.clock.advance(until - w.clock.now())
        watch.ring()
        assert flipped == []


async def test_a_whole_fleet_that_goes_stale_at_once_is_told_in_one_go(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=2000)) as w:
        flipped: list[Car] = []
        watch = FreshnessWatch(w.fleet, w.clock, flipped.append)
        for car in await w.poll(*await w.enrol(600)):
            watch.follow(car)
        await w.clock.advance(timedelta(days=1))
        watch.ring()
        await settle()
        assert len(flipped) == 600


# Estimates


async def test_a_charging_car_is_told_at_each_point_until_nothing_is_claimed() -> None:
    told: list[tuple[float, int]] = []
    clock = VirtualClock(NOON)
    cars = fleet()

    def tell(car: Car) -> None:
        told.append(((clock.now() - NOON) / MINUTE, car.id))
        watch.follow(car)

    watch = FreshnessWatch(cars, clock, tell)
    for number, per_hour in ((1, 10.0), (2, 0.0)):
        trend = Trend(57.0, NOON, per_hour, 60.0, NOON + 25 * MINUTE)
        cars.put(replace(car(number, state=state(soc=57, charging=per_hour > 0)), trend=trend))
        watch.follow(cars[VehicleId(number)])
    for _ in range(30 * 6):
        await clock.advance(timedelta(seconds=10))
        watch.ring()
    assert told == [(6, 1), (12, 1), (18, 1), (25, 1), (25, 2)]


async def test_an_overdue_car_is_told_every_hour_until_nothing_is_claimed() -> None:
    told: list[float] = []
    clock = VirtualClock(NOON)
    parked = car(1, state=state(soc=57, measured_at=NOON - 3 * HOUR), due=NOON + HOUR)
    cars = fleet(replace(parked, trend=Trend(57.0, NOON, 0.0, 57.0, NOON + 4 * HOUR)))

    def tell(car: Car) -> None:
        told.append((clock.now() - NOON) / MINUTE)
        watch.follow(car)

    watch = FreshnessWatch(cars, clock, tell)
    watch.follow(cars[VehicleId(1)])
    for _ in range(6 * 60):
        await clock.advance(MINUTE)
        watch.ring()
    assert told == [70, 130, 190, 240]


async def test_a_withdrawn_car_is_not_told_and_one_without_consent_is() -> None:
    told: list[Car] = []
    clock = VirtualClock(NOON)
    expecting = replace(car(1, state=state(soc=57)), trend=Trend(57.0, NOON, 0.0, 57.0, NOON + 25 * MINUTE))
    gone = replace(car(2, withdrawn_at=NOON), trend=expecting.trend)
    lost = replace(expecting, trouble=Trouble("consent_lost", "CONSENT", "withdrawn in the app", NOON))
    cars = fleet(lost, gone)
    watch = FreshnessWatch(cars, clock, told.append)
    watch.follow(lost)
    watch.follow(gone)
    await clock.advance(25 * MINUTE)
    watch.ring()
    assert told == [lost]


async def test_what_is_heard_of_a_car_puts_its_estimate_off() -> None:
    told: list[Car] = []
    clock = VirtualClock(NOON)
    charging = replace(
        car(1, state=state(soc=57, charging=True)), trend=Trend(57.0, NOON, 10.0, 80.0, NOON + 4 * HOUR)
    )
    watch = FreshnessWatch(fleet(charging), clock, told.append)
    watch.follow(charging)
    watch.follow(replace(charging, trend=None, state=state(soc=58)))
    await clock.advance(30 * MINUTE)
    watch.ring()
    assert told == []


async def test_what_stays_fresh_for_long_is_told_now_and_then(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        flipped: list[Car] = []
        watch = FreshnessWatch(w.fleet, w.clock, flipped.append)
        (known,) = await w.poll(*await w.enrol(1))
        every, fetched = told_again_every(w.fleet.profile(known)), known.state.fetched_at
        assert fetched is not None
        quiet = Trend(60.0, fetched, 0.0, 60.0, NOON, sure_until=fetched + 3.5 * every)
        w.fleet.put(replace(known, trend=quiet))
        rang = []
        watch.follow(w.fleet[known.id])
        for _ in range(4):
            while not flipped:
                await w.clock.advance(MINUTE)
                watch.ring()
            flipped.clear()
            rang.append(w.clock.now() - fetched)
            watch.follow(w.fleet[known.id])
        freshness = w.fleet.fresh_until(w.fleet[known.id])
        assert freshness is not None
        at = [every, 2 * every, 3 * every, freshness - fetched]
        assert all(timedelta() <= heard - meant <= MINUTE for heard, meant in zip(rang, at, strict=True))

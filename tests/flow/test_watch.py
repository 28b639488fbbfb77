"""A value stops being fresh at its instant, and somebody is told."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ledger import Budget
from evbatteryd.flow.watch import FreshnessWatch
from tests.fakes import settle
from tests.flow.world import world


async def test_the_end_of_freshness_rings_once_at_its_instant(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        flipped: list[Car] = []
        watch = FreshnessWatch(w.fleet, w.clock, flipped.append)
        (car,) = await w.poll(*await w.enrol(1))
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
        (car,) = await w.poll(*await w.enrol(1))
        watch.follow(car)
        until = w.fleet.fresh_until(car)
        assert until is not None
        w.source.soc = 60
        watch.follow(await w.poll_when_due(car))
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

"""No call without the ledger, the plan and the bucket: durable before it is sent."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain.errors import ApplicationRateLimited, BudgetSpent, StoreError
from evbatteryd.domain.ledger import Budget, Period
from evbatteryd.domain.vehicle import VehicleId
from tests.fakes import START, until
from tests.flow.world import world

CAR = VehicleId(1)


async def test_the_bucket_lets_a_burst_through_and_then_its_refill(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=5, refill_per_minute=2)) as w:
        spent = 0

        async def spend() -> None:
            nonlocal spent
            await w.purse.ticket(None).spend()
            spent += 1

        spending = [asyncio.create_task(spend()) for _ in range(10)]
        await until(lambda: spent == 4)  # one token is kept: Smartcar's bucket may lag ours a little
        for expected in (5, 6, 7):
            await w.clock.advance(timedelta(seconds=30, milliseconds=5))
            await until(lambda expected=expected: spent == expected)
        await w.clock.advance(timedelta(hours=1))
        await asyncio.gather(*spending)


async def test_a_bucket_survives_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=5)) as w:
        for _ in range(4):
            await w.purse.ticket(None).spend()
        clock = w.clock
    async with world(tmp_path, Budget(bucket=5), clock=clock) as again:
        ticket = asyncio.create_task(again.purse.ticket(None).spend())
        await clock.advance(timedelta(seconds=20))
        assert not ticket.done()
        await clock.advance(timedelta(seconds=20))
        await ticket


async def test_the_plan_of_a_car_ends_and_turns_with_its_period(tmp_path: Path) -> None:
    budget = Budget(calls_per_vehicle=3, period=Period.DAY)
    async with world(tmp_path, budget) as w:
        await w.enrol(2)
        for _ in range(3):
            await w.purse.ticket(CAR).spend()
        with pytest.raises(BudgetSpent):
            await w.purse.ticket(CAR).spend()
        await w.purse.ticket(VehicleId(2)).spend()  # another car's plan is its own
        await w.clock.advance(timedelta(hours=12))
        await w.purse.ticket(CAR).spend()


async def test_a_pooled_plan_is_everybodys(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=2, pooled=True)) as w:
        await w.enrol(2)
        for _ in range(4):
            await w.purse.ticket(CAR).spend()
        with pytest.raises(BudgetSpent):
            await w.purse.ticket(VehicleId(2)).spend()


async def test_two_polls_at_once_do_not_both_find_the_last_call(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=1)) as w:
        await w.enrol(1)
        results = await asyncio.gather(
            *(w.purse.ticket(CAR).spend() for _ in range(5)), return_exceptions=True
        )
        assert sum(result is None for result in results) == 1


async def test_a_refused_call_gives_its_prepaid_token_back(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=1, bucket=3)) as w:
        await w.enrol(1)
        await w.purse.ticket(CAR).spend()
        for _ in range(5):
            await w.purse.token()
            with pytest.raises(BudgetSpent):
                await w.purse.ticket(CAR, prepaid=True).spend()


async def test_the_ledger_is_durable_before_the_ticket_lets_go(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.enrol(1)
        await w.purse.ticket(CAR).spend()
        assert (await w.store.account("home", START.replace(day=1, hour=0))).spent == {CAR: 1}


async def test_the_share_of_the_bucket_grows_thin_with_the_fleet(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(refill_per_minute=2)) as w:
        w.purse.cars = 100
        assert w.purse.share(CAR).application_interval == timedelta(minutes=50)


async def test_a_closed_application_asks_nobody_and_stays_closed_as_long_as_was_told(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.enrol(1)
        prepaid = w.purse.ticket(CAR, prepaid=True)
        await w.purse.close(timedelta(minutes=30))
        await w.purse.close(timedelta(minutes=10))
        with pytest.raises(ApplicationRateLimited) as told:
            await prepaid.spend()
        assert told.value.retry_after == timedelta(minutes=30)
        assert w.purse.share(CAR).calls_left == 500
        clock = w.clock
    async with world(tmp_path, clock=clock) as again:
        # The bucket was empty, and a restart fills none.
        ticket = asyncio.create_task(again.purse.ticket(None).spend())
        await clock.advance(timedelta(seconds=30))
        assert not ticket.done()
        await clock.advance(timedelta(minutes=1))
        await ticket


async def test_a_clock_set_back_neither_keeps_an_application_closed_nor_brings_calls_back(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=2, period=Period.DAY)) as w:
        await w.enrol(1)
        await w.clock.advance(timedelta(hours=12))
        await w.purse.ticket(CAR).spend()
        await w.purse.close(timedelta(minutes=5))
        w.clock._now -= timedelta(hours=6)
        assert w.purse.closed_for <= timedelta(minutes=5)
        assert w.purse.share(CAR).calls_left == 1


async def test_a_call_that_cannot_be_noted_is_not_counted(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=1, bucket=2)) as w:
        await w.enrol(1)
        w.store.full = {"reserve"}
        for _ in range(5):
            with pytest.raises(StoreError):
                await w.purse.ticket(CAR).spend()
        w.store.full = set()
        await w.purse.ticket(CAR).spend()


async def test_the_last_calls_of_a_pool_are_whoevers_comes_first(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(calls_per_vehicle=1, pooled=True)) as w:
        await w.enrol(3)
        await w.purse.ticket(CAR).spend()
        await w.purse.ticket(CAR).spend()
        assert w.purse.share(VehicleId(2)).calls_left == 1

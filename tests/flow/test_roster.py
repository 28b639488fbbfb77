"""Cars come and go with their owners' consent, and with nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain import errors
from evbatteryd.domain.ledger import Budget
from evbatteryd.domain.ports import Ticket
from evbatteryd.domain.vehicle import Consent
from tests.fakes import START, until
from tests.flow.world import RENAULT, consent, world


async def test_a_new_consent_is_a_new_car_asked_within_seconds(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2), consent(3, "LAND ROVER")]
        await w.roster.sync(w.purse.ticket(None))
        assert [car.slug for car in w.fleet] == ["renault_megane", "renault_megane_2", "land_rover_megane"]
        assert [car.vehicle.name for car in w.fleet][2] == "Land Rover Megane"
        assert all(car.schedule.due - START <= timedelta(seconds=10) for car in w.fleet if car.schedule.due)
        assert w.purse.cars == 3
        await w.roster.sync(w.purse.ticket(None))
        assert len(w.fleet) == 3


async def test_a_withdrawn_consent_ends_the_polls_and_a_new_one_revives_the_same_car(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        gone = w.fleet.by_slug("renault_megane")
        assert gone is not None
        w.source.consent_list = [consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        after = w.fleet[gone.id]
        assert after.vehicle.withdrawn_at == START
        assert after.schedule.due is None
        assert not after.consented
        await w.poll(after)
        assert w.source.asked == []
        assert w.purse.cars == 1
        await w.roster.sync(w.purse.ticket(None))
        assert len(w.said("vehicle.withdrawn")) == 1

        w.source.consent_list = [consent(1, connection="c9"), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        revived = w.fleet[gone.id]
        assert revived.slug == "renault_megane"
        assert revived.consented
        assert revived.schedule.due is not None
        assert len(w.fleet) == 2
        assert [car.vehicle for car in await w.store.cars()] == [car.vehicle for car in w.fleet]


async def test_a_car_that_lost_its_consent_is_asked_again_once_the_owner_consented_anew(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        (car,) = w.fleet
        w.source.failing(errors.ConsentLost("PERMISSION", "gone"))
        await w.poll(car)
        await w.roster.sync(w.purse.ticket(None))  # the same connection is still listed: nothing has changed
        assert w.fleet[car.id].schedule.due is None
        w.source.consent_list = [consent(1, connection="c9")]
        await w.roster.sync(w.purse.ticket(None))
        assert w.fleet[car.id].trouble is None
        w.source.answer = w.source.parked
        (after,) = await w.poll(w.fleet[car.id])
        assert after.state.soc_percent == 50


async def test_a_car_missing_from_a_shifting_list_is_asked_for_before_it_is_taken_for_gone(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        w.source.unlisted = {"v1"}
        await w.roster.sync(w.purse.ticket(None))
        assert all(car.consented for car in w.fleet)


@pytest.mark.parametrize(
    "error",
    [
        errors.Unreachable("HTTP_500", "down"),
        errors.Unreadable("WRONG_SHAPE", "odd"),
        errors.ApplicationRefused("INVALID_CLIENT", "refused"),
    ],
)
async def test_a_list_that_breaks_off_takes_nobodys_consent(
    tmp_path: Path, error: errors.SourceError
) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1), consent(2)]
        await w.roster.sync(w.purse.ticket(None))
        w.source.list_error = error
        with pytest.raises(type(error)):
            await w.roster.sync(w.purse.ticket(None))
        assert all(car.consented for car in w.fleet)


async def test_the_list_is_read_again_by_itself_and_trouble_is_said_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.list_error = errors.Unreachable("HTTP_500", "down")
        running = asyncio.create_task(w.roster.run())
        await until(lambda: len(w.said("consents.unreadable")) == 1)
        for _ in range(5):
            await w.clock.advance(timedelta(minutes=15))
        w.source.list_error = None
        w.source.consent_list = [consent(1)]
        for _ in range(10):
            await w.clock.advance(timedelta(minutes=15))
            await asyncio.sleep(0.01)
        await until(lambda: len(w.fleet) == 1)
        assert len(w.said("consents.unreadable")) == 1
        assert len(w.said("consents.readable")) == 1
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_reading_the_list_costs_the_bucket_but_no_cars_plan(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        account = await w.store.account("home", START.replace(day=1, hour=0))
        assert (account.overhead, dict(account.spent)) == (1, {})
        assert account.bucket is not None
        assert account.bucket.level == 119


async def test_a_bug_in_the_list_ends_no_process(tmp_path: Path) -> None:
    async with world(tmp_path) as w:

        async def broken(ticket: Ticket) -> AsyncIterator[Consent]:
            raise ZeroDivisionError
            yield

        w.source.consents = broken
        pause = await w.roster._sync()
        assert timedelta() < pause <= timedelta(minutes=15)
        assert len(w.said("consents.bug")) == 1


async def test_a_consent_given_anew_does_not_outrun_the_floor(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        (car,) = w.fleet
        await w.poll(car)
        w.source.consent_list = [consent(1, connection="c9")]
        await w.roster.sync(w.purse.ticket(None))
        assert w.fleet[car.id].schedule.due == START + RENAULT.floor


async def test_a_make_learnt_later_changes_the_brand(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.consent_list = [consent(1, "UNKNOWN")]
        await w.roster.sync(w.purse.ticket(None))
        w.source.consent_list = [consent(1, "RENAULT")]
        await w.roster.sync(w.purse.ticket(None))
        (car,) = w.fleet
        assert car.vehicle.brand == "renault"
        assert len(w.timer) == 1


async def test_a_long_list_takes_a_tenth_of_the_requests_at_most(tmp_path: Path) -> None:
    async with world(tmp_path, Budget(bucket=1000, refill_per_minute=2)) as w:

        async def long(ticket: Ticket) -> AsyncIterator[Consent]:
            for _ in range(100):
                await ticket.spend()
            for listed in ():
                yield listed

        w.source.consents = long
        assert await w.roster._sync() == timedelta(minutes=500)


async def test_what_troubles_the_list_can_be_asked_for(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.source.list_error = errors.ApplicationRefused("INVALID_CLIENT", "Smartcar refuses the secret")
        await w.roster._sync()
        assert w.roster.trouble == "application home: Smartcar refuses the secret (INVALID_CLIENT)"
        (said,) = w.said("application.refused")
        assert said["level"] == "error"
        w.source.list_error = None
        await w.roster._sync()
        assert w.roster.trouble == ""

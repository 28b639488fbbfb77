"""Whoever has just consented sees their car at once, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from evbatteryd.domain import errors
from evbatteryd.domain.enrolment import Ending, Enrolment
from evbatteryd.domain.ports import Ticket
from evbatteryd.domain.vehicle import Consent
from evbatteryd.flow.welcome import Welcome
from tests.fakes import START, settle, until
from tests.flow.world import World, consent, world


async def consented(w: World, user: str, invited: str | None = None) -> Enrolment:
    """Somebody came back from Connect."""
    invitation = None
    if invited is not None:
        invitation = await w.store.invite(
            name=invited,
            application="home",
            token=invited.encode(),
            created_at=START,
            expires_at=START + timedelta(days=1),
        )
    begun = await w.store.begin(
        application="home",
        state=user.encode(),
        browser=b"b",
        invitation=None if invitation is None else invitation.id,
        begun_at=w.clock.now(),
        expires_at=w.clock.now() + timedelta(hours=1),
    )
    ended = await w.store.end(begun.id, ending=Ending.CONSENTED, user_ref=user, at=w.clock.now())
    assert ended is not None
    return ended


@asynccontextmanager
async def welcoming(w: World) -> AsyncIterator[Welcome]:
    welcome = Welcome("home", w.roster, w.source, w.purse, w.cars, w.store, w.clock, w.log)
    running = asyncio.create_task(welcome.run())
    try:
        yield welcome
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_the_cars_of_a_new_user_appear_at_once_and_are_asked_within_seconds(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(1), consent(2)]
        welcome.add(await consented(w, "u1", invited="Anna"))
        await until(lambda: len(w.fleet) == 1)
        (car,) = w.fleet
        assert car.vehicle.invited == "Anna"
        assert car.schedule.due <= START + timedelta(seconds=10)
        assert w.purse.cars == 1
        await until_arrived(w)
        await w.roster.sync(w.purse.ticket(None))
        assert [car.vehicle.invited for car in w.fleet] == ["Anna", None]


async def until_arrived(w: World) -> None:
    async with asyncio.timeout(10):
        while await w.store.awaited():
            await settle()


async def test_what_fails_is_tried_again_and_said_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.list_error = errors.Unreachable("HTTP_503", "Smartcar failed")
        welcome.add(await consented(w, "u1"))
        await until(lambda: bool(w.said("enrolment.waiting")))
        for _ in range(5):
            await w.clock.advance(timedelta(minutes=1))
        assert len(w.said("enrolment.waiting")) == 1
        assert len(await w.store.awaited()) == 1
        w.source.list_error = None
        w.source.consent_list = [consent(1)]
        for _ in range(3):
            await w.clock.advance(timedelta(minutes=5))
            await asyncio.sleep(0.01)
        await until(lambda: len(w.fleet) == 1)
        await until_arrived(w)


async def test_one_who_waits_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(2)]
        welcome.add(await consented(w, "u1"))  # Smartcar does not list this one yet
        welcome.add(await consented(w, "u2"))
        await until(lambda: len(w.fleet) == 1)


async def test_the_list_and_the_welcome_together_enrol_a_car_once(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(1)]
        enrolment = await consented(w, "u1", invited="Anna")
        syncs = [asyncio.create_task(w.roster.sync(w.purse.ticket(None))) for _ in range(3)]
        welcome.add(enrolment)
        await asyncio.gather(*syncs)
        await until_arrived(w)
        assert [car.vehicle.invited for car in w.fleet] == ["Anna"]


async def test_consenting_again_ends_the_trouble_though_the_connection_is_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        (car,) = w.fleet
        w.source.failing(errors.ConsentLost("PERMISSION", "gone"))
        await w.poll(car)
        assert not w.fleet[car.id].consented
        await w.clock.advance(timedelta(minutes=1))
        welcome.add(await consented(w, "u1", invited="Somebody else"))
        await until_arrived(w)
        assert w.fleet[car.id].consented
        after = w.fleet[car.id]
        assert (after.slug, after.vehicle.invited) == (car.slug, None), "it is whose it was"
        assert after.schedule.due is not None


async def test_a_withdrawn_car_comes_back_under_its_slug_and_is_whoever_s_brought_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(1)]
        await w.roster.sync(w.purse.ticket(None))
        w.source.consent_list = []
        await w.roster.sync(w.purse.ticket(None))
        (car,) = w.fleet
        assert not car.consented
        w.source.consent_list = [consent(1, connection="again")]
        welcome.add(await consented(w, "u1", invited="Anna"))
        await until(lambda: w.fleet[car.id].consented)
        assert (w.fleet[car.id].slug, w.fleet[car.id].vehicle.invited) == (car.slug, "Anna")


async def test_nobody_is_waited_for_for_ever(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        welcome.add(await consented(w, "u1"))
        await settle()
        for _ in range(40):
            await w.clock.advance(timedelta(hours=1))
            await asyncio.sleep(0.002)
        await until_arrived(w)
        assert len(w.fleet) == 0


async def test_a_second_car_that_is_listed_later_comes_by_the_same_invitation(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(1)]
        welcome.add(await consented(w, "u1", invited="Anna"))
        await until(lambda: len(w.fleet) == 1)
        await until_arrived(w)
        second = replace(consent(2), user_ref="u1")
        w.source.consent_list.append(second)
        await w.clock.advance(timedelta(minutes=1))
        await until(lambda: len(w.fleet) == 2)
        third = replace(consent(3), user_ref="u1")
        w.source.consent_list.append(third)
        await w.roster.sync(w.purse.ticket(None))
        assert [car.vehicle.invited for car in w.fleet] == ["Anna"] * 3


async def test_an_invented_user_costs_few_requests(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        for number in range(10):
            welcome.add(await consented(w, f"nobody-{number}"))
        for _ in range(24 * 6):
            await w.clock.advance(timedelta(minutes=10))
            await asyncio.sleep(0.001)
        spent = w.metrics._registry.get_sample_value("evbatteryd_calls_total", {"application": "home"})
        assert spent <= 10 * 13, "each is looked for during an hour, less and less often"
        await until_arrived(w)


async def test_a_bug_in_one_welcome_is_told_and_stops_no_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(2)]
        consents_of = w.source.consents_of

        async def broken(user: str, ticket: Ticket) -> list[Consent]:
            if user == "u1":
                raise ZeroDivisionError
            return await consents_of(user, ticket)

        w.source.consents_of = broken  # type: ignore[method-assign]
        welcome.add(await consented(w, "u1"))
        await until(lambda: len(w.said("enrolment.bug")) == 1)
        welcome.add(await consented(w, "u2"))
        await until(lambda: len(w.fleet) == 1)


async def test_a_car_that_the_list_found_first_is_the_invitee_s_all_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as w, welcoming(w) as welcome:
        w.source.consent_list = [consent(1)]
        enrolment = await consented(w, "u1", invited="Anna")
        await w.clock.advance(timedelta(minutes=1))
        await w.roster.sync(w.purse.ticket(None))
        assert [car.vehicle.invited for car in w.fleet] == [None]
        welcome.add(enrolment)
        await until_arrived(w)
        assert [car.vehicle.invited for car in w.fleet] == ["Anna"]

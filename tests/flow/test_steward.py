"""Renaming and disconnecting: durable, told, and never by halves."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from evbatteryd.domain import errors
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import CannotChange
from evbatteryd.flow.steward import CarSteward
from tests.fakes import START
from tests.flow.world import World, consent, world
from tests.store.cars import all_readings


def steward_of(w: World) -> CarSteward:
    return CarSteward(w.cars, {"home": w.roster}, w.log)


async def enrolled(w: World, count: int = 1) -> list[Car]:
    w.source.consent_list = [consent(n) for n in range(count)]
    await w.roster.sync(w.purse.ticket(None))
    return list(w.fleet)


async def test_a_renamed_car_is_found_under_its_new_slug_alone_also_after_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        after = await steward_of(w).rename(car.id, name="  Anna's   car ", slug="annas_car")
        assert (after.vehicle.name, after.slug) == ("Anna's car", "annas_car")
        assert after.vehicle.former_slugs == (car.slug,)
        assert w.fleet.by_slug("annas_car") is after
        assert w.fleet.by_slug(car.slug) is None
        assert w.heard[-1][0] is after
        assert await w.store.cars() == [after]


async def test_nobody_gets_a_slug_that_another_car_has_or_had(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, two = await enrolled(w, 2)
        steward = steward_of(w)
        await steward.rename(one.id, name=None, slug="one")
        for taken in ("one", one.slug):
            with pytest.raises(CannotChange, match="another car"):
                await steward.rename(two.id, name=None, slug=taken)
        back = await steward.rename(one.id, name=None, slug=one.slug)
        assert back.vehicle.former_slugs == ("one",)
        w.source.consent_list.append(consent(3))
        await steward.rename(one.id, name=None, slug="uno")
        await w.roster.sync(w.purse.ticket(None))
        assert list(w.fleet)[2].slug == "renault_megane_3", "renault_megane was the first one's"


@pytest.mark.parametrize("slug", ["", "Car", "a b", "_a", "a_", "a/b", "a+", "é", "bridge", "a" * 65])
async def test_a_slug_that_no_topic_could_be_is_refused(tmp_path: Path, slug: str) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        with pytest.raises(CannotChange):
            await steward_of(w).rename(car.id, name=None, slug=slug)
        assert w.fleet[car.id] is car


@pytest.mark.parametrize("name", ["", "  ", "a\x00b", "x" * 81])
async def test_a_name_that_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        with pytest.raises(CannotChange):
            await steward_of(w).rename(car.id, name=name, slug=None)


async def test_two_cars_renamed_to_one_slug_at_once_are_not_both(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, two = await enrolled(w, 2)
        steward = steward_of(w)
        results = await asyncio.gather(
            steward.rename(one.id, name=None, slug="same"),
            steward.rename(two.id, name=None, slug="same"),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [Car, CannotChange]


async def test_disconnecting_ends_the_consent_and_the_polls_and_nothing_revives_it(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        after = await steward_of(w).disconnect(car.id, erase=False)
        assert w.source.revoked == ["c0"]
        assert after.vehicle.withdrawn_at == START
        assert after.schedule.due is None
        assert w.purse.cars == 0
        # A list that was read just before still holds it.
        await w.roster.sync(w.purse.ticket(None))
        assert w.fleet[car.id].vehicle.withdrawn_at == START
        w.source.consent_list = [consent(0, connection="anew")]
        await w.roster.sync(w.purse.ticket(None))
        assert w.fleet[car.id].consented
        assert w.fleet[car.id].slug == car.slug


async def test_what_smartcar_does_not_end_stays_as_it_is(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        w.source.revoke_error = errors.Unreachable("HTTP_503", "Smartcar failed")
        with pytest.raises(CannotChange, match="Smartcar failed"):
            await steward_of(w).disconnect(car.id, erase=True)
        assert w.fleet[car.id] is car


async def test_an_application_that_is_gone_cannot_end_a_consent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        with pytest.raises(CannotChange, match="not configured"):
            await CarSteward(w.cars, {}, w.log).disconnect(car.id, erase=True)
        await w.cars.change(car.id, lambda c: replace(c, vehicle=replace(c.vehicle, withdrawn_at=START)))
        await CarSteward(w.cars, {}, w.log).disconnect(car.id, erase=True)
        assert len(w.said("vehicle.erased")) == 1


async def test_erasing_leaves_no_reading_and_no_value_but_what_was_spent(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, two = await enrolled(w, 2)
        await w.poll(one, two)
        spent = w.purse.share(one.id).calls_left
        erased = await steward_of(w).disconnect(one.id, erase=True)
        assert (erased.state.soc_percent, erased.reading_id, erased.schedule.outcome) == (None, None, "")
        assert [reading.vehicle_id for reading in await all_readings(w.store)] == [two.id]
        assert (await w.store.cars())[0] == erased
        account = await w.store.account("home", START.replace(day=1, hour=0))
        assert account.spent[one.id] == 1
        assert w.purse.share(one.id).calls_left == spent


async def test_an_answer_on_its_way_brings_nothing_back(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        go_on = asyncio.Event()
        asked = asyncio.Event()

        async def slow(_: object) -> object:
            asked.set()
            await go_on.wait()
            return w.source.observation(77.0)

        w.source.answer = slow
        polling = asyncio.create_task(w.poll(car))
        await asked.wait()
        await steward_of(w).disconnect(car.id, erase=True)
        go_on.set()
        await polling
        assert w.fleet[car.id].state.soc_percent is None
        assert await all_readings(w.store) == []


async def test_nothing_is_renamed_before_every_car_is_loaded(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        w.cars._loaded = False
        with pytest.raises(CannotChange, match="still starting"):
            await steward_of(w).rename(car.id, name=None, slug="new")


async def test_the_history_of_a_car_that_was_consented_to_meanwhile_stays(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        await w.poll(car)
        with pytest.raises(CannotChange, match="consented again"):
            await w.cars.erase(car.id)
        assert len(await all_readings(w.store)) == 1


async def test_while_another_program_reads_the_file_an_erasure_holds_up_nobody(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        one, two = await enrolled(w, 2)
        await w.poll(one, two)
        with closing(sqlite3.connect(tmp_path / "evbatteryd.db", isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM reading").fetchone()
            await steward_of(w).disconnect(one.id, erase=True)
            await steward_of(w).rename(two.id, name="Two", slug=None)
        assert len(w.said("store.log_kept")) == 1
        assert [reading.vehicle_id for reading in await all_readings(w.store)] == [two.id]


async def test_an_owner_who_consents_again_under_the_same_connection_is_welcome(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        (car,) = await enrolled(w)
        await steward_of(w).disconnect(car.id, erase=False)
        await w.roster.adopt(consent(0), just_given=True)
        assert w.fleet[car.id].consented

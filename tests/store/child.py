"""What the tests run as a process of its own: ``python -m tests.store.child VERB PATH``."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

from evbatteryd.domain.enrolment import Ending
from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ports import Published, Store
from evbatteryd.store import SqliteStore, open_store, sqlite
from evbatteryd.store.codec import Row
from tests.store.cars import MINUTE, START, all_readings, answer, enrolled, recorded, request
from tests.store.enrolments import begun, consented, invited

NAMES = frozenset({"state", "availability", "polling"})


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def hold(path: Path) -> None:
    """Keep the store open until killed."""
    async with open_store(path):
        say(open=True)
        await asyncio.Event().wait()


async def hammer(path: Path) -> None:
    """Twenty cars ask and answer as fast as they can, and every acknowledged write is told. Until killed."""

    async def drive(store: Store, car: Car) -> None:
        for minute in count():
            await store.reserve(request(car.id, due=START + minute * MINUTE))
            say(reserved=car.id, calls=minute + 1)
            wiser = replace(car, learned=f"learnt by {minute}".encode())
            car, reading = await store.record(answer(wiser, minute, soc=minute % 101, excerpt=str(minute)))
            assert reading is not None
            say(recorded=car.id, seq=reading.seq, reading_id=reading.reading_id, minute=minute)

    async with open_store(path) as store, asyncio.TaskGroup() as drivers:
        for number in range(20):
            drivers.create_task(drive(store, await enrolled(store, number)))


async def tell(path: Path) -> None:
    """Readings are delivered, what is published is noted, marks are kept and taken. Until killed."""

    async def drive(store: Store, car: Car) -> None:
        for minute in count():
            reading = await recorded(store, car, minute)
            await store.delivered("mqtt", {car.id: reading.seq})
            say(delivered=car.id, seq=reading.seq)

    async def settle(store: Store) -> None:
        while True:
            owed = await store.owed("mqtt", 0, 1)
            cursor = owed[0][0] - 1 if owed else 0
            await store.delivered("mqtt", {}, cursor)
            say(cursor=cursor)

    async def note(store: SqliteStore) -> None:
        for number in count():
            leaves = frozenset({"state", f"field_{number}"})
            await store.note_published([Published("evbatteryd", f"zoe_{of}", leaves) for of in range(5)])
            say(noted=number)
            await store.keep_mark(f"sink {number}", f"mark {number}")
            say(kept=number)
            if number >= 2:
                await store.mark(f"sink {number - 2}")
                say(taken=number - 2)

    async with open_store(path) as store, asyncio.TaskGroup() as hands:
        for number in range(5):
            hands.create_task(drive(store, await enrolled(store, number)))
        hands.create_task(settle(store))
        hands.create_task(note(store))


async def fill(path: Path) -> None:
    """Write until a file may not grow any further, then with room again. Tell what was kept of it."""
    async with open_store(path) as store:
        car = await enrolled(store)
        log = path.with_name(path.name + "-wal")
        resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size + 100_000, resource.RLIM_INFINITY))
        kept, words = 0, ""
        while not words:
            try:
                await recorded(store, car, kept)
                kept += 1
            except StoreError as error:
                words = str(error)
        together = await asyncio.gather(
            *(store.record(answer(car, 9999, excerpt="x" * 10_000)) for _ in range(30)),
            store.update(replace(car, vehicle=replace(car.vehicle, name="never" * 10_000))),
            store.delivered(sink := "mqtt" * 50_000, {car.id: 1}, 1),
            store.note_published([Published("evbatteryd", f"zoe_{of}", NAMES) for of in range(5000)]),
            store.keep_mark("mqtt", "mark" * 50_000),
            return_exceptions=True,
        )
        say(
            kept=kept,
            words=words,
            refused=[type(result).__name__ for result in together],
            head=store.head,
            readings=len(await all_readings(store)),
            excerpt=await store.excerpt(car.id),
            owed=len(await store.owed(sink, 0, 1_000_000)),
            published=len(await store.published()),
        )
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        reading = await recorded(store, car, kept)
        say(seq=reading.seq, readings=len(await all_readings(store)))


async def consent(path: Path) -> None:
    """Guests set out, and of two answers to each the one that counts is told. Until killed."""
    async with open_store(path) as store:
        for number in count():
            invitation = await invited(store, number)
            enrolment = await begun(store, number, invitation=invitation.id)
            answers = [
                store.end(enrolment.id, ending=Ending.DENIED, user_ref=None, at=START),
                consented(store, enrolment.id, user=f"user-{number}"),
            ]
            ended = await asyncio.gather(*(answers if number % 2 else reversed(answers)))
            say(number=number, counted=[[one.ending, one.user_ref] for one in ended if one is not None])


async def erase_by_half(path: Path) -> None:
    """Erase one of two cars, and be killed in the middle of it."""
    sqlite._SLICE = 4
    slices = count()
    erase_slice = SqliteStore._erase_slice

    async def erase_slice_or_die(store: SqliteStore, bounds: Row) -> None:
        if next(slices) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        await erase_slice(store, bounds)

    SqliteStore._erase_slice = erase_slice_or_die
    async with open_store(path) as store:
        car, other = await enrolled(store, 1), await enrolled(store, 2)
        for minute in range(20):
            await recorded(store, car, minute, soc=61.803398874989)
            await recorded(store, other, minute)
        await store.erase(car.id)


if __name__ == "__main__":
    verbs = {
        "hold": hold,
        "hammer": hammer,
        "tell": tell,
        "fill": fill,
        "consent": consent,
        "erase_by_half": erase_by_half,
    }
    verb = verbs[sys.argv[1]]
    asyncio.run(verb(Path(sys.argv[2])))

"""The store in one SQLite file: the journal of readings, what is known of each vehicle, the ledger of calls.

Instants are kept in whole milliseconds, rounded down; what :meth:`SqliteStore.record` and
:meth:`SqliteStore.enrol` return is already what a later start will load. But for a car's trend: that is
worked out anew from the rest.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from sys import intern
from typing import Final

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Car, Schedule
from evbatteryd.domain.ledger import Bucket
from evbatteryd.domain.ports import Account, Polled, Reservation
from evbatteryd.domain.reading import BatteryState, Reading, Rejected
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from evbatteryd.store import codec, database
from evbatteryd.store import statements as sql
from evbatteryd.store.codec import Row
from evbatteryd.store.enrolments import Enrolments
from evbatteryd.store.failures import explaining
from evbatteryd.store.manifest import Manifest
from evbatteryd.store.outbox import Outbox
from evbatteryd.store.reader import Reader
from evbatteryd.store.threads import Threads
from evbatteryd.store.writer import Writer

_KEPT_REJECTIONS: Final = 20
"""Rejected values of each vehicle that are kept."""
_SLICE: Final = 2000
"""Positions of the journal that one transaction clears at most: a few milliseconds for whoever writes."""
_LOOKED_UP: Final = 500
"""Readings that are looked up at a time: a few milliseconds for whoever else wants to read."""
_LONGEST_PERIOD: Final = timedelta(days=62)
"""More than any period of a plan: a ledger that began so long before is of one that has ended."""
_OVERHEAD: Final = 0
"""Stands in the ledger for the vehicle of a request that no vehicle pays for."""


@asynccontextmanager
async def open_store(
    path: Path, *, create: bool = True, read_only: bool = False
) -> AsyncIterator[SqliteStore]:
    """The store at ``path``, brought up to date; the file and its folder are made if need be.

    Only one process may write. ``read_only`` looks at a store that another process may be writing to: it
    takes no lock, makes nothing, and whatever would write raises StoreError.
    Raises StoreError if the file is in use, is not ours, is newer than this program, or cannot be used.
    Leaving waits until everything handed over is written.
    """
    with ExitStack() as opened:
        with explaining(path):
            store = _open(path, opened, create=create, read_only=read_only)
        try:
            yield store
        finally:
            closing = asyncio.create_task(store.close(), name="close-store")
            try:
                await asyncio.shield(closing)
            except asyncio.CancelledError:
                await closing  # finish writing, then go
                raise


def _open(path: Path, opened: ExitStack, *, create: bool, read_only: bool) -> SqliteStore:
    """Blocks: there is nothing to do before the store is open. ``opened`` closes what was opened."""
    if create and not read_only:
        database.make_file(path)
    elif not path.exists():
        raise StoreError(f"there is no database at {path}: evbatteryd makes it when it first runs")
    writing = None
    if not read_only:
        opened.callback(database.Lock(path).release)
        writing = database.open_for_writing(path)
        opened.callback(writing.close)
    reading = database.open_for_reading(path)
    opened.callback(reading.close)
    [epoch] = reading.execute(sql.EPOCH).fetchone()
    head = database.head(reading)
    writer = None if writing is None else Writer(writing, path, head)
    return SqliteStore(epoch, Threads(path, head, Reader(reading, path), writer))


class SqliteStore(Outbox, Manifest, Enrolments):
    """Implements :class:`evbatteryd.domain.ports.Store`, and by what it inherits the ``EnrolmentStore`` and
    the ``Manifest``.

    Made by :func:`open_store`.
    """

    def __init__(self, epoch: str, threads: Threads) -> None:
        super().__init__(threads)
        self._epoch = epoch

    async def close(self) -> None:
        """Answer and write what is waiting. Afterwards every call raises StoreError."""
        await self._threads.close()

    async def cars(self) -> list[Car]:
        """Every vehicle ever enrolled, with its state and schedule, by id."""

        def query(db: sqlite3.Connection) -> list[Car]:
            with _collector_paused():
                return [self._car(row) for row in db.execute(sql.CARS)]

        return await self._threads.read(query)

    async def enrol(
        self,
        consent: Consent,
        *,
        slug: str,
        name: str,
        brand: str,
        schedule: Schedule,
        at: datetime,
        invited: str | None = None,
    ) -> Car:
        """A new vehicle. Raises StoreError if the slug is, or once was, that of another one."""
        consent_row, schedule_row = codec.encode_consent(consent), codec.encode_schedule(schedule)
        enrolled_ms = codec.to_ms(at)

        def operation(db: sqlite3.Connection) -> int:
            application_id = database.application_key(db, consent.application)
            row = (slug, name, brand, enrolled_ms, invited, application_id, *consent_row)
            with _taking(slug):
                [(vehicle_id,)] = db.execute(sql.ENROL, row).fetchall()
            _refuse_former(db, slug, vehicle_id)
            db.execute(sql.FIRST_SCHEDULE, (vehicle_id, *schedule_row))
            return int(vehicle_id)

        vehicle = Vehicle(
            id=VehicleId(await self._threads.write(operation)),
            slug=slug,
            name=name,
            brand=brand,
            consent=consent,
            enrolled_at=codec.from_ms(enrolled_ms),
            invited=invited,
        )
        return Car(vehicle=vehicle, schedule=codec.decode_schedule(schedule_row))

    async def update(self, car: Car) -> None:
        """Slug, name, consent, schedule, trouble and what was learnt as in ``car``; state and readings stay.

        Raises StoreError if the slug is, or once was, that of another vehicle.
        """
        vehicle = car.vehicle
        vehicle_row = (
            vehicle.slug,
            vehicle.name,
            codec.maybe_to_ms(vehicle.withdrawn_at),
            codec.maybe_to_ms(vehicle.renewed_at),
            vehicle.invited,
            codec.encode_slugs(vehicle.former_slugs),
            vehicle.subscription,
        )
        consent_row = codec.encode_consent(vehicle.consent)
        schedule_row, trouble_row = codec.encode_schedule(car.schedule), codec.encode_trouble(car.trouble)
        latest_row = (*schedule_row, *trouble_row, codec.encode_learned(car.learned), vehicle.id)

        def operation(db: sqlite3.Connection) -> None:
            application_id = database.application_key(db, vehicle.consent.application)
            with _taking(vehicle.slug):
                row = (vehicle.id, *vehicle_row, application_id, *consent_row)
                changed = db.execute(sql.UPDATE_VEHICLE, row).rowcount
            if changed:
                _refuse_former(db, vehicle.slug, vehicle.id)
            if db.execute(sql.UPDATE_LATEST, latest_row).rowcount == 0:
                raise _unknown(vehicle.id)

        await self._threads.write(operation)

    async def record(self, polled: Polled) -> tuple[Car, Reading | None]:
        """Commit an answer; return the car with its new ``reading_id``, and the reading if there was news."""
        car, vehicle_id = polled.car, polled.car.id
        at_ms = codec.to_ms(polled.at)
        state_row = codec.encode_state(car.state, at_ms, polled.origin)
        schedule_row, trouble_row = codec.encode_schedule(car.schedule), codec.encode_trouble(car.trouble)
        learned = codec.encode_learned(car.learned)
        rejected_rows = [(vehicle_id, *codec.encode_rejected(rejected)) for rejected in polled.rejected]

        def operation(db: sqlite3.Connection) -> tuple[int | None, int | None]:
            seq = db.execute(sql.JOURNAL, (vehicle_id, *state_row)).lastrowid if polled.news else None
            latest_row = (*state_row, *schedule_row, *trouble_row, learned, seq, vehicle_id)
            if not (newest := db.execute(sql.RECORD, latest_row).fetchall()):
                raise _unknown(vehicle_id)
            if rejected_rows:
                db.executemany(sql.REJECT, rejected_rows)
                db.execute(sql.FORGET_REJECTED, (vehicle_id, _KEPT_REJECTIONS))
            if polled.excerpt is not None:
                db.execute(sql.KEEP_EXCERPT, (vehicle_id, polled.excerpt))
            if polled.event_id is not None:
                db.execute(sql.NOTE_EVENT, (polled.event_id, at_ms))
            return seq, newest[0][0]

        seq, newest = await self._threads.write(operation)
        state = codec.decode_state(state_row)
        kept = replace(
            car,
            state=state,
            schedule=codec.decode_schedule(schedule_row),
            trouble=codec.decode_trouble(trouble_row),
            reading_id=None if newest is None else self._reading_id(newest),
        )
        return kept, None if seq is None else self._reading(seq, vehicle_id, state_row, state)

    async def reserve(self, reservation: Reservation) -> None:
        """Note a request before it is sent: the ledger, the bucket, and when the vehicle falls due."""
        vehicle_id, bucket = reservation.vehicle_id, reservation.bucket
        bucket_row = (reservation.application, bucket.level, codec.to_ms(bucket.at))
        window_ms, at_ms = codec.to_ms(reservation.window_start), codec.to_ms(reservation.at)
        due_ms = codec.maybe_to_ms(reservation.due)

        def operation(db: sqlite3.Connection) -> None:
            [(application_id,)] = db.execute(sql.SPEND_BUCKET, bucket_row).fetchall()
            db.execute(sql.SPEND, (application_id, window_ms, vehicle_id or _OVERHEAD))
            if vehicle_id is None or due_ms is None:
                return
            if db.execute(sql.FALL_DUE, (due_ms, at_ms, vehicle_id)).rowcount == 0:
                raise _unknown(vehicle_id)

        await self._threads.write(operation)

    async def lore(self, application: str) -> bytes | None:
        """What the polling policy has learnt across this application's cars; None: nothing yet."""
        found: bytes | None = await self._threads.value(sql.LORE, (application,))
        return found

    async def keep_lore(self, application: str, lore: bytes) -> None:
        """Keep it in place of what was kept before."""

        def operation(db: sqlite3.Connection) -> None:
            db.execute(sql.KEEP_LORE, (database.application_key(db, application), lore))

        await self._threads.write(operation)

    async def keep_bucket(self, application: str, bucket: Bucket) -> None:
        """Note the application's bucket when it changed without a request."""
        row = (application, bucket.level, codec.to_ms(bucket.at))
        await self._threads.write(lambda db: db.execute(sql.SPEND_BUCKET, row).fetchall())

    async def account(self, application: str, window_start: datetime) -> Account:
        """What was spent in the period that starts at ``window_start``."""
        window_ms = codec.to_ms(window_start)

        def query(db: sqlite3.Connection) -> Account:
            bucket = db.execute(sql.BUCKET, (application,)).fetchone()
            spent = dict(db.execute(sql.SPENT, (application, window_ms)).fetchall())
            overhead = spent.pop(_OVERHEAD, 0)
            return Account(
                spent=spent,
                overhead=overhead,
                bucket=None if bucket is None else Bucket(bucket[0], codec.from_ms(bucket[1])),
            )

        return await self._threads.read(query)

    async def correct(
        self, application: str, vehicle_id: VehicleId, window_start: datetime, calls: int
    ) -> None:
        """Set a vehicle's spent calls: the source says it counts otherwise (430)."""
        window_ms = codec.to_ms(window_start)

        def operation(db: sqlite3.Connection) -> None:
            db.execute(sql.CORRECT, (database.application_key(db, application), window_ms, vehicle_id, calls))

        await self._threads.write(operation)

    async def readings(self, positions: Iterable[int]) -> list[Reading]:
        """The readings of the journal at these positions, oldest first; those that are gone are left out."""
        wanted = sorted(set(positions))
        found: list[Reading] = []
        for start in range(0, len(wanted), _LOOKED_UP):
            some = json.dumps(wanted[start : start + _LOOKED_UP])
            found += await self._readings(sql.READINGS, (some,))
        return found

    @property
    def head(self) -> int:
        """Position of the newest committed reading; opened for reading only, as it was then."""
        return self._threads.head

    async def history(
        self, vehicle_id: VehicleId, since: datetime, until: datetime, limit: int
    ) -> list[Reading]:
        """Readings of one vehicle whose state of charge was measured in [since, until), oldest first.

        A reading of which the OEM did not say when is not among them.
        """
        span = (codec.to_ms_up(since), codec.to_ms_up(until))
        return await self._readings(sql.HISTORY, (vehicle_id, *span, limit))

    async def rejections(self, vehicle_id: VehicleId) -> list[Rejected]:
        """The last values of this vehicle that could not be, newest first."""
        return await self._threads.read(
            lambda db: [codec.decode_rejected(row) for row in db.execute(sql.REJECTIONS, (vehicle_id,))]
        )

    async def excerpt(self, vehicle_id: VehicleId) -> str | None:
        """The redacted start of this vehicle's last answer that could not be read."""
        found: str | None = await self._threads.value(sql.EXCERPT, (vehicle_id,))
        return found

    async def recent_events(self, since: datetime, limit: int) -> list[str]:
        """Ids of the newest webhook deliveries that were committed since then, oldest first."""
        since_ms = codec.to_ms(since)
        return await self._threads.read(
            lambda db: [event_id for (event_id,) in db.execute(sql.RECENT_EVENTS, (since_ms, limit))]
        )

    async def erase(self, vehicle_id: VehicleId) -> bool:
        """Delete every reading and rejected value of a vehicle, its state, and what was learnt of it.

        What it has spent stays. Goes through the journal in slices as :meth:`prune` does; if it is cut
        short, a second call does the rest. Returns whether zeros stand in their place in every file: another
        program that reads the database (a backup, a shell) keeps them in the log until it has ended, and a
        later call cleans up.
        """
        first = await self._threads.value(sql.FIRST, ())
        start = self.head + 1 if first is None else first
        while start + _SLICE <= self.head:
            await self._erase_slice((start, start + _SLICE, vehicle_id))
            start += _SLICE

        def operation(db: sqlite3.Connection) -> None:
            if db.execute(sql.ERASE_STATE, (vehicle_id,)).rowcount == 0:
                raise _unknown(vehicle_id)
            db.execute(sql.ERASE_REST, (start, vehicle_id))
            db.execute(sql.ERASE_REJECTED, (vehicle_id,))
            db.execute(sql.ERASE_EXCERPT, (vehicle_id,))

        await self._threads.write(operation)
        return await self._threads.empty_log()

    async def _erase_slice(self, bounds: Row) -> None:
        """Asks the reader first: most slices hold nothing of one vehicle, and then nobody has to write."""
        if await self._threads.value(sql.ANY_OF_VEHICLE, bounds) is not None:
            await self._threads.write(lambda db: db.execute(sql.ERASE_OF_VEHICLE, bounds).rowcount)

    async def prune(self, before: datetime) -> int:
        """Delete readings fetched before that and taken by every sink, of whichever vehicle; return how many.

        Goes through the journal in slices, so that whoever writes meanwhile is not held up, and no further
        than to the first slice with nothing that old. Ledgers of periods long before that go as well.
        """
        before_ms = codec.to_ms_up(before)
        first = await self._threads.value(sql.FIRST, ())
        deleted = 0
        if first is not None:
            for start in range(first, self.head + 1, _SLICE):
                oldest = await self._threads.value(sql.OLDEST, (start, start + _SLICE))
                if oldest is not None and oldest >= before_ms:
                    break
                deleted += await self._prune_slice((start, start + _SLICE, before_ms))
        long_before = (codec.to_ms(before - _LONGEST_PERIOD),)
        await self._threads.write(lambda db: db.execute(sql.PRUNE_LEDGER, long_before))
        return deleted

    async def _prune_slice(self, bounds: Row) -> int:
        """Asks the reader first: most slices have nothing to delete, and then nobody has to write."""
        if await self._threads.value(sql.ANY_PRUNABLE, bounds) is None:
            return 0
        return await self._threads.write(lambda db: db.execute(sql.PRUNE, bounds).rowcount)

    async def _readings(self, statement: str, arguments: Row) -> list[Reading]:
        def query(db: sqlite3.Connection) -> list[Reading]:
            rows = db.execute(statement, arguments)
            return [
                self._reading(seq, vehicle_id, state_row, codec.decode_state(state_row))
                for seq, vehicle_id, *state_row in rows
            ]

        return await self._threads.read(query)

    def _reading(self, seq: int, vehicle_id: int, state_row: Row, state: BatteryState) -> Reading:
        return Reading(
            seq=seq,
            reading_id=self._reading_id(seq),
            vehicle_id=VehicleId(vehicle_id),
            state=state,
            fetched_at=codec.from_ms(state_row[0]),
            origin=codec.origin_of(state_row[1]),
        )

    def _reading_id(self, seq: int) -> str:
        return f"{self._epoch}-{seq}"

    def _car(self, row: Row) -> Car:
        columns = iter(row)
        vehicle_id, slug, name, brand, enrolled_ms, withdrawn_ms = islice(columns, 6)
        renewed_ms, invited, former_slugs, subscription = islice(columns, 4)
        vehicle = Vehicle(
            id=VehicleId(vehicle_id),
            slug=slug,
            name=name,
            brand=intern(brand),
            consent=codec.decode_consent(next(columns), tuple(islice(columns, codec.CONSENT_WIDTH))),
            enrolled_at=codec.from_ms(enrolled_ms),
            withdrawn_at=codec.maybe_from_ms(withdrawn_ms),
            invited=invited,
            renewed_at=codec.maybe_from_ms(renewed_ms),
            former_slugs=codec.decode_slugs(former_slugs),
            subscription=subscription,
        )
        seq = next(columns)
        return Car(
            vehicle=vehicle,
            reading_id=None if seq is None else self._reading_id(seq),
            state=codec.decode_state(tuple(islice(columns, codec.STATE_WIDTH))),
            schedule=codec.decode_schedule(tuple(islice(columns, codec.SCHEDULE_WIDTH))),
            trouble=codec.decode_trouble(tuple(islice(columns, codec.TROUBLE_WIDTH))),
            learned=codec.decode_learned(next(columns)),
        )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Look for no garbage meanwhile.

    A large fleet is millions of objects that stay. To walk them again and again while they are made stops
    every thread, the event loop's too, for as long as half a second each time.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


@contextmanager
def _taking(slug: str) -> Iterator[None]:
    """Say in words that another vehicle has this slug."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise StoreError(f"a vehicle is already enrolled as {slug!r}") from error


def _refuse_former(db: sqlite3.Connection, slug: str, vehicle_id: int) -> None:
    if db.execute(sql.FORMERLY, (slug, vehicle_id)).fetchone() is not None:
        raise StoreError(f"another vehicle was once enrolled as {slug!r}")


def _unknown(vehicle_id: VehicleId) -> StoreError:
    return StoreError(f"no vehicle {vehicle_id} is enrolled")

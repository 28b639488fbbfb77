"""The only writer of the fleet: commits first, then changes what is in memory, then tells everyone.

Whoever changes a car gives a function from the car as it stands to the car as it shall be; changes of one
car happen one after the other, so a consent that is withdrawn while an answer arrives loses neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Protocol, TypeVar

from evbatteryd.domain.cadence import Answered, first_poll, next_poll, resumed
from evbatteryd.domain.errors import BudgetSpent, StoreError
from evbatteryd.domain.fleet import Car, Fleet, Schedule, facts_of
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy import polling
from evbatteryd.domain.ports import CannotChange, Clock, Log, Polled, Store
from evbatteryd.domain.profile import UNKNOWN
from evbatteryd.domain.reading import BatteryState, Reading
from evbatteryd.domain.vehicle import (
    LONGEST_NAME,
    RESERVED_SLUGS,
    SLUG,
    Consent,
    VehicleId,
    slug_for,
    tidy_name,
)
from evbatteryd.flow.lores import Lores
from evbatteryd.flow.timer import SLICE, CohortTimer

STORE_PAUSE = timedelta(seconds=5)
LONGEST_LOOK_BACK = timedelta(days=1)
NOTABLY = timedelta(minutes=10)
"""By less a poll is not brought forward at a start: what was learnt since it was decided moves it as well."""
_AT_PACE = frozenset({"new", "unchanged", BudgetSpent.outcome})
"""Outcomes after which a car waits for its brand's pace or its plan, and for nothing of its own."""
_T = TypeVar("_T")


class Listener(Protocol):
    """Hears of every change of a car after it is committed. ``reading``: there is a new one."""

    def __call__(self, car: Car, reading: Reading | None) -> None: ...


class Cars:
    """Changes to cars: durable, in order per car, then announced."""

    def __init__(
        self,
        fleet: Fleet,
        store: Store,
        clock: Clock,
        timer: CohortTimer,
        log: Log,
        *,
        brand_of: Callable[[str], str],
        lores: Lores,
    ) -> None:
        self.fleet = fleet
        self._store = store
        self._clock = clock
        self._timer = timer
        self._log = log
        self.brand_of = brand_of
        self._lores = lores
        self._listeners: list[Listener] = []
        self._guards: dict[VehicleId, tuple[asyncio.Lock, int]] = {}
        self._store_failing = False
        self._enrolling = asyncio.Lock()
        self._loaded = False

    def listen(self, listener: Listener) -> None:
        self._listeners.append(listener)

    async def load(self, applications: Container[str]) -> None:
        """Everything the store knows, its schedule taken up so that nothing bursts.

        Cars of an application that is not among ``applications`` (any more) are kept, and not asked.
        """
        now = self._clock.now()
        strangers = 0
        for number, car in enumerate(await self._store.cars()):
            # By the profiles of today: a brand may have been added, renamed or removed since.
            brand = self.brand_of(car.vehicle.consent.make)
            known = replace(car, vehicle=replace(car.vehicle, brand=brand))
            schedule, application = known.schedule, car.vehicle.consent.application
            if application not in applications:
                strangers += 1
                why = f"its Smartcar application {application!r} is not configured"
                known = replace(known, schedule=replace(schedule, due=None, reason=why))
            elif schedule.due is not None:
                profile = self.fleet.profile(known)
                again = resumed(schedule.due, schedule.reason, profile, known.vehicle.spread, now)
                known = replace(known, schedule=replace(schedule, due=again.at, reason=again.reason))
            if application in self._lores:
                line = polling.trend(known, self.fleet.profile(known), self._lores[application])
                known = replace(known, trend=line)
            self.fleet.put(known)
            self._arm(known)
            self._announce(known, None)
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        self._loaded = True
        if strangers:
            self._log.warning("vehicles.not_polled", count=strangers, reason="application not configured")

    async def reconsider(self, share_of: Callable[[Car], Share | None]) -> None:
        """Bring forward what a smaller plan or a slower pace of an earlier start had put off.

        Nothing is committed: every start does the same.
        """
        now = self._clock.now()
        for number, car in enumerate(self.fleet):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            schedule, share = car.schedule, share_of(car)
            if share is None or schedule.due is None or schedule.outcome not in _AT_PACE:
                continue
            profile, lore = self.fleet.profile(car), self._lores[car.vehicle.consent.application]
            spent = schedule.outcome == BudgetSpent.outcome
            heard = max(filter(None, (schedule.answered_at, schedule.pushed_at)), default=None)
            decided_at = max((schedule.polled_at if spent else heard) or now, now - LONGEST_LOOK_BACK)
            wanted = polling.again(car, profile, share, lore, decided_at).wanted
            facts = facts_of(car, profile, Answered(frozenset()), share, wanted)
            sooner = next_poll(facts, decided_at)
            if sooner.at is not None and schedule.due - sooner.at > NOTABLY:
                again = resumed(sooner.at, sooner.reason, facts.profile, facts.spread, now)
                self.fleet.put(replace(car, schedule=replace(schedule, due=again.at, reason=again.reason)))
                self._arm(self.fleet[car.id])
                self._announce(self.fleet[car.id], None)

    async def enrol(self, consent: Consent, invited: str | None = None) -> Car:
        """A new vehicle, asked within seconds. ``invited``: the name on the invitation it came by."""
        brand = self.brand_of(consent.make)
        badge = consent.make.title() if brand == UNKNOWN else self.fleet.profiles[brand].name
        name = _name(badge, consent.model)
        now = self._clock.now()
        first = first_poll(0.5, now)
        async with self._enrolling:  # or two applications could choose the same slug
            car = await self.kept(
                lambda: self._store.enrol(
                    consent,
                    slug=slug_for(name, self.fleet.taken_slugs),
                    name=name,
                    brand=brand,
                    invited=invited,
                    schedule=Schedule(due=first.at, reason=first.reason),
                    at=now,
                )
            )
            self._took(car, None)
        return car

    async def change(self, vehicle_id: VehicleId, change: Callable[[Car], Car]) -> Car:
        """Commit a change of consent, schedule or trouble."""
        async with self._alone(vehicle_id):
            before = self.fleet[vehicle_id]
            after = change(before)
            if after != before:
                await self.kept(lambda: self._store.update(after))
                self._took(after, None)
            return after

    async def rename(self, vehicle_id: VehicleId, *, name: str | None, slug: str | None) -> Car:
        """Another name, another slug, or both. Raises CannotChange."""

        def renamed(car: Car) -> Car:
            vehicle = car.vehicle
            if slug is not None and slug != vehicle.slug:
                known = (self.fleet.by_slug(slug), slug in vehicle.former_slugs)
                if known[0] is not None or (slug in self.fleet.taken_slugs and not known[1]):
                    raise CannotChange(f"{slug!r} is, or was, another car's: choose another one.")
                former = (*(old for old in vehicle.former_slugs if old != slug), vehicle.slug)
                vehicle = replace(vehicle, slug=slug, former_slugs=former)
            return replace(car, vehicle=replace(vehicle, name=vehicle.name if name is None else name))

        if not self._loaded:  # the slug may be that of a car yet to come
            raise CannotChange("evbatteryd is still starting: try again in a moment.")
        if name is not None:
            name = checked_name(name)
        if slug is not None:
            checked_slug(slug)
        async with self._enrolling:
            return await self.change(vehicle_id, renamed)

    async def erase(self, vehicle_id: VehicleId) -> Car:
        """Forget every reading of a car that is asked no more, but not what it has spent.

        Raises CannotChange.
        """
        async with self._alone(vehicle_id):
            car = self.fleet[vehicle_id]
            if car.vehicle.withdrawn_at is None:
                raise CannotChange("Its owner has consented again meanwhile, so its history was not erased.")
            await self._forget_habits(car)
            if not await self.kept(lambda: self._store.erase(vehicle_id)):
                self._log.warning(
                    "store.log_kept", vehicle=car.slug, reason="another program reads the database"
                )
            schedule = replace(car.schedule, outcome="", answered_at=None, pushed_at=None, gain=0.0)
            erased = replace(
                car,
                schedule=schedule,
                state=BatteryState(),
                trouble=None,
                reading_id=None,
                learned=b"",
                trend=None,
            )
            await self.kept(lambda: self._store.update(erased))
            self._took(erased, None)
            return erased

    async def _forget_habits(self, car: Car) -> None:
        """Nothing of the car's hours stays in what is known of all cars, in memory or on disk."""
        application = car.vehicle.consent.application
        lore = self._lores.get(application)
        if lore is not None:
            others = sum(
                1
                for other in self.fleet
                if other.id != car.id and other.consented and other.vehicle.consent.application == application
            )
            polling.forgotten(car, lore, others)
            await self._lores.keep()

    async def record(self, vehicle_id: VehicleId, decide: Callable[[Car], Polled | None]) -> Car:
        """Commit an answer. Held in memory and offered again for as long as the store cannot take it."""
        async with self._alone(vehicle_id):
            polled = decide(self.fleet[vehicle_id])
            if polled is None:
                return self.fleet[vehicle_id]
            car, reading = await self.kept(lambda: self._store.record(polled))
            self._took(car, reading)
            return car

    def announce(self, car: Car) -> None:
        """Something about the car changed that needs no commit: its freshness ran out."""
        self._announce(car, None)

    async def kept(self, write: Callable[[], Awaitable[_T]]) -> _T:
        """What ``write`` commits, however long the disk stays full. Said once when it begins and ends."""
        while True:
            try:
                done = await write()
            except StoreError as error:
                if not self._store_failing:
                    self._store_failing = True
                    self._log.error("store.failing", error=str(error))
                await self._clock.sleep(STORE_PAUSE)
                continue
            if self._store_failing:
                self._store_failing = False
                self._log.info("store.recovered")
            return done

    def _took(self, car: Car, reading: Reading | None) -> None:
        known = self.fleet.get(car.id)
        if known is not None and known.vehicle.brand != car.vehicle.brand:
            self._timer.arm(car.id, known.vehicle.brand, None)
        self.fleet.put(car)
        self._arm(car)
        self._announce(car, reading)

    def _arm(self, car: Car) -> None:
        self._timer.arm(car.id, car.vehicle.brand, car.schedule.due if car.consented else None)

    def _announce(self, car: Car, reading: Reading | None) -> None:
        for listener in self._listeners:
            listener(car, reading)

    @asynccontextmanager
    async def _alone(self, vehicle_id: VehicleId) -> AsyncIterator[None]:
        lock, users = self._guards.get(vehicle_id, (asyncio.Lock(), 0))
        self._guards[vehicle_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._guards[vehicle_id]
            if users == 1:
                del self._guards[vehicle_id]
            else:
                self._guards[vehicle_id] = (lock, users - 1)


def checked_name(name: str) -> str:
    """A display name, its blanks tidied up. Raises CannotChange."""
    tidy = tidy_name(name)
    if tidy is None:
        raise CannotChange(f"A name has 1 to {LONGEST_NAME} characters that can be seen.")
    return tidy


def checked_slug(slug: str) -> None:
    """Raises CannotChange."""
    if not SLUG.fullmatch(slug):
        raise CannotChange(
            "A short name has 1 to 64 lower-case letters, digits and underscores, and neither begins nor "
            "ends with an underscore."
        )
    if slug in RESERVED_SLUGS:
        raise CannotChange(f"{slug!r} is a topic of evbatteryd itself: choose another one.")


def _name(badge: str, model: str | None) -> str:
    """``Land Rover Defender``; but ``Polestar 2``, not the badge twice."""
    if model is None:
        return badge
    return model if model.lower().startswith(badge.lower()) else f"{badge} {model}"

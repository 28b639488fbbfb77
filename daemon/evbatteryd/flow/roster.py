"""Who consents: reads the applications' connections again and again, so that cars come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

from evbatteryd.domain.cadence import consented_anew
from evbatteryd.domain.errors import ApplicationRateLimited, ApplicationRefused, SourceError, StoreError
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.ports import CannotChange, Clock, Log, Source, Ticket
from evbatteryd.domain.vehicle import Consent
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.pauses import pause as wait
from evbatteryd.flow.purse import CREDENTIALS, OURS, Purse
from evbatteryd.flow.timer import SLICE

SHORTEST_RETRY = timedelta(seconds=30)


class Roster:
    """One application's list of consents, kept in step with our cars."""

    def __init__(
        self,
        application: str,
        source: Source,
        purse: Purse,
        cars: Cars,
        clock: Clock,
        log: Log,
        *,
        every: timedelta,
    ) -> None:
        self._application = application
        self._source = source
        self._purse = purse
        self._cars = cars
        self._fleet: Fleet = cars.fleet
        self._clock = clock
        self._log = log.bind(application=application)
        self._every = every
        self._failing = 0
        self._least = SHORTEST_RETRY
        """How long after a list was read nobody may have it read again."""
        self._adopting = asyncio.Lock()
        self._stirred = asyncio.Event()
        self._ended: set[str] = set()
        """Connections that we ended: a list that was read just before may still hold them."""
        self.invited: dict[str, str] = {}
        """Names of invitations by the user who consented by one: kept by whoever welcomes them."""
        self.trouble = ""
        """Why the list could not be read the last time; empty when it could."""

    async def count(self) -> None:
        """Tell the purse how many cars of this application are asked at all."""
        self._purse.cars = len([car async for car in self._mine() if car.consented])

    async def run(self) -> None:
        """Keep in step for ever."""
        while True:
            await self._rest(await self._sync())

    def stir(self) -> None:
        """Somebody is heard of whom we do not know: read the list soon."""
        self._stirred.set()

    async def _rest(self, pause: timedelta) -> None:
        """Until it is time again, or somebody unknown is heard of: but the shortest pause is always kept."""
        shortest = min(pause, self._least)
        await self._clock.sleep(shortest)
        await wait(self._clock, pause - shortest, unless=self._stirred)

    async def _sync(self) -> timedelta:
        """Read the list once; return how long to wait before the next time."""
        ticket = self._purse.ticket(None)
        try:
            await self.sync(ticket)
        except (SourceError, StoreError) as error:
            await self._mind(error)
        except Exception:
            # Whatever a list does to us, the cars that are known are asked all the same.
            self._failing += 1
            self._log.exception("consents.bug")
        else:
            self.trouble = ""
            if self._failing:
                self._failing = 0
                self._log.info("consents.readable")
            # However long the list, reading it takes a tenth of the application's requests at most.
            pages = timedelta(minutes=ticket.calls / self._purse.budget.refill_per_minute)
            self._least = max(SHORTEST_RETRY, 10 * pages)
            return max(self._every, self._least)
        doubled: timedelta = SHORTEST_RETRY * 2 ** min(self._failing - 1, 10)
        return min(doubled, self._every)

    async def _mind(self, error: SourceError | StoreError) -> None:
        self._failing += 1
        code = error.code if isinstance(error, SourceError) else "STORE"
        detail = error.detail if isinstance(error, SourceError) else str(error)
        if self._failing == 1 and isinstance(error, ApplicationRefused):
            self._log.error("application.refused", code=code, detail=detail, mend=CREDENTIALS)
        elif self._failing == 1:
            self._log.warning("consents.unreadable", code=code, detail=detail)
        self.trouble = f"application {self._application}: {detail} ({code})"
        if isinstance(error, ApplicationRateLimited) and error.code != OURS:
            await self._cars.kept(lambda: self._purse.close(error.retry_after or timedelta(minutes=1)))

    async def sync(self, ticket: Ticket) -> None:
        """Enrol who is new, revive who consented anew, let go who is gone.

        A car is gone only when a complete list lacks it and a question for it alone is answered with none:
        the list may shift between two of its pages.
        """
        seen: set[str] = set()
        async for consent in self._source.consents(ticket):
            seen.add(consent.vehicle_ref)
            await self.adopt(consent)
        async for car in self._mine():
            consent = car.vehicle.consent
            if consent.vehicle_ref in seen or car.vehicle.withdrawn_at is not None:
                continue
            if not await self._source.consent_stands(consent, ticket):
                await self._withdraw(car, "the consent was withdrawn", "vehicle.withdrawn")
        await self.count()

    async def _mine(self) -> AsyncIterator[Car]:
        """The cars of this application, however large the fleet without holding up the loop."""
        for number, car in enumerate(self._fleet):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            if car.vehicle.consent.application == self._application:
                yield car

    async def adopt(self, consent: Consent, *, just_given: bool = False) -> Car | None:
        """The car of this consent: enrolled, revived, brought up to date. None: a consent that we ended.

        ``just_given``: its owner consented this minute, so whatever was wrong with the consent is over.
        """
        async with self._adopting:  # the list and a welcome may come upon the same new car at the same time
            if just_given:
                self._ended.discard(consent.connection_id)
            if consent.connection_id in self._ended:
                return None
            known = self._fleet.by_ref(self._application, consent.vehicle_ref)
            if known is None:
                return await self._enrol(consent)
            return await self._renew(known, consent, just_given)

    async def _enrol(self, consent: Consent) -> Car:
        car = await self._cars.enrol(consent, self.invited.get(consent.user_ref))
        self._purse.cars += 1
        self._log.info("vehicle.enrolled", vehicle=car.slug, make=consent.make, brand=car.vehicle.brand)
        return car

    async def _renew(self, car: Car, consent: Consent, just_given: bool) -> Car:
        revived = car.vehicle.withdrawn_at is not None or (just_given and not car.consented)
        if car.vehicle.consent == consent and not revived:
            return car
        anew = revived or (
            car.vehicle.consent.connection_id != consent.connection_id
            or car.vehicle.consent.permissions != consent.permissions
        )

        def renewed(now_car: Car) -> Car:
            brand = self._cars.brand_of(consent.make)
            vehicle = replace(now_car.vehicle, consent=consent, brand=brand, withdrawn_at=None)
            if now_car.vehicle.withdrawn_at is not None:  # then whoever brings it back is whose it is
                vehicle = replace(vehicle, invited=self.invited.get(consent.user_ref, vehicle.invited))
            if not anew:
                return replace(now_car, vehicle=vehicle)
            now = self._clock.now()
            if now_car.vehicle.consent.connection_id != consent.connection_id:
                vehicle = replace(vehicle, renewed_at=now)
            profile, polled_at = self._fleet.profiles[brand], now_car.schedule.polled_at
            first = consented_anew(profile, vehicle.spread, polled_at, now)
            schedule = replace(now_car.schedule, due=first.at, reason=first.reason, failures=0)
            return replace(now_car, vehicle=vehicle, schedule=schedule, trouble=None)

        after = await self._cars.change(car.id, renewed)
        if anew:
            self._log.info("vehicle.consented_anew", vehicle=car.slug)
        return after

    async def disconnect(self, car: Car) -> Car:
        """End its consent at the source, and ask no more. Raises CannotChange if the source did not."""
        consent = car.vehicle.consent
        if car.vehicle.withdrawn_at is not None:
            return car
        try:
            await self._source.revoke(consent, self._purse.ticket(None))
        except (SourceError, StoreError) as error:
            why = error.detail if isinstance(error, SourceError) else str(error)
            raise CannotChange(
                f"Smartcar did not end the consent ({why}). Nothing was changed: try again later, or have "
                "the owner end it at https://my.smartcar.com."
            ) from error
        self._ended.add(consent.connection_id)
        async with self._adopting:
            after = await self._withdraw(self._fleet[car.id], "disconnected here", "vehicle.disconnected")
        await self.count()
        return after

    async def _withdraw(self, car: Car, reason: str, event: str) -> Car:
        def withdrawn(now_car: Car) -> Car:
            now = self._clock.now()
            vehicle = replace(now_car.vehicle, withdrawn_at=now_car.vehicle.withdrawn_at or now)
            schedule = replace(now_car.schedule, due=None, reason=reason, pushed_at=None)
            return replace(now_car, vehicle=vehicle, schedule=schedule)

        after = await self._cars.change(car.id, withdrawn)
        self._log.warning(event, vehicle=car.slug)
        return after

"""Owners who have just consented: their cars are enrolled at once, not when the list is read again."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace
from datetime import datetime, timedelta

from evbatteryd.domain.enrolment import Enrolment
from evbatteryd.domain.errors import SourceError, StoreError
from evbatteryd.domain.fleet import Car, brought_by
from evbatteryd.domain.ports import Clock, EnrolmentStore, Log, Source
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.purse import Purse
from evbatteryd.flow.roster import Roster

FIRST_PAUSE = timedelta(seconds=2)
LONGEST_PAUSE = timedelta(hours=1)
PATIENCE = timedelta(days=1)
"""How long Smartcar is asked for the cars of a consent while it does not answer."""
PATIENCE_WITH_NONE = timedelta(hours=1)
"""How long, while it answers that there is none. After that the list brings them, should they ever come."""
SECOND_LOOK = timedelta(minutes=1)
"""After the first car was found, for others of the same owner that are listed later."""
AT_ONCE = 4
"""Welcomes that ask at the same time: whoever comes later waits, and polls get their turn."""


class Welcome:
    """Of one application: each consent that came through Connect, until its cars are enrolled."""

    def __init__(
        self,
        application: str,
        roster: Roster,
        source: Source,
        purse: Purse,
        cars: Cars,
        store: EnrolmentStore,
        clock: Clock,
        log: Log,
    ) -> None:
        self.application = application
        self._roster = roster
        self._source = source
        self._purse = purse
        self._cars = cars
        self._store = store
        self._clock = clock
        self._log = log.bind(application=application)
        self._awaited: deque[Enrolment] = deque()
        self._more = asyncio.Event()
        self._turns = asyncio.Semaphore(AT_ONCE)

    def add(self, enrolment: Enrolment) -> None:
        """This consent was committed; or it was before a restart."""
        if enrolment.user_ref is not None and enrolment.invited is not None:
            self._roster.invited[enrolment.user_ref] = enrolment.invited
        self._awaited.append(enrolment)
        self._more.set()

    async def run(self) -> None:
        """Welcome for ever. One who cannot be welcomed yet keeps nobody else waiting."""
        async with asyncio.TaskGroup() as welcomes:
            while True:
                await self._more.wait()
                self._more.clear()
                while self._awaited:
                    welcomes.create_task(self._welcome(self._awaited.popleft()), name="welcome")

    async def _welcome(self, enrolment: Enrolment) -> None:
        user, consented_at = enrolment.user_ref, enrolment.ended_at or enrolment.begun_at
        if user is not None and await self._found(user, consented_at, enrolment):
            await self._arrived(enrolment)
            await self._clock.sleep(SECOND_LOOK)
            await self._look(user, enrolment, said=True)
        else:
            await self._arrived(enrolment)

    async def _arrived(self, enrolment: Enrolment) -> None:
        now = self._clock.now()
        await self._cars.kept(lambda: self._store.arrived(enrolment.id, now))

    async def _found(self, user: str, consented_at: datetime, enrolment: Enrolment) -> bool:
        """Look until there is a car, or no sense in looking any more."""
        pause, failing = FIRST_PAUSE, False
        while True:
            found = await self._look(user, enrolment, said=failing)
            if found:
                return True
            failing = failing or found is None
            waited = self._clock.now() - consented_at
            if waited >= (PATIENCE if found is None else PATIENCE_WITH_NONE):
                return False
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _look(self, user: str, enrolment: Enrolment, *, said: bool) -> int | None:
        """How many cars that user consents to, all of them enrolled; None: Smartcar or the store failed."""
        async with self._turns:
            try:
                return await self._enrol_all(user, enrolment)
            except (SourceError, StoreError) as error:
                if not said:
                    why = error.detail if isinstance(error, SourceError) else str(error)
                    self._log.warning("enrolment.waiting", reason=why)
            except Exception:
                # Whatever this one does to us, every other one is welcomed.
                if not said:
                    self._log.exception("enrolment.bug")
            return None

    async def _enrol_all(self, user: str, enrolment: Enrolment) -> int:
        consents = await self._source.consents_of(user, self._purse.ticket(None))
        for consent in consents:
            car = await self._roster.adopt(consent, just_given=True)
            if car is not None and enrolment.invited is not None and brought_by(enrolment, car):
                await self._cars.change(car.id, lambda now: _invited(now, enrolment.invited))
        await self._roster.count()
        return len(consents)


def _invited(car: Car, name: str | None) -> Car:
    """The regular list may have found it first, and not known whose it is."""
    vehicle = car.vehicle
    return car if vehicle.invited else replace(car, vehicle=replace(vehicle, invited=name))

"""Owners who have just consented: their cars are enrolled at once, not when the list is read again."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta

from evbatteryd.domain.enrolment import Enrolment
from evbatteryd.domain.errors import SourceError, StoreError
from evbatteryd.domain.ports import Clock, EnrolmentStore, Log, Source
from evbatteryd.flow.cars import Cars
from evbatteryd.flow.purse import Purse
from evbatteryd.flow.roster import Roster

FIRST_PAUSE = timedelta(seconds=2)
LONGEST_PAUSE = timedelta(minutes=5)
PATIENCE = timedelta(days=1)
"""How long the cars of a consent are looked for. After that the list brings them, should they ever come."""


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
        pause, said = FIRST_PAUSE, False
        while user is not None and self._clock.now() - consented_at < PATIENCE:
            try:
                found = await self._enrol_all(user)
            except (SourceError, StoreError) as error:
                found = 0
                if not said:
                    said = True
                    why = error.detail if isinstance(error, SourceError) else str(error)
                    self._log.warning("enrolment.waiting", reason=why)
            except Exception:
                # Whatever this one does to us, every other one is welcomed.
                found = 0
                if not said:
                    said = True
                    self._log.exception("enrolment.bug")
            if found:
                break
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        now = self._clock.now()
        await self._cars.kept(lambda: self._store.arrived(enrolment.id, now))
        if user is not None:
            self._roster.invited.pop(user, None)

    async def _enrol_all(self, user: str) -> int:
        """How many cars that user consents to."""
        consents = await self._source.consents_of(user, self._purse.ticket(None))
        for consent in consents:
            await self._roster.adopt(consent, just_given=True)
        await self._roster.count()
        return len(consents)

"""Begin, complete, invite: what happens between an owner's click and the first poll of their car."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from evbatteryd.domain.enrolment import (
    ENROLMENT_LASTS,
    INVITATION_LASTS,
    Ending,
    Enrolment,
    EnrolmentId,
    Invitation,
    InvitationId,
    InvitationState,
    Refusal,
    invitation_state,
    refusal,
)
from evbatteryd.domain.ports import Clock, EnrolmentStore, Log
from evbatteryd.domain.vehicle import LONGEST_NAME, tidy_name
from evbatteryd.enrol.consent import ConnectOptions, connect_url, digest, pasted, read_answer

LONGEST_INVITATION = timedelta(days=90)


class CannotEnrol(Exception):
    """Nobody can be sent to Connect as things stand; the text says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class Begun:
    """Somebody may set out now."""

    enrolment: Enrolment
    link: str = field(repr=False)
    """Connect's address, with a state that counts once."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An answer that counts."""

    enrolment: Enrolment
    ending: Ending
    car: str | None = None
    """The car that is not compatible, if its owner agreed to tell."""


class Enrolments:
    """Every consent on its way. ``welcome`` is told of each that arrives, after it is committed."""

    def __init__(
        self,
        store: EnrolmentStore,
        clock: Clock,
        log: Log,
        applications: Mapping[str, ConnectOptions],
        welcome: Callable[[Enrolment], None],
    ) -> None:
        self._store = store
        self._clock = clock
        self._log = log
        self._applications = applications
        self._welcome = welcome

    @property
    def applications(self) -> list[str]:
        """Those that owners can be sent to Connect for."""
        return [name for name, options in self._applications.items() if options.application_id]

    def options(self, application: str | None) -> ConnectOptions:
        """The application of that name; of the only one if none is named. Raises CannotEnrol."""
        if application is None:
            ready = self.applications
            if len(ready) > 1:
                raise CannotEnrol(f"There are several applications: name one of {', '.join(ready)}.")
            application = ready[0] if ready else next(iter(self._applications), "")
        options = self._applications.get(application)
        if options is None:
            raise CannotEnrol(
                f"There is no application {application!r}: see [smartcar.NAME] in the configuration."
            )
        if not options.application_id:
            raise CannotEnrol(
                f"Set application_id in [smartcar.{application}]: the application's id (a UUID) at "
                "https://dashboard.smartcar.com, which is not its client_id."
            )
        return options

    async def begin(
        self,
        *,
        redirect_uri: str,
        browser: str | None,
        application: str | None = None,
        invitation: Invitation | None = None,
        make: str | None = None,
        country: str | None = None,
    ) -> Begun | Refusal:
        """Set out. ``browser``: the value of its cookie; None: a terminal. Raises CannotEnrol, StoreError."""
        now = self._clock.now()
        if invitation is not None:
            if invitation_state(invitation, now) is not InvitationState.OPEN:
                return Refusal.INVITATION
            application = invitation.application
        options = self.options(application)
        state = secrets.token_urlsafe(32)
        enrolment = await self._store.begin(
            application=options.application,
            state=digest(state),
            browser=None if browser is None else digest(browser),
            invitation=None if invitation is None else invitation.id,
            begun_at=now,
            # People need their time, however fast the clock runs in a time-lapse.
            expires_at=now + ENROLMENT_LASTS * self._clock.speed,
        )
        link = connect_url(options, redirect_uri=redirect_uri, state=state, make=make, country=country)
        return Begun(enrolment, link)

    async def complete(
        self, query: Mapping[str, str], *, browser: str | None, operator: bool = False, operates: bool = False
    ) -> Ended | Refusal:
        """Take Connect's answer, once. Raises StoreError, and then nothing is changed.

        ``operator``: it was pasted by whoever runs evbatteryd. ``operates``: it came in such a person's
        browser, which is enough for an enrolment that was begun in a terminal, but not for one that another
        browser began: whoever made them open the address need not be who consented.
        """
        answer = read_answer(query)
        if isinstance(answer, Refusal):
            return answer
        now = self._clock.now()
        enrolment = await self._store.enrolment(digest(answer.state))
        bearer = operator or (operates and enrolment is not None and enrolment.browser is None)
        refused = refusal(enrolment, None if browser is None else digest(browser), bearer=bearer, now=now)
        if refused is not None or enrolment is None:
            return refused or Refusal.UNKNOWN
        ended = await self._store.end(enrolment.id, ending=answer.ending, user_ref=answer.user_ref, at=now)
        if ended is None:  # of two answers at once, the other one counted; or the invitation went meanwhile
            again = await self._store.enrolment_by_id(enrolment.id)
            used = again is not None and again.ended_at is not None
            return Refusal.REPLAYED if used else Refusal.INVITATION
        self._log.info("enrolment.ended", application=ended.application, ending=answer.ending.value)
        if answer.ending is Ending.CONSENTED:
            self._welcome(ended)
        return Ended(ended, answer.ending, answer.car)

    async def complete_pasted(self, text: str, *, browser: str | None, operator: bool) -> Ended | Refusal:
        """The same for an address copied out of a browser. Raises StoreError."""
        return await self.complete(pasted(text), browser=browser, operator=operator)

    async def find(self, enrolment: EnrolmentId) -> Enrolment | None:
        """Raises StoreError."""
        return await self._store.enrolment_by_id(enrolment)

    async def invite(
        self, name: str, *, application: str | None = None, lasts: timedelta = INVITATION_LASTS
    ) -> tuple[Invitation, str]:
        """A new invitation, and the token of its link: it cannot be had again.

        Raises CannotEnrol, StoreError.
        """
        tidy = tidy_name(name)
        if tidy is None:
            raise CannotEnrol(f"Say whom the invitation is for, in 1 to {LONGEST_NAME} characters.")
        if not timedelta() < lasts <= LONGEST_INVITATION:
            raise CannotEnrol(f"An invitation lasts at most {LONGEST_INVITATION.days} days.")
        options, now, token = self.options(application), self._clock.now(), secrets.token_urlsafe(24)
        invitation = await self._store.invite(
            name=tidy,
            application=options.application,
            token=digest(token),
            created_at=now,
            expires_at=now + lasts * self._clock.speed,
        )
        self._log.info("invitation.made", application=options.application, expires=invitation.expires_at)
        return invitation, token

    async def invitation(self, token: str) -> Invitation | None:
        """The invitation of a link. Raises StoreError."""
        return await self._store.invitation(digest(token))

    async def invitations(self, limit: int = 100) -> list[Invitation]:
        """The newest ones first. Raises StoreError."""
        return await self._store.invitations(limit)

    async def revoke(self, invitation: InvitationId) -> Invitation | None:
        """Take it back. None: there is none. Raises StoreError."""
        return await self._store.revoke_invitation(invitation, self._clock.now())

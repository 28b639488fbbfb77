"""Invitations and enrolments in the store's SQLite file.

Everything that decides who comes first is decided inside one transaction of the one thread that writes.
"""

from __future__ import annotations

import sqlite3
from datetime import datetime
from typing import Final

from evbatteryd.domain.enrolment import Ending, Enrolment, EnrolmentId, Invitation, InvitationId
from evbatteryd.domain.errors import StoreError
from evbatteryd.store import codec, database
from evbatteryd.store import statements as sql
from evbatteryd.store.codec import Row
from evbatteryd.store.threads import Threads

_FORGET_SLICE: Final = 2000
"""Notes of deliveries that one transaction deletes at most: a few milliseconds for whoever writes."""


class Enrolments:
    """Implements :class:`evbatteryd.domain.ports.EnrolmentStore`."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def invite(
        self, *, name: str, application: str, token: bytes, created_at: datetime, expires_at: datetime
    ) -> Invitation:
        """A new invitation; ``token`` is the digest of what its link holds."""
        created_ms, expires_ms = codec.to_ms(created_at), codec.to_ms(expires_at)

        def operation(db: sqlite3.Connection) -> Invitation:
            application_id = database.application_key(db, application)
            row = (token, name, application_id, created_ms, expires_ms)
            [key] = db.execute(sql.INVITE, row).fetchall()
            return codec.decode_invitation(db.execute(sql.INVITATION_BY_ID, key).fetchone())

        return await self._threads.write(operation)

    async def invitation(self, token: bytes) -> Invitation | None:
        """The invitation with this digest."""

        def query(db: sqlite3.Connection) -> Invitation | None:
            return _invitation(db, sql.INVITATION, (token,))

        return await self._threads.read(query)

    async def invitations(self, limit: int) -> list[Invitation]:
        """The newest ones first."""

        def query(db: sqlite3.Connection) -> list[Invitation]:
            return [codec.decode_invitation(row) for row in db.execute(sql.INVITATIONS, (limit,))]

        return await self._threads.read(query)

    async def revoke_invitation(self, invitation: InvitationId, at: datetime) -> Invitation | None:
        """Nobody may use it any more; None if there is none. One that was used stays as it is."""
        at_ms = codec.to_ms(at)

        def operation(db: sqlite3.Connection) -> Invitation | None:
            db.execute(sql.REVOKE_INVITATION, (at_ms, invitation))
            return _invitation(db, sql.INVITATION_BY_ID, (invitation,))

        return await self._threads.write(operation)

    async def begin(
        self,
        *,
        application: str,
        state: bytes,
        browser: bytes | None,
        invitation: InvitationId | None,
        begun_at: datetime,
        expires_at: datetime,
    ) -> Enrolment:
        """Somebody sets out; ``state`` is the digest of the state that comes back."""
        begun_ms, expires_ms = codec.to_ms(begun_at), codec.to_ms(expires_at)

        def operation(db: sqlite3.Connection) -> Enrolment:
            if invitation is not None and _invitation(db, sql.INVITATION_BY_ID, (invitation,)) is None:
                raise StoreError(f"there is no invitation {invitation}")
            application_id = database.application_key(db, application)
            row = (state, browser, application_id, invitation, begun_ms, expires_ms)
            [key] = db.execute(sql.BEGIN_ENROLMENT, row).fetchall()
            return codec.decode_enrolment(db.execute(sql.ENROLMENT_BY_ID, key).fetchone())

        return await self._threads.write(operation)

    async def enrolment(self, state: bytes) -> Enrolment | None:
        """The enrolment with this digest."""
        return await self._threads.read(lambda db: _enrolment(db, sql.ENROLMENT, (state,)))

    async def enrolment_by_id(self, enrolment: EnrolmentId) -> Enrolment | None:
        """The enrolment with this key."""
        return await self._threads.read(lambda db: _enrolment(db, sql.ENROLMENT_BY_ID, (enrolment,)))

    async def end(
        self, enrolment: EnrolmentId, *, ending: Ending, user_ref: str | None, at: datetime
    ) -> Enrolment | None:
        """Note how it ended, and a consent's invitation as used, if neither has happened yet.

        None, and nothing is written: it has ended already, or the invitation is not open at ``at``.
        """
        at_ms = codec.to_ms(at)

        def operation(db: sqlite3.Connection) -> Enrolment | None:
            under_way = db.execute(sql.UNDER_WAY, (enrolment,)).fetchone()
            if under_way is None:
                return None
            [invitation] = under_way
            if ending is Ending.CONSENTED and invitation is not None:
                # Checked and used in one statement; the enrolment is not touched before it has succeeded.
                used = db.execute(sql.USE_INVITATION, {"at_ms": at_ms, "invitation": invitation})
                if used.rowcount == 0:
                    return None
            db.execute(sql.END_ENROLMENT, (at_ms, ending.value, user_ref, enrolment))
            return _enrolment(db, sql.ENROLMENT_BY_ID, (enrolment,))

        return await self._threads.write(operation)

    async def awaited(self) -> list[Enrolment]:
        """Those that ended with a consent and whose cars have not been enrolled yet, oldest first."""

        def query(db: sqlite3.Connection) -> list[Enrolment]:
            return [codec.decode_enrolment(row) for row in db.execute(sql.AWAITED)]

        return await self._threads.read(query)

    async def arrived(self, enrolment: EnrolmentId, at: datetime) -> None:
        """The cars of this consent are enrolled. Nothing happens if that, or the enrolment, is past."""
        row = (codec.to_ms(at), enrolment)
        await self._threads.write(lambda db: db.execute(sql.ARRIVED, row).rowcount)

    async def forget_enrolments(self, before: datetime) -> None:
        """Delete enrolments and invitations that expired before that.

        An invitation goes no sooner than the last enrolment that was begun by it.
        """
        before_ms = codec.to_ms_up(before)

        def operation(db: sqlite3.Connection) -> None:
            db.execute(sql.FORGET_ENROLMENTS, (before_ms,))
            db.execute(sql.FORGET_INVITATIONS, (before_ms,))

        await self._threads.write(operation)

    async def forget_events(self, before: datetime) -> None:
        """Delete the notes of deliveries that were committed before that, some at a time."""
        bounds = (codec.to_ms_up(before), _FORGET_SLICE)
        while await self._threads.write(lambda db: db.execute(sql.FORGET_EVENTS, bounds).rowcount):
            pass


def _invitation(db: sqlite3.Connection, statement: str, key: Row) -> Invitation | None:
    found = db.execute(statement, key).fetchone()
    return None if found is None else codec.decode_invitation(found)


def _enrolment(db: sqlite3.Connection, statement: str, key: Row) -> Enrolment | None:
    found = db.execute(statement, key).fetchone()
    return None if found is None else codec.decode_enrolment(found)

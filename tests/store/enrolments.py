"""Invitations and enrolments for the tests of the store."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from evbatteryd.domain.enrolment import (
    ENROLMENT_LASTS,
    INVITATION_LASTS,
    Ending,
    Enrolment,
    EnrolmentId,
    Invitation,
    InvitationId,
)
from evbatteryd.domain.ports import EnrolmentStore
from tests.store.cars import START


def digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def invited(
    store: EnrolmentStore,
    number: int = 1,
    *,
    at: datetime = START,
    lasts: timedelta = INVITATION_LASTS,
) -> Invitation:
    return await store.invite(
        name=f"Guest {number}",
        application="home",
        token=digest(f"token {number}"),
        created_at=at,
        expires_at=at + lasts,
    )


async def begun(
    store: EnrolmentStore,
    number: int = 1,
    *,
    invitation: InvitationId | None = None,
    browser: bytes | None = None,
    at: datetime = START,
) -> Enrolment:
    return await store.begin(
        application="home",
        state=digest(f"state {number}"),
        browser=browser,
        invitation=invitation,
        begun_at=at,
        expires_at=at + ENROLMENT_LASTS,
    )


async def consented(
    store: EnrolmentStore, enrolment: EnrolmentId, at: datetime = START, user: str = "user-1"
) -> Enrolment | None:
    return await store.end(enrolment, ending=Ending.CONSENTED, user_ref=user, at=at)

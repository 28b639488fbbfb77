"""What every store promises about consents on their way."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from evbatteryd.domain.enrolment import (
    ENROLMENT_LASTS,
    INVITATION_LASTS,
    Ending,
    EnrolmentId,
    InvitationId,
    InvitationState,
    invitation_state,
)
from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.ports import EnrolmentStore, Store
from tests.store.cars import MINUTE, START, answer, enrolled
from tests.store.conftest import Opener
from tests.store.enrolments import begun, consented, digest, invited

MILLISECOND = timedelta(milliseconds=1)
NONE_SUCH = 4711
REFUSED = [ending for ending in Ending if ending is not Ending.CONSENTED]


async def test_an_invitation_is_found_by_its_digest_after_a_restart(opener: Opener) -> None:
    async with opener() as store:
        assert await store.invitations(10) == []
        one, two, three = [await invited(store, number) for number in (1, 2, 3)]
    async with opener() as store:
        assert await store.invitation(digest("token 2")) == two
        assert await store.invitation(digest("another")) is None
        assert await store.invitations(2) == [three, two]
        assert await store.invitations(10) == [three, two, one]
    assert (one.name, one.application, one.expires_at) == ("Guest 1", "home", START + INVITATION_LASTS)


async def test_no_two_invitations_and_no_two_enrolments_have_one_digest(store: EnrolmentStore) -> None:
    one, other = await invited(store), await begun(store)
    for again in (invited, begun):
        with pytest.raises(StoreError):
            await again(store)
    assert await store.invitations(10) == [one]
    assert await store.enrolment(digest("state 1")) == other


async def test_an_invitation_is_revoked_once_and_for_all(store: EnrolmentStore) -> None:
    one, other = await invited(store, 1), await invited(store, 2)
    revoked = replace(one, revoked_at=START + MINUTE)
    assert await store.revoke_invitation(one.id, START + MINUTE) == revoked
    assert await store.revoke_invitation(one.id, START + 2 * MINUTE) == revoked
    assert await store.revoke_invitation(InvitationId(NONE_SUCH), START) is None
    assert await store.invitations(10) == [other, revoked]


async def test_a_used_invitation_is_not_revoked(store: EnrolmentStore) -> None:
    invitation = await invited(store)
    await consented(store, (await begun(store, invitation=invitation.id)).id)
    used = replace(invitation, used_at=START)
    assert await store.revoke_invitation(invitation.id, START + MINUTE) == used
    assert await store.invitation(digest("token 1")) == used


async def test_an_enrolment_is_found_by_its_digest_and_its_key_after_a_restart(opener: Opener) -> None:
    async with opener() as store:
        invitation = await invited(store)
        guest = await begun(store, 1, invitation=invitation.id, browser=digest("cookie"))
        terminal = await begun(store, 2)
    async with opener() as store:
        assert await store.enrolment(digest("state 1")) == guest
        assert await store.enrolment_by_id(terminal.id) == terminal
        assert await store.enrolment(digest("forged")) is None
        assert await store.enrolment_by_id(EnrolmentId(NONE_SUCH)) is None
    assert (guest.browser, guest.invitation, guest.invited) == (digest("cookie"), invitation.id, "Guest 1")
    assert (terminal.browser, terminal.invitation, terminal.invited) == (None, None, None)
    assert (guest.begun_at, guest.expires_at, guest.ended_at) == (START, START + ENROLMENT_LASTS, None)


async def test_an_enrolment_by_an_invitation_nobody_made(store: EnrolmentStore) -> None:
    with pytest.raises(StoreError, match="no invitation 4711"):
        await begun(store, invitation=InvitationId(NONE_SUCH))
    assert await store.enrolment(digest("state 1")) is None


async def test_it_ends_once(store: EnrolmentStore) -> None:
    enrolment = await begun(store)
    ended = await consented(store, enrolment.id)
    assert ended == replace(enrolment, ending=Ending.CONSENTED, user_ref="user-1", ended_at=START)
    assert await store.end(enrolment.id, ending=Ending.DENIED, user_ref=None, at=START + MINUTE) is None
    assert await consented(store, EnrolmentId(NONE_SUCH)) is None
    assert await store.enrolment_by_id(enrolment.id) == ended


@pytest.mark.parametrize("by_invitation", [False, True])
async def test_of_many_answers_at_once_one_counts(store: EnrolmentStore, by_invitation: bool) -> None:
    invitation = await invited(store) if by_invitation else None
    enrolment = await begun(store, invitation=invitation and invitation.id)
    answers = await asyncio.gather(
        *(consented(store, enrolment.id, user=f"user-{number}") for number in range(20)),
        *(store.end(enrolment.id, ending=ending, user_ref=None, at=START) for ending in REFUSED),
    )
    [counted] = [found for found in answers if found is not None]
    assert await store.enrolment_by_id(enrolment.id) == counted


async def test_of_many_consents_by_one_invitation_one_counts(store: EnrolmentStore) -> None:
    invitation = await invited(store)
    trips = [await begun(store, number, invitation=invitation.id) for number in range(20)]
    answers = await asyncio.gather(*(consented(store, trip.id) for trip in trips))
    [counted] = [found for found in answers if found is not None]
    assert await store.awaited() == [counted]
    for trip in trips:
        assert await store.enrolment_by_id(trip.id) == (counted if trip.id == counted.id else trip)


@pytest.mark.parametrize("late", [False, True])
async def test_an_invitation_that_is_not_open_keeps_a_consent_from_being_noted(
    store: EnrolmentStore, late: bool
) -> None:
    expires = START + ENROLMENT_LASTS / 2
    invitation = await invited(store, lasts=ENROLMENT_LASTS / 2)
    enrolment = await begun(store, invitation=invitation.id)
    if late:
        assert await consented(store, enrolment.id, expires) is None
    else:
        await store.revoke_invitation(invitation.id, START)
        assert await consented(store, enrolment.id, START + MINUTE) is None
    assert await store.enrolment_by_id(enrolment.id) == enrolment
    assert await store.awaited() == []
    [after] = await store.invitations(1)
    assert after.used_at is None
    # What is no consent needs no invitation.
    assert await store.end(enrolment.id, ending=Ending.DENIED, user_ref=None, at=expires) is not None


async def test_an_invitation_is_open_until_the_instant_it_expires(store: EnrolmentStore) -> None:
    invitation = await invited(store)
    enrolment = await begun(store, invitation=invitation.id)
    last = invitation.expires_at - MILLISECOND
    assert invitation_state(invitation, last) is InvitationState.OPEN
    assert await consented(store, enrolment.id, last) is not None
    assert await store.invitation(digest("token 1")) == replace(invitation, used_at=last)


@pytest.mark.parametrize("ending", REFUSED)
async def test_an_ending_without_consent_leaves_the_invitation_open(
    store: EnrolmentStore, ending: Ending
) -> None:
    invitation = await invited(store)
    first = await begun(store, 1, invitation=invitation.id)
    ended = await store.end(first.id, ending=ending, user_ref=None, at=START)
    assert ended == replace(first, ending=ending, ended_at=START)
    assert await store.invitation(digest("token 1")) == invitation
    second = await begun(store, 2, invitation=invitation.id)
    assert await consented(store, second.id) is not None


async def test_a_consent_is_awaited_until_its_cars_arrived(opener: Opener) -> None:
    async with opener() as store:
        trips = [await begun(store, number) for number in range(4)]
        await store.end(trips[0].id, ending=Ending.DENIED, user_ref=None, at=START)
        later = await consented(store, trips[1].id, START + 2 * MINUTE)
        sooner = await consented(store, trips[2].id, START + MINUTE)
    async with opener() as store:
        assert await store.awaited() == [sooner, later]
        assert sooner is not None
        await store.arrived(sooner.id, START + 3 * MINUTE)
        await store.arrived(sooner.id, START + 9 * MINUTE)
        await store.arrived(EnrolmentId(NONE_SUCH), START)
        assert await store.awaited() == [later]
        arrived = replace(sooner, arrived_at=START + 3 * MINUTE)
        assert await store.enrolment_by_id(sooner.id) == arrived


async def test_what_expired_long_since_is_forgotten(store: EnrolmentStore) -> None:
    day = timedelta(days=1)
    old, used = await invited(store, 1, lasts=day), await invited(store, 2, lasts=day)
    new = await invited(store, 3, at=START + day)
    gone = await begun(store, 1, invitation=used.id)
    await consented(store, gone.id)
    late = await begun(store, 2, invitation=old.id, at=START + day)
    await store.forget_enrolments(late.expires_at)
    assert await store.enrolment_by_id(gone.id) is None
    # It is still shown by whose invitation somebody is under way.
    assert await store.enrolment_by_id(late.id) == late
    assert await store.invitations(10) == [new, old]
    await store.forget_enrolments(late.expires_at + MILLISECOND)
    assert await store.enrolment_by_id(late.id) is None
    assert await store.invitations(10) == [new]
    assert (await begun(store, 2)).id > late.id  # nobody is ever taken for another


async def test_notes_of_deliveries_are_forgotten_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evbatteryd.store.enrolments._FORGET_SLICE", 2)
    car = await enrolled(store)
    for minute in range(9):
        await store.record(answer(car, minute, event_id=str(minute)))
    await store.forget_events(START + 6 * MINUTE)  # each came a minute after it was measured
    assert await store.recent_events(START, 10) == ["5", "6", "7", "8"]

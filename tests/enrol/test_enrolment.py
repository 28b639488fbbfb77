"""A state counts once, in one browser, for an hour; an invitation enrols once; all of it durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import structlog

from evbatteryd.domain.enrolment import Ending, Enrolment, InvitationState, Refusal, invitation_state
from evbatteryd.enrol.consent import ConnectOptions
from evbatteryd.enrol.enrolment import Begun, CannotEnrol, Ended, Enrolments
from evbatteryd.store.sqlite import SqliteStore, open_store
from tests.fakes import VirtualClock

CALLBACK = "http://localhost:9782/enrol/callback"
USER = "36ab27d0-fd9d-4455-823a-ce30af709ffc"
OPTIONS = {"home": ConnectOptions(application="home", application_id="app", connect_origin="https://connect")}


@dataclass
class Desk:
    store: SqliteStore
    clock: VirtualClock
    enrolments: Enrolments
    welcomed: list[Enrolment]
    logged: list[dict[str, object]] = field(default_factory=list)

    async def begun(self, browser: str | None = "browser", **more: object) -> tuple[Begun, str]:
        begun = await self.enrolments.begin(redirect_uri=CALLBACK, browser=browser, **more)
        assert isinstance(begun, Begun)
        (state,) = parse_qs(urlsplit(begun.link).query)["state"]
        return begun, state

    async def consent(self, state: str, browser: str | None = "browser", **more: bool) -> Ended | Refusal:
        return await self.enrolments.complete({"state": state, "user_id": USER}, browser=browser, **more)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_store(tmp_path / "evbatteryd.db") as store:
        yield desk_over(store, VirtualClock())


def desk_over(
    store: SqliteStore, clock: VirtualClock, options: dict[str, ConnectOptions] | None = None
) -> Desk:
    welcomed: list[Enrolment] = []
    logged: list[dict[str, object]] = []

    def keep(_: object, __: str, event: dict[str, object]) -> str:
        logged.append(event)
        raise structlog.DropEvent

    log = structlog.wrap_logger(
        None, processors=[keep], wrapper_class=structlog.make_filtering_bound_logger(0)
    )
    enrolments = Enrolments(store, clock, log, OPTIONS if options is None else options, welcomed.append)
    return Desk(store, clock, enrolments, welcomed, logged)


async def test_click_consent_and_the_car_is_awaited(desk: Desk) -> None:
    begun, state = await desk.begun()
    ended = await desk.consent(state)
    assert isinstance(ended, Ended)
    assert ended.ending is Ending.CONSENTED
    assert [enrolment.id for enrolment in desk.welcomed] == [begun.enrolment.id]
    assert [enrolment.user_ref for enrolment in await desk.store.awaited()] == [USER]
    assert USER not in str(desk.logged)
    assert state not in str(desk.logged)
    assert state not in repr(begun)


async def test_a_state_counts_once_even_for_two_answers_at_once(desk: Desk) -> None:
    _, state = await desk.begun()
    answers = await asyncio.gather(*(desk.consent(state) for _ in range(5)))
    assert sorted(map(str, (getattr(answer, "ending", answer) for answer in answers))) == [
        "consented",
        *["replayed"] * 4,
    ]
    assert len(desk.welcomed) == 1
    assert await desk.consent(state) is Refusal.REPLAYED


async def test_a_forged_state_and_one_without_a_beginning_change_nothing(desk: Desk) -> None:
    assert await desk.consent("x" * 43) is Refusal.UNKNOWN
    assert desk.welcomed == []


async def test_a_state_counts_for_an_hour(desk: Desk) -> None:
    _, state = await desk.begun()
    await desk.clock.advance(timedelta(hours=1))
    assert await desk.consent(state) is Refusal.EXPIRED
    assert desk.welcomed == []


@pytest.mark.parametrize("browser", ["another", None])
async def test_a_state_counts_in_the_browser_that_began(desk: Desk, browser: str | None) -> None:
    _, state = await desk.begun()
    assert await desk.consent(state, browser) is Refusal.OTHER_BROWSER
    assert await desk.consent(state, browser, operates=True) is Refusal.OTHER_BROWSER
    assert isinstance(await desk.consent(state), Ended), "nobody else could use it up"


async def test_the_operator_may_bring_what_any_browser_got(desk: Desk) -> None:
    _, state = await desk.begun()
    address = f"{CALLBACK}?state={state}&user_id={USER}"
    assert isinstance(await desk.enrolments.complete_pasted(address, browser=None, operator=True), Ended)


async def test_one_begun_in_a_terminal_ends_at_the_operator_s_or_pasted_and_nowhere_else(desk: Desk) -> None:
    _, state = await desk.begun(browser=None)
    assert await desk.consent(state, "browser") is Refusal.OTHER_BROWSER
    assert await desk.consent(state, None) is Refusal.OTHER_BROWSER
    assert isinstance(await desk.consent(state, None, operates=True), Ended)


async def test_a_denial_ends_it_and_welcomes_nobody(desk: Desk) -> None:
    _, state = await desk.begun()
    ended = await desk.enrolments.complete({"state": state, "error": "access_denied"}, browser="browser")
    assert isinstance(ended, Ended)
    assert ended.ending is Ending.DENIED
    assert desk.welcomed == []
    assert await desk.store.awaited() == []
    assert await desk.consent(state) is Refusal.REPLAYED


async def test_a_restart_between_click_and_consent_loses_nothing(tmp_path: Path) -> None:
    clock = VirtualClock()
    async with open_store(tmp_path / "evbatteryd.db") as store:
        _, state = await desk_over(store, clock).begun()
    async with open_store(tmp_path / "evbatteryd.db") as store:
        desk = desk_over(store, clock)
        assert isinstance(await desk.consent(state), Ended)


# --- invitations ----------------------------------------------------------------------------------------


async def test_an_invitation_enrols_once(desk: Desk) -> None:
    made, token = await desk.enrolments.invite("  Aunt   Anna ")
    assert made.name == "Aunt Anna"
    assert made == await desk.enrolments.invitation(token)
    assert await desk.enrolments.invitation(token + "x") is None
    _, first = await desk.begun(invitation=made)
    _, second = await desk.begun("other", invitation=made)
    ended = await desk.consent(first)
    assert isinstance(ended, Ended)
    assert ended.enrolment.invited == "Aunt Anna"
    assert await desk.consent(second, "other") is Refusal.INVITATION
    used = await desk.enrolments.invitation(token)
    assert used is not None
    assert invitation_state(used, desk.clock.now()) is InvitationState.USED
    assert (
        await desk.enrolments.begin(redirect_uri=CALLBACK, browser="b", invitation=used) is Refusal.INVITATION
    )
    assert token not in str(desk.logged)


async def test_two_consents_by_one_invitation_at_once_are_one(desk: Desk) -> None:
    made, _ = await desk.enrolments.invite("Anna")
    states = [(await desk.begun(f"b{n}", invitation=made))[1] for n in range(4)]
    answers = await asyncio.gather(*(desk.consent(state, f"b{n}") for n, state in enumerate(states)))
    assert sum(isinstance(answer, Ended) for answer in answers) == 1
    assert len(desk.welcomed) == 1


async def test_a_denial_leaves_the_invitation_open(desk: Desk) -> None:
    made, _ = await desk.enrolments.invite("Anna")
    _, state = await desk.begun(invitation=made)
    await desk.enrolments.complete({"state": state, "error": "access_denied"}, browser="browser")
    _, again = await desk.begun(invitation=made)
    assert isinstance(await desk.consent(again), Ended)


async def test_one_that_is_taken_back_or_has_expired_enrols_nobody(desk: Desk) -> None:
    gone, _ = await desk.enrolments.invite("Anna")
    old, token = await desk.enrolments.invite("Berta", lasts=timedelta(minutes=10))
    _, of_gone = await desk.begun(invitation=gone)
    _, of_old = await desk.begun(invitation=old)
    revoked = await desk.enrolments.revoke(gone.id)
    assert revoked is not None
    assert invitation_state(revoked, desk.clock.now()) is InvitationState.REVOKED
    await desk.clock.advance(timedelta(minutes=10))
    assert await desk.consent(of_gone) is Refusal.INVITATION
    assert await desk.consent(of_old) is Refusal.INVITATION
    found = await desk.enrolments.invitation(token)
    assert found is not None
    assert invitation_state(found, desk.clock.now()) is InvitationState.EXPIRED
    assert desk.welcomed == []


@pytest.mark.parametrize("name", ["", " \n", "x" * 81, "a\x07b"])
async def test_an_invitation_is_for_somebody(desk: Desk, name: str) -> None:
    with pytest.raises(CannotEnrol):
        await desk.enrolments.invite(name)


@pytest.mark.parametrize("lasts", [timedelta(), timedelta(days=91), -timedelta(days=1)])
async def test_an_invitation_lasts_a_while(desk: Desk, lasts: timedelta) -> None:
    with pytest.raises(CannotEnrol):
        await desk.enrolments.invite("Anna", lasts=lasts)


# --- which application ----------------------------------------------------------------------------------


async def test_without_an_application_id_nobody_is_sent_anywhere(desk: Desk) -> None:
    options = ConnectOptions(application="home", application_id=None, connect_origin="https://connect")
    other = desk_over(desk.store, desk.clock, {"home": options})
    with pytest.raises(CannotEnrol, match="application_id"):
        await other.begun()
    with pytest.raises(CannotEnrol, match="application_id"):
        await other.enrolments.invite("Anna")


async def test_of_several_applications_one_has_to_be_named(desk: Desk) -> None:
    two = {
        name: ConnectOptions(application=name, application_id=name, connect_origin="https://connect")
        for name in ("home", "fleet")
    }
    other = desk_over(desk.store, desk.clock, two)
    with pytest.raises(CannotEnrol, match="home, fleet"):
        await other.begun()
    with pytest.raises(CannotEnrol, match="no application"):
        await other.begun(application="nowhere")
    begun, _ = await other.begun(application="fleet")
    assert begun.enrolment.application == "fleet"
    made, _ = await other.enrolments.invite("Anna", application="fleet")
    begun, _ = await other.begun(invitation=made, application="home")
    assert begun.enrolment.application == "fleet", "the invitation says which"

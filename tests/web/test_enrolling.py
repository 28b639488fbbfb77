"""The way of an owner over real HTTP: out to Connect, back, and all that must not work."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from structlog.testing import capture_logs

from evbatteryd.brands import load_profiles
from evbatteryd.domain.enrolment import ENROLMENT_LASTS, INVITATION_LASTS, Ending, Refusal
from evbatteryd.domain.fleet import Fleet, Trouble
from evbatteryd.domain.reading import Signal
from evbatteryd.enrol.consent import ENDINGS, REFUSALS
from evbatteryd.web.enrolling import cars_of, choices_of
from evbatteryd.web.guard import Access
from tests.fakes import START
from tests.web import builders
from tests.web.builders import MINUTE, car
from tests.web.conftest import CONNECT, HOME, LOCAL_KEY, Serve
from tests.web.people import USER, Person, person, state_of

OPEN = Access(local_key=LOCAL_KEY, open_enrolment=True)
NO_STATE = "A" * 43


async def test_it_is_said_what_is_read_and_what_is_not(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        told = (await owner.get("/enrol")).words
        for what in ("How full the battery is", "plugged in and charging", "The mileage", "Make, model"):
            assert what in told
        spared = told[told.index("does not ask for") :]
        assert "where the car is" in spared
        assert "(VIN)" in spared
        assert "your name" in spared
        assert "Whoever runs this server" in told
        assert "my.smartcar.com" in told


async def test_whatever_else_is_asked_for_is_not_hidden(serve: Serve) -> None:
    asked = ("read_battery", "control_charge", "read_location", "read_tires")
    applications = {"home": replace(HOME["home"], permissions=asked)}
    async with serve(applications=applications) as site, person(site) as owner:
        told = (await owner.get("/enrol")).words
        wanted, _, spared = told.partition("does not ask for")
        for what in ("Start and stop charging", "Where the car is", "read_tires"):
            assert what in wanted
        assert "where the car is" not in spared.partition("Who gets it")[0]
        assert "(VIN)" in spared


async def test_an_owner_consents(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        with capture_logs() as log:
            out = await owner.submit("/enrol", "/enrol", make="EXAMPLE", country="DE")
            assert out.status == 303
            asked = parse_qs(urlsplit(out.location).query)
            assert out.location.startswith(f"{CONNECT}/oauth/authorize?")
            assert asked["make"] == ["EXAMPLE"]
            assert asked["flags"] == ["country:DE"]
            assert asked["redirect_uri"] == [f"{owner.url}/enrol/callback"]
            state = state_of(out.location)
            back = await owner.come_back(state)
            assert (back.status, back.location) == (303, "/enrol/done")
            done = await owner.get("/enrol/done")
        assert ENDINGS[Ending.CONSENTED].title in done.words
        assert [(one.user_ref, one.ending) for one in site.welcomed] == [(USER, Ending.CONSENTED)]
        for seen in (back, done):
            assert USER not in seen.everything
            assert state not in seen.everything
        assert log, "nothing was logged, so nothing was looked at"
        assert USER not in str(log)
        assert state not in str(log)


async def test_the_policy_lets_the_form_lead_to_connect_alone(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        page = await owner.get("/enrol")
        out = await owner.submit("/enrol", "/enrol")
        for seen in (page, out):
            policy = seen.headers["Content-Security-Policy"]
            assert f"form-action 'self' {CONNECT};" in policy
            assert "default-src 'self'" in policy
        elsewhere = await owner.get("/vehicles")
        assert "form-action 'self';" in elsewhere.headers["Content-Security-Policy"]
    live = {"home": replace(HOME["home"], connect_origin="https://connect.smartcar.com")}
    async with serve(applications=live) as site, person(site) as owner:
        policy = (await owner.get("/enrol")).headers["Content-Security-Policy"]
        assert "form-action 'self' https://connect.smartcar.com https://*.smartcar.com;" in policy


@pytest.mark.parametrize("ending", [one for one in Ending if one is not Ending.CONSENTED])
async def test_every_other_ending_is_told_in_words(serve: Serve, ending: Ending) -> None:
    async with serve() as site, person(site) as owner:
        back = await owner.come_back(await owner.set_out(), error=ending.value, error_description="x<b>")
        assert (back.status, back.location) == (303, "/enrol/done")
        done = await owner.get("/enrol/done")
        assert ENDINGS[ending].title in done.words
        assert ENDINGS[ending].then in done.words
        assert ("Begin again" in done.words) is ENDINGS[ending].again
        assert "Refresh" not in done.headers
        assert "x&lt;b" not in done.text
        assert site.welcomed == []


async def test_the_car_that_is_not_compatible_is_named(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        answer = {"error": "vehicle_incompatible", "vin": "5YJ3E1EA7KF317000", "make": "ŠKODA <i>"}
        await owner.come_back(await owner.set_out(), **answer, model="Citigo", year="2014")
        done = await owner.get("/enrol/done")
        assert "ŠKODA <i> Citigo 2014" in done.words
        assert "<i>" not in done.text
        assert "5YJ3E1EA7KF317000" not in done.text


# What must not work


def said(refusal: Refusal) -> str:
    return REFUSALS[refusal].title


async def test_a_callback_without_a_beginning(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        seen = await owner.come_back(NO_STATE)
        assert seen.status == 400
        assert said(Refusal.UNKNOWN) in seen.words
        assert NO_STATE not in seen.everything
        assert USER not in seen.everything
        assert site.welcomed == []


async def test_a_state_counts_once(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        state = await owner.set_out()
        await owner.come_back(state)
        again = await owner.come_back(state)
        assert again.status == 409
        assert said(Refusal.REPLAYED) in again.words
        assert len(site.welcomed) == 1


async def test_a_state_expires(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        state = await owner.set_out()
        await site.clock.advance(ENROLMENT_LASTS)
        seen = await owner.come_back(state)
        assert seen.status == 400
        assert said(Refusal.EXPIRED) in seen.words
        assert site.welcomed == []


async def test_a_state_counts_in_its_browser_alone(serve: Serve) -> None:
    async with serve() as site, person(site) as owner, person(site) as other:
        state = await owner.set_out()
        await other.get("/enrol")
        seen = await other.come_back(state)
        assert seen.status == 400
        assert said(Refusal.OTHER_BROWSER) in seen.words
        assert site.welcomed == []
        assert (await owner.come_back(state)).status == 303, "the attempt of another spoilt it"


async def test_a_forged_browser_is_no_browser(serve: Serve) -> None:
    async with serve() as site, person(site) as owner, person(site) as other:
        state = await owner.set_out()
        (cookie,) = (one for one in owner.client.cookie_jar if one.key == "evbatteryd_browser")
        value, _, mark = cookie.value.partition(".")
        forged = f"{value}.{mark[:-1]}{'0' if mark[-1] != '0' else '1'}"
        seen = await other.get(
            f"/enrol/callback?state={state}&user_id={USER}", Cookie=f"{cookie.key}={forged}"
        )
        assert said(Refusal.OTHER_BROWSER) in seen.words
        assert site.welcomed == []


async def test_of_two_callbacks_at_once_one_counts(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        state = await owner.set_out()
        seen = await asyncio.gather(*(owner.come_back(state) for _ in range(6)))
        assert sorted(one.status for one in seen) == [303, 409, 409, 409, 409, 409]
        assert len(site.welcomed) == 1


@pytest.mark.parametrize(
    "query",
    [
        "",
        "state=",
        "state={state}",
        "state={state}&user_id=",
        "state={state}&user_id=../../users",
        "state={state}&user_id=%00%ff%0d%0aSet-Cookie:a",
        "state={state}&user_id={user}&user_id=11111111-2222-3333-4444-555555555555",
        "state={state}&state={other}&user_id={user}",
        "state={state}x%00&user_id={user}",
        "state={long}&user_id={user}",
        "state={state}&user_id={long}",
    ],
)
async def test_odd_answers_are_refused_and_change_nothing(serve: Serve, query: str) -> None:
    async with serve() as site, person(site) as owner:
        state = await owner.set_out()
        query = query.format(state=state, user=USER, other=NO_STATE, long="a" * 7000)
        seen = await owner.get(f"/enrol/callback?{query}")
        assert seen.status == 400
        assert said(Refusal.UNREADABLE) in seen.words
        assert state not in seen.everything
        assert USER not in seen.everything
        assert site.welcomed == []
        assert (await owner.come_back(state)).status == 303


async def test_an_endless_address_is_refused(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        seen = await owner.come_back(await owner.set_out(), user_id="a" * 100_000)
        assert seen.status == 400
        assert site.welcomed == []


async def test_setting_out_wants_our_form(serve: Serve) -> None:
    async with serve() as site, person(site) as owner, person(site) as other:
        await owner.get("/enrol")
        assert (await owner.post("/enrol")).status == 403
        assert (await owner.post("/enrol", form="0" * 64)).status == 403
        assert (await other.submit("/enrol", "/enrol")).status == 303
        assert (await owner.post("/enrol/paste", address="?state=x")).status == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [("make", "NONE"), ("make", "EXAMPLE&mode=live"), ("country", "XX"), ("country", "de")],
)
async def test_what_is_not_in_the_lists_is_refused(serve: Serve, field: str, value: str) -> None:
    async with serve() as site, person(site) as owner:
        seen = await owner.submit("/enrol", "/enrol", **{field: value})
        assert seen.status == 400
        assert "not one of the list" in seen.words


async def test_every_brand_can_be_chosen_unless_it_wants_an_app_for_phones(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = choices_of(load_profiles().values())
    assert ("LAND_ROVER", "Land Rover") in [(one.code, one.name) for one in choices]
    assert {one.name for one in choices if not one.possible} == {"Ford", "Lincoln"}
    assert all(re.fullmatch("[A-Z_]+", one.code) for one in choices)
    assert "Unknown make" not in [one.name for one in choices]
    assert len(choices) == 46

    monkeypatch.setattr(builders, "fleet", lambda: Fleet(load_profiles()))
    async with serve() as site, person(site) as owner:
        page = await owner.get("/enrol?make=LAND_ROVER")
        assert '<option value="LAND_ROVER" selected>Land Rover</option>' in page.text
        assert '<option value="FORD" disabled>' in page.text
        assert "Ford and Lincoln cannot be added in a browser" in page.words
        assert (await owner.submit("/enrol", "/enrol", make="LAND_ROVER")).status == 303
        assert (await owner.submit("/enrol", "/enrol", make="FORD")).status == 400


# Who may


async def test_others_need_an_invitation(serve: Serve) -> None:
    async with serve() as site, person(site, away=True) as stranger:
        seen = await stranger.get("/enrol")
        assert seen.status == 403
        assert "You need an invitation" in seen.words
        assert "Vehicles" not in seen.words
    async with serve(access=OPEN) as site, person(site, away=True) as stranger:
        await stranger.come_back(await stranger.set_out())
        assert len(site.welcomed) == 1


async def test_an_invitation_works_once(serve: Serve) -> None:
    async with serve() as site, person(site, away=True) as guest, person(site, away=True) as other:
        _, token = await site.enrolments.invite("Aunt <b>Ada</b>")
        for one in (guest, other):
            kept = await one.get(f"/enrol/i/{token}")
            assert (kept.status, kept.location) == (303, "/enrol")
            assert "Aunt <b>Ada</b>" in (await one.get("/enrol")).words
        state, late = await guest.set_out(), await other.set_out()
        assert token not in (await guest.get("/enrol")).everything
        assert (await guest.come_back(state)).status == 303
        assert "Add another car" not in (await guest.get("/enrol/done")).words
        assert [one.invited for one in site.welcomed] == ["Aunt <b>Ada</b>"]

        refused = await other.come_back(late)
        assert refused.status == 400
        assert said(Refusal.INVITATION) in refused.words
        for one in (guest, other):
            assert (await one.get("/enrol")).status == 403
            assert said(Refusal.INVITATION) in (await one.get(f"/enrol/i/{token}")).words
        assert len(site.welcomed) == 1


async def test_a_denial_leaves_the_invitation_open(serve: Serve) -> None:
    async with serve() as site, person(site, away=True) as guest:
        _, token = await site.enrolments.invite("Ada")
        await guest.get(f"/enrol/i/{token}")
        await guest.come_back(await guest.set_out(), error="access_denied")
        await guest.come_back(await guest.set_out())
        assert [one.invited for one in site.welcomed] == ["Ada"]


@pytest.mark.parametrize("way", ["revoked", "expired"])
async def test_an_invitation_that_is_over(serve: Serve, way: str) -> None:
    async with serve() as site, person(site, away=True) as guest:
        invitation, token = await site.enrolments.invite("Ada")
        await guest.get(f"/enrol/i/{token}")
        state = await guest.set_out()
        if way == "revoked":
            await site.enrolments.revoke(invitation.id)
        else:
            await site.clock.advance(INVITATION_LASTS)
        assert (await guest.come_back(state)).status == 400
        assert said(Refusal.INVITATION) in (await guest.get("/enrol")).words
        assert (await guest.get(f"/enrol/i/{token}")).status == 400
        assert site.welcomed == []


async def test_an_invitation_cannot_be_guessed_or_made_up(serve: Serve) -> None:
    async with serve() as site, person(site, away=True) as stranger:
        _, token = await site.enrolments.invite("Ada")
        forged = await stranger.get("/enrol", Cookie=f"evbatteryd_invitation={token}.{'0' * 64}")
        assert forged.status == 403
        for _ in range(20):
            wrong = await stranger.get("/enrol/i/wrong")
            assert wrong.status == 400
            assert said(Refusal.INVITATION) in wrong.words
        too_often = await stranger.get(f"/enrol/i/{token}")
        assert too_often.status == 429
        assert int(too_often.headers["Retry-After"]) > 0
        await site.clock.advance(10 * MINUTE)
        assert (await stranger.get(f"/enrol/i/{token}")).status == 303


@pytest.mark.parametrize("path", ["/enrol", "/enrol/done"])
async def test_strangers_may_not_look_too_often(serve: Serve, path: str) -> None:
    async with serve(access=OPEN) as site, person(site, away=True) as owner, person(site) as operator:
        first = [(await owner.get(path)).status for _ in range(120)]
        assert 429 not in first
        late = await owner.get(path)
        assert (late.status, late.headers["Retry-After"]) == (429, "1")
        assert [(await operator.get(path)).status for _ in range(121)] == [first[0]] * 121
        await site.clock.advance(MINUTE / 120)
        assert (await owner.get(path)).status == first[0]


async def test_strangers_may_not_come_too_often(serve: Serve) -> None:
    async with serve(access=OPEN) as site, person(site, away=True) as stranger, person(site) as operator:
        out = [(await stranger.submit("/enrol", "/enrol")).status for _ in range(11)]
        assert out == [303] * 10 + [429]
        back = [await stranger.come_back(NO_STATE) for _ in range(31)]
        assert [one.status for one in back] == [400] * 30 + [429]
        assert "too often" in back[-1].words
        assert int(back[-1].headers["Retry-After"]) > 0
        for _ in range(40):
            assert (await operator.come_back(NO_STATE)).status == 400
        await site.clock.advance(MINUTE)
        assert (await stranger.come_back(NO_STATE)).status == 400


# By which name


async def test_the_machine_has_one_name(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        port = urlsplit(site.url).port
        owner.url = site.url
        for path in ("/enrol?make=EXAMPLE", "/enrol/i/some-token"):
            seen = await owner.get(path)
            assert (seen.status, seen.location) == (307, f"http://localhost:{port}{path}")
        assert (await owner.get("/enrol", Host="[::1]:9000")).location == "http://localhost:9000/enrol"
        assert (await owner.get("/enrol", Host="192.168.1.5:9782")).status == 403  # another machine's


async def test_the_redirect_uri_is_that_of_the_public_url(serve: Serve) -> None:
    access = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org", open_enrolment=True)
    async with serve(access=access) as site, person(site) as owner:
        out = await owner.submit("/enrol", "/enrol")
        assert parse_qs(urlsplit(out.location).query)["redirect_uri"] == [
            "https://ev.example.org/enrol/callback"
        ]


async def test_in_the_network_the_address_is_pasted(serve: Serve) -> None:
    async with serve(access=OPEN) as site, person(site, away=True) as owner:
        there = {"Host": "ev.lan:9782"}
        async with owner.client.get(f"{owner.url}/enrol", headers=there) as page:
            text = await page.text()
        callback = f"http://localhost:{urlsplit(site.url).port}/enrol/callback"
        assert callback in text
        assert "<details" in text
        assert "open>" in text


# Applications


async def test_what_is_missing_is_told_to_operators_alone(serve: Serve) -> None:
    applications = {"home": replace(HOME["home"], application_id=None)}
    async with (
        serve(applications=applications, access=OPEN) as site,
        person(site) as operator,
        person(site, away=True) as owner,
    ):
        told = await operator.get("/enrol")
        assert told.status == 503
        assert "application_id in [smartcar.home]" in told.words
        hidden = await owner.get("/enrol")
        assert hidden.status == 503
        assert "Not set up yet" in hidden.words
        assert "application_id" not in hidden.text


async def test_one_of_several_applications(serve: Serve) -> None:
    fleet = replace(HOME["home"], application="work", application_id="22222222", permissions=("read_vin",))
    async with (
        serve(applications={**HOME, "work": fleet}) as site,
        person(site) as operator,
        person(site, away=True) as guest,
    ):
        page = await operator.get("/enrol?application=work")
        assert "(VIN)" in page.words.partition("Who gets it")[0]
        out = await operator.submit("/enrol", "/enrol", application="work")
        assert parse_qs(urlsplit(out.location).query)["client_id"] == ["22222222"]
        assert (await operator.submit("/enrol", "/enrol", application="none")).status == 503

        _, token = await site.enrolments.invite("Ada", application="work")
        await guest.get(f"/enrol/i/{token}")
        assert "?application=" not in (await guest.get("/enrol")).text
        out = await guest.submit("/enrol", "/enrol", application="home")
        assert parse_qs(urlsplit(out.location).query)["client_id"] == ["22222222"]


# What came of it


async def consented(owner: Person) -> None:
    assert (await owner.come_back(await owner.set_out())).status == 303


async def test_the_owners_cars_appear_and_nobody_elses(serve: Serve) -> None:
    others = (
        car(2, name="Neighbour's", user_ref="somebody-else"),
        car(3, name="Elsewhere", user_ref=USER, application="work"),
        car(4, name="Sold", user_ref=USER, withdrawn_at=START),
    )
    async with serve(*others, access=OPEN) as site, person(site, away=True) as owner:
        await consented(owner)
        waiting = await owner.get("/enrol/done")
        assert "Looking for your cars" in waiting.words
        assert waiting.headers["Refresh"] == "2"

        site.change(car(1, name="Mine", user_ref=USER, values={}))
        reading = await owner.get("/enrol/done")
        assert "Mine" in reading.words
        assert "being read" in reading.words
        assert reading.headers["Refresh"] == "2"

        site.change(car(1, name="Mine", user_ref=USER, values={Signal.SOC: 63.0}))
        read = await owner.get("/enrol/done")
        assert "63 %" in read.words
        assert "Refresh" not in read.headers
        for name in ("Neighbour's", "Elsewhere", "Sold"):
            assert name not in read.words
        for seen in (waiting, reading, read):
            assert 'href="/"' not in seen.text
            assert "/vehicles" not in seen.text
            assert USER not in seen.everything


async def test_trouble_is_told_and_ends_the_waiting(serve: Serve) -> None:
    trouble = Trouble("asleep", "VEHICLE_STATE:ASLEEP", "The car sleeps.", START)
    async with serve(car(1, user_ref=USER, values={}, trouble=trouble)) as site, person(site) as owner:
        await consented(owner)
        seen = await owner.get("/enrol/done")
        assert "The car sleeps." in seen.words
        assert "Refresh" not in seen.headers
        assert "Add another car" in seen.words


async def test_the_waiting_ends(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        await consented(owner)
        assert "Refresh" in (await owner.get("/enrol/done")).headers
        await site.clock.advance(timedelta(minutes=5))
        seen = await owner.get("/enrol/done")
        assert "Refresh" not in seen.headers
        assert "No new car has shown up" in seen.words


async def test_the_end_is_known_to_its_browser_alone(serve: Serve) -> None:
    async with serve(car(1, user_ref=USER)) as site, person(site) as owner, person(site) as other:
        await consented(owner)
        assert (await other.get("/enrol/done")).location == "/enrol"
        forged = await other.get("/enrol/done", Cookie=f"evbatteryd_enrolment=WzEsbnVsbF0.{'0' * 64}")
        assert forged.location == "/enrol"


async def test_a_large_fleet_does_not_hold_up_the_loop(serve: Serve) -> None:
    cars = (car(number, user_ref=USER if number == 1999 else None) for number in range(1, 2_001))
    async with serve(*cars) as site, person(site) as owner:
        await consented(owner)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        beside = asyncio.create_task(others())
        await asyncio.sleep(0)
        before = turns
        found = await cars_of(site.fleet, site.welcomed[0])
        beside.cancel()
        assert [one.slug for one in found] == ["car_1999"]
        assert turns - before >= 4, "2,000 cars were looked at in one go"


# Pasting


async def test_an_operator_pastes_the_answer_of_any_browser(serve: Serve) -> None:
    async with (
        serve(access=OPEN) as site,
        person(site, away=True) as owner,
        person(site, away=True) as stranger,
        person(site) as operator,
    ):
        state = await owner.set_out()
        address = f"http://localhost:9782/enrol/callback?user_id={USER}&state={quote(state)}"
        refused = await stranger.submit("/enrol", "/enrol/paste", address=address)
        assert refused.status == 400
        assert said(Refusal.OTHER_BROWSER) in refused.words
        assert state not in refused.everything
        came = await operator.submit("/enrol", "/enrol/paste", address=f"  {address}\n")
        assert (came.status, came.location) == (303, "/enrol/done")
        assert len(site.welcomed) == 1


async def test_an_owner_pastes_into_the_browser_that_set_out(serve: Serve) -> None:
    async with serve(access=OPEN) as site, person(site, away=True) as owner:
        state = await owner.set_out()
        address = f"?state={state}&user_id={USER}"
        assert (await owner.submit("/enrol", "/enrol/paste", address=address)).status == 303
        assert (await owner.submit("/enrol", "/enrol/paste", address=address)).status == 409


@pytest.mark.parametrize("address", ["", "rubbish", "http://[", "http://localhost/?state=x", "a" * 5_000])
async def test_what_is_pasted_may_be_anything(serve: Serve, address: str) -> None:
    async with serve() as site, person(site) as operator:
        seen = await operator.submit("/enrol", "/enrol/paste", address=address)
        assert seen.status == 400
        assert said(Refusal.UNREADABLE) in seen.words


async def test_what_began_in_a_terminal_ends_in_any_browser_here(serve: Serve) -> None:
    async with serve() as site, person(site) as here, person(site, away=True) as away:
        begun = await site.enrolments.begin(redirect_uri="http://localhost/enrol/callback", browser=None)
        state = state_of(begun.link)
        assert said(Refusal.OTHER_BROWSER) in (await away.come_back(state)).words
        assert (await here.come_back(state)).location == "/enrol/done"


async def test_a_store_that_fails_changes_nothing_and_says_so(serve: Serve) -> None:
    async with serve() as site, person(site) as owner:
        state = await owner.set_out()
        site.store.broken = True
        seen = await owner.come_back(state)
        assert seen.status == 503
        assert "nothing was changed" in seen.words
        site.store.broken = False
        assert (await owner.come_back(state)).status == 303


async def test_whoever_names_another_user_is_not_shown_their_cars(serve: Serve) -> None:
    async with serve(car(1, name="Not yours", user_ref=USER)) as site, person(site) as owner:
        await site.clock.advance(MINUTE)
        state = await owner.set_out()
        back = await owner.get(f"/enrol/callback?state={state}&user_id={USER}")
        assert back.location == "/enrol/done"
        seen = await owner.get("/enrol/done")
        assert "Not yours" not in seen.words
        assert "Looking for your cars" in seen.words

"""Who consented to what, invitations and signing in, over real HTTP."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from evbatteryd.domain.enrolment import INVITATION_LASTS
from evbatteryd.domain.fleet import Trouble
from evbatteryd.web.guard import Access
from tests.fakes import START
from tests.web.builders import HOUR, MINUTE, car
from tests.web.conftest import LOCAL_KEY, Serve
from tests.web.people import Person, Seen, person

TOKEN = "a-long-admin-token"
WITH_TOKEN = Access(local_key=LOCAL_KEY, admin_token=TOKEN)
LOST = Trouble("consent_lost", "PERMISSION", "The owner withdrew the consent.", START - HOUR)


# Vehicles


async def test_the_list_tells_who_consented_to_what(serve: Serve) -> None:
    told = car(
        1,
        name="Zoé <b>",
        invited="Ada",
        permissions=frozenset({"read_odometer", "read_battery", "read_tires"}),
        pushed_at=START,
        user_ref="6f1c-user",
    )
    async with serve(told, car(2, values={})) as site, person(site) as operator:
        await site.clock.advance(12 * MINUTE)
        seen = await operator.get("/vehicles")
        for what in (
            "Zoé <b>",
            "Example One 2024",
            "invited as Ada",
            "application home",
            "battery, mileage, read_tires",
            "since 2026-11-22",
            "57 % 12 min ago",
            "fresh by webhook",
            "not read yet",
        ):
            assert what in seen.words
        assert "<b>" not in seen.text.replace("<b>57 %</b>", "")
        assert "6f1c-user" not in seen.everything
        assert "user-2" not in seen.everything


async def test_only_a_lost_consent_asks_for_consent(serve: Serve) -> None:
    sleeps = Trouble("asleep", "VEHICLE_STATE:ASLEEP", "The car sleeps.", START)
    plan = Trouble("plan_refused", "BILLING", "The plan is suspended.", START)
    async with (
        serve(car(1, trouble=LOST), car(2, trouble=sleeps), car(3, trouble=plan), car(4)) as site,
        person(site) as operator,
    ):
        seen = await operator.get("/vehicles")
        for what in ("The car sleeps.", "The plan is suspended.", "Consent lost for 1 h"):
            assert what in seen.words
        assert seen.words.count("Consent again") == 1
        assert 'href="/enrol?application=home&amp;make=EXAMPLE"' in seen.text
        for slug, asked in (("car_1", True), ("car_2", False), ("car_3", False), ("car_4", False)):
            detail = await operator.get(f"/vehicles/{slug}")
            assert ("Consent again" in detail.words) is asked


async def test_withdrawn_cars_are_shown_on_request(serve: Serve) -> None:
    async with serve(car(1), car(2, name="Gone", withdrawn_at=START)) as site, person(site) as operator:
        assert "Gone" not in (await operator.get("/vehicles")).words
        seen = await operator.get("/vehicles?withdrawn=1")
        assert "Gone" in seen.words
        assert "withdrawn just now" in seen.words
        assert "Not connected" in seen.words


async def test_the_list_is_searched_and_cut(serve: Serve) -> None:
    async with serve(*(car(n) for n in range(1, 121))) as site, person(site) as operator:
        first = await operator.get("/vehicles")
        assert first.text.count('class="consent') == 50
        assert "1\N{EN DASH}50 of 120" in first.words
        assert "101\N{EN DASH}120 of 120" in (await operator.get("/vehicles?page=99")).words
        assert "1\N{EN DASH}50 of 120" in (await operator.get("/vehicles?page=x")).words
        found = await operator.get("/vehicles?q=car+77")
        assert re.findall(r"<h2>.*?>([^<]+)</a></h2>", found.text) == ["Car 77"]
        none = await operator.get("/vehicles?q=%3Cscript%3E")
        assert "“<script>” in it" in none.words
        assert "<script>" not in none.text


async def test_an_empty_list_says_what_to_do(serve: Serve) -> None:
    async with serve() as site, person(site) as operator:
        assert "Add a car" in (await operator.get("/vehicles")).words
        assert "No invitation" not in (await operator.get("/invitations")).words


async def test_a_car_gets_other_names(serve: Serve) -> None:
    async with serve(car(1)) as site, person(site) as operator:
        saved = await operator.submit(
            "/vehicles/car_1", "/vehicles/car_1/rename", name="  Blue car ", slug="blue"
        )
        assert (saved.status, saved.location) == (303, "/vehicles/blue?done=renamed")
        seen = await operator.get(saved.location)
        assert "Saved." in seen.words
        assert "Blue car" in seen.words
        assert "Earlier short names car_1" in seen.words
        assert (await operator.get("/vehicles/car_1")).status == 404


async def test_names_that_cannot_be_are_told_beside_the_form(serve: Serve) -> None:
    async with serve(car(1), car(2)) as site, person(site) as operator:
        seen = await operator.submit(
            "/vehicles/car_1", "/vehicles/car_1/rename", name='New "name"', slug="car_2"
        )
        assert seen.status == 409
        assert "another car has or had the slug car_2" in seen.words
        assert 'value="New &#34;name&#34;"' in seen.text
        assert 'name="slug" value="car_2"' in seen.text
        assert site.fleet.by_slug("car_1").vehicle.name == "Car 1"


@pytest.mark.parametrize(("erase", "said", "kept"), [("", "history is kept", True), ("yes", "erased", False)])
async def test_a_car_is_disconnected(serve: Serve, erase: str, said: str, kept: bool) -> None:
    async with serve(car(1)) as site, person(site) as operator:
        gone = await operator.submit("/vehicles/car_1", "/vehicles/car_1/disconnect", sure="yes", erase=erase)
        assert gone.status == 303
        seen = await operator.get(gone.location)
        assert said in seen.words
        assert "Car 1" not in seen.words
        after = site.fleet.by_slug("car_1")
        assert after.vehicle.withdrawn_at is not None
        assert (after.state.soc_percent is not None) is kept


async def test_the_history_of_a_withdrawn_car_is_erased(serve: Serve) -> None:
    async with serve(car(1, withdrawn_at=START)) as site, person(site) as operator:
        page = await operator.get("/vehicles/car_1")
        assert "Disconnect" not in page.words
        path = "/vehicles/car_1/disconnect"
        assert (await operator.submit("/vehicles/car_1", path, erase="yes")).status == 400
        await operator.submit("/vehicles/car_1", path, erase="yes", sure="yes")
        assert site.fleet.by_slug("car_1").state.soc_percent is None


async def test_nothing_is_disconnected_by_mistake(serve: Serve) -> None:
    async with serve(car(1)) as site, person(site) as operator:
        seen = await operator.submit("/vehicles/car_1", "/vehicles/car_1/disconnect", erase="yes")
        assert seen.status == 400
        assert "Nothing was changed" in seen.words
        assert 'name="erase" value="yes" checked' in seen.text
        site.steward.unwilling = "Smartcar did not end the consent: try again."
        seen = await operator.submit("/vehicles/car_1", "/vehicles/car_1/disconnect", sure="yes")
        assert seen.status == 409
        assert "Smartcar did not end the consent" in seen.words
        assert site.fleet.by_slug("car_1").vehicle.withdrawn_at is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/vehicles/car_1/rename", {"name": "x", "slug": "x"}),
        ("/vehicles/car_1/disconnect", {"sure": "yes"}),
        ("/invitations", {"name": "x", "days": "1"}),
        ("/invitations/1/revoke", {}),
        ("/sign-out", {}),
    ],
)
async def test_every_change_wants_our_form_and_an_operator(
    serve: Serve, path: str, fields: dict[str, str]
) -> None:
    async with (
        serve(car(1), access=Access(local_key=LOCAL_KEY, open_to_read=True, open_enrolment=True)) as site,
        person(site) as operator,
        person(site, away=True) as stranger,
    ):
        before = site.fleet.by_slug("car_1")
        invitation, _ = await site.enrolments.invite("Ada")
        await operator.get("/vehicles/car_1")
        assert (await operator.post(path, **fields)).status == 403
        assert (await operator.post(path, **fields, form="0" * 64)).status == 403
        if path != "/sign-out":
            assert (await stranger.submit("/enrol", "/enrol")).status == 303  # its form token is good
            form = re.search(r'name="form" value="(\w+)"', (await stranger.get("/enrol")).text)[1]
            assert (await stranger.post(path, **fields, form=form)).status == 401
        assert site.fleet.by_slug("car_1") is before
        assert await site.enrolments.invitations() == [invitation]


async def test_strangers_see_none_of_it(serve: Serve) -> None:
    async with serve(car(1, name="Blue car")) as site, person(site, away=True) as stranger:
        for path in ("/vehicles", "/vehicles/car_1", "/vehicles/none", "/invitations"):
            seen = await stranger.get(path)
            assert seen.status == 401
            assert "Blue car" not in seen.text
            assert 'href="/' not in seen.text.replace('href="/favicon', "").replace('href="/assets', "")


async def test_what_is_said_after_a_change_cannot_be_made_up(serve: Serve) -> None:
    async with serve() as site, person(site) as operator:
        assert "evil" not in (await operator.get("/vehicles?done=evil")).text


# Invitations


async def invited(operator: Person, **fields: str) -> Seen:
    posted = await operator.submit("/invitations", "/invitations", **({"name": "Ada", "days": "3"} | fields))
    return await operator.get(posted.location) if posted.status == 303 else posted


def link_of(seen: Seen) -> str:
    found = re.search(r'id="link" value="([^"]+)" readonly', seen.text)
    assert found is not None, seen.words
    return found[1]


async def test_an_invitation_is_made_and_its_link_shown_once(serve: Serve) -> None:
    async with serve() as site, person(site) as operator, person(site, away=True) as guest:
        with capture_logs() as log:
            made = await invited(operator, name="Ada <i>")
        assert made.status == 200
        assert made.headers["Cache-Control"] == "no-store"
        link = link_of(made)
        assert link.startswith(f"{operator.url}/enrol/i/")
        assert "Invitation for Ada <i>" in made.words
        assert "2026-11-25 12:00 UTC" in made.words
        assert "<svg" in made.text
        assert link_of(await operator.get("/invitations/made")) == link, "loaded anew, it is the same one"
        assert len(await site.enrolments.invitations()) == 1
        assert (await guest.get("/invitations/made")).status == 401
        token = link.rpartition("/")[2]
        assert log
        assert token not in str(log)
        listed = await operator.get("/invitations")
        assert "Ada <i>" in listed.words
        assert token not in listed.everything
        assert (await guest.get(f"/enrol/i/{token}")).location == "/enrol"


async def test_a_link_holds_the_public_url(serve: Serve) -> None:
    access = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org", admin_token=TOKEN)
    async with serve(access=access) as site, person(site) as operator:
        await operator.submit("/sign-in", "/sign-in", token=TOKEN)
        made = await invited(operator)
        assert link_of(made).startswith("https://ev.example.org/enrol/i/")
        assert "only at this machine" not in made.words


async def test_a_link_that_works_nowhere_else_says_so(serve: Serve) -> None:
    async with serve() as site, person(site) as operator:
        assert "only at this machine" in (await invited(operator)).words


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"name": " "}, "whom the invitation is for"),
        ({"name": "x" * 81}, "1 to 80 characters"),
        ({"days": "0"}, "at most 90 days"),
        ({"days": "91"}, "at most 90 days"),
        ({"days": "-1"}, "whole number"),
        ({"days": "x"}, "whole number"),
        ({"application": "none"}, "no application"),
    ],
)
async def test_invitations_that_cannot_be(serve: Serve, fields: dict[str, str], why: str) -> None:
    async with serve() as site, person(site) as operator:
        seen = await invited(operator, **({"name": "Ada <b>"} | fields))
        assert seen.status == 409
        assert why in seen.words
        if "name" not in fields:
            assert 'value="Ada &lt;b&gt;"' in seen.text, "what was entered is lost"
        assert await site.enrolments.invitations() == []


async def test_an_invitation_is_taken_back(serve: Serve) -> None:
    async with serve() as site, person(site) as operator, person(site, away=True) as guest:
        token = link_of(await invited(operator)).rpartition("/")[2]
        back = await operator.submit("/invitations", "/invitations/1/revoke")
        assert (back.status, back.location) == (303, "/invitations?done=revoked")
        seen = await operator.get(back.location)
        assert "Taken back" in seen.words
        assert "taken back just now" in seen.words
        assert "/revoke" not in seen.text
        assert (await guest.get(f"/enrol/i/{token}")).status == 400


async def test_invitations_that_are_not_there(serve: Serve) -> None:
    async with serve() as site, person(site) as operator:
        form = re.search(r'name="form" value="(\w+)"', (await operator.get("/invitations")).text)[1]
        for number in ("7", "x", "9" * 30):
            assert (await operator.post(f"/invitations/{number}/revoke", form=form)).status == 404


async def test_the_list_says_what_became_of_each(serve: Serve) -> None:
    async with serve() as site, person(site) as operator, person(site, away=True) as guest:
        _, token = await site.enrolments.invite("Ada")
        await site.enrolments.invite("Bob", lasts=HOUR)
        await guest.get(f"/enrol/i/{token}")
        await guest.come_back(await guest.set_out())
        await site.clock.advance(2 * HOUR)
        await site.enrolments.invite("Eve")
        seen = (await operator.get("/invitations")).words
        assert re.search(r"Ada application home, made 2 h ago used 2 h ago", seen)
        assert re.search(r"Bob .* expired 1 h ago", seen)
        assert re.search(r"Eve .* open until 2026-11-29 14:00 UTC", seen)
        await site.clock.advance(INVITATION_LASTS)
        assert re.search(r"Eve .* expired just now", (await operator.get("/invitations")).words)


# Signing in


async def test_without_a_token_nobody_signs_in(serve: Serve) -> None:
    async with serve() as site, person(site, away=True) as stranger:
        seen = await stranger.get("/sign-in")
        assert seen.status == 404
        assert "no admin_token is set" in seen.words


async def test_an_operator_signs_in_and_out(serve: Serve) -> None:
    async with serve(car(1), access=WITH_TOKEN) as site, person(site, away=True) as operator:
        sent = await operator.get("/vehicles/car_1", Accept="text/html")
        assert (sent.status, sent.location) == (303, "/sign-in?next=/vehicles/car_1")
        with capture_logs() as log:
            came = await operator.submit(sent.location, "/sign-in", token=TOKEN, next="/vehicles/car_1")
        assert (came.status, came.location) == (303, "/vehicles/car_1")
        assert TOKEN not in came.everything
        assert TOKEN not in str(log)
        (session,) = (one for one in operator.client.cookie_jar if one.key == "evbatteryd_session")
        assert session["httponly"]
        assert session["samesite"] == "Lax"
        assert (await operator.get(came.location)).status == 200
        assert "You are signed in" in (await operator.get("/sign-in")).words
        await operator.submit("/sign-in", "/sign-out")
        assert (await operator.get("/vehicles/car_1")).status == 401


async def test_a_session_ends(serve: Serve) -> None:
    async with serve(access=WITH_TOKEN) as site, person(site, away=True) as operator:
        await operator.submit("/sign-in", "/sign-in", token=TOKEN)
        await site.clock.advance(timedelta(days=7) - MINUTE)
        assert (await operator.get("/vehicles")).status == 200
        await site.clock.advance(MINUTE)
        assert (await operator.get("/vehicles")).status == 401


@pytest.mark.parametrize(
    "where",
    [
        "https://evil.example.org/",
        "//evil.example.org",
        "/\\evil.example.org",
        "/%09/evil.example.org",
        "\t//evil.example.org",
        "javascript:alert(1)",
        "/\r\nSet-Cookie: a=b",
        "",
    ],
)
async def test_signing_in_leads_to_no_other_site(serve: Serve, where: str) -> None:
    async with serve(access=WITH_TOKEN) as site, person(site, away=True) as operator:
        came = await operator.submit("/sign-in", "/sign-in", token=TOKEN, next=where)
        assert came.status == 303
        assert re.fullmatch(r"/(%09/[a-z.]+)?", came.location)
        assert "evil" not in came.location or came.location.startswith("/%09/")


async def test_wrong_tokens_are_refused_and_counted(serve: Serve) -> None:
    async with serve(access=WITH_TOKEN) as site, person(site, away=True) as stranger:
        for _ in range(10):
            wrong = await stranger.submit("/sign-in", "/sign-in", token="wrong", next="/vehicles")
            assert wrong.status == 401
            assert "That is not the admin token" in wrong.words
            assert 'name="next" value="/vehicles"' in wrong.text
            assert "wrong" not in wrong.text.replace('id="wrong"', "").replace('describedby="wrong"', "")
        too_often = await stranger.submit("/sign-in", "/sign-in", token="wrong")
        assert too_often.status == 429
        assert int(too_often.headers["Retry-After"]) > 0
        await site.clock.advance(MINUTE)
        assert (await stranger.submit("/sign-in", "/sign-in", token="wrong")).status == 401


async def test_the_wrong_tokens_of_others_keep_no_operator_out(serve: Serve) -> None:
    """Behind a proxy that is not trusted all of them come from one address."""
    async with (
        serve(access=WITH_TOKEN) as site,
        person(site, away=True) as stranger,
        person(site, away=True) as operator,
    ):
        token = re.search(r'name="form" value="(\w+)"', (await stranger.get("/sign-in")).text)[1]
        tried = [(await stranger.post("/sign-in", form=token, token="wrong")).status for _ in range(220)]
        assert tried == [401] * 10 + [429] * 210
        assert (await operator.submit("/sign-in", "/sign-in", token=TOKEN)).status == 303
        assert (await operator.get("/vehicles")).status == 200


async def test_signing_in_is_logged_without_a_word_of_the_token(serve: Serve) -> None:
    async with serve(access=WITH_TOKEN) as site, person(site, away=True) as operator:
        with capture_logs() as log:
            for _ in range(2):
                await operator.submit("/sign-in", "/sign-in", token="wrong")
            await operator.submit("/sign-in", "/sign-in", token=TOKEN)
        assert log == [
            {"event": "operator.wrong_token", "log_level": "warning"},
            {"event": "operator.signed_in", "log_level": "info"},
        ]


async def test_whoever_kept_the_cookie_is_signed_out_too(serve: Serve) -> None:
    async with (
        serve(access=WITH_TOKEN) as site,
        person(site, away=True) as operator,
        person(site, away=True) as thief,
        person(site, away=True) as colleague,
    ):
        await colleague.submit("/sign-in", "/sign-in", token=TOKEN)
        await operator.submit("/sign-in", "/sign-in", token=TOKEN)
        (session,) = (one for one in operator.client.cookie_jar if one.key == "evbatteryd_session")
        stolen = {"Cookie": f"{session.key}={session.value}"}
        assert (await thief.get("/vehicles", **stolen)).status == 200
        await operator.submit("/sign-in", "/sign-out")
        assert (await thief.get("/vehicles", **stolen)).status == 401
        assert (await colleague.get("/vehicles")).status == 200


async def test_the_local_key_is_not_for_people(serve: Serve) -> None:
    async with serve(access=WITH_TOKEN) as site, person(site, away=True) as stranger:
        assert (await stranger.submit("/sign-in", "/sign-in", token=LOCAL_KEY)).status == 401


# Links


async def test_operators_find_every_page(serve: Serve) -> None:
    async with serve(car(1)) as site, person(site) as operator:
        for path in ("/vehicles", "/vehicles/car_1", "/invitations", "/enrol"):
            seen = await operator.get(path)
            assert seen.status == 200
            for other in ("/", "/vehicles", "/invitations", "/enrol"):
                assert f'<a href="{other}"' in seen.text
            assert seen.text.count('aria-current="page"') >= 1


async def test_pages_with_a_token_are_not_compressed(serve: Serve) -> None:
    async with serve(car(1), access=WITH_TOKEN) as site, person(site) as operator:
        for path in ("/vehicles/car_1", "/invitations", "/enrol", "/sign-in"):
            seen = await operator.get(path, **{"Accept-Encoding": "gzip"})
            assert 'name="form"' in seen.text
            assert "Content-Encoding" not in seen.headers

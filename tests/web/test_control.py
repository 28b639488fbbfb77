"""The API that changes something, as the command line calls it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from structlog.testing import capture_logs

from evbatteryd.domain.enrolment import ENROLMENT_LASTS, Ending, EnrolmentId
from evbatteryd.domain.reading import Signal
from evbatteryd.enrol.consent import ENDINGS, REFUSALS
from evbatteryd.web.guard import Access
from tests.fakes import START
from tests.web.builders import HOUR, MINUTE, car
from tests.web.conftest import CONNECT, HOME, LOCAL_KEY, Serve, Site

USER = "b6e1f2a4-0c3d-4e5f-8a9b-1c2d3e4f5a6b"
KEY = {"Authorization": f"Bearer {LOCAL_KEY}"}
EXPOSED = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org", open_to_read=True)
BROKEN = "the store cannot be written at the moment: nothing was changed"


async def called(site: Site, path: str, asked: object = None, **headers: str) -> tuple[int, dict]:
    """Status and answer of a POST by the command line."""
    where = site.url + path
    async with site.client.post(where, json={} if asked is None else asked, headers=KEY | headers) as answer:
        return answer.status, await answer.json()


async def begun(site: Site, **asked: str) -> tuple[int, str]:
    """The number of an enrolment that set out, and its state."""
    status, told = await called(site, "/api/enrolments", asked)
    assert status == 201
    return told["id"], parse_qs(urlsplit(told["link"]).query)["state"][0]


# Cars


async def test_a_car_tells_who_consented_to_what(serve: Serve) -> None:
    told_of = car(
        7,
        application="fleet",
        invited="Ada",
        permissions=frozenset({"read_charge", "read_battery"}),
        pushed_at=START - MINUTE,
        withdrawn_at=START,
    )
    async with serve(told_of, access=EXPOSED) as site:
        async with site.client.get(f"{site.url}/api/vehicles/car_7", headers=KEY) as answer:
            told, text = await answer.json(), await answer.text()
        assert told["application"] == "fleet"
        assert told["invited"] == "Ada"
        assert told["permissions"] == ["read_battery", "read_charge"]
        assert told["enrolled_at"] == told["withdrawn_at"] == "2026-11-22T12:00:00Z"
        assert told["pushed_at"] == "2026-11-22T11:59:00Z"
        assert told["last_outcome"] == "new"
        for personal in ("user-7", "connection-7", "vehicle-7"):
            assert personal not in text
        # Everybody may see the cars here, but not whom the operator invited, nor what was consented to.
        stranger = await site.json("/api/vehicles/car_7")
        assert stranger.keys() == told.keys() - {"application", "invited", "permissions", "enrolled_at"}


async def test_withdrawn_cars_are_listed_for_operators_who_ask(serve: Serve) -> None:
    async with serve(car(1), car(2, withdrawn_at=START), access=EXPOSED) as site:
        slugs = {}
        for asked in ("", "?withdrawn=0", "?withdrawn=1"):
            async with site.client.get(f"{site.url}/api/vehicles{asked}", headers=KEY) as answer:
                slugs[asked] = [one["slug"] for one in (await answer.json())["vehicles"]]
        assert slugs == {"": ["car_1"], "?withdrawn=0": ["car_1"], "?withdrawn=1": ["car_1", "car_2"]}
        async with site.client.get(f"{site.url}/api/vehicles?withdrawn=yes", headers=KEY) as answer:
            assert answer.status == 400
        async with site.client.get(f"{site.url}/api/vehicles?withdrawn=1") as answer:
            assert answer.status == 403


async def test_a_car_is_renamed(serve: Serve) -> None:
    async with serve(car(1), car(2)) as site:
        status, told = await called(site, "/api/vehicles/car_1/rename", {"name": "Zoë", "slug": "zoe"})
        assert (status, told["name"], told["slug"], told["application"]) == (200, "Zoë", "zoe", "home")
        assert (await called(site, "/api/vehicles/zoe/rename", {"name": "Z", "slug": None}))[1]["name"] == "Z"
        assert site.fleet.by_slug("car_1") is None
        status, told = await called(site, "/api/vehicles/zoe/rename", {"slug": "car_2"})
        assert (status, told) == (409, {"status": 409, "error": "another car has or had the slug car_2"})
        assert (await called(site, "/api/vehicles/zoe/rename"))[0] == 400
        assert (await called(site, "/api/vehicles/car_1/rename", {"name": "Z"}))[0] == 404


async def test_a_car_is_disconnected(serve: Serve) -> None:
    async with serve(car(1), car(2)) as site:
        status, told = await called(site, "/api/vehicles/car_1/disconnect")
        assert (status, told) == (200, {"vehicle": "car_1", "erased": False})
        assert site.fleet.by_slug("car_1").vehicle.withdrawn_at == START
        assert site.fleet.by_slug("car_1").state.soc_percent == 57.0
        status, told = await called(site, "/api/vehicles/car_2/disconnect", {"erase": True})
        assert (status, told) == (200, {"vehicle": "car_2", "erased": True})
        assert site.fleet.by_slug("car_2").state.soc_percent is None
        assert (await called(site, "/api/vehicles/car_3/disconnect"))[0] == 404


async def test_what_cannot_be_is_said_and_changes_nothing(serve: Serve) -> None:
    async with serve(car(1)) as site:
        site.steward.unwilling = "Smartcar did not end the consent: try again"
        for verb, asked in (("rename", {"name": "Z"}), ("disconnect", {})):
            status, told = await called(site, f"/api/vehicles/car_1/{verb}", asked)
            assert (status, told["error"]) == (409, site.steward.unwilling)
        assert site.fleet.by_slug("car_1") == car(1)


# Enrolments


async def test_a_terminal_sets_out(serve: Serve) -> None:
    async with serve() as site:
        status, told = await called(
            site, "/api/enrolments", {"make": "EXAMPLE", "country": "DE", "application": "home"}
        )
        port = urlsplit(site.url).port
        assert status == 201
        assert told["callback"] == f"http://localhost:{port}/enrol/callback"
        assert told["expires_at"] == "2026-11-22T13:00:00Z"
        assert told["link"].startswith(f"{CONNECT}/oauth/authorize?")
        asked = parse_qs(urlsplit(told["link"]).query)
        assert asked["redirect_uri"] == [told["callback"]]
        assert (asked["make"], asked["flags"]) == (["EXAMPLE"], ["country:DE"])
        found = await site.json(f"/api/enrolments/{told['id']}")
        nothing_yet = dict.fromkeys(("ending", "title", "what", "then"))
        assert found == {"id": told["id"], **nothing_yet, "arrived": False, "vehicles": []}
        assert (await site.store.enrolment_by_id(told["id"])).browser is None


async def test_the_public_address_is_where_it_comes_back(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        _, told = await called(site, "/api/enrolments")
        assert told["callback"] == "https://ev.example.org/enrol/callback"


@pytest.mark.parametrize(
    ("asked", "status", "word"),
    [
        ({"application": "other"}, 409, "'other'"),
        ({"make": "TRABANT"}, 409, "EXAMPLE"),
        ({"make": ""}, 409, "EXAMPLE"),
        ({"country": "Germany"}, 400, "country"),
    ],
)
async def test_who_cannot_set_out_is_told_why(
    serve: Serve, asked: dict[str, str], status: int, word: str
) -> None:
    async with serve() as site:
        refused, told = await called(site, "/api/enrolments", asked)
        assert refused == status
        assert word in told["error"]


async def test_an_application_that_is_not_set_up_is_named(serve: Serve) -> None:
    async with serve(applications={"home": replace(HOME["home"], application_id=None)}) as site:
        status, told = await called(site, "/api/enrolments")
        assert status == 409
        assert "application_id in [smartcar.home]" in told["error"]


async def test_a_pasted_address_brings_the_cars_in(serve: Serve) -> None:
    async with serve(car(1, user_ref="somebody-else")) as site:
        number, state = await begun(site)
        with capture_logs() as log:
            address = f"http://localhost:9782/enrol/callback?state={state}&user_id={USER}"
            status, told = await called(site, "/api/enrolments/paste", {"address": address})
        said = ENDINGS[Ending.CONSENTED]
        assert status == 200
        assert told == {
            "id": number,
            "ending": "consented",
            "title": said.title,
            "what": said.what,
            "then": said.then,
            "arrived": False,
            "vehicles": [],
        }
        assert [one.user_ref for one in site.welcomed] == [USER]
        site.change(car(2, user_ref=USER))
        site.change(car(3, user_ref=USER, application="other"))
        site.change(car(4, user_ref=USER, values={Signal.CHARGING: True}))
        await site.store.arrived(EnrolmentId(number), START)
        found = await site.json(f"/api/enrolments/{number}")
        assert found["arrived"] is True
        assert found["vehicles"] == [
            {"slug": "car_2", "name": "Car 2", "soc": 57.0},
            {"slug": "car_4", "name": "Car 4", "soc": None},
        ]
        assert log
        for secret in (USER, state):
            assert secret not in f"{log} {told} {found}"


async def test_what_is_pasted_twice_late_or_wrong_changes_nothing(serve: Serve) -> None:
    async with serve() as site:
        _, used = await begun(site)
        _, late = await begun(site)
        addresses = {
            name: f"?state={state}&user_id={USER}" for name, state in {"used": used, "late": late}.items()
        }
        assert (await called(site, "/api/enrolments/paste", {"address": addresses["used"]}))[0] == 200
        await site.clock.advance(ENROLMENT_LASTS)
        cases = {
            addresses["used"]: "replayed",
            addresses["late"]: "expired",
            f"?state={'A' * 43}&user_id={USER}": "unknown",
            f"?state={late}&user_id=..%2f..%2fadmin": "unreadable",
            "rubbish": "unreadable",
            "http://[": "unreadable",
            "": "unreadable",
        }
        for address, refusal in cases.items():
            status, told = await called(site, "/api/enrolments/paste", {"address": address})
            words = REFUSALS[refusal]
            assert (status, told["error"]) == (409, f"{words.title}. {words.what} {words.then}"), address
        assert len(site.welcomed) == 1


@pytest.mark.parametrize("number", ["2", "0", "-1", "x", "9" * 30, "1.0", "%ff"])
async def test_there_is_no_such_enrolment(serve: Serve, number: str) -> None:
    async with serve() as site:
        await begun(site)
        async with site.client.get(f"{site.url}/api/enrolments/{number}") as answer:
            assert (answer.status, answer.content_type) == (404, "application/json")


# Invitations


async def test_an_invitation_is_made_listed_and_taken_back(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        status, made = await called(site, "/api/invitations", {"name": " Ada  L.", "lasts_s": 3600})
        link = made.pop("link")
        assert status == 201
        assert made == {
            "id": 1,
            "name": "Ada L.",
            "application": "home",
            "created_at": "2026-11-22T12:00:00Z",
            "expires_at": "2026-11-22T13:00:00Z",
            "state": "open",
        }
        assert link.startswith("https://ev.example.org/enrol/i/")
        assert (await site.enrolments.invitation(link.rpartition("/")[2])).name == "Ada L."
        _, second = await called(site, "/api/invitations", {"name": "Grace"})
        assert second["expires_at"] == "2026-11-29T12:00:00Z"
        status, revoked = await called(site, "/api/invitations/2/revoke")
        assert (status, revoked["state"]) == (200, "revoked")
        await site.clock.advance(HOUR)
        async with site.client.get(f"{site.url}/api/invitations", headers=KEY) as answer:
            text, listed = await answer.text(), (await answer.json())["invitations"]
        assert listed == [revoked, made | {"state": "expired"}]
        assert link.rpartition("/")[2] not in text
        for number in ("3", "x", "9" * 30):
            assert (await called(site, f"/api/invitations/{number}/revoke"))[0] == 404


async def test_without_a_public_address_the_link_holds_the_one_that_was_used(serve: Serve) -> None:
    async with serve() as site:
        _, made = await called(site, "/api/invitations", {"name": "Ada"}, Host="pi.lan:9782")
        assert made["link"].startswith("http://pi.lan:9782/enrol/i/")


@pytest.mark.parametrize(
    ("asked", "status", "word"),
    [
        ({}, 400, "name is missing: it is a text"),
        ({"name": " "}, 409, "characters"),
        ({"name": "a" * 81}, 409, "characters"),
        ({"name": "a\u202eb"}, 409, "characters"),
        ({"name": 7}, 400, "name is a text"),
        ({"name": "Ada", "lasts_s": 0}, 409, "lasts at most"),
        ({"name": "Ada", "lasts_s": -1}, 409, "lasts at most"),
        ({"name": "Ada", "lasts_s": 91 * 86_400}, 409, "lasts at most"),
        ({"name": "Ada", "lasts_s": 2**62}, 400, "lasts_s"),
        ({"name": "Ada", "lasts_s": 1.5}, 400, "lasts_s is a whole number"),
        ({"name": "Ada", "lasts_s": True}, 400, "lasts_s is a whole number"),
        ({"name": "Ada", "application": "x"}, 409, "'x'"),
    ],
)
async def test_an_invitation_that_cannot_be(
    serve: Serve, asked: dict[str, object], status: int, word: str
) -> None:
    async with serve() as site:
        refused, told = await called(site, "/api/invitations", asked)
        assert refused == status
        assert word in told["error"]
        assert await site.enrolments.invitations() == []


# What holds for all of them

CALLS = (
    "/api/vehicles/car_1/rename",
    "/api/vehicles/car_1/disconnect",
    "/api/enrolments",
    "/api/enrolments/paste",
    "/api/invitations",
    "/api/invitations/1/revoke",
)


@pytest.mark.parametrize("path", CALLS)
async def test_unknown_keys_are_refused_by_name(serve: Serve, path: str) -> None:
    async with serve(car(1)) as site:
        status, told = await called(site, path, {"name": "x", "slug": "x", "address": "x", "eras": True})
        assert status == 400
        unknown = [key for key in ("address", "eras", "name", "slug") if f"{key!r}" in told["error"]]
        assert len(unknown) == 1
        assert site.fleet.by_slug("car_1") == car(1)


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("body", [b"[]", b"null", b"7", b"{", b'{"name": "\\ud800"}', b"\xff", b"name=x"])
async def test_what_is_no_object_is_refused(serve: Serve, path: str, body: bytes) -> None:
    async with (
        serve(car(1)) as site,
        site.client.post(site.url + path, data=body, headers=KEY) as answer,
    ):
        assert (answer.status, answer.content_type) == (400, "application/json")
        assert "JSON object" in (await answer.json())["error"]


async def test_erase_is_said_in_so_many_words(serve: Serve) -> None:
    async with serve(car(1)) as site:
        for wrong in ("true", 1, "yes"):
            status, told = await called(site, "/api/vehicles/car_1/disconnect", {"erase": wrong})
            assert (status, told["error"]) == (400, "erase is true or false")
        assert site.fleet.by_slug("car_1").vehicle.withdrawn_at is None


async def test_a_store_that_cannot_be_written_is_said(serve: Serve) -> None:
    async with serve() as site:
        _, state = await begun(site)
        site.store.broken = True
        asked = {
            "/api/enrolments": {},
            "/api/enrolments/paste": {"address": f"?state={state}&user_id={USER}"},
            "/api/invitations": {"name": "Ada"},
            "/api/invitations/1/revoke": {},
        }
        for path, body in asked.items():
            assert await called(site, path, body) == (503, {"status": 503, "error": BROKEN})
        async with site.client.get(f"{site.url}/api/invitations") as answer:
            assert answer.status == 503
            assert int(answer.headers["Retry-After"]) > 0
        site.store.broken = False
        assert (await called(site, "/api/enrolments/paste", asked["/api/enrolments/paste"]))[0] == 200
        assert len(site.welcomed) == 1


async def test_a_terminals_enrolment_expires(serve: Serve) -> None:
    async with serve() as site:
        number, _ = await begun(site)
        await site.clock.advance(timedelta(days=1))
        assert (await site.json(f"/api/enrolments/{number}"))["ending"] is None

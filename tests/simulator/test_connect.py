"""The Connect page: step by step over HTTP, and clicked through in Chromium."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from html import unescape
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from aiohttp import web
from playwright.async_api import Browser, Page, expect

from evbatteryd.simulator import SimulatorOptions
from evbatteryd.simulator.connect import FAILURES
from evbatteryd.simulator.fleet import PERMISSIONS
from tests.chromium import PHONE, chromium
from tests.simulator.conftest import Smartcar, StartSmartcar

CALLBACK = "http://127.0.0.1:9/enrol/callback"
ALLOW = {"decision": "allow", "vehicle": "1"}
OWNER = "owner@example.com"


def link(smartcar: Smartcar, **asked: str | None) -> str:
    """The address an application sends its owner to; None leaves a parameter out."""
    query = {
        "response_type": "code",
        "client_id": smartcar.simulator.application_id,
        "redirect_uri": CALLBACK,
        "state": "a state",
        **asked,
    }
    given = {name: value for name, value in query.items() if value is not None}
    return f"{smartcar.origin}/oauth/authorize?{urlencode(given)}"


@dataclass
class Step:
    """A page, or the way back."""

    status: int
    location: str
    html: str
    headers: Mapping[str, str]

    @property
    def heading(self) -> str:
        (heading,) = re.findall(r"<h1>(.*?)</h1>", self.html)
        return unescape(heading)

    @property
    def answer(self) -> dict[str, str]:
        """What the application is told."""
        assert self.status == 303
        return dict(parse_qsl(urlsplit(self.location).query))


async def get(smartcar: Smartcar, url: str) -> Step:
    async with smartcar.http.get(url, allow_redirects=False) as response:
        return Step(
            response.status, response.headers.get("Location", ""), await response.text(), response.headers
        )


async def post(smartcar: Smartcar, url: str, form: object) -> Step:
    async with smartcar.http.post(url, data=form, allow_redirects=False) as response:
        return Step(
            response.status, response.headers.get("Location", ""), await response.text(), response.headers
        )


async def consent(smartcar: Smartcar, email: str = OWNER, make: str = "tesla", **asked: str) -> Step:
    return await post(smartcar, link(smartcar, make=make, **asked), {"email": email, **ALLOW})


async def connections(smartcar: Smartcar, user: str) -> list[dict]:
    listed = await smartcar.ask("GET", f"/v3/connections?filter[userId]={user}&page[size]=100")
    return listed.json["data"]


# --- the steps ------------------------------------------------------------------------------------------


async def test_from_the_brand_to_the_answer(smartcar: Smartcar):
    brands = await get(smartcar, link(smartcar, flags="country:DE", scope="read_battery required:read_vin"))
    assert brands.heading == "Choose your brand"
    assert "Country: DE" in brands.html
    names = dict(re.findall(r'<a href="([^"]*)">([^<]*)</a>', brands.html))
    assert len(names) == 46
    (chosen,) = (unescape(href) for href, name in names.items() if name == "Land Rover")
    assert dict(parse_qsl(chosen[1:]))["make"] == "LAND ROVER"
    address = f"{smartcar.origin}/oauth/authorize{chosen}"
    assert (await get(smartcar, address)).heading == "Sign in with Land Rover"
    asked = await post(smartcar, address, {"email": OWNER, "password": "not to be shown"})
    assert asked.heading == "Share your Land Rover?"
    assert "not to be shown" not in asked.html
    assert "Read the battery&#39;s level" in asked.html
    assert "Read the vehicle identification number" in asked.html
    assert "odometer" not in asked.html
    assert len(smartcar.vehicles) == 3, "nothing has been consented to yet"

    back = await post(smartcar, address, {"email": OWNER, **ALLOW})
    assert back.location.startswith(f"{CALLBACK}?")
    assert set(back.answer) == {"user_id", "code", "state"}
    assert back.answer["state"] == "a state"
    (vehicle,) = smartcar.vehicles[3:]
    assert vehicle.user_id == back.answer["user_id"]
    assert vehicle.car.cloud.make == "LAND ROVER"
    (connection,) = await connections(smartcar, vehicle.user_id)
    assert connection["attributes"]["permissions"] == ["read_battery", "read_vin"]
    assert connection["relationships"]["vehicle"]["data"]["id"] == vehicle.id
    assert connection["meta"]["createdAt"] == "2026-03-04T05:06:07.000+00:00"
    assert (await smartcar.signals(vehicle)).status == 200


@pytest.mark.parametrize("make", ["LAND ROVER", "LAND_ROVER", "land_rover", "land rover"])
async def test_a_given_make_skips_the_choice(smartcar: Smartcar, make: str):
    assert (await get(smartcar, link(smartcar, make=make))).heading == "Sign in with Land Rover"


async def test_every_page_is_kept_from_frames_caches_and_scripts(smartcar: Smartcar):
    pages = [
        await get(smartcar, link(smartcar)),
        await get(smartcar, link(smartcar, client_id="x")),
        await get(smartcar, link(smartcar, make="kia")),
        await post(smartcar, link(smartcar, make="kia"), {"email": OWNER}),
    ]
    for page in pages:
        assert page.heading
        assert '<html lang="en">' in page.html
        assert "<script" not in page.html
        assert "frame-ancestors 'none'" in page.headers["Content-Security-Policy"]
        assert page.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("email", ["", "nobody", "@", "a b@example.com", "a@"])
async def test_an_address_that_is_none_is_asked_for_again(smartcar: Smartcar, email: str):
    again = await post(smartcar, link(smartcar, make="kia"), {"email": email, **ALLOW})
    assert (again.status, again.heading) == (400, "Sign in with Kia")
    assert "Enter an e-mail address." in again.html
    assert len(smartcar.vehicles) == 3


async def test_what_is_typed_is_not_taken_for_html(smartcar: Smartcar):
    email = '"><script>alert(1)</script>@example.com'
    address = link(smartcar, make="kia", scope="<b>", flags="country:<i>")
    page = await post(smartcar, address, {"email": email})
    assert "&lt;script&gt;" in page.html
    brands = await get(smartcar, link(smartcar, scope='"><script>', flags="country:<script>"))
    for html in (page.html, brands.html):
        assert not {"<script", "<b>", "<i>"} & set(re.findall(r"<\w+>?", html))


# --- refused at the door --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"client_id": "another"}, "client_id"),
        ({"client_id": None}, "client_id"),
        ({"redirect_uri": None}, "redirect_uri"),
        ({"redirect_uri": ""}, "redirect_uri"),
        ({"redirect_uri": "http://example.com/callback"}, "redirect_uri"),
        ({"redirect_uri": "http://127.0.0.1@example.com/"}, "redirect_uri"),
        ({"redirect_uri": "http://127.0.0.1.example.com/"}, "redirect_uri"),
        ({"redirect_uri": "javascript:alert(1)"}, "redirect_uri"),
        ({"redirect_uri": "http://127.0.0.1/#fragment"}, "redirect_uri"),
        ({"redirect_uri": "https://example.com/\r\nX: y"}, "redirect_uri"),
        ({"redirect_uri": "https://example.com/\n"}, "redirect_uri"),
        ({"redirect_uri": "https://[::1"}, "redirect_uri"),
        ({"mode": "simulated"}, "mode must be live"),
        ({"mode": "test"}, "mode must be live"),
        ({"response_type": None}, "response_type"),
        ({"response_type": "token"}, "response_type"),
        ({"make": "trabant"}, "no such make"),
    ],
)
@pytest.mark.parametrize("method", [get, post])
async def test_a_link_that_cannot_be_trusted_leads_nowhere(smartcar: Smartcar, asked, why, method):
    form = ({"email": OWNER, **ALLOW},) if method is post else ()
    page = await method(smartcar, link(smartcar, **({"make": "kia"} | asked)), *form)
    assert (page.status, page.location, page.heading) == (400, "", "This link does not work")
    assert why in page.html
    assert len(smartcar.vehicles) == 3


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.com/callback",
        "http://localhost:8080/",
        "http://me.localhost/",
        "http://127.9.9.9/x",
        "http://[::1]:9782/x",
        "HTTPS://example.com",
    ],
)
async def test_without_registered_addresses_loopback_and_tls_will_do(smartcar: Smartcar, uri: str):
    assert (await consent(smartcar, redirect_uri=uri)).location.startswith(f"{uri}?")


async def test_registered_addresses_alone_will_do(start: StartSmartcar):
    registered = ("http://car.lan/callback", "https://example.com/callback?from=connect")
    async with start(redirect_uris=registered) as smartcar:
        for uri in registered:
            assert (await consent(smartcar, redirect_uri=uri)).status == 303
        for uri in (CALLBACK, "http://car.lan/callback/", "https://example.com/callback"):
            assert (await get(smartcar, link(smartcar, redirect_uri=uri))).status == 400


@pytest.mark.parametrize("uri", ["", "example.com/callback", "ftp://example.com"])
def test_an_address_that_is_no_url_cannot_be_registered(uri: str):
    with pytest.raises(ValueError, match="redirect_uris must be URLs"):
        SimulatorOptions(redirect_uris=(uri,))


async def test_the_mode_is_that_of_the_application(start: StartSmartcar):
    async with start(mode="simulated") as smartcar:
        assert (await consent(smartcar, mode="simulated")).status == 303
        for mode in ("live", None):  # live is what it means to say nothing
            assert (await get(smartcar, link(smartcar, mode=mode))).status == 400


# --- the answer -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("https://example.com/c?a=1&b=%20", "https://example.com/c?a=1&b=%20&error=access_denied"),
        ("https://example.com/c?", "https://example.com/c?error=access_denied"),
        ("https://example.com", "https://example.com?error=access_denied"),
    ],
)
async def test_the_query_of_the_callback_is_kept(smartcar: Smartcar, uri: str, location: str):
    address = link(smartcar, make="kia", redirect_uri=uri)
    back = await post(smartcar, address, {"email": OWNER, "decision": "deny"})
    assert back.location.startswith(f"{location}&")


async def test_a_state_comes_back_as_it_was_and_none_if_there_was_none(smartcar: Smartcar):
    odd = "ä&b=c d%20+/=?"
    assert (await consent(smartcar, state=odd)).answer["state"] == odd
    assert (
        "state"
        not in (
            await post(smartcar, link(smartcar, make="kia", state=None), {"email": OWNER, **ALLOW})
        ).answer
    )


async def test_a_code_can_be_left_out(start: StartSmartcar):
    async with start(connect_code=False) as smartcar:
        assert set((await consent(smartcar)).answer) == {"user_id", "state"}


async def test_denial_changes_nothing(smartcar: Smartcar):
    address = link(smartcar, make="kia")
    back = await post(smartcar, address, {"email": OWNER, "vehicle": "1", "decision": "deny"})
    assert set(back.answer) == {"error", "error_description", "state"}
    assert back.answer["error"] == "access_denied"
    assert back.answer["state"] == "a state"
    assert len(smartcar.vehicles) == 3


@pytest.mark.parametrize("failure", sorted(FAILURES))
async def test_every_failure_can_be_chosen_on_the_page_and_by_the_address(smartcar: Smartcar, failure: str):
    address = link(smartcar, make="kia")
    page = await post(smartcar, address, {"email": OWNER})
    assert f'<option value="{failure}">' in page.html
    chosen = await post(smartcar, address, {"email": OWNER, **ALLOW, "outcome": failure})
    special = f"smartcar@{failure.replace('_', '-')}.com"
    signed_in = await post(smartcar, address, {"email": special, "password": "x"})
    for back in (chosen, signed_in):
        assert (back.answer["error"], back.answer["state"]) == (failure, "a state")
        assert back.answer["error_description"].endswith(".")
        assert "user_id" not in back.answer
    assert len(smartcar.vehicles) == 3


async def test_an_incompatible_vehicle_is_named_and_a_wrong_configuration_explained(smartcar: Smartcar):
    address = link(smartcar, make="land_rover")
    back = await post(smartcar, address, {"email": OWNER, **ALLOW, "outcome": "vehicle_incompatible"})
    assert re.fullmatch("[0-9A-HJ-NPR-Z]{17}", back.answer["vin"])
    assert back.answer["make"] == "LAND ROVER"
    assert back.answer["model"]
    assert 2015 < int(back.answer["year"]) < 2030
    wrong = await post(smartcar, address, {"email": OWNER, **ALLOW, "outcome": "configuration_error"})
    assert wrong.answer["status_code"] == "400"
    assert wrong.answer["error_message"]


# --- who consents to what -------------------------------------------------------------------------------


async def test_the_same_address_is_the_same_user_with_the_same_car_for_a_seed(start: StartSmartcar):
    async def met(seed: int, *before: str) -> tuple[str, str, str, int]:
        async with start(seed=seed) as smartcar:
            for email in before:
                await consent(smartcar, email)
            user = (await consent(smartcar)).answer["user_id"]
            vehicle = smartcar.vehicles[-1]
            return user, vehicle.id, vehicle.car.model, vehicle.car.year

    assert await met(1) == await met(1, "somebody@example.com", "else@example.com")
    assert (await met(1))[:2] != (await met(2))[:2]


async def test_one_user_may_have_cars_of_several_makes(smartcar: Smartcar):
    users = {(await consent(smartcar, make=make)).answer["user_id"] for make in ("tesla", "kia", "bmw")}
    users.add((await consent(smartcar, email=" Owner@Example.com ", make="mg")).answer["user_id"])
    (user,) = users
    makes = [one["attributes"]["vehicle"]["make"] for one in await connections(smartcar, user)]
    assert makes == ["TESLA", "KIA", "BMW", "MG"]
    other = (await consent(smartcar, email="other@example.com")).answer["user_id"]
    assert other != user
    assert smartcar.vehicles[-1].id not in {vehicle.id for vehicle in smartcar.vehicles[:-1]}


async def test_consenting_again_renews_the_connection_of_the_same_vehicle(smartcar: Smartcar):
    user = (await consent(smartcar, scope="read_battery")).answer["user_id"]
    (first,) = await connections(smartcar, user)
    smartcar.clock.advance(minutes=10)
    again = await consent(smartcar, scope="read_battery read_charge")
    assert again.answer["user_id"] == user
    (second,) = await connections(smartcar, user)
    assert second["id"] != first["id"]
    assert second["relationships"] == first["relationships"]
    assert second["attributes"]["permissions"] == ["read_battery", "read_charge"]
    assert second["meta"]["createdAt"] > first["meta"]["createdAt"]
    assert (await smartcar.ask("GET", f"/v3/connections/{first['id']}")).status == 404
    assert (await smartcar.ask("GET", f"/v3/connections/{second['id']}")).status == 200


async def test_consenting_after_a_withdrawal_revives_the_same_vehicle(smartcar: Smartcar):
    user = (await consent(smartcar)).answer["user_id"]
    (first,) = await connections(smartcar, user)
    assert (await smartcar.ask("DELETE", f"/v3/users/{user}")).status == 204
    assert await connections(smartcar, user) == []
    await consent(smartcar)
    (second,) = await connections(smartcar, user)
    assert second["id"] != first["id"]
    assert second["relationships"] == first["relationships"]


async def test_a_renewed_connection_is_the_newest_of_the_list(smartcar: Smartcar):
    await consent(smartcar, email="one@example.com")
    smartcar.clock.advance(minutes=1)
    await consent(smartcar, email="two@example.com")
    smartcar.clock.advance(minutes=1)
    await consent(smartcar, email="one@example.com")
    listed = (await smartcar.ask("GET", "/v3/connections")).json["data"]
    ids = [one["relationships"]["vehicle"]["data"]["id"] for one in listed]
    one, two = smartcar.vehicles[3:]
    assert ids == [*(vehicle.id for vehicle in smartcar.vehicles[:3]), two.id, one.id]


async def test_without_a_scope_the_usual_is_granted(smartcar: Smartcar):
    user = (await consent(smartcar)).answer["user_id"]
    (connection,) = await connections(smartcar, user)
    assert connection["attributes"]["permissions"] == list(PERMISSIONS)
    assert smartcar.vehicles[-1].permissions is PERMISSIONS


async def test_vehicles_of_the_same_scope_share_what_they_remember(smartcar: Smartcar):
    for email in ("one@example.com", "two@example.com"):
        await consent(smartcar, email, scope="read_battery read_charge")
    one, two = smartcar.vehicles[3:]
    assert one.permissions is two.permissions


async def test_an_account_of_many_vehicles_connects_those_chosen(smartcar: Smartcar):
    address, email = link(smartcar, make="kia"), "5-vehicles@smartcar.com"
    page = await post(smartcar, address, {"email": email})
    assert page.html.count('type="checkbox" name="vehicle"') == 5
    none = await post(smartcar, address, {"email": email, "decision": "allow", "vehicle": "6"})
    assert (none.status, "Choose at least one vehicle." in none.html) == (400, True)
    two = [("email", email), ("decision", "allow"), ("vehicle", "2"), ("vehicle", "4")]
    user = (await post(smartcar, address, two)).answer["user_id"]
    assert len(await connections(smartcar, user)) == 2
    every = [*two, *(("vehicle", str(number)) for number in (1, 3, 5))]
    await post(smartcar, address, every)
    assert len(await connections(smartcar, user)) == 5
    assert len(smartcar.vehicles) == 3 + 5


@pytest.mark.parametrize(
    ("email", "count"), [("20-vehicles@smartcar.com", 20), ("999-vehicles@smartcar.com", 20)]
)
async def test_accounts_end_at_twenty_vehicles(smartcar: Smartcar, email: str, count: int):
    page = await post(smartcar, link(smartcar, make="kia"), {"email": email})
    assert page.html.count('name="vehicle"') == count


async def test_an_account_without_vehicles(smartcar: Smartcar):
    back = await post(smartcar, link(smartcar, make="kia"), {"email": "0-vehicles@smartcar.com"})
    assert back.answer["error"] == "no_vehicles"


async def test_single_select_takes_one_vehicle(smartcar: Smartcar):
    address = link(smartcar, make="kia", single_select="true")
    email = "3-vehicles@smartcar.com"
    page = await post(smartcar, address, {"email": email})
    assert page.html.count('type="radio" name="vehicle"') == 3
    two = [("email", email), ("decision", "allow"), ("vehicle", "1"), ("vehicle", "2")]
    refused = await post(smartcar, address, two)
    assert (refused.status, "Choose one vehicle only." in refused.html) == (400, True)
    assert (await post(smartcar, address, two[:-1])).status == 303
    assert len(smartcar.vehicles) == 4


async def test_without_auto_subscription_a_consent_alone_brings_no_data(start: StartSmartcar):
    async with start(auto_subscribe=False) as smartcar:
        assert (await smartcar.signals(smartcar.vehicles[0])).status == 404
        user = (await consent(smartcar)).answer["user_id"]
        vehicle = smartcar.vehicles[-1]
        none = await smartcar.signals(vehicle)
        assert (none.status, none.error) == (404, "RESOURCE_NOT_FOUND")
        assert (await smartcar.ask("GET", "/v3/subscriptions")).json["data"] == []
        wanted = {"webhookId": smartcar.simulator.webhook_id, "userId": user, "vehicleId": vehicle.id}
        body = {"data": {"type": "subscription", "attributes": wanted}}
        assert (await smartcar.ask("POST", "/v3/subscriptions", json=body)).status == 202
        assert (await smartcar.ask("POST", "/v3/subscriptions", json=body)).status == 409
        assert (await smartcar.signals(vehicle)).status == 200
        await consent(smartcar)
        assert (await smartcar.signals(vehicle)).status == 200, "the subscription outlives a renewal"
        await smartcar.control("POST", f"vehicles/{vehicle.id}/withdraw")
        await consent(smartcar)
        assert (await smartcar.signals(vehicle)).status == 404, "but not the consent's end"


# --- in a browser ---------------------------------------------------------------------------------------


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture
async def callback() -> AsyncIterator[str]:
    """An application that the browser comes back to."""

    async def arrived(_: web.Request) -> web.Response:
        return web.Response(text='<link rel="icon" href="data:,">', content_type="text/html")

    app = web.Application()
    app.router.add_get("/callback", arrived)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}/callback"
    await runner.cleanup()


async def looks_right(page: Page) -> None:
    """One heading, nothing cut off, every field labelled, and on a phone large enough for a finger."""
    await expect(page.locator("h1")).to_have_count(1)
    needed, there = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert needed <= there
    unnamed = (
        "[...document.querySelectorAll('input:not([type=hidden]), select')].filter(f => !f.labels.length)"
    )
    assert await page.evaluate(f"{unnamed}.length") == 0
    targets = await page.evaluate(
        "[...document.querySelectorAll('a, button, select, fieldset label')]"
        ".map((target) => target.getBoundingClientRect().height)"
    )
    assert min(targets, default=44) >= 44


async def sign_in(page: Page, email: str) -> None:
    await looks_right(page)
    await page.get_by_label("E-mail address").fill(email)
    await page.get_by_label("Password").fill("anything")
    await page.get_by_role("button", name="Sign in").click()
    await looks_right(page)


async def test_it_is_clicked_through_on_a_phone_without_scripts(
    browser: Browser, smartcar: Smartcar, callback: str
):
    page = await browser.new_page(viewport=PHONE, java_script_enabled=False)
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text))
    address = link(smartcar, redirect_uri=f"{callback}?kept=1", scope="required:read_battery read_charge")

    await page.goto(address)
    await looks_right(page)
    await page.get_by_role("link", name="Renault").click()
    await sign_in(page, "2-vehicles@smartcar.com")
    await expect(page.get_by_role("listitem")).to_have_count(2)
    await page.get_by_role("checkbox").first.uncheck()
    await page.get_by_role("button", name="Allow").click()
    await page.wait_for_url(f"{callback}**")
    answer = dict(parse_qsl(urlsplit(page.url).query))
    assert (answer["kept"], answer["state"]) == ("1", "a state")
    (vehicle,) = smartcar.vehicles[3:]
    assert vehicle.user_id == answer["user_id"]

    await page.goto(link(smartcar, redirect_uri=callback, make="kia"))
    await sign_in(page, OWNER)
    await page.get_by_role("button", name="Deny").click()
    await page.wait_for_url(f"{callback}**")
    assert dict(parse_qsl(urlsplit(page.url).query))["error"] == "access_denied"

    await page.goto(link(smartcar, redirect_uri=callback, make="kia"))
    await sign_in(page, OWNER)
    await page.get_by_label("What happens").select_option("no_vehicles")
    await page.get_by_role("button", name="Allow").click()
    await page.wait_for_url(f"{callback}**")
    assert dict(parse_qsl(urlsplit(page.url).query))["error"] == "no_vehicles"
    assert len(smartcar.vehicles) == 4
    assert heard == []

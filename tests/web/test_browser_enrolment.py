"""The way of an owner and of an operator as they go it, in Chromium, past a small stand-in for Connect."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from html import escape
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, Page, Request, expect

from evbatteryd.domain.enrolment import Ending
from evbatteryd.domain.fleet import Trouble
from evbatteryd.domain.reading import Signal
from evbatteryd.enrol.consent import ENDINGS, ConnectOptions
from evbatteryd.web.guard import Access
from tests.chromium import CUT_OFF, FAINT, PHONE, UNNAMED, chromium, complaints
from tests.fakes import START
from tests.web.builders import car
from tests.web.conftest import HOME, LOCAL_KEY, Serve
from tests.web.people import AWAY, USER

TOKEN = "a-long-admin-token"
LONG = "A car with a name that goes on and on and_never_has_a_space_where_a_line_could_be_broken"
LOST = Trouble("consent_lost", "PERMISSION", "The owner withdrew the consent.", START)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


async def connect_page(request: web.Request) -> web.Response:
    """Two links, as Connect's last step has two buttons."""
    asked = request.query

    def back(**answer: str) -> str:
        return escape(f"{asked['redirect_uri']}?{urlencode(answer | {'state': asked['state']})}")

    allow = back(user_id=USER, code="8f3c")
    deny = back(error="access_denied", error_description="User denied access")
    return web.Response(
        text=f"""<!doctype html><html lang="en"><title>Connect</title><link rel="icon" href="data:,">
            <h1>Connect</h1><p>{escape(asked.get("make", "any make"))}</p>
            <a href="{allow}">Allow</a> <a href="{deny}">Deny</a></html>""",
        content_type="text/html",
    )


@asynccontextmanager
async def connect() -> AsyncIterator[dict[str, ConnectOptions]]:
    """The applications of a daemon whose Connect is this stand-in, at an origin of its own."""
    app = web.Application()
    app.router.add_get("/oauth/authorize", connect_page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield {"home": replace(HOME["home"], connect_origin=f"http://{host}:{port}")}
    finally:
        await runner.cleanup()


@asynccontextmanager
async def tab(
    browser: Browser,
    *,
    scripts: bool = True,
    phone: bool = False,
    away: bool = False,
    dark: bool = False,
    refused: bool = False,
) -> AsyncIterator[Page]:
    """A page of a browser that knows nobody yet. What it complains of fails the test, except, if it is to be
    ``refused``, that it was."""
    context = await browser.new_context(
        java_script_enabled=scripts,
        viewport=PHONE if phone else None,
        extra_http_headers=AWAY if away else None,
        color_scheme="dark" if dark else "light",
    )
    page = await context.new_page()
    heard = complaints(page)
    yield page
    assert [one for one in heard if not (refused and "the server responded with a status of" in one)] == []
    await context.close()


async def fits(page: Page) -> None:
    """Nothing sticks out at the side of a phone, nothing is cut off."""
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert await page.evaluate(CUT_OFF) == []


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no script"])
async def test_an_owner_clicks_consents_and_the_car_is_in(
    browser: Browser, serve: Serve, scripts: bool
) -> None:
    async with (
        connect() as applications,
        serve(applications=applications) as site,
        tab(browser, scripts=scripts, phone=True) as page,
    ):
        await page.goto(site.url)
        await page.locator("main").get_by_role("link", name="Add a car").click()
        await expect(page).to_have_url(site.url.replace("127.0.0.1", "localhost") + "/enrol")
        await fits(page)
        await page.get_by_label("Brand").select_option("Example")
        await page.get_by_role("button", name="Continue to Smartcar").click()
        await expect(page.get_by_role("heading")).to_have_text("Connect")
        await expect(page.locator("p")).to_have_text("EXAMPLE")
        await page.get_by_role("link", name="Allow").click()
        await expect(page.get_by_role("heading")).to_have_text(ENDINGS[Ending.CONSENTED].title)
        await expect(page).to_have_url(site.url.replace("127.0.0.1", "localhost") + "/enrol/done")
        await expect(page.get_by_role("status")).to_contain_text("Looking for your cars")

        site.change(car(1, name=LONG, user_ref=USER, values={}))
        await expect(page.get_by_role("status")).to_contain_text("being read")
        site.change(car(1, name=LONG, user_ref=USER, values={Signal.SOC: 63.0}))
        await expect(page.locator(".soc")).to_have_text("63 %")
        await fits(page)
        await page.go_back()
        await expect(page.get_by_role("heading")).to_have_text("Connect")


async def test_an_owner_says_no(browser: Browser, serve: Serve) -> None:
    async with connect() as applications, serve(applications=applications) as site, tab(browser) as page:
        await page.goto(f"{site.url}/enrol")
        await page.get_by_role("button", name="Continue to Smartcar").click()
        await page.get_by_role("link", name="Deny").click()
        await expect(page.get_by_role("heading")).to_have_text(ENDINGS[Ending.DENIED].title)
        assert site.welcomed == []
        await page.get_by_role("link", name="Begin again").click()
        await page.get_by_role("button", name="Continue to Smartcar").click()
        await page.get_by_role("link", name="Allow").click()
        await expect(page.get_by_role("heading")).to_have_text(ENDINGS[Ending.CONSENTED].title)
        assert len(site.welcomed) == 1


async def test_a_guest_is_invited_and_sees_nothing_else(browser: Browser, serve: Serve) -> None:
    async with (
        connect() as applications,
        serve(car(7, name="The host's"), applications=applications) as site,
        tab(browser) as operator,
        tab(browser, phone=True, away=True) as guest,
    ):
        await operator.goto(site.url.replace("127.0.0.1", "localhost"))
        await operator.get_by_role("link", name="Invitations").click()
        await operator.get_by_label("For whom").fill("Ada Lovelace")
        await operator.get_by_role("button", name="Make an invitation").click()
        await expect(operator.get_by_role("heading")).to_have_text("Invitation for Ada Lovelace")
        code = await operator.locator("svg.qr").bounding_box()
        assert code is not None
        assert 150 < code["width"] == code["height"]
        link = await operator.get_by_label("Link").input_value()
        await operator.get_by_role("link", name="Back to all invitations").click()
        assert link not in await operator.content()

        await guest.goto(link)
        assert guest.url.endswith("/enrol"), "the token stays in the address bar"
        await expect(guest.locator("main")).to_contain_text("You are invited as Ada Lovelace")
        await fits(guest)
        await guest.get_by_role("button", name="Continue to Smartcar").click()
        await guest.get_by_role("link", name="Allow").click()
        site.change(car(1, name="Ada's", user_ref=USER))
        await expect(guest.get_by_role("listitem")).to_contain_text("Ada's")
        await expect(guest.locator("body")).not_to_contain_text("The host's")
        links = await guest.evaluate("[...document.links].map((link) => link.href)")
        assert links == ["https://my.smartcar.com/"]
        await operator.reload()
        await expect(operator.locator(".state")).to_have_text("used")


async def test_an_operator_renames_and_disconnects(browser: Browser, serve: Serve) -> None:
    async with serve(car(1), car(2)) as site, tab(browser, phone=True, refused=True) as page:
        await page.goto(f"{site.url}/vehicles")
        await page.get_by_role("link", name="Car 1").click()
        await page.get_by_label("Name", exact=True).fill(LONG[:80])
        await page.get_by_label("Short name for programs").fill("car 2")
        await page.get_by_role("button", name="Save names").click()
        await expect(page.get_by_role("alert")).to_contain_text("cannot be a slug")
        await expect(page.get_by_label("Name", exact=True)).to_have_value(LONG[:80])
        await fits(page)
        await page.get_by_label("Short name for programs").fill("blue")
        await page.get_by_role("button", name="Save names").click()
        await expect(page.get_by_role("status")).to_have_text("Saved.")
        assert page.url.endswith("/vehicles/blue?done=renamed")

        await page.get_by_role("button", name="Disconnect").click()
        assert site.fleet.by_slug("blue").vehicle.withdrawn_at is None, "the box was not ticked"
        await page.get_by_label("Yes, disconnect").check()
        await page.get_by_label("Erase its history, too").check()
        await page.get_by_role("button", name="Disconnect").click()
        await expect(page.get_by_role("status")).to_contain_text("erased")
        await expect(page.locator("h2")).to_have_text(["Car 2"])
        assert site.fleet.by_slug("blue").vehicle.withdrawn_at is not None


async def test_a_lost_consent_is_given_again(browser: Browser, serve: Serve) -> None:
    async with (
        connect() as applications,
        serve(car(1, trouble=LOST), applications=applications) as site,
        tab(browser) as page,
    ):
        await page.goto(site.url)
        await page.get_by_role("link", name="Consent again").click()
        await expect(page.get_by_label("Brand")).to_have_value("EXAMPLE")
        await page.get_by_role("button", name="Continue to Smartcar").click()
        await expect(page.locator("p")).to_have_text("EXAMPLE")


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no script"])
async def test_an_operator_signs_in_from_afar(browser: Browser, serve: Serve, scripts: bool) -> None:
    access = Access(local_key=LOCAL_KEY, admin_token=TOKEN)
    async with (
        serve(car(1), access=access) as site,
        tab(browser, scripts=scripts, phone=True, away=True) as page,
    ):
        await page.goto(f"{site.url}/vehicles/car_1")
        await fits(page)
        await page.get_by_label("Admin token").fill(TOKEN)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text("Car 1")
        await fits(page)
        await page.goto(f"{site.url}/sign-in")
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Admin token")).to_be_visible()


async def test_the_keyboard_is_enough(browser: Browser, serve: Serve) -> None:
    async with connect() as applications, serve(applications=applications) as site, tab(browser) as page:
        await page.goto(site.url)
        await press(page, "Add a car")
        await page.wait_for_url("**/enrol")
        await press(page, "Continue to Smartcar")
        await page.wait_for_url("**/oauth/authorize**")
        await press(page, "Allow", styled=False)
        await expect(page.get_by_role("heading")).to_have_text(ENDINGS[Ending.CONSENTED].title)


async def press(page: Page, name: str, *, styled: bool = True) -> None:
    """Tab on to the control of that name, which then shows where the focus is, and press it."""
    for _ in range(40):
        await page.keyboard.press("Tab")
        focused = page.locator(":focus-visible")
        if await focused.count() and name in await focused.inner_text():
            outline = await focused.evaluate("(part) => getComputedStyle(part).outline")
            assert "solid 2px" in outline or not styled
            await page.keyboard.press("Enter")
            return
    pytest.fail(f"{name} cannot be reached by Tab")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_every_page_is_accessible_and_fits_a_phone(browser: Browser, serve: Serve, dark: bool) -> None:
    told = {
        "name": LONG,
        "model": LONG,
        "invited": "Ada",
        "permissions": frozenset({"read_battery", "x" * 90}),
    }
    cars = (
        car(1, **told, user_ref=USER),
        car(2, trouble=LOST),
        car(3, name="Gone", withdrawn_at=START),
        *(car(number) for number in range(4, 60)),
    )
    access = Access(local_key=LOCAL_KEY, admin_token=TOKEN)
    several = {**HOME, "work": replace(HOME["home"], application="work")}
    async with (
        serve(*cars, access=access, applications=several) as site,
        tab(browser, phone=True, dark=dark) as here,
        tab(browser, phone=True, dark=dark, away=True) as away,
    ):
        await site.enrolments.invite("Bob", application="home")
        used, _ = await site.enrolments.invite(LONG[:80], application="home")
        await site.enrolments.revoke(used.id)
        pages = [
            *((here, path) for path in ("/", "/vehicles", "/vehicles?withdrawn=1", "/vehicles/car_1")),
            *((here, path) for path in ("/vehicles/car_2", "/vehicles/car_3", "/invitations", "/enrol")),
            *((here, path) for path in ("/sign-in", "/enrol?application=work")),
            (away, "/sign-in"),
        ]
        for page, path in pages:
            answer = await page.goto(site.url + path)
            assert answer is not None
            assert answer.status == 200
            await accessible(page)
            await fits(page)


async def accessible(page: Page) -> None:
    assert await page.locator("html").get_attribute("lang") == "en"
    assert await page.locator("h1").count() == 1
    assert await page.title() != "evbatteryd"
    assert await page.evaluate(UNNAMED) == []
    contrast = await page.evaluate(FAINT)
    assert contrast["looked"] > 5
    assert contrast["faint"] == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
async def test_what_goes_wrong_is_accessible_too(browser: Browser, serve: Serve, dark: bool) -> None:
    async with (
        serve(access=Access(local_key=LOCAL_KEY, admin_token=TOKEN)) as site,
        tab(browser, phone=True, dark=dark, refused=True) as here,
        tab(browser, phone=True, dark=dark, refused=True, away=True) as away,
    ):
        loaded: list[Request] = []

        def note(request: Request) -> None:
            loaded.append(request)

        here.on("request", note)
        for page, path, title in (
            (here, f"/enrol/callback?state=x&user_id={USER}", "This address is not complete"),
            (here, "/enrol/i/wrong", "This invitation is no longer open"),
            (here, "/vehicles/none", "Not found"),
            (away, "/enrol", "You need an invitation"),
        ):
            answer = await page.goto(site.url + path)
            assert answer is not None
            assert answer.status >= 400
            await expect(page.get_by_role("heading")).to_have_text(title)
            await accessible(page)
            await fits(page)
        assert any("style.css" in one.url for one in loaded)
        told = [await one.header_value("referer") for one in loaded]
        assert not any(told), "what a page loads is told its address"

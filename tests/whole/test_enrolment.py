"""Click, consent, and the car is in: Chromium on our pages and on the simulator's Connect."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from tests.chromium import PHONE, chromium, complaints
from tests.mosquitto import Witness
from tests.whole.whole import ADMIN_TOKEN, PUBLIC_HOST, Whole, everything

HISTORY = "SELECT count(*) FROM reading JOIN vehicle ON vehicle.id = vehicle_id WHERE slug = ?"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


@pytest.fixture
async def whole(tmp_path: Path) -> AsyncIterator[Whole]:
    async with everything(tmp_path, vehicles=0) as made:
        yield made


def home(whole: Whole) -> str:
    """As a person at the machine opens it."""
    return whole.daemon.url.replace("127.0.0.1", "localhost")


async def set_out(page: Page, address: str, *, make: str = "RENAULT") -> None:
    """From our page to Connect's, brand chosen."""
    await page.goto(address)
    await page.get_by_label("Brand").select_option(make)
    await page.get_by_role("button", name="Continue to Smartcar").click()


async def sign_in(page: Page, email: str) -> None:
    await page.get_by_label("E-mail address").fill(email)
    await page.get_by_label("Password").fill("any")
    await page.get_by_role("button", name="Sign in").click()


async def enrol(page: Page, address: str, email: str = "anna@example.com") -> None:
    await set_out(page, address)
    await sign_in(page, email)
    await page.get_by_role("button", name="Allow").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Thank you, your consent has arrived")


async def consented_elsewhere(connect: str, email: str) -> str:
    """Consent at Connect's address; return the one that it leads back to, which nobody opens yet."""
    fields = {"email": email, "decision": "allow", "vehicle": "1"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(connect, data=fields, allow_redirects=False) as answer,
    ):
        assert answer.status == 303
        return answer.headers["Location"]


def secrets_of(whole: Whole) -> list[str]:
    """What nobody may see: users' ids and the secrets of the configuration."""
    with closing(sqlite3.connect(whole.folder / "evbatteryd.db")) as db:
        users = [user for (user,) in db.execute("SELECT user_ref FROM vehicle")]
    files = ("secret", "management", "admin", "evbatteryd.db.key")
    return users + [(whole.folder / name).read_text().strip() for name in files]


async def changed(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no script"])
async def test_click_consent_and_the_car_is_in(whole: Whole, browser: Browser, scripts: bool) -> None:
    context = await browser.new_context(viewport=PHONE, java_script_enabled=scripts)
    page = await context.new_page()
    heard = complaints(page)
    await page.goto(home(whole))
    await page.get_by_role("main").get_by_role("link", name="Add a car").click()
    await enrol(page, page.url)
    assert urlsplit(page.url).query == "", "neither user nor state stays in the address"
    assert urlsplit(page.url).path == "/enrol/done"
    await expect(page.get_by_text("Renault")).to_be_visible()
    await expect(page.locator(".arrivals .soc")).to_have_text(re.compile(r"^\d+ %$"), timeout=20_000)
    (car,) = await whole.vehicles()
    assert (car["make"], car["application"], car["invited"]) == ("RENAULT", "test", None)
    assert heard == []
    log = whole.daemon.log.read_text()
    shown = await page.content()
    for secret in secrets_of(whole):
        assert secret not in log
        assert secret not in shown
    await page.goto(home(whole) + "/vehicles")
    for secret in secrets_of(whole):
        assert secret not in await page.content()


FAILURES = {
    "access_denied": "You said no, and that is fine",
    "no_vehicles": "There is no car in that account",
    "vehicle_incompatible": "This car cannot be connected",
    "invalid_subscription": "The car's connected services are not active",
    "configuration_error": "Something is set up wrongly here",
    "server_error": "Smartcar had a problem",
}


async def test_every_failure_of_connect_is_told_in_words_an_owner_understands(
    whole: Whole, browser: Browser
) -> None:
    page = await browser.new_page()
    for outcome, title in FAILURES.items():
        await set_out(page, home(whole) + "/enrol")
        await sign_in(page, "anna@example.com")
        await page.get_by_label("What happens").select_option(outcome)
        await page.get_by_role("button", name="Allow").click()
        await expect(page.get_by_role("heading", level=1)).to_have_text(title)
        assert urlsplit(page.url).query == ""
    await set_out(page, home(whole) + "/enrol")
    await sign_in(page, "anna@example.com")
    await page.get_by_role("button", name="Deny").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text(FAILURES["access_denied"])
    assert await whole.vehicles() == []


async def test_the_way_back_counts_once_and_in_one_browser(tmp_path: Path, browser: Browser) -> None:
    # Whoever consents at Smartcar is on the application's list, so that is not read meanwhile.
    async with everything(tmp_path, vehicles=0, consents_every="365d") as whole:
        await the_way_back(whole, browser)


async def the_way_back(whole: Whole, browser: Browser) -> None:
    page = await browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await enrol(page, home(whole) + "/enrol")
    (callback,) = [url for url in asked if "/enrol/callback?" in url]
    await page.goto(callback)
    await expect(page.get_by_role("heading", level=1)).to_have_text("This link was used already")
    await page.goto(re.sub("state=[^&]+", "state=" + "x" * 43, callback))
    await expect(page.get_by_role("heading", level=1)).to_have_text("This link was not made here")

    # Somebody sets out, consents, and lures another browser into finishing.
    other = await (await browser.new_context()).new_page()
    await set_out(page, home(whole) + "/enrol")
    lured = await consented_elsewhere(page.url, "mallory@example.com")
    await other.goto(lured)
    await expect(other.get_by_role("heading", level=1)).to_have_text("Another browser began this")
    assert len(await whole.vehicles()) == 1

    # The operator may paste what that browser could not deliver.
    await page.goto(home(whole) + "/enrol")
    await page.get_by_text("Did the last step end on a page").click()
    await page.get_by_label("Address of the page").fill(lured)
    await page.get_by_role("button", name="Take this answer").click()
    await expect(page.get_by_role("heading", level=1)).to_have_text("Thank you, your consent has arrived")
    assert len(await whole.until_all(lambda car: car["soc"] is not None)) == 2


async def test_consent_withdrawn_and_given_again_is_the_same_car(whole: Whole, browser: Browser) -> None:
    page = await browser.new_page()
    await enrol(page, home(whole) + "/enrol")
    (before,) = await whole.until_all(lambda car: car["soc"] is not None)
    (vehicle,) = await whole.control.truth()
    await whole.control.change(vehicle, "withdraw")
    await page.goto(home(whole) + "/vehicles?withdrawn=1")
    async with asyncio.timeout(30):
        while not await page.get_by_role("link", name="Consent again").count():
            await asyncio.sleep(0.1)
            await page.reload()
    await page.get_by_role("link", name="Consent again").click()
    await enrol(page, page.url)
    (after,) = await whole.until_all(lambda car: car["trouble"] is None)
    assert (after["slug"], after["enrolled_at"]) == (before["slug"], before["enrolled_at"])
    events = whole.events()
    assert events.count("vehicle.enrolled") == 1
    assert events.count("vehicle.consented_anew") == 1


async def test_a_renamed_and_a_disconnected_car_leave_nothing_behind(whole: Whole, browser: Browser) -> None:
    page = await browser.new_page()
    await enrol(page, home(whole) + "/enrol")
    (before,) = await whole.until_all(lambda car: car["soc"] is not None)
    old = before["slug"]
    await page.goto(f"{home(whole)}/vehicles/{old}")
    await page.get_by_label("Name", exact=True).fill("Anna's car")
    await page.get_by_label("Short name for programs").fill("annas_car")
    await page.get_by_role("button", name="Save names").click()
    await expect(page.get_by_role("status")).to_be_visible()
    await retained(whole, "evbatteryd/annas_car/state", "evbatteryd/annas_car/availability", without=old)
    (after,) = await whole.vehicles()
    assert (after["slug"], after["name"]) == ("annas_car", "Anna's car")

    await page.get_by_label("Yes, disconnect").check()
    await page.get_by_label("Erase its history, too").check()
    await page.get_by_role("button", name="Disconnect").click()
    await expect(page.get_by_role("status")).to_be_visible(timeout=20_000)
    await retained(whole, without="annas_car/state")
    (truth,) = (await whole.control.truth()).values()
    assert truth["connectionId"] is None, "Smartcar knows"
    with closing(sqlite3.connect(whole.folder / "evbatteryd.db")) as db:
        assert db.execute(HISTORY, ("annas_car",)).fetchone() == (0,)
    requests = (await whole.control.stats())["requests"]["signals"]
    await asyncio.sleep(0.5)
    assert (await whole.control.stats())["requests"]["signals"] == requests, "it is asked no more"


async def retained(whole: Whole, *wanted: str, without: str) -> None:
    """Until the broker keeps these topics, and none with ``without`` in it."""
    async with asyncio.timeout(30):
        while True:
            async with Witness(whole.broker.port) as witness:
                await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "online")
                await asyncio.sleep(0.1)
                kept = {m.topic for m in witness.heard if m.payload}
            if kept.issuperset(wanted) and not any(f"/{without}" in topic for topic in kept):
                return
            await asyncio.sleep(0.1)


async def test_a_kill_between_consent_and_car_loses_neither(whole: Whole, browser: Browser) -> None:
    page = await browser.new_page()
    await whole.control.fault("SERVER:INTERNAL", path="connections")
    await enrol(page, home(whole) + "/enrol")
    await changed(lambda: "enrolment.waiting" in whole.events())
    await whole.daemon.end(signal.SIGKILL)
    await whole.control.clear()
    await whole.daemon.start()
    (car,) = await whole.until_all(lambda car: car["soc"] is not None)
    assert car["make"] == "RENAULT"


async def test_an_invitation_is_for_one_person_who_sees_nothing_else(tmp_path: Path) -> None:
    async with (
        everything(tmp_path, vehicles=1, public=True) as whole,
        chromium(f"--host-resolver-rules=MAP {PUBLIC_HOST} 127.0.0.1") as browser,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"{whole.daemon.url}/api/vehicles") as answer:
            assert answer.status == 401, "where a public address is set, being at the machine proves nothing"
        public = f"http://{PUBLIC_HOST}:{urlsplit(whole.daemon.url).port}"
        operator = await browser.new_page()
        await operator.goto(public + "/invitations")
        await operator.get_by_label("Admin token").fill(ADMIN_TOKEN)
        await operator.get_by_role("button", name="Sign in").click()
        await operator.get_by_label("For whom").fill("Aunt Anna")
        await operator.get_by_role("button", name="Make an invitation").click()
        link = await operator.get_by_label("Link").input_value()
        await expect(operator.locator("figure svg")).to_be_visible()

        guest = await (await browser.new_context(viewport=PHONE)).new_page()
        await guest.goto(public + "/")
        await expect(guest.get_by_label("Admin token")).to_be_visible()
        await guest.goto(link)
        await expect(guest.get_by_text("Aunt Anna")).to_be_visible()
        assert guest.url == public + "/enrol", "the token leaves the address bar"
        await enrol(guest, guest.url)
        await expect(guest.locator(".arrivals li")).to_have_count(1)
        await operator.goto(public + "/vehicles")
        await expect(operator.get_by_text("invited as Aunt Anna")).to_be_visible()

        late = await (await browser.new_context()).new_page()
        await late.goto(link)
        await expect(late.get_by_role("heading", level=1)).to_have_text("This invitation is no longer open")
        log = whole.daemon.log.read_text()
        assert ADMIN_TOKEN not in log
        assert link.rsplit("/", 1)[1] not in log

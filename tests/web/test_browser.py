"""The page as people see it, in Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from playwright.async_api import Browser, expect

from evbatteryd.domain.reading import ChargeState, Signal
from evbatteryd.web import app as web_app
from evbatteryd.web import view
from tests.chromium import CUT_OFF, PHONE, chromium, complaints
from tests.fakes import START
from tests.web.builders import HOUR, MINUTE, car, rising
from tests.web.conftest import Serve

LONG = "A car with a name that goes on and on and_never_has_a_space_where_a_line_could_be_broken_at_all"


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as launched:
        yield launched


async def test_the_page_lives(browser: Browser, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.05)
    async with serve(car(1, name="Blue car"), car(2, name="<b>Red</b>")) as site:
        page = await browser.new_page()
        heard = complaints(page)
        await page.goto(site.url)
        await page.evaluate("window.unloaded = false")
        blue = page.locator("[data-vehicle=car_1]")
        await expect(blue.locator(".soc")).to_have_text("57 %")
        await expect(page.locator("[data-vehicle=car_2] h2")).to_have_text("<b>Red</b>")

        site.change(car(1, name="<i>Blue</i>", values={Signal.SOC: 58.0, Signal.CHARGING: True}))
        await expect(blue.locator(".soc")).to_have_text("58 %")
        await expect(blue.locator("h2")).to_have_text("<i>Blue</i>")
        await expect(blue).to_contain_text("Charging")

        await site.clock.advance(12 * MINUTE)
        await expect(blue.locator("[data-words=ago]").first).to_have_text("12 min ago")
        await expect(page.locator("#clock")).to_have_text("2026-11-22 12:12:00 UTC")

        await site.clock.advance(timedelta(days=5))
        await expect(blue.locator(".badge")).to_have_text("stale")
        await expect(page.locator("#kinds .badge.stale + b")).to_have_text("2")

        assert await page.evaluate("window.unloaded") is False, "it was loaded anew"
        assert heard == []


async def test_an_estimate_moves_by_itself_and_never_replaces_what_was_measured(
    browser: Browser, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.05)
    values = {Signal.SOC: 57.0, Signal.CHARGING: True}
    async with serve(car(1, values=values, trend=rising(12.0))) as site:
        page = await browser.new_page()
        heard = complaints(page)
        await page.goto(site.url)
        await page.evaluate("window.unloaded = false")
        guess = page.locator(".estimate")
        await expect(guess).to_have_text("estimate: about 57 %, 57–59 %")  # noqa: RUF001
        await site.clock.advance(30 * MINUTE)
        await expect(guess).to_have_text("estimate: about 63 %, 62–65 %")  # noqa: RUF001
        await expect(page.locator(".by-now")).to_be_visible()
        await expect(page.locator(".soc")).to_have_text("57 %")
        await site.clock.advance(4 * HOUR)
        await expect(guess).to_have_count(0)
        await expect(page.locator(".soc")).to_have_text("57 %")
        assert await page.evaluate("window.unloaded") is False, "it was loaded anew"
        assert heard == []


async def test_an_estimate_vanishes_in_time_although_the_daemon_is_silent(
    browser: Browser, serve: Serve
) -> None:
    trend = rising(12.0, until=START + HOUR)
    async with serve(car(1, values={Signal.SOC: 57.0, Signal.CHARGING: True}, trend=trend)) as site:
        await site.clock.advance(30 * MINUTE)
        page = await browser.new_page()
        await page.route("**/rows*", lambda route: route.abort())
        await page.goto(site.url)
        await page.evaluate("tick()")
        await expect(page.locator(".estimate")).to_be_visible()
        await page.evaluate("epoch.now += 30 * 60_000; tick()")
        await expect(page.locator(".estimate")).to_be_hidden()
        await expect(page.locator(".by-now")).to_be_hidden()
        await expect(page.locator(".soc")).to_have_text("57 %")


async def test_cars_come_and_go(browser: Browser, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.05)
    async with serve() as site:
        page = await browser.new_page()
        heard = complaints(page)
        await page.goto(site.url)
        await expect(page.locator("h1")).to_have_text("No car yet")
        site.change(car(1))
        await expect(page.locator("[data-vehicle=car_1] .soc")).to_have_text("57 %")
        site.change(car(1, values={Signal.SOC: 58.0}))
        await expect(page.locator("[data-vehicle=car_1] .soc")).to_have_text("58 %")
        site.change(car(1, withdrawn_at=START))
        await expect(page.locator("h1")).to_have_text("No car yet")
        assert heard == []


async def test_a_car_that_came_is_followed(
    browser: Browser, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.05)
    async with serve(car(1)) as site:
        page = await browser.new_page()
        await page.goto(site.url)
        await expect(page.locator(".soc")).to_have_text(["57 %"])
        site.change(car(2))
        await expect(page.locator(".soc")).to_have_text(["57 %", "57 %"])
        site.change(car(2, values={Signal.SOC: 58.0}))
        await expect(page.locator(".soc")).to_have_text(["57 %", "58 %"])


async def test_a_lost_connection_is_told(browser: Browser, serve: Serve) -> None:
    page = await browser.new_page()
    async with serve(car()) as site:
        await page.goto(site.url)
        await expect(page.locator(".soc")).to_have_text("57 %")
        await expect(page.locator("#lost")).to_be_hidden()
        async with page.expect_event("requestfinished", lambda request: "/rows" in request.url):
            await site.app.shutdown()
    await expect(page.locator("#lost")).to_be_visible()


@pytest.mark.parametrize("scripts", [True, False], ids=["script", "no script"])
async def test_a_phone_shows_all_of_it(browser: Browser, serve: Serve, scripts: bool) -> None:
    values = {
        Signal.SOC: 57.0,
        Signal.RANGE: 214.0,
        Signal.CHARGE_STATE: ChargeState.CHARGING,
        Signal.CHARGE_POWER: 149.6,
        Signal.TIME_TO_FULL: 5400.0,
    }
    async with serve(
        car(1, name=LONG, model=LONG, values=values, reason=LONG, trend=rising(12.0)),
        *(car(n) for n in range(2, 130)),
    ) as site:
        context = await browser.new_context(viewport=PHONE, java_script_enabled=scripts)
        page = await context.new_page()
        heard = complaints(page)
        await page.goto(site.url)
        await expect(page.locator(".car")).to_have_count(100)
        assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        assert await page.evaluate(CUT_OFF) == []
        await page.get_by_role("link", name="Next").click()
        await expect(page.locator(".car")).to_have_count(29)
        await page.get_by_role("searchbox").fill("car 77")
        await page.get_by_role("button", name="Search").click()
        await expect(page.locator("h2")).to_have_text(["Car 77"])
        await page.get_by_role("link", name="stale").click()
        await expect(page.locator("h1")).to_have_text("No car matches")
        assert heard == []
        await context.close()


async def test_the_script_spells_times_as_the_server_does(browser: Browser, serve: Serve) -> None:
    minutes = (-1_501, -60, -1.49, -0.01, 0, 0.006, 0.02, 0.7, 1.49, 1.51, 5, 5.1, 59.9, 90, 2_879, 3_060)
    seconds = [60 * span for span in minutes]
    async with serve(car()) as site:
        page = await browser.new_page()
        await page.goto(site.url)
        for kind, spell in (("ago", view.ago), ("ahead", view.ahead), ("lasting", view.lasting)):
            told = await page.evaluate(
                "([kind, spans]) => spans.map((span) => spelled[kind](span))",
                [kind, seconds],
            )
            assert told == [spell(START - timedelta(seconds=past), START) for past in seconds]


async def test_the_daemons_clock_runs_at_its_own_speed(browser: Browser, serve: Serve) -> None:
    async with serve(car(), speed=3_600_000.0) as site:
        page = await browser.new_page()
        await page.route("**/rows*", lambda route: route.abort())  # It would set the clock anew.
        await page.goto(site.url)
        before, after = await page.evaluate(
            "new Promise((done) => { const a = now(); setTimeout(() => done([a, now()]), 5); })"
        )
    assert timedelta(milliseconds=after - before) > HOUR  # 5 ms at an hour each

"""The whole surface, over real HTTP."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from urllib.parse import urlencode

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from evbatteryd.domain.fleet import Trouble
from evbatteryd.domain.reading import ChargeState, Signal
from evbatteryd.web import app as web_app
from evbatteryd.web import control
from evbatteryd.web.guard import Access
from tests.fakes import START
from tests.web.builders import HOUR, MINUTE, car, rising
from tests.web.conftest import CONNECT, LOCAL_KEY, Serve, served

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</title><h1>",
    "{{ 7 * 7 }}",
    "&amp;<!--",
)
PAGES = ("/", "/?q=nothing", "/?page=7", "/nowhere")
ADDRESSES = (
    *PAGES,
    "/metrics",
    "/-/healthy",
    "/-/ready",
    "/api/vehicles",
    "/api/vehicles/car_1",
    "/favicon.svg",
)


class Read(HTMLParser):
    """What a browser would see: text, tags, and the attributes of each."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str, **having: str) -> list[dict[str, str | None]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in having.items()}
        return [found for name, found in self.tags if name == tag and wanted.items() <= found.items()]


async def heard_by(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str]]:
    """The events from now on: when this returns, the server listens for changes."""
    assert await answer.content.readuntil(b"\n\n") == b"retry: 3000\n\n"
    return events(answer)


async def events(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str]]:
    """Server-sent events: (name, data). A line ends with LF, CR or both, as browsers have it."""
    name, data = "", list[str]()
    async for raw in answer.content:
        for line in raw.decode().removesuffix("\n").removesuffix("\r").split("\r"):
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: "):
                data.append(line[6:])
            elif not line and name:
                yield name, "\n".join(data)
                name, data = "", []


async def test_the_page_tells_what_is_known(serve: Serve) -> None:
    values = {
        Signal.SOC: 57.4,
        Signal.RANGE: 214.5,
        Signal.CAPACITY: 52.0,
        Signal.CHARGE_STATE: ChargeState.CHARGING,
        Signal.CHARGE_LIMIT: 80.0,
    }
    async with serve(car(name="Anna's One", values=values, measured_at=START - 12 * MINUTE)) as site:
        page = Read(await site.text("/"))
    assert "Anna's One Example One · 2024 · 52\N{NO-BREAK SPACE}kWh".replace("\xa0", " ") in page.text
    assert "57 % 215 km Charging measured 12 min ago fresh checked just now" in page.text
    assert "next poll in 60 min parked; Example every 2 h" in page.text.replace("1 h", "60 min")
    (meter,) = page.all("div", role="meter")
    assert (meter["aria-valuenow"], meter["aria-label"]) == ("57", "State of charge of Anna's One")
    assert page.all("rect", width="57%")
    assert page.all("line", x1="80%")
    (measured,) = page.all("time", data_words="ago", datetime="2026-11-22T11:48:00.000Z")
    assert measured["title"] == "2026-11-22 11:48:00 UTC"


CHARGING = {Signal.SOC: 57.0, Signal.CHARGING: True}


async def test_the_page_tells_an_estimate_beside_the_measured_value_as_what_it_is(serve: Serve) -> None:
    async with serve(car(values=CHARGING, trend=rising(12.0)), car(2, trend=rising(0.0))) as site:
        await site.clock.advance(30 * MINUTE)
        page = Read(await site.text("/"))
        assert "57 % estimate: about 63 %, 62–65 % Charging measured 30 min ago" in page.text  # noqa: RUF001
        assert page.text.count("estimate") == 1
        assert {meter["aria-valuenow"] for meter in page.all("div", role="meter")} == {"57"}
        assert page.all("rect", class_="by-now", x="57%", width="6%")
        await site.clock.advance(4 * HOUR)
        assert "estimate" not in Read(await site.text("/")).text


async def test_the_page_hears_of_an_estimate_when_its_words_change(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.01)
    heard: list[str] = []
    async with (
        serve(car(values=CHARGING, trend=rising(12.0))) as site,
        site.client.get(f"{site.url}/rows?vehicles=car_1") as answer,
    ):
        async for name, data in await heard_by(answer):
            if name == "row":
                heard.append(" ".join(re.findall(r"<span>([^<]*%,?)</span>", data)))
            if len(heard) == 3:
                break
            if name == "clock" and heard:
                await site.clock.advance(MINUTE)
    # At 57.0, 57.2 and 57.6 %; at 57.4 % it is worded as at 57.2 %.
    assert heard == ["about 57 %, 57–59 %", "about 57 %, 57–60 %", "about 58 %, 57–60 %"]  # noqa: RUF001


async def test_programs_are_told_of_an_estimate_that_has_moved(serve: Serve) -> None:
    async with serve(car(values=CHARGING, trend=rising(12.0))) as site:
        (one,) = (await site.json("/api/vehicles"))["vehicles"]
        assert (one["soc"], one["soc_estimate"], one["estimate_until"]) == (57, 57, "2026-11-22T16:00:00Z")
        await site.clock.advance(10 * MINUTE)
        told = await site.json("/api/vehicles/car_1")
        assert (told["soc"], told["soc_estimate"], told["soc_estimate_high"]) == (57, 59, 61)
        await site.clock.advance(4 * HOUR)
        gone = await site.json("/api/vehicles/car_1")
        assert [
            gone[f] for f in ("soc_estimate", "soc_estimate_low", "soc_estimate_high", "estimate_until")
        ] == [None] * 4


async def test_the_page_says_when_nothing_is_known(serve: Serve) -> None:
    async with serve(car(values={}, due=None, reason="not asked again")) as site:
        page = Read(await site.text("/"))
    assert "no state of charge yet" in page.text
    assert "Not known yet never measured stale no next poll not asked again" in page.text
    assert not page.all("div", role="meter")
    assert "0 %" not in page.text
    assert "None" not in page.text


async def test_trouble_is_told_in_plain_words(serve: Serve) -> None:
    trouble = Trouble("unreachable", "UPSTREAM:NO_RESPONSE", "the manufacturer did not answer", START - HOUR)
    async with serve(car(trouble=trouble, measured_at=START - 200 * HOUR)) as site:
        page = Read(await site.text("/"))
    assert "No answer for 1 h: the manufacturer did not answer UPSTREAM:NO_RESPONSE" in page.text
    assert page.all("span", class_="badge offline")


async def test_ages_are_by_the_daemons_clock(serve: Serve) -> None:
    async with serve(car(), speed=60.0) as site:
        await site.clock.advance(3 * HOUR)
        page = Read(await site.text("/"))
    assert "measured 3 h ago" in page.text
    assert "time-lapse \N{MULTIPLICATION SIGN}60 2026-11-22 15:00:00 UTC" in page.text
    (clock,) = page.all("time", id="clock")
    assert (clock["datetime"], clock["data-speed"]) == ("2026-11-22T15:00:00.000Z", "60.0")


async def test_an_empty_fleet_says_what_to_do(serve: Serve) -> None:
    async with serve() as site:
        page = Read(await site.text("/"))
        assert "No car yet" in page.text
        assert "evbatteryd check" in page.text
        site.fleet.put(car(withdrawn_at=START))
        assert "No car yet" in Read(await site.text("/")).text


async def test_a_search_without_a_hit_says_so(serve: Serve) -> None:
    async with serve(car()) as site:
        assert "No car's name, make or model has “zzz” in it" in Read(await site.text("/?q=zzz")).text
        assert "No car is offline at the moment" in Read(await site.text("/?freshness=offline")).text


async def test_what_is_not_ready_is_on_the_page(serve: Serve) -> None:
    async with serve(car()) as site:
        assert "Not ready" not in await site.text("/")
        site.not_ready.append("the MQTT broker is not connected")
        assert "Not ready: the MQTT broker is not connected" in Read(await site.text("/")).text


def shape(page: Read) -> list[tuple[str, list[str]]]:
    return [(tag, sorted(attrs)) for tag, attrs in page.tags]


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_stays_text(serve: Serve, name: str) -> None:
    """It is on the page as it is, and the page keeps the tags and attributes it has with a harmless one."""
    pages = {}
    for one in ("harmless", name):
        trouble = Trouble("unreachable", one, one, START)
        async with serve(car(name=one, make=one, model=one, reason=one, trouble=trouble)) as site:
            site.not_ready.append(one)
            pages[one] = [
                Read(await site.text("/")),
                Read(await site.text(f"/?{urlencode({'q': one})}")),
                Read(await site.text(f"/?{urlencode({'q': one + ' zzz'})}")),
            ]
    for hostile, harmless in zip(pages[name], pages["harmless"], strict=True):
        assert name in hostile.words
        assert shape(hostile) == shape(harmless)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=40))
def test_any_name_comes_through_as_it_is(names: list[str]) -> None:
    async def shown() -> tuple[Read, dict[str, object]]:
        async with served(*(car(number, name=name) for number, name in enumerate(names))) as site:
            return Read(await site.text("/")), await site.json("/api/vehicles")

    page, told = asyncio.run(shown())
    read = Counter(meter["aria-label"] for meter in page.all("div", role="meter"))
    assert read == Counter(f"State of charge of {name}" for name in names)
    assert Counter(one["name"] for one in told["vehicles"]) == Counter(names)


async def test_a_large_fleet_makes_no_large_page(serve: Serve) -> None:
    async with serve(*(car(n, name=f"Car {n:04}") for n in range(1, 1_235))) as site:
        first = await site.text("/")
        page = Read(first)
        assert len(page.all("li", class_="car fresh")) == 100
        assert len(first) < 300_000
        assert "1\N{EN DASH}100 of 1,234" in page.text
        assert page.all("a", rel="next", href="/?page=2")
        assert not page.all("a", rel="prev")
        last = Read(await site.text("/?page=13"))
        assert len(last.all("li", class_="car fresh")) == 34
        assert "Car 1234" in last.text
        assert last.all("a", rel="prev", href="/?page=12")
        assert not last.all("a", rel="next")
        assert Read(await site.text("/?page=999999999")).text == last.text
        assert Read(await site.text("/?page=-3")).text == page.text
        assert Read(await site.text("/?page=" + "9" * 500)).text == page.text


async def test_search_and_freshness_go_along_from_page_to_page(serve: Serve) -> None:
    async with serve(*(car(n, name="A & B") for n in range(1, 150))) as site:
        page = Read(await site.text("/?q=a+%26&freshness=fresh"))
    assert page.all("a", rel="next", href="/?q=a+%26&freshness=fresh&page=2")
    assert page.all("input", name="q", value="a &")
    assert page.all("a", href="/?q=a+%26&freshness=stale")
    chosen = [link["href"] for link in page.all("a", aria_current="page") if link["href"] != "/"]
    assert chosen == ["/?q=a+%26&freshness=fresh"]


async def test_the_api_lists_and_pages(serve: Serve) -> None:
    async with serve(*(car(n, name=f"Car {n}") for n in range(1, 6)), car(9, withdrawn_at=START)) as site:
        told = await site.json("/api/vehicles?limit=2&offset=3")
        assert (told["total"], told["limit"], told["offset"]) == (5, 2, 3)
        assert told["now"] == "2026-11-22T12:00:00Z"
        assert [one["slug"] for one in told["vehicles"]] == ["car_4", "car_5"]
        assert (await site.json("/api/vehicles?q=car+3"))["total"] == 1
        assert (await site.json("/api/vehicles?freshness=offline"))["total"] == 0
        assert (await site.json("/api/vehicles?offset=77"))["vehicles"] == []


async def test_the_api_tells_one_car(serve: Serve) -> None:
    trouble = Trouble("asleep", "VEHICLE_STATE:ASLEEP", "the car is asleep", START)
    async with serve(car(trouble=trouble, measured_at=START - HOUR)) as site:
        told = await site.json("/api/vehicles/car_1")
    assert told["soc"] == 57.0
    assert told["measured_at"] == "2026-11-22T11:00:00Z"
    assert told["fetched_at"] == "2026-11-22T12:00:00Z"
    assert told["age_s"] == 3600
    assert told["freshness"] == "fresh"
    assert told["next_poll"] == "2026-11-22T13:00:00Z"
    assert told["last_outcome"] == "new"
    assert told["activity"] == "parked"
    assert told["trouble"] == {
        "outcome": "asleep",
        "code": "VEHICLE_STATE:ASLEEP",
        "detail": "the car is asleep",
        "since": "2026-11-22T12:00:00Z",
    }


@pytest.mark.parametrize(
    "asked", ["limit=0", "limit=501", "limit=x", "limit=", "offset=-1", "offset=1e3", "freshness=old"]
)
async def test_the_api_refuses_what_it_does_not_understand(serve: Serve, asked: str) -> None:
    async with serve(car()) as site, site.client.get(f"{site.url}/api/vehicles?{asked}") as answer:
        assert answer.status == 400
        assert asked.split("=", maxsplit=1)[0] in (await answer.json())["error"]


async def test_what_is_not_there(serve: Serve) -> None:
    async with serve(car()) as site:
        for address in ("/api/nothing", "/api/vehicles/nobody"):
            async with site.client.get(site.url + address) as answer:
                assert (answer.status, answer.content_type) == (404, "application/json")
                assert (await answer.json())["status"] == 404
        for address in ("/nothing", "/assets/app.py", "/assets/..%2fapp.py"):
            async with site.client.get(site.url + address) as answer:
                assert (answer.status, answer.content_type) == (404, "text/html")
                assert "Not found" in await answer.text()
        async with site.client.post(site.url + "/api/vehicles") as answer:
            assert (answer.status, answer.content_type) == (405, "application/json")
            assert answer.headers["Allow"] == "GET,HEAD"
        async with site.client.post(site.url + "/") as answer:
            assert (answer.status, answer.content_type) == (405, "text/html")


async def test_a_mistake_of_ours_is_a_clean_answer(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret inside")

    async with serve(car()) as site:
        monkeypatch.setattr(web_app.view, "as_json", fail)
        async with site.client.get(site.url + "/api/vehicles") as answer:
            assert (answer.status, answer.content_type) == (500, "application/json")
            assert "secret" not in await answer.text()
        monkeypatch.setattr(web_app.view, "row", fail)
        async with site.client.get(site.url + "/") as answer:
            assert (answer.status, answer.content_type) == (500, "text/html")
            assert "secret" not in await answer.text()


async def test_health(serve: Serve) -> None:
    async with serve() as site:
        assert await site.text("/-/healthy") == "evbatteryd is healthy.\n"
        assert await site.json("/-/ready") == {"ready": True, "reasons": []}
        site.unhealthy.append("the store is read-only")
        site.not_ready.append("the store is not open")
        async with site.client.get(site.url + "/-/healthy") as answer:
            assert (answer.status, await answer.text()) == (503, "the store is read-only\n")
        async with site.client.get(site.url + "/-/ready") as answer:
            assert answer.status == 503
            assert await answer.json() == {"ready": False, "reasons": ["the store is not open"]}


async def test_why_it_is_not_ready_is_for_those_who_may_see_the_cars(serve: Serve) -> None:
    exposed = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org")
    for access, headers, told in (
        (exposed, {}, False),
        (exposed, {"Authorization": f"Bearer {LOCAL_KEY}"}, True),
        (replace(exposed, open_to_read=True), {}, True),
    ):
        async with serve(access=access) as site:
            for reasons, status in (([], 200), (["INVALID_CLIENT"], 503)):
                site.not_ready[:] = reasons
                async with site.client.get(site.url + "/-/ready", headers=headers) as answer:
                    assert answer.status == status
                    why = {"reasons": reasons} if told else {}
                    assert await answer.json() == {"ready": not reasons} | why


@pytest.mark.parametrize("address", ADDRESSES)
async def test_every_answer_is_protected(serve: Serve, address: str) -> None:
    async with serve(car()) as site, site.client.get(site.url + address) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Server"] == "evbatteryd"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "camera=()" in answer.headers["Permissions-Policy"]
        assert "Strict-Transport-Security" not in answer.headers
        assert "Set-Cookie" not in answer.headers
        kept = answer.headers["Cache-Control"]
        assert kept == ("public, max-age=3600" if address == "/favicon.svg" else "no-store")


async def test_a_page_that_holds_a_secret_is_not_compressed(serve: Serve) -> None:
    """Or its length would tell, letter by letter, what of the secret is also in an attacker's words."""
    async with serve(car()) as site, aiohttp.ClientSession(auto_decompress=False) as raw:
        for address, squeezed in (("/", True), ("/enrol", False)):
            async with raw.get(site.url + address, headers={"Accept-Encoding": "gzip"}) as answer:
                assert ("Content-Encoding" in answer.headers) is squeezed, address
                assert (b'name="form"' in await answer.read()) is not squeezed, address


async def test_a_page_that_leads_elsewhere_has_its_own_policy(serve: Serve) -> None:
    async with serve(car()) as site:
        policies = {}
        for address in ("/", "/enrol"):
            async with site.client.get(site.url + address) as answer:
                policies[address] = answer.headers.getall("Content-Security-Policy")
        assert [len(policy) for policy in policies.values()] == [1, 1]
        assert CONNECT in policies["/enrol"][0]
        assert CONNECT not in policies["/"][0]


@pytest.mark.parametrize(
    "address", ["/enrol/i/very-secret", "/api/enrolments/very-secret", "/?q=very-secret"]
)
async def test_a_mistake_is_logged_without_what_the_address_holds(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    def fail_at_once(*_: object) -> None:
        raise RuntimeError("a bug")

    async with serve(car()) as site:
        for bug in (
            (site.enrolments, "invitation", fail),
            (control, "whole_number", fail_at_once),
            (web_app, "find", fail),
        ):
            monkeypatch.setattr(*bug)
        with capture_logs() as log:
            async with site.client.get(site.url.replace("127.0.0.1", "localhost") + address) as answer:
                assert answer.status == 500
                assert "very-secret" not in await answer.text()
    assert [line["event"] for line in log] == ["http.failed"]
    assert "very-secret" not in str(log)


async def test_a_store_that_cannot_be_written_is_said_on_a_page(serve: Serve) -> None:
    async with serve(car()) as site:
        site.store.broken = True
        async with site.client.get(f"{site.url}/invitations") as answer:
            assert (answer.status, answer.content_type) == (503, "text/html")
            assert "nothing was changed" in await answer.text()


@pytest.mark.parametrize("address", PAGES)
async def test_a_page_needs_nothing_from_elsewhere(serve: Serve, address: str) -> None:
    """And nothing that the policy forbids: no style attribute, no script in the page."""
    async with serve(car()) as site, site.client.get(site.url + address) as answer:
        page = Read(await answer.text())
        for tag, attrs in page.tags:
            assert "style" not in attrs, tag
            for key in ("src", "href", "action"):
                assert (attrs.get(key) or "/").startswith("/"), attrs
        for script in page.all("script"):
            assert script["src"]
        assert not page.all("style")
        for asset in [*page.all("script"), *page.all("link", rel="stylesheet")]:
            async with site.client.get(site.url + str(asset.get("src") or asset.get("href"))) as file:
                assert file.status == 200
                assert "immutable" in file.headers["Cache-Control"]


@pytest.mark.parametrize("address", [*ADDRESSES, "/api/events", "/rows?vehicles=car_1"])
async def test_head_is_the_head_of_get(serve: Serve, address: str) -> None:
    """On one connection, so that a stray body would be taken for the next answer."""
    async with serve(car()) as site, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:
        async with client.head(site.url + address) as head:
            assert await head.read() == b""
        async with client.get(site.url + address) as answer:
            assert (head.status, head.content_type) == (answer.status, answer.content_type)
        async with client.head(site.url + address) as head, client.get(site.url + "/-/healthy") as after:
            assert await after.text() == "evbatteryd is healthy.\n"


async def test_metrics_are_gzipped_for_those_who_take_it(serve: Serve) -> None:
    async with serve(car()) as site:
        plain = {"Accept-Encoding": "gzip;q=0, identity"}
        async with site.client.get(site.url + "/metrics", headers=plain) as answer:
            assert "Content-Encoding" not in answer.headers
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            text = await answer.text()
        async with aiohttp.ClientSession(auto_decompress=False) as raw:
            offers = {"Accept-Encoding": "deflate, gzip"}
            async with raw.get(site.url + "/metrics", headers=offers) as answer:
                assert answer.headers["Content-Encoding"] == "gzip"
                unpacked = gzip.decompress(await answer.read()).decode()
    for told in (text, unpacked):
        families = {family.name for family in text_string_to_metric_families(told)}
        assert {"evbattery_state_of_charge_ratio", "evbatteryd_build_info"} <= families


async def test_a_reader_who_leaves_in_the_middle_harms_nobody(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(*(car(n) for n in range(1, 3_000))) as site:
        async with aiohttp.ClientSession() as client, client.get(site.url + "/metrics") as answer:
            await answer.content.read(10)
        assert "evbatteryd_vehicles" in await site.text("/metrics")
    assert not caplog.records


async def test_programs_hear_of_each_change(serve: Serve) -> None:
    async with serve(car(1), car(2)) as site, site.client.get(site.url + "/api/events") as answer:
        assert answer.content_type == "text/event-stream"
        heard = await heard_by(answer)
        site.change(car(2, values={Signal.SOC: 58.0}))
        name, data = await anext(heard)
        assert name == "vehicle"
        assert (json.loads(data)["slug"], json.loads(data)["soc"]) == ("car_2", 58.0)
        site.change(car(1, withdrawn_at=START))
        assert json.loads((await anext(heard))[1])["withdrawn_at"] == "2026-11-22T12:00:00Z"


async def test_programs_may_watch_some_cars(serve: Serve) -> None:
    async with (
        serve(car(1), car(2)) as site,
        site.client.get(site.url + "/api/events?vehicles=car_2") as answer,
    ):
        heard = await heard_by(answer)
        site.change(car(1))
        site.change(car(2))
        assert json.loads((await anext(heard))[1])["slug"] == "car_2"


async def test_a_stream_names_a_bounded_number_of_cars(serve: Serve) -> None:
    slugs = ",".join(f"c{n}" for n in range(201))
    async with serve() as site, site.client.get(f"{site.url}/api/events?vehicles={slugs}") as answer:
        assert answer.status == 400


async def next_of(heard: AsyncIterator[tuple[str, str]], wanted: str) -> str:
    async for name, data in heard:
        if name == wanted:
            return data
    raise AssertionError(f"the stream ended without {wanted}")


async def test_the_page_hears_what_its_cars_look_like(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.01)
    hostile = 'A <b>\r\n\r\nevent: gone\rdata: car_1\r\r\n\n"'
    async with (
        serve(car(1), car(2), speed=60.0) as site,
        site.client.get(site.url + "/rows?vehicles=car_1,nobody") as answer,
    ):
        heard = await heard_by(answer)
        assert json.loads(await next_of(heard, "clock")) == {"now": "2026-11-22T12:00:00Z", "speed": 60.0}
        assert "57 %" in Read(await next_of(heard, "row")).text
        site.change(car(1, name=hostile, values={Signal.SOC: 58.0}))
        row = Read(await next_of(heard, "row"))
        assert "58 %" in row.text
        assert " ".join(hostile.split()) in row.text
        # Freshness flips by itself: nobody says that the car changed.
        await site.clock.advance(timedelta(days=5))
        assert Read(await next_of(heard, "row")).all("span", class_="badge stale")
        site.fleet.put(car(3))
        assert await next_of(heard, "fleet") == "3"
        site.change(car(1, withdrawn_at=START))
        assert await next_of(heard, "gone") == "car_1"


async def test_what_looks_the_same_is_not_told_again(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "TICK_S", 0.001)
    async with serve(car(1)) as site, site.client.get(site.url + "/rows?vehicles=car_1") as answer:
        heard = await heard_by(answer)
        names = [(await anext(heard))[0] for _ in range(12)]
    assert names.count("row") == 1


async def test_streams_end_when_the_daemon_does() -> None:
    async with asyncio.timeout(20):
        async with served(car(1)) as site, aiohttp.ClientSession() as client:
            addresses = ("/api/events", "/rows?vehicles=car_1")
            streams = [await client.get(site.url + address) for address in addresses]
            await site.app.shutdown()
            for stream in streams:
                assert b"retry" in await stream.read()


async def test_a_car_that_is_due_and_waits_says_for_what(serve) -> None:
    async with serve(car(), waits="waits until the application has a request to spare") as site:
        told = await site.json("/api/vehicles/car_1")
    assert told["reason"] == "due: waits until the application has a request to spare"

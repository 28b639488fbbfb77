"""The local web: pages, API, metrics, health, put together; and what holds for every answer."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from urllib.parse import urlencode

import orjson
import structlog
from aiohttp import web
from aiohttp.typedefs import Handler

from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.estimates import Estimator
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ports import Clock, Commands, Forecasts, Hints, Steward
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.domain.webhook import WebhookReceiver
from evbatteryd.enrol.enrolment import Enrolments
from evbatteryd.web import commanding, control, enrolling, hinting, managing, planning, receiving, view
from evbatteryd.web.announcer import Announcer
from evbatteryd.web.answers import (
    JSON,
    LARGEST_BODY,
    as_json,
    as_page,
    car_of,
    compressed,
    freshness_named,
    whole_number,
)
from evbatteryd.web.guard import VISITOR, Access, Guard, Level, public, reader
from evbatteryd.web.listing import Query, find
from evbatteryd.web.parts import Parts
from evbatteryd.web.rendering import Pages, level_of
from evbatteryd.web.serving import serving

__all__ = ["ANNOUNCER", "Health", "make_app", "serving"]

CARS_PER_PAGE = 100
MOST_PER_CALL = 500
MOST_WATCHED = 200
"""Cars that one stream may name."""
TICK_S = 2.0
"""Real seconds between two looks at what moves by itself: freshness, estimates, the fleet, the clock."""
KEEP_ALIVE_S = 15.0
RETRY_MS = 3_000
"""How long a browser waits before it listens again."""
TEXT_FORMAT: Final = "text/plain; version=0.0.4; charset=utf-8"

ANNOUNCER = web.AppKey("announcer", Announcer)
"""Where the flow finds whom to tell that a car changed: ``app[ANNOUNCER].changed(car)``."""
_PAGES = web.AppKey("pages", Pages)
_GUARD = web.AppKey("guard", Guard)

_NOT_NEEDED = (
    "accelerometer",
    "autoplay",
    "camera",
    "display-capture",
    "encrypted-media",
    "fullscreen",
    "geolocation",
    "gyroscope",
    "magnetometer",
    "microphone",
    "midi",
    "payment",
    "picture-in-picture",
    "publickey-credentials-get",
    "screen-wake-lock",
    "usb",
    "xr-spatial-tracking",
)
"""What browsers could do for a page: https://github.com/w3c/webappsec-permissions-policy (features.md)."""
_PROTECTION = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{feature}=()" for feature in _NOT_NEEDED),
    # With no-referrer a browser says "Origin: null" of our own forms, too, and they look like anybody's:
    # https://fetch.spec.whatwg.org/#append-a-request-origin-header
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Unless an answer says otherwise by itself."""
_ONLY_HTTPS = "max-age=31536000"
_KEPT = ("Allow", "Retry-After", "WWW-Authenticate")
"""Headers of a refusal that go with it."""
_STORE_RETRY = "30"
"""Seconds: a full disk is not emptied in one."""
_TITLES = {
    401: "For those who run it",
    403: "Not allowed",
    404: "Not found",
    405: "Not allowed",
    429: "Too often",
    500: "Failed",
    503: "Not now",
}
_BEGUN = web.RequestKey("begun", web.StreamResponse)
_LINE_END = re.compile(r"\r\n|\r|\n")
_log = structlog.get_logger()


class Exposition(Protocol):
    """What ``/metrics`` answers."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Text format 0.0.4, in slices."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How the daemon is. Each returns reasons why not; none when all is well."""

    ready: Callable[[], list[str]]
    healthy: Callable[[], list[str]]


WhyWaiting = Callable[[VehicleId], str | None]


def make_app(
    fleet: Fleet,
    clock: Clock,
    exposition: Exposition,
    health: Health,
    *,
    started_at: datetime,
    access: Access,
    enrolments: Enrolments,
    steward: Steward,
    webhook: WebhookReceiver,
    hints: Hints,
    commands: Commands,
    forecasts: Forecasts,
    estimate: Estimator,
    why_waiting: WhyWaiting,
) -> web.Application:
    """The whole surface, ready to be served.

    ``estimate``: what is told beside what was measured. ``why_waiting``: why a due car is not asked yet.
    """
    guard = Guard(access, clock)
    app = web.Application(middlewares=[_mistakes, guard.middleware], client_max_size=LARGEST_BODY)
    app[ANNOUNCER] = announcer = Announcer()
    app[_GUARD] = guard
    app[_PAGES] = pages = Pages(clock, started_at, signs_in=access.admin_token is not None)
    site = _Site(fleet, clock, exposition, health, announcer, pages, guard, estimate, why_waiting)
    parts = Parts(fleet, clock, guard, pages, enrolments, steward, estimate)
    app.add_routes(enrolling.routes(parts))
    app.add_routes(managing.routes(parts))
    app.add_routes(control.routes(parts))
    app.add_routes(planning.routes(forecasts, clock))
    app.add_routes(receiving.routes(webhook, clock))
    app.add_routes(hinting.routes(hints))
    app.add_routes(commanding.routes(commands))
    app.router.add_get("/", site.page)
    app.router.add_get("/rows", site.rows)
    app.router.add_get("/metrics", site.metrics)
    app.router.add_get("/-/healthy", site.healthy)
    app.router.add_get("/-/ready", site.ready)
    app.router.add_get("/api/vehicles", site.vehicles)
    app.router.add_get("/api/vehicles/{slug}", site.vehicle)
    app.router.add_get("/api/events", site.events)
    app.router.add_get("/assets/{name}", site.asset)
    app.router.add_get("/favicon.svg", site.asset)
    app.on_response_prepare.append(guard.remember)
    app.on_response_prepare.append(_protect)

    async def close(_: web.Application) -> None:
        announcer.close()

    app.on_shutdown.append(close)
    return app


class _Site:
    """The handlers, and what they look at."""

    def __init__(
        self,
        fleet: Fleet,
        clock: Clock,
        exposition: Exposition,
        health: Health,
        announcer: Announcer,
        pages: Pages,
        guard: Guard,
        estimate: Estimator,
        why_waiting: WhyWaiting,
    ) -> None:
        self._fleet = fleet
        self._clock = clock
        self._exposition = exposition
        self._health = health
        self._announcer = announcer
        self._pages = pages
        self._guard = guard
        self._estimate = estimate
        self._why_waiting = why_waiting

    # For people

    @reader
    async def page(self, request: web.Request) -> web.Response:
        now = self._clock.now()
        query = Query(request.query.get("q", "").strip(), freshness_named(request.query.get("freshness", "")))
        found = await find(self._fleet, query, now)
        last = max((found.total - 1) // CARS_PER_PAGE, 0) + 1
        number = min(max(whole_number(request.query.get("page", "")) or 1, 1), last)
        first = (number - 1) * CARS_PER_PAGE
        rows = [self._look(car, now) for car in await found.cut(first, CARS_PER_PAGE)]
        html = self._pages.html(
            "fleet.html",
            now,
            level=level_of(request, self._guard),
            rows=rows,
            found=found,
            query=query,
            kinds=tuple(Freshness),
            number=number,
            last=last,
            first=first,
            link=_link,
            reasons=[*self._health.healthy(), *self._health.ready()],
        )
        await asyncio.sleep(0)  # To write a hundred cars and to squeeze them are two turns' work.
        return as_page(html)

    @reader
    async def rows(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events for the page: each car it shows as HTML, now and when it looks different."""
        slugs = _slugs(request)
        shown: dict[str, _Shown] = {}
        enrolled = len(self._fleet)
        with self._announcer.listen(slugs) as listener:
            stream = await _begun_stream(request)
            while stream.open and not listener.closed:
                events = [_event("clock", self._time())]
                if len(self._fleet) != enrolled:
                    enrolled = len(self._fleet)
                    events.append(_event("fleet", str(enrolled)))
                events += self._different(slugs, shown)
                await stream.send(events)
                await listener.news(TICK_S)
        return stream.response

    def _look(self, car: Car, now: datetime) -> view.Row:
        return view.row(
            car, self._fleet.profile(car), self._fleet.freshness(car, now), self._estimate(car, now)
        )

    def _different(self, slugs: frozenset[str], shown: dict[str, _Shown]) -> list[str]:
        """An event for each car that is not as ``shown``, which is brought up to date."""
        now = self._clock.now()
        events = []
        for slug in slugs:
            car = self._fleet.by_slug(slug)
            if car is None:
                continue
            freshness, estimate = self._fleet.freshness(car, now), self._estimate(car, now)
            before, after = shown.get(slug), _Shown(car, freshness, view.guess(car, estimate))
            if before is not None and before.car is car and before == after:
                continue
            shown[slug] = after
            if car.vehicle.withdrawn_at is None:
                row = view.row(car, self._fleet.profile(car), freshness, estimate)
                events.append(_event("row", self._pages.row(row, now)))
            else:
                events.append(_event("gone", slug))
        return events

    def _time(self) -> str:
        told = {"now": self._clock.now(), "speed": self._clock.speed}
        return orjson.dumps(told, option=orjson.OPT_UTC_Z).decode()

    @public
    async def asset(self, request: web.Request) -> web.Response:
        """A file of ours. An address with ``v`` names its content, so that one may be kept for ever."""
        try:
            body, media_type = self._pages.asset(request.match_info.get("name", "favicon.svg"))
        except KeyError:
            raise web.HTTPNotFound from None
        kept = "max-age=31536000, immutable" if "v" in request.query else "max-age=3600"
        return compressed(
            web.Response(
                body=body,
                content_type=media_type,
                charset="utf-8",
                headers={"Cache-Control": f"public, {kept}"},
            )
        )

    # For programs

    @reader
    async def vehicles(self, request: web.Request) -> web.Response:
        now = self._clock.now()
        asked = request.query
        freshness = freshness_named(asked.get("freshness", ""))
        if freshness is None and "freshness" in asked:
            raise web.HTTPBadRequest(text=f"freshness is one of {', '.join(Freshness)}")
        limit = whole_number(asked.get("limit", str(CARS_PER_PAGE)))
        offset = whole_number(asked.get("offset", "0"))
        if limit is None or not 1 <= limit <= MOST_PER_CALL:
            raise web.HTTPBadRequest(text=f"limit is a whole number from 1 to {MOST_PER_CALL}")
        if offset is None:
            raise web.HTTPBadRequest(text="offset is a whole number from 0 on")
        withdrawn = asked.get("withdrawn", "0")
        if withdrawn not in ("0", "1"):
            raise web.HTTPBadRequest(text="withdrawn is 0 or 1")
        if withdrawn == "1" and not request[VISITOR].operator:
            raise web.HTTPForbidden(text="withdrawn vehicles are shown to those who run evbatteryd alone")
        query = Query(asked.get("q", ""), freshness, withdrawn=withdrawn == "1")
        found = await find(self._fleet, query, now)
        cars = await found.cut(offset, limit)
        return as_json(
            {
                "now": now,
                "total": found.total,
                "limit": limit,
                "offset": offset,
                "vehicles": [self._told(request, car, now) for car in cars],
            }
        )

    @reader
    async def vehicle(self, request: web.Request) -> web.Response:
        car = car_of(request, self._fleet)
        told = self._told(request, car, self._clock.now())
        waits = self._why_waiting(car.id)
        return as_json(told if waits is None else {**told, "reason": f"due: {waits}"})

    @reader
    async def events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: ``vehicle`` for each car that changed, ``reset`` when some were left out."""
        slugs = _slugs(request) or None
        with self._announcer.listen(slugs) as listener:
            stream = await _begun_stream(request)
            while stream.open and not listener.closed:
                news = await listener.news(KEEP_ALIVE_S)
                events = [_event("reset", "{}")] if news.missed else []
                now = self._clock.now()
                events += [
                    _event("vehicle", orjson.dumps(self._told(request, car, now), option=JSON).decode())
                    for car in news.cars
                ]
                await stream.send(events or [": keep-alive\n\n"])
        return stream.response

    def _told(self, request: web.Request, car: Car, now: datetime) -> dict[str, object]:
        told = view.as_json(car, self._fleet.freshness(car, now), self._estimate(car, now), now)
        return told | view.consent_json(car) if request[VISITOR].operator else told

    # For those who watch over it

    @reader
    async def metrics(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": TEXT_FORMAT, "Vary": "Accept-Encoding"})
        squeezed = _accepts_gzip(request)
        if squeezed:
            response.headers["Content-Encoding"] = "gzip"
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        # Level 1: the higher ones cost five times the time for a tenth of the size.
        gzip = zlib.compressobj(1, wbits=31) if squeezed else None
        async for chunk in self._exposition.chunks():
            ready = gzip.compress(chunk) if gzip else chunk
            if ready:
                await response.write(ready)
        if gzip:
            await response.write(gzip.flush())
        await response.write_eof()
        return response

    @public
    async def healthy(self, _: web.Request) -> web.Response:
        reasons = self._health.healthy()
        text = "\n".join(reasons) if reasons else "evbatteryd is healthy."
        return web.Response(text=f"{text}\n", status=503 if reasons else 200)

    @public
    async def ready(self, request: web.Request) -> web.Response:
        """Why not is for those who may see the cars: it names applications and what Smartcar says of them."""
        reasons = self._health.ready()
        told: dict[str, object] = {"ready": not reasons}
        if level_of(request, self._guard) >= Level.READER:
            told["reasons"] = reasons
        return as_json(told, status=503 if reasons else 200)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What a car looks like rests on this."""

    car: Car
    freshness: Freshness
    guess: view.Guess | None


class _Stream:
    """Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

    def __init__(self, response: web.StreamResponse, *, only_head: bool) -> None:
        self.response = response
        self.open = not only_head

    async def send(self, events: list[str]) -> None:
        await self.response.write("".join(events).encode())


async def _begun_stream(request: web.Request) -> _Stream:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    stream = _Stream(response, only_head=request.method == "HEAD")
    if stream.open:
        await stream.send([f"retry: {RETRY_MS}\n\n"])
    return stream


def _event(name: str, data: str) -> str:
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(data))
    return f"event: {name}\n{lines}\n"


@web.middleware
async def _mistakes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure in the form that was asked for: JSON under ``/api``, a page elsewhere."""
    try:
        return await handler(request)
    except web.HTTPException as mistake:
        if mistake.status < 400:
            raise
        status, detail = mistake.status, mistake.text or ""
        headers = {name: mistake.headers[name] for name in _KEPT if name in mistake.headers}
    except ConnectionError:
        if _BEGUN in request:
            return request[_BEGUN]  # The client went away, as it may.
        raise
    except StoreError:
        status, headers = 503, {"Retry-After": _STORE_RETRY}
        detail = "the store cannot be written at the moment: nothing was changed"
    except Exception:
        if _BEGUN in request:
            raise
        _log.exception("http.failed", route=_route(request))
        status, detail, headers = 500, "evbatteryd made a mistake; its log has the details", {}
    return _refusal(request, status, detail, headers)


def _route(request: web.Request) -> str:
    """Which of our addresses it was, without what stands in its variable parts: that may be a secret."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def _refusal(request: web.Request, status: int, detail: str, headers: Mapping[str, str]) -> web.Response:
    generic = f"{status}: "
    detail = "" if detail.startswith(generic) else detail
    title = _TITLES.get(status, "Not understood")
    if request.path.startswith(("/api/", "/webhooks/")):
        return as_json({"status": status, "error": detail or title.lower()}, status=status, headers=headers)
    level = level_of(request, request.app[_GUARD])
    page = request.app[_PAGES].html("error.html", level=level, status=status, title=title, detail=detail)
    return as_page(page, status=status, headers=headers)


async def _protect(request: web.Request, response: web.StreamResponse) -> None:
    request[_BEGUN] = response
    for name, value in _PROTECTION.items():
        response.headers.setdefault(name, value)
    visitor = request.get(VISITOR)
    if visitor is not None and visitor.secure:
        response.headers.setdefault("Strict-Transport-Security", _ONLY_HTTPS)
    response.headers.setdefault("Cache-Control", "no-store")


def _slugs(request: web.Request) -> frozenset[str]:
    slugs = frozenset(filter(None, request.query.get("vehicles", "").split(",")))
    if len(slugs) > MOST_WATCHED:
        raise web.HTTPBadRequest(text=f"one stream may name {MOST_WATCHED} vehicles")
    return slugs


def _accepts_gzip(request: web.Request) -> bool:
    for offer in request.headers.get("Accept-Encoding", "").lower().split(","):
        coding, _, weight = offer.partition(";")
        if coding.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _link(query: Query, *, freshness: Freshness | None, page: int = 1) -> str:
    """The address of another view of the same search."""
    asked = {
        "q": query.text,
        "freshness": freshness.value if freshness else "",
        "page": str(page) if page > 1 else "",
    }
    told = urlencode({key: value for key, value in asked.items() if value})
    return f"/?{told}" if told else "/"

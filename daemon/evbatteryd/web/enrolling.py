"""The way of an owner: what is read and why, off to Connect, and what came of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Final
from urllib.parse import urlsplit

from aiohttp import web

from evbatteryd.domain.cadence import words
from evbatteryd.domain.enrolment import (
    Ending,
    Enrolment,
    EnrolmentId,
    Invitation,
    InvitationState,
    Refusal,
    invitation_state,
)
from evbatteryd.domain.fleet import Car, Fleet, brought_by
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.enrol.consent import ENDINGS, REFUSALS, ConnectOptions, Words
from evbatteryd.enrol.enrolment import CannotEnrol, Ended
from evbatteryd.web import view
from evbatteryd.web.answers import as_page
from evbatteryd.web.guard import VISITOR, Access, Level, host_of, is_loopback, public
from evbatteryd.web.limits import Limiter, Rate
from evbatteryd.web.parts import Parts
from evbatteryd.web.rendering import level_of

INVITATION_COOKIE: Final = "evbatteryd_invitation"
ENROLMENT_COOKIE: Final = "evbatteryd_enrolment"
REMEMBERED: Final = timedelta(days=1)
"""How long a browser is known as that of an invitation, or of an enrolment that ended."""
PORT: Final = 9782
"""Where evbatteryd listens unless told otherwise: what a redirect URI names when we are on a Unix socket."""

_LOOKING: Final = Rate(120, timedelta(minutes=1))
_SETTING_OUT: Final = Rate(10, timedelta(minutes=10))
_ANSWERS: Final = Rate(30, timedelta(minutes=10))
_WRONG_INVITATIONS: Final = Rate(20, timedelta(minutes=10))

_REFRESH: Final = timedelta(seconds=2)
_READ_WITHIN: Final = timedelta(minutes=5)
"""A first reading that is not there by then will not be there in a moment."""
_CARS_PER_SLICE: Final = 500
"""A millisecond of work between two turns of the event loop."""

COUNTRIES: Final[Mapping[str, str]] = {
    "AT": "Austria",
    "BE": "Belgium",
    "BG": "Bulgaria",
    "CA": "Canada",
    "HR": "Croatia",
    "CY": "Cyprus",
    "CZ": "Czechia",
    "DK": "Denmark",
    "EE": "Estonia",
    "FI": "Finland",
    "FR": "France",
    "DE": "Germany",
    "GR": "Greece",
    "HU": "Hungary",
    "IS": "Iceland",
    "IE": "Ireland",
    "IT": "Italy",
    "LV": "Latvia",
    "LI": "Liechtenstein",
    "LT": "Lithuania",
    "LU": "Luxembourg",
    "MT": "Malta",
    "NL": "Netherlands",
    "NO": "Norway",
    "PL": "Poland",
    "PT": "Portugal",
    "RO": "Romania",
    "SK": "Slovakia",
    "SI": "Slovenia",
    "ES": "Spain",
    "SE": "Sweden",
    "CH": "Switzerland",
    "GB": "United Kingdom",
    "US": "United States",
}
"""Smartcar's regions are the USA, Canada and Europe: https://smartcar.com/docs/api-reference/compatibility.
Where a country of Europe is not served (yet), Connect says so by itself."""

PERMISSIONS: Final[Mapping[str, tuple[str, str]]] = {
    "read_battery": ("battery", "How full the battery is, its size, and how far it takes the car"),
    "read_charge": ("charging", "Whether it is plugged in and charging, and up to which limit"),
    "read_odometer": ("mileage", "The mileage"),
    "read_vehicle_info": ("make and model", "Make, model and year of the car"),
    "control_charge": ("start and stop charging", "Start and stop charging, and set its limit"),
    "read_location": ("location", "Where the car is"),
    "read_vin": ("VIN", "The vehicle identification number (VIN)"),
    "read_user_profile": ("owner's name", "The owner's name and address, as the manufacturer knows them"),
}
"""Permissions of Connect, in few words and in some: https://smartcar.com/docs/api-reference/permissions."""
_SPARED: Final = {
    "read_location": "where the car is or was",
    "read_vin": "its identification number (VIN)",
    "read_user_profile": "your name and address",
}
"""What people fear is read; said where it is not asked for."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A brand of the list."""

    code: str
    """Connect's code of the make."""
    name: str
    possible: bool


@dataclass(frozen=True, slots=True)
class Arrival:
    """A car that came by an enrolment, as its owner sees it."""

    name: str
    what: str
    soc: int | None
    plight: view.Plight | None

    @property
    def settled(self) -> bool:
        return self.soc is not None or self.plight is not None


def routes(parts: Parts) -> Iterable[web.AbstractRouteDef]:
    pages = _Enrolling(parts)
    return [
        web.get("/enrol", pages.page),
        web.post("/enrol", pages.set_out),
        web.get("/enrol/i/{token}", pages.invited),
        web.get("/enrol/callback", pages.callback),
        web.get("/enrol/done", pages.done),
        web.post("/enrol/paste", pages.paste),
    ]


def callback_of(request: web.Request, access: Access) -> str:
    """The redirect URI: where Connect leads the browser back to. It has to be registered at Smartcar."""
    if access.public_url is not None:
        return f"{access.public_url.rstrip('/')}/enrol/callback"
    return f"http://localhost:{_port(request)}/enrol/callback"


def invitation_link(request: web.Request, access: Access, token: str) -> str:
    """What is sent to whoever is invited."""
    origin = access.public_url or f"http://{request.host}"
    return f"{origin.rstrip('/')}/enrol/i/{token}"


def _port(request: web.Request) -> int:
    """The port by which a browser at this machine (or at a tunnel's end) reaches us."""
    if is_loopback(host_of(request)):
        return urlsplit(f"//{request.host}").port or 80
    bound = request.transport and request.transport.get_extra_info("sockname")
    return int(bound[1]) if isinstance(bound, tuple) else PORT


async def cars_of(fleet: Fleet, enrolment: Enrolment) -> list[Car]:
    """The cars that this consent brought, in slices: the fleet is not indexed by user."""
    found: list[Car] = []
    if enrolment.user_ref is None:
        return found
    cars = iter(fleet)
    while some := list(islice(cars, _CARS_PER_SLICE)):
        found += (car for car in some if car.vehicle.withdrawn_at is None and brought_by(enrolment, car))
        await asyncio.sleep(0)
    return sorted(found, key=lambda car: (car.vehicle.name.casefold(), car.slug))


def slow_down(request: web.Request, wait_s: int) -> None:
    """Raises HTTPTooManyRequests if ``wait_s`` is not 0."""
    if wait_s:
        told = words(timedelta(seconds=wait_s))
        raise web.HTTPTooManyRequests(
            text=f"that was too often from your address. Wait {told}, then try again",
            headers={"Retry-After": str(wait_s)},
        )


class _Enrolling:
    """The handlers, and what they look at."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._guard = parts.guard
        self._enrolments = parts.enrolments
        self._looking = Limiter(_LOOKING, parts.clock)
        self._looking_on = Limiter(_LOOKING, parts.clock)
        self._setting_out = Limiter(_SETTING_OUT, parts.clock)
        self._answers = Limiter(_ANSWERS, parts.clock)
        self._wrong_invitations = Limiter(_WRONG_INVITATIONS, parts.clock)
        self._choices = choices_of(parts.fleet.profiles.values())

    # Setting out

    @public
    async def page(self, request: web.Request) -> web.Response:
        self._limit(request, self._looking)
        if (elsewhere := self._by_name(request)) is not None:
            return elsewhere
        invitation = await self._invitation(request)
        if not self._may_enrol(request, invitation):
            return self._not_invited(request)
        try:
            options = self._options(request.query.get("application"), invitation)
        except CannotEnrol as why:
            return self._cannot(request, why)
        return self._before(request, options, invitation)

    @public
    async def set_out(self, request: web.Request) -> web.Response:
        invitation = await self._invitation(request)
        if not self._may_enrol(request, invitation):
            return self._not_invited(request)
        self._limit(request, self._setting_out)
        form = await request.post()
        make, country = field_of(form, "make") or None, field_of(form, "country") or None
        if make is not None and make not in (choice.code for choice in self._choices if choice.possible):
            raise web.HTTPBadRequest(text="this brand is not one of the list")
        if country is not None and country not in COUNTRIES:
            raise web.HTTPBadRequest(text="this country is not one of the list")
        try:
            options = self._options(field_of(form, "application") or None, invitation)
            begun = await self._enrolments.begin(
                redirect_uri=callback_of(request, self._guard.access),
                browser=self._guard.introduce(request),
                application=options.application,
                invitation=invitation,
                make=make,
                country=country,
            )
        except CannotEnrol as why:
            return self._cannot(request, why)
        if isinstance(begun, Refusal):
            return self._refused(request, begun)
        headers = {"Location": begun.link, "Content-Security-Policy": _leading_to(options)}
        return web.Response(status=303, headers=headers)

    @public
    async def invited(self, request: web.Request) -> web.Response:
        """Keep the token in a cookie: it leaves the address bar, and no later page can tell it to others."""
        if (elsewhere := self._by_name(request)) is not None:
            return elsewhere
        token = request.match_info["token"]
        free = request[VISITOR].operator
        if not free:
            slow_down(request, self._wrong_invitations.wait_s(request[VISITOR].address))
        invitation = await self._enrolments.invitation(token)
        if invitation is None or not self._is_open(invitation):
            if not free:
                self._wrong_invitations.count(request[VISITOR].address)
            return self._refused(request, Refusal.INVITATION)
        response = see_other("/enrol")
        self._guard.set_signed_cookie(request, response, INVITATION_COOKIE, token, lasts=REMEMBERED)
        return response

    # Coming back

    @public
    async def callback(self, request: web.Request) -> web.Response:
        self._limit(request, self._answers)
        query = request.query
        # Which of two users, or of two states, would be anybody's guess.
        answer = {} if len(set(query)) < len(query) else query
        came = await self._enrolments.complete(
            answer, browser=self._guard.browser(request), operates=request[VISITOR].operator
        )
        return self._ended(request, came)

    @public
    async def paste(self, request: web.Request) -> web.Response:
        self._limit(request, self._answers)
        came = await self._enrolments.complete_pasted(
            field_of(await request.post(), "address"),
            browser=self._guard.browser(request),
            operator=request[VISITOR].operator,
        )
        return self._ended(request, came)

    def _ended(self, request: web.Request, came: Ended | Refusal) -> web.Response:
        if isinstance(came, Refusal):
            return self._refused(request, came)
        response = see_other("/enrol/done")
        told = [came.enrolment.id, came.car]
        self._guard.set_signed_document(request, response, ENROLMENT_COOKIE, told, lasts=REMEMBERED)
        return response

    @public
    async def done(self, request: web.Request) -> web.Response:
        self._limit(request, self._looking_on)
        told = self._guard.signed_document(request, ENROLMENT_COOKIE)
        if told is None:
            return see_other("/enrol")
        number, car = told
        enrolment = await self._enrolments.find(EnrolmentId(number))
        if enrolment is None or enrolment.ending is None or enrolment.ended_at is None:
            return see_other("/enrol")
        now = self._parts.clock.now()
        fleet = self._parts.fleet
        arrivals = [_arrival(fleet, one, now) for one in await cars_of(fleet, enrolment)]
        waiting = enrolment.ending is Ending.CONSENTED and not (
            arrivals and all(arrival.settled for arrival in arrivals)
        )
        # Real time, however fast the clock runs: somebody looks at it.
        refreshed = waiting and now - enrolment.ended_at < _READ_WITHIN * self._parts.clock.speed
        html = self._parts.pages.html(
            "done.html",
            now,
            level=level_of(request, self._guard),
            said=ENDINGS[enrolment.ending],
            consented=enrolment.ending is Ending.CONSENTED,
            incompatible=car,
            arrivals=arrivals,
            refreshed=refreshed,
            more=self._may_enrol(request, await self._invitation(request)),
        )
        # Without a script, and for no longer than somebody looks at it.
        refresh = {"Refresh": str(int(_REFRESH.total_seconds()))} if refreshed else {}
        return as_page(html, headers=refresh)

    # Who may, and how

    def _by_name(self, request: web.Request) -> web.Response | None:
        """To ``localhost`` from any other name of this machine: one redirect URI has to be registered, and
        cookies belong to the name."""
        host = host_of(request)
        if self._guard.access.public_url is not None or host == "localhost" or not is_loopback(host):
            return None
        where = f"http://localhost:{_port(request)}{request.rel_url}"
        return web.Response(status=307, headers={"Location": where})

    async def _invitation(self, request: web.Request) -> Invitation | None:
        """The open invitation that this browser holds."""
        token = self._guard.signed_cookie(request, INVITATION_COOKIE)
        found = None if token is None else await self._enrolments.invitation(token)
        return found if found is not None and self._is_open(found) else None

    def _is_open(self, invitation: Invitation) -> bool:
        return invitation_state(invitation, self._parts.clock.now()) is InvitationState.OPEN

    def _may_enrol(self, request: web.Request, invitation: Invitation | None) -> bool:
        return request[VISITOR].operator or self._guard.access.open_enrolment or invitation is not None

    def _options(self, application: str | None, invitation: Invitation | None) -> ConnectOptions:
        """Raises CannotEnrol."""
        if invitation is not None:
            return self._enrolments.options(invitation.application)
        ready = self._enrolments.applications
        if application is None and ready:
            application = ready[0]
        return self._enrolments.options(application)

    def _limit(self, request: web.Request, limiter: Limiter) -> None:
        visitor = request[VISITOR]
        if not visitor.operator:
            slow_down(request, limiter.take(visitor.address))

    # Pages

    def _before(
        self, request: web.Request, options: ConnectOptions, invitation: Invitation | None
    ) -> web.Response:
        callback = callback_of(request, self._guard.access)
        html = self._parts.pages.html(
            "enrol.html",
            level=level_of(request, self._guard),
            token=self._guard.form_token(request),
            invited=None if invitation is None else invitation.name,
            reads_of=[PERMISSIONS.get(name, (name, name))[1] for name in options.permissions],
            spared=[said for name, said in _SPARED.items() if name not in options.permissions],
            applications=[] if invitation is not None else self._enrolments.applications,
            application=options.application,
            choices=self._choices,
            make=request.query.get("make", ""),
            countries=COUNTRIES,
            country=options.country or "",
            callback=callback,
            comes_back=urlsplit(callback).netloc == request.host,
        )
        return as_page(html, headers={"Content-Security-Policy": _leading_to(options)}, compress=False)

    def _refused(self, request: web.Request, refusal: Refusal) -> web.Response:
        status = 409 if refusal is Refusal.REPLAYED else 400
        return self._said(request, REFUSALS[refusal], status=status)

    def _not_invited(self, request: web.Request) -> web.Response:
        if self._guard.signed_cookie(request, INVITATION_COOKIE) is not None:
            return self._said(request, REFUSALS[Refusal.INVITATION], status=403)
        return self._said(request, _NEEDS_INVITATION, status=403)

    def _cannot(self, request: web.Request, why: CannotEnrol) -> web.Response:
        if request[VISITOR].operator:
            said = Words("Cars cannot be added yet", str(why), "Then reload this page.", again=False)
        else:
            said = _NOT_SET_UP
        return self._said(request, said, status=503)

    def _said(self, request: web.Request, said: Words, *, status: int) -> web.Response:
        """A page that says one thing. ``status``: not below 400."""
        level = level_of(request, self._guard)
        sign_in = level < Level.OPERATOR and self._guard.access.admin_token is not None
        html = self._parts.pages.html("said.html", level=level, said=said, sign_in=sign_in)
        return as_page(html, status=status)


_NEEDS_INVITATION: Final = Words(
    "You need an invitation",
    "Cars are added here by invitation only.",
    "Ask whoever runs this evbatteryd for an invitation link, and open it in this browser.",
    again=False,
)
_NOT_SET_UP: Final = Words(
    "Not set up yet",
    "Cars cannot be added here at the moment. It is nothing that you did.",
    "Tell whoever runs this evbatteryd; they see on this page what is missing.",
    again=False,
)


def choices_of(profiles: Iterable[BrandProfile]) -> tuple[Choice, ...]:
    """The brands that have makes, by name: the profile for unknown ones has none."""
    known = sorted((one for one in profiles if one.makes), key=lambda one: one.name.casefold())
    return tuple(
        Choice(view.make_code(one.brand), one.name, one.brand not in view.MOBILE_ONLY) for one in known
    )


def _arrival(fleet: Fleet, car: Car, now: datetime) -> Arrival:
    row = view.row(car, fleet.profile(car), fleet.freshness(car, now))
    return Arrival(row.name, row.what, row.soc, row.plight)


def _leading_to(options: ConnectOptions) -> str:
    """The page's policy, which lets its form lead on to Connect: Chromium holds redirects to it, too."""
    origin = options.connect_origin
    host = urlsplit(origin).hostname or ""
    places = f"{origin} https://*.smartcar.com" if host.endswith(".smartcar.com") else origin
    return (
        f"default-src 'self'; base-uri 'none'; form-action 'self' {places}; frame-ancestors 'none'; "
        "object-src 'none'"
    )


def see_other(where: str) -> web.Response:
    return web.Response(status=303, headers={"Location": where})


def field_of(form: Mapping[str, object], name: str) -> str:
    """A field of a form; empty if it is missing, or a file."""
    value = form.get(name, "")
    return value.strip() if isinstance(value, str) else ""

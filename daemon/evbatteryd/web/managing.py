"""For those who run evbatteryd: who consented to what, invitations, signing in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import urlencode, urlsplit

import segno
import structlog
from aiohttp import web
from markupsafe import Markup

from evbatteryd.domain.enrolment import INVITATION_LASTS, InvitationId, InvitationState, invitation_state
from evbatteryd.domain.fleet import Car, Fleet
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.ports import CannotChange
from evbatteryd.domain.vehicle import LONGEST_NAME
from evbatteryd.enrol.enrolment import LONGEST_INVITATION, CannotEnrol
from evbatteryd.web import view
from evbatteryd.web.answers import as_page, car_of, whole_number
from evbatteryd.web.enrolling import (
    PERMISSIONS,
    field_of,
    invitation_link,
    see_other,
    slow_down,
)
from evbatteryd.web.guard import VISITOR, host_of, is_loopback, public, safe_next
from evbatteryd.web.listing import Query, find
from evbatteryd.web.parts import Parts
from evbatteryd.web.rendering import level_of

CARS_PER_PAGE: Final = 50
_DAY: Final = timedelta(days=1)
_DONE: Final = {
    "renamed": "Saved.",
    "disconnected": "Disconnected: it is no longer read. Its history is kept.",
    "erased": "Disconnected, and its history erased.",
    "revoked": "Taken back: nobody can use that invitation any more.",
}
"""What is said after a change. The address names one of these, so that it can make us say nothing else."""
MADE_COOKIE: Final = "evbatteryd_made"
MADE_SHOWN: Final = timedelta(minutes=10)
"""How long the link of a new invitation can be looked at again, in the browser that made it."""
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A car, and what its owner consented to."""

    slug: str
    name: str
    badge: str
    application: str
    invited: str | None
    permissions: str
    enrolled_at: datetime
    withdrawn_at: datetime | None
    pushed_at: datetime | None
    soc: int | None
    measured_at: datetime | None
    freshness: Freshness
    plight: view.Plight | None
    again: str | None
    """Where to consent anew; None while the consent stands."""
    reason: str
    """Why it is asked when, or not at all."""
    former_slugs: tuple[str, ...]


def routes(parts: Parts) -> Iterable[web.AbstractRouteDef]:
    pages = _Managing(parts)
    return [
        web.get("/vehicles", pages.vehicles),
        web.get("/vehicles/{slug}", pages.vehicle),
        web.post("/vehicles/{slug}/rename", pages.rename),
        web.post("/vehicles/{slug}/disconnect", pages.disconnect),
        web.get("/invitations", pages.invitations),
        web.post("/invitations", pages.invite),
        web.get("/invitations/made", pages.made),
        web.post("/invitations/{id}/revoke", pages.revoke),
        web.get("/sign-in", pages.door),
        web.post("/sign-in", pages.sign_in),
        web.post("/sign-out", pages.sign_out),
    ]


class _Managing:
    """The handlers, and what they look at."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._fleet = parts.fleet
        self._guard = parts.guard
        self._enrolments = parts.enrolments

    # Vehicles and their consents

    async def vehicles(self, request: web.Request) -> web.Response:
        now, asked = self._parts.clock.now(), request.query
        query = Query(asked.get("q", "").strip(), withdrawn=asked.get("withdrawn") == "1")
        found = await find(self._fleet, query, now)
        last = max((found.total - 1) // CARS_PER_PAGE, 0) + 1
        number = min(max(whole_number(asked.get("page", "")) or 1, 1), last)
        first = (number - 1) * CARS_PER_PAGE
        return self._page(
            request,
            "vehicles.html",
            now=now,
            entries=[_entry(self._fleet, car, now) for car in await found.cut(first, CARS_PER_PAGE)],
            found=found,
            query=query,
            number=number,
            last=last,
            first=first,
            link=_link,
        )

    async def vehicle(self, request: web.Request) -> web.Response:
        return self._vehicle(request, car_of(request, self._fleet))

    async def rename(self, request: web.Request) -> web.Response:
        car, form = car_of(request, self._fleet), await request.post()
        name, slug = field_of(form, "name"), field_of(form, "slug")
        try:
            car = await self._parts.steward.rename(
                car.id,
                name=None if name == car.vehicle.name else name,
                slug=None if slug == car.slug else slug,
            )
        except CannotChange as why:
            return self._vehicle(request, car, name=name, slug=slug, not_renamed=str(why), status=409)
        return see_other(f"/vehicles/{car.slug}?done=renamed")

    async def disconnect(self, request: web.Request) -> web.Response:
        car, form = car_of(request, self._fleet), await request.post()
        erase = field_of(form, "erase") == "yes"
        if field_of(form, "sure") != "yes":
            why = "Nothing was changed: tick the first box to say that you are sure."
            return self._vehicle(request, car, erase=erase, not_disconnected=why, status=400)
        try:
            await self._parts.steward.disconnect(car.id, erase=erase)
        except CannotChange as error:
            return self._vehicle(request, car, erase=erase, not_disconnected=str(error), status=409)
        return see_other(f"/vehicles?done={'erased' if erase else 'disconnected'}")

    def _vehicle(
        self,
        request: web.Request,
        car: Car,
        *,
        name: str | None = None,
        slug: str | None = None,
        erase: bool = False,
        not_renamed: str = "",
        not_disconnected: str = "",
        status: int = 200,
    ) -> web.Response:
        """``name``, ``slug`` and ``erase`` as somebody entered them, if they could not be."""
        now = self._parts.clock.now()
        return self._page(
            request,
            "vehicle.html",
            now=now,
            status=status,
            entry=_entry(self._fleet, car, now),
            name=car.vehicle.name if name is None else name,
            new_slug=car.slug if slug is None else slug,
            erase=erase,
            not_renamed=not_renamed,
            not_disconnected=not_disconnected,
        )

    # Invitations

    async def invitations(self, request: web.Request) -> web.Response:
        return await self._invitations(request)

    async def invite(self, request: web.Request) -> web.Response:
        form = await request.post()
        name, application, days = (field_of(form, key) for key in ("name", "application", "days"))
        number = whole_number(days)
        try:
            if number is None:
                raise CannotEnrol("Say for how many days it can be used, as a whole number.")
            made, token = await self._enrolments.invite(
                name, application=application or None, lasts=number * _DAY
            )
        except CannotEnrol as why:
            return await self._invitations(
                request, name=name, application=application, days=days, not_made=str(why), status=409
            )
        link = invitation_link(request, self._guard.access, token)
        # In a cookie for a while: whoever loads the page anew sees this invitation and makes no other.
        response = see_other("/invitations/made")
        told = [made.name, made.expires_at, link]
        self._guard.set_signed_document(request, response, MADE_COOKIE, told, lasts=MADE_SHOWN)
        return response

    async def made(self, request: web.Request) -> web.Response:
        """The invitation that was made just now, with its link."""
        told = self._guard.signed_document(request, MADE_COOKIE)
        if told is None:
            return see_other("/invitations")
        name, expires_at, link = told
        return self._page(
            request,
            "invited.html",
            name=name,
            expires_at=datetime.fromisoformat(expires_at),
            link=link,
            qr=_qr(link),
            only_here=is_loopback(urlsplit(link).hostname or ""),
        )

    async def revoke(self, request: web.Request) -> web.Response:
        number = whole_number(request.match_info["id"])
        if number is None or await self._enrolments.revoke(InvitationId(number)) is None:
            raise web.HTTPNotFound(text="there is no such invitation")
        return see_other("/invitations?done=revoked")

    async def _invitations(
        self,
        request: web.Request,
        *,
        name: str = "",
        application: str = "",
        days: str = str(INVITATION_LASTS.days),
        not_made: str = "",
        status: int = 200,
    ) -> web.Response:
        now = self._parts.clock.now()
        known = await self._enrolments.invitations()
        return self._page(
            request,
            "invitations.html",
            now=now,
            status=status,
            invitations=[(one, invitation_state(one, now)) for one in known],
            open=InvitationState.OPEN,
            applications=self._enrolments.applications,
            name=name,
            application=application,
            days=days,
            longest_name=LONGEST_NAME,
            most_days=LONGEST_INVITATION.days,
            not_made=not_made,
        )

    # Signing in

    @public
    async def door(self, request: web.Request) -> web.Response:
        return self._door(request, request.query.get("next", ""))

    @public
    async def sign_in(self, request: web.Request) -> web.Response:
        form = await request.post()
        where = field_of(form, "next")
        if not self._guard.admits(field_of(form, "token")):
            slow_down(request, self._guard.wrong_token(request[VISITOR].address))
            return self._door(request, where, wrong=True, status=401)
        response = see_other(safe_next(where))
        self._guard.sign_in(request, response)
        _log.info("operator.signed_in")
        return response

    @public
    async def sign_out(self, request: web.Request) -> web.Response:
        response = see_other("/sign-in" if self._guard.access.admin_token is not None else "/")
        self._guard.sign_out(request, response)
        return response

    def _door(
        self, request: web.Request, where: str, *, wrong: bool = False, status: int = 200
    ) -> web.Response:
        if self._guard.access.admin_token is None:
            raise web.HTTPNotFound(
                text="nobody signs in here: no admin_token is set in [http]. Open evbatteryd at the machine "
                "that it runs on, or through an SSH tunnel"
            )
        return self._page(
            request,
            "sign_in.html",
            status=status,
            next=safe_next(where),
            wrong=wrong,
            https=request[VISITOR].secure or is_loopback(host_of(request)),
        )

    def _page(
        self,
        request: web.Request,
        template: str,
        /,
        *,
        now: datetime | None = None,
        status: int = 200,
        **context: object,
    ) -> web.Response:
        """A page with forms of ours."""
        html = self._parts.pages.html(
            template,
            now,
            level=level_of(request, self._guard),
            token=self._guard.form_token(request),
            done=_DONE.get(request.query.get("done", ""), ""),
            **context,
        )
        return as_page(html, status=status, compress=False)


def _entry(fleet: Fleet, car: Car, now: datetime) -> Entry:
    profile, vehicle, consent = fleet.profile(car), car.vehicle, car.vehicle.consent
    freshness = fleet.freshness(car, now)
    row = view.row(car, profile, freshness)
    make = profile.name if consent.make in profile.makes else consent.make.title()
    return Entry(
        slug=car.slug,
        name=vehicle.name,
        badge=" ".join(str(part) for part in (make, consent.model, consent.year) if part),
        application=consent.application,
        invited=vehicle.invited,
        permissions=", ".join(
            PERMISSIONS.get(name, (name, name))[0] for name in sorted(consent.permissions, key=_by_weight)
        ),
        enrolled_at=vehicle.enrolled_at,
        withdrawn_at=vehicle.withdrawn_at,
        pushed_at=car.schedule.pushed_at,
        soc=row.soc,
        measured_at=row.measured_at,
        freshness=freshness,
        plight=row.plight,
        again=row.again,
        reason=car.schedule.reason,
        former_slugs=vehicle.former_slugs,
    )


def _by_weight(permission: str) -> tuple[int, str]:
    """The battery first, as in the list of them; what is not in it last, by name."""
    known = list(PERMISSIONS)
    return (known.index(permission) if permission in known else len(known), permission)


def _qr(link: str) -> Markup:
    """The link as a QR code for phones, to stand in a page: one path, no script, no style."""
    code = segno.make(link, error="m", micro=False)
    drawn = code.svg_inline(border=4, dark="#000", light="#fff", omitsize=True, svgclass="qr", lineclass=None)
    return Markup(drawn)  # noqa: S704 - drawn by segno of modules alone; the link is not in it as text


def _link(query: Query, *, withdrawn: bool, page: int = 1) -> str:
    """The address of another view of the same search."""
    asked = {
        "q": query.text,
        "withdrawn": "1" if withdrawn else "",
        "page": str(page) if page > 1 else "",
    }
    told = urlencode({key: value for key, value in asked.items() if value})
    return f"/vehicles?{told}" if told else "/vehicles"

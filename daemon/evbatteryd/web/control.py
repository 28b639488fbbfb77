"""The API that changes something: what the command line calls. All of it is for operators."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Final, TypeVar

import orjson
from aiohttp import web

from evbatteryd.domain.enrolment import (
    INVITATION_LASTS,
    Enrolment,
    EnrolmentId,
    Invitation,
    InvitationId,
    Refusal,
    invitation_state,
)
from evbatteryd.domain.ports import CannotChange
from evbatteryd.enrol.consent import COUNTRY, ENDINGS, REFUSALS
from evbatteryd.enrol.enrolment import CannotEnrol
from evbatteryd.problems import did_you_mean
from evbatteryd.web import view
from evbatteryd.web.answers import as_json, body_of, car_of, whole_number
from evbatteryd.web.enrolling import Choice, callback_of, cars_of, choices_of, invitation_link
from evbatteryd.web.parts import Parts

_Asked = Mapping[str, object]
_V = TypeVar("_V", str, int, bool)
_KINDS: Final[Mapping[type, str]] = {str: "a text", int: "a whole number", bool: "true or false"}


def routes(parts: Parts) -> Iterable[web.AbstractRouteDef]:
    api = _Control(parts)
    return [
        web.post("/api/vehicles/{slug}/rename", api.rename),
        web.post("/api/vehicles/{slug}/disconnect", api.disconnect),
        web.post("/api/enrolments", api.set_out),
        web.post("/api/enrolments/paste", api.paste),
        web.get("/api/enrolments/{id}", api.enrolment),
        web.post("/api/invitations", api.invite),
        web.get("/api/invitations", api.invitations),
        web.post("/api/invitations/{id}/revoke", api.revoke),
    ]


class _Control:
    """The handlers, and what they act through."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._enrolments = parts.enrolments

    # Cars

    async def rename(self, request: web.Request) -> web.Response:
        car = car_of(request, self._parts.fleet)
        asked = await _asked(request, "name", "slug")
        name, slug = _optional(asked, "name", str), _optional(asked, "slug", str)
        if name is None and slug is None:
            raise web.HTTPBadRequest(text="give name, slug or both")
        try:
            car = await self._parts.steward.rename(car.id, name=name, slug=slug)
        except CannotChange as why:
            raise web.HTTPConflict(text=str(why)) from None
        now = self._parts.clock.now()
        freshness = self._parts.fleet.freshness(car, now)
        told = view.as_json(car, freshness, self._parts.estimate(car, now), now)
        return as_json(told | view.consent_json(car))

    async def disconnect(self, request: web.Request) -> web.Response:
        car = car_of(request, self._parts.fleet)
        erase = _optional(await _asked(request, "erase"), "erase", bool) or False
        try:
            await self._parts.steward.disconnect(car.id, erase=erase)
        except CannotChange as why:
            raise web.HTTPConflict(text=str(why)) from None
        return as_json({"vehicle": car.slug, "erased": erase})

    # Enrolments

    async def set_out(self, request: web.Request) -> web.Response:
        """Begin an enrolment for somebody at a terminal: whoever has the link may open it in any browser."""
        asked = await _asked(request, "application", "make", "country")
        make, country = _optional(asked, "make", str), _optional(asked, "country", str)
        if make is not None:
            _check_make(make, choices_of(self._parts.fleet.profiles.values()))
        if country is not None and not COUNTRY.fullmatch(country):
            raise web.HTTPBadRequest(text="country is a code of two capital letters, like DE")
        callback = callback_of(request, self._parts.guard.access)
        try:
            begun = await self._enrolments.begin(
                redirect_uri=callback,
                browser=None,
                application=_optional(asked, "application", str),
                make=make,
                country=country,
            )
        except CannotEnrol as why:
            raise web.HTTPConflict(text=str(why)) from None
        if isinstance(begun, Refusal):
            raise _refused(begun)
        told = {
            "id": begun.enrolment.id,
            "link": begun.link,
            "callback": callback,
            "expires_at": begun.enrolment.expires_at,
        }
        return as_json(told, status=201)

    async def enrolment(self, request: web.Request) -> web.Response:
        found = await self._enrolments.find(EnrolmentId(_id(request, "enrolment")))
        if found is None:
            raise _none("enrolment")
        return as_json(await self._told(found))

    async def paste(self, request: web.Request) -> web.Response:
        """Take the address that a browser ended at, on behalf of whoever could not get here with it."""
        address = _required(await _asked(request, "address"), "address", str)
        came = await self._enrolments.complete_pasted(address, browser=None, operator=True)
        if isinstance(came, Refusal):
            raise _refused(came)
        return as_json(await self._told(came.enrolment))

    async def _told(self, enrolment: Enrolment) -> dict[str, object]:
        said = None if enrolment.ending is None else ENDINGS[enrolment.ending]
        return {
            "id": enrolment.id,
            "ending": enrolment.ending,
            "title": said and said.title,
            "what": said and said.what,
            "then": said and said.then,
            "arrived": enrolment.arrived_at is not None,
            "vehicles": [
                {"slug": car.slug, "name": car.vehicle.name, "soc": car.state.soc_percent}
                for car in await cars_of(self._parts.fleet, enrolment)
            ],
        }

    # Invitations

    async def invite(self, request: web.Request) -> web.Response:
        asked = await _asked(request, "name", "application", "lasts_s")
        lasts_s = _optional(asked, "lasts_s", int)
        try:
            invitation, token = await self._enrolments.invite(
                _required(asked, "name", str),
                application=_optional(asked, "application", str),
                lasts=INVITATION_LASTS if lasts_s is None else timedelta(seconds=lasts_s),
            )
        except OverflowError:
            raise web.HTTPBadRequest(text="lasts_s is too large") from None
        except CannotEnrol as why:
            raise web.HTTPConflict(text=str(why)) from None
        link = invitation_link(request, self._parts.guard.access, token)
        return as_json(_invitation(invitation, self._parts.clock.now()) | {"link": link}, status=201)

    async def invitations(self, _: web.Request) -> web.Response:
        now = self._parts.clock.now()
        known = await self._enrolments.invitations()
        return as_json({"invitations": [_invitation(invitation, now) for invitation in known]})

    async def revoke(self, request: web.Request) -> web.Response:
        await _asked(request)
        found = await self._enrolments.revoke(InvitationId(_id(request, "invitation")))
        if found is None:
            raise _none("invitation")
        return as_json(_invitation(found, self._parts.clock.now()))


def _invitation(invitation: Invitation, now: datetime) -> dict[str, object]:
    return {
        "id": invitation.id,
        "name": invitation.name,
        "application": invitation.application,
        "created_at": invitation.created_at,
        "expires_at": invitation.expires_at,
        "state": invitation_state(invitation, now),
    }


def _refused(refusal: Refusal) -> web.HTTPConflict:
    said = REFUSALS[refusal]
    return web.HTTPConflict(text=f"{said.title}. {said.what} {said.then}")


def _none(what: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(text=f"there is no {what} of this number")


def _id(request: web.Request, what: str) -> int:
    """Raises HTTPNotFound."""
    number = whole_number(request.match_info["id"])
    if number is None:
        raise _none(what)
    return number


def _check_make(make: str, choices: Iterable[Choice]) -> None:
    """Raises HTTPConflict for a brand that nobody could go on with."""
    by_code = {choice.code: choice for choice in choices}
    choice = by_code.get(make)
    if choice is None:
        raise web.HTTPConflict(text=f"make is a brand's code. {did_you_mean(make, by_code)}")
    if not choice.possible:
        raise web.HTTPConflict(
            text=f"{choice.name} lets its owners consent in its own app for phones only, not in a browser"
        )


async def _asked(request: web.Request, *keys: str) -> _Asked:
    """The JSON object that was sent, with these keys alone. No body at all is an empty one."""
    try:
        asked = orjson.loads(await body_of(request) or b"{}")
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict):
        raise web.HTTPBadRequest(text="the body is not a JSON object")
    unknown = sorted(asked.keys() - keys)
    if unknown:
        known = f"; known: {', '.join(keys)}" if keys else ""
        raise web.HTTPBadRequest(text=f"unknown key {unknown[0][:80]!r}{known}")
    return asked


def _optional(asked: _Asked, key: str, kind: type[_V]) -> _V | None:
    """The value of ``key``; None if it is missing or null. Raises HTTPBadRequest if it is of another kind."""
    value = asked.get(key)
    if value is None:
        return None
    # Not isinstance: true is no whole number.
    if type(value) is not kind:
        raise web.HTTPBadRequest(text=f"{key} is {_KINDS[kind]}")
    return value


def _required(asked: _Asked, key: str, kind: type[_V]) -> _V:
    value = _optional(asked, key, kind)
    if value is None:
        raise web.HTTPBadRequest(text=f"{key} is missing: it is {_KINDS[kind]}")
    return value

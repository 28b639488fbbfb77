"""``POST /api/vehicles/SLUG/event``: hints of wall boxes and automations that speak HTTP alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import orjson
from aiohttp import web

from evbatteryd.domain.hinting import HintOutcome
from evbatteryd.domain.ports import Hints
from evbatteryd.web.answers import as_json, body_of

ORIGIN: Final = "http"
_STATUS: Final[Mapping[HintOutcome, int]] = {
    HintOutcome.UNKNOWN_EVENT: 400,
    HintOutcome.UNKNOWN_VEHICLE: 404,
    HintOutcome.NOT_READ: 409,
    HintOutcome.CHATTERING: 429,
    HintOutcome.FAILED: 500,
    HintOutcome.NOT_KEPT: 503,
}
"""Of what is refused; whatever is not, is fine."""


def routes(hints: Hints) -> Iterable[web.AbstractRouteDef]:
    return [web.post("/api/vehicles/{slug}/event", _Hinting(hints).event)]


class _Hinting:
    """The handler, and whom it tells."""

    def __init__(self, hints: Hints) -> None:
        self._hints = hints

    async def event(self, request: web.Request) -> web.Response:
        event = await _event_in(request)
        answer = await self._hints.told(request.match_info["slug"], event, ORIGIN)
        return as_json(answer.document(), status=_STATUS.get(answer.outcome, 200))


async def _event_in(request: web.Request) -> str:
    """Raises HTTPBadRequest for anything but ``{"event": "..."}``."""
    try:
        asked = orjson.loads(await body_of(request))
    except orjson.JSONDecodeError:
        asked = None
    if not isinstance(asked, dict) or asked.keys() != {"event"} or not isinstance(asked["event"], str):
        raise web.HTTPBadRequest(text='the body is a JSON object like {"event": "plugged_in"}')
    return asked["event"]

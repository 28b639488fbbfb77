"""``POST /api/vehicles/SLUG/{poll,charging,charge_limit}``: commands of whoever speaks HTTP alone.

They spend calls and act on cars, so they are for operators, like disconnecting a car: over loopback with a
key, or with the admin token; a page of another site can make no browser send them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import orjson
from aiohttp import web

from evbatteryd.domain.commanding import OPERATOR, CommandAnswer, CommandKind, CommandOutcome
from evbatteryd.domain.ports import Commands
from evbatteryd.web.answers import as_json, body_of

ANSWERED_WITHIN_S = 60.0
"""Real seconds that the final answer is waited for. The command goes on after that."""
NOW: Final = "now"
_STATUS: Final[Mapping[CommandOutcome, int]] = {
    CommandOutcome.NOT_UNDERSTOOD: 400,
    CommandOutcome.NOT_PERMITTED: 403,
    CommandOutcome.UNKNOWN_VEHICLE: 404,
    CommandOutcome.NOT_READ: 409,
    CommandOutcome.NOT_CAPABLE: 409,
    CommandOutcome.NOT_NOW: 409,
    CommandOutcome.UNDER_WAY: 409,
    CommandOutcome.BUDGET_SPENT: 429,
    CommandOutcome.CHATTERING: 429,
    CommandOutcome.FAILED: 502,
}
"""Of final answers; whatever is not here, is fine."""
_LIKE: Final = {CommandKind.CHARGING: '{"value": "on"}', CommandKind.CHARGE_LIMIT: '{"value": 80}'}


def routes(commands: Commands) -> Iterable[web.AbstractRouteDef]:
    commanding = _Commanding(commands)
    return [
        web.post("/api/vehicles/{slug}/poll", commanding.poll),
        web.post("/api/vehicles/{slug}/charging", commanding.charging),
        web.post("/api/vehicles/{slug}/charge_limit", commanding.charge_limit),
    ]


class _Commanding:
    """The handlers, and whom they tell."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    async def poll(self, request: web.Request) -> web.Response:
        asked = await _object_in(request)
        if asked != {}:
            raise web.HTTPBadRequest(text="a poll takes no body, or an empty JSON object")
        return await self._give(request, CommandKind.POLL, NOW)

    async def charging(self, request: web.Request) -> web.Response:
        return await self._give(request, CommandKind.CHARGING, await _value_in(request, CommandKind.CHARGING))

    async def charge_limit(self, request: web.Request) -> web.Response:
        kind = CommandKind.CHARGE_LIMIT
        return await self._give(request, kind, await _value_in(request, kind))

    async def _give(self, request: web.Request, kind: CommandKind, text: str) -> web.Response:
        known = CommandAnswer(
            command=kind,
            value=text,
            outcome=CommandOutcome.PENDING,
            reason="it is under way: no answer has come yet",
            final=False,
        )
        answers = self._commands.give(request.match_info["slug"], kind, text, OPERATOR)
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                async for known in answers:  # noqa: B007 - the last one is what is known
                    pass
        except TimeoutError:
            return _answered(known, 202)
        return _answered(known, _STATUS.get(known.outcome, 200))


def _answered(answer: CommandAnswer, status: int) -> web.Response:
    return as_json(answer.document(), status=status)


async def _object_in(request: web.Request) -> dict[str, object] | None:
    """The JSON object of the body; an empty one if there is no body; None if there is something else."""
    try:
        asked = orjson.loads(await body_of(request) or b"{}")
    except orjson.JSONDecodeError:
        return None
    return asked if isinstance(asked, dict) else None


async def _value_in(request: web.Request, kind: CommandKind) -> str:
    """What ``{"value": ...}`` holds, written out. Raises HTTPBadRequest for anything else."""
    asked = await _object_in(request)
    if asked is None or asked.keys() != {"value"} or not isinstance(asked["value"], str | int | float):
        raise web.HTTPBadRequest(text=f"the body is a JSON object like {_LIKE[kind]}")
    value = asked["value"]
    return orjson.dumps(value).decode() if not isinstance(value, str) else value

"""One request, from the door to the wire: who may ask, what it costs, how long it takes, what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from aiohttp import web

from evbatteryd.simulator.draws import key_of, uuid_of
from evbatteryd.simulator.errors import ERRORS, ErrorKind, Refused, error_body
from evbatteryd.simulator.faults import DONE, SHAPES, WIRE, Outcome, Rule
from evbatteryd.simulator.fleet import Vehicle
from evbatteryd.simulator.world import World

Json = dict[str, Any]

KEPT_OPEN_AFTER_S: Final = 175.0
"""A command that takes longer is answered 202 at once, and its outcome follows on the same connection."""
NO_BODY: Final = 204
FAULT_RETRY_AFTER_S: Final = 60.0
_REQUESTS: Final = key_of("requests")


@dataclass(slots=True)
class Answer:
    status: int
    document: Json | None = None


@dataclass(slots=True)
class Ask:
    """A request on its way."""

    world: World
    request: web.Request
    vehicle: Vehicle | None = None
    number: int = 0
    """Among those of its vehicle, or of its kind."""
    rules: list[Rule] = field(default_factory=list)
    """The faults that befall it."""

    @property
    def origin(self) -> str:
        return f"{self.request.scheme}://{self.request.host}"

    @property
    def address(self) -> str:
        """Without the query."""
        return f"{self.origin}{self.request.rel_url.raw_path}"

    @property
    def outcome(self) -> Outcome:
        """What becomes of a command: it is done, unless a fault wants otherwise."""
        return next((rule.outcome for rule in self.rules if rule.outcome is not None), DONE)

    @property
    def wire(self) -> str | None:
        """The fault that befalls the answer on its way."""
        return next((rule.fault for rule in self.rules if rule.fault in WIRE), None)

    @property
    def the_vehicle(self) -> Vehicle:
        if self.vehicle is None:
            raise Refused("RESOURCE_NOT_FOUND", detail="There is no such vehicle.")
        return self.vehicle

    def bearer(self) -> str:
        scheme, _, token = self.request.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    async def json(self) -> Json:
        """The body, as a JSON object."""
        try:
            found = orjson.loads(await self.request.read())
        except orjson.JSONDecodeError:
            raise Refused("VALIDATION:INVALID_INPUT_FORMAT", detail="The body is no JSON.") from None
        if not isinstance(found, dict):
            raise Refused("VALIDATION:INVALID_INPUT_FORMAT", detail="The body is no JSON object.")
        return found


Handler = Callable[[Ask], Awaitable[Answer]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A method and path, and what asking costs."""

    method: str
    path: str
    kind: str
    """What faults and counts call it."""
    handler: Handler
    needs_token: bool = True
    takes_management_token: bool = False
    metered: bool = False
    """Takes one from the application's bucket."""
    billed: bool = False
    """Counts against the vehicle's plan and limit, and takes as long as Smartcar takes."""
    needs_user: bool = False
    """``sc-user-id`` must be the vehicle's user."""
    permission: str | None = None
    """What the owner must have consented to."""


async def exchange(world: World, endpoint: Endpoint, request: web.Request) -> web.StreamResponse:
    """Serve one request of Smartcar's API."""
    vehicle = world.fleet.get(request.match_info.get("vehicle", ""))
    ask = Ask(world, request, vehicle)
    how = "gone"
    try:
        with world.stats.asking(endpoint.kind, vehicle.id if vehicle else None) as ask.number:
            ask.rules = world.faults.befalling(endpoint.kind, vehicle, ask.number)
            how = ask.wire or how
            response = await _serve(ask, endpoint)
        how = str(response.status)
        return response
    finally:
        world.stats.answered(endpoint.kind, how)


async def _serve(ask: Ask, endpoint: Endpoint) -> web.StreamResponse:
    world = ask.world
    error = next((rule for rule in ask.rules if rule.fault in ERRORS), None)
    try:
        if error is not None and ERRORS[error.fault].refuses:
            raise _ordered(error)
        _admit(ask, endpoint)
        latency_s = world.latency_s(ask.the_vehicle, ask.number) if endpoint.billed else 0.0
        if endpoint.kind == "commands" and latency_s > KEPT_OPEN_AFTER_S:
            return await _kept_open(ask, endpoint, error, latency_s)
        await _pass(world, latency_s)
        answer = await _answered(ask, endpoint, error)
    except Refused as refused:
        return _error_response(ask, refused)
    return await _sent(ask, answer)


def _ordered(rule: Rule) -> Refused:
    """The error that a fault orders."""
    retry_after_s = rule.retry_after_s
    if rule.fault == "RATE_LIMIT:VEHICLE" and retry_after_s is None:
        retry_after_s = FAULT_RETRY_AFTER_S
    return Refused(rule.fault, retry_after_s=retry_after_s)


def _admit(ask: Ask, endpoint: Endpoint) -> None:
    """Raises Refused unless the request may pass; then it is counted."""
    world, now = ask.world, ask.world.now()
    if endpoint.needs_token and not _is_known(ask, endpoint, now):
        raise Refused("AUTHENTICATION:UNAUTHORIZED")
    if endpoint.metered and not world.bucket.take(now):
        world.stats.rejected["bucket"] += 1
        raise Refused("RATE_LIMIT:SMARTCAR_API")
    if not endpoint.billed:
        return
    vehicle = ask.the_vehicle
    user = ask.request.headers.get("sc-user-id")
    if endpoint.needs_user and not user:
        raise Refused("VALIDATION:MISSING_PARAMETER", detail="missing userId")
    if not vehicle.stands or (endpoint.needs_user and user != vehicle.user_id):
        raise Refused("PERMISSION")
    if endpoint.permission is not None and endpoint.permission not in vehicle.permissions:
        raise Refused("PERMISSION")
    wait_s = world.limits.take(vehicle.number, vehicle.car.cloud.limit, now)
    if wait_s is not None:
        world.stats.rejected["vehicle"] += 1
        raise Refused("RATE_LIMIT:VEHICLE", retry_after_s=wait_s)
    if not world.plan.take(vehicle.number, now):
        world.stats.rejected["plan"] += 1
        raise Refused("BILLING:VEHICLE_REQUEST_LIMIT")
    world.stats.billed(vehicle.id)


def _is_known(ask: Ask, endpoint: Endpoint, now: float) -> bool:
    token = ask.bearer()
    if endpoint.takes_management_token and token == ask.world.management_token:
        return True
    return ask.world.tokens.valid(token, now)


async def _pass(world: World, span_s: float) -> None:
    """Let the world's time pass."""
    if span_s > 0:
        await asyncio.sleep(span_s / world.clock.speed)


async def _answered(ask: Ask, endpoint: Endpoint, error: Rule | None) -> Answer:
    if error is not None:
        raise _ordered(error)
    answer = await endpoint.handler(ask)
    if answer.document is not None:
        for rule in ask.rules:
            if rule.fault in SHAPES:
                SHAPES[rule.fault](answer.document)
    return answer


async def _sent(ask: Ask, answer: Answer) -> web.StreamResponse:
    body = b"" if answer.document is None else orjson.dumps(answer.document)
    if ask.wire is not None:
        return await WIRE[ask.wire](ask.request, body)
    headers = {"sc-request-id": _request_id(ask)}
    if answer.document is None:
        return web.Response(status=answer.status, headers=headers)
    return web.Response(body=body, status=answer.status, content_type="application/json", headers=headers)


def _error_response(ask: Ask, refused: Refused) -> web.Response:
    request_id = _request_id(ask)
    return web.Response(
        body=orjson.dumps(error_body(refused.kind, request_id, refused.detail)),
        status=refused.kind.status,
        reason=_reason(refused.kind),
        content_type="application/json",
        headers={"sc-request-id": request_id, **refused.headers},
    )


def _reason(kind: ErrorKind) -> str | None:
    """430 is Smartcar's own and has no reason phrase in any library."""
    return "Billing" if kind.status == 430 else None


async def _kept_open(
    ask: Ask, endpoint: Endpoint, error: Rule | None, latency_s: float
) -> web.StreamResponse:
    await _pass(ask.world, KEPT_OPEN_AFTER_S)
    request_id = _request_id(ask)
    response = web.StreamResponse(status=202, headers={"sc-request-id": request_id})
    response.content_type = "application/json"
    await response.prepare(ask.request)
    await _pass(ask.world, latency_s - KEPT_OPEN_AFTER_S)
    try:
        document = (await _answered(ask, endpoint, error)).document
    except Refused as refused:
        document = error_body(refused.kind, request_id, refused.detail)
    body = orjson.dumps(document)
    match ask.wire:
        case "hang" | "reset" as wire:
            return await WIRE[wire](ask.request, body)
        case "truncated":
            await response.write(body[: len(body) // 2])
            if ask.request.transport is not None:
                ask.request.transport.close()
            return response
        case "malformed":
            await response.write(body[:-2] + b",}")
        case "empty":
            pass
        case _:
            await response.write(body)
    await response.write_eof()
    return response


def _request_id(ask: Ask) -> str:
    key = ask.vehicle.car.key if ask.vehicle else _REQUESTS
    return uuid_of(key ^ _REQUESTS, ask.number)

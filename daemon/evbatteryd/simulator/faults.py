"""Faults on demand: errors of Smartcar's table, answers of odd shape, and a wire that misbehaves."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from evbatteryd.simulator import clouds
from evbatteryd.simulator.draws import key_of, mix, unit
from evbatteryd.simulator.errors import ERRORS
from evbatteryd.simulator.fleet import Vehicle
from evbatteryd.simulator.signals import CHARGING, SOC, STATUS

Json = dict[str, Any]

KINDS: Final = (
    "token",
    "connections",
    "users",
    "vehicle",
    "signals",
    "commands",
    "applications",
    "webhooks",
    "subscriptions",
)
"""What a rule's ``path`` may name: one kind of request each."""
HUGE_BYTES: Final = 10 * 1024 * 1024
FUTURE_MS: Final = 86_400_000

Wire = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]
Shape = Callable[[Json], None]


# --- on the wire: instead of the answer -----------------------------------------------------------------


async def _html(_: web.Request, __: bytes) -> web.StreamResponse:
    page = "<!DOCTYPE html><html><head><title>Just a moment</title></head><body>Checking ...</body></html>"
    return web.Response(text=page, content_type="text/html")


async def _malformed(_: web.Request, body: bytes) -> web.StreamResponse:
    return web.Response(body=body[:-2] + b",}", content_type="application/json")


async def _truncated(request: web.Request, body: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "application/json"})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


async def _huge(_: web.Request, __: bytes) -> web.StreamResponse:
    filler = b'{"data":[],"padding":"' + b"x" * HUGE_BYTES + b'"}'
    return web.Response(body=filler, content_type="application/json")


async def _redirect(_: web.Request, __: bytes) -> web.StreamResponse:
    return web.Response(status=302, headers={"location": "http://elsewhere.invalid/"})


async def _empty(_: web.Request, __: bytes) -> web.StreamResponse:
    return web.Response(body=b"", content_type="application/json")


async def _hang(_: web.Request, __: bytes) -> web.StreamResponse:
    return await _for_ever()


async def _reset(request: web.Request, _: bytes) -> web.StreamResponse:
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    return await _for_ever()


async def _for_ever() -> web.StreamResponse:
    """Until the client hangs up, which cancels the handler."""
    answer: asyncio.Future[web.StreamResponse] = asyncio.get_running_loop().create_future()
    return await answer


WIRE: Final[Mapping[str, Wire]] = {
    "html": _html,
    "malformed": _malformed,
    "truncated": _truncated,
    "huge": _huge,
    "redirect": _redirect,
    "empty": _empty,
    "hang": _hang,
    "reset": _reset,
}


# --- of shape: valid JSON that says something odd -------------------------------------------------------


def _resources(document: Json) -> Iterator[Json]:
    data = document.get("data")
    for resource in data if isinstance(data, list) else [data]:
        if isinstance(resource, dict):
            yield resource


def _bodies(document: Json) -> Iterator[tuple[str, Json]]:
    for resource in _resources(document):
        body = resource.get("attributes", {}).get("body")
        if isinstance(body, dict):
            yield resource["id"], body


def _times(document: Json, change: Callable[[int], object]) -> None:
    for resource in _resources(document):
        meta = resource.get("meta", {})
        for key in ("ingestedAt", "retrievedAt", "oemUpdatedAt"):
            if isinstance(meta.get(key), int) and meta[key]:
                meta[key] = change(meta[key])


def _seconds(document: Json) -> None:
    _times(document, lambda milliseconds: milliseconds // 1000)


def _strings(document: Json) -> None:
    def written(milliseconds: int) -> str:
        at = datetime.fromtimestamp(milliseconds / 1000, UTC)
        return f"{at:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1000:03d}Z"

    _times(document, written)


def _future_time(document: Json) -> None:
    _times(document, lambda milliseconds: milliseconds + FUTURE_MS)


def _zero_time(document: Json) -> None:
    for resource in _resources(document):
        if "oemUpdatedAt" in resource.get("meta", {}):
            resource["meta"]["oemUpdatedAt"] = 0


def _wrong_types(document: Json) -> None:
    for resource in _resources(document):
        resource["meta"] = ["now"]
        resource["attributes"]["status"] = 7
        resource["relationships"] = "none"
        for key in resource["attributes"].keys() & {"vehicle", "user"}:
            resource["attributes"][key] = 7
    for _, body in _bodies(document):
        body.update({key: {"is": ["odd"]} for key in ("value", "values", "capacity", "activeLimit")})


def _unknown_units(document: Json) -> None:
    for _, body in _bodies(document):
        if "unit" in body:
            body["unit"] = "furlong"


def _missing_signals(document: Json) -> None:
    data = document.get("data")
    if isinstance(data, list):
        document["data"] = [one for one in data if one["id"] not in (SOC, CHARGING, STATUS)]


def _no_signals(document: Json) -> None:
    if isinstance(document.get("data"), list):
        document["data"] = []
        document["meta"]["totalCount"] = 0
        document["links"]["next"] = None


def _null_body(document: Json) -> None:
    for resource in _resources(document):
        if "body" in resource["attributes"]:
            resource["attributes"]["body"] = None


def _extra_fields(document: Json) -> None:
    document["jsonapi"] = {"version": "1.1"}
    for resource in _resources(document):
        resource["attributes"]["confidence"] = {"level": "HIGH"}
        resource["experimental"] = [1, 2, 3]
    data = document.get("data")
    if isinstance(data, list):
        novelty = {"code": "novelty-signal", "status": {"value": "SUCCESS"}, "body": {"value": 1}}
        data.append({"id": "novelty-signal", "type": "signal", "attributes": novelty, "meta": {}})


def _sentinel(document: Json) -> None:
    """What a bus says for "no value", passed on as if it were one."""
    nonsense = {SOC: 255, clouds.RANGE: 65535, clouds.ODOMETER: 4294967295}
    for code, body in _bodies(document):
        if code in nonsense:
            body["value"] = nonsense[code]


def _miles_as_km(document: Json) -> None:
    for code, body in _bodies(document):
        if code == clouds.RANGE:
            body["value"] = round(body["value"] / 1.609344)


def _older_shapes(document: Json) -> None:
    """As Smartcar's documents and SDK fixtures have it: other names of paging, no ``data`` around one."""
    meta, links = document.get("meta", {}), document.get("links", {})
    if "pageNumber" in meta:
        meta["page"] = meta.pop("pageNumber")
    if "prev" in links:
        links["previous"] = links.pop("prev")
    if isinstance(document.get("data"), dict):
        document.update(document.pop("data"))


SHAPES: Final[Mapping[str, Shape]] = {
    "seconds": _seconds,
    "strings": _strings,
    "future_time": _future_time,
    "zero_time": _zero_time,
    "wrong_types": _wrong_types,
    "unknown_units": _unknown_units,
    "missing_signals": _missing_signals,
    "no_signals": _no_signals,
    "null_body": _null_body,
    "extra_fields": _extra_fields,
    "sentinel": _sentinel,
    "miles_as_km": _miles_as_km,
    "older_shapes": _older_shapes,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a command."""

    status: str
    """As it is told."""
    carried_out: bool
    delay_s: float = 0.0
    """The car does it so much later."""


DONE: Final = Outcome("SUCCESS", carried_out=True)
OUTCOMES: Final[Mapping[str, Outcome]] = {
    "command_failure": Outcome("FAILURE", carried_out=False),
    "command_pending": Outcome("PENDING", carried_out=True),
    "command_lost": Outcome("PENDING", carried_out=False),
    "command_ignored": Outcome("SUCCESS", carried_out=False),
}
"""Of commands. ``lost`` and ``ignored``: the car never does what was, or seemed, promised."""

NAMES: Final = frozenset({*ERRORS, *WIRE, *SHAPES, *OUTCOMES})


# --- when -----------------------------------------------------------------------------------------------


class BadRule(ValueError):
    """A rule that cannot be meant."""


@dataclass(slots=True)
class Rule:
    """One fault, and the requests it befalls. Each ``None`` matches all."""

    number: int
    fault: str
    path: str | None = None
    vehicle: str | None = None
    make: str | None = None
    rate: float = 1.0
    left: int | None = None
    """How many times more; None: for ever."""
    retry_after_s: float | None = None
    """With ``RATE_LIMIT:VEHICLE``."""
    delay_s: float = 0.0
    """With ``command_pending``: how much later the car does it."""
    fired: int = field(default=0)

    def matches(self, kind: str, vehicle: Vehicle | None) -> bool:
        if self.left == 0 or self.path not in (None, kind):
            return False
        if self.vehicle is not None and (vehicle is None or vehicle.id != self.vehicle):
            return False
        return self.make is None or (vehicle is not None and vehicle.car.cloud.make == self.make)

    @property
    def outcome(self) -> Outcome | None:
        """If it befalls a command."""
        outcome = OUTCOMES.get(self.fault)
        return None if outcome is None else replace(outcome, delay_s=self.delay_s)

    def as_json(self) -> Json:
        return {
            "id": self.number,
            "match": {"path": self.path, "vehicle": self.vehicle, "make": self.make},
            "rate": self.rate,
            "fault": self.fault,
            "count": self.left,
            "retry_after": self.retry_after_s,
            "delay": self.delay_s,
            "fired": self.fired,
        }


class Faults:
    """The rules in force, in the order they were given."""

    def __init__(self, seed: int) -> None:
        self._key = key_of("faults", seed)
        self._numbered = 0
        self._rules: list[Rule] = []

    def add(self, written: object) -> Rule:
        """A rule as JSON. Raises BadRule, which says what is wrong."""
        rule = parse_rule(written, self._numbered + 1)
        self._numbered += 1
        self._rules.append(rule)
        return rule

    def clear(self) -> None:
        self._rules.clear()

    def as_json(self) -> list[Json]:
        return [rule.as_json() for rule in self._rules]

    def befalling(self, kind: str, vehicle: Vehicle | None, number: int) -> list[Rule]:
        """Those that befall a request, the ``number``-th of its vehicle or kind."""
        if not self._rules:
            return []
        drawn_by = mix(self._key, vehicle.car.key if vehicle else key_of(kind))
        befalling = []
        for rule in self._rules:
            if rule.matches(kind, vehicle) and unit(mix(drawn_by, rule.number), number) < rule.rate:
                rule.fired += 1
                rule.left = None if rule.left is None else rule.left - 1
                befalling.append(rule)
        return befalling


def parse_rule(written: object, number: int) -> Rule:
    if not isinstance(written, dict):
        raise BadRule("a rule is an object")
    unknown = set(written) - {"match", "rate", "fault", "count", "retry_after", "delay"}
    match = written.get("match") or {}
    if not isinstance(match, dict):
        raise BadRule("match is an object")
    unknown |= set(match) - {"path", "vehicle", "make"}
    if unknown:
        raise BadRule(f"unknown: {', '.join(sorted(unknown))}")
    fault, path, make = written.get("fault"), match.get("path"), match.get("make")
    rate, count, retry_after = written.get("rate", 1.0), written.get("count"), written.get("retry_after")
    delay = written.get("delay", 0.0)
    if fault not in NAMES:
        raise BadRule(f"unknown fault {fault!r}; known are {', '.join(sorted(NAMES))}")
    if path is not None and path not in KINDS:
        raise BadRule(f"unknown path {path!r}; known are {', '.join(KINDS)}")
    if not _is_number(rate) or not 0 <= rate <= 1:
        raise BadRule("rate is a number from 0 to 1")
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise BadRule("count is a whole number from 1, or null for ever")
    if retry_after is not None and (not _is_number(retry_after) or retry_after < 0):
        raise BadRule("retry_after is in seconds")
    if not _is_number(delay) or delay < 0:
        raise BadRule("delay is in seconds")
    if make is not None:
        try:
            make = clouds.clouds_named([str(make)])[0].make
        except ValueError as error:
            raise BadRule(str(error)) from None
    return Rule(
        number,
        fault,
        path=path,
        vehicle=match.get("vehicle"),
        make=make,
        rate=float(rate),
        left=count,
        retry_after_s=retry_after,
        delay_s=float(delay),
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

"""``/_control``: what a test tells the simulator and asks of it.

No authentication: it belongs on loopback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson
from aiohttp import web

from evbatteryd.simulator.clock import VirtualClock
from evbatteryd.simulator.clouds import clouds_named
from evbatteryd.simulator.conduct import AS_SMARTCAR, BadConduct, Conduct
from evbatteryd.simulator.errors import told_error
from evbatteryd.simulator.faults import BadRule
from evbatteryd.simulator.fleet import Vehicle
from evbatteryd.simulator.signals import named, shown_soc
from evbatteryd.simulator.uploads import newest_upload
from evbatteryd.simulator.world import Notifier, World

Json = dict[str, Any]
ControlHandler = Callable[[World, web.Request], Awaitable[object]]

SLICE: Final = 256
"""Vehicles whose truth is worked out before others may go on."""


class BadControl(Exception):
    """A request to the control that cannot be meant."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.status = status


async def control(world: World, handler: ControlHandler, request: web.Request) -> web.Response:
    """Serve one request of the control."""
    try:
        document, status = await handler(world, request), 200
    except (BadControl, BadRule, BadConduct) as error:
        document, status = {"error": str(error)}, error.status if isinstance(error, BadControl) else 400
    return web.Response(body=orjson.dumps(document), status=status, content_type="application/json")


async def _written(request: web.Request) -> Any:
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        raise BadControl("the body is no JSON") from None


async def _number(request: web.Request, *names: str) -> dict[str, float]:
    """The numbers of the body, of which there may be no others than ``names``."""
    written = await _written(request)
    if not isinstance(written, dict) or not written or set(written) - set(names):
        raise BadControl(f"expected an object of {' or '.join(names)}")
    for name, value in written.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise BadControl(f"{name} is a number")
    return written


async def get_faults(world: World, _: web.Request) -> object:
    return world.faults.as_json()


async def add_faults(world: World, request: web.Request) -> object:
    """One rule or a list of them."""
    written = await _written(request)
    return [
        world.faults.add(rule).as_json() for rule in (written if isinstance(written, list) else [written])
    ]


async def clear_faults(world: World, _: web.Request) -> object:
    world.faults.clear()
    return []


async def get_truth(world: World, request: web.Request) -> object:
    """The truth of every vehicle, or of ``?vehicle=``, by its id."""
    wanted = request.query.get("vehicle")
    vehicles = list(world.fleet) if wanted is None else [_vehicle(world, wanted)]
    truth: dict[str, Json] = {}
    for first in range(0, len(vehicles), SLICE):
        now = world.now()
        truth |= {vehicle.id: _truth(world, vehicle, now) for vehicle in vehicles[first : first + SLICE]}
        await asyncio.sleep(0)
    return truth


def _truth(world: World, vehicle: Vehicle, now: float) -> Json:
    car = vehicle.car
    snapshot, upload = car.snapshot(now), newest_upload(car, now)
    return {
        "make": car.cloud.make,
        "model": car.model,
        "userId": vehicle.user_id,
        "connectionId": vehicle.connection_id,
        "subscribed": vehicle.subscribed,
        "at": datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds"),
        "soc_percent": snapshot.soc_percent,
        "state": snapshot.state.name.lower(),
        "charge_limit_percent": snapshot.charge_limit_percent,
        "capacity_kwh": car.capacity_kwh,
        "range_km": snapshot.range_km,
        "odometer_km": snapshot.odometer_km,
        "power_kw": snapshot.power_kw,
        "upload": None
        if upload is None
        else {
            "soc_percent": shown_soc(car.cloud, car.soc_at(upload.measured_at) * 100),
            "measured_at": round(upload.measured_at * 1000),
            "available_at": round(upload.available_at * 1000),
        },
    }


def _vehicle(world: World, vehicle_id: str) -> Vehicle:
    vehicle = world.fleet.get(vehicle_id)
    if vehicle is None:
        raise BadControl("there is no such vehicle", status=404)
    return vehicle


async def add_vehicle(world: World, request: web.Request) -> object:
    """Of ``make``, or of the next one in turn."""
    written = await _written(request)
    if not isinstance(written, dict) or set(written) - {"make"}:
        raise BadControl("expected an object of make")
    try:
        cloud = clouds_named([str(written["make"])])[0] if written.get("make") else None
    except ValueError as error:
        raise BadControl(str(error)) from None
    return _consent(world.fleet.add(cloud, world.now()))


async def change_consent(world: World, request: web.Request) -> object:
    vehicle = _vehicle(world, request.match_info["vehicle"])
    match request.match_info["change"]:
        case "withdraw":
            world.fleet.withdraw(vehicle)
        case "consent":
            world.fleet.consent(vehicle, world.now())
        case "subscribe":
            world.fleet.subscribe(vehicle)
        case "unsubscribe":
            world.fleet.unsubscribe(vehicle)
    return _consent(vehicle)


def _consent(vehicle: Vehicle) -> Json:
    return {
        "id": vehicle.id,
        "make": vehicle.car.cloud.make,
        "userId": vehicle.user_id,
        "connectionId": vehicle.connection_id,
        "subscribed": vehicle.subscribed,
    }


async def get_conduct(world: World, _: web.Request) -> object:
    return world.conduct.as_json()


async def change_conduct(world: World, request: web.Request) -> object:
    """Of the deliveries to come; what the body does not name stays as it is."""
    return _conduct(world, world.conduct.changed(await _written(request)))


async def end_conduct(world: World, _: web.Request) -> object:
    return _conduct(world, AS_SMARTCAR)


def _conduct(world: World, conduct: Conduct) -> Json:
    was_paused, world.conduct = world.conduct.paused, conduct
    if was_paused and not conduct.paused and world.notifier is not None:
        world.notifier.begin_anew()
    return conduct.as_json()


async def verify_webhook(world: World, _: web.Request) -> object:
    return {"verified": await _notifier(world).verify()}


async def tell_error(world: World, request: web.Request) -> object:
    """``type``, ``code`` (or null), ``state``; and ``signals`` (codes), ``description``, ``resolution``."""
    vehicle, written = _vehicle(world, request.match_info["vehicle"]), await _written(request)
    if not isinstance(written, dict) or not {"type", "code", "state"} <= set(written) <= set(_ERROR_FIELDS):
        raise BadControl(f"expected an object of {', '.join(_ERROR_FIELDS)}; the last three may be missing")
    for name, value in written.items():
        words, fits = _ERROR_FIELDS[name]
        if not fits(value):
            raise BadControl(f"{name} is {words}")
    notifier = _notifier(world)
    if not vehicle.reports:
        raise BadControl("the vehicle is not subscribed to the webhook", status=409)
    codes = written.get("signals")
    error = told_error(
        written["type"],
        written["code"],
        written["state"],
        None if codes is None else [named(code) for code in codes],
        written.get("description"),
        written.get("resolution"),
    )
    notifier.tell(vehicle, error)
    return error


def _notifier(world: World) -> Notifier:
    if world.notifier is None:
        raise BadControl("there is no webhook", status=409)
    return world.notifier


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


_ERROR_FIELDS: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "type": ("text", _is_text),
    "code": ("text or null", lambda it: it is None or _is_text(it)),
    "state": ("ERROR or RESOLVED", lambda it: it in ("ERROR", "RESOLVED")),
    "signals": ("a list of codes", lambda it: isinstance(it, list) and all(map(_is_text, it))),
    "description": ("text", _is_text),
    "resolution": ("text", _is_text),
}


async def get_stats(world: World, _: web.Request) -> object:
    return {**world.stats.as_json(), "bucket_level": world.bucket.level(world.now())}


async def set_latency(world: World, request: web.Request) -> object:
    scale = (await _number(request, "scale"))["scale"]
    if scale < 0:
        raise BadControl("scale is 0 or more")
    world.latency_scale = scale
    return {"scale": scale}


async def get_clock(world: World, _: web.Request) -> object:
    return {"now": world.clock.now().isoformat(), "speed": world.clock.speed}


async def set_clock(world: World, request: web.Request) -> object:
    """Another ``speed``, or ``advance_s`` seconds ahead. Only the simulator's own clock can be set."""
    written = await _number(request, "speed", "advance_s")
    if not isinstance(world.clock, VirtualClock):
        raise BadControl("the clock belongs to the program that runs the simulator", status=409)
    if written.get("speed", 1) <= 0 or written.get("advance_s", 0) < 0:
        raise BadControl("speed is above 0, and time never goes back")
    if "speed" in written:
        world.clock.set_speed(written["speed"])
    world.clock.advance(timedelta(seconds=written.get("advance_s", 0)))
    return await get_clock(world, request)


CONTROL_ROUTES: Final[tuple[tuple[str, str, ControlHandler], ...]] = (
    ("GET", "/_control/faults", get_faults),
    ("POST", "/_control/faults", add_faults),
    ("DELETE", "/_control/faults", clear_faults),
    ("GET", "/_control/truth", get_truth),
    ("POST", "/_control/vehicles", add_vehicle),
    ("POST", "/_control/vehicles/{vehicle}/{change:withdraw|consent|subscribe|unsubscribe}", change_consent),
    ("POST", "/_control/vehicles/{vehicle}/error", tell_error),
    ("GET", "/_control/webhooks", get_conduct),
    ("POST", "/_control/webhooks", change_conduct),
    ("DELETE", "/_control/webhooks", end_conduct),
    ("POST", "/_control/webhooks/verify", verify_webhook),
    ("GET", "/_control/stats", get_stats),
    ("POST", "/_control/latency", set_latency),
    ("GET", "/_control/clock", get_clock),
    ("POST", "/_control/clock", set_clock),
)

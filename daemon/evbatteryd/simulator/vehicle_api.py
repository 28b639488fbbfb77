"""``iam.smartcar.com`` and ``vehicle.api.smartcar.com/v3``: all about vehicles."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from evbatteryd.simulator.clouds import Command
from evbatteryd.simulator.draws import uuid_of
from evbatteryd.simulator.errors import Refused
from evbatteryd.simulator.exchange import NO_BODY, Answer, Ask, Endpoint
from evbatteryd.simulator.fleet import Vehicle
from evbatteryd.simulator.identity import LIFETIME_S
from evbatteryd.simulator.lives import State
from evbatteryd.simulator.pages import page
from evbatteryd.simulator.signals import signals_of

Json = dict[str, Any]

PAGE_SIZE: Final = 10
LOWEST_LIMIT_PERCENT: Final = 50
_COMMAND_ID: Final = 1 << 33


# --- tokens ---------------------------------------------------------------------------------------------


async def issue_token(ask: Ask) -> Answer:
    """The client credentials grant, as a form or as JSON. Errors are OAuth's, not the API's."""
    fields = await _fields(ask)
    client_id, client_secret = fields.get("client_id"), fields.get("client_secret")
    if fields.get("grant_type") != "client_credentials" or not client_id or not client_secret:
        return _oauth_error(400, "invalid_request", "grant_type, client_id and client_secret are needed")
    if not ask.world.tokens.knows(client_id, client_secret):
        return _oauth_error(401, "invalid_client", "client authentication failed")
    token = ask.world.tokens.issue(ask.world.now())
    return Answer(200, {"access_token": token, "token_type": "Bearer", "expires_in": LIFETIME_S})


async def _fields(ask: Ask) -> Mapping[str, str]:
    if ask.request.content_type != "application/json":
        return {name: value for name, value in (await ask.request.post()).items() if isinstance(value, str)}
    try:
        found = orjson.loads(await ask.request.read())
    except orjson.JSONDecodeError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, str)}


def _oauth_error(status: int, error: str, description: str) -> Answer:
    return Answer(status, {"error": error, "error_description": description})


# --- connections ----------------------------------------------------------------------------------------


async def list_connections(ask: Ask) -> Answer:
    query = ask.request.query
    mode = query.get("filter[vehicle.mode]", "live")
    user = query.get("filter[userId]", ask.request.headers.get("sc-user-id"))
    vehicles = ask.world.fleet.connected(vehicle_id=query.get("filter[vehicleId]"), user_id=user)
    if mode != ask.world.options.mode or query.get("filter[user.externalId]") is not None:
        vehicles = []  # nobody here was given an external id
    document = page(
        ask.address, query, vehicles, lambda vehicle: _connection(ask, vehicle), default_size=PAGE_SIZE
    )
    document["meta"] |= {"orderBy": "createdAt", "orderDirection": "ASC"}
    return Answer(200, document)


async def get_connection(ask: Ask) -> Answer:
    resource = _connection(ask, _connected_as(ask))
    return Answer(200, {"data": resource, "links": resource["links"]})


async def delete_connection(ask: Ask) -> Answer:
    ask.world.fleet.withdraw(_connected_as(ask))
    return Answer(NO_BODY)


async def delete_user(ask: Ask) -> Answer:
    vehicles = ask.world.fleet.connected(user_id=ask.request.match_info["user"])
    if not vehicles:
        raise Refused("RESOURCE_NOT_FOUND", detail="There is no such user.")
    for vehicle in vehicles:
        ask.world.fleet.withdraw(vehicle)
    return Answer(NO_BODY)


def _connected_as(ask: Ask) -> Vehicle:
    wanted = ask.request.match_info["connection"]
    for vehicle in ask.world.fleet:
        if vehicle.stands and vehicle.connection_id == wanted:
            return vehicle
    raise Refused("RESOURCE_NOT_FOUND", detail="There is no such connection.")


def _connection(ask: Ask, vehicle: Vehicle) -> Json:
    began_at = ask.world.started_at if vehicle.consented_at is None else vehicle.consented_at
    since = datetime.fromtimestamp(began_at, UTC).isoformat(timespec="milliseconds")
    return {
        "id": vehicle.connection_id,
        "type": "connection",
        "attributes": {
            "permissions": list(vehicle.permissions),
            "vehicle": _attributes(ask, vehicle),
            "user": {"id": vehicle.user_id, "externalId": None},
        },
        "relationships": {
            "vehicle": {"data": {"id": vehicle.id, "type": "vehicle"}},
            "user": {"data": {"id": vehicle.user_id, "type": "user"}},
        },
        "meta": {"createdAt": since, "updatedAt": since},
        "links": {"self": f"{ask.origin}/v3/connections/{vehicle.connection_id}"},
    }


# --- vehicles and signals -------------------------------------------------------------------------------


async def get_vehicle(ask: Ask) -> Answer:
    resource = _vehicle(ask, _attributes(ask, ask.the_vehicle))
    return Answer(200, {"data": resource, "links": resource["links"]})


async def list_signals(ask: Ask) -> Answer:
    document = page(
        ask.address, ask.request.query, _signals(ask), lambda signal: signal, default_size=PAGE_SIZE
    )
    document["included"] = _included(ask)
    return Answer(200, document)


async def get_signal(ask: Ask) -> Answer:
    code = ask.request.match_info["code"]
    for signal in _signals(ask):
        if signal["id"] == code:
            return Answer(200, {"data": signal, "links": signal["links"], "included": _included(ask)})
    raise Refused(
        "RESOURCE_NOT_FOUND:SIGNAL_NOT_FOUND",
        detail=f"Signal with code {code} not found for vehicle with ID {ask.the_vehicle.id}",
    )


def _signals(ask: Ask) -> list[Json]:
    vehicle = ask.the_vehicle
    if not vehicle.subscribed:
        raise Refused("RESOURCE_NOT_FOUND", detail="There is no data of this vehicle.")
    return signals_of(vehicle.car, ask.world.now(), f"{ask.origin}/v3/vehicles/{vehicle.id}")


def _attributes(ask: Ask, vehicle: Vehicle) -> Json:
    car = vehicle.car
    return {
        "make": car.cloud.make,
        "model": car.model,
        "year": car.year,
        "mode": ask.world.options.mode,
        "powertrainType": car.powertrain,
    }


def _included(ask: Ask) -> Json:
    car = ask.the_vehicle.car
    return {"vehicle": _vehicle(ask, {"make": car.cloud.make, "model": car.model, "year": car.year})}


def _vehicle(ask: Ask, attributes: Json) -> Json:
    vehicle_id = ask.the_vehicle.id
    return {
        "id": vehicle_id,
        "type": "vehicle",
        "attributes": attributes,
        "links": {"self": f"{ask.origin}/v3/vehicles/{vehicle_id}"},
    }


# --- commands -------------------------------------------------------------------------------------------


async def start_charging(ask: Ask) -> Answer:
    car, now = ask.the_vehicle.car, ask.world.now()
    _may_command(ask, "start")
    truth = car.snapshot(now)
    if not truth.state.plugged_in:
        raise Refused("VEHICLE_STATE:CHARGING_PLUG_NOT_CONNECTED")
    if truth.state is State.CHARGING:
        raise Refused("VEHICLE_STATE:CHARGING_IN_PROGRESS")
    if truth.fully_charged:
        raise Refused("VEHICLE_STATE:FULLY_CHARGED")
    return _ordered(ask, now, charge=True)


async def stop_charging(ask: Ask) -> Answer:
    car, now = ask.the_vehicle.car, ask.world.now()
    _may_command(ask, "stop")
    state = car.run_at(now).state
    if not state.plugged_in:
        raise Refused("VEHICLE_STATE:CHARGING_PLUG_NOT_CONNECTED")
    if state is not State.CHARGING:
        raise Refused("VEHICLE_STATE:NOT_CHARGING")
    return _ordered(ask, now, charge=False)


async def set_limit(ask: Ask) -> Answer:
    written = await ask.json()
    try:
        percent = written["data"]["attributes"]["percent"]
    except (KeyError, TypeError):
        raise Refused("VALIDATION:MISSING_PARAMETER", detail="missing data.attributes.percent") from None
    if not isinstance(percent, int) or isinstance(percent, bool):
        raise Refused("VALIDATION:INVALID_INPUT_FORMAT", detail="percent is a whole number")
    if not LOWEST_LIMIT_PERCENT <= percent <= 100:
        raise Refused("VALIDATION:PARAMETER", detail="percent is from 50 to 100")
    _may_command(ask, "set-limit")
    return _ordered(ask, ask.world.now(), limit=percent / 100)


def _may_command(ask: Ask, command: Command) -> None:
    car, now = ask.the_vehicle.car, ask.world.now()
    if command not in car.cloud.commands:
        raise Refused("COMPATIBILITY:VEHICLE_NOT_CAPABLE")
    if car.deep_asleep_at(now):
        raise Refused("VEHICLE_STATE:ASLEEP")
    if command != "set-limit" and car.soc_at(now) * 100 < car.cloud.start_stop_above_percent:
        raise Refused("VEHICLE_STATE:LOW_BATTERY")


def _ordered(ask: Ask, now: float, *, charge: bool | None = None, limit: float | None = None) -> Answer:
    """Done, unless a fault wants otherwise. Of the answer only ``status`` is documented."""
    outcome = ask.outcome
    if outcome.carried_out:
        ask.world.fleet.order(ask.the_vehicle, now + outcome.delay_s, charge=charge, limit=limit)
    command_id = uuid_of(ask.the_vehicle.car.key, _COMMAND_ID + ask.number)
    attributes = {"status": outcome.status, "command": ask.request.path.partition("/commands/")[2]}
    return Answer(200, {"data": {"id": command_id, "type": "command", "attributes": attributes}})


# --- the table ------------------------------------------------------------------------------------------

_VEHICLE: Final = "/v3/vehicles/{vehicle}"


def _of_vehicle(
    method: str, path: str, kind: str, handler: Any, *, needs_user: bool = True, permission: str | None = None
) -> Endpoint:
    return Endpoint(
        method=method,
        path=_VEHICLE + path,
        kind=kind,
        handler=handler,
        metered=True,
        billed=True,
        needs_user=needs_user,
        permission=permission,
    )


def _command(name: Command, handler: Any) -> Endpoint:
    return _of_vehicle("POST", f"/commands/charge/{name}", "commands", handler, permission="control_charge")


VEHICLE_ENDPOINTS: Final = (
    Endpoint(method="POST", path="/oauth2/token", kind="token", handler=issue_token, needs_token=False),
    Endpoint(
        method="GET", path="/v3/connections", kind="connections", handler=list_connections, metered=True
    ),
    Endpoint(
        method="GET",
        path="/v3/connections/{connection}",
        kind="connections",
        handler=get_connection,
        metered=True,
    ),
    Endpoint(
        method="DELETE",
        path="/v3/connections/{connection}",
        kind="connections",
        handler=delete_connection,
        metered=True,
    ),
    Endpoint(method="DELETE", path="/v3/users/{user}", kind="users", handler=delete_user, metered=True),
    _of_vehicle("GET", "", "vehicle", get_vehicle, needs_user=False),
    _of_vehicle("GET", "/signals", "signals", list_signals),
    _of_vehicle("GET", "/signals/{code}", "signals", get_signal),
    _command("start", start_charging),
    _command("stop", stop_charging),
    _command("set-limit", set_limit),
)

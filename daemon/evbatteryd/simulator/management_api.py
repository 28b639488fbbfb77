"""``management.api.smartcar.com/v3``: the application, its webhook, and who is subscribed to it."""

from __future__ import annotations

from typing import Any, Final

from evbatteryd.simulator.errors import Refused
from evbatteryd.simulator.exchange import NO_BODY, Answer, Ask, Endpoint, Handler
from evbatteryd.simulator.fleet import Vehicle
from evbatteryd.simulator.pages import page

Json = dict[str, Any]

PAGE_SIZE: Final = 25


async def list_applications(ask: Ask) -> Answer:
    return _listed(ask, [_application(ask)])


async def get_application(ask: Ask) -> Answer:
    return _single(ask, _application(ask))


async def list_webhooks(ask: Ask) -> Answer:
    return _listed(ask, [_webhook(ask)])


async def get_webhook(ask: Ask) -> Answer:
    return _single(ask, _webhook(ask))


async def list_subscriptions(ask: Ask) -> Answer:
    query = ask.request.query
    vehicles = ask.world.fleet.connected(
        vehicle_id=query.get("filter[vehicleId]"), user_id=query.get("filter[userId]")
    )
    webhook_id, mode = ask.world.webhook_id, ask.world.options.mode
    if (
        query.get("filter[webhookId]", webhook_id) != webhook_id
        or query.get("filter[vehicleMode]", mode) != mode
    ):
        vehicles = []
    return _listed(ask, [_subscription(ask, vehicle) for vehicle in vehicles if vehicle.subscribed])


async def get_subscription(ask: Ask) -> Answer:
    return _single(ask, _subscription(ask, _subscribed_as(ask)))


async def delete_subscription(ask: Ask) -> Answer:
    ask.world.fleet.unsubscribe(_subscribed_as(ask))
    return Answer(NO_BODY)


async def create_subscription(ask: Ask) -> Answer:
    written = await ask.json()
    try:
        attributes = written["data"]["attributes"]
        webhook_id, user_id, vehicle_id = (attributes[key] for key in ("webhookId", "userId", "vehicleId"))
    except (KeyError, TypeError):
        detail = "missing one of data.attributes.webhookId, userId, vehicleId"
        raise Refused("VALIDATION:MISSING_PARAMETER", detail=detail) from None
    vehicle = ask.world.fleet.get(str(vehicle_id))
    if webhook_id != ask.world.webhook_id or vehicle is None:
        raise Refused("RESOURCE_NOT_FOUND", detail="There is no such webhook or vehicle.")
    if not vehicle.stands or vehicle.user_id != user_id:
        raise Refused("PERMISSION")
    if vehicle.subscribed:
        raise Refused("VALIDATION:CONFLICT", detail="The vehicle is already subscribed to this webhook.")
    ask.world.fleet.subscribe(vehicle)
    return Answer(202, {"data": _subscription(ask, vehicle)})


def _listed(ask: Ask, resources: list[Json]) -> Answer:
    query = ask.request.query
    return Answer(200, page(ask.address, query, resources, lambda one: one, default_size=PAGE_SIZE))


def _single(ask: Ask, resource: Json) -> Answer:
    wanted = ask.request.match_info["id"]
    if resource["id"] != wanted:
        raise Refused("RESOURCE_NOT_FOUND")
    return Answer(200, {"data": resource, "links": resource["links"]})


def _subscribed_as(ask: Ask) -> Vehicle:
    wanted = ask.request.match_info["id"]
    for vehicle in ask.world.fleet:
        if vehicle.stands and vehicle.subscribed and vehicle.subscription_id == wanted:
            return vehicle
    raise Refused("RESOURCE_NOT_FOUND", detail="There is no such subscription.")


def _application(ask: Ask) -> Json:
    return _resource(ask, "application", "applications", ask.world.application_id, {"name": "Simulated"})


def _webhook(ask: Ask) -> Json:
    options = ask.world.options
    attributes = {
        "name": ask.world.webhook_name,
        "applicationId": ask.world.application_id,
        "callbackUri": options.webhook,
        "isEnabled": not ask.world.conduct.paused,
        "autoSubscribe": options.auto_subscribe,
    }
    return _resource(ask, "webhook", "webhooks", ask.world.webhook_id, attributes)


def _subscription(ask: Ask, vehicle: Vehicle) -> Json:
    attributes = {
        "webhookId": ask.world.webhook_id,
        "userId": vehicle.user_id,
        "vehicleId": vehicle.id,
    }
    return _resource(ask, "subscription", "subscriptions", vehicle.subscription_id, attributes)


def _resource(ask: Ask, kind: str, folder: str, identifier: str, attributes: Json) -> Json:
    links = {"self": f"{ask.origin}/v3/{folder}/{identifier}"}
    return {"id": identifier, "type": kind, "attributes": attributes, "links": links}


def _managed(method: str, path: str, handler: Handler) -> Endpoint:
    return Endpoint(
        method=method,
        path=f"/v3/{path}",
        kind=path.partition("/")[0],
        handler=handler,
        takes_management_token=True,
    )


MANAGEMENT_ENDPOINTS: Final = (
    _managed("GET", "applications", list_applications),
    _managed("GET", "applications/{id}", get_application),
    _managed("GET", "webhooks", list_webhooks),
    _managed("GET", "webhooks/{id}", get_webhook),
    _managed("GET", "subscriptions", list_subscriptions),
    _managed("POST", "subscriptions", create_subscription),
    _managed("GET", "subscriptions/{id}", get_subscription),
    _managed("DELETE", "subscriptions/{id}", delete_subscription),
)

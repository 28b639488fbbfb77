"""``connect.smartcar.com``: where owners choose their brand, sign in there, and consent or do not.

As Smartcar documents it (https://smartcar.com/docs/connect/redirect-to-connect and
``connect/handle-the-response``, https://smartcar.com/docs/errors/connect-errors), except that whoever clicks
may choose what goes wrong, that any password fits, and that permissions are always asked for, as with
``approval_prompt=force``.

Nothing is remembered between the steps: their address holds the application's request, a form the rest.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Final
from urllib.parse import urlencode, urlsplit

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clouds import CLOUDS, Cloud, clouds_named
from evbatteryd.simulator.draws import key_of, mix, token_of, uuid_of
from evbatteryd.simulator.fleet import PERMISSIONS
from evbatteryd.simulator.world import World, is_web_address

PATH: Final = "/oauth/authorize"
MOST_VEHICLES: Final = 20
"""Of one account; Smartcar's own test accounts have up to 999."""

FAILURES: Final[Mapping[str, tuple[str, str]]] = {
    "access_denied": ("The owner denies", "User denied access to the requested scope of permissions."),
    "no_vehicles": (
        "The account has no vehicles",
        "No vehicles found. Please add vehicles to your account and try again.",
    ),
    "vehicle_incompatible": ("The vehicle is not compatible", "The user's vehicle is not compatible."),
    "invalid_subscription": (
        "The subscription with the brand has run out",
        "User does not have an active connected vehicle subscription.",
    ),
    "configuration_error": (
        "The application is set up wrongly",
        "There has been an error in the configuration of your application.",
    ),
    "server_error": ("Smartcar has a problem", "An unexpected error occurred."),
}
"""``error``, what a tester reads, and ``error_description``."""

_SAYS: Final = {
    "control_charge": "Start and stop charging, and set the charge limit",
    "read_battery": "Read the battery's level, capacity and range",
    "read_charge": "Read whether it is plugged in and charging",
    "read_location": "Read where it is",
    "read_odometer": "Read the distance driven",
    "read_vehicle_info": "Read make, model and year",
    "read_vin": "Read the vehicle identification number",
}
_IN_CAPITALS: Final = frozenset({"BMW", "BYD", "DS", "GMC", "MG", "RAM", "SEAT"})
_MANY_VEHICLES: Final = re.compile(r"(\d{1,3})-vehicles@smartcar\.com")
_IS_PLAIN: Final = re.compile(r"[!$-;=?-Z\[\]_a-z~]+")
"""What a URL is written with (RFC 3986), except for the fragment, which a redirection may not have."""
_CODE, _USER_ID, _VIN = range(3)
_VIN_LETTERS: Final = "0123456789ABCDEFGHJKLMNPRSTUVWXYZ"
"""ISO 3779: neither I nor O nor Q."""
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BadRequest(Exception):
    """A request that nobody can be sent back for: it is not certain who made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    """What an application asks for in the query."""

    redirect_uri: str
    state: str | None
    scope: str
    cloud: Cloud | None
    """The make, if it is chosen already."""
    country: str | None
    single: bool
    """One vehicle only."""


@dataclass(frozen=True, slots=True)
class Account:
    """An owner at a make. It follows from seed, address and make, so that signing in again finds the same."""

    email: str
    user_id: str
    cars: tuple[Car, ...]

    @property
    def failure(self) -> str | None:
        """The one that the address asks for, as ``smartcar@vehicle-incompatible.com`` does."""
        if not self.cars:
            return "no_vehicles"
        domain = self.email.rpartition("@")[2].removesuffix(".com").replace("-", "_")
        return domain if domain in FAILURES else None


async def authorize(world: World, request: web.Request) -> web.Response:
    """Serve one step."""
    try:
        asked = _read(world, request.query)
    except BadRequest as error:
        return _page("error.html", status=400, reason=str(error))
    if asked.cloud is None:
        return _page("brands.html", country=asked.country, brands=_brands(request.query))
    if request.method != "POST":
        return _sign_in(asked.cloud)
    form = await request.post()
    email = str(form.get("email", "")).strip().lower()
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        return _sign_in(asked.cloud, wrong="Enter an e-mail address.")
    account = _account(world, asked.cloud, email)
    chosen = [str(number) for number in form.getall("vehicle", [])]
    match account.failure, form.get("decision"):
        case str(failure), _:
            return _back(asked, _failed(failure, account))
        case None, "deny":
            return _back(asked, _failed("access_denied", account))
        case None, "allow":
            return _allowed(world, asked, account, chosen, str(form.get("outcome", "")))
    return _permissions(asked, account)


# --- what is asked --------------------------------------------------------------------------------------


def _read(world: World, query: Mapping[str, str]) -> ConnectRequest:
    """Raises BadRequest."""
    if query.get("client_id") != world.application_id:
        raise BadRequest("There is no application with this client_id.")
    redirect_uri = query.get("redirect_uri", "")
    if not _may_redirect(world.options.redirect_uris, redirect_uri):
        raise BadRequest("The redirect_uri is missing, or not one of those registered for the application.")
    if query.get("response_type") != "code":
        raise BadRequest("The response_type must be code.")
    mode = query.get("mode", "live")
    if mode != world.options.mode:
        raise BadRequest(f"The mode must be {world.options.mode}, as the application's vehicles are.")
    flags = dict(flag.partition(":")[::2] for flag in query.get("flags", "").split())
    return ConnectRequest(
        redirect_uri=redirect_uri,
        state=query.get("state"),
        scope=query.get("scope", ""),
        cloud=_cloud(query.get("make")),
        country=flags.get("country"),
        single=query.get("single_select") == "true",
    )


def _cloud(make: str | None) -> Cloud | None:
    try:
        return clouds_named([make])[0] if make else None
    except ValueError:
        raise BadRequest("There is no such make.") from None


def _may_redirect(registered: Sequence[str], uri: str) -> bool:
    if not _IS_PLAIN.fullmatch(uri) or not is_web_address(uri):
        return False
    if registered:
        return uri in registered
    return urlsplit(uri).scheme == "https" or _is_loopback(uri)


def _is_loopback(uri: str) -> bool:
    host = urlsplit(uri).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@lru_cache
def _permissions_of(scope: str) -> tuple[str, ...]:
    """What is granted for a scope; cached, so that vehicles with the same share it."""
    names = dict.fromkeys(name.removeprefix("required:") for name in scope.split())
    return tuple(names) or PERMISSIONS


def _account(world: World, cloud: Cloud, email: str) -> Account:
    seed = world.options.seed
    named = _MANY_VEHICLES.fullmatch(email)
    count = min(int(named[1]), MOST_VEHICLES) if named else 1
    keys = (key_of("garage", seed, email, cloud.make, number) for number in range(count))
    cars = tuple(world.fleet.car_of(key, cloud) for key in keys)
    return Account(email, uuid_of(key_of("owner", seed, email), _USER_ID), cars)


# --- the steps ------------------------------------------------------------------------------------------


def _brands(query: Mapping[str, str]) -> list[tuple[str, str]]:
    """The name of each make, and the query that chooses it."""
    others = [(name, value) for name, value in query.items() if name != "make"]
    chosen = ((cloud, urlencode([*others, ("make", cloud.make)])) for cloud in CLOUDS)
    return sorted((_name(cloud), f"?{with_make}") for cloud, with_make in chosen)


def _name(cloud: Cloud) -> str:
    """``Land Rover``, but ``BMW``."""
    return cloud.make if cloud.make in _IN_CAPITALS else cloud.make.title()


def _sign_in(cloud: Cloud, wrong: str | None = None) -> web.Response:
    return _page("sign_in.html", status=400 if wrong else 200, brand=_name(cloud), wrong=wrong)


def _permissions(asked: ConnectRequest, account: Account, wrong: str | None = None) -> web.Response:
    return _page(
        "permissions.html",
        status=400 if wrong else 200,
        wrong=wrong,
        account=account,
        brand=_name(account.cars[0].cloud),
        single=asked.single,
        permissions=[_SAYS.get(name, name.replace("_", " ").capitalize()) for name in _granted(asked)],
        failures={failure: words for failure, (words, _) in FAILURES.items()},
    )


def _granted(asked: ConnectRequest) -> tuple[str, ...]:
    return _permissions_of(asked.scope)


def _allowed(
    world: World, asked: ConnectRequest, account: Account, chosen: Sequence[str], outcome: str
) -> web.Response:
    if outcome in FAILURES:
        return _back(asked, _failed(outcome, account))
    cars = [car for number, car in enumerate(account.cars, start=1) if str(number) in chosen]
    if not cars:
        return _permissions(asked, account, wrong="Choose at least one vehicle.")
    if asked.single and len(cars) > 1:
        return _permissions(asked, account, wrong="Choose one vehicle only.")
    now = world.now()
    for car in cars:
        world.fleet.connect(car, account.user_id, _granted(asked), now)
    answer = {"user_id": account.user_id}
    if world.options.connect_code:
        answer["code"] = token_of(mix(key_of(account.user_id), round(now * 1000)), _CODE)
    return _back(asked, answer)


def _failed(failure: str, account: Account) -> dict[str, str]:
    answer = {"error": failure, "error_description": FAILURES[failure][1]}
    match failure:
        case "vehicle_incompatible" if account.cars:
            car = account.cars[0]
            answer |= {"vin": _vin(car), "make": car.cloud.make, "model": car.model, "year": str(car.year)}
        case "configuration_error":
            # Seen in the tests of github.com/smartcar/ios-sdk.
            answer |= {"status_code": "400", "error_message": "The application may not connect vehicles."}
    return answer


def _vin(car: Car) -> str:
    digits = mix(car.key, _VIN) % len(_VIN_LETTERS) ** 12
    letters = ""
    for _ in range(12):
        digits, letter = divmod(digits, len(_VIN_LETTERS))
        letters += _VIN_LETTERS[letter]
    return f"SMCAR{letters}"


def _back(asked: ConnectRequest, answer: Mapping[str, str]) -> web.Response:
    """To the application. What its address already asks for is kept."""
    told = urlencode(answer if asked.state is None else {**answer, "state": asked.state})
    query = urlsplit(asked.redirect_uri).query
    separator = "" if asked.redirect_uri.endswith(("?", "&")) else "&" if query else "?"
    location = f"{asked.redirect_uri}{separator}{told}"
    return web.Response(status=303, headers={**_HEADERS, "Location": location})


def _page(template: str, *, status: int = 200, **facts: object) -> web.Response:
    text = _templates().get_template(template).render(facts)
    return web.Response(text=text, status=status, content_type="text/html", headers=_HEADERS)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("evbatteryd.simulator", "connect_pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

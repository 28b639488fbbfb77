"""Smartcar's API v3 answers, read: pure functions from bytes to what the daemon knows.

Shapes and traps, each with its source, are listed in ``docs/smartcar.md``. What is read here is lenient
where Smartcar's own documents and recordings differ (units, time shapes, paging names), and strict where
leniency would invent a value: an unknown unit is kept out of the reading and kept with the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import orjson

from evbatteryd.domain.errors import (
    ApplicationRateLimited,
    ApplicationRefused,
    Asleep,
    BudgetSpent,
    ConsentLost,
    NotCapable,
    NothingYet,
    OwnerMustAct,
    PlanRefused,
    RateLimited,
    SourceError,
    Unreachable,
    Unreadable,
)
from evbatteryd.domain.reading import (
    ChargeState,
    Measurement,
    Observation,
    Origin,
    Rejected,
    Signal,
    SignalProblem,
    Value,
)
from evbatteryd.domain.vehicle import Consent

Json = Mapping[str, Any]

KM_PER_MILE: Final = 1.609344
_KILO: Final = {"km": 1.0, "kilometers": 1.0, "kilometres": 1.0, "kilometer": 1.0}
_LENGTH: Final = _KILO | {"mi": KM_PER_MILE, "miles": KM_PER_MILE, "mile": KM_PER_MILE}
_PERCENT: Final = {"percent": 1.0, "percentage": 1.0, "%": 1.0}
_ENERGY: Final = dict.fromkeys(("kwh", "kwhr", "kilowatt_hours", "kilowatthours", "kilowatt-hours"), 1.0)
_POWER: Final = dict.fromkeys(("w", "watt", "watts"), 0.001) | dict.fromkeys(("kw", "kilowatts"), 1.0)
_SPAN: Final = {
    **dict.fromkeys(("minutes", "minute", "min"), 60.0),
    **dict.fromkeys(("seconds", "second", "s"), 1.0),
    **dict.fromkeys(("hours", "hour", "h"), 3600.0),
}


class _Unfit(Exception):
    """The body holds a value that we must not guess the meaning of."""


def parse_instant(raw: object) -> datetime | None:
    """Smartcar's times: epoch seconds (documents), milliseconds (recordings) or strings (newer clients).

    0 means unknown, as does everything that is no time. Below 10**11 a number is in seconds.
    """
    if isinstance(raw, bool) or raw is None:
        return None
    if isinstance(raw, str):
        text = raw.strip()
        try:
            return parse_instant(float(text))
        except ValueError:
            pass
        try:
            at = datetime.fromisoformat(text)
            at = at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
        except (ValueError, OverflowError):
            return None
        return at.replace(microsecond=at.microsecond // 1000 * 1000)
    if not isinstance(raw, int | float) or not math.isfinite(raw) or raw <= 0:
        return None
    milliseconds = int(raw * 1000) if raw < 1e11 else int(raw)
    try:
        return datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def _number(raw: object) -> float | None:
    """A finite number; None when absent. Numbers in strings are numbers: a newer client saw them."""
    if raw is None:
        return None
    if isinstance(raw, str):
        try:
            raw = float(raw)
        except ValueError:
            raise _Unfit("not a number") from None
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise _Unfit("not a number")
    try:
        number = float(raw)
    except OverflowError:
        raise _Unfit("not a finite number") from None
    if not math.isfinite(number):
        raise _Unfit("not a finite number")
    return number


def _quantity(body: Json, units: Mapping[str, float], default: str, key: str = "value") -> float | None:
    number = _number(body.get(key))
    if number is None:
        return None
    unit = body.get("unit")
    if unit is None:
        return number * units[default]
    factor = units.get(unit.strip().lower()) if isinstance(unit, str) else None
    if factor is None:
        raise _Unfit(f"unknown unit {_shown(unit)[:40]}")
    return number * factor


def _flag(body: Json) -> bool | None:
    value = body.get("value")
    if value is None or isinstance(value, bool):
        return value
    raise _Unfit("neither true nor false")


_RANGE_TRUST: Final = {"ESTIMATED": 0, "DEFAULT": 1, None: 1, "IDEAL_CONDITIONS": 2, "RATED": 3}


def _range(body: Json) -> float | None:
    """The best of what is offered: estimated, the OEM's default, ideal conditions, rated."""
    offers = [(_RANGE_TRUST.get(word(body.get("type")), 4), body)]
    more = body.get("additionalValues")
    offers.extend(
        (_RANGE_TRUST.get(word(other.get("type")), 4), {"unit": body.get("unit"), **other})
        for other in (more if isinstance(more, list) else ())
        if isinstance(other, dict)
    )
    for _, offer in sorted(offers, key=lambda offer: offer[0]):
        if offer.get("value") is not None:
            return _quantity(offer, _LENGTH, "km")
    return None


def word(raw: object) -> str | None:
    """A word of Smartcar's, in upper case; None if it is no text."""
    return raw.upper() if isinstance(raw, str) else None


def _shown(raw: object) -> str:
    """What came, for whoever looks; an answer may be nested deeper than Python can print."""
    try:
        return repr(raw)[:200]
    except RecursionError:
        return "(nested too deeply)"


def _capacity(body: Json) -> float | None:
    key = "capacity" if "capacity" in body else "value"
    return _quantity(body, _ENERGY, "kwh", key)


def _charge_state(body: Json) -> ChargeState | None:
    value = body.get("value")
    if value is None:
        return None
    try:
        return ChargeState(value.lower())
    except (AttributeError, ValueError):
        raise _Unfit("unknown charging status") from None


def _charge_limit(body: Json) -> float | None:
    """The limit in force; where none is named so, the one that holds everywhere."""
    active = body.get("activeLimit")
    if isinstance(active, dict):
        active = active.get("limit")
    if active is not None:
        return _quantity({**body, "value": active}, _PERCENT, "percent")
    limits = body.get("values")
    for limit in limits if isinstance(limits, list) else ():
        if isinstance(limit, dict) and word(limit.get("type")) == "GLOBAL":
            return _quantity({"unit": body.get("unit"), "value": limit.get("limit")}, _PERCENT, "percent")
    return None


def _percent(body: Json) -> float | None:
    return _quantity(body, _PERCENT, "percent")


SIGNALS: Final[Mapping[str, tuple[Signal, Callable[[Json], Value | None]]]] = {
    "tractionbattery-stateofcharge": (Signal.SOC, _percent),
    "tractionbattery-range": (Signal.RANGE, _range),
    "tractionbattery-nominalcapacity": (Signal.CAPACITY, _capacity),
    "charge-detailedchargingstatus": (Signal.CHARGE_STATE, _charge_state),
    "charge-ischarging": (Signal.CHARGING, _flag),
    "charge-ischargingcableconnected": (Signal.PLUGGED_IN, _flag),
    "charge-chargelimits": (Signal.CHARGE_LIMIT, _charge_limit),
    "charge-wattage": (Signal.CHARGE_POWER, lambda body: _quantity(body, _POWER, "w")),
    "charge-timetocomplete": (Signal.TIME_TO_FULL, lambda body: _quantity(body, _SPAN, "min")),
    "odometer-traveleddistance": (Signal.ODOMETER, lambda body: _quantity(body, _LENGTH, "km")),
}
"""The signals of a battery daemon, of about 93. Codes, bodies and units: Smartcar's signal reference and
the webhooks recorded by github.com/wbyoung/smartcar (``tests/fixtures/webhooks``)."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a JSON:API list."""

    resources: tuple[Any, ...]
    next_link: str | None


def decode(body: bytes, where: str) -> Json:
    """The JSON object in ``body``. Raises Unreadable with an excerpt for the log."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        kind = "HTML" if body.lstrip()[:1] == b"<" else "no valid JSON"
        raise Unreadable("NOT_JSON", f"{where} answered {kind}", excerpt=excerpt_of(body)) from None
    if not isinstance(found, dict):
        raise Unreadable("WRONG_SHAPE", f"{where} answered JSON of another shape", excerpt=excerpt_of(body))
    return found


def parse_page(body: bytes, where: str) -> Page:
    """A page of ``data``. Raises Unreadable when there is no such list."""
    found = decode(body, where)
    data = found.get("data")
    if not isinstance(data, list):
        raise Unreadable("WRONG_SHAPE", f"{where} answered without a list of data", excerpt=excerpt_of(body))
    links = found.get("links")
    following = links.get("next") if isinstance(links, dict) else None
    return Page(tuple(data), following if isinstance(following, str) and following else None)


_UUID: Final = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def excerpt_of(body: bytes) -> str:
    """The beginning of an answer that cannot be read, without ids: those of users are personal."""
    return _UUID.sub(b"(id)", body)[:2000].decode("utf-8", "replace")


def dig(raw: object, *keys: str) -> Any:
    """What lies below these keys; None as soon as one of them is missing."""
    for key in keys:
        if not isinstance(raw, dict):
            return None
        raw = raw.get(key)
    return raw


def observe(resources: tuple[Any, ...], fetched_at: datetime, origin: Origin = Origin.POLL) -> Observation:
    """What the signals of one answer say.

    Raises the :class:`SourceError` that fits when they say nothing at all but why: then it is the car, or
    the consent, and not a single signal, that has the trouble.
    """
    measurements: list[Measurement] = []
    rejected: list[Rejected] = []
    problems: list[SignalProblem] = []
    errors: dict[Signal, SourceError] = {}
    for resource in resources:
        code = dig(resource, "attributes", "code") or dig(resource, "code") or dig(resource, "id")
        known = SIGNALS.get(code.lower()) if isinstance(code, str) else None
        if known is None:
            continue
        signal, parse = known
        attributes = dig(resource, "attributes")
        attributes = attributes if isinstance(attributes, dict) else resource
        status = word(dig(attributes, "status", "value") or dig(attributes, "status"))
        if status == "ERROR":
            problem = dig(attributes, "status", "error")
            errors[signal] = error_for(fault_of(problem), status=None)
            told = errors[signal]
            if not told.code.startswith("VEHICLE_STATE:"):  # a car that does not charge has no power
                problems.append(SignalProblem(signal, told.code, isinstance(told, NotCapable)))
            continue
        body = attributes.get("body")
        if status == "UNAVAILABLE" or body is None:
            continue
        measured_at = parse_instant(dig(resource, "meta", "oemUpdatedAt"))
        try:
            value = parse(body) if isinstance(body, dict) else _refuse("the body is no object")
        except _Unfit as unfit:
            rejected.append(Rejected(signal, _shown(body), str(unfit), measured_at, fetched_at))
            continue
        if value is not None:
            measurements.append(Measurement(signal, value, measured_at, fetched_at, origin))
    if not measurements and not rejected:
        raise _silence(errors)
    return Observation(
        fetched_at=fetched_at,
        origin=origin,
        measurements=tuple(measurements),
        rejected=tuple(rejected),
        problems=tuple(problems),
    )


def _refuse(reason: str) -> Value | None:
    raise _Unfit(reason)


def _silence(errors: Mapping[Signal, SourceError]) -> SourceError:
    """No signal has a value. The error of the state of charge speaks for the car.

    That of another signal does too, unless it would stop the car for good: it may be that signal's alone.
    """
    if Signal.SOC in errors:
        return errors[Signal.SOC]
    for error in errors.values():
        if not isinstance(error, ConsentLost | NotCapable):
            return error
    return NothingYet("NO_SIGNALS", "the car has sent Smartcar nothing yet, or is not subscribed there")


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as Smartcar words it."""

    type: str
    code: str | None
    resolution: str | None

    @property
    def name(self) -> str:
        return f"{self.type}:{self.code}" if self.code else self.type


def fault_of(raw: object) -> Fault | None:
    """An error object of any version; None if it is none."""
    kind, code = word(dig(raw, "type")), word(dig(raw, "code"))
    if kind is None:
        return None
    # v3 gives an object; older answers a bare string or null.
    resolution = dig(raw, "resolution", "type") or dig(raw, "resolution")
    return Fault(kind[:48], code[:48] if code else None, word(resolution))


def parse_fault(body: bytes) -> Fault | None:
    """The first error of a v3 body (``errors[]``), or a v2-style one. None if the body holds none."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    errors = dig(found, "errors")
    if isinstance(errors, list) and errors:
        return fault_of(errors[0])
    return fault_of(found)


def parse_retry_after(raw: str | None) -> timedelta | None:
    """``retry-after`` in seconds, as Smartcar documents it; at most a day is believed."""
    try:
        seconds = float(raw) if raw is not None else None
    except ValueError:
        return None
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    return timedelta(seconds=min(seconds, 86400.0))


_ACCOUNT_WORDS: Final = {
    "VIRTUAL_KEY_REQUIRED": "the owner must add Smartcar's virtual key to the car first",
    "ACCOUNT_ISSUE": "the owner's account with the manufacturer needs attention (new terms, a lock)",
    "NO_VEHICLES": "the owner's account with the manufacturer holds no vehicle",
    "SUBSCRIPTION": "the manufacturer's connected service is not active, or the car sent nothing for a month",
    "VEHICLE_MISSING": "the car is no longer in the owner's account with the manufacturer",
}
_STATE_WORDS: Final = {
    "ASLEEP": "the car is in deep sleep; it reports again after it was driven",
    "UNREACHABLE": "the car is out of reach (no network where it stands)",
    "REMOTE_ACCESS_DISABLED": "remote access is switched off in the car",
    "VEHICLE_OFFLINE_FOR_SERVICE": "the car is in service",
    "LOW_BATTERY": "the car is saving its battery",
}


def error_for(
    fault: Fault | None, *, status: int | None, retry_after: timedelta | None = None
) -> SourceError:
    """Smartcar's error table, as what to do about it; told to wait, whatever the error, we wait.

    ``fault`` None: the body said nothing that we know, so only ``status`` speaks; and a bare 403 of some
    gateway is no lost consent.
    """
    error = _by_status(status) if fault is None else _by_fault(fault)
    error.retry_after = retry_after
    return error


def _by_fault(fault: Fault) -> SourceError:
    match fault.type, fault.code:
        case "RATE_LIMIT", "SMARTCAR_API":
            return ApplicationRateLimited(fault.name, "the application's requests are used up for now")
        case "RATE_LIMIT", _:
            return RateLimited(fault.name, "too many requests for this car")
        case "UPSTREAM", "RATE_LIMIT":
            return RateLimited(fault.name, "the manufacturer limits requests for this car")
        case "BILLING", _:
            return BudgetSpent(fault.name, "Smartcar's plan allows no further requests in this period")
        case ("PERMISSION", _) | (_, "PERMISSION_DENIED"):
            return ConsentLost(fault.name, "the owner's consent no longer covers this")
        case "CONNECTED_SERVICES_ACCOUNT", "AUTHENTICATION_FAILED":
            return ConsentLost(fault.name, "the manufacturer no longer accepts the owner's sign-in")
        case "CONNECTED_SERVICES_ACCOUNT", "PERMISSION":
            return ConsentLost(fault.name, "the owner withdrew the consent in the manufacturer's portal")
        case "CONNECTED_SERVICES_ACCOUNT", code:
            detail = _ACCOUNT_WORDS.get(
                code or "", "the owner's account with the manufacturer needs attention"
            )
            return OwnerMustAct(fault.name, detail)
        case "VEHICLE_STATE", code:
            return Asleep(
                fault.name, _STATE_WORDS.get(code or "", "the car cannot answer in its present state")
            )
        case "RESOURCE_NOT_FOUND", _:
            return NothingYet(
                fault.name, "Smartcar has no data of this car (not subscribed, or none came yet)"
            )
        case "COMPATIBILITY", _:
            return NotCapable(fault.name, "this car, make or platform cannot deliver this")
        case "AUTHENTICATION", "ACCESS_DENIED":
            if fault.resolution == "REAUTHENTICATE":
                return ConsentLost(fault.name, "the owner's consent no longer covers this")
            return PlanRefused(
                fault.name, "the application may not read this: see its plan and vehicle access"
            )
        case "AUTHENTICATION", _:
            return ApplicationRefused(fault.name, "Smartcar does not accept the application's access token")
        case "VALIDATION", _:
            return Unreadable(fault.name, "Smartcar refused the request as malformed")
        case _:
            return Unreachable(fault.name, "Smartcar or the manufacturer's cloud failed")


def _by_status(status: int | None) -> SourceError:
    match status:
        case 401:
            return ApplicationRefused("HTTP_401", "Smartcar does not accept the application's access token")
        case 429:
            return ApplicationRateLimited("HTTP_429", "too many requests")
        case 430:
            return BudgetSpent("HTTP_430", "Smartcar's plan allows no further requests in this period")
        case None:
            return Unreachable("UNKNOWN", "Smartcar reports an error without saying which")
        case _:
            return Unreachable(f"HTTP_{status}", f"Smartcar or a gateway before it answered {status}")


@dataclass(frozen=True, slots=True)
class AccessToken:
    value: str
    expires_at: datetime
    renew_at: datetime
    """Ask for the next one from here on, so that no request ever meets an expired one."""

    def __repr__(self) -> str:
        return f"AccessToken(***, expires_at={self.expires_at.isoformat()})"


def parse_token(body: bytes, asked_at: datetime) -> AccessToken:
    """The answer of the token endpoint. Raises Unreadable, whose excerpt never holds the token."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        found = None
    value = dig(found, "access_token")
    if not isinstance(value, str) or not value or not value.isascii() or not value.isprintable():
        raise Unreadable("NO_TOKEN", "the token endpoint answered without an access token")
    try:
        seconds = _number(dig(found, "expires_in"))
    except _Unfit:
        seconds = None
    lifetime = timedelta(seconds=min(max(seconds if seconds is not None else 3600.0, 1.0), 86400.0))
    return AccessToken(value, asked_at + lifetime, asked_at + lifetime * 0.9)


def parse_consents(resources: tuple[Any, ...], application: str) -> Iterator[Consent]:
    """Connections, as consents. Raises Unreadable at the first that cannot be read.

    A list that is not understood as a whole must never make a car look withdrawn.
    """
    for resource in resources:
        attributes = dig(resource, "attributes")
        vehicle = dig(attributes, "vehicle")
        connection = dig(resource, "id")
        vehicle_ref = dig(resource, "relationships", "vehicle", "data", "id") or dig(vehicle, "id")
        user = dig(resource, "relationships", "user", "data", "id") or dig(attributes, "user", "id")
        if not all(isinstance(ref, str) and ref for ref in (connection, vehicle_ref, user)):
            raise Unreadable("WRONG_SHAPE", "the list of connections holds one that names no vehicle or user")
        make, model, year = (dig(vehicle, key) for key in ("make", "model", "year"))
        powertrain, granted = dig(vehicle, "powertrainType"), dig(attributes, "permissions")
        permissions = granted if isinstance(granted, list) else ()
        yield Consent(
            application=application,
            connection_id=connection,
            vehicle_ref=vehicle_ref,
            user_ref=user,
            make=make.upper()[:64] if isinstance(make, str) and make.strip() else "UNKNOWN",
            model=model[:128] if isinstance(model, str) and model.strip() else None,
            year=year
            if isinstance(year, int) and not isinstance(year, bool) and 1990 < year < 2100
            else None,
            powertrain=powertrain[:32] if isinstance(powertrain, str) else None,
            permissions=frozenset(p for p in permissions if isinstance(p, str)),
        )

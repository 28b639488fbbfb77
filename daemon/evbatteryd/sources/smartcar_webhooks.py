"""Smartcar's webhooks, read: pure functions from what was posted to deliveries that are known to be genuine.

Shapes and traps, each with its source, are listed in ``docs/smartcar.md``. Nothing of a delivery is looked at
before its signature is known to be right, except whether it is a challenge: those are not signed.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Final

import orjson

from evbatteryd.domain.errors import SourceError
from evbatteryd.domain.reading import Observation, Origin, Signal
from evbatteryd.domain.webhook import Challenge, Delivery, Event, NotTaken, ToldError
from evbatteryd.sources.smartcar_answers import SIGNALS, Fault, Json, dig, error_for, fault_of, observe, word

LONGEST_ID: Final = 128
"""Characters. Smartcar's ids are UUIDs."""
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9._~+/=:-]{1,256}")
"""What we sign for whoever asks. None of it is a JSON object, see :func:`_answer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookKey:
    """What deliveries of one application are signed with."""

    application: str
    """The name of the ``[smartcar.NAME]`` table."""
    token: str = field(repr=False)
    """The application management token."""
    webhook_id: str | None
    simulated: bool
    """The application is in mode "simulated": deliveries in mode TEST are its ordinary ones."""


def read_delivery(
    body: bytes,
    signature: str | None,
    keys: Sequence[WebhookKey],
    received_at: datetime,
    *,
    application: str | None = None,
) -> tuple[Delivery, ...] | Challenge:
    """What was posted: one delivery per vehicle it tells of, or the answer to a challenge.

    ``signature`` is the header ``SC-Signature``, ``application`` the name in the address it was posted to, if
    it holds one. Raises :class:`NotTaken` and nothing else, whatever the bytes are.
    """
    keys = _keys_for(application, keys)
    if signature is None or not signature.strip():
        return _answer(_unsigned_challenge(body), keys)
    key = _signer(body, signature, keys)
    document = _decode(body)
    if document is None:
        raise NotTaken("unreadable", 400, "the delivery is no JSON object")
    if _is_challenge(document):
        return _answer(document, (key,))
    return _read(document, _Envelope(key, received_at, body, _webhook_id(document)))


# --- whose it is --------------------------------------------------------------------------------------------


def _keys_for(application: str | None, keys: Sequence[WebhookKey]) -> Sequence[WebhookKey]:
    if not keys:
        raise NotTaken("not_configured", 404, "no application has a management_token, so none has webhooks")
    if application is None:
        return keys
    named = [key for key in keys if key.application == application]
    if not named:
        raise NotTaken(
            "unknown_application", 404, "no application of this name has a management_token for webhooks"
        )
    return named


def _hmac(key: WebhookKey, message: bytes) -> str:
    return hmac.new(key.token.encode(), message, sha256).hexdigest()


def _signer(body: bytes, signature: str, keys: Sequence[WebhookKey]) -> WebhookKey:
    """The key that fits. All are tried, so that the time it takes does not tell which one does."""
    given = signature.strip().encode("ascii", "replace").lower()
    fitting = [key for key in keys if hmac.compare_digest(_hmac(key, body).encode(), given)]
    if not fitting:
        raise NotTaken("wrong_signature", 401, "the signature does not fit any management_token")
    return fitting[0]


def _decode(body: bytes) -> Json | None:
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


# --- challenges ---------------------------------------------------------------------------------------------


def _is_challenge(document: Json) -> bool:
    return "VERIFY" in (word(document.get("eventType")), word(document.get("eventName")))


def _unsigned_challenge(body: bytes) -> Json:
    document = _decode(body)
    if document is None or not _is_challenge(document):
        raise NotTaken("unsigned", 401, "the delivery bears no signature")
    return document


def _answer(document: Json, keys: Sequence[WebhookKey]) -> Challenge:
    # The answer to a challenge is made just like the signature of a delivery, and anybody may ask for one:
    # who asks for that of a forged delivery would have its signature. So only what can never be a delivery is
    # answered: random text. Deliveries are JSON objects, and there is no brace in it.
    challenge = dig(document, "data", "challenge") or dig(document, "payload", "challenge")
    if not isinstance(challenge, str) or _CHALLENGE.fullmatch(challenge) is None:
        raise NotTaken("bad_challenge", 400, "the challenge is no text of the kind that Smartcar sends")
    return Challenge(_hmac(_asked(document, keys), challenge.encode()))


def _asked(document: Json, keys: Sequence[WebhookKey]) -> WebhookKey:
    """Whom a challenge is for. It is not signed, so nothing but its webhook says so."""
    if len(keys) == 1:
        return keys[0]
    webhook_id = _webhook_id(document)
    named = [key for key in keys if key.webhook_id is not None and key.webhook_id == webhook_id]
    if len(named) == 1:
        return named[0]
    raise NotTaken(
        "ambiguous",
        409,
        "several applications have webhooks: name the application in the address,"
        " /webhooks/smartcar/NAME, or set its webhook_id",
    )


def _webhook_id(document: Json) -> str | None:
    """Whose delivery or challenge it says it is: version 2.0 has it at the top."""
    for raw in (dig(document, "meta", "webhookId"), document.get("webhookId")):
        if isinstance(raw, str) and raw:
            return raw[:LONGEST_ID]
    return None


# --- deliveries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Envelope:
    """What all deliveries of one body have in common."""

    key: WebhookKey
    received_at: datetime
    body: bytes
    webhook_id: str | None

    def delivery(
        self,
        event: Event,
        event_id: object,
        vehicle_ref: str,
        mode: object,
        signals: Sequence[Any] = (),
        errors: tuple[ToldError, ...] = (),
    ) -> Delivery:
        return Delivery(
            application=self.key.application,
            event=event,
            event_id=self._id(event_id),
            vehicle_ref=vehicle_ref[:LONGEST_ID],
            received_at=self.received_at,
            webhook_id=self.webhook_id,
            test=word(mode) == "TEST" and not self.key.simulated,
            observation=self._observe(signals),
            errors=errors,
        )

    def _id(self, raw: object) -> str:
        """Missing: that of the body, which is the same as long as Smartcar repeats it as it was."""
        if not isinstance(raw, str) or not raw:
            return f"body:{sha256(self.body).hexdigest()}"
        return raw if len(raw) <= LONGEST_ID else f"long:{sha256(raw.encode()).hexdigest()}"

    def _observe(self, signals: Sequence[Any]) -> Observation | None:
        try:
            return observe(tuple(signals), self.received_at, Origin.WEBHOOK)
        except SourceError:
            return None  # why a signal has no value is told in a delivery of its own


def _read(document: Json, envelope: _Envelope) -> tuple[Delivery, ...]:
    if isinstance(document.get("eventType"), str) and isinstance(document.get("data"), dict):
        if _major(dig(document, "meta", "version")) not in (None, "4"):
            raise _unknown_version()
        return (_read_event(document, envelope),)
    if isinstance(document.get("eventName"), str) and isinstance(document.get("payload"), dict):
        return _read_v2(document, envelope)
    if _major(dig(document, "meta", "version") or document.get("version")) not in (None, "2", "4"):
        raise _unknown_version()
    raise _unknown("the delivery is of no known kind")


def _major(version: object) -> str | None:
    """The part before the point, as text; None if no version is given, empty if it is none."""
    if version is None:
        return None
    return str(version).partition(".")[0] if isinstance(version, str | int | float) else ""


def _unknown(words: str) -> NotTaken:
    # It is genuine: anything but a 2xx would have it sent again, three times.
    return NotTaken("unknown_event", 200, words)


def _unknown_version() -> NotTaken:
    # Genuine as well.
    return NotTaken("unknown_version", 200, "the delivery is of a version that is not known here")


def _read_event(document: Json, envelope: _Envelope) -> Delivery:
    """Versions 4.x, and what came before them in the same shape without naming its version."""
    data = document["data"]
    vehicle_ref = _vehicle_named(dig(data, "vehicle", "id") or document.get("vehicleId"))
    event_id, mode = document.get("eventId"), dig(document, "meta", "mode")
    match word(document["eventType"]):
        case "VEHICLE_STATE":
            signals = _listed(data.get("signals"))
            return envelope.delivery(Event.STATE, event_id, vehicle_ref, mode, signals)
        case "VEHICLE_ERROR":
            errors = tuple(_told_errors(_listed(data.get("errors"))))
            return envelope.delivery(Event.ERROR, event_id, vehicle_ref, mode, errors=errors)
        case _:
            return envelope.delivery(Event.OTHER, event_id, vehicle_ref, mode)


def _vehicle_named(raw: object) -> str:
    if not isinstance(raw, str):
        raise _unknown("the delivery names no vehicle")
    return raw


def _listed(raw: object) -> Sequence[Any]:
    return raw if isinstance(raw, list) else ()


def _told_errors(errors: Iterable[object]) -> Iterator[ToldError]:
    """Those of the vehicle and of signals that we read; the trouble of other signals is none of ours.

    Smartcar says REAUTHENTICATE for the VehicleUserAccount signals of cars whose consent is as good as ever:
    github.com/wbyoung/smartcar, ``FAQ.md``.
    """
    for error in errors:
        fault = _fault_named(error) if isinstance(error, str) else fault_of(error)
        if fault is None:
            continue
        named = dig(error, "signals")
        signals = _signals_named(named if isinstance(named, list) else [named]) if named else None
        if signals is None or signals:
            resolved = word(dig(error, "state")) == "RESOLVED"
            yield ToldError(error_for(fault, status=None), resolved, signals)


def _fault_named(name: str) -> Fault | None:
    kind, _, code = name.partition(":")
    return fault_of({"type": kind, "code": code or None})


def _signals_named(named: Iterable[object]) -> frozenset[Signal]:
    """Of codes, of names as ``Charge.IsCharging``, and of objects that hold either."""
    known = (SIGNALS.get(_code_named(one)) for one in named)
    return frozenset(found[0] for found in known if found is not None)


def _code_named(one: object) -> str:
    match one:
        case str(name) | {"code": str(name)}:
            return name.replace(".", "-").lower()
        case {"group": str(group), "name": str(name)}:
            return f"{group}-{name}".lower()
        case _:
            return ""


# --- version 2.0 --------------------------------------------------------------------------------------------

_CHARGING: Final = {"CHARGING_STARTED": True, "CHARGING_STOPPED": False, "CHARGING_COMPLETED": False}


def _read_v2(document: Json, envelope: _Envelope) -> tuple[Delivery, ...]:
    """Webhooks of applications from before August 2025: scheduled, dynamic, and of events."""
    payload, mode = document["payload"], document.get("mode")
    match word(document["eventName"]):
        case "SCHEDULE" | "SCHEDULED" | "DYNAMIC":
            return tuple(_read_vehicles_v2(_listed(payload.get("vehicles")), mode, envelope))
        case "EVENTBASED":
            signals = _signals_of_event_v2(payload)
        case _:
            signals = ()
    vehicle_ref = _vehicle_named(payload.get("vehicleId"))
    event = Event.STATE if signals else Event.OTHER
    return (envelope.delivery(event, payload.get("eventId"), vehicle_ref, mode, signals),)


def _read_vehicles_v2(vehicles: Sequence[Any], mode: object, envelope: _Envelope) -> Iterator[Delivery]:
    named = [vehicle for vehicle in vehicles if isinstance(dig(vehicle, "vehicleId"), str)]
    if not named:
        raise _unknown("the delivery names no vehicle")
    whole = f"body:{sha256(envelope.body).hexdigest()}"
    for number, vehicle in enumerate(named):
        signals = [item for answer in _listed(vehicle.get("data")) for item in _signals_of_answer_v2(answer)]
        # Each is a delivery of its own, and must not look like a repetition of another one of this body.
        yield envelope.delivery(Event.STATE, f"{whole}:{number}", vehicle["vehicleId"], mode, signals)


def _signals_of_event_v2(payload: Json) -> Sequence[Json]:
    charging = _CHARGING.get(word(payload.get("eventType")) or "")
    if charging is None:
        return ()
    times = {"oemUpdatedAt": payload.get("eventTime")}
    return [{"code": "charge-ischarging", "body": {"value": charging}, "meta": times}]


def _signals_of_answer_v2(answer: object) -> Iterator[Json]:
    """One of a batch, as the signals that version 4.0 would have sent."""
    path, body = dig(answer, "path"), dig(answer, "body")
    parse = _PATHS_V2.get("/" + path.strip("/").lower()) if isinstance(path, str) else None
    if parse is None or not isinstance(body, dict) or dig(answer, "code") not in (200, None):
        return
    headers = dig(answer, "headers")
    headers = {key.lower(): value for key, value in headers.items()} if isinstance(headers, dict) else {}
    length = "miles" if word(headers.get("sc-unit-system")) == "IMPERIAL" else "km"
    for code, translated in parse(body, length):
        yield {"code": code, "body": translated, "meta": {"oemUpdatedAt": headers.get("sc-data-age")}}


Translated = Iterator[tuple[str, Json]]
"""Codes of signals, and their bodies."""


def _percent(share: Any) -> object:
    """Version 2.0 has shares of 1; what is no number is left to the parser of the signal to refuse."""
    try:
        return share if isinstance(share, bool) else round(float(share) * 100, 6)
    except (TypeError, ValueError):
        return share


def _battery_v2(body: Json, length: str) -> Translated:
    share = _percent(body.get("percentRemaining"))
    yield "tractionbattery-stateofcharge", {"value": share, "unit": "percent"}
    yield "tractionbattery-range", {"value": body.get("range"), "unit": length}


def _capacity_v2(body: Json, _: str) -> Translated:
    capacity = body.get("capacity")
    nominal = capacity.get("nominal") if isinstance(capacity, dict) else capacity
    yield "tractionbattery-nominalcapacity", {"capacity": nominal, "unit": "kwh"}


def _charge_v2(body: Json, _: str) -> Translated:
    yield "charge-ischargingcableconnected", {"value": body.get("isPluggedIn")}
    yield "charge-detailedchargingstatus", {"value": body.get("state")}


def _charge_limit_v2(body: Json, _: str) -> Translated:
    yield "charge-chargelimits", {"activeLimit": _percent(body.get("limit")), "unit": "percent"}


def _odometer_v2(body: Json, length: str) -> Translated:
    yield "odometer-traveleddistance", {"value": body.get("distance"), "unit": length}


_PATHS_V2: Final[Mapping[str, Callable[[Json, str], Translated]]] = {
    "/battery": _battery_v2,
    "/battery/capacity": _capacity_v2,
    "/battery/nominal_capacity": _capacity_v2,
    "/charge": _charge_v2,
    "/charge/limit": _charge_limit_v2,
    "/odometer": _odometer_v2,
}

"""What is said on MQTT: topics and payloads. Pure.

Unknown is ``null`` in the state's JSON and silence on a scalar topic: an empty payload would delete what is
retained there, and that is what withdrawn cars, former slugs and estimates that hold no more get. Every time
is the one we were told, in RFC 3339, UTC.

What is estimated has fields of its own, which are known all together or not at all; no measured field, and
none of its times, depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import orjson

from evbatteryd.domain.commanding import CommandKind
from evbatteryd.domain.fleet import Trouble
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.policy.outlook import Estimate
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Signal
from evbatteryd.sinks.discovery import Device, discovery_json, discovery_topic

SCHEMA: Final = 1
"""Version of the state's JSON. Fields may be added to it; none is removed or changes its meaning."""

Scalar = float | int | bool | str | datetime | None

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NEARLY: Final = 1e-6
"""What arithmetic may add to a tenth of a percent."""
_ENDING: Final = frozenset({Signal.CHARGE_POWER.value, Signal.TIME_TO_FULL.value})
"""Fields of a charge: retained from one that has ended, they would lie."""
_CHARGE: Final = (Signal.CHARGING, Signal.CHARGE_STATE, Signal.PLUGGED_IN)
"""Signals that tell of each other: the cable of charging, charging of the cable."""

ESTIMATED: Final = ("soc_estimate", "soc_estimate_low", "soc_estimate_high", "estimate_until")
FIELDS: Final = (*(signal.value for signal in Signal), "measured_at", "fetched_at", *ESTIMATED)
"""Fields that have a scalar topic of their own."""
STATE: Final = "state"
AVAILABILITY: Final = "availability"
POLLING: Final = "polling"
DISCOVERY: Final = "discovery"
"""The leaf that stands for a car's topic below another prefix than ours."""
MEASURED: Final = frozenset(FIELDS) - frozenset(ESTIMATED)
BRIDGE: Final = "bridge"
BRIDGE_LEAVES: Final = frozenset({"state", "info", "mark"})


class Message(NamedTuple):
    """One message. All of ours are sent with QoS 1."""

    topic: str
    payload: bytes
    expiry: int | None = None
    """Real seconds that the broker keeps it; None: for ever. Needs MQTT 5."""
    json: bool = False
    retain: bool = True
    slug: str = ""
    """Of the car that it is about; empty: none."""
    part: str = ""
    """What it stands or falls with, if that is neither its car nor, without one, its topic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Polling:
    """What is said of when and how a car is asked, and how old its state of charge is."""

    measured_at: datetime | None
    fetched_at: datetime | None
    next_poll: datetime | None
    reason: str
    outcome: str
    """Label of the last poll's outcome; empty before the first."""
    problem: Trouble | None
    calls_left: int | None
    """Of the plan's present period; the three of them None if the car's application is not configured."""
    calls: int | None
    renews_at: datetime | None
    commands: frozenset[CommandKind]
    """What it may be commanded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What is said of one car at one moment."""

    slug: str
    state: BatteryState
    reading_id: str
    origin: Origin
    freshness: Freshness
    replayed: bool
    """Fetched before the present connection to the broker stood."""
    superseded: bool
    """There is a newer reading of the car. It is told to whoever listens, and kept for nobody."""
    published_at: datetime
    fresh_until: datetime | None
    """When the broker drops it because it is no longer fresh; None: it does not."""
    expiry: int
    estimate: Estimate | None
    """Of the car as it is now, with a band that holds until it is told anew; None: nothing is claimed, or
    this is not its newest reading."""
    estimate_expiry: int
    """Real seconds that the broker keeps the estimate's scalars."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Every message there is, below one base topic; and below the prefix of Home Assistant's discovery."""

    base: str
    prefix: str

    @property
    def place(self) -> str:
        """Both of them in one text: topics hold no line break."""
        return f"{self.base}\n{self.prefix}"

    @classmethod
    def at(cls, place: str) -> Topics:
        """Those of a :attr:`place`."""
        base, _, prefix = place.partition("\n")
        return cls(base, prefix)

    @property
    def bridge(self) -> str:
        """What the topics begin with that are about us, and no car."""
        return f"{self.base}/{BRIDGE}/"

    @property
    def bridge_state(self) -> str:
        return f"{self.bridge}state"

    @property
    def mark_topic(self) -> str:
        return f"{self.bridge}mark"

    def online(self) -> Message:
        return Message(self.bridge_state, b"online")

    def offline(self) -> Message:
        """Said at a clean end, and by the broker as our last will."""
        return Message(self.bridge_state, b"offline")

    def mark(self, mark: str) -> Message:
        """What a broker that forgot nothing shows us again."""
        return Message(self.mark_topic, mark.encode())

    def info(self, *, version: str, vehicles: int, started_at: datetime) -> Message:
        body = {"version": version, "vehicles": vehicles, "started_at": started_at}
        return Message(f"{self.bridge}info", _json(body), json=True)

    def topic(self, slug: str, leaf: str) -> str:
        return (
            discovery_topic(self.prefix, self.base, slug)
            if leaf == DISCOVERY
            else f"{self.base}/{slug}/{leaf}"
        )

    def availability(self, slug: str, freshness: Freshness, expiry: int | None = None) -> Message:
        return Message(self.topic(slug, AVAILABILITY), freshness.encode(), expiry, slug=slug)

    def polling(self, slug: str, polling: Polling, published_at: datetime) -> Message:
        return Message(self.topic(slug, POLLING), polling_json(polling, published_at), json=True, slug=slug)

    def discovery(self, device: Device, *, version: str, json_state: bool) -> Message:
        payload = discovery_json(device, base=self.base, version=version, json_state=json_state)
        topic = self.topic(device.slug, DISCOVERY)
        return Message(topic, payload, json=True, slug=device.slug, part=DISCOVERY)

    def state(self, telling: Telling) -> Message:
        """The whole state in one message, so that its values and times belong together."""
        return Message(
            self.topic(telling.slug, STATE),
            state_json(telling),
            None if telling.superseded else telling.expiry,
            json=True,
            retain=not telling.superseded,
            slug=telling.slug,
        )

    def scalars(self, telling: Telling) -> Iterator[Message]:
        """One message for each measured field, and an empty one for what ended with the charge."""
        for field, value in _scalars(telling.state).items():
            if value is None and field in _ENDING and field in telling.state.signals:
                yield Message(self.topic(telling.slug, field), b"", slug=telling.slug)
            elif value is not None:
                yield Message(
                    self.topic(telling.slug, field), _text(value), telling.expiry, slug=telling.slug
                )

    def estimated(self, telling: Telling) -> Iterator[Message]:
        """One message for each field of the estimate, if there is one."""
        for field, value in _estimated(telling.estimate).items():
            if value is not None:
                yield Message(
                    self.topic(telling.slug, field), _text(value), telling.estimate_expiry, slug=telling.slug
                )

    def emptied(self, slug: str, leaves: Iterable[str], part: str = "") -> Iterator[Message]:
        """Delete what is retained there."""
        for leaf in sorted(leaves):
            stands_with = part or (DISCOVERY if leaf == DISCOVERY else "")
            yield Message(self.topic(slug, leaf), b"", slug=slug, part=stands_with)


def polling_json(polling: Polling, published_at: datetime) -> bytes:
    """The payload of ``BASE/VEHICLE/polling``."""
    problem = polling.problem
    return _json(
        {
            "measured_at": polling.measured_at,
            "fetched_at": polling.fetched_at,
            "next_poll": polling.next_poll,
            "reason": polling.reason,
            "outcome": polling.outcome or None,
            "problem": None
            if problem is None
            else {
                "outcome": problem.outcome,
                "code": problem.code,
                "detail": problem.detail,
                "since": problem.since,
            },
            "calls_left": polling.calls_left,
            "calls": polling.calls,
            "renews_at": polling.renews_at,
            "commands": sorted(polling.commands),
            "published_at": published_at,
        }
    )


def state_json(telling: Telling) -> bytes:
    """The payload of ``BASE/VEHICLE/state``.

    ``measured_at`` and ``fetched_at`` are those of the state of charge; ``times`` holds those of the other
    known fields, wherever they differ.
    """
    fields = _scalars(telling.state)
    return _json(
        {
            "vehicle": telling.slug,
            **fields,
            **_estimated(telling.estimate),
            "published_at": telling.published_at,
            "source": telling.origin,
            "freshness": telling.freshness,
            "replayed": telling.replayed,
            "reading_id": telling.reading_id,
            "schema": SCHEMA,
            "times": _times(telling.state, fields),
        }
    )


def newest(state: BatteryState) -> Measurement | None:
    """The measurement that reached us last: how and when the state as a whole was last confirmed."""
    return max(state, key=lambda measurement: measurement.fetched_at, default=None)


def _scalars(state: BatteryState) -> dict[str, Scalar]:
    """Every one of :data:`FIELDS` that is measured, in that order."""
    return {
        "soc": _number(state.soc_percent),
        "range_km": _number(state.number(Signal.RANGE)),
        "capacity_kwh": _number(state.number(Signal.CAPACITY)),
        "charge_state": state.charge_state,
        "charging": state.charging,
        "plugged_in": state.plugged_in,
        "charge_limit": _number(state.number(Signal.CHARGE_LIMIT)),
        "charge_power_kw": _number(state.number(Signal.CHARGE_POWER)),
        "time_to_full_s": _number(state.number(Signal.TIME_TO_FULL)),
        "odometer_km": _number(state.number(Signal.ODOMETER)),
        "measured_at": state.measured_at,
        "fetched_at": state.fetched_at,
    }


def _estimated(estimate: Estimate | None) -> dict[str, Scalar]:
    """Every one of :data:`ESTIMATED`, in that order. A tenth of a percent is finer than any estimate.

    The band is rounded outwards.
    """
    if estimate is None:
        return dict.fromkeys(ESTIMATED)
    return {
        "soc_estimate": _number(round(estimate.soc_percent, 1)),
        "soc_estimate_low": _number(math.floor(estimate.low_percent * 10 + _NEARLY) / 10),
        "soc_estimate_high": _number(math.ceil(estimate.high_percent * 10 - _NEARLY) / 10),
        "estimate_until": estimate.until,
    }


def _times(state: BatteryState, fields: dict[str, Scalar]) -> dict[str, dict[str, str | None]]:
    """The times of fields that differ, as written, from those of the state of charge."""
    top = (state.measured_at, state.fetched_at)
    times: dict[str, dict[str, str | None]] = {}
    if all((found.measured_at, found.fetched_at) == top for found in state):
        return times
    usual = _written_times(*top)
    for signal in Signal:
        told_by = None if fields[signal] is None else _told_by(state, signal)
        if told_by is not None:
            own = _written_times(told_by.measured_at, told_by.fetched_at)
            if own != usual:
                times[signal.value] = own
    return times


def _written_times(measured_at: datetime | None, fetched_at: datetime | None) -> dict[str, str | None]:
    return {
        "measured_at": None if measured_at is None else _written(measured_at),
        "fetched_at": None if fetched_at is None else _written(fetched_at),
    }


def _told_by(state: BatteryState, signal: Signal) -> Measurement | None:
    """The newest measurement that says what the state says of ``signal``."""
    if signal not in _CHARGE:
        return state.signals.get(signal)
    value = getattr(state, signal.value)
    return max(
        (found for found in map(state.signals.get, _CHARGE) if found and _says(found, signal, value)),
        key=lambda found: (found.measured_at or _EPOCH, found.fetched_at),
        default=None,
    )


def _says(measurement: Measurement, signal: Signal, value: Scalar) -> bool:
    """Whether ``measurement`` says by itself that ``signal`` has this value."""
    if measurement.signal is Signal.PLUGGED_IN and signal is not Signal.PLUGGED_IN:
        return not measurement.value and value in (False, ChargeState.NOT_CHARGING)
    alone = BatteryState({measurement.signal: measurement})
    return bool(getattr(alone, signal.value) == value)


def _number(value: float | None) -> float | int | None:
    """At most three decimals, and none where none are needed."""
    if value is None or not math.isfinite(value):
        return None
    rounded = round(value, 3)
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def _json(value: object) -> bytes:
    return orjson.dumps(value, _written, orjson.OPT_PASSTHROUGH_DATETIME)


def _written(value: object) -> str:
    """RFC 3339 in UTC, always with milliseconds: ``2026-11-22T12:00:03.000Z``."""
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} has no place in a message")
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Scalar) -> bytes:
    """A scalar as in JSON, texts and times without their quotes."""
    return _json(value).strip(b'"')

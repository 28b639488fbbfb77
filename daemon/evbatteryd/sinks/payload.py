"""What is said on MQTT: topics and payloads. Pure.

Unknown is ``null`` in the state's JSON and silence on a scalar topic: an empty payload would delete what is
retained there, and that is what withdrawn cars, former slugs and estimates that hold no more get. Every time
is the one we were told, in RFC 3339, UTC.

What is estimated has fields of its own, which are known all together or not at all; no measured field, and
none of its times, depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, NamedTuple

import orjson

from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.policy.outlook import Estimate
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Signal

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


class Message(NamedTuple):
    """One message. All of ours are retained and sent with QoS 1."""

    topic: str
    payload: bytes
    expiry: int | None = None
    """Real seconds that the broker keeps it; None: for ever. Needs MQTT 5."""
    json: bool = False


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
    published_at: datetime
    expiry: int
    estimate: Estimate | None
    """Of the car as it is now, with a band that holds until it is told anew; None: nothing is claimed, or
    this is not its newest reading."""
    estimate_expiry: int
    """Real seconds that the broker keeps the estimate's scalars."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Every message there is, below one base topic."""

    base: str

    @property
    def bridge_state(self) -> str:
        return f"{self.base}/bridge/state"

    def online(self) -> Message:
        return Message(self.bridge_state, b"online")

    def offline(self) -> Message:
        """Said at a clean end, and by the broker as our last will."""
        return Message(self.bridge_state, b"offline")

    def info(self, *, version: str, vehicles: int, started_at: datetime) -> Message:
        body = {"version": version, "vehicles": vehicles, "started_at": started_at}
        return Message(f"{self.base}/bridge/info", _json(body), json=True)

    def availability(self, slug: str, freshness: Freshness) -> Message:
        return Message(f"{self.base}/{slug}/availability", freshness.encode())

    def state(self, telling: Telling) -> Message:
        """The whole state in one message, so that its values and times belong together."""
        return Message(f"{self.base}/{telling.slug}/state", state_json(telling), telling.expiry, json=True)

    def scalars(self, telling: Telling) -> Iterator[Message]:
        """One message for each measured field, and an empty one for what ended with the charge."""
        for field, value in _scalars(telling.state).items():
            if value is None and field in _ENDING and field in telling.state.signals:
                yield Message(f"{self.base}/{telling.slug}/{field}", b"")
            elif value is not None:
                yield Message(f"{self.base}/{telling.slug}/{field}", _text(value), telling.expiry)

    def estimated(self, telling: Telling) -> Iterator[Message]:
        """One message for each field of the estimate, if there is one."""
        for field, value in _estimated(telling.estimate).items():
            if value is not None:
                yield Message(f"{self.base}/{telling.slug}/{field}", _text(value), telling.estimate_expiry)

    def withdrawn_estimate(self, slug: str) -> Iterator[Message]:
        """Delete what is retained of an estimate that holds no more."""
        for field in ESTIMATED:
            yield Message(f"{self.base}/{slug}/{field}", b"")

    def cleared(self, slug: str) -> Iterator[Message]:
        """Delete every retained value of a car that has none. Its availability says that it is there."""
        for field in ("state", *FIELDS):
            yield Message(f"{self.base}/{slug}/{field}", b"")

    def forgotten(self, slug: str) -> Iterator[Message]:
        """Delete everything retained of a withdrawn car, or under a slug that no car has any more."""
        yield from self.cleared(slug)
        yield Message(f"{self.base}/{slug}/availability", b"")


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

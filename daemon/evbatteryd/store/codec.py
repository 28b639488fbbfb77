"""Domain objects as rows, and back.

Instants are kept in whole milliseconds since 1970: what comes out is what went in, rounded down to the
millisecond. Everything else comes out as it went in.

A battery state is a row of its own: one time of ours, one origin, one time of the car (that of the state of
charge), one column per signal. Almost always these times are those of most signals; of the others, ``times``
tells the difference in a few bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from sys import intern
from typing import Any, Final

from evbatteryd.domain.enrolment import Ending, Enrolment, EnrolmentId, Invitation, InvitationId
from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Schedule, Trouble
from evbatteryd.domain.ports import Published
from evbatteryd.domain.profile import Activity
from evbatteryd.domain.reading import BatteryState, ChargeState, Measurement, Origin, Rejected, Signal, Value
from evbatteryd.domain.vehicle import Consent

Row = Sequence[Any]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

# Codes and positions are on disk: append, never reorder.
_ORIGINS: Final = (Origin.POLL, Origin.WEBHOOK)
_CHARGE_STATES: Final = (ChargeState.CHARGING, ChargeState.NOT_CHARGING, ChargeState.FULLY_CHARGED)
_SIGNALS: Final[tuple[tuple[Signal, Callable[[Any], Value]], ...]] = (
    (Signal.SOC, float),
    (Signal.RANGE, float),
    (Signal.CAPACITY, float),
    (Signal.CHARGE_STATE, _CHARGE_STATES.__getitem__),
    (Signal.CHARGING, bool),
    (Signal.PLUGGED_IN, bool),
    (Signal.CHARGE_LIMIT, float),
    (Signal.CHARGE_POWER, float),
    (Signal.TIME_TO_FULL, float),
    (Signal.ODOMETER, float),
)
"""The columns of a state in their order, and what turns a column into a value."""

STATE_WIDTH: Final = 3 + len(_SIGNALS) + 1
"""``fetched_ms, origin, measured_ms``, the signals, ``times``."""
SCHEDULE_WIDTH: Final = 10
TROUBLE_WIDTH: Final = 4
CONSENT_WIDTH: Final = 8


def to_ms(at: datetime) -> int:
    """Whole milliseconds since 1970, rounded down."""
    return (at - _EPOCH) // _MILLISECOND


def to_ms_up(at: datetime) -> int:
    """Rounded up: no whole millisecond below it is at or after ``at``."""
    return -((_EPOCH - at) // _MILLISECOND)


def from_ms(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)


def maybe_to_ms(at: datetime | None) -> int | None:
    return None if at is None else to_ms(at)


def maybe_from_ms(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else from_ms(milliseconds)


def origin_code(origin: Origin) -> int:
    return _ORIGINS.index(origin)


def origin_of(code: int) -> Origin:
    return _ORIGINS[code]


# One signal's measured_ms, fetched_ms and code of origin.
_Times = tuple[int | None, int, int]


def encode_state(state: BatteryState, fetched_ms: int, origin: Origin) -> Row:
    """``state`` as a row whose own times are ``fetched_ms`` and those of the state of charge."""
    columns: list[Any] = []
    times: dict[int, _Times] = {}
    for position, (signal, _) in enumerate(_SIGNALS):
        found = state.signals.get(signal)
        if found is None:
            columns.append(None)
        else:
            columns.append(_column(found))
            times[position] = (
                maybe_to_ms(found.measured_at),
                to_ms(found.fetched_at),
                origin_code(found.origin),
            )
    usual: _Times = (times[0][0] if 0 in times else None, fetched_ms, origin_code(origin))
    unusual = {position: own for position, own in times.items() if own != usual}
    return (fetched_ms, usual[2], usual[0], *columns, _encode_times(unusual, usual))


def decode_state(row: Row) -> BatteryState:
    """What :func:`encode_state` was given. Instants that are equal become one object, to save memory."""
    fetched_ms, origin, measured_ms, *columns, times = row
    if fetched_ms is None:
        return BatteryState()
    usual = (maybe_from_ms(measured_ms), from_ms(fetched_ms), _ORIGINS[origin])
    own = {} if times is None else dict(_decode_times(times, (measured_ms, fetched_ms, origin)))
    instants: dict[int | None, datetime | None] = {measured_ms: usual[0], fetched_ms: usual[1], None: None}

    def instant(milliseconds: int | None) -> Any:
        if milliseconds not in instants:
            instants[milliseconds] = maybe_from_ms(milliseconds)
        return instants[milliseconds]

    signals: dict[Signal, Measurement] = {}
    for position, (signal, value) in enumerate(_SIGNALS):
        column = columns[position]
        if column is None:
            continue
        if position in own:
            measured, fetched, code = own[position]
            signals[signal] = Measurement(
                signal, value(column), instant(measured), instant(fetched), _ORIGINS[code]
            )
        else:
            signals[signal] = Measurement(signal, value(column), *usual)
    return BatteryState(signals)


def _column(measurement: Measurement) -> float | int:
    value = measurement.value
    if isinstance(value, ChargeState):
        return _CHARGE_STATES.index(value)
    if isinstance(value, bool):
        return int(value)
    if math.isnan(value):
        raise StoreError(f"{measurement.signal} is not a number: it cannot be kept")
    return float(value)


# An entry of ``times`` is one byte, the signal's position and these flags, and then as varints what the flags
# say: differences to the entry before (the row itself before the first), so that signals measured together
# cost two bytes and not ten.
_POSITION: Final = 0x0F
_UNMEASURED: Final = 0x10
_MEASURED: Final = 0x20
_FETCHED: Final = 0x40
_ORIGIN: Final = 0x80


def _encode_times(entries: dict[int, _Times], usual: _Times) -> bytes | None:
    if not entries:
        return None
    out = bytearray()
    last_measured, last_fetched, last_origin = _base(usual)
    for position, (measured, fetched, origin) in entries.items():
        head = len(out)
        out.append(position)
        if measured is None:
            out[head] |= _UNMEASURED
        elif measured != last_measured:
            out[head] |= _MEASURED
            _put(out, measured - last_measured)
            last_measured = measured
        if fetched != last_fetched:
            out[head] |= _FETCHED
            _put(out, fetched - last_fetched)
            last_fetched = fetched
        if origin != last_origin:
            out[head] |= _ORIGIN
            _put(out, origin)
            last_origin = origin
    return bytes(out)


def _decode_times(data: bytes, usual: _Times) -> Iterator[tuple[int, _Times]]:
    rest = iter(data)
    measured, fetched, origin = _base(usual)
    for head in rest:
        if head & _MEASURED:
            measured += _take(rest)
        if head & _FETCHED:
            fetched += _take(rest)
        if head & _ORIGIN:
            origin = _take(rest)
        yield head & _POSITION, (None if head & _UNMEASURED else measured, fetched, origin)


def _base(usual: _Times) -> tuple[int, int, int]:
    """What the first differences are to. Our time stands in for an unknown one of the car: it is near."""
    measured, fetched, origin = usual
    return (fetched if measured is None else measured, fetched, origin)


def _put(out: bytearray, number: int) -> None:
    """Append a signed integer, seven bits a byte, the sign in the lowest bit (zigzag)."""
    left = number << 1 if number >= 0 else (-number << 1) - 1
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    out.append(left)


def _take(rest: Iterator[int]) -> int:
    number = shift = 0
    for byte in rest:
        number |= (byte & 0x7F) << shift
        if byte <= 0x7F:
            break
        shift += 7
    return -(number + 1 >> 1) if number & 1 else number >> 1


def encode_schedule(schedule: Schedule) -> Row:
    return (
        maybe_to_ms(schedule.due),
        schedule.reason,
        maybe_to_ms(schedule.polled_at),
        maybe_to_ms(schedule.answered_at),
        schedule.outcome,
        schedule.failures,
        schedule.activity.value,
        schedule.calls_per_poll,
        maybe_to_ms(schedule.pushed_at),
        schedule.gain,
    )


def decode_schedule(row: Row) -> Schedule:
    due, reason, polled, answered, outcome, failures, activity, calls, pushed, gain = row
    return Schedule(
        due=maybe_from_ms(due),
        reason=reason,
        polled_at=maybe_from_ms(polled),
        answered_at=maybe_from_ms(answered),
        outcome=intern(outcome),
        failures=failures,
        activity=Activity(activity),
        calls_per_poll=calls,
        pushed_at=maybe_from_ms(pushed),
        gain=gain,
    )


def encode_trouble(trouble: Trouble | None) -> Row:
    if trouble is None:
        return (None,) * TROUBLE_WIDTH
    return (trouble.outcome, trouble.code, trouble.detail, to_ms(trouble.since))


def decode_trouble(row: Row) -> Trouble | None:
    outcome, code, detail, since = row
    return None if outcome is None else Trouble(outcome, code, detail, from_ms(since))


def encode_learned(learned: bytes) -> bytes | None:
    """What the policy has learnt of a vehicle; nothing yet takes no room."""
    return learned or None


def decode_learned(column: bytes | None) -> bytes:
    return column or b""


def encode_consent(consent: Consent) -> Row:
    """All but the application, which is a table of its own."""
    return (
        consent.connection_id,
        consent.vehicle_ref,
        consent.user_ref,
        consent.make,
        consent.model,
        consent.year,
        consent.powertrain,
        json.dumps(sorted(consent.permissions)),
    )


def decode_consent(application: str, row: Row) -> Consent:
    connection, vehicle, user, make, model, year, powertrain, permissions = row
    return Consent(
        application=intern(application),
        connection_id=connection,
        vehicle_ref=vehicle,
        user_ref=user,
        make=intern(make),
        model=None if model is None else intern(model),
        year=year,
        powertrain=None if powertrain is None else intern(powertrain),
        permissions=_permissions(permissions),
    )


@lru_cache(maxsize=1024)
def _permissions(text: str) -> frozenset[str]:
    """Cached: a fleet has few different sets, and a set is larger than the rest of its vehicle."""
    return frozenset(map(intern, json.loads(text)))


def encode_slugs(slugs: Sequence[str]) -> str | None:
    return json.dumps(slugs) if slugs else None


def decode_slugs(text: str | None) -> tuple[str, ...]:
    return tuple(json.loads(text)) if text else ()


def decode_invitation(row: Row) -> Invitation:
    invitation_id, name, application, created, expires, used, revoked = row
    return Invitation(
        id=InvitationId(invitation_id),
        name=name,
        application=application,
        created_at=from_ms(created),
        expires_at=from_ms(expires),
        used_at=maybe_from_ms(used),
        revoked_at=maybe_from_ms(revoked),
    )


def decode_enrolment(row: Row) -> Enrolment:
    enrolment_id, application, begun, expires, browser, invitation, invited, ended, ending, user, arrived = (
        row
    )
    return Enrolment(
        id=EnrolmentId(enrolment_id),
        application=application,
        begun_at=from_ms(begun),
        expires_at=from_ms(expires),
        browser=browser,
        invitation=None if invitation is None else InvitationId(invitation),
        invited=invited,
        ended_at=maybe_from_ms(ended),
        ending=None if ending is None else Ending(ending),
        user_ref=user,
        arrived_at=maybe_from_ms(arrived),
    )


def encode_published(published: Published) -> Row:
    return (
        published.place,
        published.slug,
        _encode_names(published.leaves),
        _encode_names(published.gone),
        published.digest,
    )


def decode_published(row: Row) -> Published:
    place, slug, leaves, gone, digest = row
    return Published(intern(place), slug, _decode_names(leaves), _decode_names(gone), digest)


def _encode_names(names: frozenset[str]) -> str:
    for name in names:
        if not name or " " in name:
            raise StoreError(f"{name!r} is no name of a topic: it cannot be kept")
    return " ".join(sorted(names))


@lru_cache(maxsize=1024)
def _decode_names(text: str) -> frozenset[str]:
    """Cached: most vehicles have the same topics."""
    return frozenset(map(intern, text.split(" "))) if text else frozenset()


def encode_rejected(rejected: Rejected) -> Row:
    return (
        rejected.signal.value,
        rejected.raw,
        rejected.reason,
        maybe_to_ms(rejected.measured_at),
        to_ms(rejected.fetched_at),
    )


def decode_rejected(row: Row) -> Rejected:
    signal, raw, reason, measured, fetched = row
    return Rejected(Signal(signal), raw, reason, maybe_from_ms(measured), from_ms(fetched))

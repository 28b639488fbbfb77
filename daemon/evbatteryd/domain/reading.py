"""Measurements, the state they add up to, and the readings that are told to the outside.

The rules of truth that hold here:

* a value keeps two times, the car's and ours; unknown is absent, never 0, -1 or the time of the poll;
* per signal, a newer measurement is never overwritten by an older one, in whatever order they arrive.
  :func:`merge` is therefore the join of a semilattice: commutative, associative, idempotent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from evbatteryd.domain.vehicle import VehicleId


class Signal(StrEnum):
    """What can be measured of a battery. The value is the name of the published field, unit last."""

    SOC = "soc"
    """Share of the usable energy left, as the OEM shows it: percent, 0 to 100."""
    RANGE = "range_km"
    CAPACITY = "capacity_kwh"
    """Nominal capacity of the pack in kWh."""
    CHARGE_STATE = "charge_state"
    CHARGING = "charging"
    PLUGGED_IN = "plugged_in"
    CHARGE_LIMIT = "charge_limit"
    """The SoC at which charging stops: percent, 0 to 100."""
    CHARGE_POWER = "charge_power_kw"
    TIME_TO_FULL = "time_to_full_s"
    ODOMETER = "odometer_km"


class ChargeState(StrEnum):
    CHARGING = "charging"
    NOT_CHARGING = "not_charging"
    FULLY_CHARGED = "fully_charged"


class Origin(StrEnum):
    """How a measurement reached us."""

    POLL = "poll"
    WEBHOOK = "webhook"


Value = float | bool | ChargeState

_OF_A_CHARGE: Final = frozenset({Signal.CHARGE_POWER, Signal.TIME_TO_FULL})

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One value of one signal."""

    signal: Signal
    value: Value
    measured_at: datetime | None
    """By the vehicle's clock, as the OEM reports it; None when the OEM does not say."""
    fetched_at: datetime
    """By ours, when the answer had arrived."""
    origin: Origin = Origin.POLL

    def _rank(self) -> tuple[bool, datetime, datetime, str, str]:
        # The last two only break ties, so that the order of arrival never decides.
        timed = self.measured_at is not None
        return (timed, self.measured_at or _EPOCH, self.fetched_at, str(self.value), self.origin)

    def supersedes(self, other: Measurement) -> bool:
        """Whether this one is to be believed rather than ``other``, a measurement of the same signal.

        A value without the car's time never supersedes one that has it: it may be of any age.
        """
        return self._rank() > other._rank()


@dataclass(frozen=True, slots=True)
class Rejected:
    """A value that cannot be, kept for whoever looks. Never part of a reading."""

    signal: Signal
    raw: str
    """The value as it came, shortened."""
    reason: str
    measured_at: datetime | None
    fetched_at: datetime


@dataclass(frozen=True, slots=True)
class SignalProblem:
    """The source answered, but not for this signal."""

    signal: Signal
    code: str
    """``TYPE:CODE`` of the source's error table."""
    permanent: bool
    """The car or the source will never have it: not worth asking again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that one answer of a source brought."""

    fetched_at: datetime
    origin: Origin = Origin.POLL
    measurements: tuple[Measurement, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    problems: tuple[SignalProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class BatteryState:
    """The newest measurement of every signal: the truth as far as we were told."""

    signals: Mapping[Signal, Measurement] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.signals.values())

    def value(self, signal: Signal) -> Value | None:
        """What is known of it. Power and time to full are of a charge, and known no longer than it lasts."""
        found = self.signals.get(signal)
        if found is None or (signal in _OF_A_CHARGE and self._ended_since(found)):
            return None
        return found.value

    def _ended_since(self, of_a_charge: Measurement) -> bool:
        if self.charging is not False or not of_a_charge.value:
            return False
        told = (self.signals.get(Signal.CHARGING), self.signals.get(Signal.CHARGE_STATE))
        return any(m is not None and _later(m, of_a_charge) for m in told)

    def number(self, signal: Signal) -> float | None:
        """The value of a signal that is a number; None for the others."""
        value = self.value(signal)
        return None if value is None or isinstance(value, bool | str) else float(value)

    @property
    def soc_percent(self) -> float | None:
        return self.number(Signal.SOC)

    @property
    def measured_at(self) -> datetime | None:
        """The car's time of the state of charge: what the age of a reading means."""
        soc = self.signals.get(Signal.SOC)
        return None if soc is None else soc.measured_at

    @property
    def fetched_at(self) -> datetime | None:
        """When the state of charge was last confirmed to us."""
        soc = self.signals.get(Signal.SOC)
        return None if soc is None else soc.fetched_at

    @property
    def charging(self) -> bool | None:
        """Charging or not, by whichever of its two signals is newer; a cable pulled since then ends it."""
        flag, detailed = self.signals.get(Signal.CHARGING), self.signals.get(Signal.CHARGE_STATE)
        if flag is not None and (detailed is None or not _later(detailed, flag)):
            newest, charging = flag, bool(flag.value)
        elif detailed is not None:
            newest, charging = detailed, detailed.value is ChargeState.CHARGING
        else:
            return None
        cable = self.signals.get(Signal.PLUGGED_IN)
        pulled = cable is not None and not cable.value and _later(cable, newest)
        return charging and not pulled

    @property
    def charge_state(self) -> ChargeState | None:
        """The detailed state, unless a newer plain "charging" contradicts it."""
        detailed, charging = self.signals.get(Signal.CHARGE_STATE), self.charging
        if detailed is not None and isinstance(detailed.value, ChargeState):
            if charging is None or (detailed.value is ChargeState.CHARGING) is charging:
                return detailed.value
        elif charging is None:
            return None
        return ChargeState.CHARGING if charging else ChargeState.NOT_CHARGING

    @property
    def plugged_in(self) -> bool | None:
        """The cable. Some brands tell only that they charge, which takes a cable."""
        told = self.signals.get(Signal.PLUGGED_IN)
        if self.charging:
            return True
        return None if told is None else bool(told.value)


def _later(one: Measurement, other: Measurement) -> bool:
    """Whether ``one``, of another signal, was told of a later moment."""
    return one._rank()[:3] > other._rank()[:3]


def merge(state: BatteryState, measurements: Iterable[Measurement]) -> tuple[BatteryState, frozenset[Signal]]:
    """The state after hearing ``measurements``, and the signals of which that was news.

    News is a value or a time of the car that was not known before. A measurement that only confirms
    what is known moves ``fetched_at`` and is no news.
    """
    heard: dict[Signal, Measurement] = {}
    for new in measurements:
        known = heard.get(new.signal) or state.signals.get(new.signal)
        if known is None or new.supersedes(known):
            heard[new.signal] = new
    if not heard:
        return state, frozenset()
    news = frozenset(signal for signal, new in heard.items() if _is_news(new, state.signals.get(signal)))
    return BatteryState({**state.signals, **heard}), news


def _is_news(new: Measurement, known: Measurement | None) -> bool:
    return known is None or (new.value, new.measured_at) != (known.value, known.measured_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A committed fact: the whole state of a car at the moment something new was learnt of it."""

    seq: int
    """Position in the journal, increasing."""
    reading_id: str
    """Stable and unique for the life of the store: what a subscriber drops repeats by."""
    vehicle_id: VehicleId
    state: BatteryState
    fetched_at: datetime
    origin: Origin

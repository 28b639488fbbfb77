"""One brand's pace, limits and quirks, as data. The figures live in ``config/brands/*.toml``."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from evbatteryd.domain.commanding import Action

UNKNOWN: Final = "unknown"
"""The brand whose profile is used for makes that have none."""


class Activity(StrEnum):
    """What a car is doing, as far as its pace is concerned."""

    DRIVING = "driving"
    CHARGING = "charging"
    PARKED = "parked"


class Quirk(StrEnum):
    """Behaviour of a brand that rules about waiting must know of."""

    DEEP_SLEEP = "deep_sleep"
    """Silent after some days without an ignition cycle (GM, Acura, Ford)."""
    GEOFENCE = "geofence"
    """Sends only near the consented address (BMW and Mini in Europe)."""
    VIRTUAL_KEY = "virtual_key"
    """Streams only once the owner has added a virtual key; one request per 8 h otherwise (Tesla)."""
    SOC_STEPS = "soc_steps"
    """While charging the SoC moves in coarse steps: never infer power from its differences (Hyundai, Kia)."""
    SINGLE_SESSION = "single_session"
    """One session per account: the owner's phone app and Smartcar log each other out (BYD)."""
    WAKES_ON_POLL = "wakes_on_poll"
    """A call may wake the car and draw on its 12 V battery."""
    STALE_SUBSCRIPTION = "stale_subscription"
    """Says SUBSCRIPTION when its newest data is over a month old: the car may just be parked (BMW, Mini)."""
    SERIAL_ACCOUNT = "serial_account"
    """No parallel requests on one account (Mazda)."""


@dataclass(frozen=True, slots=True)
class CallLimit:
    """A documented limit of calls per vehicle in a rolling window."""

    calls: int
    per: timedelta

    @property
    def interval(self) -> timedelta:
        return self.per / self.calls


@dataclass(frozen=True, slots=True, kw_only=True)
class BrandProfile:
    """How often it pays to ask for a car of this brand, and what to expect of the answers."""

    brand: str
    """Key: the stem of its file."""
    name: str
    makes: tuple[str, ...]
    """As the source spells them, in upper case."""
    reports: timedelta
    """How far apart the OEM's updates may be while the car is active (upper end of what is published)."""
    silence: timedelta
    """How long a healthy parked car may send nothing at all."""
    driving: timedelta
    """The brand's pace while driving; ``charging``, ``parked`` likewise: freshness is judged by it, a webhook
    waited for, and a car asked as long as the policy knows no state of charge to go by."""
    charging: timedelta
    parked: timedelta
    idle: timedelta
    """Interval for a car that is asleep, offline or has nothing to tell."""
    floor: timedelta
    """Never two calls closer than this: the OEM has nothing newer, or minds."""
    latency: timedelta
    """Typical time a request takes."""
    limit: CallLimit | None = None
    soc_step_percent: float = 1.0
    """The SoC moves in steps of this many percentage points."""
    quirks: frozenset[Quirk] = frozenset()
    actions: frozenset[Action] | None = None
    """What cars of this brand can be commanded; None: nobody says, so it may be tried."""
    start_stop_from_percent: float = 0.0
    """Below this state of charge the brand neither starts nor stops a charge."""
    sources: tuple[tuple[str, str], ...] = field(default=(), compare=False)
    """(key, where its figure comes from)."""

    def interval(self, activity: Activity) -> timedelta:
        """The brand's own pace in this activity, before any budget."""
        own = {
            Activity.DRIVING: self.driving,
            Activity.CHARGING: self.charging,
            Activity.PARKED: self.parked,
        }[activity]
        slowest = max(own, self.floor)
        return slowest if self.limit is None else max(slowest, self.limit.interval)

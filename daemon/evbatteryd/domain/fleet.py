"""The cars as they stand: what the flow changes, and what sinks and pages look at."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Collection, Container, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from evbatteryd.domain.cadence import Facts, Failed, NextPoll, Outcome
from evbatteryd.domain.enrolment import Enrolment
from evbatteryd.domain.freshness import Freshness, fresh_until, judge
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.policy.outlook import Trend
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState
from evbatteryd.domain.vehicle import Vehicle, VehicleId


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When a car is asked next, and what is known of how it answers."""

    due: datetime | None
    """None: not before something changes from outside."""
    reason: str
    polled_at: datetime | None = None
    """When it was last asked."""
    answered_at: datetime | None = None
    """When it last answered with data, new or not."""
    outcome: str = ""
    """Label of the last outcome; empty before the first poll."""
    failures: int = 0
    """Polls without data in a row."""
    activity: Activity = Activity.PARKED
    calls_per_poll: int = 1
    """Requests that one poll takes (pages)."""
    pushed_at: datetime | None = None
    """When a webhook last brought data of it; None while webhooks do not deliver: then it is polled."""
    gain: float = 0.0
    """What the poll that is due is worth, by the policy: percentage points of error ended, times the seconds
    that they would have stood. 0: a rule alone decided."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a car does not answer, in words its owner understands."""

    outcome: str
    """The label of a :class:`~evbatteryd.domain.errors.SourceError` class."""
    code: str
    detail: str
    since: datetime


UNREACHABLE = frozenset(
    {
        "failed",
        "unreachable",
        "unreadable",
        "application_refused",
        "plan_refused",
        "owner_must_act",
        "not_capable",
    }
)
"""Outcomes after which a value that is no longer fresh is ``offline`` rather than ``stale``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Car:
    """One vehicle with all that is known of it. Replaced as a whole when anything changes."""

    vehicle: Vehicle
    schedule: Schedule
    state: BatteryState = field(default_factory=BatteryState)
    trouble: Trouble | None = None
    reading_id: str | None = None
    """Of the newest committed reading."""
    learned: bytes = b""
    """What the polling policy has learnt of it (``domain/policy/habits.py``); empty: nothing yet."""
    trend: Trend | None = None
    """How its state of charge is expected to go on; None: nothing is claimed."""

    @property
    def id(self) -> VehicleId:
        return self.vehicle.id

    @property
    def slug(self) -> str:
        return self.vehicle.slug

    @property
    def consented(self) -> bool:
        lost = self.trouble is not None and self.trouble.outcome == "consent_lost"
        return self.vehicle.withdrawn_at is None and not lost

    @property
    def reachable(self) -> bool:
        return self.trouble is None or self.trouble.outcome not in UNREACHABLE


def facts_of(
    car: Car, profile: BrandProfile, outcome: Outcome, share: Share, wanted: NextPoll | None = None
) -> Facts:
    """What the decision about this car's next poll rests on, after ``outcome``: the car has its trouble."""
    schedule, trouble = car.schedule, car.trouble
    goes_on = isinstance(outcome, Failed) and trouble is not None and trouble.outcome == outcome.label
    return Facts(
        profile=profile,
        outcome=outcome,
        activity=schedule.activity,
        share=share,
        calls_per_poll=schedule.calls_per_poll,
        spread=car.vehicle.spread,
        first=not schedule.outcome,
        pushed_at=schedule.pushed_at,
        since=trouble.since if goes_on and trouble is not None else None,
        wanted=wanted,
    )


def brought_by(enrolment: Enrolment, car: Car) -> bool:
    """Whether this car came, or came back, by that consent.

    The user that Connect's answer names is not proved by it: a car that was connected before is not shown to
    whoever names its owner.
    """
    consent = car.vehicle.consent
    return (
        consent.application == enrolment.application
        and consent.user_ref == enrolment.user_ref
        and car.vehicle.consented_since >= enrolment.begun_at
    )


class Fleet:
    """All cars in memory, by id and by slug, each with its brand's profile. Not a queue, not a store."""

    def __init__(self, profiles: Mapping[str, BrandProfile]) -> None:
        self.profiles = profiles
        self._cars: dict[VehicleId, Car] = {}
        self._ids: dict[str, VehicleId] = {}
        self._former: dict[str, VehicleId] = {}
        self._refs: dict[tuple[str, str], VehicleId] = {}

    def __len__(self) -> int:
        return len(self._cars)

    def __iter__(self) -> Iterator[Car]:
        """The cars by order of enrolment. A snapshot: the fleet may change while it is walked."""
        return iter(list(self._cars.values()))

    def __contains__(self, vehicle_id: VehicleId) -> bool:
        return vehicle_id in self._cars

    def __getitem__(self, vehicle_id: VehicleId) -> Car:
        return self._cars[vehicle_id]

    def get(self, vehicle_id: VehicleId) -> Car | None:
        return self._cars.get(vehicle_id)

    def by_slug(self, slug: str) -> Car | None:
        found = self._ids.get(slug)
        return None if found is None else self._cars[found]

    def by_former_slug(self, slug: str) -> Car | None:
        """The car that once had this slug."""
        found = self._former.get(slug)
        return None if found is None else self._cars[found]

    def by_ref(self, application: str, vehicle_ref: str) -> Car | None:
        """The car that this application's source knows by that id."""
        found = self._refs.get((application, vehicle_ref))
        return None if found is None else self._cars[found]

    @property
    def slugs(self) -> Collection[str]:
        """Those in use. A view, not a copy."""
        return self._ids.keys()

    @property
    def taken_slugs(self) -> Container[str]:
        """Those that no other car may have: in use, or used before. A view, not a copy."""
        return ChainMap(self._ids, self._former)

    def put(self, car: Car) -> None:
        """Add a car, or replace what was known of it."""
        known = self._cars.get(car.id)
        if known is not None and known.slug != car.slug and self._ids.get(known.slug) == car.id:
            del self._ids[known.slug]
        self._cars[car.id] = car
        self._ids[car.slug] = car.id
        if car.vehicle.former_slugs:
            self._former.update(dict.fromkeys(car.vehicle.former_slugs, car.id))
        consent = car.vehicle.consent
        self._refs[consent.application, consent.vehicle_ref] = car.id

    def profile(self, car: Car) -> BrandProfile:
        return self.profiles[car.vehicle.brand]

    def fresh_until(self, car: Car) -> datetime | None:
        return fresh_until(self.profile(car), car.state, car.schedule.activity, car.trend)

    def freshness(self, car: Car, now: datetime) -> Freshness:
        return judge(self.fresh_until(car), reachable=car.reachable, consented=car.consented, now=now)

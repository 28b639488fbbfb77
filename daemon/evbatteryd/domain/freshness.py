"""Is a value as new as this brand can deliver in this state? Judged from instants, so it flips by itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from evbatteryd.domain.policy.outlook import Trend
from evbatteryd.domain.profile import Activity, BrandProfile, Quirk
from evbatteryd.domain.reading import BatteryState

GRACE = timedelta(minutes=5)
"""What upload delay and a slow answer may add before a value counts as stale."""


AWAY = timedelta(days=2)
"""A geofenced car that was silent for so long may as well be away as parked."""


class Freshness(StrEnum):
    FRESH = "fresh"
    STALE = "stale"
    OFFLINE = "offline"


def fresh_until(
    profile: BrandProfile, state: BatteryState, activity: Activity, trend: Trend | None = None
) -> datetime | None:
    """The instant at which the state of charge stops being fresh. None: it is not fresh at all.

    An active car owes us a measurement every ``reports``, so there the measurement's own age counts. A
    parked car owes none; there it counts when we last made sure, or for how long the policy expects hardly
    anything to change (at night, say), and that the car has not been silent for longer than a healthy one is.
    A car last heard of charging is no parked one, though nobody expects it to go on: its SoC is not what it
    was.
    """
    measured, fetched = state.measured_at, state.fetched_at
    if measured is None or fetched is None:
        return None
    if activity is Activity.PARKED and state.charging:
        activity = Activity.CHARGING
    if activity is Activity.PARKED:
        confirmed = fetched + 2 * profile.interval(Activity.PARKED)
        if trend is not None:
            confirmed = max(confirmed, trend.sure_until)
        return min(measured + _silence(profile), confirmed) + GRACE
    return measured + 2 * max(profile.reports, profile.interval(activity)) + GRACE


def told_again_every(profile: BrandProfile) -> timedelta:
    """How often a value that stays fresh for long is told again though nothing was heard of the car.

    Who listens may therefore take a value for lost that was not told for so long and :data:`GRACE`.
    """
    return 2 * max(profile.reports, *(profile.interval(activity) for activity in Activity)) + GRACE


def tellings(profile: BrandProfile, state: BatteryState, now: datetime) -> int:
    """How often a value was to be told again since it was last confirmed."""
    fetched = state.fetched_at
    return 0 if fetched is None else max((now - fetched) // told_again_every(profile), 0)


def next_telling(profile: BrandProfile, state: BatteryState, now: datetime) -> datetime | None:
    """When a value is told again, should it be fresh then; always later than ``now``."""
    fetched = state.fetched_at
    if fetched is None:
        return None
    return fetched + (tellings(profile, state, now) + 1) * told_again_every(profile)


def _silence(profile: BrandProfile) -> timedelta:
    """How long a parked car may send nothing."""
    return min(profile.silence, AWAY) if Quirk.GEOFENCE in profile.quirks else profile.silence


def judge(until: datetime | None, *, reachable: bool, consented: bool, now: datetime) -> Freshness:
    """Freshness at ``now`` of a value that is fresh ``until`` then.

    ``reachable``: the last poll got an answer. A single failed poll leaves a fresh value fresh.
    """
    if not consented:
        return Freshness.OFFLINE
    if until is not None and now < until:
        return Freshness.FRESH
    return Freshness.STALE if reachable else Freshness.OFFLINE

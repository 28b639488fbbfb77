"""Is a value as new as this brand can deliver in this state? Judged from instants, so it flips by itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState

GRACE = timedelta(minutes=5)
"""What upload delay and a slow answer may add before a value counts as stale."""


class Freshness(StrEnum):
    FRESH = "fresh"
    STALE = "stale"
    OFFLINE = "offline"


def fresh_until(profile: BrandProfile, state: BatteryState, activity: Activity) -> datetime | None:
    """The instant at which the state of charge stops being fresh. None: it is not fresh at all.

    An active car owes us a measurement every ``reports``, so there the measurement's own age counts. A
    parked car owes none; there it counts when we last made sure, and that the car has not been silent for
    longer than a healthy one is. A car last heard of charging is no parked one, though nobody expects it to
    go on: its SoC is not what it was.
    """
    measured, fetched = state.measured_at, state.fetched_at
    if measured is None or fetched is None:
        return None
    if activity is Activity.PARKED and state.charging:
        activity = Activity.CHARGING
    if activity is Activity.PARKED:
        return min(measured + profile.silence, fetched + 2 * profile.interval(Activity.PARKED)) + GRACE
    return measured + 2 * max(profile.reports, profile.interval(activity)) + GRACE


def judge(until: datetime | None, *, reachable: bool, consented: bool, now: datetime) -> Freshness:
    """Freshness at ``now`` of a value that is fresh ``until`` then.

    ``reachable``: the last poll got an answer. A single failed poll leaves a fresh value fresh.
    """
    if not consented:
        return Freshness.OFFLINE
    if until is not None and now < until:
        return Freshness.FRESH
    return Freshness.STALE if reachable else Freshness.OFFLINE

"""A car as the API tells it, and as the page words it. Pure: a car and ``now`` in, words out.

``page.js`` spells times the same way (``ago``, ``ahead``, ``lasting``), so that they run on by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlencode

from evbatteryd.domain.cadence import words
from evbatteryd.domain.estimates import is_worth_showing
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.policy.outlook import Estimate
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import ChargeState, Signal

MOBILE_ONLY = frozenset({"ford", "lincoln"})
"""Brands whose owners Connect no longer lets in by a browser, but only by an app for phones, since November
2024: https://smartcar.com/docs/help/brand-quirks"""
LONGEST_REQUEST = timedelta(minutes=5)
"""A poll that fell due this recently may be under way: the source gives up after 300 s."""


def as_json(car: Car, freshness: Freshness, estimate: Estimate | None, now: datetime) -> dict[str, object]:
    """What ``/api/vehicles`` tells of a car: percent, km, kWh, kW, seconds; null is not known."""
    state, schedule, consent = car.state, car.schedule, car.vehicle.consent
    measured = state.measured_at
    return {
        "slug": car.slug,
        "name": car.vehicle.name,
        "brand": car.vehicle.brand,
        "make": consent.make,
        "model": consent.model,
        "year": consent.year,
        "soc": state.soc_percent,
        "range_km": state.number(Signal.RANGE),
        "capacity_kwh": state.number(Signal.CAPACITY),
        "charging": state.charging,
        "charge_state": state.charge_state,
        "plugged_in": state.plugged_in,
        "charge_limit": state.number(Signal.CHARGE_LIMIT),
        "charge_power_kw": state.number(Signal.CHARGE_POWER),
        "time_to_full_s": state.number(Signal.TIME_TO_FULL),
        "odometer_km": state.number(Signal.ODOMETER),
        "measured_at": measured,
        "fetched_at": state.fetched_at,
        **_estimate_json(estimate),
        "age_s": None if measured is None else max(round((now - measured).total_seconds()), 0),
        "freshness": freshness,
        "activity": schedule.activity,
        "next_poll": schedule.due,
        "calls_per_poll": schedule.calls_per_poll,
        "reason": schedule.reason,
        "pushed_at": schedule.pushed_at,
        "last_outcome": schedule.outcome or None,
        "trouble": None if car.trouble is None else _trouble_json(car.trouble),
        "reading_id": car.reading_id,
        "withdrawn_at": car.vehicle.withdrawn_at,
    }


def _estimate_json(estimate: Estimate | None) -> dict[str, object]:
    """The fields that MQTT has, too: all known or none."""
    return {
        "soc_estimate": None if estimate is None else round(estimate.soc_percent, 1),
        "soc_estimate_low": None if estimate is None else round(estimate.low_percent, 1),
        "soc_estimate_high": None if estimate is None else round(estimate.high_percent, 1),
        "estimate_until": None if estimate is None else estimate.until,
    }


def consent_json(car: Car) -> dict[str, object]:
    """What the API tells beyond that, to those who run evbatteryd: who consented to what."""
    vehicle = car.vehicle
    return {
        "application": vehicle.consent.application,
        "invited": vehicle.invited,
        "permissions": sorted(vehicle.consent.permissions),
        "enrolled_at": vehicle.enrolled_at,
    }


def _trouble_json(trouble: Trouble) -> dict[str, object]:
    return {
        "outcome": trouble.outcome,
        "code": trouble.code,
        "detail": trouble.detail,
        "since": trouble.since,
    }


@dataclass(frozen=True, slots=True)
class Doing:
    """What a car was doing when it last told us."""

    icon: str
    """``charging``, ``full``, ``plugged``, ``driving``, ``parked`` or ``unknown``."""
    words: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Plight:
    """A trouble as its owner reads it."""

    title: str
    detail: str
    code: str
    since: datetime
    grave: bool
    """It will not pass by itself: somebody has to act."""


@dataclass(frozen=True, slots=True)
class Guess:
    """An estimate as people read it, in whole percent."""

    soc: int
    low: int
    high: int
    until: datetime
    """It is shown no longer than that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One car of the page. Percent and km are rounded to what people read; instants stay instants."""

    slug: str
    name: str
    what: str
    """Make and model, if the name does not say them; year and capacity."""
    soc: int | None
    guess: Guess | None
    """Shown beside what was measured, never in its place; None: nothing is claimed, or nothing else."""
    limit: int | None
    range_km: int | None
    doing: Doing
    freshness: Freshness
    measured_at: datetime | None
    fetched_at: datetime | None
    due: datetime | None
    reason: str
    plight: Plight | None
    again: str | None
    """Where its owner consents anew; None while the consent stands."""


def row(car: Car, profile: BrandProfile, freshness: Freshness, estimate: Estimate | None = None) -> Row:
    state = car.state
    return Row(
        slug=car.slug,
        name=car.vehicle.name,
        what=_what(car, profile),
        soc=_rounded(state.soc_percent),
        guess=guess(car, estimate),
        limit=_rounded(state.number(Signal.CHARGE_LIMIT)),
        range_km=_rounded(state.number(Signal.RANGE)),
        doing=doing(car),
        freshness=freshness,
        measured_at=state.measured_at,
        fetched_at=state.fetched_at,
        due=car.schedule.due,
        reason=car.schedule.reason,
        plight=None if car.trouble is None else plight(car.trouble),
        again=consent_again(car),
    )


def guess(car: Car, estimate: Estimate | None) -> Guess | None:
    """The estimate, if it tells people more than the measured value does."""
    if estimate is None or not is_worth_showing(car, estimate.soc_percent):
        return None
    # Outwards, so that the truth stays within the band as often as it was.
    return Guess(
        soc=math.floor(estimate.soc_percent + 0.5),
        low=math.floor(estimate.low_percent),
        high=math.ceil(estimate.high_percent),
        until=estimate.until,
    )


def _what(car: Car, profile: BrandProfile) -> str:
    consent, capacity = car.vehicle.consent, car.state.number(Signal.CAPACITY)
    make = profile.name if consent.make in profile.makes else consent.make.title()
    badge = " ".join(filter(None, (make, consent.model)))
    # Unless somebody gave the car a name of its own, the badge is its name already.
    parts = [] if car.vehicle.name in {badge, consent.model} else [badge]
    if consent.year is not None:
        parts.append(str(consent.year))
    if capacity is not None:
        parts.append(f"{capacity:.0f}\N{NO-BREAK SPACE}kWh")
    return " · ".join(parts)


def doing(car: Car) -> Doing:
    """Charging, plugged in, driving or parked, in this order: the cable is measured, driving is inferred."""
    state = car.state
    if state.charging:
        return Doing("charging", _charging(car), _full_in(car))
    if state.charge_state is ChargeState.FULLY_CHARGED:
        return Doing("full", "Fully charged")
    if state.plugged_in:
        return Doing("plugged", "Plugged in")
    if car.schedule.activity is Activity.DRIVING:
        return Doing("driving", "Driving")
    if state.soc_percent is None and state.charging is None and state.plugged_in is None:
        return Doing("unknown", "Not known yet")
    return Doing("parked", "Parked")


def _charging(car: Car) -> str:
    power_kw = car.state.number(Signal.CHARGE_POWER)
    if not power_kw:
        return "Charging"
    return f"Charging, {power_kw:.0f} kW" if power_kw >= 10 else f"Charging, {power_kw:.1f} kW"


def _full_in(car: Car) -> str:
    seconds = car.state.number(Signal.TIME_TO_FULL)
    return f"full in {words(timedelta(seconds=seconds))}" if seconds else ""


_PLIGHTS = {
    "unreachable": "No answer",
    "unreadable": "Answer not understood",
    "rate_limited": "Asked to wait",
    "application_rate_limited": "Application asked to wait",
    "budget_spent": "The plan's calls are used up",
    "plan_refused": "Plan or account refused",
    "asleep": "Asleep",
    "nothing_yet": "Nothing heard of it yet",
    "consent_lost": "Consent lost",
    "owner_must_act": "The owner has to act",
    "not_capable": "This car cannot answer",
    "application_refused": "Application refused",
}
_GRAVE = frozenset(
    {"budget_spent", "plan_refused", "consent_lost", "owner_must_act", "not_capable", "application_refused"}
)


def plight(trouble: Trouble) -> Plight:
    return Plight(
        title=_PLIGHTS.get(trouble.outcome, "No reading"),
        detail=trouble.detail,
        code=trouble.code,
        since=trouble.since,
        grave=trouble.outcome in _GRAVE,
    )


def consent_again(car: Car) -> str | None:
    """Where the owner of a car whose consent is lost consents anew; None while the consent stands."""
    if car.consented:
        return None
    asked = {"application": car.vehicle.consent.application}
    if car.vehicle.brand not in MOBILE_ONLY:
        asked["make"] = make_code(car.vehicle.brand)
    return "/enrol?" + urlencode(asked)


def make_code(brand: str) -> str:
    """Connect's code of a brand: ``LAND_ROVER``."""
    return brand.upper()


def _rounded(value: float | None) -> int | None:
    # Half a percent up, as people round.
    return None if value is None else math.floor(value + 0.5)


def ago(at: datetime, now: datetime) -> str:
    """``12 min ago``. A car whose clock is ahead of ours measured just now."""
    return "just now" if now - at < timedelta(seconds=1) else f"{words(now - at)} ago"


def ahead(at: datetime, now: datetime) -> str:
    """``in 12 min``, ``now`` while the request may be under way, ``overdue by 8 min``."""
    if at > now:
        return f"in {words(at - now)}"
    late = now - at
    return "now" if late <= LONGEST_REQUEST else f"overdue by {words(late)}"


def lasting(since: datetime, now: datetime) -> str:
    """``for 12 min``."""
    return f"for {words(now - since)}"

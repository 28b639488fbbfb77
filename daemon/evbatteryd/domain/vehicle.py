"""A vehicle whose owner consented, as every other part of the daemon names it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container
from dataclasses import dataclass
from datetime import datetime
from typing import NewType

VehicleId = NewType("VehicleId", int)
"""The store's key. Never shown outside; the outside knows the slug."""

SLUG = re.compile(r"[a-z0-9](?:[a-z0-9_]{0,62}[a-z0-9])?")

LONGEST_NAME = 80
"""Characters of what people call a car or a person."""

RESERVED_SLUGS = frozenset({"bridge"})
"""Topic levels of the daemon itself: a car of that name would write over ``evbatteryd/bridge/state``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """One vehicle that one user lets one application read, as the source lists it."""

    application: str
    """The name of the ``[smartcar.NAME]`` table."""
    connection_id: str
    """Changes when the owner consents anew: this is how a consent is seen to be revived."""
    vehicle_ref: str
    """The source's id of the vehicle (a UUID)."""
    user_ref: str
    """The source's id of the user who consented (a UUID). Treated as personal: never published."""
    make: str
    """The badge as the source spells it, in upper case: ``LAND ROVER``."""
    model: str | None = None
    year: int | None = None
    powertrain: str | None = None
    permissions: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    """An enrolled vehicle. ``slug`` is chosen once and stays; topics and labels carry it."""

    id: VehicleId
    slug: str
    name: str
    """What people call it. Free text, on the page and in ``evbattery_vehicle_info`` only."""
    brand: str
    """Key of its :class:`~evbatteryd.domain.profile.BrandProfile`."""
    consent: Consent
    enrolled_at: datetime
    withdrawn_at: datetime | None = None
    """When the consent was found to be gone; None while it stands."""
    renewed_at: datetime | None = None
    """When another consent than the first was noticed, last; None: the first still stands."""
    invited: str | None = None
    """The name on the invitation by which it came, if it came by one."""
    former_slugs: tuple[str, ...] = ()
    """Earlier slugs, oldest first: what was published under them has to go, and nobody else may take them."""
    subscription: str | None = None
    """The connection that is known to be subscribed to the application's webhook, as
    :func:`subscription_of` writes it; None: not known to be."""

    @property
    def consented_since(self) -> datetime:
        """When the present consent was noticed."""
        return self.renewed_at or self.enrolled_at

    @property
    def spread(self) -> float:
        """A stable number in [0, 1) that keeps cars of one kind from moving in step."""
        return (self.id * 0.6180339887498949) % 1.0


def subscription_of(webhook_id: str, connection_id: str) -> str:
    """What :attr:`Vehicle.subscription` is once this connection is subscribed to this webhook."""
    return f"{webhook_id} {connection_id}"


def tidy_name(text: str) -> str | None:
    """What people may call a car or a person, its blanks tidied up; None if that cannot be a name."""
    name = " ".join(text.split())
    return name if name and len(name) <= LONGEST_NAME and name.isprintable() else None


def slug_for(words: str, taken: Container[str]) -> str:
    """The slug of a new vehicle: lower-case ASCII of ``words``, made unique among ``taken``.

    The result fits an MQTT topic level, a Prometheus label and a Home Assistant object id.
    """
    ascii_only = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode()
    stem = re.sub(r"[^a-z0-9]+", "_", ascii_only.lower()).strip("_")[:48].rstrip("_") or "car"
    if stem not in taken and stem not in RESERVED_SLUGS:
        return stem
    # Numbers are mostly taken in a row, so the first free one is found by doubling and halving.
    low, high = 1, 2
    while f"{stem}_{high}" in taken:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if f"{stem}_{middle}" in taken else (low, middle)
    return f"{stem}_{high}"

"""What the policy expects of a car: its state of charge between two looks, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

_NEVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Trend:
    """The state of charge carried forward from the car's last measurement."""

    soc_percent: float
    since: datetime
    """The car's time of ``soc_percent``."""
    percent_per_hour: float
    """0: it stands still; never negative: trips are not foretold."""
    target_percent: float
    """Where it stops rising."""
    until: datetime
    """After that nothing is claimed any more."""
    sure_until: datetime = _NEVER
    """Until then the measured value of a car that stands is expected to hold, to a point."""

    def at(self, now: datetime) -> float | None:
        """Percent at ``now``; None when nothing is claimed."""
        if now >= self.until:
            return None
        hours = max((now - self.since).total_seconds(), 0.0) / 3600.0
        risen = self.soc_percent + hours * self.percent_per_hour
        return max(self.soc_percent, min(risen, self.target_percent))


@dataclass(frozen=True, slots=True)
class Estimate:
    """Where the state of charge is by now, in percent; the truth lies between ``low`` and ``high`` nine
    times in ten. Never part of a measured field."""

    soc_percent: float
    low_percent: float
    high_percent: float
    until: datetime
    """How long the estimate may be carried on; after that it is withdrawn."""


class Hint(StrEnum):
    """What a wall box or an automation knows of a car, for nothing."""

    PLUGGED_IN = "plugged_in"
    UNPLUGGED = "unplugged"
    ARRIVED = "arrived"
    DEPARTED = "departed"
    CHARGING = "charging"
    CHARGING_STOPPED = "charging_stopped"

"""Hours of the day: when people leave, come home and charge, before anything is learnt of these people.

Broad shapes, not figures: people sleep at night, set out in the morning and most often in the afternoon, as
travel surveys have found everywhere (for one: Mobilitaet in Deutschland 2017, time of day of trips), and
charges that wait start when power is cheap. An application's cars outweigh them within days.
"""

from __future__ import annotations

from typing import Final

HOUR: Final = 3600.0
DAY: Final = 86400.0

TRIPS: Final = (
    0.02, 0.015, 0.01, 0.01, 0.01, 0.02, 0.06, 0.10, 0.09, 0.10, 0.12, 0.13,
    0.14, 0.15, 0.17, 0.20, 0.20, 0.17, 0.15, 0.14, 0.11, 0.08, 0.06, 0.04,
)  # fmt: skip
"""Trips per hour of a car that stands unplugged."""

DEPARTURES: Final = (
    0.02, 0.015, 0.01, 0.01, 0.01, 0.03, 0.15, 0.25, 0.18, 0.15, 0.15, 0.17,
    0.20, 0.22, 0.25, 0.28, 0.28, 0.25, 0.22, 0.16, 0.10, 0.06, 0.04, 0.02,
)  # fmt: skip
"""Departures per hour of a car that is plugged in and does not charge."""

ARRIVALS: Final = (
    0.01, 0.008, 0.005, 0.005, 0.005, 0.005, 0.005, 0.01, 0.015, 0.02, 0.02, 0.025,
    0.03, 0.035, 0.05, 0.08, 0.09, 0.08, 0.08, 0.07, 0.06, 0.04, 0.03, 0.02,
)  # fmt: skip
"""Plug-ins with a charge per hour, of a car that was unplugged."""

TIMERS: Final = (
    0.14, 0.10, 0.10, 0.05, 0.04, 0.03, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01,
    0.02, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01, 0.02, 0.03, 0.05, 0.10, 0.14,
)  # fmt: skip
"""In which hour a charge starts that did not start at plug-in; what is missing to 1 never does."""


def at(seconds: float) -> int:
    """The hour of the day at so many seconds of local time."""
    return int(seconds // HOUR) % 24

"""Lives of cars: the truth that no policy sees.

A trace file is a CSV (gzip) per vehicle with the columns ``t_s, soc_fraction, state``, one row per minute;
the value of a row holds for that minute.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

STATES = ("driving", "charging", "plugged", "parked")
DRIVING, CHARGING, PLUGGED, PARKED = range(4)
"""``PLUGGED``: the cable is in, nothing flows. ``PARKED``: the cable is out."""

DAY_S = 86400.0
MONTH_S = 30 * DAY_S
"""A plan's period."""


@dataclass(frozen=True)
class Trace:
    """One vehicle's life."""

    id: str
    soc: np.ndarray
    """Fraction 0..1, one per minute."""
    state: np.ndarray
    """Index into :data:`STATES` (int8), one per minute."""

    @property
    def end(self) -> float:
        """Its length in seconds."""
        return 60.0 * len(self.soc)

    def minute(self, at: float) -> int:
        """Index of the minute that ``at`` falls into."""
        return min(int(at // 60), len(self.soc) - 1)

    def runs(self) -> Iterator[tuple[float, float, int]]:
        """(start, end, state) of every stretch of one state."""
        cuts = np.flatnonzero(np.diff(self.state)) + 1
        for first, last in pairwise(np.concatenate([[0], cuts, [len(self.state)]])):
            yield 60.0 * first, 60.0 * last, int(self.state[first])


def read_trace(path: Path, minutes: int | None = None) -> Trace:
    """One trace file, or its first ``minutes``."""
    with gzip.open(path, "rt") as file:
        lines = file.read().split("\n")[1:]
    rows = [line.split(",") for line in lines[:minutes] if line]
    soc = np.array([row[1] for row in rows], dtype=float)
    state = np.array([STATES.index(row[2]) for row in rows], dtype=np.int8)
    return Trace(path.name.split(".", maxsplit=1)[0], soc, state)


def load_traces(folder: Path, vehicles: int | None = None, days: float | None = None) -> list[Trace]:
    """The traces of ``folder/vehicles``, in the order of their names."""
    paths = sorted((folder / "vehicles").glob("*.csv.gz"))[:vehicles]
    return [read_trace(path, int(days * 1440) if days else None) for path in paths]

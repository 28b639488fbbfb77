"""Recorded lives of cars: state of charge and state, minute by minute, for about four weeks.

A file is a gzipped CSV ``t_s,soc_fraction,state``; the values of a row hold until the next one, the last
row's for a minute. So the full recordings (a row for every minute) and the shipped ones (a row only where
something changes) are read alike. ``t_s`` counts from a Monday, 00:00 local time. An ``index.csv`` beside
the files (or one folder up) gives the battery's size and the charge target.
"""

from __future__ import annotations

import csv
import gzip
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

SHIPPED: Final = Path(__file__).with_name("lives")
USUAL_CAPACITY_KWH: Final = 60.0
USUAL_CHARGE_KW: Final = 7.2
HYBRID_BELOW_KWH: Final = 20.0
"""No battery-electric car on sale has less, hardly a plug-in hybrid more."""


class State(IntEnum):
    """``PLUGGED`` is plugged in and not charging; ``PARKED`` is not plugged in."""

    DRIVING = 0
    CHARGING = 1
    PLUGGED = 2
    PARKED = 3

    @property
    def plugged_in(self) -> bool:
        return self in (State.CHARGING, State.PLUGGED)


_STATES: Final = {state.name.lower(): state for state in State}


class Stretch(NamedTuple):
    """A time of one state. Seconds since the life's first Monday; fractions of the battery."""

    start: int
    end: int
    state: State
    before: State
    """The state of the stretch before; of the life's last one at its start, for it loops."""
    soc_start: float
    soc_end: float


@dataclass(frozen=True, slots=True)
class Life:
    """One recording, looped for ever. Times are whole seconds within the loop."""

    name: str
    capacity_kwh: float
    target: float
    """Fraction the owner charges to."""
    length: int
    at: array[int]
    """When each row begins."""
    soc: array[float]
    states: array[int]
    driven: array[float]
    """Fractions of the battery driven since the start of the loop, at the beginning of each row."""
    driven_in_all: float
    stretches: tuple[Stretch, ...]
    stretch_starts: array[int]
    charge_rate: float
    """Fractions per second, as this owner usually charges."""

    @property
    def is_hybrid(self) -> bool:
        return self.capacity_kwh < HYBRID_BELOW_KWH

    def row(self, offset: float) -> int:
        return bisect_right(self.at, offset) - 1

    def stretch(self, offset: float) -> Stretch:
        return self.stretches[bisect_right(self.stretch_starts, offset) - 1]


class LifeUnreadable(ValueError):
    """A trace that cannot be replayed, or none where some should be."""


def load_lives(folder: Path | None = None) -> tuple[Life, ...]:
    """The lives in ``folder`` (or in its ``vehicles``), by name; the shipped ones without a folder."""
    return _shipped() if folder is None else _load(folder)


@cache
def _shipped() -> tuple[Life, ...]:
    return _load(SHIPPED)


def _load(folder: Path) -> tuple[Life, ...]:
    files = sorted((folder / "vehicles").glob("*.csv.gz")) or sorted(folder.glob("*.csv.gz"))
    if not files:
        raise LifeUnreadable(f"{folder} holds no *.csv.gz, neither itself nor in vehicles")
    index = _read_index(folder) or _read_index(folder.parent)
    return tuple(_read(file, index.get(file.name.split(".")[0], {})) for file in files)


def _read_index(folder: Path) -> dict[str, dict[str, str]]:
    file = folder / "index.csv"
    if not file.is_file():
        return {}
    with file.open(newline="") as lines:
        return {row["vehicle"]: row for row in csv.DictReader(lines) if row.get("vehicle")}


def _read(file: Path, about: dict[str, str]) -> Life:
    at, soc, states = array("l"), array("d"), array("b")
    try:
        with gzip.open(file, "rt", newline="") as lines:
            for t_s, soc_fraction, state in _rows(lines):
                if at and t_s <= at[-1]:
                    raise LifeUnreadable(f"{file.name}: t_s {t_s} comes after {at[-1]}")
                at.append(t_s)
                soc.append(soc_fraction)
                states.append(state)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise LifeUnreadable(f"{file.name}: {error}") from error
    if not at or at[0] != 0:
        raise LifeUnreadable(f"{file.name}: the first row must be that of t_s 0")
    return compose(
        file.name.split(".")[0],
        at,
        soc,
        states,
        capacity_kwh=float(about.get("battery_kwh") or USUAL_CAPACITY_KWH),
        target=float(about["target_soc"]) if about.get("target_soc") else None,
    )


def _rows(lines: Iterator[str]) -> Iterator[tuple[int, float, State]]:
    reader = csv.reader(lines)
    header = next(reader, None)
    if header != ["t_s", "soc_fraction", "state"]:
        raise LifeUnreadable(f"expected the columns t_s,soc_fraction,state, not {header}")
    for row in reader:
        try:
            t_s, soc_fraction, state = int(row[0]), float(row[1]), _STATES[row[2]]
        except (IndexError, ValueError, KeyError):
            raise LifeUnreadable(f"line {reader.line_num} cannot be read: {row}") from None
        if not 0.0 <= soc_fraction <= 1.0:
            raise LifeUnreadable(f"line {reader.line_num}: soc_fraction {soc_fraction} is not within 0 and 1")
        yield t_s, soc_fraction, state


def compose(
    name: str,
    at: array[int],
    soc: array[float],
    states: array[int],
    *,
    capacity_kwh: float,
    target: float | None = None,
) -> Life:
    """A life from its rows; what replaying needs often is worked out here once."""
    driven = array("d", [0.0])
    for row in range(1, len(at)):
        drop = soc[row - 1] - soc[row] if states[row - 1] == State.DRIVING else 0.0
        driven.append(driven[-1] + max(drop, 0.0))
    length = at[-1] + 60
    stretches = tuple(_stretches(at, soc, states, length))
    charges = [stretch for stretch in stretches if stretch.state is State.CHARGING]
    rates = [(charge.soc_end - charge.soc_start) / (charge.end - charge.start) for charge in charges]
    usual = USUAL_CHARGE_KW / capacity_kwh / 3600
    return Life(
        name=name,
        capacity_kwh=capacity_kwh,
        target=target if target is not None else max((charge.soc_end for charge in charges), default=1.0),
        length=length,
        at=at,
        soc=soc,
        states=states,
        driven=driven,
        driven_in_all=driven[-1],
        stretches=stretches,
        stretch_starts=array("l", [stretch.start for stretch in stretches]),
        charge_rate=median([rate for rate in rates if rate > 0] or [usual]),
    )


def _stretches(at: array[int], soc: array[float], states: array[int], length: int) -> Iterator[Stretch]:
    before, first = State(states[-1]), 0
    for row in range(1, len(at) + 1):
        if row < len(at) and states[row] == states[first]:
            continue
        state = State(states[first])
        end = at[row] if row < len(at) else length
        soc_end = soc[row - 1]
        if state is State.CHARGING and row < len(at):
            soc_end = max(soc_end, soc[row])  # what the last minute added shows in the row after it
        yield Stretch(at[first], end, state, before, soc[first], soc_end)
        before, first = state, row

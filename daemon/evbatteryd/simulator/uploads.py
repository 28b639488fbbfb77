"""What reached the cloud of a car, and when. Worked out around the instant asked about.

Each upload is a function of the car's key, the run it belongs to and its number there, so any of them can be
had without those before it, in any order, and always comes out the same. Times are epoch seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from heapq import merge
from itertools import takewhile
from math import floor, inf, nextafter
from typing import Final, NamedTuple

from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clouds import DAY, events_between
from evbatteryd.simulator.draws import between, log_normal, mix, unit
from evbatteryd.simulator.lives import State
from evbatteryd.simulator.tracks import Run

LOOK_BACK_S: Final = 60 * DAY
"""A car that has uploaded nothing for that long has nothing to show."""
FIRST_LOOK_S: Final = 900.0
"""How far ahead the next upload is sought at first; then twice as far, and so on."""

_EVENT, _FIRST_LEVEL, _FIRST_TICK = 0, 1, 1_000
_LOST, _DELAY, _SHIFT, _DRAWS = range(4)


class Upload(NamedTuple):
    measured_at: float
    """When the car measured: a whole second."""
    available_at: float
    """When Smartcar's store had it."""


class _Attempt(NamedTuple):
    at: float
    number: int
    """Within its run: what its draws are made with."""


def newest_upload(car: Car, now: float, before: float | None = None) -> Upload | None:
    """The newest measurement that had arrived by ``now``, of those made before ``before`` if given."""
    latest = now if before is None else before - 1
    reach = _reach_s(car)
    best: Upload | None = None
    t = latest
    while t > now - LOOK_BACK_S:
        run = car.run_at(t)
        if best is not None and run.end + reach < best.measured_at:
            break
        found = next((sent for sent in uploads_of(car, run, latest) if sent.available_at <= now), None)
        if found is not None and (best is None or found.measured_at > best.measured_at):
            best = found
        t = nextafter(run.start, -inf)
    return best


def next_upload(car: Car, after: float, until: float) -> Upload | None:
    """The first upload to arrive after ``after``, and by ``until``, that is newer than all before it."""
    newest = newest_upload(car, after)
    known = after - LOOK_BACK_S if newest is None else newest.measured_at
    latest = min(after + FIRST_LOOK_S, until)
    while True:
        arriving = (sent for sent in _newer(car, known, latest) if sent.available_at > after)
        found = min(arriving, key=lambda sent: sent.available_at, default=None)
        if found is not None and found.available_at <= latest:  # what is measured later arrives later still
            return found
        if latest >= until:
            return None
        latest = min(until, latest + (latest - after) if found is None else found.available_at)


def _newer(car: Car, known: float, latest: float) -> Iterator[Upload]:
    """The uploads measured after ``known`` and by ``latest``, in no order."""
    car.run_at(latest)  # after a command, ends of runs are known only as far as anyone has asked
    t = known - _reach_s(car)
    while t <= latest:
        run = car.run_at(t)
        yield from takewhile(lambda sent: sent.measured_at > known, uploads_of(car, run, latest))
        t = run.end


def uploads_of(car: Car, run: Run, latest: float) -> Iterator[Upload]:
    """The uploads that ``run`` gave rise to, measured by ``latest``, newest first, without the lost ones."""
    key = mix(car.key, int(run.start))
    attempts = merge(
        _event(car, run, key, latest),
        _levels(car, run, latest),
        _ticks(car, run, key, latest),
        reverse=True,
    )
    for at, number in attempts:
        if unit(key, number * _DRAWS + _LOST) >= car.cloud.loss:
            measured_at = float(floor(at))
            delay = log_normal(key, number * _DRAWS + _DELAY, *car.cloud.delay_s)
            yield Upload(measured_at, measured_at + delay)


def _reach_s(car: Car) -> float:
    """How long after the end of a run an upload of it can still be measured."""
    cloud = car.cloud
    overhang = max(cloud.driving_s or 0.0, cloud.charging_s or 0.0) if cloud.batched else 0.0
    return max(cloud.event_lag_s[1], overhang + cloud.jitter_s)


def _event(car: Car, run: Run, key: int, latest: float) -> Iterator[_Attempt]:
    """A change of state, and every command, is told soon after."""
    if run.before is None or events_between(run.before, run.state) & car.cloud.events:
        at = run.start + between(key, _EVENT * _DRAWS + _SHIFT, *car.cloud.event_lag_s)
        if at <= latest:
            yield _Attempt(at, _EVENT)


def _levels(car: Car, run: Run, latest: float) -> Iterator[_Attempt]:
    """While charging, every crossing of a multiple of the make's step."""
    step = car.cloud.soc_upload_step
    if step is None or run.state is not State.CHARGING:
        return
    until = min(latest, run.end - 1)
    minutes = range(int((until - run.start) // 60) + 1)
    for level in range(floor(car.soc_at(until) / step + 1e-9), floor(run.soc_start / step + 1e-9), -1):
        minute = bisect_left(minutes, level * step - 1e-9, key=lambda m: car.soc_at(run.start + 60.0 * m))
        at = run.start + 60.0 * minute
        if minute < len(minutes) and at <= latest:
            yield _Attempt(at, _FIRST_LEVEL + level)


def _ticks(car: Car, run: Run, key: int, latest: float) -> Iterator[_Attempt]:
    """Every so often while the state lasts; batched: on a fixed clock, and once more after it has ended."""
    step = car.cloud.cadence_s(run.state)
    if step is None:
        return
    if car.cloud.batched:
        zero = floor(run.start / step) * step + unit(car.key, _SHIFT) * step
        zero -= step if zero > run.start else 0.0
        end = run.end + step
    else:
        zero, end = run.start, run.end
    jitter = car.cloud.jitter_s
    for tick in range(floor((min(latest, end) - zero + jitter) / step), 0, -1):
        number = _FIRST_TICK + tick
        at = zero + tick * step + between(key, number * _DRAWS + _SHIFT, -jitter, jitter)
        if run.start <= at < end and at <= latest:
            yield _Attempt(at, number)

"""What a policy can reach: a rate-limited, slow, stale cloud per vehicle.

Two kinds of brand:

* cached: the car uploads on its own (on events, and every so often in some states); the cloud returns the
  newest upload that has reached it, with its old timestamp. Polls do not change what there is to see.
* live: an awake car answers with its present values; an asleep car answers with an error. A poll of an awake
  car restarts its timer to sleep.

All randomness comes from the seed: uploads from one stream (so every policy meets the same uploads),
latencies and failures of calls from another.

The brands' figures are orders of magnitude from public reports, not measurements of any OEM.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tests.benchmarks.harness.traces import CHARGING, DRIVING, PARKED, PLUGGED, Trace

WITH_CABLE = (CHARGING, PLUGGED)
NEVER = -(10**9)


@dataclass(frozen=True)
class Reading:
    """A successful answer: all that a policy may know."""

    soc: float
    """Fraction, in the brand's steps."""
    oem_ts: float
    """When the car measured it."""
    fetched_at: float
    """When the answer arrived here."""
    is_charging: bool
    is_plugged_in: bool


@dataclass(frozen=True)
class PollError:
    """A call that returned no data."""

    kind: str
    """``asleep``, ``rate_limited`` or ``unavailable``."""
    fetched_at: float
    retry_after: float | None = None
    """Seconds, with ``rate_limited``."""


@dataclass(frozen=True)
class Vehicle:
    """The handle that a policy gets."""

    id: str
    brand: str
    limit: tuple[int, float] | None = None
    """What the brand documents: calls per so many rolling seconds."""


@dataclass(frozen=True)
class Brand:
    """How a brand's cars and cloud behave. Durations in seconds."""

    name: str
    live: bool = False
    events: tuple[str, ...] = ("drive_end", "plug_in", "charge_start", "charge_end", "unplug")
    """After which of them the car uploads."""
    event_lag_s: tuple[float, float] = (2.0, 20.0)
    """From an event to its upload: the bounds of a uniform draw."""
    soc_step: float | None = None
    """While charging, an upload whenever the state of charge crosses a multiple of it."""
    driving_s: float | None = None
    """Upload cadence while driving; None: no uploads. ``charging_s`` and so on likewise."""
    charging_s: float | None = None
    plugged_s: float | None = None
    parked_s: float | None = None
    clock_aligned: bool = False
    """The cadence keeps to a clock rather than to the beginning of the state."""
    jitter_s: float = 15.0
    """Of every upload."""
    drop: float = 0.0
    """Share of uploads that never arrive."""
    delay: tuple[float, float] = (20.0, 0.5)
    """From the car to the cloud: median, and sigma of the logarithm."""
    quantum: float = 0.01
    rounding: str = "nearest"
    """Or ``floor``."""
    latency: tuple[float, float] = (1.5, 0.6)
    """Of a call: median, and sigma of the logarithm."""
    failure: float = 0.01
    """Share of calls that time out or answer 5xx."""
    timeout_s: float = 30.0
    sleep_after_s: float = 900.0
    """Asleep so long after the last activity."""
    asleep: str = "cached"
    """What a sleeping car's cloud answers: ``cached`` values or an ``error``."""
    wake_on_poll: bool = False
    """A call to a sleeping car wakes it."""
    limit: tuple[int, float] | None = None
    """Calls per vehicle in so many rolling seconds; 429 beyond."""

    def quantise(self, soc: np.ndarray | float) -> np.ndarray:
        rounded = np.floor if self.rounding == "floor" else np.round
        return np.clip(rounded(np.asarray(soc) / self.quantum + 1e-9) * self.quantum, 0.0, 1.0)


ARRIVALS = ("drive_end", "plug_in", "charge_start", "charge_end")
BRANDS = {
    brand.name: brand
    for brand in (
        Brand("tesla", driving_s=180, charging_s=180, delay=(15, 0.8), rounding="floor"),
        Brand(
            "tesla_direct",
            live=True,
            asleep="error",
            rounding="floor",
            latency=(0.8, 0.5),
            limit=(200, 86400),
        ),
        Brand("vw", charging_s=600, delay=(30, 0.6), sleep_after_s=600, limit=(480, 86400)),
        Brand(
            "vw_portal",
            events=(),
            driving_s=900,
            charging_s=900,
            clock_aligned=True,
            drop=0.25,
            delay=(120, 0.6),
            latency=(3.0, 0.6),
            failure=0.02,
        ),
        Brand(
            "renault",
            events=ARRIVALS,
            charging_s=1800,
            jitter_s=120,
            delay=(20, 0.6),
            sleep_after_s=600,
            limit=(60, 3600),
        ),
        Brand(
            "kia",
            events=ARRIVALS,
            event_lag_s=(280.0, 320.0),
            soc_step=0.1,
            quantum=0.005,
            delay=(30, 0.5),
            wake_on_poll=True,
            sleep_after_s=600,
            latency=(4.0, 0.7),
            failure=0.02,
            limit=(20, 86400),
        ),
        Brand(
            "bmw",
            events=("drive_end", "plug_in", "charge_end"),
            charging_s=1800,
            jitter_s=300,
            delay=(180, 1.0),
            latency=(1.0, 0.5),
            limit=(50, 86400),
        ),
        Brand("volvo", driving_s=300, charging_s=300, delay=(60, 1.0), failure=0.02, sleep_after_s=1200),
        Brand("psa", charging_s=3600, drop=0.10, delay=(60, 0.8), sleep_after_s=300, limit=(6, 1200)),
    )
}
STORED = tuple(name for name, brand in BRANDS.items() if not brand.live)
"""The default set: Smartcar's API v3 serves its store and never asks the car."""
PERFECT = Brand("perfect", live=True, quantum=1e-6, latency=(0.0, 0.0), failure=0.0, sleep_after_s=1e12)


def transitions(trace: Trace) -> Iterator[tuple[float, list[str]]]:
    """(time, names) of every change of state, named as in :attr:`Brand.events`."""
    before: int | None = None
    for start, _, state in trace.runs():
        if before is not None:
            yield start, _names(before, state)
        before = state


def _names(before: int, state: int) -> list[str]:
    happened = {
        "drive_end": before == DRIVING,
        "drive_start": state == DRIVING,
        "plug_in": state in WITH_CABLE and before not in WITH_CABLE,
        "charge_start": state == CHARGING,
        "charge_end": before == CHARGING,
        "unplug": before in WITH_CABLE and state not in WITH_CABLE,
    }
    return [name for name, did in happened.items() if did]


def naturally_awake(trace: Trace, brand: Brand) -> np.ndarray:
    """Per minute: awake without any poll, being active now or within ``sleep_after_s``."""
    active = (trace.state == DRIVING) | (trace.state == CHARGING)
    active[1:] |= np.diff(trace.state) != 0
    minutes = np.arange(len(active))
    last = np.maximum.accumulate(np.where(active, minutes, NEVER))
    return (minutes - last) * 60.0 <= brand.sleep_after_s


@dataclass
class Uploads:
    """What reached the cloud, in order: parallel arrays."""

    avail: np.ndarray
    """When it could be had."""
    oem_ts: np.ndarray
    """When the car measured it."""
    soc: np.ndarray
    charging: np.ndarray
    plugged: np.ndarray

    def newest(self, t: float) -> int:
        return int(np.searchsorted(self.avail, t, side="right")) - 1


def uploads(trace: Trace, brand: Brand, seed: tuple[int, ...]) -> Uploads:
    """All that this car will have told its cloud."""
    if brand.live:  # one per awake minute, at once
        oem = avail = 60.0 * np.flatnonzero(naturally_awake(trace, brand))
    else:
        oem, avail = _sent(trace, brand, np.random.default_rng(seed))
    minutes = np.minimum((oem // 60).astype(int), len(trace.soc) - 1)
    state = trace.state[minutes]
    soc = brand.quantise(trace.soc[minutes])
    return Uploads(avail, oem, soc, state == CHARGING, (state == CHARGING) | (state == PLUGGED))


def _sent(trace: Trace, brand: Brand, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(measured, available) of every upload that is ever the newest one. The order of draws is part of it."""
    times = [0.0]
    for at, names in transitions(trace):
        if any(name in brand.events for name in names):
            times.append(at + rng.uniform(*brand.event_lag_s))
    cadence = {
        DRIVING: brand.driving_s,
        CHARGING: brand.charging_s,
        PLUGGED: brand.plugged_s,
        PARKED: brand.parked_s,
    }
    phase = rng.uniform(0, 1)
    for start, end, state in trace.runs():
        if state == CHARGING and brand.soc_step:
            times.extend(_crossings(trace, start, end, brand.soc_step))
        if step := cadence[state]:
            ticks = _ticks(start, end, step, phase if brand.clock_aligned else None)
            times.extend(ticks + rng.uniform(-1, 1, len(ticks)) * brand.jitter_s)
    oem = np.unique(np.clip(np.array(times), 0, trace.end - 1))
    kept = rng.random(len(oem)) >= brand.drop
    kept[0] = True
    oem = oem[kept]
    median, sigma = brand.delay
    avail = oem + median * np.exp(sigma * rng.standard_normal(len(oem)))
    avail[0] = 0.0
    # One that is overtaken by a newer one is never seen.
    visible = avail < np.append(np.minimum.accumulate(avail[::-1])[::-1][1:], np.inf)
    return oem[visible], avail[visible]


def _crossings(trace: Trace, start: float, end: float, step: float) -> np.ndarray:
    """When the state of charge passes a multiple of ``step``."""
    level = np.floor(trace.soc[int(start // 60) : int(end // 60)] / step + 1e-9)
    return start + 60.0 * (np.flatnonzero(np.diff(level) > 0) + 1)


def _ticks(start: float, end: float, step: float, phase: float | None) -> np.ndarray:
    """Every ``step`` of the state; with a phase: every tick of that clock in it, and the one after it."""
    if phase is None:
        return np.arange(start + step, end, step)
    k = np.arange(math.ceil(start / step - phase), math.ceil(end / step - phase) + 1)
    return (k + phase) * step


@dataclass
class Call:
    """One call as the cloud saw it."""

    t: float
    kind: str
    """``new``, ``same``, ``asleep``, ``rate_limited`` or ``unavailable``."""
    asleep: bool
    """Whether it met a sleeping car."""


@dataclass
class Upstream:
    """The cloud of one vehicle. ``ideal``: no latency, no failure, no limit (for the oracle)."""

    trace: Trace
    brand: Brand
    seed: tuple[int, int]
    ideal: bool = False
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uploads = uploads(self.trace, self.brand, (*self.seed, 1))
        self._rng = np.random.default_rng((*self.seed, 2))
        self._awake = naturally_awake(self.trace, self.brand)
        self._kept_awake_until = -1.0
        self._recent: deque[float] = deque()
        self._last_ts = 0.0

    def call(self, now: float) -> Reading | PollError:
        asleep = not self._is_awake(now)
        latency, fails = (0.0, False) if self.ideal else self._weather()
        if not self.ideal and self.brand.limit and not self._admits(now, self.brand.limit):
            self.calls.append(Call(now, "rate_limited", asleep))
            return PollError("rate_limited", now + latency, self._recent[0] + self.brand.limit[1] - now)
        if fails:
            self.calls.append(Call(now, "unavailable", asleep))
            return PollError("unavailable", now + self.brand.timeout_s)
        served, arrives = now + latency / 2, now + latency
        answer = self._live(served, arrives) if self.brand.live else self._cached(served, arrives, asleep)
        if isinstance(answer, PollError):
            self.calls.append(Call(now, "asleep", True))
            return answer
        kind = "new" if answer.oem_ts > self._last_ts else "same"
        self._last_ts = max(self._last_ts, answer.oem_ts)
        self.calls.append(Call(now, kind, asleep))
        return answer

    def _is_awake(self, t: float) -> bool:
        return bool(self._awake[self.trace.minute(t)]) or t <= self._kept_awake_until

    def _weather(self) -> tuple[float, bool]:
        """This call's latency, and whether it fails. Both are drawn for every call, limited or not."""
        median, sigma = self.brand.latency
        latency = median * math.exp(sigma * self._rng.standard_normal())
        return latency, self._rng.random() < self.brand.failure

    def _admits(self, now: float, limit: tuple[int, float]) -> bool:
        calls, window = limit
        while self._recent and self._recent[0] <= now - window:
            self._recent.popleft()
        if len(self._recent) >= calls:
            return False
        self._recent.append(now)
        return True

    def _live(self, served: float, arrives: float) -> Reading | PollError:
        if self._is_awake(served):
            self._kept_awake_until = max(self._kept_awake_until, served + self.brand.sleep_after_s)
            minute = self.trace.minute(served)
            state = int(self.trace.state[minute])
            soc = float(self.brand.quantise(self.trace.soc[minute]))
            return Reading(soc, served, arrives, state == CHARGING, state in WITH_CABLE)
        if self.brand.asleep == "error":
            return PollError("asleep", arrives)
        return self._uploaded(self.uploads.newest(served), arrives)

    def _cached(self, served: float, arrives: float, asleep: bool) -> Reading:
        if self.brand.wake_on_poll and asleep:
            self._kept_awake_until = served + self.brand.sleep_after_s
        return self._uploaded(self.uploads.newest(served), arrives)

    def _uploaded(self, index: int, arrives: float) -> Reading:
        told = self.uploads
        return Reading(
            float(told.soc[index]),
            float(told.oem_ts[index]),
            arrives,
            bool(told.charging[index]),
            bool(told.plugged[index]),
        )

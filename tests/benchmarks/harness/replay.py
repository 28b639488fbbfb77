"""Virtual-time replay of lives against a policy."""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from tests.benchmarks.harness.traces import CHARGING, MONTH_S, PLUGGED, Trace
from tests.benchmarks.harness.upstream import BRANDS, STORED, Brand, PollError, Reading, Upstream, Vehicle

MIN_GAP_S = 1.0
"""Between two calls of a vehicle."""

NO_TREND = (0.0, 0.0)
HINTS = ("plugged", "charging", "stopped", "unplugged")
"""All that a wall box may tell."""


class Policy(Protocol):
    """Decides when to ask. One object sees all vehicles, so it may learn across them; a time in the past
    means at once, None never again.

    Optional, for those that have it: ``trend(vehicle) -> (fraction per second, until) | None`` after each
    reading, by which the published value is carried forward from ``oem_ts`` up to ``until``, scored apart;
    and ``hint(vehicle, kind, now) -> time | None``, what a wall box at home tells for nothing, None: changes
    nothing.
    """

    def first(self, vehicle: Vehicle, now: float) -> float | None:
        """When to ask for the first time."""
        ...

    def after(self, vehicle: Vehicle, answer: Reading | PollError, now: float) -> float | None:
        """When to ask again."""
        ...


@dataclass
class Published:
    """What one vehicle's subscribers saw: parallel lists, one entry per reading."""

    t: list[float] = field(default_factory=list)
    soc: list[float] = field(default_factory=list)
    oem_ts: list[float] = field(default_factory=list)
    charging: list[bool] = field(default_factory=list)
    plugged: list[bool] = field(default_factory=list)
    trend: list[tuple[float, float]] = field(default_factory=list)

    def add(self, t: float, soc: float, oem_ts: float, charging: bool, plugged: bool) -> None:
        self.t.append(t)
        self.soc.append(soc)
        self.oem_ts.append(oem_ts)
        self.charging.append(charging)
        self.plugged.append(plugged)
        self.trend.append(NO_TREND)


@dataclass
class Run:
    """What came of a replay; every list has one entry per vehicle."""

    traces: Sequence[Trace]
    brands: Sequence[Brand]
    ups: list[Upstream]
    pubs: list[Published]
    cut_at: list[float | None]
    """When it wanted a call after its budget was gone."""


def assign(traces: Sequence[Trace], names: Sequence[str] | None = None) -> list[Brand]:
    """Brands dealt round robin over the vehicles (by default those that a store serves)."""
    chosen = [BRANDS[name] for name in names or STORED]
    return [chosen[i % len(chosen)] for i in range(len(traces))]


def wallbox(trace: Trace) -> Iterator[tuple[float, str]]:
    """(time, kind) of what a home charger tells for nothing, of all :data:`HINTS`.

    Charges away from home (never in the state plugged) tell nothing.
    """
    for (_, _, before), (at, _, state) in pairwise(trace.runs()):
        if PLUGGED in (before, state):
            plugged = "stopped" if before == CHARGING else "plugged"
            yield at, {CHARGING: "charging", PLUGGED: plugged}.get(state, "unplugged")


def replay(
    traces: Sequence[Trace],
    brands: Sequence[Brand],
    policy: Policy,
    seed: int = 0,
    budget: float | None = None,
    scope: str = "vehicle",
    *,
    ideal: bool = False,
    hints: Collection[str] = (),
) -> Run:
    """Every life from its beginning to its end.

    ``budget``: calls per vehicle and 30 days, pro rata of the traces' length; None: no end of calls.
    ``scope``: a cap for each ``vehicle``, or one pool of the ``fleet``. ``hints``: which of
    :data:`HINTS` a wall box tells the policy.
    """
    return _Replay(traces, brands, policy, seed, budget, scope, ideal=ideal, hints=hints).run()


class _Replay:
    def __init__(
        self,
        traces: Sequence[Trace],
        brands: Sequence[Brand],
        policy: Policy,
        seed: int,
        budget: float | None,
        scope: str,
        *,
        ideal: bool,
        hints: Collection[str],
    ) -> None:
        self._traces = traces
        self._policy = policy
        self._hints = hints if hasattr(policy, "hint") else ()
        self._trend = getattr(policy, "trend", None)
        self._gap = 0.0 if ideal else MIN_GAP_S
        self._end = traces[0].end
        vehicles = list(enumerate(zip(traces, brands, strict=True)))
        self._ups = [Upstream(trace, brand, (seed, i), ideal) for i, (trace, brand) in vehicles]
        self._handles = [Vehicle(trace.id, brand.name, brand.limit) for _, (trace, brand) in vehicles]
        self._run = Run(traces, brands, self._ups, [Published() for _ in traces], [None] * len(traces))
        cap = math.inf if budget is None else math.floor(budget * self._end / MONTH_S + 1e-9)
        self._left = [cap * len(traces)] if scope == "fleet" else [cap] * len(traces)
        self._queue: list[tuple[float, int, int, str]] = []
        """(time, vehicle, turn, hint): an old turn is void."""
        self._turn = [0] * len(traces)

    def run(self) -> Run:
        for i, handle in enumerate(self._handles):
            self._publish_the_beginning(i)
            self._schedule(i, self._policy.first(handle, 0.0), 0.0)
            for at, kind in wallbox(self._traces[i]):
                if kind in self._hints:
                    heapq.heappush(self._queue, (at, i, 0, kind))
        while self._queue:
            now, i, turn, kind = heapq.heappop(self._queue)
            if kind:
                self._hint(i, kind, now)
            elif turn == self._turn[i]:
                self._poll(i, now)
        return self._run

    def _publish_the_beginning(self, i: int) -> None:
        """Everyone starts with the value of time 0 published."""
        told = self._ups[i].uploads
        self._run.pubs[i].add(0.0, float(told.soc[0]), 0.0, bool(told.charging[0]), bool(told.plugged[0]))

    def _schedule(self, i: int, due: float | None, soonest: float) -> None:
        self._turn[i] += 1
        if due is not None and max(due, soonest) < self._end:
            heapq.heappush(self._queue, (max(float(due), soonest), i, self._turn[i], ""))

    def _hint(self, i: int, kind: str, now: float) -> None:
        due = self._policy.hint(self._handles[i], kind, now)
        if due is not None:
            self._schedule(i, due, now + MIN_GAP_S)

    def _poll(self, i: int, now: float) -> None:
        account = i if len(self._left) > 1 else 0
        if self._left[account] <= 0:
            self._run.cut_at[i] = now
            return
        self._left[account] -= 1
        answer = self._ups[i].call(now)
        done = answer.fetched_at
        if done >= self._end:
            return
        got = isinstance(answer, Reading)
        published = self._run.pubs[i]
        if got:
            published.add(done, answer.soc, answer.oem_ts, answer.is_charging, answer.is_plugged_in)
        due = self._policy.after(self._handles[i], answer, done)
        self._schedule(i, due, max(done, now + self._gap))
        if got and self._trend is not None:
            published.trend[-1] = self._trend(self._handles[i]) or NO_TREND

"""The clairvoyant bound: the best that any placement of calls could have done.

It knows the whole trace and every upload, and its calls are free of latency, failures and limits. For a price
``lam`` per call (in percentage points times seconds) it minimises

    integral of |truth - published| dt + lam * calls

exactly, by dynamic programming over time with the published value as the state: truth is constant within a
minute, so a best call happens either when an upload becomes available or at a minute in which the truth
changes. For every number of calls K

    g(K) = max over lam of (cost(lam) - lam * K)

is a lower bound of the error of every policy with at most K calls (weak duality), and it is attained at the
corners, which :meth:`VehicleOracle.plan` returns. One price for all vehicles gives the bound for a budget
shared by the fleet; a price per vehicle gives the one for a cap on each vehicle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tests.benchmarks.harness.traces import DAY_S, MONTH_S, Trace
from tests.benchmarks.harness.upstream import Brand, PollError, Reading, Vehicle, uploads

PRICES = np.concatenate([[0.0], np.geomspace(2.0, 4e6, 60)])


class VehicleOracle:
    """The best plans for one vehicle, one for each price."""

    def __init__(
        self, trace: Trace, brand: Brand, seed: tuple[int, int], prices: np.ndarray = PRICES
    ) -> None:
        self.trace, self.prices = trace, np.asarray(prices, float)
        told = uploads(trace, brand, (*seed, 1))
        minutes = len(trace.soc)
        moves = 60.0 * (np.flatnonzero(np.diff(trace.soc) != 0) + 1)
        self.times = np.unique(np.concatenate([told.avail[told.avail < trace.end], moves, [0.0]]))
        values, index = np.unique(told.soc, return_inverse=True)
        value_at = index[np.searchsorted(told.avail, self.times, side="right") - 1]
        # past[v, j]: integral of |truth - value v| from 0 to times[j]
        gap = np.abs(trace.soc[None, :] - values[:, None]) * 100
        summed = np.concatenate([np.zeros((len(values), 1)), np.cumsum(gap * 60.0, axis=1)], axis=1)
        minute = np.minimum((self.times // 60).astype(int), minutes - 1)
        past = summed[:, minute] + gap[:, minute] * (self.times - 60.0 * minute)[None, :]
        shape = (len(self.prices), len(values))
        least = np.full(shape, np.inf)  # cost so far minus the past, per published value
        least[:, index[0]] = 0.0
        calls = np.zeros(shape, int)
        last = np.full(shape, -1)
        self._parent = np.full((len(self.prices), len(self.times)), -2, dtype=np.int32)
        rows = np.arange(len(self.prices))
        for j, v in enumerate(value_at):
            total = least + past[:, j][None, :]
            best = total.argmin(axis=1)
            cost = total[rows, best] + self.prices - past[v, j]
            take = cost < least[:, v] - 1e-9
            if take.any():
                self._parent[take, j] = last[rows, best][take]
                calls[take, v] = calls[rows, best][take] + 1
                last[take, v] = j
                least[take, v] = cost[take]
        total = least + summed[:, -1][None, :]
        best = total.argmin(axis=1)
        self._tail = last[rows, best]
        self.cost = total[rows, best]
        """Per price, with what the calls cost."""
        self.calls = calls[rows, best]
        self.error = self.cost - self.prices * self.calls
        """Per price, in percentage points times seconds."""

    def bound(self, calls: float) -> float:
        """Lower bound of the error (percentage points times seconds) with at most so many calls."""
        return float(np.max(self.cost - self.prices * calls))

    def plan(self, price: int) -> list[float]:
        """When the best plan at that price (its index) calls."""
        times, j = [], int(self._tail[price])
        while j >= 0:
            times.append(float(self.times[j]))
            j = int(self._parent[price, j])
        return times[::-1]

    def plan_for(self, calls: float) -> list[float]:
        """The cheapest corner plan with at most so many calls."""
        affordable = np.flatnonzero(self.calls <= calls)
        if not len(affordable):
            return []
        return self.plan(int(affordable[np.argmin(self.error[affordable])]))


class FleetOracle:
    """The bounds over all vehicles."""

    def __init__(self, traces: Sequence[Trace], brands: Sequence[Brand], seed: int = 0) -> None:
        self.each = [
            VehicleOracle(trace, brand, (seed, i))
            for i, (trace, brand) in enumerate(zip(traces, brands, strict=True))
        ]
        self._seconds = sum(trace.end for trace in traces)
        self.days = traces[0].end / DAY_S

    def floor(self) -> float:
        """Error in percentage points with unlimited calls: what the brands themselves leave."""
        return sum(one.error[0] for one in self.each) / self._seconds

    def bound_at(self, calls_per_day: float, scope: str = "vehicle") -> float:
        """Lower bound of the mean error in percentage points at so many calls per vehicle and day."""
        calls = calls_per_day * self.days
        if scope == "vehicle":
            return sum(one.bound(calls) for one in self.each) / self._seconds
        cost = sum(one.cost for one in self.each)
        return float(np.max(cost - self.each[0].prices * calls * len(self.each))) / self._seconds

    def bound_budget(self, budget: float, scope: str = "vehicle") -> float:
        """The same for calls per vehicle and 30 days."""
        return self.bound_at(np.floor(budget * self.days * DAY_S / MONTH_S + 1e-9) / self.days, scope)


class Planned:
    """Replays fixed plans as a policy (``replay(..., ideal=True)``)."""

    name = "oracle"

    def __init__(self, plans: Mapping[str, Sequence[float]]) -> None:
        self._left = {vehicle: list(reversed(plan)) for vehicle, plan in plans.items()}

    def first(self, vehicle: Vehicle, now: float) -> float | None:
        return self._next(vehicle)

    def after(self, vehicle: Vehicle, answer: Reading | PollError, now: float) -> float | None:
        return self._next(vehicle)

    def _next(self, vehicle: Vehicle) -> float | None:
        left = self._left[vehicle.id]
        return left.pop() if left else None

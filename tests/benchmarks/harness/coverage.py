"""How often the truth lies within what a policy says it lies within."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.benchmarks.harness.replay import Policy
from tests.benchmarks.harness.traces import STATES, Trace
from tests.benchmarks.harness.upstream import PollError, Reading, Vehicle

GRID_S = 600.0
ROUNDING = 5e-5
"""Lives are written with four decimals."""

UNTOLD = (np.nan, np.nan)


class Watched:
    """A policy under watch: what its ``interval(vehicle, now) -> (low, high) | None`` says each ten minutes.

    The band of a moment is asked for before the policy hears of anything later, of whichever vehicle.
    """

    def __init__(self, policy: Any, traces: Sequence[Trace]) -> None:
        self._policy = policy
        self._traces = traces
        self._vehicles: list[Vehicle] = []
        self._bands: list[list[tuple[float, float]]] = []
        """Per moment of the grid, per vehicle in the order of the traces."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def first(self, vehicle: Vehicle, now: float) -> float | None:
        self._vehicles.append(vehicle)
        return self._policy.first(vehicle, now)

    def after(self, vehicle: Vehicle, answer: Reading | PollError, now: float) -> float | None:
        self._look(now)
        return self._policy.after(vehicle, answer, now)

    def hint(self, vehicle: Vehicle, kind: str, now: float) -> float | None:
        self._look(now)
        return self._policy.hint(vehicle, kind, now)

    def _look(self, now: float) -> None:
        while len(self._bands) * GRID_S < now:
            at = len(self._bands) * GRID_S
            self._bands.append([self._policy.interval(vehicle, at) or UNTOLD for vehicle in self._vehicles])

    def coverage(self, brands: Sequence[str]) -> dict[str, dict[str, float]]:
        """Overall, per brand and per true state: shares of the time in which the truth was ``covered``, or
        lay ``below`` or ``above``, and the mean width.

        Of the time for which something was claimed, whose share of the whole is ``told``.
        """
        self._look(self._traces[0].end)
        low, high = np.array(self._bands).transpose(2, 1, 0)
        minutes = (np.arange(low.shape[1]) * GRID_S // 60).astype(int)
        truth = np.array([trace.soc[minutes] for trace in self._traces])
        state = np.array([trace.state[minutes] for trace in self._traces])
        brand = np.array(brands)[:, None]
        parts = {"all": np.ones_like(truth, bool)}
        parts |= {name: np.broadcast_to(brand == name, truth.shape) for name in dict.fromkeys(brands)}
        parts |= {name: state == code for code, name in enumerate(STATES)}
        return {name: _within(truth[part], low[part], high[part]) for name, part in parts.items()}


def _within(truth: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, float]:
    told = ~np.isnan(low)
    if not told.any():
        return {"told": 0.0}
    truth, low, high = truth[told], low[told], high[told]
    below, above = truth < low - ROUNDING, truth > high + ROUNDING
    return {
        "told": float(told.mean()),
        "covered": float((~below & ~above).mean()),
        "below": float(below.mean()),
        "above": float(above.mean()),
        "width_pp": float((high - low).mean() * 100),
    }


def watch(policy: Policy, traces: Sequence[Trace]) -> Watched | None:
    """The policy under watch, if it tells an interval at all."""
    return Watched(policy, traces) if hasattr(policy, "interval") else None

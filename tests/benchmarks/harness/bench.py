"""Policies beside tuned baselines and the oracle, on one set of lives with one seed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from tests.benchmarks.harness.baselines import Baseline
from tests.benchmarks.harness.metrics import measure
from tests.benchmarks.harness.oracle import FleetOracle, Planned
from tests.benchmarks.harness.replay import Policy, assign, replay
from tests.benchmarks.harness.traces import DAY_S, MONTH_S, Trace

SCALES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
"""What is tried of the scale at which a baseline's natural rate meets the budget."""


class Bench:
    """One set of lives, one seed, one scope."""

    def __init__(
        self,
        traces: Sequence[Trace],
        brands: Sequence[str] | None = None,
        seed: int = 0,
        scope: str = "vehicle",
        *,
        hints: Collection[str] = (),
    ) -> None:
        self.traces = traces
        self.brands = assign(traces, brands)
        self.seed, self.scope, self.hints = seed, scope, hints
        self.days = traces[0].end / DAY_S

    def run(self, policy: Policy, budget: float | None = None) -> dict[str, Any]:
        """The figures of one policy."""
        played = replay(self.traces, self.brands, policy, self.seed, budget, self.scope, hints=self.hints)
        return {**measure(played), "policy": getattr(policy, "name", type(policy).__name__), "budget": budget}

    def baseline(
        self, kind: type[Baseline], budget: float | None = None, scale: float = 1.0
    ) -> dict[str, Any]:
        """The figures of a baseline at that scale."""
        return {**self.run(kind(budget=budget, seed=self.seed, scale=scale), budget), "scale": scale}

    def tuned(self, kind: type[Baseline], budget: float) -> dict[str, Any]:
        """The baseline with the one scale that has the least error on these very lives: at its best, in
        hindsight."""
        natural = self.baseline(kind)
        a_day = budget / 30.0
        busiest = max(vehicle["calls_per_day"] for vehicle in natural["vehicles"])
        centre = natural["calls_per_day"] / a_day
        scales = [*(centre * factor for factor in SCALES), busiest / a_day * 1.003]
        return min(
            (self.baseline(kind, budget, scale) for scale in scales), key=lambda figures: figures["error_pp"]
        )

    def oracle(self) -> FleetOracle:
        """The bounds on these lives with this seed. Takes seconds."""
        return FleetOracle(self.traces, self.brands, self.seed)

    def planned(self, oracle: FleetOracle, budget: float) -> dict[str, Any]:
        """The oracle's own figures at a cap per vehicle."""
        calls = budget * self.traces[0].end / MONTH_S
        plans = {one.trace.id: one.plan_for(calls) for one in oracle.each}
        played = replay(self.traces, self.brands, Planned(plans), self.seed, ideal=True)
        return {**measure(played), "policy": Planned.name, "budget": budget}

"""One policy beside tuned baselines and the oracle, over seeds and budgets, in parallel processes.

Nothing is kept from one comparison to the next: the same options give the same figures.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.harness.baselines import BASELINES
from tests.benchmarks.harness.bench import Bench
from tests.benchmarks.harness.coverage import watch
from tests.benchmarks.harness.lives import generate
from tests.benchmarks.harness.metrics import measure
from tests.benchmarks.harness.replay import replay
from tests.benchmarks.harness.traces import Trace, load_traces

Figures = dict[str, Any]
OURS = "policy"
"""The row of the policy that is compared."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare."""

    policy: str
    """``module:Class`` or ``path.py:Class``; made with ``budget`` and ``scope``."""
    budgets: Sequence[float]
    """Calls per vehicle and 30 days."""
    seeds: Sequence[int] = (0,)
    scope: str = "vehicle"
    hints: Collection[str] = ()
    """Which of :data:`.replay.HINTS` a wall box tells."""
    traces: Path | None = None
    """A folder of traces; None: lives made by :mod:`.lives`."""
    lives_seed: int = 0
    brands: Sequence[str] | None = None
    vehicles: int | None = None
    days: float | None = None
    baselines: Sequence[str] = tuple(BASELINES)
    """Which to show; the fixed interval is always there."""
    before: Callable[[], None] | None = None
    """Called once in every process."""
    jobs: int | None = None

    def lives(self) -> list[Trace]:
        if self.traces is not None:
            return load_traces(self.traces, self.vehicles, self.days)
        return generate(self.vehicles or 40, self.days or 28.0, self.lives_seed)

    def bench(self, traces: Sequence[Trace], seed: int) -> Bench:
        return Bench(traces, self.brands, seed, self.scope, hints=self.hints)


@dataclass(frozen=True)
class _Task:
    """Something to run by itself: the ``bounds`` of a seed, the ``policy``, or a baseline."""

    what: str
    seed: int
    budget: float = math.nan


def compare(options: Options) -> Figures:
    """Every row of every policy, and per budget the means over the seeds."""
    names = [name for name in BASELINES if name == "fixed" or name in options.baselines]
    tasks = [_Task("bounds", seed) for seed in options.seeds]
    for what in (*names, OURS):
        tasks.extend(_Task(what, seed, budget) for budget in options.budgets for seed in options.seeds)
    done = dict(zip(tasks, _run_all(tasks, options), strict=True))
    rows: list[Figures] = []
    for budget in options.budgets:
        for seed in options.seeds:
            bounds = done[_Task("bounds", seed)]
            fixed = done[_Task("fixed", seed, budget)]
            rows.extend(
                _row(done[_Task(what, seed, budget)], fixed, bounds, budget, seed) for what in (*names, OURS)
            )
    budgets = {
        f"{budget:g}": _means([row for row in rows if row["budget"] == budget]) for budget in options.budgets
    }
    ours = [means[OURS] for means in budgets.values()]
    return {
        "gap_closed_raw": _mean([means["gap_closed_raw"] for means in ours]),
        "gap_closed_est": _mean([means["gap_closed_est"] for means in ours]),
        "scope": options.scope,
        "hints": list(options.hints),
        "lives": "traces" if options.traces is not None else f"synthetic, seed {options.lives_seed}",
        "vehicles": len(rows[0]["vehicles"]),
        "seeds": list(options.seeds),
        "budgets": budgets,
        "rows": rows,
    }


def find_policy(spec: str) -> Callable[..., Any]:
    """The class that ``module:Class`` or ``path.py:Class`` names."""
    place, _, name = spec.rpartition(":")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    found = importlib.util.spec_from_file_location(Path(place).stem, place)
    assert found is not None, place
    assert found.loader is not None, place
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return getattr(module, name)


# ------------------------------------------------------------------ processes
class _Worker:
    """What a process keeps from task to task."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._traces = options.lives()
        if options.before is not None:
            options.before()
        self._policy = find_policy(options.policy)

    def run(self, task: _Task) -> Figures:
        bench = self._options.bench(self._traces, task.seed)
        if task.what == "bounds":
            return self._bounds(bench)
        if task.what == OURS:
            return self._ours(bench, task.budget)
        return bench.tuned(BASELINES[task.what], task.budget)

    def _bounds(self, bench: Bench) -> Figures:
        oracle = bench.oracle()
        bounds = {budget: oracle.bound_budget(budget, bench.scope) for budget in self._options.budgets}
        return {"floor_pp": oracle.floor(), "end_s": bench.traces[0].end, **bounds}

    def _ours(self, bench: Bench, budget: float) -> Figures:
        policy = self._policy(budget=budget, scope=bench.scope)
        watched = watch(policy, bench.traces)
        hints = bench.hints if hasattr(policy, "hint") else ()
        played = replay(
            bench.traces, bench.brands, watched or policy, bench.seed, budget, bench.scope, hints=hints
        )
        figures = {**measure(played), "policy": OURS, "budget": budget, "costs": _costs(policy)}
        if watched is not None:
            figures["coverage"] = watched.coverage([brand.name for brand in bench.brands])
        return figures


def _costs(policy: Any) -> Figures:
    """What deciding and remembering took, if the policy tells."""
    told: Figures = {}
    if seconds := getattr(policy, "seconds", None):
        told["us_per_decision"] = float(np.mean(seconds) * 1e6)
        told["us_per_decision_p99"] = float(np.quantile(seconds, 0.99) * 1e6)
    if learned := getattr(policy, "learned_bytes", None):
        told["learned_bytes_mean"], told["learned_bytes_max"] = float(np.mean(learned)), max(learned)
        told["lore_bytes"] = policy.lore_bytes
    return told


_workers: list[_Worker] = []
"""At most one, in a process that runs tasks."""


def _enter(options: Options) -> None:
    _workers[:] = [_Worker(options)]


def _run(task: _Task) -> Figures:
    return _workers[0].run(task)


def _run_all(tasks: Sequence[_Task], options: Options) -> list[Figures]:
    jobs = min(options.jobs or os.cpu_count() or 1, len(tasks))
    if jobs == 1:
        worker = _Worker(options)
        return [worker.run(task) for task in tasks]
    with ProcessPoolExecutor(jobs, initializer=_enter, initargs=(options,)) as pool:
        return list(pool.map(_run, tasks))


# -------------------------------------------------------------------- figures
def _row(figures: Figures, fixed: Figures, bounds: Figures, budget: float, seed: int) -> Figures:
    bound = bounds[budget]
    gap = fixed["error_pp"] - bound
    cuts = [vehicle["cut_at"] for vehicle in figures["vehicles"] if vehicle["cut_at"] is not None]
    return {
        **figures,
        "seed": seed,
        "bound_pp": bound,
        "floor_pp": bounds["floor_pp"],
        "gap_closed_raw": (fixed["error_pp"] - figures["error_pp"]) / gap,
        "gap_closed_est": (fixed["error_pp"] - figures["estimated_pp"]) / gap,
        "charge_end_median_s": figures["delay"]["charge_end"]["median_s"],
        "longest_blind_s": max((bounds["end_s"] - cut for cut in cuts), default=0.0),
        "brands": _by_brand(figures, fixed),
    }


def _by_brand(figures: Figures, fixed: Figures) -> dict[str, Figures]:
    of_brand: dict[str, Figures] = {}
    for name in dict.fromkeys(vehicle["brand"] for vehicle in figures["vehicles"]):
        mine = [vehicle for vehicle in figures["vehicles"] if vehicle["brand"] == name]
        theirs = [vehicle for vehicle in fixed["vehicles"] if vehicle["brand"] == name]
        of_brand[name] = {
            "error_pp": float(np.mean([vehicle["error_pp"] for vehicle in mine])),
            "estimated_pp": float(np.mean([vehicle["estimated_pp"] for vehicle in mine])),
            "fixed_pp": float(np.mean([vehicle["error_pp"] for vehicle in theirs])),
        }
    return of_brand


AVERAGED = (
    "gap_closed_raw",
    "gap_closed_est",
    "error_pp",
    "estimated_pp",
    "bound_pp",
    "floor_pp",
    "calls_per_day",
    "wasted_share",
    "charge_end_median_s",
    "longest_blind_s",
    "brands",
    "costs",
    "coverage",
)


def _means(rows: Sequence[Figures]) -> Figures:
    """Per policy, the means over the seeds; the longest blind time is the worst of them."""
    policies: dict[str, Figures] = {}
    for name in dict.fromkeys(row["policy"] for row in rows):
        mine = [row for row in rows if row["policy"] == name]
        policies[name] = {key: _mean([row[key] for row in mine]) for key in AVERAGED if key in mine[0]}
        policies[name]["longest_blind_s"] = max(row["longest_blind_s"] for row in mine)
    return policies


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of tables key by key."""
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values if key in value]) for key in values[0]}
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None

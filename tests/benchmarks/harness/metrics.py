"""How good was what a replay published: error, age, delays, waste."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from tests.benchmarks.harness.replay import Published, Run
from tests.benchmarks.harness.traces import CHARGING, DAY_S, STATES, Trace
from tests.benchmarks.harness.upstream import WITH_CABLE, Upstream


def error_by_state(
    trace: Trace, published: Published, *, estimated: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(seconds, exact integral of |truth - published| in percentage points times seconds), per true state.

    ``estimated``: of soc + slope * (t - oem_ts), up to its limit, for policies that give a trend.
    """
    minutes = len(trace.soc)
    t = np.asarray(published.t)
    cuts = np.unique(np.concatenate([60.0 * np.arange(minutes + 1), t]))
    since, length = cuts[:-1], np.diff(cuts)
    minute = np.minimum((since // 60).astype(int), minutes - 1)
    k = np.searchsorted(t, since, side="right") - 1
    value = np.asarray(published.soc)[k]
    if estimated:
        slope, until = np.asarray(published.trend).T
        ahead = slope[k] * (since + length / 2 - np.asarray(published.oem_ts)[k])
        value = np.where(slope[k] > 0, np.maximum(value, np.minimum(until[k], value + ahead)), value)
    error = np.abs(trace.soc[minute] - value) * 100 * length
    state = trace.state[minute]
    states = len(STATES)
    return (
        np.bincount(state, weights=length, minlength=states),
        np.bincount(state, weights=error, minlength=states),
    )


def ages(trace: Trace, published: Published) -> tuple[float, np.ndarray]:
    """Age of information: its mean in seconds, and a sample of it at every minute."""
    t = np.append(published.t, trace.end)
    oem = np.asarray(published.oem_ts)
    length = np.diff(t)
    mean = float((((t[:-1] - oem) + (t[1:] - oem)) / 2 * length).sum() / length.sum())
    grid = _grid(trace)
    return mean, grid - oem[np.searchsorted(published.t, grid, side="right") - 1]


def behind(trace: Trace, published: Published, up: Upstream) -> np.ndarray:
    """Seconds by which what we show is older than what the cloud has, at every minute."""
    grid = _grid(trace)
    ours = np.asarray(published.oem_ts)[np.searchsorted(published.t, grid, side="right") - 1]
    theirs = up.uploads.oem_ts[np.searchsorted(up.uploads.avail, grid, side="right") - 1]
    return np.maximum(0.0, theirs - ours)


def _grid(trace: Trace) -> np.ndarray:
    return 60.0 * np.arange(len(trace.soc)) + 30


EVENTS = ("plug_in", "charge_start", "charge_end", "soc_80")


def events(trace: Trace) -> dict[str, list[tuple[float, float, float]]]:
    """Per kind: (time, until the new fact stops being true, beginning of its charge)."""
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in EVENTS}
    runs = list(trace.runs())
    for k, (start, end, state) in enumerate(runs):
        before = runs[k - 1][2] if k else None
        later = runs[k + 1 :]
        if k and state in WITH_CABLE and before not in WITH_CABLE:
            until = next((run[0] for run in later if run[2] not in WITH_CABLE), trace.end)
            found["plug_in"].append((start, until, start))
        if k and state == CHARGING:
            found["charge_start"].append((start, end, start))
        if state == CHARGING:
            if end < trace.end:
                again = next((run[0] for run in later if run[2] == CHARGING), trace.end)
                found["charge_end"].append((end, again, start))
            above = np.flatnonzero(trace.soc[int(start // 60) : int(end // 60) + 1] >= 0.8)
            if len(above) and above[0] > 0:
                at = start + 60.0 * above[0]
                below = np.flatnonzero(trace.soc[int(at // 60) :] < 0.8)
                found["soc_80"].append((at, at + 60.0 * below[0] if len(below) else trace.end, start))
    return found


def delays(trace: Trace, published: Published) -> dict[str, list[tuple[float, bool]]]:
    """Per kind of event: (delay in seconds, missed). Missed: not shown while it was true; the delay is then
    how long it was."""
    t, oem = np.asarray(published.t), np.asarray(published.oem_ts)
    charging, plugged = np.asarray(published.charging), np.asarray(published.plugged)
    shows = {
        "plug_in": plugged,
        "charge_start": charging,
        "charge_end": ~charging,
        "soc_80": np.asarray(published.soc) >= 0.8 - 1e-9,
    }
    told: dict[str, list[tuple[float, bool]]] = {}
    for kind, happened in events(trace).items():
        told[kind] = []
        for at, until, began in happened:
            measured = oem >= (began if kind == "soc_80" else at)
            hits = np.flatnonzero(measured & (t < until) & shows[kind])
            told[kind].append((max(0.0, t[hits[0]] - at), False) if len(hits) else (until - at, True))
    return told


def measure(run: Run) -> dict[str, Any]:
    """All figures, overall and per vehicle. Errors in percentage points, averaged over time."""
    seconds, error, estimated = np.zeros(len(STATES)), np.zeros(len(STATES)), 0.0
    mean_ages: list[float] = []
    samples: list[np.ndarray] = []
    lags: list[np.ndarray] = []
    found: dict[str, list[tuple[float, bool]]] = {}
    kinds: Counter[str] = Counter()
    vehicles: list[dict[str, Any]] = []
    for trace, brand, up, published, cut_at in zip(
        run.traces, run.brands, run.ups, run.pubs, run.cut_at, strict=True
    ):
        of_state, of_error = error_by_state(trace, published)
        seconds += of_state
        error += of_error
        carried = any(slope > 0 for slope, _ in published.trend)
        of_estimate = error_by_state(trace, published, estimated=True)[1].sum() if carried else of_error.sum()
        estimated += of_estimate
        mean_age, sample = ages(trace, published)
        mean_ages.append(mean_age)
        samples.append(sample)
        lags.append(behind(trace, published, up))
        mine = Counter(call.kind for call in up.calls)
        kinds.update(mine)
        for kind, rows in delays(trace, published).items():
            found.setdefault(kind, []).extend(rows)
        days = trace.end / DAY_S
        vehicles.append(
            {
                "vehicle": trace.id,
                "brand": brand.name,
                "calls_per_day": len(up.calls) / days,
                "error_pp": float(of_error.sum() / of_state.sum()),
                "estimated_pp": float(of_estimate / of_state.sum()),
                "age_mean_s": mean_age,
                "age_p95_s": float(np.quantile(sample, 0.95)),
                "wasted_per_day": (len(up.calls) - mine["new"]) / days,
                "asleep_per_day": sum(call.asleep for call in up.calls) / days,
                "cut_at": cut_at,
            }
        )
    calls = sum(len(up.calls) for up in run.ups)
    asleep = sum(call.asleep for up in run.ups for call in up.calls)
    vehicle_days = sum(trace.end for trace in run.traces) / DAY_S
    return {
        "calls_per_day": calls / vehicle_days,
        "error_pp": float(error.sum() / seconds.sum()),
        "estimated_pp": float(estimated / seconds.sum()),
        "error_by_state": {
            name: float(error[i] / seconds[i]) if seconds[i] else 0.0 for i, name in enumerate(STATES)
        },
        "age_mean_s": float(np.mean(mean_ages)),
        "age_p95_s": float(np.quantile(np.concatenate(samples), 0.95)),
        "behind_mean_s": float(np.mean(lags)),
        "behind_p95_s": float(np.quantile(np.concatenate(lags), 0.95)),
        "wasted_per_day": (calls - kinds["new"]) / vehicle_days,
        "wasted_share": (calls - kinds["new"]) / max(1, calls),
        "asleep_per_day": asleep / vehicle_days,
        "calls_by_kind": dict(kinds),
        "cut_vehicles": sum(cut is not None for cut in run.cut_at),
        "vehicles": vehicles,
        "delay": {kind: _summary(rows) for kind, rows in found.items()},
    }


def _summary(rows: list[tuple[float, bool]]) -> dict[str, float | None]:
    if not rows:
        return {"n": 0, "median_s": None, "mean_s": None, "p90_s": None, "missed": None}
    seconds = [row[0] for row in rows]
    return {
        "n": len(rows),
        "median_s": float(np.median(seconds)),
        "mean_s": float(np.mean(seconds)),
        "p90_s": float(np.quantile(seconds, 0.9)),
        "missed": float(np.mean([row[1] for row in rows])),
    }

"""Freshness per call of the daemon's own polling policy.

``python -m tests.benchmarks.freshness --budget 720 --seeds 0,1,2`` runs it in :mod:`tests.benchmarks.harness`
and prints how much of the gap between a tuned fixed interval and the clairvoyant bound it closes.

:class:`Policy` only translates: the harness's vehicle becomes a :class:`Car`, its answers become
measurements, and every decision is made by the code that the daemon runs. It needs no more than the standard
library and the daemon's domain, and runs in any harness of that shape.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

# Whoever loads this file by its path, with an interpreter that has not got the daemon, has it all the same.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "daemon"))

from evbatteryd.domain.cadence import first_poll
from evbatteryd.domain.errors import Asleep, RateLimited, SourceError, Unreachable
from evbatteryd.domain.fleet import Car, Schedule
from evbatteryd.domain.ledger import Budget, Share
from evbatteryd.domain.policy import estimating, learning, looking, lore, pacing, polling
from evbatteryd.domain.policy.habits import USUAL_SLOPE, Habits
from evbatteryd.domain.policy.lore import Lore
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.domain.profile import BrandProfile, CallLimit, Quirk
from evbatteryd.domain.reading import Measurement, Observation, Signal
from evbatteryd.domain.settling import settle
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId
from evbatteryd.durations import parse_duration

BRAND_FILES: Final = Path(__file__).resolve().parents[2] / "config" / "brands"
START: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""The harness's time 0: a Monday 00:00. People live by UTC there."""
PERIOD: Final = timedelta(days=30)
"""Of the plan; the first one begins at :data:`START`."""
NO_BUCKET: Final = timedelta(seconds=1)
"""The harness has no bucket of the application: each car's share of it is one call a second."""
BRANDS: Final = {"vw": "volkswagen", "vw_portal": "volkswagen", "psa": "peugeot"}
"""The harness's names where they are not those of ``config/brands``."""
HINTS: Final = {
    "plugged": Hint.PLUGGED_IN,
    "charging": Hint.CHARGING,
    "stopped": Hint.CHARGING_STOPPED,
    "unplugged": Hint.UNPLUGGED,
}
T = TypeVar("T")


class Handle(Protocol):
    """A vehicle, as the harness hands it over."""

    id: str
    brand: str
    limit: tuple[int, float] | None


class Policy:
    """The daemon's poller without its network, store and clock.

    ``budget``: calls per vehicle and 30 days (Smartcar's documented plan by default). ``scope``: whether that
    is a cap for each ``vehicle`` or each one's part of a pool of the ``fleet``.
    """

    name = "evbatteryd"

    def __init__(self, budget: float | None = None, scope: str = "vehicle") -> None:
        self._calls = Budget().calls_per_vehicle if budget is None else int(budget)
        self._pooled = scope == "fleet"
        self._lore = Lore(lambda _: 0.0)
        self._cars: dict[str, Car] = {}
        self._profiles: dict[str, BrandProfile] = {}
        self._spent: dict[tuple[int, str], int] = {}
        self.seconds: list[float] = []
        """Of the processor, that each answer and each hint took: checked, merged, learnt from, decided."""

    def first(self, vehicle: Handle, now: float) -> float | None:
        profile = _profile(vehicle)
        self._profiles[vehicle.id] = profile
        number = len(self._cars) + 1
        known = Vehicle(
            id=VehicleId(number),
            slug=f"car_{number}",
            name=vehicle.id,
            brand=profile.brand,
            consent=Consent(
                application="benchmark",
                connection_id=vehicle.id,
                vehicle_ref=vehicle.id,
                user_ref=vehicle.id,
                make=profile.makes[0],
            ),
            enrolled_at=_instant(now),
        )
        wanted = first_poll(known.spread, _instant(now))
        car = Car(vehicle=known, schedule=Schedule(due=wanted.at, reason=wanted.reason))
        self._cars[vehicle.id] = car
        return _due(car)

    def after(self, vehicle: Handle, answer: Any, now: float) -> float | None:
        at = _instant(now)
        window = int((at - START) / PERIOD)
        self._spent[window, vehicle.id] = self._spent.get((window, vehicle.id), 0) + 1
        car, profile, share = self._cars[vehicle.id], self._profiles[vehicle.id], self._share(vehicle, at)
        told = _error(answer) if hasattr(answer, "kind") else _observation(answer)
        asked_at = car.schedule.due
        settled = self._timed(
            lambda: settle(car, told, profile, share, self._lore, calls=1, began=asked_at, now=at)
        )
        self._cars[vehicle.id] = settled.car
        return _due(settled.car)

    def trend(self, vehicle: Handle) -> tuple[float, float] | None:
        """The car's trend as the harness draws it: a slope from the last reading on, up to a value.

        It knows no line that begins elsewhere: one that stands still above the reading is a leap to it.
        """
        car = self._cars[vehicle.id]
        trend, soc = car.trend, car.state.soc_percent
        if trend is None or soc is None:
            return None
        if trend.percent_per_hour > 0:
            return trend.percent_per_hour / 360_000, trend.target_percent / 100
        return (1.0, trend.soc_percent / 100) if trend.soc_percent > soc else None

    def hint(self, vehicle: Handle, kind: str, now: float) -> float | None:
        car, profile, at = self._cars[vehicle.id], self._profiles[vehicle.id], _instant(now)
        share = self._share(vehicle, at)
        hinted = self._timed(lambda: polling.after_hint(car, profile, share, self._lore, HINTS[kind], at))
        car = replace(car, learned=hinted.learned)
        if hinted.at is not None:
            schedule = replace(car.schedule, due=hinted.at, reason=hinted.reason, gain=hinted.gain)
            car = replace(car, schedule=schedule)
        self._cars[vehicle.id] = car
        return None if hinted.at is None else _due(car)

    def interval(self, vehicle: Handle, now: float) -> tuple[float, float] | None:
        """Between which values the truth is said to lie nine times in ten; None: nothing is claimed."""
        car, profile = self._cars[vehicle.id], self._profiles[vehicle.id]
        found = polling.estimate(car, profile, self._lore, _instant(now))
        return None if found is None else (found.low_percent / 100, found.high_percent / 100)

    @property
    def learned_bytes(self) -> list[int]:
        """What is kept of each car."""
        return [len(car.learned) for car in self._cars.values()]

    @property
    def lore_bytes(self) -> int:
        """What is kept of the application."""
        return len(json.dumps(self._lore.document(), separators=(",", ":")))

    def _share(self, vehicle: Handle, at: datetime) -> Share:
        """What the car may have of the plan: as the daemon's purse would say."""
        cars = len(self._cars)
        window = int((at - START) / PERIOD)
        began = START + window * PERIOD
        spent = self._spent.get((window, vehicle.id), 0)
        left, pool_spent = self._calls - spent, None
        if self._pooled:
            pool_spent = sum(self._spent.get((window, each), 0) for each in self._cars)
            left = -((pool_spent - self._calls * cars) // cars)
        return Share(
            calls_left=max(left, 0),
            calls=self._calls,
            began_at=began,
            renews_at=began + PERIOD,
            application_interval=NO_BUCKET,
            cars=cars,
            pool_spent=pool_spent,
        )

    def _timed(self, decide: Callable[[], T]) -> T:
        began = time.thread_time()
        decision = decide()
        self.seconds.append(time.thread_time() - began)
        return decision


def _instant(t: float) -> datetime:
    return START + timedelta(seconds=t)


def _due(car: Car) -> float | None:
    return None if car.schedule.due is None else (car.schedule.due - START).total_seconds()


def _observation(answer: Any) -> Observation:
    fetched_at, measured_at = _instant(answer.fetched_at), _instant(answer.oem_ts)
    told = {
        Signal.SOC: round(answer.soc * 100, 6),  # a fraction times 100 is not quite a whole percent
        Signal.CHARGING: answer.is_charging,
        Signal.PLUGGED_IN: answer.is_plugged_in,
    }
    measurements = (Measurement(signal, value, measured_at, fetched_at) for signal, value in told.items())
    return Observation(fetched_at=fetched_at, measurements=tuple(measurements))


def _error(error: Any) -> SourceError:
    match error.kind:
        case "asleep":
            return Asleep("HARNESS:ASLEEP", "the car is asleep")
        case "rate_limited":
            wait = None if error.retry_after is None else timedelta(seconds=error.retry_after)
            return RateLimited("HARNESS:RATE_LIMIT", "too many calls for this car", retry_after=wait)
        case _:
            return Unreachable("HARNESS:UNAVAILABLE", "the cloud does not answer")


def _profile(vehicle: Handle) -> BrandProfile:
    """The shipped profile of the vehicle's brand, with the limit that the harness documents.

    It keeps the harness's name: where that has two clouds of one maker, they are two brands to learn of.
    Read here rather than by :mod:`evbatteryd.brands`, which takes pydantic to say what is wrong with a file.
    """
    key = BRANDS.get(vehicle.brand, vehicle.brand)
    figures = tomllib.loads((BRAND_FILES / f"{key}.toml").read_text(encoding="utf-8"))
    return BrandProfile(
        brand=vehicle.brand,
        name=figures["name"],
        makes=tuple(figures["makes"]),
        reports=parse_duration(figures["reports"]),
        silence=parse_duration(figures["silence"]),
        driving=parse_duration(figures["driving"]),
        charging=parse_duration(figures["charging"]),
        parked=parse_duration(figures["parked"]),
        idle=parse_duration(figures["idle"]),
        floor=parse_duration(figures["floor"]),
        latency=parse_duration(figures["latency"]),
        limit=vehicle.limit and CallLimit(vehicle.limit[0], timedelta(seconds=vehicle.limit[1])),
        soc_step_percent=figures.get("soc_step_percent", 1.0),
        quirks=frozenset(map(Quirk, figures.get("quirks", ()))),
    )


# ------------------------------------------------------------------ the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Compare and print."""
    from tests.benchmarks.harness.comparison import Options, compare

    chosen = _parser().parse_args(arguments)
    options = Options(
        policy=chosen.policy,
        budgets=chosen.budget,
        seeds=chosen.seeds,
        scope=chosen.scope,
        hints=chosen.hints,
        traces=chosen.traces,
        lives_seed=chosen.lives_seed,
        brands=chosen.brands,
        vehicles=chosen.vehicles,
        days=chosen.days,
        baselines=chosen.baselines,
        before=functools.partial(_ablate, chosen.ablate),
        jobs=chosen.jobs,
    )
    figures = compare(options)
    for line in _report(figures):
        print(line)
    if chosen.json:
        chosen.json.write_text(json.dumps({**figures, "ablated": chosen.ablate}, indent=1), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.freshness",
        description="Share of the gap that is closed between a tuned fixed interval and the oracle.",
    )
    add = parser.add_argument
    add(
        "--traces", type=Path, help="folder of traces; without it lives are made up, the same ones every time"
    )
    add("--budget", type=_list_of(float), required=True, help="calls per vehicle and 30 days: 240,720")
    add("--seeds", type=_list_of(int), default=[0], help="of uploads, latencies and failures: 0,1,2")
    add(
        "--scope", choices=("vehicle", "fleet"), default="vehicle", help="a cap for each vehicle, or one pool"
    )
    add(
        "--hints",
        type=_list_of(_hint),
        nargs="?",
        const=list(HINTS),
        default=[],
        help="tell what a wall box at home would, or of that only: plugged,unplugged",
    )
    add("--json", type=Path, help="write every figure there")
    add("--jobs", type=int, help="processes; as many as there are processors by default")
    add("--brands", type=_list_of(str), help="dealt round robin; those that a store serves by default")
    add("--baselines", type=_list_of(str), default=["fixed", "evcc-like", "teslamate-like", "ha-like"])
    add("--vehicles", type=int, help="the first so many")
    add("--days", type=float, help="the first so many")
    add("--lives-seed", type=int, default=0, help="other lives, where there are no traces")
    add("--policy", default="tests.benchmarks.freshness:Policy", help="module:Class or path.py:Class")
    add(
        "--ablate",
        action="append",
        default=[],
        choices=sorted(ABLATIONS),
        help="leave a part out; repeatable",
    )
    return parser


def _hint(name: str) -> str:
    if name not in HINTS:
        raise ValueError(name)
    return name


def _list_of(kind: Callable[[str], T]) -> Callable[[str], list[T]]:
    def parse(text: str) -> list[T]:
        return [kind(part) for part in text.split(",")]

    parse.__name__ = f"list of {getattr(kind, '__name__', 'values')}"
    return parse


def _report(figures: Mapping[str, Any]) -> Iterator[str]:
    seeds = ", ".join(map(str, figures["seeds"]))
    cap = "a cap for each vehicle" if figures["scope"] == "vehicle" else "one pool of the fleet"
    hints = f", with hints ({', '.join(figures['hints'])})" if figures["hints"] else ""
    yield f"{figures['vehicles']} vehicles ({figures['lives']}), seeds {seeds}, {cap}{hints}"
    for budget, policies in figures["budgets"].items():
        yield ""
        yield f"{budget} calls per vehicle and 30 days; error in percentage points, means over the seeds"
        yield from _table(policies)
        yield from _details(policies["policy"])


def _table(policies: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield (
        f"{'':<16}{'error':>8}{'estimate':>10}{'closed raw':>12}{'closed est':>12}"
        f"{'calls/day':>11}{'charge end':>12}{'blind':>9}"
    )
    for name, row in policies.items():
        end_s = row["charge_end_median_s"]
        end = "-" if end_s is None else f"{end_s / 60:.1f} min"
        yield (
            f"{name:<16}{row['error_pp']:>8.3f}{row['estimated_pp']:>10.3f}"
            f"{row['gap_closed_raw']:>12.1%}{row['gap_closed_est']:>12.1%}{row['calls_per_day']:>11.2f}"
            f"{end:>12}{row['longest_blind_s'] / 3600:>7.1f} h"
        )
    bound = policies["policy"]
    yield f"{'bound':<16}{bound['bound_pp']:>8.3f}   (unlimited calls: {bound['floor_pp']:.3f})"


def _details(ours: Mapping[str, Any]) -> Iterator[str]:
    brands = ours["brands"].items()
    yield "brands, fixed -> raw, estimate: " + "; ".join(
        f"{name} {row['fixed_pp']:.2f} -> {row['error_pp']:.2f}, {row['estimated_pp']:.2f}"
        f"{' WORSE' if row['error_pp'] > row['fixed_pp'] else ''}"
        for name, row in brands
    )
    if coverage := ours.get("coverage"):
        yield "truth within the 90 % band: " + ", ".join(
            f"{name} {part['covered']:.1%} of {part['told']:.0%} (width {part['width_pp']:.1f})"
            if "covered" in part
            else f"{name} -"
            for name, part in coverage.items()
        )
    costs = ours["costs"]
    if "us_per_decision" in costs:
        yield (
            f"an answer is checked and the next poll decided in {costs['us_per_decision']:.0f} us "
            f"(99 % within {costs['us_per_decision_p99']:.0f} us); "
            f"learnt of a car {costs['learned_bytes_mean']:.0f} bytes, "
            f"at most {costs['learned_bytes_max']:.0f}; of the application {costs['lore_bytes']:.0f}"
        )


# ------------------------------------------------------------------- ablations
def _without(place: object, name: str, value: object) -> None:
    if not hasattr(place, name):
        raise LookupError(f"{place} has no {name}: this ablation is of an older policy")
    setattr(place, name, value)


def _usual_target(habits: Habits) -> float:
    return 90.0 if habits.soc < 87.0 else 100.0


def _same_at_all_hours(rates: Callable[..., list[float]]) -> Callable[..., list[float]]:
    def flat(*arguments: Any) -> list[float]:
        by_hour = rates(*arguments)
        return [sum(by_hour) / 24] * 24

    return flat


ABLATIONS: Final[Mapping[str, Sequence[tuple[object, str, object]]]] = {
    "hours": ((Lore, "rates", _same_at_all_hours(Lore.rates)),),
    "fleet": ((lore, "PRIOR_HOURS", 1e12),),
    "habits": ((lore, "PRIOR_EVENTS", 1e12), (lore, "PRIOR_DEPARTURE_HOURS", 1e12)),
    "slope": tuple((place, "slope_of", lambda _: USUAL_SLOPE) for place in (learning, looking, estimating)),
    "target": tuple((place, "target_of", _usual_target) for place in (learning, looking, estimating)),
    "uploads": ((lore.BrandLore, "saw_gap", lambda *_: None),),
    "arrivals": ((looking, "homing", lambda _: 0.0),),
    "end": ((looking, "_last_look", lambda *told: max(told[-1], told[4] + looking.STEP)),),
    "late": ((lore.BrandLore, "saw_end", lambda *_: None),),
    "spread": ((polling, "SPREAD_OUT", 0.0),),
    "window": ((polling, "_crowd", lambda *_: None),),
    "pacing": ((pacing, "IN_HAND", 0.0), (pacing, "SPRING", 2.0)),
    "raw": ((looking, "RAW_WEIGHT", 0.0),),
    "estimate": ((looking, "RAW_WEIGHT", 1.0),),
}
"""Parts of the policy, and what it takes to leave each of them out.

``hours``: of the day; ``fleet``: what is learnt across cars; ``habits``: what is learnt of a car's trips;
``slope``, ``target``: learnt of its charges; ``uploads``: their rhythm; ``arrivals``: that it may come home
and charge unseen; ``end``: to look for a charge's end by worth rather than at once and every five minutes;
``late``: how late a brand tells of that end; ``window``: the price of a brand's rolling limit; ``spread``:
what that still allows, over the time until it allows more; ``pacing``: softly; ``raw``, ``estimate``: that
the one as well as the other is worth something while a car charges.
"""


def _ablate(names: Sequence[str]) -> None:
    for name in names:
        for place, attribute, value in ABLATIONS[name]:
            _without(place, attribute, value)


if __name__ == "__main__":
    main()

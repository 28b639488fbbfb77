"""The harness measures what it says: against hand-made lives, brute force and its own bounds."""

from __future__ import annotations

import itertools
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from evbatteryd.brands import load_profiles
from evbatteryd.domain.profile import CallLimit
from tests.benchmarks import freshness
from tests.benchmarks.harness.baselines import BASELINES, EvccLike, Fixed, HaLike
from tests.benchmarks.harness.bench import Bench
from tests.benchmarks.harness.comparison import Options, compare
from tests.benchmarks.harness.coverage import Watched
from tests.benchmarks.harness.lives import generate
from tests.benchmarks.harness.metrics import ages, delays, error_by_state, measure
from tests.benchmarks.harness.oracle import FleetOracle, Planned, VehicleOracle
from tests.benchmarks.harness.replay import HINTS, Published, assign, replay, wallbox
from tests.benchmarks.harness.traces import (
    CHARGING,
    DRIVING,
    MONTH_S,
    PARKED,
    PLUGGED,
    Trace,
    load_traces,
)
from tests.benchmarks.harness.upstream import (
    BRANDS,
    PERFECT,
    STORED,
    Brand,
    PollError,
    Reading,
    Upstream,
    Vehicle,
    uploads,
)

LIVES = generate(vehicles=8, days=10)
QUICK = Brand("quick", live=True, quantum=1e-6, latency=(0.0, 0.0), failure=0.0, sleep_after_s=1e12)
EXACT = Brand("exact", delay=(0.0, 0.0), jitter_s=0.0, latency=(0.0, 0.0), failure=0.0, charging_s=1800)


def toy(days: int = 1, name: str = "toy") -> Trace:
    """Parked at 80 %, drives from 8 to 9 h to 60 %, is plugged in at 18 h and charges from 18:02 to 20 h."""
    soc, state = np.full(days * 1440, 0.8), np.full(days * 1440, PARKED, dtype=np.int8)
    for day in range(days):
        at = day * 1440
        state[at : at + 480] = PARKED if day == 0 else PLUGGED
        state[at + 480 : at + 540] = DRIVING
        soc[at + 480 : at + 540] = np.linspace(0.8, 0.6, 61)[:-1]
        soc[at + 540 : at + 1082] = 0.6
        state[at + 1080 : at + 1440] = PLUGGED
        state[at + 1082 : at + 1200] = CHARGING
        soc[at + 1082 : at + 1200] = np.linspace(0.6, 0.8, 119)[:-1]
    return Trace(name, soc, state)


class Every:
    """Asks every so many seconds, and keeps what it heard."""

    name = "every"

    def __init__(self, seconds: float, start: float = 0.0) -> None:
        self.seconds, self.start = seconds, start
        self.heard: list[Reading | PollError] = []

    def first(self, vehicle: Vehicle, now: float) -> float | None:
        return self.start

    def after(self, vehicle: Vehicle, answer: Reading | PollError, now: float) -> float | None:
        self.heard.append(answer)
        return now + self.seconds


class Never(Every):
    def __init__(self) -> None:
        super().__init__(1e9)

    def first(self, vehicle: Vehicle, now: float) -> float | None:
        return None


# --------------------------------------------------------------------- figures
@pytest.mark.parametrize(
    ("name", "error_pp", "calls_per_day", "age_mean_s"),
    [
        ("fixed", 1.3805683385352816, 23.50793650793651, 18496.669819961993),
        ("evcc-like", 1.5654050407512257, 30.158730158730158, 17989.15559745228),
        ("teslamate-like", 1.5323588267944677, 40.63492063492063, 19790.08598217255),
        ("ha-like", 1.1425739441411633, 44.42857142857143, 18245.85339857627),
    ],
)
def test_figures_stay_comparable_from_version_to_version(
    name: str, error_pp: float, calls_per_day: float, age_mean_s: float
) -> None:
    lives = [toy(7, f"toy{number}") for number in range(len(BRANDS))]
    figures = measure(replay(lives, assign(lives, list(BRANDS)), BASELINES[name](seed=3), seed=3))
    assert figures["error_pp"] == pytest.approx(error_pp, rel=1e-9)
    assert figures["calls_per_day"] == pytest.approx(calls_per_day, rel=1e-9)
    assert figures["age_mean_s"] == pytest.approx(age_mean_s, rel=1e-9)


def test_same_seed_same_figures() -> None:
    one, again, other = (
        measure(replay(LIVES, assign(LIVES), HaLike(seed=seed), seed=seed)) for seed in (3, 3, 4)
    )
    assert one == again
    assert one["error_pp"] != other["error_pp"]


def test_without_calls_the_first_value_stays() -> None:
    figures = measure(replay([toy()], [PERFECT], Never()))
    assert figures["calls_per_day"] == 0
    assert figures["error_pp"] == pytest.approx(np.abs(toy().soc - 0.8).mean() * 100)


def test_the_error_vanishes_with_calls_and_without_latency() -> None:
    errors = [
        measure(replay(LIVES[:3], [PERFECT] * 3, Every(seconds)))["error_pp"]
        for seconds in (14400, 3600, 900, 60)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_the_error_integral_by_hand() -> None:
    published = Published()
    published.add(0.0, 0.8, 0.0, False, False)
    published.add(600 * 60.0 + 30, 0.6, 600 * 60.0, False, False)  # in the middle of a minute
    seconds, error = error_by_state(toy(), published)
    assert seconds.sum() == pytest.approx(toy().end)
    assert error[PARKED] == pytest.approx(20 * (60 * 60 + 30))  # from 9:00 to 10:00:30, 20 points off


def test_age_of_information_by_hand() -> None:
    end = toy().end
    published = Published()
    published.add(0.0, 0.8, 0.0, False, False)
    published.add(end / 2, 0.8, end / 2 - 600, False, False)
    mean, _ = ages(toy(), published)
    assert mean == pytest.approx((end / 4 + end / 4 + 600) / 2)


def test_detection_delays_by_hand() -> None:
    published = Published()
    published.add(0.0, 0.8, 0.0, False, False)
    published.add(1100 * 60.0, 0.63, 1100 * 60.0, True, True)  # 20 min after plug-in, 18 after the start
    published.add(1300 * 60.0, 0.8, 1200 * 60.0 + 5, False, True)  # 100 min after the end
    assert delays(toy(), published) == {
        "plug_in": [(1200.0, False)],
        "charge_start": [(1080.0, False)],
        "charge_end": [(6000.0, False)],
        "soc_80": [(6000.0, False)],
    }


def test_an_event_that_was_never_shown_counts_for_as_long_as_it_was_true() -> None:
    published = Published()
    published.add(0.0, 0.8, 0.0, False, False)
    missed = delays(toy(), published)
    assert missed["charge_start"] == [(118 * 60.0, True)]


# ---------------------------------------------------------------------- oracle
def test_no_policy_beats_the_oracle() -> None:
    brands = assign(LIVES)
    oracle = FleetOracle(LIVES, brands, seed=1)
    policies = [kind(seed=1) for kind in BASELINES.values()]
    for policy in [*policies, Fixed(scale=0.1), EvccLike(scale=4), Every(7200, 600)]:
        figures = measure(replay(LIVES, brands, policy, seed=1))
        for vehicle, best in zip(figures["vehicles"], oracle.each, strict=True):
            bound = best.bound(vehicle["calls_per_day"] * oracle.days) / best.trace.end
            assert bound <= vehicle["error_pp"] + 1e-9
        assert oracle.bound_at(figures["calls_per_day"], "fleet") <= figures["error_pp"] + 1e-9


@pytest.mark.parametrize("calls", [20, 60])
def test_the_oracles_plan_replays_to_its_own_figure_on_its_own_bound(calls: int) -> None:
    brands = assign(LIVES)
    oracle = FleetOracle(LIVES, brands)
    plans = {best.trace.id: best.plan_for(calls) for best in oracle.each}
    figures = measure(replay(LIVES, brands, Planned(plans), ideal=True))
    for vehicle, best in zip(figures["vehicles"], oracle.each, strict=True):
        corner = max(np.flatnonzero(best.calls <= calls), key=lambda price: -best.error[price])
        assert round(vehicle["calls_per_day"] * oracle.days) == best.calls[corner]
        assert vehicle["error_pp"] == pytest.approx(best.error[corner] / best.trace.end, abs=1e-6)
        assert best.error[corner] == pytest.approx(best.bound(best.calls[corner]), rel=1e-3, abs=1e-3)


def test_the_oracle_against_brute_force() -> None:
    told = uploads(toy(), EXACT, (0, 0, 1))
    prices = np.concatenate([[0.0], np.geomspace(1, 1e7, 400)])
    oracle = VehicleOracle(toy(), EXACT, (0, 0), prices)
    for calls in range(3):
        best = min(
            _error_of(told, pick)
            for count in range(calls + 1)
            for pick in itertools.combinations(range(len(told.avail)), count)
        )
        assert oracle.bound(calls) <= best + 1e-6
        for corner in np.flatnonzero(oracle.calls == calls)[:1]:
            assert oracle.error[corner] == pytest.approx(best)


def _error_of(told: uploads, pick: tuple[int, ...]) -> float:
    published = Published()
    published.add(0.0, float(told.soc[0]), 0.0, False, False)
    for index in pick:
        published.add(
            float(told.avail[index]), float(told.soc[index]), float(told.oem_ts[index]), False, False
        )
    return error_by_state(toy(), published)[1].sum()


# ----------------------------------------------------------------------- cloud
@pytest.mark.parametrize("name", STORED)
def test_readings_are_old_quantised_truth_in_order(name: str) -> None:
    every, life = Every(1700), LIVES[0]
    replay([life], [BRANDS[name]], every)
    readings = [answer for answer in every.heard if isinstance(answer, Reading)]
    assert len(readings) > 100
    for reading in readings:
        minute = life.minute(reading.oem_ts)
        assert reading.oem_ts <= reading.fetched_at
        assert reading.soc == pytest.approx(float(BRANDS[name].quantise(life.soc[minute])))
        assert reading.is_charging == (life.state[minute] == CHARGING)
        assert reading.is_plugged_in == (life.state[minute] in (CHARGING, PLUGGED))
    measured = [reading.oem_ts for reading in readings]
    assert measured == sorted(measured)


def test_a_rate_limit_answers_429_until_its_window_moves() -> None:
    cloud = Upstream(toy(), Brand("x", limit=(3, 3600), latency=(0.0, 0.0), failure=0.0), (0, 0))
    assert all(isinstance(cloud.call(at), Reading) for at in (0, 60, 120))
    refused = cloud.call(180)
    assert isinstance(refused, PollError)
    assert (refused.kind, refused.retry_after) == ("rate_limited", 3420)
    assert isinstance(cloud.call(180 + 3420), Reading)


def test_a_live_car_falls_asleep_and_polls_keep_it_awake() -> None:
    brand = Brand("x", live=True, asleep="error", latency=(0.0, 0.0), failure=0.0, sleep_after_s=900)
    arrived = 540 * 60.0
    polled, left_alone = (Upstream(toy(), brand, (0, 0)) for _ in range(2))
    assert isinstance(polled.call(arrived + 600), Reading)
    assert isinstance(polled.call(arrived + 1400), Reading)
    assert isinstance(left_alone.call(arrived + 1400), PollError)
    assert isinstance(polled.call(arrived + 1400 + 1000), PollError)


def test_a_cached_car_answers_old_values_while_it_drives() -> None:
    cloud = Upstream(toy(), EXACT, (0, 0))
    on_the_way, arrived = cloud.call(510 * 60.0), cloud.call(541 * 60.0)
    assert (on_the_way.soc, on_the_way.oem_ts) == (0.8, 0.0)
    assert arrived.soc == 0.6
    assert 540 * 60 <= arrived.oem_ts <= 540 * 60 + 20


# ---------------------------------------------------------------------- replay
@pytest.mark.parametrize("scope", ["vehicle", "fleet"])
def test_a_budget_caps_calls(scope: str) -> None:
    slow = Brand("slow", latency=(60.0, 0.1))
    brands = [slow if number % 2 else BRANDS["vw"] for number in range(len(LIVES))]
    run = replay(LIVES, brands, Every(600), budget=300, scope=scope)
    calls = [len(cloud.calls) for cloud in run.ups]
    cap = int(300 * LIVES[0].end / MONTH_S)
    assert sum(calls) == cap * len(LIVES)
    assert all(made == cap for made in calls) if scope == "vehicle" else max(calls) > cap
    assert all(cut is not None for cut in run.cut_at)


def test_a_trend_is_scored_apart() -> None:
    class Trendy(Every):
        def trend(self, vehicle: Vehicle) -> tuple[float, float]:
            return 0.2 / (118 * 60), 0.8

    plain, trendy = (measure(replay([toy()], [QUICK], kind(1e9, 1082 * 60.0))) for kind in (Every, Trendy))
    assert plain["error_pp"] == trendy["error_pp"] == plain["estimated_pp"] > trendy["estimated_pp"]


def test_a_hint_replaces_the_poll_that_was_due() -> None:
    class Hinted(Every):
        def hint(self, vehicle: Vehicle, kind: str, now: float) -> float | None:
            return now + 60

    assert [kind for _, kind in wallbox(toy())] == ["plugged", "charging", "stopped"]
    run = replay([toy()], [PERFECT], Hinted(40000, 100.0), hints=HINTS)
    hinted = [at * 60 + 60.0 for at in (1080, 1082, 1200)]
    assert [call.t for call in run.ups[0].calls] == [100.0, 40100.0, *hinted]
    some = replay([toy()], [PERFECT], Hinted(40000, 100.0), hints=["charging"])
    assert [call.t for call in some.ups[0].calls] == [100.0, 40100.0, hinted[1]]


def test_a_tuned_baseline_is_the_best_of_its_scales() -> None:
    bench = Bench(LIVES)
    tuned = bench.tuned(Fixed, 300)
    assert tuned["calls_per_day"] <= 10
    for scale in (0.8, 1.25):
        other = bench.baseline(Fixed, 300, tuned["scale"] * scale)
        assert tuned["error_pp"] <= other["error_pp"]


# ----------------------------------------------------------------------- lives
def test_made_up_lives_are_the_same_whoever_else_lives_and_however_long() -> None:
    few = generate(vehicles=3, days=4)
    for life, longer in zip(few, LIVES, strict=False):
        assert np.array_equal(life.soc, longer.soc[: 4 * 1440])
        assert np.array_equal(life.state, longer.state[: 4 * 1440])
    assert not np.array_equal(generate(vehicles=1, days=4, seed=1)[0].soc, few[0].soc)


def test_made_up_lives_could_be_lived() -> None:
    for life in generate():
        change, state = np.diff(life.soc), life.state
        assert len(life.soc) == len(state) == 28 * 1440
        assert life.soc.min() >= 0.0
        assert life.soc.max() <= 1.0
        rising = np.flatnonzero(change > 0)
        assert ((state[rising] == CHARGING) | (state[rising + 1] == CHARGING)).all()
        assert (change[state[1:] == DRIVING] <= 0).all()
        assert (change[state[1:] == CHARGING] > -1e-9).all()
        assert (np.abs(change) < 0.05).all()  # 3 C at most, and no battery is empty within 20 minutes


def test_made_up_lives_are_of_many_kinds() -> None:
    lives = generate()
    on_the_move = [float((life.state == DRIVING).mean()) for life in lives]
    longest_rest = [
        max(end - start for start, end, state in life.runs() if state != DRIVING) for life in lives
    ]
    assert max(on_the_move) > 0.12  # a taxi
    assert max(longest_rest) > 14 * 86400  # laid up
    by_night = [_share_charged_between(life, 0, 5) for life in lives]
    at_noon = [_share_charged_between(life, 10, 16) for life in lives]
    assert max(by_night) > 0.6
    assert max(at_noon) > 0.6
    fast = [life for life in lives if (np.diff(life.soc) > 0.015).any()]
    assert len(fast) >= 3  # they charge on the road


def _share_charged_between(life: Trace, first_hour: int, last_hour: int) -> float:
    hours = np.flatnonzero(life.state == CHARGING) // 60 % 24
    return float(((hours >= first_hour) & (hours < last_hour)).mean())


def test_trace_files_are_read_as_they_are_written(tmp_path: Path) -> None:
    import gzip

    (tmp_path / "vehicles").mkdir()
    with gzip.open(tmp_path / "vehicles" / "d01.csv.gz", "wt") as file:
        file.write(
            "t_s,soc_fraction,state\n0,0.5,parked\n60,0.4,driving\n120,0.4,plugged\n180,0.41,charging\n"
        )
    (life,) = load_traces(tmp_path)
    assert (life.id, list(life.soc)) == ("d01", [0.5, 0.4, 0.4, 0.41])
    assert list(life.runs()) == [
        (0, 60, PARKED),
        (60, 120, DRIVING),
        (120, 180, PLUGGED),
        (180, 240, CHARGING),
    ]
    assert len(load_traces(tmp_path, days=2 / 1440)[0].soc) == 2


# -------------------------------------------------------------------- coverage
def test_coverage_is_the_share_of_time_in_which_the_band_holds_the_truth() -> None:
    class Sure(Every):
        """Claims 55 to 65 % from noon on."""

        def interval(self, vehicle: Vehicle, now: float) -> tuple[float, float] | None:
            return (0.55, 0.65) if now >= 43200 else None

    watched = Watched(Sure(3600), [toy()])
    replay([toy()], [EXACT], watched)
    found = watched.coverage(["exact"])
    told = np.arange(720, 1440, 10)
    inside = np.abs(toy().soc[told] - 0.6) <= 0.05 + 5e-5
    assert found["all"]["told"] == 0.5
    assert found["all"]["covered"] == found["exact"]["covered"] == pytest.approx(inside.mean())
    assert found["all"]["above"] == pytest.approx(1 - inside.mean())
    assert found["all"]["width_pp"] == pytest.approx(10)
    assert found["driving"] == {"told": 0.0}


# --------------------------------------------------------------------- adapter
def test_the_adapter_reads_the_shipped_profiles_but_for_the_limit() -> None:
    shipped = load_profiles()
    for brand in BRANDS.values():
        if brand.live:
            continue
        read = freshness._profile(Vehicle("car", brand.name, brand.limit))
        expected = shipped[freshness.BRANDS.get(brand.name, brand.name)]
        limit = None if brand.limit is None else CallLimit(brand.limit[0], timedelta(seconds=brand.limit[1]))
        for field in (
            "makes",
            "reports",
            "driving",
            "charging",
            "parked",
            "idle",
            "floor",
            "silence",
            "quirks",
        ):
            assert getattr(read, field) == getattr(expected, field)
        assert read.soc_step_percent == expected.soc_step_percent
        assert read.limit == limit


def test_the_adapter_needs_the_standard_library_alone() -> None:
    """Another harness loads it by its path, with an interpreter that has nothing of ours."""
    path = Path(freshness.__file__)
    load = (
        "import importlib.util, sys; "
        f"found = importlib.util.spec_from_file_location('adapter', {str(path)!r}); "
        "module = importlib.util.module_from_spec(found); sys.modules['adapter'] = module; "
        "found.loader.exec_module(module); print(module.Policy(budget=720).name)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", load], capture_output=True, text=True, check=True, cwd=path.anchor
    )
    assert done.stdout == "evbatteryd\n"


@pytest.mark.parametrize("scope", ["vehicle", "fleet"])
def test_the_daemons_policy_closes_part_of_the_gap(scope: str) -> None:
    policy = f"{freshness.Policy.__module__}:{freshness.Policy.__name__}"
    options = Options(
        policy=policy, budgets=[500], scope=scope, vehicles=16, days=14, baselines=["fixed"], jobs=1
    )
    figures = compare(options)
    ours = figures["budgets"]["500"]["policy"]
    assert figures["gap_closed_raw"] == ours["gap_closed_raw"] > 0.0
    assert figures["gap_closed_est"] == ours["gap_closed_est"] > 0.2
    assert ours["calls_per_day"] <= 500 / 30
    assert ours["costs"]["learned_bytes_max"] <= 2048
    assert 0.7 < ours["coverage"]["all"]["covered"] < 0.99


def test_a_wall_box_may_tell_some_things_only(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--budget", "500", "--vehicles", "2", "--days", "3", "--baselines", "fixed", "--jobs", "1"]
    freshness.main([*options, "--hints", "plugged,unplugged"])
    assert "with hints (plugged, unplugged)" in capsys.readouterr().out
    parse = freshness._parser().parse_args
    assert parse([*options, "--hints"]).hints == list(HINTS) == list(freshness.HINTS)
    assert parse(options).hints == []
    with pytest.raises(SystemExit):
        parse([*options, "--hints", "plugged,away"])


def test_a_hint_lets_the_daemons_policy_see_a_charge_end_sooner() -> None:
    bench, hinted = Bench(LIVES), Bench(LIVES, hints=HINTS)
    plain, better = (one.run(freshness.Policy(500), 500) for one in (bench, hinted))
    assert better["delay"]["charge_end"]["median_s"] < plain["delay"]["charge_end"]["median_s"]
    assert better["calls_per_day"] <= 500 / 30


@pytest.mark.parametrize("name", freshness.ABLATIONS)
def test_a_part_that_is_left_out_is_a_part_of_the_policy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = freshness.ABLATIONS[name]
    bench = Bench(LIVES[:8])
    whole = bench.run(freshness.Policy(500), 500)
    for place, attribute, _ in changed:  # put back at the end of the test
        monkeypatch.setattr(place, attribute, getattr(place, attribute))
    freshness._ablate([name])
    without = bench.run(freshness.Policy(500), 500)
    assert (without["error_pp"], without["estimated_pp"]) != (whole["error_pp"], whole["estimated_pp"])

"""The policy in the daemon that runs: what it knows lasts, what it claims holds, what it tells is so."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from statistics import mean

import pytest
from aiohttp import web

from evbatteryd.simulator.signals import shown_soc
from tests.mosquitto import Heard, Witness
from tests.whole.daemon import Daemon
from tests.whole.whole import (
    Handler,
    Town,
    command,
    enrolled,
    listed,
    metrics,
    page,
    rows,
    town,
)

SPEED = 7200.0
SLOWER = 300.0
"""After the kill: a process that begins, or a command that is typed, takes minutes then rather than hours."""
CARS = 12
BRANDS = ("tesla", "volvo", "renault", "kia", "bmw", "polestar")
START = datetime(2026, 11, 23, 6, tzinfo=UTC)
A_DAY = timedelta(days=1)
BASE = "home"
CALLS = 720
BUDGET = f"bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = {CALLS}\nanchor_day = {START.day}"
LOOK_EVERY_S = 0.05
SLACK = timedelta(minutes=15)
"""What a tenth of a real second is in time-lapse: instants that different parts noted differ by less. By as
much a start may bring a poll forward: it weighs it anew, by what all cars have taught since."""

Cars = dict[str, dict[str, object]]


@dataclass
class Look:
    """What the daemon told, and what was true, at nearly the same time."""

    at: datetime
    cars: Cars
    truth: dict[str, float]


@dataclass
class Kept:
    """What the store holds of what was learnt."""

    habits: dict[str, bytes]
    lore: dict[str, object]

    @property
    def hours_watched(self) -> float:
        return sum(map(sum, self.lore["watched"]))


@dataclass
class Lived:
    """A day in which everything was looked at, a kill, and what came after."""

    config: Path
    looks: list[Look] = field(default_factory=list)
    states: list[Heard] = field(default_factory=list)
    uploads: set[tuple[str, int, float]] = field(default_factory=set)
    """What the cloud had of a car: slug, when it was measured, percent."""
    page: str = ""
    estimating: dict[str, float] = field(default_factory=dict)
    """The metrics while estimates were shown on the page."""
    plan: dict[str, object] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    spent: tuple[int, int] = (0, 0)
    """Just before and just after the plan was told."""
    terminal: str = ""
    why: str = ""
    """What is told, after the kill, of the car that is asked last of all."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why each car is asked next, as the killed daemon left it."""
    before: Kept | None = None
    """As the killed daemon left it."""
    due: dict[str, datetime] = field(default_factory=dict)
    """When each car was to be asked next then."""
    taken_up: Kept | None = None
    after: Kept | None = None
    """Twenty minutes later at the least, when more was learnt."""
    hours_after: float = 0.0
    first_asked: dict[str, datetime] = field(default_factory=dict)
    """After the kill."""
    calls_after: int = 0
    """In those hours."""
    claimed: Cars = field(default_factory=dict)
    """The cars before Smartcar fell silent."""
    first: str = ""
    """The car whose estimate ended first then,"""
    withdrawn: dict[str, object] = field(default_factory=dict)
    """as the API tells of it after that,"""
    told_last: dict[str, object] = field(default_factory=dict)
    """and MQTT."""


def _at(written: object) -> datetime:
    return datetime.fromisoformat(str(written))


def _kept(config: Path) -> Kept:
    habits = rows(config, "SELECT slug, learned FROM latest JOIN vehicle ON vehicle.id = vehicle_id")
    [(lore,)] = rows(config, "SELECT lore FROM lore")
    return Kept(dict(habits), json.loads(lore))


def _spent(config: Path) -> int:
    [(calls,)] = rows(config, "SELECT coalesce(sum(calls), 0) FROM ledger WHERE vehicle_id != 0")
    return calls


async def _look(place: Town, daemon: Daemon, slugs: dict[str, str]) -> Look:
    truth = await place.control.truth()
    cars = await listed(daemon)
    return Look(place.clock.now(), cars, {slugs[ref]: float(of["soc_percent"]) for ref, of in truth.items()})


async def _live(folder: Path) -> Lived:
    async with town(folder, START, SPEED, vehicles=CARS, brands=BRANDS, seed=2) as place:
        config = place.settled(BASE, BUDGET)
        lived = Lived(config)
        async with Witness(place.broker.port, f"{BASE}/+/state") as witness:
            async with place.daemon(config) as daemon:
                slugs = await enrolled(config, CARS)
                await _watch(place, daemon, slugs, lived)
                await _plan(config, daemon, lived)
                await daemon.end(signal.SIGKILL)
            await _begin_again(place, slugs, lived)
            await _end_claims(place, witness, lived)
        lived.states = [heard for heard in witness.heard if heard.payload and "bridge" not in heard.topic]
        for vehicle in place.simulator.world.fleet:
            car, slug = vehicle.car, slugs[vehicle.id]
            for told in (heard.json for heard in lived.states if heard.json["vehicle"] == slug):
                if told["measured_at"]:
                    at = _at(told["measured_at"]).timestamp()
                    lived.uploads.add((slug, round(at * 1000), shown_soc(car.cloud, car.soc_at(at) * 100)))
    return lived


async def _watch(place: Town, daemon: Daemon, slugs: dict[str, str], lived: Lived) -> None:
    until = place.clock.now() + A_DAY
    while place.clock.now() < until:
        lived.looks.append(await _look(place, daemon, slugs))
        if not lived.page and any(map(_rising, lived.looks[-1].cars.values())):
            told = await page(daemon, "/")
            if 'class="quiet estimate"' in told:
                lived.page, lived.estimating = told, await metrics(daemon)
        await asyncio.sleep(LOOK_EVERY_S)


def _rising(car: dict[str, object]) -> bool:
    return bool(car["soc_estimate"] and car["charging"] and car["soc_estimate"] > car["soc"] + 1)


async def _plan(config: Path, daemon: Daemon, lived: Lived) -> None:
    before = _spent(config)
    lived.plan = json.loads(await command(config, "plan", "--vehicles", "--json"))
    lived.metrics = await metrics(daemon)
    lived.spent = (before, _spent(config))
    lived.terminal = await command(config, "plan", "--vehicles", terminal=80)


async def _begin_again(place: Town, slugs: dict[str, str], lived: Lived) -> None:
    """After the kill in the middle of everything: go on for a while."""
    config, arrived = lived.config, len(place.arrivals.calls)
    place.clock.turn(SLOWER)
    begun_at = place.clock.now()
    lived.before = _kept(config)
    query = "SELECT slug, due_ms, reason FROM latest JOIN vehicle ON vehicle.id = vehicle_id"
    for slug, due_ms, reason in rows(config, query):
        lived.due[slug] = datetime.fromtimestamp(due_ms / 1000, UTC)
        lived.reasons[slug] = reason
    async with place.daemon(config) as daemon:
        lived.taken_up = _kept(config)
        lived.why = await command(config, "why", max(lived.due, key=lambda slug: lived.due[slug]))
        while place.clock.now() < begun_at + timedelta(minutes=20) or not _learnt_since(lived):
            assert place.clock.now() < begun_at + timedelta(hours=6), "nothing more was learnt"
            await asyncio.sleep(LOOK_EVERY_S)
        lived.hours_after = (place.clock.now() - begun_at) / timedelta(hours=1)
        lived.claimed = await listed(daemon)
        assert await daemon.end(signal.SIGTERM) == 0
    for ref, at in place.arrivals.calls[arrived:]:
        lived.first_asked.setdefault(slugs[ref], at)
        lived.calls_after += 1


def _learnt_since(lived: Lived) -> bool:
    """Whether more is kept than the killed daemon left: a busy machine keeps it late."""
    lived.after = _kept(lived.config)
    return lived.after.hours_watched > lived.before.hours_watched


async def _end_claims(place: Town, witness: Witness, lived: Lived) -> None:
    """From now on Smartcar answers nothing, and some time later the first of the estimates holds no more."""
    await place.control.fault("SERVER:INTERNAL")
    until = {slug: _at(car["estimate_until"]) for slug, car in lived.claimed.items() if car["estimate_until"]}
    start, heard = min(until.values()) - timedelta(minutes=20), len(witness.heard)

    def withdrawn(w: Witness) -> str | None:
        """The first car whose estimate is withdrawn; that of another may have been renewed meanwhile."""
        states = (m.json for m in w.heard[heard:] if m.payload and "bridge" not in m.topic)
        return next((told["vehicle"] for told in states if told["soc_estimate"] is None), None)

    async with Daemon(lived.config, SLOWER, start, time.monotonic()) as later:
        await witness.until(withdrawn)
        found = withdrawn(witness)
        assert found is not None
        lived.first = found
        topic = f"{BASE}/{lived.first}/state"
        lived.withdrawn = (await listed(later))[lived.first]
        lived.told_last = witness.on(topic)[-1].json


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Lived:
    return asyncio.run(_live(tmp_path_factory.mktemp("lived")))


# --- what was learnt ------------------------------------------------------------------------------------


def test_what_was_learnt_survives_a_kill(lived: Lived) -> None:
    assert len(lived.before.habits) == CARS
    assert all(lived.before.habits.values())
    assert lived.taken_up.habits == lived.before.habits
    not_asked = lived.due.keys() - lived.first_asked.keys()
    assert all(lived.after.habits[slug] == lived.before.habits[slug] for slug in not_asked)
    # Who had forgotten would have watched since then alone.
    assert lived.before.hours_watched > CARS * 6
    assert lived.after.lore["brands"].keys() == lived.before.lore["brands"].keys() == set(BRANDS)


def test_a_car_is_asked_when_and_why_it_was_going_to_be_before_the_kill(lived: Lived) -> None:
    last = max(lived.due, key=lambda slug: lived.due[slug])
    told = dict(line.split(maxsplit=1) for line in lived.why.splitlines() if line[0] != " ")
    assert told["vehicle"].startswith(f"{last}: ")
    due = datetime.strptime(told["next"].rpartition("(")[2], "%Y-%m-%d %H:%M %Z)").astimezone(UTC)
    assert abs(due - lived.due[last]) <= SLACK
    assert _without_figures(told["reason"]) == _without_figures(lived.reasons[last])


def _without_figures(reason: str) -> str:
    return re.sub(r"[\d.]+", "#", reason)


def test_after_a_kill_nobody_is_asked_who_is_not_due(lived: Lived) -> None:
    assert lived.first_asked
    for slug, at in lived.first_asked.items():
        assert at >= lived.due[slug] - SLACK, slug
    even_per_hour = CARS * CALLS / 30 / 24
    assert lived.calls_after <= 2 * even_per_hour * max(lived.hours_after, 1)


# --- the estimate ---------------------------------------------------------------------------------------


def test_the_estimate_is_nearer_to_the_truth_than_what_was_measured(lived: Lived) -> None:
    raw, estimated, held = [], [], []
    for look in lived.looks:
        for slug, car in look.cars.items():
            if car["soc"] is None:
                continue
            truth = look.truth[slug]
            raw.append(abs(car["soc"] - truth))
            guess = car["soc"] if car["soc_estimate"] is None else car["soc_estimate"]
            estimated.append(abs(guess - truth))
            if car["soc_estimate"] is not None:
                held.append(car["soc_estimate_low"] - 0.5 <= truth <= car["soc_estimate_high"] + 0.5)
    assert len(lived.looks) > 30
    assert mean(estimated) < mean(raw) * 0.9
    assert mean(held) > 0.8


def test_an_estimate_is_whole_and_never_older_than_it_says(lived: Lived) -> None:
    for look in lived.looks:
        for car in look.cars.values():
            told = [car[name] for name in ("soc_estimate", "soc_estimate_low", "soc_estimate_high")]
            assert all(value is None for value in told) or _at(car["estimate_until"]) > look.at - SLACK
            if told[0] is not None:
                estimate, low, high = told
                assert 0 <= low <= estimate <= high <= 100


def test_the_estimate_rises_between_two_polls_and_is_never_in_the_measured_field(lived: Lived) -> None:
    rises = 0
    for before, after in _consecutive(lived.states):
        assert (
            after["vehicle"],
            round(_at(after["measured_at"]).timestamp() * 1000),
            after["soc"],
        ) in lived.uploads
        if before["reading_id"] == after["reading_id"] and before["fetched_at"] == after["fetched_at"]:
            assert before["soc"] == after["soc"]
            assert before["measured_at"] == after["measured_at"]
            rises += (after["soc_estimate"] or 0) > (before["soc_estimate"] or 101)
    assert rises >= 5
    of_api = [
        (before.cars[slug], after.cars[slug])
        for before, after in pairwise(lived.looks)
        for slug in before.cars
    ]
    assert any(
        before["reading_id"] == after["reading_id"]
        and (after["soc_estimate"] or 0) > (before["soc_estimate"] or 101)
        for before, after in of_api
    )


def _consecutive(states: list[Heard]) -> list[tuple[dict[str, object], dict[str, object]]]:
    by_car: dict[str, list[dict[str, object]]] = {}
    for heard in states:
        told = heard.json
        if told["measured_at"]:
            by_car.setdefault(str(told["vehicle"]), []).append(told)
    return [pair for told in by_car.values() for pair in pairwise(told)]


def test_the_page_and_the_metrics_show_it_while_a_car_charges(lived: Lived) -> None:
    assert "estimate: <span>about " in lived.page
    estimates = {
        name: value
        for name, value in lived.estimating.items()
        if name.startswith("evbattery_state_of_charge_estimate_ratio{")
    }
    assert estimates
    assert all(0 <= value <= 1 for value in estimates.values())
    measured = {name.replace("_estimate_ratio", "_ratio"): value for name, value in estimates.items()}
    assert any(value > lived.estimating[name] + 0.005 for name, value in measured.items())


def test_an_estimate_that_holds_no_more_is_withdrawn(lived: Lived) -> None:
    assert lived.claimed[lived.first]["soc_estimate"] is not None
    for told in (lived.withdrawn, lived.told_last):
        assert told["soc_estimate"] is told["soc_estimate_low"] is told["estimate_until"] is None
        assert told["soc"] == lived.claimed[lived.first]["soc"]


# --- the plan -------------------------------------------------------------------------------------------


def test_the_plan_tells_how_the_period_will_end(lived: Lived) -> None:
    [plan] = lived.plan["applications"]
    least, most = lived.spent
    assert least <= plan["spent"] <= most
    assert plan["calls"] == plan["spent"] + plan["left"] == CARS * CALLS
    assert plan["spent"] <= plan["expected"] <= plan["calls"]
    # It spends what it has, evenly.
    assert 0.5 <= plan["pace_per_day"] / (CARS * CALLS / 30) <= 1.5, plan
    assert timedelta(minutes=30) <= timedelta(seconds=plan["interval_s"]) <= timedelta(hours=3), plan
    assert plan["renews_at"] == "2026-12-23T00:00:00Z"
    assert plan["standings"]["polled"] + plan["standings"]["silent"] == CARS
    assert plan["price"] > 0
    assert 0 <= plan["gain"] < 5
    assert plan["spent"] <= sum(share["spent"] for share in lived.plan["vehicles"]) <= most
    calls = sum(share["calls_per_day"] for share in lived.plan["vehicles"])
    assert calls == pytest.approx(plan["pace_per_day"], rel=0.1)


def test_the_metrics_agree_with_the_plan(lived: Lived) -> None:
    [plan] = lived.plan["applications"]
    of = {
        name.removesuffix('{application="test"}'): value
        for name, value in lived.metrics.items()
        if name.endswith('{application="test"}')
    }
    least, most = lived.spent
    assert plan["calls"] - most <= of["evbatteryd_calls_budget_remaining"] <= plan["calls"] - least
    assert of["evbatteryd_calls_forecast"] == pytest.approx(plan["expected"], rel=0.1)
    assert of["evbatteryd_poll_interval_expected_seconds"] == pytest.approx(plan["interval_s"], rel=0.1)
    assert of["evbatteryd_call_price_percent_seconds"] == pytest.approx(plan["price"], rel=0.5)
    assert of["evbatteryd_period_ends_timestamp_seconds"] == _at(plan["renews_at"]).timestamp()


def test_the_plan_is_read_in_a_narrow_terminal(lived: Lived) -> None:
    lines = lived.terminal.splitlines()
    assert f"test: {CALLS} calls per vehicle and month, until 2026-12-23 " in lines[0]
    assert max(map(len, map(_plain, lines))) <= 80
    assert (
        sum(line.startswith(("tesla", "volvo", "renault", "kia", "bmw", "polestar")) for line in lines)
        == CARS
    )


def _plain(line: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()


# --- what calls cost ------------------------------------------------------------------------------------

DAILY = 24
A_DAYS_PLAN = f'bucket = 10000\nrefill_per_minute = 600\ncalls_per_vehicle = {DAILY}\nperiod = "day"'
MIDNIGHT = datetime(2026, 11, 24, tzinfo=UTC)


async def test_a_plan_that_smartcar_says_is_used_up_is_used_up_here_too(tmp_path: Path) -> None:
    allowed = 2
    options = {"vehicles": 2, "brands": ("volvo",), "calls_per_vehicle": allowed, "period": "day"}
    async with town(tmp_path, MIDNIGHT, SPEED / 2, **options) as place:
        config = place.settled(BASE, A_DAYS_PLAN)
        async with place.daemon(config) as daemon:
            await _until(lambda: _calls(config) == [DAILY] * 2)
            refused = place.clock.now()
            plan = json.loads(await command(config, "plan", "--vehicles", "--json"))
            [of_all] = plan["applications"]
            assert (of_all["spent"], of_all["left"], of_all["standings"]["spent"]) == (2 * DAILY, 0, 2)
            assert [(car["standing"], car["left"]) for car in plan["vehicles"]] == [("spent", 0)] * 2
            assert all("until 2026-11-25 00:00 UTC" in car["reason"] for car in plan["vehicles"]), plan
            assert (await metrics(daemon))['evbatteryd_calls_budget_remaining{application="test"}'] == 0
            # Nobody is asked again before the day is over, not even by a daemon that begins anew.
            await daemon.end(signal.SIGKILL)
            await daemon.start()
            assert _calls(config) == [DAILY] * 2
            await asyncio.sleep(0.5)
            assert refused.date() == place.clock.now().date()
            assert set(place.arrivals.by_car().values()) == {allowed + 1}


@pytest.mark.slow
async def test_what_takes_three_pages_costs_three_calls_and_is_asked_for_less_often(tmp_path: Path) -> None:
    @web.middleware
    async def narrow(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Pages of a third of what the car tells."""
        if request.path.endswith("/signals"):
            request = request.clone(rel_url=request.rel_url.update_query({"page[size]": "4"}))
        return await handler(request)

    async with town(tmp_path, MIDNIGHT, SPEED, narrow, vehicles=3, brands=("volvo",)) as place:
        config = place.settled(BASE, A_DAYS_PLAN)
        async with place.daemon(config) as daemon:
            noon = MIDNIGHT + timedelta(hours=12)
            while place.clock.now() < noon:  # noqa: ASYNC110 - time goes by
                await asyncio.sleep(0.05)
            plan = json.loads(await command(config, "plan", "--vehicles", "--json"))
            assert await daemon.end(signal.SIGTERM) == 0
    assert dict(rows(config, "SELECT calls_per_poll, count(*) FROM latest GROUP BY 1")) == {3: 3}
    spent = _calls(config)
    assert sorted(spent) == sorted(place.arrivals.by_car().values())
    # As many reads as the calls make, and half a day later there are still some for the other half.
    assert all(DAILY / 3 <= calls <= DAILY - 3 and calls % 3 == 0 for calls in spent), spent
    for car in plan["vehicles"]:
        assert car["interval_s"] == pytest.approx(3 * 86_400 / car["calls_per_day"], rel=0.01)


def _calls(config: Path) -> list[int]:
    """Calls of each car, as they are in the ledger."""
    query = "SELECT sum(calls) FROM ledger WHERE vehicle_id != 0 GROUP BY vehicle_id ORDER BY vehicle_id"
    return [calls for (calls,) in rows(config, query)]


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.02)

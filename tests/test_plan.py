"""``evbatteryd plan``, as it is typed: sentences and tables that say at a glance how the period will end."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.domain.fleet import Car
from evbatteryd.domain.ledger import Budget, Period
from tests.fakes import START, VirtualClock
from tests.test_cli import Machine, configured, machine, terminal
from tests.web import builders
from tests.web.test_planning import Book

SETTLED = timedelta(days=60)
CALLS = {1: 430, 2: 360, 3: 9, 4: 2}


def long_enrolled(car: Car) -> Car:
    return replace(car, vehicle=replace(car.vehicle, enrolled_at=START - SETTLED))


def cars() -> tuple[Car, ...]:
    return tuple(
        map(
            long_enrolled,
            (
                builders.car(1, slug="zoe"),
                builders.car(2, slug="leaf", reason="parked \x1b[31m; hardly worth it"),
                builders.car(3, slug="eq", pushed_at=START),
                builders.car(4, slug="old", measured_at=START - SETTLED),
            ),
        )
    )


@pytest.fixture
async def garage(tmp_path: Path) -> AsyncIterator[Machine]:
    books = {"home": Book(calls=CALLS), "away": Book(Budget(pooled=True, calls_per_vehicle=200))}
    async with machine(tmp_path, *cars(), clock=VirtualClock(), ledgers=books, price=8e3) as made:
        yield made


async def test_it_is_said_in_words(garage: Machine) -> None:
    away, _, home, _, *table = (await garage.out("plan")).splitlines()
    assert away.startswith("away: 200 calls per vehicle and month, pooled, until 2026-12-01 ")
    assert away.endswith("(in 8 d 12 h). No car is asked.")
    assert home.startswith("home: 500 calls per vehicle and month, until 2026-12-01 ")
    for sentence in (
        "801 of 2000 are spent; at this pace it will be 1015 (37.3 a day; what is left would do for 141).",
        "Each car that is polled can expect a poll every 1 h 57 min.",
        "At this pace 1 car runs out of calls before then, the first on 2026-11-26 ",
        "1 car is fed by webhooks: it needs few calls.",
        "1 car has been silent for long: it needs few calls.",
        "1000 calls per vehicle and month instead of 500 would lower the mean error of the state of charge ",
    ):
        assert sentence in home, home
    head, first, second = table
    assert head.split()[:6] == ["application", "cars", "calls", "spent", "left", "expected"]
    assert first.split()[:6] == ["away", "0", "200", "0", "200", "0"]
    assert second.split()[:6] == ["home", "4", "2000", "801", "1199", "1015"]
    assert first.endswith("nothing     ?          0 pp")
    assert second.endswith("plan        8000       0.3 pp")


async def test_the_calls_last(tmp_path: Path) -> None:
    books = {"home": Book(calls={1: 350, 2: 340})}
    async with machine(tmp_path, *cars()[:2], clock=VirtualClock(), ledgers=books) as there:
        said = await there.out("plan", "--application", "home")
    assert "The calls last." in said
    assert "not known yet" in said
    assert "webhooks" not in said


async def test_each_car(garage: Machine) -> None:
    said = await garage.out("plan", "--vehicles", "--application", "home")
    head, eq, leaf, old, zoe = said.splitlines()[-5:]
    assert " ".join(head.split()) == "vehicle spent left a day every state next poll pp*s/call why"
    assert zoe.split()[:4] == ["zoe", "430", "70", "8.2"]
    assert leaf.split()[:4] == ["leaf", "360", "140", "16.5"]
    assert "polled  in 1 h" in zoe
    assert "pushed" in eq
    assert "silent" in old
    assert zoe.endswith("parked; Example every 2 h")
    assert "\x1b" not in said


async def test_who_has_used_up_the_calls_is_not_said_to_last(tmp_path: Path) -> None:
    evening = VirtualClock(START + timedelta(hours=8))
    books = {"home": Book(Budget(calls_per_vehicle=48, period=Period.DAY), calls={1: 48, 2: 3})}
    async with machine(tmp_path, *cars()[:2], clock=evening, ledgers=books) as there:
        said = await there.out("plan", "--application", "home")
    assert "1 car has used up its calls." in said
    assert "The calls last." not in said


@pytest.mark.parametrize("columns", [60, 80, 200])
async def test_it_fits_its_terminal(garage: Machine, columns: int) -> None:
    async with terminal(garage, "plan", "--vehicles", columns=columns) as screen:
        lines = await screen.to_the_end()
    assert screen.process.returncode == 0
    assert max(map(len, lines)) <= columns
    assert any("The calls" in line or "runs out" in line for line in lines)
    head, *rows = lines[next(number for number, line in enumerate(lines) if line.startswith("application")) :]
    assert "limited by" in head
    assert "more buys" in head
    assert ("even" in head) is (columns == 200)
    assert re.search(r"plan .* 0\.3 pp$", rows[1].rstrip())


@pytest.mark.parametrize("columns", [60, 80, 200])
async def test_why_a_car_is_asked_goes_below_where_it_has_no_room(garage: Machine, columns: int) -> None:
    async with terminal(garage, "plan", "--vehicles", columns=columns) as screen:
        lines = [line.rstrip() for line in await screen.to_the_end()]
    head, *rows = lines[next(number for number, line in enumerate(lines) if line.startswith("vehicle")) :]
    assert "pp*s/call" in head
    assert "next poll" in head
    assert ("state" in head) is (columns >= 80)
    zoe = next(number for number, row in enumerate(rows) if row.startswith("zoe"))
    why = "parked; Example every 2 h"
    assert rows[zoe].endswith(why) is head.endswith("why") is (columns == 200)
    if columns < 200:
        assert rows[zoe + 1] == f"  {why}"
        assert [row.split()[0] for row in rows if row[:1].strip()] == ["eq", "leaf", "old", "zoe"]
    assert "\x1b[31m" not in screen.seen


async def test_a_long_reason_is_told_whole(tmp_path: Path) -> None:
    reason = "parked " + "and parked " * 12 + "at last"
    one = long_enrolled(builders.car(1, slug="zoe", reason=reason))
    async with (
        machine(tmp_path, one, clock=VirtualClock(), ledgers={"home": Book()}) as there,
        terminal(there, "plan", "--vehicles", columns=60) as screen,
    ):
        lines = await screen.to_the_end()
    assert max(map(len, lines)) <= 60
    assert reason in re.sub(r"\s+", " ", " ".join(lines))


async def test_as_json(garage: Machine) -> None:
    told = json.loads(await garage.out("plan", "--json", "--application", "home", "--calls", "250"))
    assert told["now"] == "2026-11-22T12:00:00Z"
    assert told["vehicles"] is None
    (home,) = told["applications"]
    assert (home["other_calls_per_vehicle"], home["run_out"], home["limited_by"]) == (250, 1, "plan")
    assert home["gain"] < 0
    assert round(home["gain"], 2) == home["gain"]
    assert (home["price"], type(home["price"]), type(home["interval_s"])) == (8000, int, int)
    assert home["began_at"] == "2026-11-01T00:00:00Z"
    told = json.loads(await garage.out("plan", "--json", "--vehicles"))
    assert {one["slug"] for one in told["vehicles"]} == {"zoe", "leaf", "eq", "old"}


async def test_what_cannot_be_asked(garage: Machine) -> None:
    assert await garage.refusal("plan", "--application", "hoem") == (
        "evbatteryd: there is no application 'hoem'. Did you mean 'home'?\n"
    )
    assert "Usage:" in await garage.refusal("plan", "--calls", "0", code=2)


async def test_the_daemon_is_not_running(tmp_path: Path) -> None:
    there = Machine(configured(tmp_path, "127.0.0.1:9"), None)
    assert "evbatteryd is not running at 127.0.0.1:9" in await there.refusal("plan")


async def test_times_are_told_by_the_daemons_clock(tmp_path: Path) -> None:
    """Which need not be that of this machine: a demonstration's runs faster."""
    one = builders.car(1, slug="zoe", measured_at=START - timedelta(hours=3))
    async with machine(tmp_path, one, clock=VirtualClock()) as there:
        told = await there.out("why", "zoe")
        assert "measured   3 h ago (2026-11-22 " in told
        assert "next poll  in 1 h (2026-11-22 " in told
        assert "  3 h ago  " in await there.out("vehicles")

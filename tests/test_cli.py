"""The verbs of an operator, as they are typed: against the real web, in terminals, pipes and files."""

from __future__ import annotations

import asyncio
import codecs
import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import sys
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from evbatteryd import commands
from evbatteryd.cli import main
from evbatteryd.clock import WallClock
from evbatteryd.commands import COLUMNS, GAP, Column, fitting
from evbatteryd.domain.commanding import CommandOutcome
from evbatteryd.domain.enrolment import Ending, EnrolmentId
from evbatteryd.domain.fleet import Car, Trouble
from evbatteryd.domain.ledger import Budget
from evbatteryd.localkey import path_of
from evbatteryd.web import commanding
from tests.fakes import VirtualClock, until
from tests.test_operate import KEY, USER, Daemon, running
from tests.web import builders
from tests.web.test_planning import Book

PATIENCE_S = 30.0
NOW = WallClock().now()


def asleep() -> Trouble:
    return Trouble("asleep", "VEHICLE_STATE:ASLEEP", "It sleeps.", WallClock().now() - timedelta(hours=3))


def cars() -> tuple[Car, ...]:
    """As of this moment: the command line tells ages by the machine's clock."""
    now = WallClock().now()
    return (
        builders.car(
            1,
            slug="zoe",
            name="Zoe",
            invited="Ada",
            measured_at=now - timedelta(minutes=12),
            fetched_at=now - timedelta(minutes=11),
            due=now + timedelta(minutes=34, seconds=20),
            permissions=frozenset({"read_battery", "control_charge"}),
        ),
        builders.car(2, slug="leaf", name="Old \x1b[31mLeaf", values={}, measured_at=None, trouble=asleep()),
        builders.car(3, slug="gone", name="Gone", withdrawn_at=now - timedelta(days=3)),
    )


@dataclass
class Machine:
    """Where the commands are typed: a configuration, a key, and a daemon that may be running."""

    config: Path
    daemon: Daemon

    async def run(self, *arguments: str) -> Result:
        """In this process: quick, without a terminal and without standard input."""
        verb, *rest = arguments
        words = [verb, "--config", str(self.config), *rest]
        return await asyncio.to_thread(CliRunner().invoke, main, words)

    async def out(self, *arguments: str) -> str:
        """What a command prints that does what it is told."""
        done = await self.run(*arguments)
        assert done.exit_code == 0, done.output
        return done.stdout

    async def refusal(self, *arguments: str, code: int = 1) -> str:
        """What a command says that does not."""
        done = await self.run(*arguments)
        assert (done.exit_code, done.stdout) == (code, ""), done.output
        return done.stderr


@asynccontextmanager
async def machine(tmp_path: Path, *cars: Car, **given_to_daemon: Any) -> AsyncIterator[Machine]:
    async with running(*cars, **given_to_daemon) as daemon:
        yield Machine(configured(tmp_path, daemon.listen, given_to_daemon.get("public_url")), daemon)


def configured(folder: Path, listen: str, public_url: str | None = None) -> Path:
    """A configuration for that daemon, whose secret only systemd could hand over."""
    database = folder / "evbatteryd.db"
    path_of(database).write_text(KEY + "\n")
    path_of(database).chmod(0o600)
    config = folder / "evbatteryd.toml"
    config.write_text(
        f"""
        [smartcar.home]
        client_id = "client_1"
        client_secret = {{ credential = "smartcar-secret" }}
        [http]
        listen = "{listen}"
        {f'public_url = "{public_url}"' if public_url else ""}
        [store]
        url = "sqlite:///{database}"
        """
    )
    return config


@pytest.fixture
async def garage(tmp_path: Path) -> AsyncIterator[Machine]:
    async with machine(tmp_path, *cars()) as made:
        yield made


# --- vehicles -----------------------------------------------------------------------------------------


async def test_the_cars_in_a_pipe_are_whole_and_aligned(garage: Machine) -> None:
    lines = (await garage.out("vehicles")).splitlines()
    since = f"{cars()[0].vehicle.enrolled_at.astimezone():%Y-%m-%d}"
    head, leaf, zoe = lines
    assert head.split() == [column.title for column in COLUMNS]
    assert re.split(r" {2,}", zoe) == [
        "zoe",
        "Zoe",
        "57 %",
        "fresh",
        "12 min ago",
        "Ada",
        "home",
        "control_charge, battery",
        since,
    ]
    assert leaf.startswith("leaf ")
    assert leaf.endswith("  asleep")
    for title, text in (("SoC", "57 %"), ("measured", "12 min"), ("since", since)):
        assert head.index(title) == zoe.index(text)
    assert "\x1b" not in leaf, "a name does not command the terminal"


async def test_those_whose_consent_is_gone_are_shown_on_request(garage: Machine) -> None:
    assert "gone" not in await garage.out("vehicles")
    lines = (await garage.out("vehicles", "--all")).splitlines()
    assert [line.split()[0] for line in lines] == ["vehicle", "gone", "leaf", "zoe"]
    assert lines[1].endswith("  withdrawn 3 d ago")


async def test_the_cars_as_json(garage: Machine) -> None:
    told = json.loads(await garage.out("vehicles", "--json", "--all"))["vehicles"]
    zoe = next(car for car in told if car["slug"] == "zoe")
    assert zoe["soc"] == 57
    assert zoe["permissions"] == ["control_charge", "read_battery"]
    assert zoe["trouble"] is None
    assert zoe["brand"] == "example"
    assert {car["slug"] for car in told} == {"zoe", "leaf", "gone"}


async def test_an_empty_garage_says_how_to_begin(tmp_path: Path) -> None:
    async with machine(tmp_path) as empty:
        done = await empty.run("vehicles")
        assert (done.exit_code, done.stdout) == (0, "")
        assert "evbatteryd enrol" in done.stderr
        assert json.loads(await empty.out("vehicles", "--json")) == {"vehicles": []}


@pytest.mark.parametrize(("width", "shown"), [(80, False), (180, True)])
async def test_a_table_fits_its_terminal(garage: Machine, width: int, shown: bool) -> None:
    async with terminal(garage, "vehicles", "--all", columns=width) as screen:
        lines = await screen.to_the_end()
    assert screen.process.returncode == 0
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines if line] == ["vehicle", "gone", "leaf", "zoe"]
    table = "\n".join(lines)
    assert all(text in table for text in ("57 %", "fresh", "12 min ago", "asleep", "Ada"))
    assert ("control_charge, battery" in table) is shown


@given(
    widths=st.lists(st.integers(1, 60), min_size=len(COLUMNS), max_size=len(COLUMNS)),
    absent=st.sets(st.sampled_from(COLUMNS[1:])),
    room=st.integers(1, 400),
)
def test_columns_are_chosen_by_rank_and_shown_in_order(
    widths: list[int], absent: set[Column], room: int
) -> None:
    known = {column: width for column, width in zip(COLUMNS, widths, strict=True) if column not in absent}
    chosen = fitting(known, room)
    assert chosen[0] is COLUMNS[0], "whose line it is"
    assert chosen == [column for column in COLUMNS if column in chosen]
    needed = sum(known[column] + GAP for column in chosen) - GAP
    assert needed <= room or len(chosen) == 1
    assert sum(width + GAP for width in known.values()) - GAP > room or len(chosen) == len(known)


# --- rename, disconnect, why ---------------------------------------------------------------------------


async def test_a_car_is_renamed(garage: Machine) -> None:
    assert await garage.out("rename", "zoe", "--name", "Our Zoe") == "zoe is now zoe: Our Zoe.\n"
    said = await garage.out("rename", "zoe", "--slug", "our_zoe")
    assert "zoe is now our_zoe: Our Zoe." in said
    assert "topics" in said
    assert "another car has" in await garage.refusal("rename", "our_zoe", "--slug", "leaf")
    assert "--name, --slug or both" in await garage.refusal("rename", "our_zoe", code=2)


async def test_a_car_is_disconnected_without_being_asked(garage: Machine) -> None:
    assert await garage.out("disconnect", "zoe", "--yes") == "zoe is disconnected.\n"
    erased = await garage.out("disconnect", "leaf", "--erase", "--yes")
    assert erased == "leaf is disconnected and its history erased.\n"
    garage.daemon.steward.unwilling = "Smartcar did not answer: try again."
    assert await garage.refusal("disconnect", "zoe", "--yes") == (
        "evbatteryd: Smartcar did not answer: try again.\n"
    )


async def test_nothing_ends_by_mistake(garage: Machine) -> None:
    assert "say --yes" in await garage.refusal("disconnect", "zoe", code=2)
    for answer, code in (("n", 1), ("", 1), ("y", 0)):
        zoe = garage.daemon.fleet.by_slug("zoe")
        assert zoe is not None
        assert zoe.vehicle.withdrawn_at is None
        async with terminal(garage, "disconnect", "zoe", "--erase") as screen:
            asked = await screen.until(r"\[y/N\]")
            screen.type(answer + "\n")
            await screen.to_the_end()
        assert "End the consent for zoe (Zoe)?" in asked
        assert "deleted" in asked
        assert screen.process.returncode == code
    zoe = garage.daemon.fleet.by_slug("zoe")
    assert zoe is not None
    assert zoe.vehicle.withdrawn_at is not None


# --- poll ---------------------------------------------------------------------------------------------


async def test_a_car_is_read_without_being_asked_whether_it_is_worth_it(garage: Machine) -> None:
    told = reasons(await garage.out("poll", "zoe", "--yes"))
    assert told["done"] == "a new reading: 63 % measured 2 min ago"
    assert told["state"].startswith("57 %")
    assert told["measured"].startswith("12 min ago")
    assert told["calls left"] == "36"
    assert "next poll" in told
    assert [heard[0] for heard in garage.daemon.commands.heard] == ["zoe"]


async def test_what_a_poll_brought_as_json(garage: Machine) -> None:
    told = json.loads(await garage.out("poll", "zoe", "--yes", "--json"))
    assert (told["vehicle"], told["soc"], told["outcome"]) == ("zoe", 57.0, "done")
    assert (told["calls"], told["calls_left"], told["reading_id"]) == (1, 36, "r-1")
    assert told["measured_at"]


@pytest.mark.parametrize("outcome", [CommandOutcome.NOT_NOW, CommandOutcome.FAILED])
async def test_a_poll_that_was_not_made_says_why(garage: Machine, outcome: CommandOutcome) -> None:
    garage.daemon.commands.answers = [builders.command_answer(outcome, reason="asked 2 min ago")]
    told = reasons(await garage.refusal("poll", "zoe", "--yes"))
    assert told[outcome.replace("_", " ")] == "asked 2 min ago"
    done = await garage.run("poll", "zoe", "--yes", "--json")
    assert (done.exit_code, json.loads(done.stdout)["outcome"]) == (1, outcome)


async def test_without_a_terminal_a_poll_says_what_it_costs(tmp_path: Path) -> None:
    plan = Book(Budget(calls_per_vehicle=40), {1: 3})
    async with machine(tmp_path, *cars(), ledgers={"home": plan}, clock=VirtualClock()) as garage:
        said = await garage.refusal("poll", "zoe", code=2)
        assert "this costs 1 of 37 calls left until 2026-" in said
        assert "--yes to go on" in said
        assert garage.daemon.commands.heard == []


async def test_a_car_whose_answer_comes_in_pages_costs_as_many_calls(tmp_path: Path) -> None:
    zoe = cars()[0]
    paged = replace(zoe, schedule=replace(zoe.schedule, calls_per_poll=2))
    plan = Book(Budget(calls_per_vehicle=40), {1: 3})
    async with machine(tmp_path, paged, ledgers={"home": plan}, clock=VirtualClock()) as garage:
        assert "this costs 2 of 37 calls left" in await garage.refusal("poll", "zoe", code=2)
    async with machine(tmp_path, paged) as garage:
        assert "this costs 2 calls" in await garage.refusal("poll", "zoe", code=2)


async def test_a_poll_that_takes_long_is_no_failure(garage: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commanding, "ANSWERED_WITHIN_S", 0.02)
    garage.daemon.commands.answers, garage.daemon.commands.endless = [], True
    told = reasons(await garage.refusal("poll", "zoe", "--yes", code=3))
    assert told["under way"] == "it is under way: no answer has come yet"


async def test_a_poll_is_made_when_somebody_says_yes(garage: Machine) -> None:
    for answer, code, polls in (("n", 1, 0), ("y", 0, 1)):
        async with terminal(garage, "poll", "zoe") as screen:
            asked = await screen.until(r"\[y/N\]")
            screen.type(answer + "\n")
            await screen.to_the_end()
        assert "this costs a call. Go on?" in asked
        assert (screen.process.returncode, len(garage.daemon.commands.heard)) == (code, polls)


async def test_why_tells_how_a_car_stands(garage: Machine) -> None:
    told = reasons(await garage.out("why", "zoe"))
    assert told["vehicle"] == "zoe: Zoe (EXAMPLE One 2024), application home"
    assert told["state"] == "57 %"
    assert told["measured"].startswith("12 min ago (20")
    assert told["freshness"] == "fresh"
    assert told["last poll"] == "brought something new"
    assert told["webhooks"] == "do not deliver: it is polled"
    assert re.match(r"in 34 min \(20\d\d-", told["next poll"])
    assert told["reason"] == "parked; Example every 2 h"
    assert "trouble" not in told
    assert "consent" not in told


async def test_why_tells_troubles_and_webhooks(tmp_path: Path) -> None:
    pushed = builders.car(
        4, slug="pushed", pushed_at=WallClock().now() - timedelta(minutes=5), due=None, trouble=asleep()
    )
    async with machine(tmp_path, pushed, *cars()) as garage:
        told = reasons(await garage.out("why", "pushed"))
        assert told["webhooks"].startswith("deliver: the last one came 5 min ago")
        assert told["next poll"] == "not before something changes"
        assert told["trouble"] == "Asleep for 3 h: It sleeps. (VEHICLE_STATE:ASLEEP)"
        gone = reasons(await garage.out("why", "gone"))
        assert gone["consent"].startswith("withdrawn 3 d ago")
        assert "next poll" not in gone


def reasons(told: str) -> dict[str, str]:
    return {line[:11].strip(): line[11:] for line in told.splitlines()}


@pytest.mark.parametrize(
    "verb", [("why",), ("rename", "--name", "x"), ("disconnect", "--yes"), ("poll", "--yes"), ("poll",)]
)
async def test_a_name_that_no_car_has_brings_one_to_mind(garage: Machine, verb: tuple[str, ...]) -> None:
    said = await garage.refusal(*verb, "zoo")
    assert said == "evbatteryd: there is no vehicle 'zoo'. Did you mean 'zoe'?\n"
    assert "Known here: gone, leaf, zoe." in await garage.refusal(*verb, "../x")


async def test_a_name_in_a_large_fleet_brings_few_to_mind(tmp_path: Path) -> None:
    async with machine(tmp_path, *(builders.car(n, slug=f"car_number_{n}") for n in range(60))) as garage:
        assert (await garage.refusal("why", "x")).count("car_number") == commands.MOST_ALIKE
    async with machine(tmp_path) as empty:
        assert "There is none yet: `evbatteryd enrol`" in await empty.refusal("why", "x")


# --- enrol --------------------------------------------------------------------------------------------


async def test_a_browser_at_this_machine_brings_the_consent_back(tmp_path: Path) -> None:
    async with (
        machine(tmp_path) as garage,
        typed(garage, "enrol", "--make", "example", "--country", "de") as enrolling,
    ):
        said = await enrolling.until(r"Ctrl-C stops")
        port = garage.daemon.where["port"]
        query = parse_qs(urlsplit(link_in(said)).query)
        assert (query["make"], query["flags"]) == (["EXAMPLE"], ["country:DE"])
        assert "A browser on this machine comes back by itself" in said
        assert f"ssh -L {port}:localhost:{port} " in said
        assert f"paste it here:\n  http://localhost:{port}/enrol/callback?..." in said
        async with aiohttp.ClientSession() as browser, browser.get(answer_to(said)) as page:
            assert page.status == 200
        said = await enrolling.until("first reading")
        assert "Thank you, your consent has arrived." in said
        new = builders.car(7, slug="new", name="New", user_ref=USER, values={}, measured_at=None)
        unheard = builders.car(8, slug="shy", name="Shy", user_ref=USER, values={}, trouble=asleep())
        await garage.daemon.arrive(garage.daemon.welcomed[0], without_outcome(new), unheard)
        asked = len(garage.daemon.hosts)
        await until(lambda: len(garage.daemon.hosts) > asked + 6)
        assert enrolling.process.returncode is None, "one of them has not been read yet"
        garage.daemon.put(builders.car(7, slug="new", name="New", user_ref=USER))
        said = await enrolling.to_the_end()
        assert "new: New, 57 %" in said
        assert "shy: Shy, not read yet: asleep (evbatteryd why shy)" in said
        assert USER not in "\n".join(said)
    assert enrolling.process.returncode == 0


def without_outcome(car: Car) -> Car:
    return replace(car, schedule=replace(car.schedule, outcome=""))


async def test_the_address_is_pasted_after_a_wrong_one(tmp_path: Path) -> None:
    async with machine(tmp_path) as garage, typed(garage, "enrol") as enrolling:
        said = await enrolling.until("Ctrl-C stops")
        enrolling.type("\nhttps://example.org/?q=1\n")
        assert "This address is not complete" in await enrolling.until("Still waiting")
        enrolling.type(answer_to(said) + "\n")
        await enrolling.until("Thank you")
        await garage.daemon.arrive(garage.daemon.welcomed[0], builders.car(slug="new", user_ref=USER))
        assert "new: Car 1, 57 %" in await enrolling.to_the_end()
    assert enrolling.process.returncode == 0


async def test_the_address_is_pasted_into_a_terminal(tmp_path: Path) -> None:
    async with machine(tmp_path) as garage, terminal(garage, "enrol", columns=500) as screen:
        said = await screen.until("Ctrl-C stops")
        screen.type(answer_to(said, error="access_denied") + "\n")
        lines = await screen.to_the_end()
        assert any("You said no, and that is fine." in line for line in lines)
    assert screen.process.returncode == 1


async def test_the_answer_to_another_link_is_told_apart(tmp_path: Path) -> None:
    async with machine(tmp_path) as garage, typed(garage, "enrol") as enrolling:
        said = await enrolling.until("Ctrl-C stops")
        async with garage.daemon.operator() as operator:
            other = await operator.begin_enrolment()
        enrolling.type(answer_to(other.link, error="access_denied") + "\n")
        assert "the answer to another link: You said no" in await enrolling.until("Still waiting")
        enrolling.type(answer_to(said, error="no_vehicles"))
        enrolling.end_of_input()
        assert any("There is no car in that account." in line for line in await enrolling.to_the_end())
    assert enrolling.process.returncode == 1


@pytest.mark.parametrize("redirected", ["<&-", "</dev/null", "<{file}"])
async def test_whatever_standard_input_is_the_consent_is_waited_for(tmp_path: Path, redirected: str) -> None:
    """Closed, empty, a file: none of them makes anybody wait, or end."""
    (tmp_path / "typed").write_text("nothing of interest\n")
    redirected = redirected.format(file=tmp_path / "typed")
    async with machine(tmp_path) as garage, typed(garage, "enrol", redirected=redirected) as enrolling:
        said = await enrolling.until("Ctrl-C stops")
        async with aiohttp.ClientSession() as browser, browser.get(answer_to(said)) as page:
            assert page.status == 200
        await enrolling.until("Thank you")
        await garage.daemon.arrive(garage.daemon.welcomed[0], builders.car(slug="new", user_ref=USER))
        assert "new: Car 1, 57 %" in await enrolling.to_the_end()
    assert enrolling.process.returncode == 0


async def test_nobody_comes_back_in_time(tmp_path: Path) -> None:
    past = VirtualClock(NOW - timedelta(hours=2))
    async with machine(tmp_path, clock=past) as garage:
        done = await garage.run("enrol")
    assert done.exit_code == 1
    assert "Nobody came back in time. Begin again: evbatteryd enrol" in done.stderr


async def test_cars_that_do_not_come_are_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "FIRST_READING", timedelta(0))
    async with machine(tmp_path) as garage:
        store = garage.daemon.store
        enrolling = asyncio.create_task(garage.run("enrol"))
        await until(lambda: bool(store._enrolments))
        await store.end(EnrolmentId(1), ending=Ending.CONSENTED, user_ref=USER, at=NOW)
        done = await enrolling
    assert done.exit_code == 0, done.output
    assert "they come by themselves: see `evbatteryd vehicles`" in done.stdout


async def test_control_c_is_an_ending_like_others(tmp_path: Path) -> None:
    async with machine(tmp_path) as garage, typed(garage, "enrol") as enrolling:
        await enrolling.until(r"Ctrl-C stops\.")
        enrolling.process.send_signal(signal.SIGINT)
        lines = await enrolling.to_the_end()
    assert enrolling.process.returncode == 1
    assert [line for line in lines if line] == [
        "Stopped waiting. `evbatteryd vehicles` shows what came of it."
    ]


async def test_control_c_after_the_consent_is_no_failure(tmp_path: Path) -> None:
    async with machine(tmp_path) as garage, typed(garage, "enrol") as enrolling:
        said = await enrolling.until("Ctrl-C stops")
        enrolling.type(answer_to(said) + "\n")
        await enrolling.until(r"first reading; Ctrl-C stops\.")
        enrolling.process.send_signal(signal.SIGINT)
        assert "Traceback" not in "\n".join(await enrolling.to_the_end())
    assert enrolling.process.returncode == 0


async def test_behind_a_public_address_a_strange_browser_needs_a_hand(tmp_path: Path) -> None:
    public = "https://ev.example.org"
    async with machine(tmp_path, public_url=public) as garage, typed(garage, "enrol") as enrolling:
        said = await enrolling.until("Ctrl-C stops")
        assert "signed in at https://ev.example.org comes back by itself" in said
        assert f"paste it here:\n  {public}/enrol/callback?..." in said
        assert "ssh" not in said


async def test_over_a_unix_socket_the_tunnel_leads_there(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with machine(tmp_path, unix_path=path) as garage, typed(garage, "enrol") as enrolling:
        said = await enrolling.until("Ctrl-C stops")
        assert f"ssh -L 9782:{path} " in said
        assert "on this machine comes back" not in said


@pytest.mark.parametrize(
    ("public_url", "begins", "warns"),
    [
        (None, "http://localhost:", "works only on this machine"),
        ("https://ev.example.org", "https://ev.example.org/enrol/i/", ""),
    ],
)
async def test_somebody_else_is_invited(
    tmp_path: Path, public_url: str | None, begins: str, warns: str
) -> None:
    async with machine(tmp_path, public_url=public_url) as garage:
        done = await garage.run("enrol", "--invite", "Grace", "--days", "2")
        assert done.exit_code == 0
        assert link_in(done.stdout).startswith(begins)
        until = f"{(WallClock().now() + timedelta(days=2)).astimezone():%Y-%m-%d}"
        assert f"For Grace, once, until {until}" in done.stdout
        assert "█" not in done.stdout
        assert warns in done.stderr
        assert bool(warns) is bool(done.stderr)
        (invitation,) = await garage.daemon.store.invitations(9)
        assert invitation.name == "Grace"


@pytest.mark.parametrize(("columns", "shown"), [(80, True), (40, False)])
async def test_an_invitation_in_a_terminal_can_be_scanned(garage: Machine, columns: int, shown: bool) -> None:
    segno = pytest.importorskip("segno")
    async with terminal(garage, "enrol", "--invite", "Grace", columns=columns) as screen:
        lines = await screen.to_the_end()
    blocks = [line for line in lines if set(line) & set("█▀▄")]
    assert bool(blocks) is shown
    if shown:
        code = segno.make(link_in("\n".join(lines)), micro=False, error="m")
        rows = [list(row) for row in code.matrix_iter(border=4)]
        seen = [[sign in "▀█" for sign in line] for line in blocks]
        lower = [[sign in "▄█" for sign in line] for line in blocks]
        drawn = [row for pair in zip(seen, lower, strict=True) for row in pair][: len(rows)]
        assert drawn == [[not dark for dark in row] for row in rows], "light modules are drawn"
        assert len(blocks[0]) <= columns


@pytest.mark.parametrize(
    "arguments",
    [("--days", "3"), ("--invite", "x", "--make", "Y"), ("--invite", "x", "--days", "91"), ("--days", "0")],
)
async def test_what_does_not_go_together(garage: Machine, arguments: tuple[str, ...]) -> None:
    assert "Usage:" in await garage.refusal("enrol", *arguments, code=2)


# --- what goes wrong ----------------------------------------------------------------------------------

VERBS = [("vehicles",), ("enrol",), ("why", "zoe"), ("disconnect", "zoe", "--yes"), ("poll", "zoe")]


@pytest.mark.parametrize("verb", VERBS)
async def test_the_daemon_is_not_running(tmp_path: Path, verb: tuple[str, ...]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{free.getsockname()[1]}"
    there = Machine(configured(tmp_path, listen), None)
    assert await there.refusal(*verb) == (
        f"evbatteryd: evbatteryd is not running at {listen}: start it (systemctl start evbatteryd)\n"
    )


@pytest.mark.parametrize("verb", VERBS)
async def test_without_a_key_nobody_is_asked(garage: Machine, verb: tuple[str, ...]) -> None:
    key = path_of(garage.config.parent / "evbatteryd.db")
    key.chmod(0o644)
    assert f"chmod 600 {key}" in await garage.refusal(*verb)
    key.unlink()
    assert await garage.refusal(*verb) == (
        f"evbatteryd: there is no key {key}: evbatteryd makes it when it starts. Is it running?\n"
    )
    assert garage.daemon.hosts == []


async def test_the_daemon_does_not_start_with_a_key_that_others_can_read(tmp_path: Path) -> None:
    config = configured(tmp_path, "127.0.0.1:0")
    (tmp_path / "secret").write_text("hush-hush")
    config.write_text(
        config.read_text().replace("credential =", "file =").replace("smartcar-secret", "secret")
        + "[mqtt]\nenabled = false"
    )
    path_of(tmp_path / "evbatteryd.db").chmod(0o640)
    async with typed(Machine(config, None), "run") as daemon:
        lines = await daemon.to_the_end()
    assert daemon.process.returncode == 1
    (told,) = (json.loads(line) for line in lines if "cannot_start" in line)
    assert "chmod 600" in told["error"]
    assert "Traceback" not in "\n".join(lines)


async def test_the_mistakes_of_the_configuration_are_told(tmp_path: Path) -> None:
    there = Machine(tmp_path / "evbatteryd.toml", None)
    assert "does not exist" in await there.refusal("vehicles")
    there.config.write_text("[http]\nlisten = 5")
    assert "2 mistakes to mend" in await there.refusal("vehicles")


# --- how commands are typed ---------------------------------------------------------------------------


def link_in(said: str) -> str:
    found = re.search(r"^ {2}(https?://\S+)$", said, re.MULTILINE)
    assert found, said
    return found[1]


def answer_to(said: str, error: str | None = None) -> str:
    """Where Connect leads the browser that followed the link."""
    link = said if said.startswith("http") else link_in(said)
    asked = parse_qs(urlsplit(link).query)
    answer = f"error={error}" if error else f"user_id={USER}"
    return f"{asked['redirect_uri'][0]}?{answer}&state={asked['state'][0]}"


@dataclass
class Typed:
    """A command under way."""

    process: asyncio.subprocess.Process
    read: Callable[[], Awaitable[bytes]]
    type_bytes: Callable[[bytes], None]
    end_of_input: Callable[[], None]
    seen: str = ""
    """What it printed since the last look."""
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def type(self, text: str) -> None:
        self.type_bytes(text.encode())

    async def until(self, pattern: str) -> str:
        """All that it printed since the last look, up to that."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := re.search(pattern, plain(self.seen))):
                assert await self._more(), self.seen
        told, self.seen = found.string[: found.end()], found.string[found.end() :]
        return told

    async def to_the_end(self) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            while await self._more():
                pass
            await self.process.wait()
        return plain(self.seen).splitlines()

    async def _more(self) -> bool:
        chunk = await self.read()
        self.seen += self.decoder.decode(chunk)
        return bool(chunk)


def plain(text: str) -> str:
    """Without colours and carriage returns."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)


COMMAND = f"{sys.executable} -m evbatteryd"


@asynccontextmanager
async def typed(there: Machine, verb: str, *arguments: str, redirected: str = "") -> AsyncIterator[Typed]:
    """Standard input is a pipe, unless ``redirected``; standard output and error are one."""
    line = f'exec {COMMAND} {verb} --config "{there.config}" {" ".join(arguments)} {redirected}'
    process = await asyncio.create_subprocess_exec(
        "bash",
        "-c",
        line,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdout = process.stdout
    try:
        yield Typed(process, lambda: stdout.read(65536), process.stdin.write, process.stdin.close)
    finally:
        await ended(process)


@asynccontextmanager
async def terminal(there: Machine, verb: str, *arguments: str, columns: int = 80) -> AsyncIterator[Typed]:
    """In a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND.split(), verb, "--config", str(there.config), *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**environ, "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"},
    )
    os.close(theirs)

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:  # EIO: nobody has the other end any more.
            return b""

    try:
        yield Typed(
            process,
            lambda: asyncio.to_thread(read),
            lambda raw: os.write(ours, raw) and None,
            lambda: None,
        )
    finally:
        await ended(process)
        os.close(ours)


async def ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
    await process.communicate()

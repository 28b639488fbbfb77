"""Who may import whom: arrows point inwards, none sideways. Who may print, block, and look at the clock."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import evbatteryd

PACKAGE = Path(evbatteryd.__file__).parent

FACTS = {"domain", "problems", "durations"}
"""What every room may look at: what is true, how a mistake is told, how a duration is written."""
EVERYTHING = None

ROOMS: dict[str, set[str] | None] = {
    # The middle: nothing of ours.
    "__init__": set(),
    "clock": set(),
    "domain": set(),
    "durations": set(),
    "problems": set(),
    "localkey": set(),
    "sdnotify": set(),
    "secret": set(),
    "simulator": set(),  # so that no bug can hide on both sides
    # The rooms: the middle, never each other.
    "brands": FACTS,
    "enrol": FACTS,
    "flow": FACTS,
    "operate": FACTS,
    "sinks": FACTS,
    "sources": FACTS,
    "store": FACTS,
    "web": FACTS | {"enrol"},
    "logs": FACTS | {"secret"},
    "settings": FACTS | {"brands", "secret"},
    "options": {"settings", "sinks", "sources"},
    # The rim: wires the rooms together.
    "service": EVERYTHING,
    "checkup": EVERYTHING,
    "demo": EVERYTHING,
    "view": EVERYTHING,
    "commands": EVERYTHING,
    "cli": EVERYTHING,
    "__main__": {"cli"},
}
"""Each room with the rooms it may import from, itself aside."""

ONLY_FOR = {
    "service": {"cli", "demo", "view"},
    "simulator": {"cli", "demo"},
    "demo": {"cli"},
    "view": {"cli", "demo"},
    "checkup": {"cli"},
    "operate": {"checkup", "commands"},
    "commands": {"cli"},
    "cli": {"__main__"},
}
"""Rooms that even the rim may not import from everywhere."""

NOT_IN_DOMAIN = {
    "asyncio",
    "concurrent",
    "http",
    "io",
    "json",
    "logging",
    "multiprocessing",
    "os",
    "pathlib",
    "random",
    "sched",
    "secrets",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
    "urllib",
    "zoneinfo",
}
"""Standard library that does something, where the domain only decides."""

ONE_PLACE = {"apscheduler": "flow/timer.py"}
MAY_PRINT = {"cli.py", "demo.py", "simulator/command.py"}
CLOCKS = {"clock.py", "simulator/clock.py", "logs.py"}
"""Everyone else is handed a clock. A log line bears the machine's time, also in time-lapse."""
WALL_CLOCK = {"now", "today", "utcnow", "fromtimestamp", "utcfromtimestamp"}


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: str
    """Below the package, with slashes."""
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.path.removesuffix(".py").partition("/")[0]

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of everything that is imported, wherever in the file that stands."""
        parents = ["evbatteryd", *self.path.split("/")[:-1]]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    source = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [source])])
                yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)

    def rooms(self) -> Iterator[tuple[int, str]]:
        """(line, room) of everything of ours that is imported from another room."""
        for line, name in self.imports():
            top, *below = name.split(".")
            if top == "evbatteryd" and below and below[0] not in {self.room, "__version__"}:
                yield line, below[0]

    def calls(self) -> Iterator[tuple[int, str, ast.Call]]:
        """(line, name as it is written, call)."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield node.lineno, ast.unparse(node.func), node


def modules(package: Path) -> Iterator[Module]:
    for path in sorted(package.rglob("*.py")):
        yield Module(path.relative_to(package).as_posix(), ast.parse(path.read_bytes(), str(path)))


Rule = Callable[[Module], Iterator[tuple[int, str]]]


def rooms_import_inwards(module: Module) -> Iterator[tuple[int, str]]:
    if module.room not in ROOMS:
        yield 1, f"room {module.room!r} is new: say in ROOMS what it may import"
        return
    allowed = ROOMS[module.room]
    for line, room in module.rooms():
        if room not in ROOMS:
            yield line, f"there is no room {room!r}"
        elif module.room not in ONLY_FOR.get(room, {module.room}):
            yield line, f"{module.room} imports {room}, which only {sorted(ONLY_FOR[room])} may"
        elif allowed is not EVERYTHING and room not in allowed:
            yield line, f"{module.room} imports {room}; what it needs of it is an argument, wired in service"


def the_domain_only_decides(module: Module) -> Iterator[tuple[int, str]]:
    if module.room != "domain":
        return
    for line, name in module.imports():
        top = name.split(".")[0]
        if top not in sys.stdlib_module_names | {"evbatteryd"}:
            yield line, f"domain imports {top}, which is not of the standard library"
        elif top in NOT_IN_DOMAIN:
            yield line, f"domain imports {top}, but it has no I/O, no clock, no logging and no dice"


def a_library_has_one_place(module: Module) -> Iterator[tuple[int, str]]:
    for line, name in module.imports():
        place = ONE_PLACE.get(name.split(".")[0])
        if place is not None and module.path != place:
            yield line, f"imports {name}, which only {place} may"


def only_the_rim_prints(module: Module) -> Iterator[tuple[int, str]]:
    if module.path not in MAY_PRINT:
        for line, name, _ in module.calls():
            if name == "print":
                yield line, "prints, where a log line or an answer is due"


def nobody_blocks_the_loop(module: Module) -> Iterator[tuple[int, str]]:
    for line, name, _ in module.calls():
        if name == "time.sleep":
            yield line, "time.sleep blocks every car; await the clock's sleep"
    for line, name in module.imports():
        if name == "time.sleep":
            yield line, "imports time.sleep, which blocks every car; await the clock's sleep"


def time_comes_from_the_clock(module: Module) -> Iterator[tuple[int, str]]:
    for line, name, call in module.calls():
        owner, _, method = name.rpartition(".")
        if owner.split(".")[-1] not in {"datetime", "date"} or method not in WALL_CLOCK:
            continue
        converts = method in {"fromtimestamp", "utcfromtimestamp"}
        aware = len(call.args) > converts or any(word.arg in {"tz", None} for word in call.keywords)
        if not aware:
            yield line, f"{name} without a time zone is naive; instants are aware UTC"
        elif not converts and module.path not in CLOCKS:
            yield line, f"{name}: everyone but {sorted(CLOCKS)} is handed a Clock"


RULES: list[Rule] = [
    rooms_import_inwards,
    the_domain_only_decides,
    a_library_has_one_place,
    only_the_rim_prints,
    nobody_blocks_the_loop,
    time_comes_from_the_clock,
]


def violations(rule: Rule, package: Path) -> list[str]:
    return [f"{module.path}:{line}: {why}" for module in modules(package) for line, why in rule(module)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_layers(rule: Rule) -> None:
    found = violations(rule, PACKAGE)
    assert not found, "\n" + "\n".join(found)


def test_the_package_is_looked_at() -> None:
    """Were the folder moved, every rule would hold of nothing."""
    seen = {module.room for module in modules(PACKAGE)}
    assert {"domain", "flow", "sinks", "sources", "store", "web", "simulator", "cli", "service"} <= seen


@pytest.mark.parametrize(
    ("rule", "path", "line"),
    [
        (rooms_import_inwards, "flow/poller.py", "from evbatteryd.sources.smartcar import SmartcarSource"),
        (rooms_import_inwards, "flow/poller.py", "from ..sinks import mqtt"),
        (rooms_import_inwards, "flow/poller.py", "from .. import store"),
        (rooms_import_inwards, "flow/poller.py", "from evbatteryd import web"),
        (rooms_import_inwards, "web/app.py", "import evbatteryd.flow.poller"),
        (rooms_import_inwards, "sinks/mqtt.py", "def late():\n    from evbatteryd.settings import Settings"),
        (rooms_import_inwards, "domain/cadence.py", "from evbatteryd.durations import parse_duration"),
        (rooms_import_inwards, "simulator/cars.py", "from evbatteryd.domain.reading import Signal"),
        (rooms_import_inwards, "service.py", "from evbatteryd.simulator.server import Simulator"),
        (rooms_import_inwards, "settings.py", "from evbatteryd.service import run"),
        (rooms_import_inwards, "helpers.py", ""),
        (rooms_import_inwards, "cli.py", "import evbatteryd.helpers"),
        (the_domain_only_decides, "domain/reading.py", "import msgspec"),
        (the_domain_only_decides, "domain/reading.py", "import logging"),
        (a_library_has_one_place, "flow/poller.py", "from apscheduler.schedulers.asyncio import Scheduler"),
        (only_the_rim_prints, "web/app.py", "print('here')"),
        (nobody_blocks_the_loop, "flow/timer.py", "time.sleep(1)"),
        (nobody_blocks_the_loop, "flow/timer.py", "from time import sleep"),
        (time_comes_from_the_clock, "clock.py", "datetime.now()"),
        (time_comes_from_the_clock, "clock.py", "datetime.datetime.utcnow()"),
        (time_comes_from_the_clock, "store/sqlite.py", "datetime.fromtimestamp(0)"),
        (time_comes_from_the_clock, "flow/poller.py", "datetime.now(UTC)"),
        (time_comes_from_the_clock, "flow/poller.py", "date.today()"),
    ],
)
def test_a_breach_is_found_and_named(rule: Rule, path: str, line: str, tmp_path: Path) -> None:
    breach = tmp_path / path
    breach.parent.mkdir(parents=True, exist_ok=True)
    breach.write_text(line)
    assert [found.split(":")[0] for found in violations(rule, tmp_path)] == [path]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("flow/poller.py", "from evbatteryd.domain.cadence import next_poll\nfrom .timer import CohortTimer"),
        ("sinks/mqtt.py", "import aiomqtt\nfrom evbatteryd import __version__"),
        ("flow/timer.py", "from apscheduler.schedulers.asyncio import AsyncIOScheduler"),
        ("settings.py", "import pydantic\nfrom evbatteryd.brands import load_profiles"),
        ("view.py", "from rich import console\nconsole.print('SoC')"),
        ("cli.py", "import evbatteryd.service\nfrom evbatteryd.simulator import command\nprint('here')"),
        ("clock.py", "import time\ndatetime.now(UTC)\ntime.monotonic()"),
        ("sources/smartcar.py", "datetime.fromtimestamp(0, UTC)\ndatetime.fromtimestamp(0, tz=UTC)"),
        ("flow/poller.py", "clock.now()\nself._clock.now()"),
    ],
)
def test_what_is_allowed_is_no_breach(path: str, line: str, tmp_path: Path) -> None:
    module = tmp_path / path
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(line)
    assert [found for rule in RULES for found in violations(rule, tmp_path)] == []

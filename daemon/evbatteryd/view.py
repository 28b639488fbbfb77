"""What the demo shows in a terminal: a calm table of cars; plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evbatteryd.domain.cadence import words
from evbatteryd.domain.estimates import is_worth_showing
from evbatteryd.domain.fleet import Car
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.service import Running

BAR = 20
COLOURS = {Freshness.FRESH: "green", Freshness.STALE: "yellow", Freshness.OFFLINE: "red"}


class LiveView:
    """Redraws the table twice a second, or prints a line per new reading."""

    def __init__(self, interactive: bool) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        self._interactive = interactive
        self._running: asyncio.Future[Running] = asyncio.get_running_loop().create_future()
        self._told: dict[VehicleId, str | None] = {}

    def begin(self, running: Running) -> None:
        """The daemon is up: there is something to show."""
        if not self._running.done():
            self._running.set_result(running)

    async def show(self) -> None:
        """Until cancelled."""
        running = await self._running
        if not self._interactive:
            while True:
                self._print_new(running)
                await asyncio.sleep(0.25)
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self._screen(running), refresh=True)
                await asyncio.sleep(0.5)

    def end(self) -> None:
        if self._running.done() and not self._running.cancelled():
            running = self._running.result()
            read = sum(1 for car in running.fleet if car.reading_id is not None)
            self._console.print(f"Stopped. {read} of {len(running.fleet)} cars were read.")

    def _print_new(self, running: Running) -> None:
        now = running.clock.now()
        for car in running.fleet:
            if car.reading_id is not None and self._told.get(car.id) != car.reading_id:
                self._told[car.id] = car.reading_id
                self._console.print(plain_line(car, now), soft_wrap=True)

    def _screen(self, running: Running) -> Group:
        """The table in as many columns as fit; the charge in percent always does."""
        now, width = running.clock.now(), self._console.size.width
        room = max(self._console.size.height - 8, 3)
        cars = sorted(running.fleet, key=lambda car: car.slug)
        columns = [column for column in COLUMNS if width >= column.from_width]
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        for column in columns:
            table.add_column(column.name, no_wrap=True, min_width=column.least)
        for car in cars[:room]:
            freshness = running.fleet.freshness(car, now)
            table.add_row(*(column.show(car, freshness, now) for column in columns))
        return Group(
            table, Text(""), *(Text(line, style="dim") for line in self._foot(running, len(cars) - room))
        )

    def _foot(self, running: Running, hidden: int) -> Iterable[str]:
        now, speed, polls = running.clock.now(), running.clock.speed, running.poller.in_flight
        yield f"{now:%a %Y-%m-%d %H:%M:%S} UTC, {speed:g} times faster than life; {polls} being asked"
        broker = "" if running.mqtt is None or running.mqtt.connected else "   MQTT: not connected"
        more = f"{hidden} more on " if hidden > 0 else ""
        yield f"{more}{running.url}/{broker}"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table, shown in terminals of at least that width."""

    name: str
    show: Callable[[Car, Freshness, datetime], Text]
    from_width: int = 0
    least: int = 0


COLUMNS = (
    Column("car", lambda car, _, __: Text(car.slug, overflow="ellipsis"), least=12),
    Column("charge", lambda car, _, __: bar(car.state.soc_percent), from_width=112, least=BAR),
    Column("", lambda car, _, __: Text(percent(car.state.soc_percent), style="bold"), least=6),
    Column("estimate", lambda car, _, now: Text(estimate_of(car, now)), from_width=100, least=10),
    Column("state", lambda car, _, __: Text(state_of(car)), least=12),
    Column("measured", lambda car, _, now: Text(age_of(car, now)), least=16),
    # Colour only repeats what the word says.
    Column("", lambda _, fresh, __: Text(fresh.value, style=COLOURS[fresh]), least=7),
    Column("next poll", lambda car, _, now: Text(due_of(car, now), style="dim"), from_width=90, least=13),
)


def bar(soc: float | None) -> Text:
    if soc is None:
        return Text("·" * BAR, style="dim")
    full = round(soc / 100 * BAR)
    colour = "red" if soc < 15 else "yellow" if soc < 30 else "green"
    return Text("█" * full, style=colour).append("░" * (BAR - full), style="dim")


def percent(soc: float | None) -> str:
    return "? %" if soc is None else f"{soc:g} %"


def estimate_of(car: Car, now: datetime) -> str:
    """Where the charge is by now, if that is worth saying beside what was measured."""
    estimated = None if car.trend is None else car.trend.at(now)
    return "" if estimated is None or not is_worth_showing(car, estimated) else f"about {estimated:.0f} %"


def state_of(car: Car) -> str:
    if car.trouble is not None:
        return car.trouble.outcome.replace("_", " ")
    if car.reading_id is None:
        return "not read yet"
    if car.state.charging:
        return "charging"
    return "plugged in" if car.state.plugged_in else car.schedule.activity.value


def age_of(car: Car, now: datetime) -> str:
    measured = car.state.measured_at
    return "not yet" if measured is None else f"{words(now - measured)} ago"


def due_of(car: Car, now: datetime) -> str:
    due = car.schedule.due
    if due is None:
        return "never"
    return f"in {words(due - now)}" if due > now else "now"


def plain_line(car: Car, now: datetime) -> str:
    """A reading in one line, for logs and pipes."""
    return (
        f"{now:%Y-%m-%dT%H:%M:%SZ} {car.slug}: {percent(car.state.soc_percent)}, {state_of(car)}, "
        f"measured {age_of(car, now)}, next poll {due_of(car, now)}"
    )

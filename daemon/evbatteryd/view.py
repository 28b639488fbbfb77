"""What the demo shows in a terminal: a calm table of cars; plain lines where there is no terminal."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from datetime import datetime

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from evbatteryd.domain.cadence import words
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
        now = running.clock.now()
        room = max(self._console.size.height - 6, 3)
        cars = sorted(running.fleet, key=lambda car: car.slug)
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        for name in ("car", "charge", "", "state", "measured", "", "next poll"):
            table.add_column(name, no_wrap=True, justify="left")
        for car in cars[:room]:
            table.add_row(*row(car, running.fleet.freshness(car, now), now))
        hidden = len(cars) - room
        foot = f"{now:%a %Y-%m-%d %H:%M:%S} UTC on the demo's clock, {running.clock.speed:g} times the wall's"
        foot += f"; {running.poller.in_flight} requests in flight"
        if hidden > 0:
            foot += f"; {hidden} more cars on the page {running.url}/"
        return Group(table, Text(""), Text(foot, style="dim"))


def row(car: Car, freshness: Freshness, now: datetime) -> Iterable[Text]:
    """One car in the table. Colour only repeats what a word says."""
    soc = car.state.soc_percent
    return (
        Text(car.slug),
        bar(soc),
        Text("  ? %" if soc is None else f"{soc:3.0f} %", style="bold"),
        Text(state_of(car)),
        Text(age_of(car, now)),
        Text(freshness.value, style=COLOURS[freshness]),
        Text(due_of(car, now), style="dim"),
    )


def bar(soc: float | None) -> Text:
    if soc is None:
        return Text("·" * BAR, style="dim")
    full = round(soc / 100 * BAR)
    colour = "red" if soc < 15 else "yellow" if soc < 30 else "green"
    return Text("█" * full, style=colour).append("░" * (BAR - full), style="dim")


def state_of(car: Car) -> str:
    if car.trouble is not None:
        return car.trouble.outcome.replace("_", " ")
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
    soc = car.state.soc_percent
    charge = "?" if soc is None else f"{soc:g} %"
    return (
        f"{now:%Y-%m-%dT%H:%M:%SZ} {car.slug}: {charge}, {state_of(car)}, "
        f"measured {age_of(car, now)}, next poll {due_of(car, now)}"
    )

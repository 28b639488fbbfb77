"""The terminal's words for an estimate. Its table as a whole is tested with the demo."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace

import pytest
from rich.console import Console

from evbatteryd.domain.policy.outlook import Trend
from evbatteryd.service import Running
from evbatteryd.view import LiveView, estimate_of
from tests.builders import NOON, car, fleet, state
from tests.fakes import VirtualClock

CHARGING = replace(
    car(state=state(soc=57.5, charging=True), reading_id="r"),
    trend=Trend(57.5, NOON, 10.0, 80.0, NOON + timedelta(hours=4)),
)


def test_an_estimate_is_shown_while_it_says_more_than_was_measured() -> None:
    parked = replace(CHARGING, state=state(soc=57.5))
    assert estimate_of(CHARGING, NOON + timedelta(minutes=30)) == "about 62 %"
    assert estimate_of(CHARGING, NOON + timedelta(hours=4)) == ""
    assert estimate_of(parked, NOON) == ""
    assert estimate_of(replace(CHARGING, trend=None), NOON) == ""


@pytest.mark.parametrize("width", [80, 100, 112, 200])
async def test_the_estimate_stands_beside_the_measured_charge_where_there_is_room(width: int) -> None:
    view = LiveView(interactive=True)
    console = Console(width=width, height=24, record=True, file=io.StringIO(), force_terminal=True)
    view._console = console
    polls = SimpleNamespace(in_flight=0)
    clock = VirtualClock(NOON + timedelta(minutes=30))
    running = Running(fleet(CHARGING), clock, "http://127.0.0.1:9782", polls, None, None)  # type: ignore[arg-type]
    console.print(view._screen(running))
    lines = console.export_text().splitlines()
    assert all(len(line) <= width for line in lines)
    (row,) = (line for line in lines if "57.5 %" in line)
    assert ("about 62 %" in row) is (width >= 100)
    assert ("estimate" in lines[0]) is (width >= 100)

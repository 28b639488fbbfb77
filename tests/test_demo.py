"""The demo as a newcomer starts it: one command, readings, a clean end."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import aiohttp
import pytest
from rich.console import Console

from evbatteryd import demo as demonstration
from evbatteryd.demo import DemoOptions, demo
from evbatteryd.domain.fleet import Fleet
from evbatteryd.service import Running
from evbatteryd.view import LiveView, bar
from tests.builders import car, profile, state
from tests.fakes import VirtualClock
from tests.mosquitto import Mosquitto, Witness, program

COMMAND = (sys.executable, "-m", "evbatteryd", "demo", "--http", "127.0.0.1:0", "--vehicles", "6")
PATIENCE_S = 60.0


async def _started(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    )


async def _lines_until(process: asyncio.subprocess.Process, pattern: str) -> list[str]:
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while not lines or not re.search(pattern, lines[-1]):
            line = (await process.stdout.readline()).decode()
            assert line, lines
            lines.append(line.rstrip())
    return lines


async def test_one_command_shows_where_to_look_and_readings_and_ends_cleanly() -> None:
    program("mosquitto")
    process = await _started("--speed", "600", "--duration", "6")
    lines = await _lines_until(process, r"Stopped\. [1-6] of 6 cars were read")
    assert await process.wait() == 0
    told = "\n".join(lines)
    assert re.search(r"page +http://127\.0\.0\.1:\d+/", told)
    assert re.search(r"metrics +http://127\.0\.0\.1:\d+/metrics", told)
    assert re.search(r"mosquitto_sub .*-t 'evbatteryd/#' -v", told)
    assert re.search(
        r"^\d{4}-\d\d-\d\dT\S+Z \w+: [\d.]+ %, .*measured .* ago, next poll in", told, re.MULTILINE
    )


async def test_a_signal_ends_it_cleanly_and_its_broker_with_it() -> None:
    program("mosquitto")
    process = await _started()
    lines = await _lines_until(process, r"measured .* ago")
    process.send_signal(signal.SIGINT)
    assert await process.wait() == 0
    port = next(m[1] for line in lines if (m := re.search(r"mosquitto_sub(?: -p (\d+))? -t", line))) or "1883"
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection("127.0.0.1", int(port))


async def test_its_broker_does_not_outlive_it() -> None:
    program("mosquitto")
    process = await _started()
    lines = await _lines_until(process, r"measured .* ago")
    process.kill()
    await process.wait()
    port = next(m[1] for line in lines if (m := re.search(r"mosquitto_sub(?: -p (\d+))? -t", line))) or "1883"
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(port))
            except OSError:
                break
            writer.close()
            await asyncio.sleep(0.05)


async def test_a_broker_of_ones_own_is_used(tmp_path: Path) -> None:
    async with Mosquitto(tmp_path) as broker, Witness(broker.port) as witness:
        process = await _started("--mqtt", broker.url, "--speed", "600")
        await witness.until(lambda w: sum(m.topic.endswith("/soc") for m in w.heard) >= 3)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        await witness.until(lambda w: w.last("evbatteryd/bridge/state") == "offline")


async def test_without_mosquitto_the_embedded_broker_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration.shutil, "which", lambda *_, **__: None)
    said: list[str] = []
    stop = asyncio.Event()
    options = DemoOptions(vehicles=4, speed=600.0, http=("127.0.0.1", 0))
    running = asyncio.create_task(demo(options, stop, said.append))
    async with asyncio.timeout(PATIENCE_S):
        while not (page := next((line for line in said if "page" in line), None)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        url = page.split()[1]
        async with aiohttp.ClientSession() as session:
            while True:
                async with session.get(f"{url}api/vehicles") as answer, session.get(f"{url}-/ready") as ready:
                    cars = (await answer.json())["vehicles"]
                    if ready.status == 200 and any(car["soc"] is not None for car in cars):
                        break
                await asyncio.sleep(0.05)
    assert any("embedded" in line for line in said)
    stop.set()
    await running


@pytest.mark.parametrize(
    "argument", ["--vehicles=0", "--speed=0", "--duration=-1", "--http=nowhere", "--seed=x"]
)
async def test_wrong_usage_is_said_and_ends_with_2(argument: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, argument, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, told = await process.communicate()
    assert process.returncode == 2
    assert argument.partition("=")[0].encode() in told


@pytest.mark.parametrize("width", [60, 80, 100, 120])
async def test_the_view_fits_its_terminal_and_always_shows_the_charge(width: int) -> None:
    cars = Fleet({"acme": profile()})
    for number in range(40):
        name = f"a_car_with_quite_a_long_name_{number}"
        cars.put(car(number + 1, slug=name, state=state(soc=57.5), reading_id="r"))
    view = LiveView(interactive=True)
    console = Console(width=width, height=24, record=True, file=io.StringIO(), force_terminal=True)
    view._console = console
    polls = SimpleNamespace(in_flight=0)
    running = Running(cars, VirtualClock(), "http://127.0.0.1:9782", polls, None, None)  # type: ignore[arg-type]
    console.print(view._screen(running))
    lines = console.export_text().splitlines()
    assert len(lines) <= 24
    assert all(len(line) <= width for line in lines)
    assert sum("57.5 %" in line for line in lines) >= 12
    assert "http://127.0.0.1:9782/" in lines[-1]
    assert ("█" in "".join(lines)) is (width >= 112)


def test_the_bar_is_as_long_as_the_charge() -> None:
    assert str(bar(100)) == "█" * 20
    assert str(bar(0)) == "░" * 20
    assert str(bar(50)) == "█" * 10 + "░" * 10
    assert "█" not in str(bar(None))

"""The whole way, HTTP answer to acknowledged MQTT and committed row, beside bare requests in the same run.

The upstream and the broker are processes of their own and share the machine's cores with us, so figures are
per second of *our* CPU time: what one core of ours would do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from evbatteryd.clock import WallClock
from evbatteryd.logs import configure, get_logger
from evbatteryd.service import Running, serve
from evbatteryd.settings import load_settings
from tests.mosquitto import Mosquitto

CARS = 2_000
IN_FLIGHT = 64


def run(options: argparse.Namespace) -> None:
    on_fastest_loop(_measure(options.seconds))


def on_fastest_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` on uvloop where it is installed, as the commands do."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


@contextmanager
def upstream() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.benchmarks.upstream", str(CARS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


async def _measure(seconds: float) -> None:
    configure("warning", "json")
    with upstream() as origin, tempfile.TemporaryDirectory() as folder:
        async with Mosquitto(Path(folder)) as broker:
            bare = await _bare(origin, seconds)
            print(f"bare aiohttp requests, {IN_FLIGHT} at a time     {bare:8.0f} per core-second")
            for topics in (False, True):
                polls, lag = await _daemon(origin, broker.port, seconds, "1s", topics)
                what = "state and 12 scalar topics" if topics else "state topic"
                print(
                    f"polls end to end, {what:<27} {polls:8.0f} per core-second = {polls / bare:.2f} of bare"
                )
            polls, lag = await _daemon(origin, broker.port, seconds, "10s", False)
            print(f"schedule lag at {CARS / 10:.0f} polls/s: {lag}")


async def _bare(origin: str, seconds: float) -> float:
    done = 0
    until = time.monotonic() + seconds
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask() -> None:
            nonlocal done
            while time.monotonic() < until:
                async with session.get(f"{origin}/v3/vehicles/v1/signals") as response:
                    await response.json(loads=json.loads)
                done += 1

        cpu = time.process_time()
        await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
        return done / (time.process_time() - cpu)


async def _daemon(
    origin: str, broker_port: int, seconds: float, interval: str, scalars: bool
) -> tuple[float, str]:
    """Polls per second of our CPU, and what the schedule lagged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evbatteryd.toml"
        origins = ", ".join(f'{name} = "{origin}"' for name in ("connect", "iam", "vehicle", "management"))
        pace = "\n".join(f'{key} = "{interval}"' for key in ("driving", "charging", "parked", "floor"))
        path.write_text(
            f"""
[smartcar.bench]
client_id = "client_bench"
client_secret = "none"
origins = {{ {origins} }}
[smartcar.bench.budget]
bucket = 1000000
refill_per_minute = 1000000
calls_per_vehicle = 100000000
[mqtt]
url = "mqtt://127.0.0.1:{broker_port}"
scalars = {str(scalars).lower()}
[http]
listen = "127.0.0.1:0"
[polling]
max_in_flight = {IN_FLIGHT * 2}
[store]
url = "sqlite:///{folder}/bench.db"
[brands.unknown]
{pace}
"""
        )
        settings, _ = load_settings(path, {})
        stop, result = asyncio.Event(), asyncio.get_running_loop().create_future()

        def ready(running: Running) -> None:
            asyncio.get_running_loop().create_task(watch(running))

        async def watch(running: Running) -> None:
            try:
                while len(running.fleet) < CARS:  # noqa: ASYNC110 - looking must not change what is measured
                    await asyncio.sleep(0.1)
                await asyncio.sleep(2)
                before, cpu = await _scrape(running.url), time.process_time()
                await asyncio.sleep(seconds)
                after, cpu = await _scrape(running.url), time.process_time() - cpu
                result.set_result(((_polls(after) - _polls(before)) / cpu, _lag(before, after)))
            except BaseException as error:
                result.set_exception(error)
                raise
            finally:
                stop.set()

        await serve(settings, WallClock(), stop, get_logger("bench"), on_ready=ready)
        found: tuple[float, str] = await result
        return found


async def _scrape(url: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as response:
        return await response.text()


def _polls(text: str) -> float:
    return sum(
        map(
            float, re.findall(r'^evbatteryd_polls_total\{[^}]*outcome="new"[^}]*\} (\S+)', text, re.MULTILINE)
        )
    )


def _lag(before: str, after: str) -> str:
    """Median and 99th percentile of the lag histogram, as the bounds of their buckets."""

    def buckets(text: str) -> dict[float, float]:
        rows = re.findall(
            r'^evbatteryd_schedule_lag_seconds_bucket\{le="([^"]+)"\} (\S+)', text, re.MULTILINE
        )
        return {float(bound): float(count) for bound, count in rows}

    old, new = buckets(before), buckets(after)
    grown = {bound: new[bound] - old.get(bound, 0) for bound in sorted(new)}
    total = max(grown.values(), default=0)

    def quantile(share: float) -> str:
        bound = next((bound for bound, count in grown.items() if count >= share * total), float("inf"))
        return f"<= {bound:g} s"

    return f"median {quantile(0.5)}, p99 {quantile(0.99)} ({total:.0f} polls; the bell rings every second)"

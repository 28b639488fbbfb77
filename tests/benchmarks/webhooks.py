"""Signed deliveries over HTTP until they are committed, beside a bare aiohttp handler in the same run.

Whoever delivers is a process of its own and shares the machine's cores with us, so rates are per second of
*our* CPU time. Times to the answer are what Smartcar would wait, of the 15 s that it does.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import json
import sys
import tempfile
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import aiohttp
import orjson
from aiohttp import web

from evbatteryd.clock import WallClock
from evbatteryd.logs import configure, get_logger
from evbatteryd.service import Running, serve
from evbatteryd.settings import load_settings
from tests.benchmarks.end_to_end import on_fastest_loop, upstream
from tests.benchmarks.upstream import signals

CARS = 2_000
AT_ONCE = 256
TOKEN = "a management token of the benchmark"
"""Of nobody."""


def run(options: argparse.Namespace) -> None:
    on_fastest_loop(_measure(options.seconds))


async def _measure(seconds: float) -> None:
    configure("error", "json")
    bare, _ = await _bare(seconds)
    print(f"bare aiohttp handler, {AT_ONCE} deliveries at once   {bare:8.0f} per core-second")
    ours, told = await _daemon(seconds)
    print(f"verified, committed, acknowledged  {ours:8.0f} per core-second = {ours / bare:.2f} of bare")
    print(f"time to the answer: {told}")


async def _bare(seconds: float) -> tuple[float, str]:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_post("/webhooks/smartcar", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        return await _delivered(f"http://127.0.0.1:{runner.addresses[0][1]}", seconds)
    finally:
        await runner.cleanup()


async def _delivered(url: str, seconds: float) -> tuple[float, str]:
    """Deliveries answered with success per second of our CPU, and how long they waited."""
    command = (sys.executable, "-m", "tests.benchmarks.webhooks", url, str(seconds))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()  # it is ready
    cpu = time.process_time()
    told = json.loads(await process.stdout.readline())
    cpu = time.process_time() - cpu
    await process.wait()
    waited = (
        f"median {told['median_ms']:.0f} ms, p99 {told['p99_ms']:.0f} ms, longest {told['longest_ms']:.0f} ms"
    )
    return told["taken"] / cpu, f"{waited} ({told['taken']} taken, {told['refused']} asked to come again)"


async def _daemon(seconds: float) -> tuple[float, str]:
    with upstream() as origin, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "evbatteryd.toml"
        origins = ", ".join(f'{name} = "{origin}"' for name in ("connect", "iam", "vehicle", "management"))
        path.write_text(
            f"""
[smartcar.bench]
client_id = "client_bench"
client_secret = "none"
management_token = "{TOKEN}"
origins = {{ {origins} }}
[smartcar.bench.budget]
bucket = 1000000
refill_per_minute = 1000000
[mqtt]
enabled = false
[http]
listen = "127.0.0.1:0"
[store]
url = "sqlite:///{folder}/bench.db"
[brands.unknown]
parked = "1d"
charging = "1d"
driving = "1d"
"""
        )
        settings, _ = load_settings(path, {})
        stop, result = asyncio.Event(), asyncio.get_running_loop().create_future()
        background: set[asyncio.Task[None]] = set()

        def ready(running: Running) -> None:
            background.add(asyncio.get_running_loop().create_task(watch(running)))

        async def watch(running: Running) -> None:
            try:
                # Looking must not change what is measured.
                while len(running.fleet) < CARS or not all(  # noqa: ASYNC110
                    car.reading_id for car in running.fleet
                ):
                    await asyncio.sleep(0.2)
                result.set_result(await _delivered(running.url, seconds))
            except BaseException as error:
                result.set_exception(error)
                raise
            finally:
                stop.set()

        await serve(settings, WallClock(), stop, get_logger("bench"), on_ready=ready)
        found: tuple[float, str] = await result
        return found


def _body(number: int) -> bytes:
    """A delivery of the benchmark's cars in turn, always with news."""
    now = time.time()
    flat = [
        {**signal["attributes"], "meta": signal["meta"]}  # type: ignore[dict-item]
        for signal in signals(number % 90 + 1, datetime.fromtimestamp(now, UTC))
    ]
    vehicle = number % CARS
    return orjson.dumps(
        {
            "eventId": f"event-{number}-{now}",
            "eventType": "VEHICLE_STATE",
            "data": {"user": {"id": f"u{vehicle}"}, "vehicle": {"id": f"v{vehicle}"}, "signals": flat},
            "triggers": [],
            "meta": {"version": "4.0", "webhookId": "w", "mode": "LIVE", "signalCount": len(flat)},
        }
    )


async def _deliver(url: str, seconds: float) -> None:
    waits: list[float] = []
    refused = number = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        print("ready", flush=True)
        until = time.monotonic() + seconds

        async def deliver() -> None:
            nonlocal refused, number
            while time.monotonic() < until:
                number += 1
                body = _body(number)
                headers = {"SC-Signature": hmac.new(TOKEN.encode(), body, sha256).hexdigest()}
                begun = time.monotonic()
                async with session.post(f"{url}/webhooks/smartcar", data=body, headers=headers) as answer:
                    await answer.read()
                    if answer.status == 200:
                        waits.append(time.monotonic() - begun)
                    else:
                        refused += 1

        await asyncio.gather(*(deliver() for _ in range(AT_ONCE)))
    waits.sort()
    told = {
        "taken": len(waits),
        "refused": refused,
        "median_ms": 1000 * waits[len(waits) // 2],
        "p99_ms": 1000 * waits[len(waits) * 99 // 100],
        "longest_ms": 1000 * waits[-1],
    }
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(_deliver(sys.argv[1], float(sys.argv[2])))

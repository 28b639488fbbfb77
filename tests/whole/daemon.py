"""The daemon as a process of its own, on a clock that it shares with a test's simulator.

``python -m tests.whole.daemon CONFIG SPEED START ORIGIN``: nothing else differs from ``evbatteryd run``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Self

import aiohttp

from evbatteryd.clock import FastClock
from evbatteryd.logs import configure, get_logger
from evbatteryd.service import serve
from evbatteryd.settings import load_settings

PATIENCE_S = 20.0


async def main(config: str, speed: str, start: str, origin: str) -> None:
    clock = FastClock(float(speed), datetime.fromisoformat(start), float(origin))
    settings, _ = load_settings(Path(config), {})
    configure("info", "json")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(
        settings,
        clock,
        stop,
        get_logger("evbatteryd"),
        on_ready=lambda running: print(running.url, flush=True),
    )


class Daemon:
    """Starts it, kills it, reads what it logged."""

    def __init__(self, config: Path, speed: float, start: datetime, origin: float) -> None:
        self._command = (
            *(sys.executable, "-m", "tests.whole.daemon"),
            *(str(config), repr(speed), start.isoformat(), repr(origin)),
        )
        self.log = config.parent / "log.json"
        self._process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):  # it has ended by itself, and a test has failed of it
                await self.end(signal.SIGKILL)

    async def start(self) -> None:
        """Return when its first schedule stands."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdout=asyncio.subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            self.url = (await self._process.stdout.readline()).decode().strip()
        assert self.url, self.log.read_text()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def end(self, number: signal.Signals) -> int:
        """Send the signal; return the exit code."""
        assert self._process is not None
        os.kill(self.pid, number)
        async with asyncio.timeout(PATIENCE_S):
            code = await self._process.wait()
        self._process = None
        return code


class Control:
    """What a test tells the simulator and asks of it."""

    def __init__(self, session: aiohttp.ClientSession, origin: str) -> None:
        self._session = session
        self._origin = origin

    async def _call(self, method: str, path: str, body: object = None) -> object:
        async with self._session.request(method, f"{self._origin}/_control/{path}", json=body) as response:
            assert response.status < 300, await response.text()
            return await response.json()

    async def fault(self, fault: str, **rule: object) -> None:
        match = {"path": rule.pop("path", "signals")}
        await self._call("POST", "faults", {"match": match, "fault": fault, "rate": 1.0, **rule})

    async def clear(self) -> None:
        await self._call("DELETE", "faults")

    async def latency(self, scale: float) -> None:
        """How slow answers are; 1: as Smartcar's."""
        await self._call("POST", "latency", {"scale": scale})

    async def stats(self) -> dict[str, object]:
        return await self._call("GET", "stats")  # type: ignore[return-value]

    async def truth(self) -> dict[str, dict[str, object]]:
        return await self._call("GET", "truth")  # type: ignore[return-value]

    async def conduct(self, **how: object) -> None:
        """How deliveries of webhooks misbehave from now on."""
        await self._call("POST", "webhooks", how)

    async def report(self, vehicle: str, **error: object) -> None:
        """Have a VEHICLE_ERROR delivered."""
        await self._call("POST", f"vehicles/{vehicle}/error", error)

    async def change(self, vehicle: str, change: str) -> None:
        await self._call("POST", f"vehicles/{vehicle}/{change}", {})


@asynccontextmanager
async def controlling(origin: str):
    async with AsyncExitStack() as opened:
        session = await opened.enter_async_context(aiohttp.ClientSession())
        yield Control(session, origin)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

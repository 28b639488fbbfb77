"""A real Node-RED for tests: one flow file, a folder and a port of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import pytest

from tests.mosquitto import LOOPBACK, free_port, program

PATIENCE_S = 60.0
"""Real seconds: it takes some to start, and more on a busy machine."""

Node = dict[str, Any]

SETTINGS = """
module.exports = {{
    uiHost: "{host}",
    uiPort: {port},
    httpAdminRoot: "/admin",
    flowFile: "flows.json",
    credentialSecret: false,
    diagnostics: {{ enabled: false }},
    telemetry: {{ enabled: false, updateNotification: false }},
    logging: {{ console: {{ level: "info" }} }},
}};
"""


def installed() -> Path:
    """Node-RED's program. Skips the test without it, but fails in CI."""
    foreign = Path(os.environ.get("FOREIGN") or Path(__file__).parents[2] / ".venv-foreign")
    found = foreign / "nodered" / "node_modules" / "node-red" / "red.js"
    if not found.is_file():
        missing = "Node-RED is not installed: tools/nodered.sh does it"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


class NodeRed:
    """A Node-RED that runs ``flow`` with its brokers at ``broker_port``.

    An async context manager: inside, the flow has started and is connected. On leaving it fails if a node
    complained of anything.
    """

    def __init__(self, folder: Path, flow: list[Node], broker_port: int) -> None:
        self.log: list[str] = []
        self._folder = folder
        self._flow = [_at_broker(node, broker_port) for node in flow]
        self._origin = ""
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        port = free_port()
        self._origin = f"http://{LOOPBACK}:{port}"
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "flows.json").write_text(json.dumps(self._flow))
        (self._folder / "settings.js").write_text(SETTINGS.format(host=LOOPBACK, port=port))
        folder = str(self._folder)
        self._process = await asyncio.create_subprocess_exec(
            program("node"),
            *(str(installed().absolute()), "--userDir", folder, "--settings", f"{folder}/settings.js"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read())
        try:
            await self.logged("Started flows")
            await self.logged("Connected to broker")
        except BaseException:
            await self._kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kill()
        complaints = [line for line in self.log if "[error]" in line or "[warn] [" in line]
        if kind is None and complaints:
            pytest.fail("\n".join(complaints))

    async def logged(self, text: str) -> None:
        """Wait for a line that holds ``text``."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not any(text in line for line in self.log):
                    await self._news.wait()
                    self._news.clear()
        except TimeoutError:
            pytest.fail(f"Node-RED never said {text!r}:\n" + "\n".join(self.log))

    async def get(self, path: str) -> str:
        """What a page of the flow shows."""
        async with aiohttp.ClientSession() as session, session.get(self._origin + path) as answer:
            assert answer.status == 200
            return await answer.text()

    async def press(self, node_id: str) -> None:
        """The button of an inject node."""
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{self._origin}/admin/inject/{node_id}") as answer,
        ):
            assert answer.status == 200

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.log.append(line.decode().rstrip())
            self._news.set()

    async def _kill(self) -> None:
        assert self._process is not None
        assert self._reading is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await self._reading


def _at_broker(node: Node, port: int) -> Node:
    return {**node, "broker": LOOPBACK, "port": str(port)} if node["type"] == "mqtt-broker" else node

"""A real Home Assistant for tests, as ``tools/homeassistant.sh`` installs it.

It has a folder of its own, listens on loopback alone, is past its onboarding, and knows one broker. The files
in which it keeps that are written beforehand, so a test waits for nothing but its start.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import pytest

from tests.mosquitto import LOOPBACK, free_port

PATIENCE_S = 60.0
"""Real seconds after which something that should have happened is taken for missing."""
LOOK_EVERY_S = 0.05
UNAVAILABLE: Final = "unavailable"
UNKNOWN: Final = "unknown"

_SINCE: Final = "2026-01-01T00:00:00+00:00"
_USER: Final = secrets.token_hex(16)
_TOKEN: Final = secrets.token_hex(16)
_KEY: Final = secrets.token_hex(64)
_ENTRY: Final = secrets.token_hex(16)

_INSTALLED_BY_US: Final = ("[homeassistant.bootstrap] Skipping pip installation", "[aiohttp_fast_zlib] ")
_LOGGED: Final = """
logger:
  default: warning
  logs:
    homeassistant.components.mqtt.client: info
    homeassistant.core: info
"""
"""Warnings, and what tells how far it has come."""

Entity = dict[str, Any]


def program() -> Path:
    """The Python that has Home Assistant. Skips the test without it, but fails in CI."""
    foreign = os.environ.get("FOREIGN") or Path(__file__).parents[2] / ".venv-foreign"
    found = Path(foreign) / "homeassistant" / "venv" / "bin" / "python"
    if not found.exists():
        if os.environ.get("CI"):
            pytest.fail("Home Assistant is not installed: tools/homeassistant.sh does it")
        pytest.skip("Home Assistant is not installed: tools/homeassistant.sh does it")
    return found.absolute()


class HomeAssistant:
    """As an async context manager: inside, it runs and is connected to the broker on ``broker_port``."""

    def __init__(self, folder: Path, broker_port: int) -> None:
        self.folder = folder
        self.port = free_port()
        self._broker_port = broker_port
        self._process: asyncio.subprocess.Process | None = None
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            f"http://{LOOPBACK}:{self.port}", headers={"Authorization": f"Bearer {_access_token()}"}
        )
        try:
            self._configure()
            await self.start()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end(signal.SIGKILL)
        if self._http is not None:
            await self._http.close()

    # Its life

    async def start(self) -> None:
        """Start; return when it runs and has subscribed at the broker."""
        with (self.folder / "output").open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                program(),
                *("-m", "homeassistant", "--config", self.folder, "--skip-pip", "--log-no-color"),
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONWARNINGS": "ignore"},
            )
        await self._until(self._runs, "it to run")

    async def stop(self) -> None:
        """As systemd would: it saves what it keeps."""
        await self._end(signal.SIGTERM)

    async def restart(self) -> None:
        await self.stop()
        await self.start()

    async def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
            await process.wait()

    async def _runs(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            raise RuntimeError(f"Home Assistant ended:\n{(self.folder / 'output').read_text()[-4000:]}")
        with suppress(aiohttp.ClientConnectionError):
            async with self._client.get("/api/config") as answer:
                running = answer.status == 200 and (await answer.json())["state"] == "RUNNING"
                return running and "birth message sent" in self._since_start()
        return False

    # What it shows

    async def entity(self, entity_id: str) -> Entity | None:
        """State and attributes of an entity; None if there is none."""
        async with self._client.get(f"/api/states/{entity_id}") as answer:
            return await answer.json() if answer.status == 200 else None

    async def state(self, entity_id: str) -> str | None:
        """Its state alone."""
        entity = await self.entity(entity_id)
        return None if entity is None else str(entity["state"])

    async def states(self) -> dict[str, str]:
        """The state of every entity by its id."""
        async with self._client.get("/api/states") as answer:
            return {entity["entity_id"]: entity["state"] for entity in await answer.json()}

    async def until(self, entity_id: str, state: str | None) -> None:
        """Until an entity has this state; None: until there is none. Fails if that never happens."""

        async def is_so() -> bool:
            return await self.state(entity_id) == state

        await self._until(is_so, f"{entity_id} to be {state}")

    async def until_states(self, predicate: Callable[[dict[str, str]], object]) -> dict[str, str]:
        """Until ``predicate`` holds of all states; they are returned."""
        states: dict[str, str] = {}

        async def is_so() -> bool:
            states.clear()
            states.update(await self.states())
            return bool(predicate(states))

        await self._until(is_so, "all states to be as expected")
        return states

    async def registered(self) -> dict[str, Entity]:
        """What is kept of the entities that came by MQTT, also of disabled ones, by their ids."""
        entities = await self.ask("config/entity_registry/list")
        return {entity["entity_id"]: entity for entity in entities if entity["platform"] == "mqtt"}

    async def devices(self) -> list[Entity]:
        """The devices that came by MQTT."""
        found: list[Entity] = await self.ask("config/device_registry/list")
        return [device for device in found if any(domain == "mqtt" for domain, _ in device["identifiers"])]

    def complaints(self) -> list[str]:
        """What it has warned of since it was made, apart from how it is installed: lines of its log."""
        log = (self.folder / "output").read_text().splitlines()
        warned = [line for line in log if _level(line) in {"WARNING", "ERROR", "CRITICAL"}]
        return [line for line in warned if not any(words in line for words in _INSTALLED_BY_US)]

    async def until_warned(self, words: str, times: int) -> None:
        """Until as many lines of its log warn with these words."""

        async def is_so() -> bool:
            return sum(words in line for line in self.complaints()) >= times

        await self._until(is_so, f"it to warn {times} times: {words}")

    # What is done with it

    async def call(self, action: str, entity_id: str | None = None, **data: object) -> None:
        """Perform an action, such as ``button.press``."""
        target = {} if entity_id is None else {"entity_id": entity_id}
        async with self._client.post(
            f"/api/services/{action.replace('.', '/')}", json=target | data
        ) as answer:
            assert answer.status == 200, await answer.text()

    async def enable(self, *entity_ids: str) -> None:
        """Enable entities that are disabled until somebody wants them; return when they are there."""
        for entity_id in entity_ids:
            await self.ask("config/entity_registry/update", entity_id=entity_id, disabled_by=None)
        await self.call("homeassistant.reload_config_entry", entry_id=_ENTRY)
        await self.until_states(lambda states: states.keys() >= set(entity_ids))

    async def ask(self, command: str, **options: object) -> Any:
        """The result of a command of its WebSocket API."""
        async with self._client.ws_connect("/api/websocket") as socket:
            await socket.receive_json()
            await socket.send_json({"type": "auth", "access_token": _access_token()})
            assert (await socket.receive_json())["type"] == "auth_ok"
            await socket.send_json({"id": 1, "type": command, **options})
            answer = await socket.receive_json()
            assert answer["success"], answer
            return answer["result"]

    @property
    def _client(self) -> aiohttp.ClientSession:
        assert self._http is not None
        return self._http

    def _since_start(self) -> str:
        log = (self.folder / "output").read_text()
        return log[log.rfind("Starting Home Assistant") :]

    async def _until(self, is_so: Callable[[], Any], what: str) -> None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not await is_so():  # noqa: ASYNC110 - another process makes it true
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            log = (self.folder / "output").read_text().splitlines()[-40:]
            pytest.fail("\n".join([f"waited in vain for {what}; its log ends:", *log]))

    def _configure(self) -> None:
        kept = self.folder / ".storage"
        kept.mkdir(parents=True)
        (self.folder / "configuration.yaml").write_text(
            f"http:\n  server_host: {LOOPBACK}\n  server_port: {self.port}\n{_LOGGED}"
        )
        for key, (version, data) in _kept(self._broker_port).items():
            document = {"version": version[0], "minor_version": version[1], "key": key, "data": data}
            (kept / key).write_text(json.dumps(document))


def _kept(broker_port: int) -> dict[str, tuple[tuple[int, int], object]]:
    """What it keeps once its owner has set it up, with the version of the format: by the name of the file."""
    user = {"id": _USER, "group_ids": ["system-admin"], "is_owner": True, "is_active": True, "name": "Owner"}
    token = {
        "id": _TOKEN,
        "user_id": _USER,
        "client_id": None,
        "token": secrets.token_hex(64),
        "jwt_key": _KEY,
    }
    auth = {
        "users": [{**user, "system_generated": False}],
        "groups": [],
        "credentials": [],
        "refresh_tokens": [
            {
                **token,
                "client_name": "tests",
                "token_type": "long_lived_access_token",
                "created_at": _SINCE,
                "access_token_expiration": 315360000.0,
            }
        ],
    }
    broker = {
        "entry_id": _ENTRY,
        "domain": "mqtt",
        "title": "Broker",
        "data": {"broker": LOOPBACK, "port": broker_port},
        "options": {"discovery": True, "discovery_prefix": "homeassistant"},
        "version": 2,
        "minor_version": 1,
        "source": "user",
        "unique_id": None,
        "disabled_by": None,
        "pref_disable_new_entities": False,
        "pref_disable_polling": False,
        "discovery_keys": {},
        "subentries": [],
        "created_at": _SINCE,
        "modified_at": _SINCE,
    }
    return {
        "auth": ((1, 1), auth),
        "onboarding": ((4, 1), {"done": ["user", "core_config", "analytics", "integration"]}),
        "core.config_entries": ((1, 5), {"entries": [broker]}),
    }


def _access_token() -> str:
    """A JSON web token, HS256, that its owner could have made on the profile page."""
    now = int(time.time())
    parts: tuple[object, ...] = (
        {"alg": "HS256", "typ": "JWT"},
        {"iss": _TOKEN, "iat": now - 60, "exp": now + 315360000},
    )
    signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{_base64(hmac.digest(_KEY.encode(), signed.encode(), hashlib.sha256))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _level(line: str) -> str:
    """Of a line such as ``2026-01-01 12:00:00.000 WARNING (MainThread) [homeassistant...] ...``."""
    words = line.split(maxsplit=3)
    return words[2] if len(words) == 4 else ""

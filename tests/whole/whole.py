"""Simulator, broker, gate and daemon together, and what a test asks of them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sqlite3
import sys
import termios
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import aiomqtt
from aiohttp import web

from evbatteryd.clock import FastClock
from evbatteryd.simulator import Simulator, SimulatorOptions
from tests.mosquitto import LOOPBACK, Gate, Mosquitto, Witness, program
from tests.whole.daemon import Control, Daemon, controlling

SPEED = 3600.0
CARS = 12
AFTERNOON = datetime(2026, 11, 12, 15, 30, tzinfo=UTC)
"""A Thursday on which cars drive home and are charged, whatever hour it is in truth; no BMW was silent for so
long that it counts as stale."""
ADMIN_TOKEN = "an-admin-token-of-the-test"
PUBLIC_HOST = "ev.example.test"
BRANDS = ("tesla", "volvo", "renault", "kia", "bmw", "polestar")


@dataclass
class Whole:
    """Everything, and what it left behind."""

    folder: Path
    broker: Mosquitto
    gate: Gate
    """The daemon's way to the broker."""
    control: Control
    daemon: Daemon
    clock: FastClock

    @property
    def config(self) -> Path:
        return self.folder / "evbatteryd.toml"

    def committed(self) -> list[tuple[str, str]]:
        """(slug, reading id) of every reading in the store, in order."""
        with closing(sqlite3.connect(self.folder / "evbatteryd.db")) as db:
            query = "SELECT slug, seq FROM reading JOIN vehicle ON vehicle.id = vehicle_id ORDER BY seq"
            rows = db.execute(query).fetchall()
        return [(slug, str(seq)) for slug, seq in rows]

    def spent(self) -> int:
        with closing(sqlite3.connect(self.folder / "evbatteryd.db")) as db:
            return db.execute("SELECT sum(calls) FROM ledger").fetchone()[0]

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.daemon.log.read_text().splitlines()]

    async def vehicles(self) -> list[dict[str, object]]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{self.daemon.url}/api/vehicles") as answer,
        ):
            return (await answer.json())["vehicles"]

    async def until_all(self, condition: Callable[[dict[str, object]], bool]) -> list[dict[str, object]]:
        """Until every car of the API fulfils it."""
        async with asyncio.timeout(30):
            while True:
                cars = await self.vehicles()
                if cars and all(map(condition, cars)):
                    return cars
                await asyncio.sleep(0.1)


@asynccontextmanager
async def everything(
    folder: Path,
    *,
    speed: float = SPEED,
    vehicles: int = CARS,
    webhook: bool = False,
    auto_subscribe: bool = True,
    pace: str = "10m",
    public: bool = False,
    consents_every: str = "15m",
    mqtt: str = "scalars = false",
    broker: Mosquitto | None = None,
) -> AsyncIterator[Whole]:
    """``webhook``: Smartcar pushes. ``pace``: how often a car is asked. ``public``: strangers come, too.

    ``mqtt``: further keys of that table. ``broker``: one that was not started yet.
    """
    start, origin = AFTERNOON, time.monotonic()
    clock = FastClock(speed, start, origin)
    port = free_port()
    simulator = Simulator(
        SimulatorOptions(
            vehicles=vehicles,
            brands=BRANDS,
            speed=speed,
            calls_per_vehicle=None,
            bucket=20_000,
            refill_per_minute=600,
            latency_scale=1.0 if speed == SPEED else 0.1,
            webhook=f"http://127.0.0.1:{port}/webhooks/smartcar" if webhook else None,
            auto_subscribe=auto_subscribe,
            redirect_uris=(f"http://{PUBLIC_HOST}:{port}/enrol/callback",) if public else (),
        ),
        clock,
    )
    async with (
        simulator.serving("127.0.0.1", 0) as url,
        controlling(url) as control,
        broker or Mosquitto(folder / "broker") as started,
        Gate(started.port) as gate,
    ):
        config = folder / "evbatteryd.toml"
        for name, secret in (
            ("secret", simulator.client_secret),
            ("management", simulator.management_token),
            ("admin", ADMIN_TOKEN),
        ):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(secret)
        origins = ", ".join(f'{name} = "{url}"' for name in ("connect", "iam", "vehicle", "management"))
        # So fast a world needs no patience: whatever the brand, its cars are asked every ten minutes of it.
        keys = "\n".join(f'{key} = "{pace}"' for key in ("parked", "charging", "driving", "idle"))
        paces = "\n".join(f'[brands.{brand}]\n{keys}\nfloor = "5m"' for brand in BRANDS)
        config.write_text(
            f"""
[smartcar.test]
application_id = "{simulator.application_id}"
client_id = "{simulator.client_id}"
client_secret = {{ file = "secret" }}
management_token = {{ file = "management" }}
{f'webhook_id = "{simulator.webhook_id}"' if webhook else ""}
origins = {{ {origins} }}
[smartcar.test.budget]
bucket = 10000
refill_per_minute = 600
calls_per_vehicle = 1000000
[mqtt]
url = "mqtt://127.0.0.1:{gate.port}"
{mqtt}
[http]
listen = "127.0.0.1:{port}"
admin_token = {{ file = "admin" }}
{f'public_url = "http://{PUBLIC_HOST}:{port}"' if public else ""}
[polling]
consents_every = "{consents_every}"
[store]
url = "sqlite:///{folder}/evbatteryd.db"
{paces}
"""
        )
        async with Daemon(config, speed, start, origin) as daemon:
            yield Whole(folder, started, gate, control, daemon, clock)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def readings(witness: Witness) -> list[tuple[str, str]]:
    """(slug, sequence number) of every reading heard, each at its first time."""
    seen: dict[str, str] = {}
    for message in witness.heard:
        if (
            message.topic.endswith("/state")
            and not message.topic.endswith("bridge/state")
            and message.payload
        ):
            told = message.json
            seen.setdefault(str(told["reading_id"]), str(told["vehicle"]))
    return [(slug, reading_id.rpartition("-")[2]) for reading_id, slug in seen.items()]


def in_order(told: list[tuple[str, str]]) -> bool:
    last: dict[str, int] = {}
    for slug, seq in told:
        if int(seq) <= last.get(slug, 0):
            return False
        last[slug] = int(seq)
    return True


def served(stats: dict[str, dict[str, dict[str, int]]]) -> int:
    """Requests that the simulator has seen, of whatever kind and end."""
    return sum(sum(ends.values()) for ends in stats["requests"].values())


# --- daemons that keep to the policy's own pace --------------------------------------------------------

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]


@dataclass
class Arrivals:
    """What reached a simulator: of which car, when."""

    clock: FastClock
    calls: list[tuple[str, datetime]] = field(default_factory=list)
    others: int = 0
    """Calls that no car pays for: tokens, lists of connections."""
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    def counting(self) -> Middleware:
        @web.middleware
        async def counted(request: web.Request, handler: Handler) -> web.StreamResponse:
            vehicle = request.match_info.get("vehicle")
            if request.path.startswith("/_control/"):
                return await handler(request)
            if vehicle is None:
                self.others += 1
                return await handler(request)
            self.calls.append((vehicle, self.clock.now()))
            self.begun.set()
            try:
                return await handler(request)
            finally:
                self.answered.set()

        return counted

    def by_car(self) -> Counter[str]:
        return Counter(vehicle for vehicle, _ in self.calls)


class TimeLapse(FastClock):
    """A clock whose speed a test can change. Daemons that have begun do not notice: none may run then."""

    def __init__(self, speed: float, start: datetime) -> None:
        self.start = start
        self.origin = time.monotonic()
        super().__init__(speed, self.start, self.origin)

    def turn(self, speed: float) -> None:
        self.__init__(speed, self.now())


@dataclass
class Town:
    """Simulated cars and a broker, for any number of daemons that share their clock."""

    folder: Path
    clock: TimeLapse
    simulator: Simulator
    url: str
    control: Control
    broker: Mosquitto
    arrivals: Arrivals

    def settled(self, name: str, budget: str, *, polling: str = "", mqtt: str = "") -> Path:
        """The configuration of a daemon of that name, which is its base topic too; in a folder of its own."""
        folder = self.folder / name
        folder.mkdir()
        (folder / "secret").touch(mode=0o600)
        (folder / "secret").write_text(self.simulator.client_secret)
        origins = ", ".join(f'{host} = "{self.url}"' for host in ("connect", "iam", "vehicle", "management"))
        config = folder / "evbatteryd.toml"
        config.write_text(
            f"""
[smartcar.test]
application_id = "{self.simulator.application_id}"
client_id = "{self.simulator.client_id}"
client_secret = {{ file = "secret" }}
origins = {{ {origins} }}
[smartcar.test.budget]
{budget}
[mqtt]
url = "mqtt://127.0.0.1:{self.broker.port}"
base_topic = "{name}"
client_id = "{name}"
{mqtt}
[http]
listen = "127.0.0.1:{free_port()}"
[polling]
time_zone = "UTC"
{polling}
[store]
url = "sqlite:///{folder}/evbatteryd.db"
"""
        )
        return config

    def daemon(self, config: Path) -> Daemon:
        return Daemon(config, self.clock.speed, self.clock.start, self.clock.origin)


@asynccontextmanager
async def town(
    folder: Path, start: datetime, speed: float, *middlewares: Middleware, **options: object
) -> AsyncIterator[Town]:
    """``options``: of the simulator, which has no plan and a large bucket unless they say otherwise."""
    clock = TimeLapse(speed, start)
    chosen = {"calls_per_vehicle": None, "bucket": 20_000, "refill_per_minute": 600, "latency_scale": 0.1}
    simulator = Simulator(SimulatorOptions(**{**chosen, **options}), clock)
    arrivals = Arrivals(clock)
    simulator.app.middlewares.extend((arrivals.counting(), *middlewares))
    async with AsyncExitStack() as opened:
        url = await opened.enter_async_context(simulator.serving("127.0.0.1", 0))
        control = await opened.enter_async_context(controlling(url))
        broker = await opened.enter_async_context(Mosquitto(folder / "broker"))
        yield Town(folder, clock, simulator, url, control, broker, arrivals)


async def listed(daemon: Daemon) -> dict[str, dict[str, object]]:
    """What the daemon tells of its cars, by slug."""
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}/api/vehicles") as answer:
        return {car["slug"]: car for car in (await answer.json())["vehicles"]}


async def page(daemon: Daemon, path: str) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{daemon.url}{path}") as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


async def metrics(daemon: Daemon) -> dict[str, float]:
    """Every sample by its name and labels, as they are written."""
    lines = (await page(daemon, "/metrics")).splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


async def command(config: Path, *arguments: str, terminal: int | None = None) -> str:
    """What ``evbatteryd ARGUMENTS`` prints, by itself or in a terminal of so many columns."""
    words = (sys.executable, "-m", "evbatteryd", *arguments, "--config", str(config))
    if terminal is None:
        process = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        said, _ = await process.communicate()
    else:
        ours, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, terminal))
        process = await asyncio.create_subprocess_exec(*words, stdout=theirs, stderr=theirs)
        os.close(theirs)
        said = await asyncio.to_thread(_read_all, ours)
        await process.wait()
    assert process.returncode == 0, said
    return said.decode()


def _read_all(terminal: int) -> bytes:
    """Until whoever writes has ended, which Linux tells by an error."""
    said = b""
    with os.fdopen(terminal, "rb", buffering=0) as written, suppress(OSError):
        while chunk := written.read(4096):
            said += chunk
    return said


async def until(condition: Callable[[], object], patience_s: float = 30.0) -> None:
    """Until it holds; ``condition`` may have to be awaited. Fails if it never does."""
    async with asyncio.timeout(patience_s):
        while True:
            held = condition()
            if await held if isinstance(held, Awaitable) else held:
                return
            await asyncio.sleep(0.05)


async def kept(port: int, pattern: str = "#", protocol: str = "5") -> dict[str, bytes]:
    """What a broker retains, by topic, as ``mosquitto_sub`` tells it."""
    version = "mqttv5" if protocol == "5" else "mqttv311"
    words = ("-h", LOOPBACK, "-p", str(port), "-V", version, "-t", pattern, "-F", "%t %x", "--retained-only")
    asking = await asyncio.create_subprocess_exec(
        program("mosquitto_sub"), *words, stdout=asyncio.subprocess.PIPE
    )
    told = asyncio.create_task(asking.communicate())
    # It ends with the first message that is not retained, and a broker sends what is retained before that.
    version_5 = aiomqtt.ProtocolVersion.V5 if protocol == "5" else aiomqtt.ProtocolVersion.V311
    async with asyncio.timeout(30), aiomqtt.Client(LOOPBACK, port, protocol=version_5) as client:
        while not told.done():
            await client.publish(pattern.replace("#", "nothing/at/all"))
            await asyncio.wait((told,), timeout=0.02)
    lines = (line.partition(" ") for line in (await told)[0].decode().splitlines())
    return {topic: bytes.fromhex(payload) for topic, _, payload in lines}


def rows(config: Path, query: str, *arguments: object) -> list[tuple]:
    """Of the daemon's store, whether it runs or not."""
    # Read-only: whoever else closes such a file last folds its log into it, which is the daemon's to do.
    address = f"{(config.parent / 'evbatteryd.db').as_uri()}?mode=ro"
    with closing(sqlite3.connect(address, uri=True)) as db:
        return db.execute(query, arguments).fetchall()


async def enrolled(config: Path, count: int) -> dict[str, str]:
    """The slug of each car by its id at Smartcar, as soon as the daemon knows so many."""
    async with asyncio.timeout(30):
        while len(found := rows(config, "SELECT vehicle_ref, slug FROM vehicle")) < count:  # noqa: ASYNC110 - another process makes it true
            await asyncio.sleep(0.05)
    return dict(found)

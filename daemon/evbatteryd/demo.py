"""``evbatteryd demo``: simulator, broker and daemon together on loopback, in time-lapse.

One clock is handed to every part and runs ``speed`` times faster than the wall's; nothing else differs from
``evbatteryd run``: the settings are written to a file and read like anybody's.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from evbatteryd.clock import FastClock
from evbatteryd.logs import configure, get_logger
from evbatteryd.service import Running, serve
from evbatteryd.settings import load_settings
from evbatteryd.simulator import Simulator, SimulatorOptions
from evbatteryd.view import LiveView

LOOPBACK = "127.0.0.1"
PORT = 9782
CALLS_PER_VEHICLE = 20_000
"""A plan large enough for the brands' own pace to show: the demo is about cars, not about saving."""
REFILL_PER_MINUTE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    vehicles: int = 20
    speed: float = 60.0
    http: tuple[str, int] | None = None
    """Where the page is served; None: the usual port, or a free one if that is taken."""
    mqtt: str | None = None
    seed: int = 0
    duration: float | None = None
    """Real seconds after which the demo ends by itself."""
    webhooks: bool = False
    """Smartcar pushes what cars report, so polls become a safety net."""
    log_level: str | None = None
    """None: info into the file beside the live view, warning where lines are printed."""


@dataclass(frozen=True, slots=True)
class Broker:
    url: str
    protocol: str
    name: str

    @property
    def subscribe(self) -> str:
        """A line that shows everything we publish."""
        host, _, port = self.url.partition("://")[2].rpartition("@")[2].partition(":")
        where = "" if host in {LOOPBACK, "localhost"} else f" -h {host}"
        which = "" if port in {"", "1883"} else f" -p {port.rstrip('/')}"
        return f"mosquitto_sub{where}{which} -t 'evbatteryd/#' -v"


class NoBroker(Exception):
    """No MQTT broker can be started here; the text says what to do."""


async def demo(options: DemoOptions, stop: asyncio.Event, say: Callable[[str], None]) -> None:
    """Run until ``stop`` is set or the time is up."""
    async with AsyncExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="evbatteryd-demo-")))
        clock = FastClock(options.speed)
        broker = await opened.enter_async_context(_broker(options, folder))
        host, port = options.http or (LOOPBACK, PORT if _free(LOOPBACK, PORT) else 0)
        port = port or _free_port(host)
        listen = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        simulator = Simulator(
            SimulatorOptions(
                vehicles=options.vehicles,
                speed=options.speed,
                seed=options.seed,
                calls_per_vehicle=CALLS_PER_VEHICLE,
                bucket=max(120, 2 * options.vehicles),
                refill_per_minute=max(REFILL_PER_MINUTE, options.vehicles / 2.0),
                webhook=f"http://{listen}/webhooks/smartcar" if options.webhooks else None,
            ),
            clock=clock,
        )
        origin = await opened.enter_async_context(simulator.serving(LOOPBACK, 0))
        path = _configuration(options, folder, simulator, origin, broker, listen)
        settings, _ = load_settings(path, {})
        interactive = sys.stdout.isatty()
        # A terminal belongs to the live view; what is logged goes beside it.
        log_file = opened.enter_context((folder / "evbatteryd.log").open("w")) if interactive else sys.stderr
        configure(options.log_level or ("info" if interactive else "warning"), "console", stream=log_file)
        view = LiveView(interactive)

        def ready(running: Running) -> None:
            say(f"{options.vehicles} simulated cars, {options.speed:g} times faster than life.")
            elsewhere = options.http is None and not running.url.endswith(f":{PORT}")
            say(f"  page      {running.url}/" + (f"      ({PORT} is taken)" if elsewhere else ""))
            say(f"  add a car {running.url}/enrol      (any e-mail address and password will do)")
            say(f"  metrics   {running.url}/metrics")
            say(f"  MQTT      {broker.subscribe}      ({broker.name})")
            say(f"  truth     {origin}/_control/truth      (what the simulated cars really do)")
            if interactive:
                say(f"  log       {folder / 'evbatteryd.log'}")
            say("Stop with Ctrl-C.\n")
            view.begin(running)

        if options.duration is not None:
            asyncio.get_running_loop().call_later(options.duration, stop.set)
        showing = asyncio.create_task(view.show(), name="live view")
        try:
            await serve(settings, clock, stop, get_logger("evbatteryd"), on_ready=ready)
        finally:
            showing.cancel()
            with suppress(asyncio.CancelledError):
                await showing
        view.end()


def _configuration(
    options: DemoOptions, folder: Path, simulator: Simulator, origin: str, broker: Broker, listen: str
) -> Path:
    secrets = {"client-secret": simulator.client_secret, "management-token": simulator.management_token}
    for name, text in secrets.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(text)
    path = folder / "evbatteryd.toml"
    budget: dict[str, object] = {
        "bucket": max(120, 2 * options.vehicles),
        "refill_per_minute": max(REFILL_PER_MINUTE, options.vehicles / 2.0),
        "calls_per_vehicle": CALLS_PER_VEHICLE,
    }
    sections: dict[str, dict[str, object]] = {
        "smartcar.demo": {
            "application_id": simulator.application_id,
            "client_id": simulator.client_id,
            **({"webhook_id": simulator.webhook_id} if options.webhooks else {}),
        },
        "smartcar.demo.budget": budget,
        "mqtt": {"url": broker.url, "protocol": broker.protocol},
        "http": {"listen": listen},
        "store": {"url": f"sqlite:///{folder / 'evbatteryd.db'}"},
    }
    origins = ", ".join(
        f"{name} = {json.dumps(origin)}" for name in ("connect", "iam", "vehicle", "management")
    )
    lines = []
    for section, keys in sections.items():
        lines.append(f"[{section}]")
        # A JSON string or number is a TOML one, too.
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        if section == "smartcar.demo":
            lines += [
                'client_secret = { file = "client-secret" }',
                'management_token = { file = "management-token" }',
                f"origins = {{ {origins} }}",
            ]
    path.write_text("\n".join(lines) + "\n")
    return path


@asynccontextmanager
async def _broker(options: DemoOptions, folder: Path) -> AsyncIterator[Broker]:
    if options.mqtt is not None:
        yield Broker(options.mqtt, "5", "yours")
        return
    port = 1883 if _free(LOOPBACK, 1883) else _free_port(LOOPBACK)
    mosquitto = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    serving = _mosquitto(mosquitto, port, folder) if mosquitto else _amqtt(port)
    async with serving as broker:
        yield broker


@asynccontextmanager
async def _mosquitto(program: str, port: int, folder: Path) -> AsyncIterator[Broker]:
    configuration = folder / "mosquitto.conf"
    lines = [f"listener {port} {LOOPBACK}", "allow_anonymous true", "persistence false", "log_type error"]
    if os.getuid() == 0:
        lines.append("user root")  # with another user it would lose what ends it with us
    configuration.write_text("\n".join(lines) + "\n")
    process = await asyncio.create_subprocess_exec(
        program,
        "-c",
        str(configuration),
        stderr=asyncio.subprocess.DEVNULL,
        # Ctrl-C is for us, and the broker hears our last word; but it never outlives us.
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )
    try:
        await _listening(port, lambda: process.returncode is None)
        yield Broker(f"mqtt://{LOOPBACK}:{port}", "5", "mosquitto, started for the demo")
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _end_with_parent() -> None:
    """In the child: have Linux end it when we end, be it by ``kill -9``. Elsewhere it may outlive us."""
    pr_set_pdeathsig = 1
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@asynccontextmanager
async def _amqtt(port: int) -> AsyncIterator[Broker]:
    try:
        from amqtt.broker import Broker as AmqttBroker  # noqa: PLC0415
    except ImportError:
        raise NoBroker(
            "No MQTT broker is at hand. Install one (sudo apt-get install mosquitto), "
            'or the embedded one (pip install "evbatteryd[demo]"), or name yours (--mqtt mqtt://HOST).'
        ) from None
    embedded = AmqttBroker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{LOOPBACK}:{port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
    )
    await embedded.start()
    try:
        yield Broker(f"mqtt://{LOOPBACK}:{port}", "3.1.1", "embedded, MQTT 3.1.1; for demos only")
    finally:
        await embedded.shutdown()


async def _listening(port: int, alive: Callable[[], bool]) -> None:
    for _ in range(100):
        if not alive():
            break
        with suppress(OSError):
            _, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise NoBroker("mosquitto is installed but does not start; name a broker of yours (--mqtt mqtt://HOST)")


def _free(host: str, port: int) -> bool:
    if port == 0:
        return True
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port

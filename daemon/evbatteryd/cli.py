"""The verbs. Exit codes: 0 all right, 1 failure, 2 wrong usage."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from evbatteryd import __version__
from evbatteryd.clock import WallClock
from evbatteryd.commands import (
    config_option,
    disconnect,
    enrol,
    fail,
    load,
    plan,
    poll,
    rename,
    tell,
    vehicles,
    why,
)
from evbatteryd.domain.errors import StoreError
from evbatteryd.localkey import UnusableKey
from evbatteryd.logs import configure, get_logger
from evbatteryd.problems import Misconfigured
from evbatteryd.sdnotify import Notifier
from evbatteryd.settings import Settings, describe, load_settings
from evbatteryd.simulator.command import simulate


class Endpoint(click.ParamType[tuple[str, int]]):
    """``HOST:PORT``."""

    name = "HOST:PORT"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not host or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not HOST:PORT, for example 127.0.0.1:9782", param, ctx)
        return host.strip("[]"), int(port)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="evbatteryd")
def main() -> None:
    """Click, consent, get the state of charge.

    Polls the battery of electric cars through Smartcar's API v3, each at its brand's pace, and
    publishes every reading to MQTT, Prometheus and a web page.
    """


@main.command()
@config_option
@click.option(
    "--log-format", type=click.Choice(["json", "console", "journal"]), help="Overrides [log] format."
)
def run(config: Path, log_format: str | None) -> None:
    """Poll and publish, until told to stop: what systemd starts."""
    settings, warnings = load(config)
    configure(settings.log.level, log_format or settings.log.format)
    log = get_logger("evbatteryd")
    for warning in warnings:
        log.warning("configuration", file=warning.file, key=warning.key, what=warning.what)

    async def life(stop: asyncio.Event) -> None:
        from evbatteryd.service import serve  # noqa: PLC0415 - check and simulate start faster without it

        await serve(settings, WallClock(), stop, log, notifier=Notifier())

    try:
        _until_signalled(life)
    except StoreError as error:
        log.error("store.unusable", error=str(error))
        raise SystemExit(1) from None
    except (OSError, UnusableKey) as error:
        log.error("cannot_start", error=str(error))
        raise SystemExit(1) from None


@main.command()
@click.option("--vehicles", type=click.IntRange(1), default=20, show_default=True)
@click.option(
    "--speed",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Times faster than life.",
)
@click.option(
    "--http",
    type=Endpoint(),
    help="Where page and metrics are served; 127.0.0.1:9782, or a free port if that is taken.",
)
@click.option("--mqtt", metavar="URL", help="A broker of yours; without it, one is started.")
@click.option("--webhooks", is_flag=True, help="Smartcar pushes what cars report; polls are a safety net.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--duration",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="End by itself after so many real seconds.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="info into a file beside the live view, warning where lines are printed, unless given.",
)
def demo(
    vehicles: int,
    speed: float,
    http: tuple[str, int] | None,
    mqtt: str | None,
    webhooks: bool,
    seed: int,
    duration: float | None,
    log_level: str | None,
) -> None:
    """Everything at once on loopback, in time-lapse: simulated cars, a broker, the daemon."""
    from evbatteryd.demo import DemoOptions, NoBroker  # noqa: PLC0415
    from evbatteryd.demo import demo as demonstrate  # noqa: PLC0415

    options = DemoOptions(
        vehicles=vehicles,
        speed=speed,
        http=http,
        mqtt=mqtt,
        webhooks=webhooks,
        seed=seed,
        duration=duration,
        log_level=log_level,
    )
    try:
        _until_signalled(lambda stop: demonstrate(options, stop, click.echo))
    except (NoBroker, OSError) as error:
        fail(str(error))
    except Misconfigured as error:
        # The demo's own file is all right: what can be wrong in it was given here.
        raise click.UsageError("\n".join(f"{p.key}: {p.what}. {p.mend}" for p in error.problems)) from None


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Problems and the effective configuration as JSON.")
@click.option("--online", is_flag=True, help="Also try what it names: Smartcar, store, HTTP, MQTT broker.")
def check(config: Path, as_json: bool, online: bool) -> None:
    """Say every mistake of the configuration at once. Exit code 1 if there is one.

    Nothing that is tried costs a call or disturbs a daemon that runs.
    """
    settings: Settings | None = None
    try:
        settings, problems = load_settings(config, os.environ, without_credentials=True)
    except Misconfigured as error:
        problems = error.problems
    failed = settings is None
    if as_json:
        told = [
            {"file": p.file, "key": p.key, "what": p.what, "mend": p.mend, "warning": p.warning}
            for p in problems
        ]
        effective = describe(settings) if settings is not None else None
        document: dict[str, object] = {"problems": told, "configuration": effective}
        if online and settings is not None:
            failed, document["online"] = _try(settings, lambda _: None)
        click.echo(json.dumps(document, indent=2, default=str))
    else:
        tell(problems)
        if settings is not None:
            names, brands = ", ".join(settings.smartcar), len(settings.profiles) - 1
            click.echo(f"{config}: good. Smartcar applications: {names}. Profiles of {brands} brands.")
            if lacking := [name for name, one in settings.smartcar.items() if one.application_id is None]:
                click.echo(
                    f"Nobody can be sent to Smartcar to consent without application_id: {', '.join(lacking)}."
                )
            if online:
                failed, _ = _try(settings, click.echo)
    raise SystemExit(1 if failed else 0)


def _try(settings: Settings, say: Callable[[str], object]) -> tuple[bool, list[dict[str, str]]]:
    """Whether something that the configuration names failed; and all that was tried, said as it comes."""
    from evbatteryd.checkup import Verdict, findings  # noqa: PLC0415 - it needs nearly everything

    colours = {Verdict.GOOD: "green", Verdict.FAILED: "red", Verdict.UNKNOWN: "yellow"}
    found: list[dict[str, str]] = []

    async def trying() -> None:
        async for one in findings(settings, WallClock()):
            found.append(asdict(one))
            say(f"{click.style(one.verdict, fg=colours[one.verdict])}: {one}")

    asyncio.run(trying())
    return any(one["verdict"] == Verdict.FAILED for one in found), found


for verb in (enrol, vehicles, poll, rename, disconnect, why, plan, simulate):
    main.add_command(verb)


def _until_signalled(life: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run ``life`` with an event that SIGTERM, SIGINT and SIGHUP set. A second one ends it at once."""

    async def living() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def told(number: int) -> None:
            if stop.is_set():
                os._exit(128 + number)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, told, number)
        await life(stop)
        # All is written and told. A name server or broker that hangs in a thread of some library must not
        # hold up the end: the interpreter would wait for it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)

    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        factory = None
    else:
        # Less CPU, and a fifth of the memory per TLS connection.
        factory = uvloop.new_event_loop
    try:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(living())
    except KeyboardInterrupt:
        sys.exit(130)

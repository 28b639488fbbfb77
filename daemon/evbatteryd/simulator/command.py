"""``evbatteryd simulate``: the simulator alone, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from evbatteryd.simulator.connect import PATH
from evbatteryd.simulator.server import Simulator
from evbatteryd.simulator.world import PERIODS, SimulatorOptions


class Address(click.ParamType[tuple[str, int]]):
    """``HOST:PORT``; an IPv6 host in brackets."""

    name = "host:port"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, _, port = str(value).rpartition(":")
        if not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            self.fail(f'{value!r} is no address; write it like "127.0.0.1:9783"', param, ctx)
        return host.strip("[]"), int(port)


@click.command("simulate")
@click.option(
    "--listen", type=Address(), default="127.0.0.1:9783", show_default=True, help="Where to answer."
)
@click.option("--vehicles", type=click.IntRange(min=0), default=20, show_default=True)
@click.option("--brands", default="", help="Makes in turn: tesla,land_rover. All 46 by default.")
@click.option(
    "--traces",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of recorded lives (*.csv.gz). A dozen come with the program.",
)
@click.option("--speed", type=float, default=1.0, show_default=True, help="Simulated seconds in a real one.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same world.")
@click.option(
    "--latency-scale", type=float, default=1.0, show_default=True, help="1: as slow as Smartcar; 0: at once."
)
@click.option("--client-id", help="By default from the seed.")
@click.option("--client-secret", help="By default from the seed.")
@click.option(
    "--bucket", type=float, default=120, show_default=True, help="Requests of the application in reserve."
)
@click.option("--refill-per-minute", type=float, default=2.0, show_default=True)
@click.option(
    "--calls-per-vehicle", type=int, default=500, show_default=True, help="In a period; -1: unlimited."
)
@click.option("--period", type=click.Choice(PERIODS), default="month", show_default=True)
@click.option(
    "--webhook",
    metavar="URL",
    help="Post every upload there as a signed webhook, once it has answered the challenge.",
)
@click.option(
    "--redirect-uri",
    "redirect_uris",
    metavar="URL",
    multiple=True,
    help="Where Connect may send browsers back to; repeatable. By default anywhere by TLS, and to loopback.",
)
def simulate(
    listen: tuple[str, int],
    vehicles: int,
    brands: str,
    traces: Path | None,
    speed: float,
    seed: int,
    latency_scale: float,
    client_id: str | None,
    client_secret: str | None,
    bucket: float,
    refill_per_minute: float,
    calls_per_vehicle: int,
    period: str,
    webhook: str | None,
    redirect_uris: tuple[str, ...],
) -> None:
    """Pretend to be Smartcar, with cars that drive and charge.

    With --webhook it also pushes what they upload, as Smartcar does where the operator has a public URL.
    """
    try:
        simulator = Simulator(
            SimulatorOptions(
                vehicles=vehicles,
                brands=tuple(brand for brand in brands.split(",") if brand.strip()),
                traces=traces,
                speed=speed,
                seed=seed,
                client_id=client_id,
                client_secret=client_secret,
                latency_scale=latency_scale,
                bucket=bucket,
                refill_per_minute=refill_per_minute,
                calls_per_vehicle=None if calls_per_vehicle == -1 else calls_per_vehicle,
                period=period,
                webhook=webhook,
                redirect_uris=redirect_uris,
            )
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    try:
        asyncio.run(_serve(simulator, *listen))
    except OSError as error:
        raise click.ClickException(f"cannot listen on {listen[0]}:{listen[1]}: {error.strerror}") from None


async def _serve(simulator: Simulator, host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with simulator.serving(host, port) as origin:
        click.echo(_introduction(simulator, origin))
        await stop.wait()


def _introduction(simulator: Simulator, origin: str) -> str:
    options = simulator.world.options
    plan = [] if options.calls_per_vehicle is None else [f"calls_per_vehicle = {options.calls_per_vehicle}"]
    webhook = (
        []
        if options.webhook is None
        else [
            f'management_token = "{simulator.management_token}"',
            f'webhook_id = "{simulator.webhook_id}"',
        ]
    )
    origins = ", ".join(f'{host} = "{origin}"' for host in ("connect", "iam", "vehicle", "management"))
    return "\n".join(
        [
            f"Simulated Smartcar at {origin} with {len(simulator.world.fleet)} vehicles",
            f"  application id  {simulator.application_id}",
            f"  client id       {simulator.client_id}",
            f"  client secret   {simulator.client_secret}",
            f"  connect         {origin}{PATH}",
            f"  control         {origin}/_control/truth, /_control/stats, /_control/faults",
            "",
            "For evbatteryd.toml:",
            "",
            "[smartcar.sim]",
            f'application_id = "{simulator.application_id}"',
            f'client_id = "{simulator.client_id}"',
            f'client_secret = "{simulator.client_secret}"',
            *webhook,
            f"origins = {{ {origins} }}",
            "[smartcar.sim.budget]",
            f"bucket = {options.bucket:g}",
            f"refill_per_minute = {options.refill_per_minute:g}",
            *plan,
            f'period = "{options.period}"',
            "",
        ]
    )

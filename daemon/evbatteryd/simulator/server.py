"""The simulator itself: all of Smartcar's hosts under one origin, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aiohttp import web

from evbatteryd.simulator.clock import Clock, VirtualClock
from evbatteryd.simulator.connect import PATH, authorize
from evbatteryd.simulator.control_api import CONTROL_ROUTES, control
from evbatteryd.simulator.errors import Refused
from evbatteryd.simulator.exchange import Answer, Ask, Endpoint, exchange
from evbatteryd.simulator.management_api import MANAGEMENT_ENDPOINTS
from evbatteryd.simulator.vehicle_api import VEHICLE_ENDPOINTS
from evbatteryd.simulator.webhooks import delivering
from evbatteryd.simulator.world import SimulatorOptions, World

GRACE_S: Final = 0.25
"""Real seconds that requests in flight are given at the end. Some wait for ever on purpose."""


class Simulator:
    """Smartcar, as far as a program can tell. Without ``clock`` it has its own, of ``options.speed``."""

    def __init__(self, options: SimulatorOptions, clock: Clock | None = None) -> None:
        self.world = World(options, clock if clock is not None else VirtualClock(options.speed))
        self.client_id = self.world.client_id
        self.client_secret = self.world.client_secret
        self.application_id = self.world.application_id
        self.management_token = self.world.management_token
        self.webhook_id = self.world.webhook_id
        self.app = _application(self.world)

    @asynccontextmanager
    async def serving(self, host: str, port: int) -> AsyncIterator[str]:
        """Answer at ``host``, and send webhooks if the options want them.

        Port 0 takes a free one. Yields the origin: ``http://127.0.0.1:PORT``.
        """
        # A client that hangs up ends its handler, as a hang-up ends the request at Smartcar (460).
        runner = web.AppRunner(self.app, access_log=None, handler_cancellation=True, shutdown_timeout=GRACE_S)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            bound = runner.addresses[0][1]
            async with delivering(self.world):
                yield f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
        finally:
            await runner.cleanup()


def _application(world: World) -> web.Application:
    app = web.Application()
    for endpoint in (*VEHICLE_ENDPOINTS, *MANAGEMENT_ENDPOINTS):
        app.router.add_route(endpoint.method, endpoint.path, partial(exchange, world, endpoint))
    for method in ("GET", "POST"):
        app.router.add_route(method, PATH, partial(authorize, world))
    for method, path, handler in CONTROL_ROUTES:
        app.router.add_route(method, path, partial(control, world, handler))
    app.router.add_route("*", "/{path:.*}", partial(exchange, world, _NOWHERE))
    return app


async def _no_such_path(_: Ask) -> Answer:
    raise Refused("RESOURCE_NOT_FOUND:INVALID_PATH")


_NOWHERE: Final = Endpoint(method="*", path="*", kind="unknown", handler=_no_such_path, needs_token=False)

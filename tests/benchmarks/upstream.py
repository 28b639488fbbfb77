"""The shortest Smartcar there is: answers at once, always with news. Runs in a process of its own."""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import UTC, datetime

import orjson
from aiohttp import web

PAGE = 100


def signals(soc: float, measured_at: datetime) -> list[dict[str, object]]:
    """The ten signals of a battery daemon, as v3 words them."""
    bodies: dict[str, dict[str, object]] = {
        "tractionbattery-stateofcharge": {"value": soc, "unit": "percent"},
        "tractionbattery-range": {"value": round(soc * 4), "unit": "km", "type": "DEFAULT"},
        "tractionbattery-nominalcapacity": {"capacity": 60, "unit": "kWh", "source": "SMARTCAR"},
        "charge-detailedchargingstatus": {"value": "CHARGING"},
        "charge-ischarging": {"value": True},
        "charge-ischargingcableconnected": {"value": True},
        "charge-chargelimits": {"values": [], "activeLimit": 80, "unit": "percent"},
        "charge-wattage": {"value": 7200, "unit": "watts"},
        "charge-timetocomplete": {"value": 95},
        "odometer-traveleddistance": {"value": 12345.6, "unit": "km"},
    }
    at = int(measured_at.timestamp() * 1000)
    return [
        {
            "id": code,
            "type": "signal",
            "attributes": {"code": code, "status": {"value": "SUCCESS"}, "body": body},
            "meta": {"retrievedAt": at + 1000, "oemUpdatedAt": at},
        }
        for code, body in bodies.items()
    ]


def application(vehicles: int) -> web.Application:
    async def token(request: web.Request) -> web.Response:
        return _json({"access_token": "t", "token_type": "Bearer", "expires_in": 3600})

    async def connections(request: web.Request) -> web.Response:
        number = int(request.query.get("page[number]", "1"))
        first = (number - 1) * PAGE
        data = [
            {
                "id": f"c{n}",
                "attributes": {"vehicle": {"make": "BENCH", "model": f"Model {n}"}},
                "relationships": {"vehicle": {"data": {"id": f"v{n}"}}, "user": {"data": {"id": f"u{n}"}}},
            }
            for n in range(first, min(first + PAGE, vehicles))
        ]
        more = f"?page[number]={number + 1}&page[size]={PAGE}" if first + PAGE < vehicles else None
        return _json({"data": data, "links": {"next": more}})

    async def answer(request: web.Request) -> web.Response:
        now = time.time()
        return _json({"data": signals(now % 90, datetime.fromtimestamp(now, UTC)), "links": {"next": None}})

    app = web.Application()
    app.router.add_post("/oauth2/token", token)
    app.router.add_get("/v3/connections", connections)
    app.router.add_get("/v3/vehicles/{id}/signals", answer)
    return app


def _json(body: object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


async def _main(vehicles: int) -> None:
    runner = web.AppRunner(application(vehicles), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))

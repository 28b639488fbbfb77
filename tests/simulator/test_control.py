"""The control endpoints, the options, and the command that serves alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tomllib
from datetime import datetime

import aiohttp
import pytest

from evbatteryd.simulator import Simulator, SimulatorOptions
from tests.simulator.conftest import Smartcar, StartSmartcar, eventually


async def test_the_truth_of_every_vehicle_beside_what_its_cloud_has(smartcar: Smartcar):
    told = await smartcar.control("GET", "truth")
    assert set(told) == {vehicle.id for vehicle in smartcar.vehicles}
    now = smartcar.clock.now()
    for vehicle in smartcar.vehicles:
        truth = told[vehicle.id]
        assert (truth["make"], truth["model"]) == (vehicle.car.cloud.make, vehicle.car.model)
        assert truth["userId"] == vehicle.user_id
        assert datetime.fromisoformat(truth["at"]) == now
        assert truth["soc_percent"] == vehicle.car.soc_at(now.timestamp()) * 100
        assert truth["state"] in ("driving", "charging", "plugged", "parked")
        answer = await smartcar.signals(vehicle)
        soc = next(s for s in answer.json["data"] if s["id"] == "tractionbattery-stateofcharge")
        assert truth["upload"] == {
            "soc_percent": soc["attributes"]["body"]["value"],
            "measured_at": soc["meta"]["oemUpdatedAt"],
            "available_at": soc["meta"]["retrievedAt"],
        }
    one = smartcar.vehicles[1].id
    assert await smartcar.control("GET", f"truth?vehicle={one}") == {one: told[one]}
    async with smartcar.http.get(f"{smartcar.origin}/_control/truth?vehicle=none") as response:
        assert response.status == 404


async def test_a_consent_withdrawn_and_given_anew_has_a_new_connection(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    before = vehicle.connection_id
    gone = await smartcar.control("POST", f"vehicles/{vehicle.id}/withdraw")
    assert gone["connectionId"] is None
    assert (await smartcar.signals(vehicle)).status == 403
    assert (await smartcar.ask("GET", "/v3/connections")).json["meta"]["totalCount"] == 2
    assert (await smartcar.ask("GET", "/v3/subscriptions")).json["meta"]["totalCount"] == 2
    anew = await smartcar.control("POST", f"vehicles/{vehicle.id}/consent")
    assert anew["connectionId"] not in (None, before)
    assert anew["id"] == vehicle.id
    assert (await smartcar.signals(vehicle)).status == 200
    again = await smartcar.control("POST", f"vehicles/{vehicle.id}/consent")
    assert again["connectionId"] == anew["connectionId"]


async def test_a_vehicle_can_be_added_while_it_runs(smartcar: Smartcar):
    named = await smartcar.control("POST", "vehicles", {"make": "land_rover"})
    assert named["make"] == "LAND ROVER"
    in_turn = await smartcar.control("POST", "vehicles", {})
    assert in_turn["make"] == "HYUNDAI"  # the fifth
    listed = await smartcar.ask("GET", "/v3/connections")
    assert [one["id"] for one in listed.json["data"]][3:] == [named["connectionId"], in_turn["connectionId"]]
    answer = await smartcar.ask("GET", f"/v3/vehicles/{named['id']}/signals", user=named["userId"])
    assert answer.status == 200
    async with smartcar.http.post(f"{smartcar.origin}/_control/vehicles", json={"make": "x"}) as response:
        assert response.status == 400


async def test_stats_count_requests_by_kind_and_status_and_who_was_asked_at_once(start: StartSmartcar):
    async with start(latency_scale=1000) as smartcar:  # some milliseconds of ours
        vehicle = smartcar.vehicles[0]
        await asyncio.gather(
            *(smartcar.signals(vehicle) for _ in range(3)), smartcar.ask("GET", "/v3/nowhere")
        )
        await smartcar.signals(smartcar.vehicles[1])
        stats = await smartcar.control("GET", "stats")
    assert stats["requests"] == {"token": {"200": 1}, "signals": {"200": 4}, "unknown": {"404": 1}}
    assert stats["most_in_flight"] == 3
    assert stats["vehicles"][vehicle.id] == {"requests": 3, "billed": 3, "most_in_flight": 3}
    assert stats["vehicles"][smartcar.vehicles[1].id]["most_in_flight"] == 1
    assert stats["bucket_level"] == 116


async def test_the_clock_can_be_read_and_ones_own_set():
    simulator = Simulator(SimulatorOptions(vehicles=1, speed=60))
    async with simulator.serving("127.0.0.1", 0) as origin, aiohttp.ClientSession() as http:

        async def clock(**asked: float) -> tuple[datetime, float]:
            request = (
                http.post(f"{origin}/_control/clock", json=asked)
                if asked
                else http.get(f"{origin}/_control/clock")
            )
            async with request as response:
                assert response.status == 200
                told = await response.json()
            return datetime.fromisoformat(told["now"]), told["speed"]

        now, speed = await clock()
        assert speed == 60
        ahead, speed = await clock(advance_s=86400 * 365, speed=120)
        assert speed == 120
        assert (ahead - now).days == 365
        assert (await clock())[0] > ahead
        for wrong in ({"speed": 0}, {"advance_s": -1}, {"speed": "fast"}, {"at": 1}, {}):
            async with http.post(f"{origin}/_control/clock", json=wrong) as response:
                assert response.status == 400


async def test_a_clock_of_somebody_else_is_left_alone(smartcar: Smartcar):
    assert (await smartcar.control("GET", "clock"))["now"] == smartcar.clock.now().isoformat()
    async with smartcar.http.post(f"{smartcar.origin}/_control/clock", json={"speed": 2}) as response:
        assert response.status == 409


async def test_latency_can_be_switched_while_it_runs(start: StartSmartcar):
    async with start(latency_scale=1e9) as smartcar:
        assert await smartcar.control("POST", "latency", {"scale": 0}) == {"scale": 0}
        assert (await smartcar.signals(smartcar.vehicles[0])).status == 200
        for wrong in ({"scale": -1}, {"scale": None}, {}, []):
            async with smartcar.http.post(f"{smartcar.origin}/_control/latency", json=wrong) as response:
                assert response.status == 400


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"vehicles": -1}, "vehicles"),
        ({"speed": 0}, "speed"),
        ({"latency_scale": -1}, "latency_scale"),
        ({"bucket": 0}, "bucket"),
        ({"refill_per_minute": 0}, "refill_per_minute"),
        ({"calls_per_vehicle": -1}, "calls_per_vehicle"),
        ({"period": "year"}, "period"),
        ({"mode": "test"}, "mode"),
    ],
)
def test_options_that_cannot_be_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        SimulatorOptions(**options)


def test_an_unknown_make_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"unknown make 'trabant'; known are .*land_rover"):
        Simulator(SimulatorOptions(brands=("tesla", "trabant")))


def test_secrets_do_not_show_in_the_options():
    shown = repr(SimulatorOptions(client_secret="hush", management_token="quiet"))
    assert "hush" not in shown
    assert "quiet" not in shown


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_command_prints_a_ready_table_serves_and_ends_on_a_signal(number: signal.Signals):
    command = [sys.executable, "-m", "evbatteryd.simulator", "--listen", "127.0.0.1:0", "--vehicles", "2"]
    command += ["--brands", "bmw,ds", "--client-secret", "of my own", "--seed", "9", "--latency-scale", "0"]
    command += ["--bucket", "7", "--calls-per-vehicle", "-1"]
    command += ["--redirect-uri", "http://one.lan/", "--redirect-uri", "http://two.lan/"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    lines = []
    while not lines or not lines[-1].startswith("period"):
        lines.append((await process.stdout.readline()).decode())
    printed = "".join(lines)
    table = tomllib.loads(printed[printed.index("[smartcar.sim]") :])["smartcar"]["sim"]
    assert table["client_secret"] == "of my own"
    assert table["budget"] == {"bucket": 7, "refill_per_minute": 2, "period": "month"}
    origin = table["origins"]["vehicle"]
    assert set(table["origins"].values()) == {origin}
    assert f"{origin}/oauth/authorize" in printed
    asked = {"grant_type": "client_credentials"} | {key: table[key] for key in ("client_id", "client_secret")}
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{origin}/oauth2/token", data=asked) as response:
            token = (await response.json())["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        async with http.get(f"{origin}/v3/connections", headers=headers) as response:
            makes = [one["attributes"]["vehicle"]["make"] for one in (await response.json())["data"]]
        assert makes == ["BMW", "DS"]
        link = {"response_type": "code", "client_id": table["application_id"]}
        for uri, status in (("http://one.lan/", 200), ("http://two.lan/", 200), ("http://three.lan/", 400)):
            query = link | {"redirect_uri": uri}
            async with http.get(f"{origin}/oauth/authorize", params=query) as response:
                assert response.status == status
        hung = {"match": {"path": "connections"}, "fault": "hang"}
        async with http.post(f"{origin}/_control/faults", json=hung):
            pass
        waiting = asyncio.create_task(http.get(f"{origin}/v3/connections", headers=headers).__aenter__())

        async def hangs() -> bool:
            async with http.get(f"{origin}/_control/faults") as response:
                return (await response.json())[0]["fired"] == 1

        await eventually(hangs)
        process.send_signal(number)
        with pytest.raises(aiohttp.ClientError):
            await waiting
    assert await process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--brands", "trabant"], "unknown make"),
        (["--listen", "9783"], "is no address"),
        (["--speed", "0"], "speed must be above 0"),
        (["--traces", "."], "holds no *.csv.gz"),
        (["--calls-per-vehicle", "-2"], "calls_per_vehicle"),
        (["--redirect-uri", "http://car.lan/ok", "--redirect-uri", "car.lan"], "redirect_uris must be URLs"),
    ],
)
async def test_the_command_refuses_what_cannot_be(arguments, why, tmp_path):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "evbatteryd.simulator", *arguments, cwd=tmp_path, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    assert process.returncode == 2
    assert why in errors.decode()


async def test_a_port_that_is_taken_is_said_plainly(smartcar: Smartcar):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "evbatteryd.simulator",
        "--listen",
        smartcar.origin.removeprefix("http://"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"cannot listen on 127.0.0.1" in errors


def test_it_imports_nothing_of_the_daemon():
    script = (
        "import sys, evbatteryd.simulator.command\n"
        "ours = {name for name in sys.modules if name.startswith('evbatteryd.')}\n"
        "print(*sorted(name for name in ours if not name.startswith('evbatteryd.simulator')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

"""Charge commands over HTTP: they change the battery, and fail as Smartcar's do."""

from __future__ import annotations

from dataclasses import replace

import aiohttp
import orjson
import pytest

from evbatteryd.simulator.cars import Car
from evbatteryd.simulator.clouds import ALL_COMMANDS, CLOUDS, LIMITS, Cloud
from evbatteryd.simulator.draws import key_of
from evbatteryd.simulator.fleet import PERMISSIONS
from evbatteryd.simulator.lives import State, load_lives
from evbatteryd.simulator.signals import signals_of
from evbatteryd.simulator.tracks import FIRST_MONDAY, Track
from evbatteryd.simulator.uploads import newest_upload
from tests.simulator.conftest import Smartcar, StartSmartcar


def until(smartcar: Smartcar, state: State, *, minutes: float = 60) -> None:
    """Turn the clock to where the first car has been in that state for half that long, and will be."""
    car = smartcar.vehicles[0].car
    while True:
        now = smartcar.clock.now().timestamp()
        run = car.run_at(now)
        if run.state is state and min(now - run.start, run.end - now) > minutes * 30:
            return
        smartcar.clock.advance(minutes=10)


async def truth(smartcar: Smartcar) -> dict[str, object]:
    vehicle = smartcar.vehicles[0]
    return (await smartcar.control("GET", f"truth?vehicle={vehicle.id}"))[vehicle.id]


@pytest.fixture
async def tesla(start: StartSmartcar):
    async with start(vehicles=1, brands=("tesla",)) as smartcar:
        yield smartcar


async def test_stop_and_start_take_effect_on_the_battery(tesla: Smartcar):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    vehicle = tesla.vehicles[0]
    stopped = await tesla.command(vehicle, "stop")
    assert stopped.status == 200
    assert stopped.json["data"]["attributes"]["status"] == "SUCCESS"
    at_rest = await truth(tesla)
    assert at_rest["state"] == "plugged"
    tesla.clock.advance(minutes=20)
    assert (await truth(tesla))["soc_percent"] == at_rest["soc_percent"]
    seen = await tesla.signals(vehicle)
    assert seen.body_of("charge-ischarging") == {"value": False}
    again = await tesla.command(vehicle, "stop")
    assert (again.status, again.error) == (409, "VEHICLE_STATE:NOT_CHARGING")
    assert (await tesla.command(vehicle, "start")).status == 200
    tesla.clock.advance(minutes=20)
    assert (await truth(tesla))["soc_percent"] > at_rest["soc_percent"] + 1
    assert (await tesla.signals(vehicle)).body_of("charge-ischarging") == {"value": True}
    already = await tesla.command(vehicle, "start")
    assert (already.status, already.error) == (409, "VEHICLE_STATE:CHARGING_IN_PROGRESS")


@pytest.mark.parametrize("command", ["start", "stop"])
async def test_without_a_cable_there_is_nothing_to_start_or_stop(tesla: Smartcar, command: str):
    until(tesla, State.PARKED)
    await tesla.sign_in()
    answer = await tesla.command(tesla.vehicles[0], command)
    assert (answer.status, answer.error) == (409, "VEHICLE_STATE:CHARGING_PLUG_NOT_CONNECTED")


async def test_a_full_car_does_not_start(tesla: Smartcar):
    until(tesla, State.PLUGGED)
    await tesla.sign_in()
    assert (await truth(tesla))["soc_percent"] == 100
    answer = await tesla.command(tesla.vehicles[0], "start")
    assert (answer.status, answer.error) == (409, "VEHICLE_STATE:FULLY_CHARGED")


async def test_a_limit_is_kept_and_told(tesla: Smartcar):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    vehicle = tesla.vehicles[0]
    soc = (await truth(tesla))["soc_percent"]
    answer = await tesla.command(vehicle, "set-limit", {"data": {"attributes": {"percent": 50}}})
    assert answer.status == 200
    tesla.clock.advance(minutes=30)
    after = await truth(tesla)
    assert (after["charge_limit_percent"], after["state"]) == (50, "plugged")
    assert after["soc_percent"] == soc > 50
    limits = (await tesla.signals(vehicle)).body_of("charge-chargelimits")
    assert (limits["activeLimit"], limits["unit"]) == (50, "percent")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"data": {"attributes": {"percent": 49}}}, "VALIDATION:PARAMETER"),
        ({"data": {"attributes": {"percent": 101}}}, "VALIDATION:PARAMETER"),
        ({"data": {"attributes": {"percent": "80"}}}, "VALIDATION:INVALID_INPUT_FORMAT"),
        ({"data": {"attributes": {"percent": 80.5}}}, "VALIDATION:INVALID_INPUT_FORMAT"),
        ({"data": {"attributes": {}}}, "VALIDATION:MISSING_PARAMETER"),
        ({"data": 5}, "VALIDATION:MISSING_PARAMETER"),
        ([], "VALIDATION:INVALID_INPUT_FORMAT"),
        (None, "VALIDATION:INVALID_INPUT_FORMAT"),
    ],
)
async def test_a_limit_that_cannot_be_is_refused(tesla: Smartcar, body: object, error: str):
    answer = await tesla.command(tesla.vehicles[0], "set-limit", body)
    assert (answer.status, answer.error) == (400, error)


async def test_commands_need_the_vehicles_user_and_count_as_calls(tesla: Smartcar):
    vehicle = tesla.vehicles[0]
    path = f"/v3/vehicles/{vehicle.id}/commands/charge/stop"
    assert (await tesla.ask("POST", path)).status == 400
    assert (await tesla.ask("POST", path, user="someone")).status == 403
    await tesla.command(vehicle, "stop")
    stats = await tesla.control("GET", "stats")
    assert stats["vehicles"][vehicle.id] == {"requests": 3, "billed": 1, "most_in_flight": 1}


async def test_makes_that_cannot_say_so(start: StartSmartcar):
    able = {cloud.make: cloud.commands for cloud in CLOUDS}
    assert able["NISSAN"] == {"start"}
    assert able["MG"] == {"set-limit"}
    assert not able["TOYOTA"]
    assert able["TESLA"] == ALL_COMMANDS
    async with start(vehicles=3, brands=("nissan", "mg", "toyota")) as smartcar:
        bodies = {"set-limit": {"data": {"attributes": {"percent": 80}}}}
        for vehicle in smartcar.vehicles:
            for command in ALL_COMMANDS - vehicle.car.cloud.commands:
                answer = await smartcar.command(vehicle, command, bodies.get(command))
                assert (answer.status, answer.error) == (501, "COMPATIBILITY:VEHICLE_NOT_CAPABLE")


async def test_a_car_in_deep_sleep_takes_no_command_and_its_last_values_are_still_served(
    start: StartSmartcar,
):
    async with start(vehicles=12, brands=("gmc",)) as smartcar:
        vehicle = next(vehicle for vehicle in smartcar.vehicles if vehicle.car.life.name == "d12")
        while not vehicle.car.deep_asleep_at(smartcar.clock.now().timestamp()):
            smartcar.clock.advance(hours=1)
        await smartcar.sign_in()
        answer = await smartcar.command(vehicle, "set-limit", {"data": {"attributes": {"percent": 80}}})
        assert (answer.status, answer.error) == (409, "VEHICLE_STATE:ASLEEP")
        old = (await smartcar.signals(vehicle)).json["data"][-1]["meta"]["oemUpdatedAt"]
        assert smartcar.clock.now().timestamp() - old / 1000 > 3 * 86400


async def test_general_motors_starts_and_stops_only_from_half_a_battery_on(start: StartSmartcar):
    async with start(vehicles=1, brands=("gmc",)) as smartcar:
        car = smartcar.vehicles[0].car
        while True:
            now = smartcar.clock.now().timestamp()
            if car.run_at(now).state is State.CHARGING and car.soc_at(now) < 0.5:
                break
            smartcar.clock.advance(minutes=10)
        await smartcar.sign_in()
        answer = await smartcar.command(smartcar.vehicles[0], "stop")
        assert (answer.status, answer.error) == (409, "VEHICLE_STATE:LOW_BATTERY")


async def test_a_command_can_fail_or_be_pending_on_demand(tesla: Smartcar):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    vehicle = tesla.vehicles[0]
    for fault, status, state in (
        ("command_failure", "FAILURE", "charging"),
        ("command_pending", "PENDING", "plugged"),
    ):
        await tesla.control("POST", "faults", {"match": {"path": "commands"}, "fault": fault, "count": 1})
        answer = await tesla.command(vehicle, "stop")
        assert (answer.status, answer.json["data"]["attributes"]["status"]) == (200, status)
        assert (await truth(tesla))["state"] == state


async def test_a_long_command_is_answered_202_and_its_outcome_follows_in_the_body(tesla: Smartcar):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    await tesla.control("POST", "latency", {"scale": 1000})  # beyond 175 s, and milliseconds of ours
    done = await tesla.command(tesla.vehicles[0], "stop")
    assert (done.status, done.json["data"]["attributes"]["status"]) == (202, "SUCCESS")
    assert "content-length" not in done.headers
    failed = await tesla.command(tesla.vehicles[0], "stop")
    assert failed.status == 202
    (error,) = failed.json["errors"]
    assert (error["status"], error["code"]) == ("409", "NOT_CHARGING")


@pytest.mark.parametrize(("fault", "status"), [("command_lost", "PENDING"), ("command_ignored", "SUCCESS")])
async def test_a_command_can_be_promised_and_never_carried_out(tesla: Smartcar, fault: str, status: str):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    await tesla.control("POST", "faults", {"match": {"path": "commands"}, "fault": fault, "count": 1})
    answer = await tesla.command(tesla.vehicles[0], "stop")
    assert (answer.status, answer.json["data"]["attributes"]["status"]) == (200, status)
    tesla.clock.advance(minutes=20)
    assert (await truth(tesla))["state"] == "charging"


async def _pending(smartcar: Smartcar, delay_s: float) -> None:
    rule = {"match": {"path": "commands"}, "fault": "command_pending", "count": 1, "delay": delay_s}
    await smartcar.control("POST", "faults", rule)


async def test_a_pending_command_can_be_carried_out_later_and_is_told_then(tesla: Smartcar):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    vehicle = tesla.vehicles[0]
    await _pending(tesla, 600)
    answer = await tesla.command(vehicle, "stop")
    assert answer.json["data"]["attributes"]["status"] == "PENDING"
    tesla.clock.advance(minutes=9)
    assert (await truth(tesla))["state"] == "charging"
    assert (await tesla.signals(vehicle)).body_of("charge-ischarging") == {"value": True}
    tesla.clock.advance(minutes=2)
    assert (await truth(tesla))["state"] == "plugged"
    tesla.clock.advance(minutes=5)
    assert (await tesla.signals(vehicle)).body_of("charge-ischarging") == {"value": False}


async def test_a_newer_command_takes_the_place_of_one_that_is_pending(tesla: Smartcar):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    vehicle = tesla.vehicles[0]
    await _pending(tesla, 600)
    await tesla.command(vehicle, "stop")
    tesla.clock.advance(minutes=5)
    await tesla.command(vehicle, "set-limit", {"data": {"attributes": {"percent": 100}}})
    tesla.clock.advance(minutes=10)
    after = await truth(tesla)
    assert (after["state"], after["charge_limit_percent"]) == ("charging", 100)


async def test_without_consent_to_commands_there_are_none_and_reading_goes_on(start: StartSmartcar):
    may_read = tuple(name for name in PERMISSIONS if name != "control_charge")
    async with start(vehicles=1, brands=("tesla",), permissions=may_read) as smartcar:
        until(smartcar, State.CHARGING)
        await smartcar.sign_in()
        vehicle = smartcar.vehicles[0]
        answer = await smartcar.command(vehicle, "stop")
        assert (answer.status, answer.error) == (403, "PERMISSION")
        assert (await truth(smartcar))["state"] == "charging"
        assert (await smartcar.signals(vehicle)).status == 200
        (connection,) = (await smartcar.ask("GET", "/v3/connections")).json["data"]
        assert "control_charge" not in connection["attributes"]["permissions"]
        stats = await smartcar.control("GET", "stats")
        assert stats["vehicles"][vehicle.id]["billed"] == 1


@pytest.mark.parametrize("fault", ["empty", "malformed", "truncated", "reset"])
async def test_the_outcome_of_a_long_command_can_be_lost_on_its_way(tesla: Smartcar, fault: str):
    until(tesla, State.CHARGING)
    await tesla.sign_in()
    await tesla.control("POST", "latency", {"scale": 1000})
    await tesla.control("POST", "faults", {"match": {"path": "commands"}, "fault": fault, "count": 1})
    vehicle = tesla.vehicles[0]
    headers = {"Authorization": f"Bearer {tesla.token}", "sc-user-id": vehicle.user_id}
    url = f"{tesla.origin}/v3/vehicles/{vehicle.id}/commands/charge/stop"
    async with tesla.http.post(url, headers=headers) as response:
        assert response.status == 202
        if fault in ("truncated", "reset"):
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        else:
            assert (await response.read() == b"") == (fault == "empty")
            with pytest.raises(ValueError, match=r"."):
                orjson.loads(await response.read())
    assert (await truth(tesla))["state"] == "plugged"  # the car did it all the same


@pytest.mark.parametrize("cloud", CLOUDS, ids=lambda cloud: cloud.key)
def test_whatever_the_make_a_command_is_followed_by_an_upload(cloud: Cloud):
    life = load_lives()[0]
    t = next(
        FIRST_MONDAY + stretch.start + 3600
        for stretch in life.stretches
        if stretch.state is State.PARKED and stretch.end - stretch.start > 4 * 3600
    )
    car = Car(key_of(cloud.key), Track(life, 0), replace(cloud, loss=0.0))
    car.order(t, limit=0.6)
    upload = newest_upload(car, t + 2 * 3600)
    assert upload is not None
    assert upload.measured_at >= t
    assert upload.measured_at - t <= cloud.event_lag_s[1]
    told = {signal["id"]: signal["attributes"] for signal in signals_of(car, t + 2 * 3600, "")}
    assert (LIMITS in told) == (LIMITS not in cloud.without)
    if LIMITS in told:
        assert 60 in {limit["limit"] for limit in told[LIMITS]["body"]["values"]}

"""Smartcar's API v3 over real HTTP: tokens, connections, vehicles, signals, subscriptions."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from evbatteryd.simulator.clouds import CLOUDS
from evbatteryd.simulator.lives import State
from tests.simulator.conftest import Smartcar, StartSmartcar, eventually

UNITS = {
    "tractionbattery-stateofcharge": "percent",
    "tractionbattery-range": "km",
    "tractionbattery-nominalcapacity": "kWh",
    "charge-chargelimits": "percent",
    "charge-wattage": "watts",
    "charge-amperage": "ampere",
    "charge-voltage": "volts",
    "charge-chargerate": "km/h",
    "charge-energyadded": "kWh",
    "odometer-traveleddistance": "km",
    "lowvoltagebattery-stateofcharge": "percent",
}


# --- tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["data", "json"])
async def test_client_credentials_give_a_token_for_an_hour_as_form_and_as_json(smartcar: Smartcar, way: str):
    asked = {
        "grant_type": "client_credentials",
        "client_id": smartcar.simulator.client_id,
        "client_secret": smartcar.simulator.client_secret,
    }
    async with smartcar.http.post(f"{smartcar.origin}/oauth2/token", **{way: asked}) as response:
        assert response.status == 200
        given = await response.json()
    assert set(given) == {"access_token", "token_type", "expires_in"}
    assert (given["token_type"], given["expires_in"]) == ("Bearer", 3600)
    answer = await smartcar.ask("GET", "/v3/connections", token=given["access_token"])
    assert answer.status == 200
    smartcar.clock.advance(seconds=3599)
    assert (await smartcar.ask("GET", "/v3/connections", token=given["access_token"])).status == 200
    smartcar.clock.advance(seconds=1)
    answer = await smartcar.ask("GET", "/v3/connections", token=given["access_token"])
    assert (answer.status, answer.error) == (401, "AUTHENTICATION:UNAUTHORIZED")


@pytest.mark.parametrize(
    ("change", "status", "error"),
    [
        ({"client_secret": "wrong"}, 401, "invalid_client"),
        ({"client_id": "client_other"}, 401, "invalid_client"),
        ({"grant_type": "authorization_code"}, 400, "invalid_request"),
        ({"client_secret": ""}, 400, "invalid_request"),
    ],
)
async def test_a_wrong_token_request_gets_an_oauth_error(smartcar: Smartcar, change, status, error):
    asked = {
        "grant_type": "client_credentials",
        "client_id": smartcar.simulator.client_id,
        "client_secret": smartcar.simulator.client_secret,
        **change,
    }
    async with smartcar.http.post(f"{smartcar.origin}/oauth2/token", data=asked) as response:
        assert response.status == status
        assert (await response.json())["error"] == error


async def test_an_older_token_stays_good_beside_a_newer_one(smartcar: Smartcar):
    older = smartcar.token
    await smartcar.sign_in()
    assert smartcar.token != older
    assert (await smartcar.ask("GET", "/v3/connections", token=older)).status == 200


async def test_without_a_token_or_with_a_made_up_one_nothing_is_told(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    for path in ("/v3/connections", f"/v3/vehicles/{vehicle.id}", "/v3/subscriptions", "/v3/webhooks"):
        for token in ("", "made-up", smartcar.simulator.client_secret):
            answer = await smartcar.ask("GET", path, token=token)
            assert (answer.status, answer.error) == (401, "AUTHENTICATION:UNAUTHORIZED")


# --- connections ----------------------------------------------------------------------------------------


async def test_connections_come_in_pages_that_lead_to_each_other(start: StartSmartcar):
    async with start(vehicles=23) as smartcar:
        seen, path = [], "/v3/connections"
        sizes = []
        while path is not None:
            answer = await smartcar.ask("GET", path)
            assert answer.json["meta"]["totalCount"] == 23
            seen += [
                connection["relationships"]["vehicle"]["data"]["id"] for connection in answer.json["data"]
            ]
            sizes.append(len(answer.json["data"]))
            links = answer.json["links"]
            assert links["self"].startswith(smartcar.origin)
            path = links["next"] and links["next"].removeprefix(smartcar.origin)
        assert sizes == [10, 10, 3]
        assert seen == [vehicle.id for vehicle in smartcar.vehicles]
        back = await smartcar.ask("GET", links["prev"].removeprefix(smartcar.origin))
        assert back.json["meta"]["pageNumber"] == 2
        last = await smartcar.ask("GET", links["last"].removeprefix(smartcar.origin))
        first = await smartcar.ask("GET", links["first"].removeprefix(smartcar.origin))
        assert (len(last.json["data"]), last.json["links"]["next"]) == (3, None)
        assert (first.json["meta"]["pageNumber"], first.json["links"]["prev"]) == (1, None)


async def test_the_next_page_keeps_size_and_filters(start: StartSmartcar):
    async with start(vehicles=14) as smartcar:
        owner = smartcar.vehicles[6].user_id
        assert owner == smartcar.vehicles[5].user_id
        page = await smartcar.ask("GET", f"/v3/connections?filter[userId]={owner}&page[size]=1")
        assert page.json["meta"] == page.json["meta"] | {"pageSize": 1, "totalCount": 2}
        following = await smartcar.ask("GET", page.json["links"]["next"].removeprefix(smartcar.origin))
        ids = [one.json["data"][0]["relationships"]["vehicle"]["data"]["id"] for one in (page, following)]
        assert ids == [smartcar.vehicles[5].id, smartcar.vehicles[6].id]


async def test_a_connection_says_who_what_and_what_may_be_read(smartcar: Smartcar):
    answer = await smartcar.ask("GET", "/v3/connections")
    connection, vehicle = answer.json["data"][1], smartcar.vehicles[1]
    assert connection["type"] == "connection"
    assert uuid.UUID(connection["id"]).version == 4
    attributes = connection["attributes"]
    assert attributes["vehicle"] == {
        "make": "VOLKSWAGEN",
        "model": vehicle.car.model,
        "year": vehicle.car.year,
        "mode": "live",
        "powertrainType": vehicle.car.powertrain,
    }
    assert attributes["user"] == {"id": vehicle.user_id, "externalId": None}
    assert {"read_battery", "read_charge", "read_odometer"} <= set(attributes["permissions"])
    assert connection["relationships"]["vehicle"]["data"]["id"] == vehicle.id
    assert connection["relationships"]["user"]["data"]["id"] == vehicle.user_id
    alone = await smartcar.ask("GET", f"/v3/connections/{connection['id']}")
    assert alone.json["data"] == connection


async def test_connections_are_filtered_by_user_vehicle_mode_and_external_id(smartcar: Smartcar):
    vehicle = smartcar.vehicles[2]

    async def ids(query: str, user: str | None = None) -> list[str]:
        answer = await smartcar.ask("GET", f"/v3/connections{query}", user=user)
        assert answer.status == 200
        return [one["relationships"]["vehicle"]["data"]["id"] for one in answer.json["data"]]

    assert await ids(f"?filter[vehicleId]={vehicle.id}") == [vehicle.id]
    assert await ids(f"?filter[userId]={vehicle.user_id}") == [vehicle.id]
    assert await ids("", user=vehicle.user_id) == [vehicle.id]
    assert await ids(f"?filter[vehicleId]={vehicle.id}&filter[userId]={smartcar.vehicles[0].user_id}") == []
    assert len(await ids("?filter[vehicle.mode]=live")) == 3
    assert await ids("?filter[vehicle.mode]=simulated") == []
    assert await ids("?filter[user.externalId]=me") == []
    assert await ids("?filter[vehicleId]=unknown") == []


async def test_simulated_vehicles_are_listed_only_when_asked_for(start: StartSmartcar):
    async with start(mode="simulated") as smartcar:
        assert (await smartcar.ask("GET", "/v3/connections")).json["data"] == []
        asked = await smartcar.ask("GET", "/v3/connections?filter[vehicle.mode]=simulated")
        assert len(asked.json["data"]) == 3


@pytest.mark.parametrize("query", ["page[size]=0", "page[size]=101", "page[number]=0", "page[number]=x"])
async def test_a_page_that_cannot_be_is_refused(smartcar: Smartcar, query: str):
    answer = await smartcar.ask("GET", f"/v3/connections?{query}")
    assert answer.status == 400
    assert answer.error.startswith("VALIDATION:")


async def test_a_page_beyond_the_last_is_empty(smartcar: Smartcar):
    answer = await smartcar.ask("GET", "/v3/connections?page[number]=9")
    assert (answer.status, answer.json["data"], answer.json["links"]["next"]) == (200, [], None)


async def test_a_deleted_connection_is_gone_and_its_vehicle_closed(smartcar: Smartcar):
    vehicle, connection = smartcar.vehicles[0], smartcar.vehicles[0].connection_id
    answer = await smartcar.ask("DELETE", f"/v3/connections/{connection}")
    assert (answer.status, answer.body) == (204, b"")
    assert (await smartcar.ask("GET", f"/v3/connections/{connection}")).status == 404
    assert (await smartcar.ask("DELETE", f"/v3/connections/{connection}")).status == 404
    assert (await smartcar.ask("GET", "/v3/connections")).json["meta"]["totalCount"] == 2
    refused = await smartcar.signals(vehicle)
    assert (refused.status, refused.error) == (403, "PERMISSION")
    assert refused.json["errors"][0]["resolution"] == {"type": "REAUTHENTICATE"}


async def test_a_deleted_user_takes_all_his_vehicles_along(start: StartSmartcar):
    async with start(vehicles=8) as smartcar:
        owner = smartcar.vehicles[5].user_id
        assert (await smartcar.ask("DELETE", f"/v3/users/{owner}")).status == 204
        left = await smartcar.ask("GET", "/v3/connections")
        assert left.json["meta"]["totalCount"] == 6
        assert (await smartcar.ask("DELETE", f"/v3/users/{owner}")).status == 404


# --- vehicles and signals -------------------------------------------------------------------------------


async def test_a_vehicle_tells_what_it_is_without_a_user(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    answer = await smartcar.ask("GET", f"/v3/vehicles/{vehicle.id}")
    attributes = answer.json["data"]["attributes"]
    assert (attributes["make"], attributes["model"], attributes["mode"]) == ("TESLA", "Model 3", "live")
    assert isinstance(attributes["year"], int)


async def test_signals_need_the_vehicles_user(smartcar: Smartcar):
    vehicle, other = smartcar.vehicles[0], smartcar.vehicles[1]
    for path in (
        f"/v3/vehicles/{vehicle.id}/signals",
        f"/v3/vehicles/{vehicle.id}/signals/charge-ischarging",
    ):
        missing = await smartcar.ask("GET", path)
        assert (missing.status, missing.error) == (400, "VALIDATION:MISSING_PARAMETER")
        wrong = await smartcar.ask("GET", path, user=other.user_id)
        assert (wrong.status, wrong.error) == (403, "PERMISSION")
        assert (await smartcar.ask("GET", path, user=vehicle.user_id)).status == 200


async def test_signals_come_in_pages_of_ten_unless_asked_otherwise(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    whole = await smartcar.signals(vehicle)
    codes = [signal["id"] for signal in whole.json["data"]]
    assert whole.json["meta"] == {"pageNumber": 1, "pageSize": 100, "totalCount": len(codes)}
    assert codes == sorted(codes)
    first = await smartcar.signals(vehicle, "")
    assert [signal["id"] for signal in first.json["data"]] == codes[:10]
    rest = await smartcar.ask(
        "GET", first.json["links"]["next"].removeprefix(smartcar.origin), user=vehicle.user_id
    )
    assert [signal["id"] for signal in rest.json["data"]] == codes[10:]
    included = rest.json["included"]["vehicle"]
    assert included["id"] == vehicle.id
    assert included["attributes"] == {"make": "TESLA", "model": "Model 3", "year": vehicle.car.year}


async def test_one_signal_is_the_same_wrapped_in_data(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    for signal in (await smartcar.signals(vehicle)).json["data"]:
        alone = await smartcar.signals(vehicle, f"/{signal['id']}")
        assert alone.json["data"] == signal
        assert alone.json["included"]["vehicle"]["id"] == vehicle.id
    unknown = await smartcar.signals(vehicle, "/vin")
    assert (unknown.status, unknown.error) == (404, "RESOURCE_NOT_FOUND:SIGNAL_NOT_FOUND")


async def test_all_46_makes_drive_charge_and_answer(start: StartSmartcar):
    async with start(vehicles=46) as smartcar:
        assert [vehicle.car.cloud.make for vehicle in smartcar.vehicles] == [cloud.make for cloud in CLOUDS]
        assert len({cloud.make for cloud in CLOUDS}) == 46
        for vehicle in smartcar.vehicles:
            smartcar.clock.advance(minutes=1)
            answer = await smartcar.signals(vehicle)
            assert answer.status == 200, vehicle.car.cloud.make
            assert 0 <= answer.body_of("tractionbattery-stateofcharge")["value"] <= 100
            now_ms = smartcar.clock.now().timestamp() * 1000
            for signal in answer.json["data"]:
                meta, attributes = signal["meta"], signal["attributes"]
                assert attributes["status"]["value"] in ("SUCCESS", "ERROR", "UNAVAILABLE")
                assert ("body" in attributes) == (attributes["status"]["value"] == "SUCCESS")
                if "body" in attributes:
                    assert attributes["body"].get("unit") == UNITS.get(signal["id"])
                if meta.get("oemUpdatedAt"):
                    assert meta["oemUpdatedAt"] < meta["retrievedAt"] < meta["ingestedAt"]
                    assert meta["retrievedAt"] <= now_ms


async def test_makes_differ_in_what_they_deliver(start: StartSmartcar):
    makes = ("volkswagen", "byd", "bmw", "tesla", "land_rover")
    async with start(vehicles=5, brands=makes) as smartcar:
        codes, times = {}, {}
        for vehicle in smartcar.vehicles:
            answer = await smartcar.signals(vehicle)
            codes[vehicle.car.cloud.make] = {signal["id"] for signal in answer.json["data"]}
            times[vehicle.car.cloud.make] = {
                signal["id"]: signal["meta"].get("oemUpdatedAt") for signal in answer.json["data"]
            }
        cable, odometer = "charge-ischargingcableconnected", "odometer-traveleddistance"
        assert cable not in codes["VOLKSWAGEN"] | codes["BYD"]
        assert odometer not in codes["BMW"]
        assert {cable, odometer} <= codes["TESLA"] & codes["LAND ROVER"]
        assert "connectivitystatus-isasleep" in codes["BYD"]
        assert times["TESLA"]["tractionbattery-nominalcapacity"] == 0
        assert (
            times["BMW"]["tractionbattery-nominalcapacity"] == times["BMW"]["tractionbattery-stateofcharge"]
        )


async def test_what_a_car_cannot_say_is_an_error_of_that_signal_alone(start: StartSmartcar):
    async with start(vehicles=1, brands=("volkswagen",)) as smartcar:
        vehicle = smartcar.vehicles[0]
        while vehicle.car.run_at(smartcar.clock.now().timestamp()).state is not State.DRIVING:
            smartcar.clock.advance(minutes=5)
        await smartcar.sign_in()
        answer = await smartcar.signals(vehicle)
        status = {signal["id"]: signal["attributes"]["status"] for signal in answer.json["data"]}
        timers, wattage = status["charge-chargetimers"], status["charge-wattage"]
        assert timers["value"] == wattage["value"] == "ERROR"
        assert (timers["error"]["type"], timers["error"]["code"]) == ("COMPATIBILITY", "VEHICLE_NOT_CAPABLE")
        assert (wattage["error"]["type"], wattage["error"]["code"]) == ("VEHICLE_STATE", "NOT_CHARGING")
        assert status["tractionbattery-stateofcharge"] == {"value": "SUCCESS"}


async def test_a_range_can_be_older_than_the_state_of_charge_of_the_same_answer(start: StartSmartcar):
    async with start(vehicles=1, brands=("polestar",)) as smartcar:
        answer = await smartcar.signals(smartcar.vehicles[0])
        times = {signal["id"]: signal["meta"]["oemUpdatedAt"] for signal in answer.json["data"]}
        assert times["tractionbattery-range"] < times["tractionbattery-stateofcharge"]


async def test_a_charging_car_says_so_in_every_signal(start: StartSmartcar):
    async with start(vehicles=1, brands=("tesla",)) as smartcar:
        vehicle = smartcar.vehicles[0]
        car = vehicle.car
        while True:
            now = smartcar.clock.now().timestamp()
            run = car.run_at(now)
            if run.state is State.CHARGING and now - run.start > 1800 and run.end - now > 1800:
                break
            smartcar.clock.advance(minutes=5)
        await smartcar.sign_in()
        answer = await smartcar.signals(vehicle)
        assert answer.body_of("charge-ischarging") == {"value": True}
        assert answer.body_of("charge-ischargingcableconnected") == {"value": True}
        assert answer.body_of("charge-detailedchargingstatus") == {"value": "CHARGING"}
        watts = answer.body_of("charge-wattage")["value"]
        assert watts == pytest.approx(6500, rel=0.2)
        minutes = answer.body_of("charge-timetocomplete")
        assert minutes["value"] == pytest.approx((run.end - now) / 60, rel=0.1, abs=10)
        assert "unit" not in minutes
        added = answer.body_of("charge-energyadded")["value"]
        assert added == pytest.approx(watts / 1000 * (now - run.start) / 3600, abs=watts / 1000 / 10)
        limit = answer.body_of("charge-chargelimits")
        assert limit["activeLimit"] == round(car.life.target * 100)


async def test_a_vehicle_that_is_not_subscribed_has_no_signals_until_it_is(smartcar: Smartcar):
    vehicle = smartcar.vehicles[0]
    await smartcar.control("POST", f"vehicles/{vehicle.id}/unsubscribe")
    answer = await smartcar.signals(vehicle)
    assert (answer.status, answer.error) == (404, "RESOURCE_NOT_FOUND")
    assert (await smartcar.ask("GET", f"/v3/vehicles/{vehicle.id}")).status == 200
    await smartcar.control("POST", f"vehicles/{vehicle.id}/subscribe")
    assert (await smartcar.signals(vehicle)).status == 200


async def test_unknown_vehicles_and_paths_are_not_found(smartcar: Smartcar):
    unknown = await smartcar.ask("GET", f"/v3/vehicles/{uuid.uuid4()}/signals", user="x")
    assert (unknown.status, unknown.error) == (404, "RESOURCE_NOT_FOUND")
    for method, path in (("GET", "/v3/nonsense"), ("GET", "/"), ("PUT", "/v3/connections")):
        answer = await smartcar.ask(method, path)
        assert (answer.status, answer.error) == (404, "RESOURCE_NOT_FOUND:INVALID_PATH")


# --- management -----------------------------------------------------------------------------------------


async def test_both_tokens_open_the_management_api(smartcar: Smartcar):
    simulator = smartcar.simulator
    for token in (simulator.management_token, smartcar.token):
        applications = await smartcar.ask("GET", "/v3/applications", token=token)
        webhooks = await smartcar.ask("GET", "/v3/webhooks", token=token)
        assert [one["id"] for one in applications.json["data"]] == [simulator.application_id]
        assert [one["id"] for one in webhooks.json["data"]] == [simulator.webhook_id]
        assert webhooks.json["meta"]["pageSize"] == 25
    only = await smartcar.ask("GET", f"/v3/applications/{simulator.application_id}")
    assert only.json["data"]["id"] == simulator.application_id
    assert (await smartcar.ask("GET", f"/v3/webhooks/{uuid.uuid4()}")).status == 404
    refused = await smartcar.ask("GET", "/v3/connections", token=simulator.management_token)
    assert refused.status == 401


async def test_subscriptions_are_made_once_listed_and_ended(smartcar: Smartcar):
    vehicle = smartcar.vehicles[1]
    listed = await smartcar.ask("GET", f"/v3/subscriptions?filter[vehicleId]={vehicle.id}")
    (subscription,) = listed.json["data"]
    wanted = {"webhookId": smartcar.simulator.webhook_id, "userId": vehicle.user_id, "vehicleId": vehicle.id}
    assert subscription["attributes"] == wanted
    body = {"data": {"attributes": wanted}}
    again = await smartcar.ask("POST", "/v3/subscriptions", json=body)
    assert again.status == 409
    assert (await smartcar.ask("DELETE", f"/v3/subscriptions/{subscription['id']}")).status == 204
    assert (await smartcar.signals(vehicle)).status == 404
    assert (await smartcar.ask("GET", f"/v3/subscriptions/{subscription['id']}")).status == 404
    assert (await smartcar.ask("GET", "/v3/subscriptions")).json["meta"]["totalCount"] == 2
    assert (await smartcar.ask("POST", "/v3/subscriptions", json=body)).status == 202
    assert (await smartcar.signals(vehicle)).status == 200
    unknown = {"data": {"attributes": wanted | {"webhookId": "other"}}}
    assert (await smartcar.ask("POST", "/v3/subscriptions", json=unknown)).status == 404
    foreign = {"data": {"attributes": wanted | {"userId": smartcar.vehicles[0].user_id}}}
    assert (await smartcar.ask("POST", "/v3/subscriptions", json=foreign)).status == 403
    assert (await smartcar.ask("POST", "/v3/subscriptions", json={"data": {}})).status == 400
    for query in ("filter[webhookId]=other", "filter[vehicleMode]=simulated", "filter[userId]=other"):
        assert (await smartcar.ask("GET", f"/v3/subscriptions?{query}")).json["data"] == []
    query = (
        f"filter[webhookId]={wanted['webhookId']}&filter[userId]={vehicle.user_id}&filter[vehicleMode]=live"
    )
    (found,) = (await smartcar.ask("GET", f"/v3/subscriptions?{query}")).json["data"]
    assert found["attributes"] == wanted


async def test_a_subscription_ends_with_its_consent(smartcar: Smartcar):
    vehicle = smartcar.vehicles[1]
    (subscription,) = (await smartcar.ask("GET", f"/v3/subscriptions?filter[vehicleId]={vehicle.id}")).json[
        "data"
    ]
    assert (await smartcar.ask("DELETE", f"/v3/connections/{vehicle.connection_id}")).status == 204
    for method in ("GET", "DELETE"):
        assert (await smartcar.ask(method, f"/v3/subscriptions/{subscription['id']}")).status == 404
    body = {"data": {"attributes": subscription["attributes"]}}
    refused = await smartcar.ask("POST", "/v3/subscriptions", json=body)
    assert (refused.status, refused.error) == (403, "PERMISSION")


async def test_a_webhook_says_where_it_goes_and_that_it_is_enabled(start: StartSmartcar):
    async with start(webhook="http://127.0.0.1:9/hook", auto_subscribe=False) as smartcar:
        (webhook,) = (await smartcar.ask("GET", "/v3/webhooks")).json["data"]
        assert webhook["attributes"] == {
            "name": "Simulated",
            "applicationId": smartcar.simulator.application_id,
            "callbackUri": "http://127.0.0.1:9/hook",
            "isEnabled": True,
            "autoSubscribe": False,
        }


async def test_the_same_seed_gives_the_same_answers(start: StartSmartcar):
    async def answers(**options: object) -> list[object]:
        async with start(vehicles=5, **options) as smartcar:
            seen = []
            for vehicle in smartcar.vehicles:
                answer = await smartcar.signals(vehicle)
                seen.append([(one["id"], one["attributes"], one["meta"]) for one in answer.json["data"]])
            connections = await smartcar.ask("GET", "/v3/connections")
            seen.append([(one["id"], one["relationships"]) for one in connections.json["data"]])
            simulator = smartcar.simulator
            seen.append((simulator.client_id, simulator.client_secret, simulator.application_id))
            return seen

    assert await answers(seed=3) == await answers(seed=3)
    one, other = await answers(seed=3), await answers(seed=4)
    assert all(left != right for left, right in zip(one, other, strict=True))


async def test_latency_is_log_normal_in_the_worlds_time_and_the_same_for_a_seed(start: StartSmartcar):
    async with start(vehicles=46, latency_scale=1.0) as smartcar:
        world = smartcar.simulator.world
        drawn = sorted(
            world.latency_s(vehicle, number) for vehicle in smartcar.vehicles for number in range(1, 101)
        )
    assert drawn[len(drawn) // 2] == pytest.approx(8, rel=0.1)
    assert 1 <= drawn[0] < 1.5
    assert 45 < drawn[int(len(drawn) * 0.99)] < 150
    assert drawn[-1] <= 300
    async with start(vehicles=46, latency_scale=0.5) as other:
        world = other.simulator.world
        assert sorted(
            world.latency_s(vehicle, number) for vehicle in other.vehicles for number in range(1, 101)
        ) == [span / 2 for span in drawn]


async def test_a_client_that_hangs_up_ends_its_request(start: StartSmartcar):
    async with start(latency_scale=1e9) as smartcar:  # hours of real time
        asked = asyncio.create_task(smartcar.signals(smartcar.vehicles[0]))
        stats = smartcar.simulator.world.stats

        async def is_served() -> bool:
            return stats.as_json()["most_in_flight"] == 1

        async def is_over() -> bool:
            return stats.as_json()["requests"].get("signals") == {"gone": 1}

        await eventually(is_served)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        await eventually(is_over)

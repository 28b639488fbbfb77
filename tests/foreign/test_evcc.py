"""The example for evcc, treated as evcc's own source treats it.

Names of evcc's files and functions are those of https://github.com/evcc-io/evcc. Its jq is gojq, which Debian
has, too: so the programs run on what they were written for.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from evbatteryd.brands import load_profiles
from evbatteryd.domain.freshness import GRACE, Freshness, told_again_every
from evbatteryd.domain.hinting import hint_named
from evbatteryd.domain.policy.outlook import Hint
from evbatteryd.sinks.hearing import ControlTopics
from tests.foreign.telling import state_payload
from tests.mosquitto import program

FOLDER = Path(__file__).parents[2] / "examples" / "evcc"
EVCC: dict[str, Any] = yaml.safe_load((FOLDER / "evcc.yaml").read_text())

# The fields of the structs that evcc decodes these parts into; it refuses others (util.DecodeOther).
VEHICLE_KEYS = {  # vehicle/vehicle.go, vehicle/embed.go
    *(
        "soc",
        "limitsoc",
        "status",
        "range",
        "odometer",
        "climater",
        "maxcurrent",
        "getmaxcurrent",
        "finishtime",
    ),
    *("wakeup", "chargeenable", "chargedenergy", "position"),
    *("title", "icon", "capacity", "phases", "identifiers", "features", "onidentify"),
}
PLUGIN_KEYS = {  # plugin/config.go, plugin/mqtt.go, plugin/mqtt/client.go, plugin/pipeline/pipeline.go
    *("source", "topic", "payload", "retained", "scale", "timeout"),
    *("broker", "user", "password", "clientid", "insecure", "cacert", "clientcert", "clientkey"),
    *("allowempty", "quote", "regex", "default", "jq", "unpack", "decode"),
}
SERVICE_KEYS = {"type", "send", "encoding"}  # cmd/setup.go, push/push.go
EVENTS = {"start", "stop", "connect", "disconnect", "soc", "guest", "asleep"}  # core/loadpoint.go
FEATURES = {  # api/feature.go: those of vehicles
    *("coarsecurrent", "offline", "retryable", "streaming", "welcomecharge"),
}

(VEHICLE,) = EVCC["vehicles"]
READ = {key: value for key, value in VEHICLE.items() if isinstance(value, dict)}
"""What the vehicle reads, by its key."""
UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(duration: str) -> int:
    """A duration as Go writes it."""
    parts = re.findall(r"(\d+)([smh])", duration)
    assert "".join(number + unit for number, unit in parts) == duration
    return sum(int(number) * UNITS[unit] for number, unit in parts)


class NotAvailable(Exception):
    """An error where evcc wanted a value: it takes none."""


@dataclass
class Getter:
    """A value that evcc reads by MQTT (``Mqtt.newReceiver``, ``msgHandler``, ``util.Monitor``)."""

    config: dict[str, str]
    _payload: bytes | None = None
    _received_s: float = 0
    now_s: float = field(default=1_000_000, kw_only=True)
    """By its own clock, which is not ours."""

    def receive(self, payload: bytes) -> None:
        """``Client.listen`` passes nothing on that is empty."""
        if payload:
            self._payload, self._received_s = payload, self.now_s

    def string(self) -> str:
        if self._payload is None or self.now_s - self._received_s > seconds(self.config["timeout"]):
            raise NotAvailable("outdated")
        return formatted(queried(self.config["jq"], self._payload))

    def float(self) -> float:
        try:
            return float(self.string())
        except ValueError as error:
            raise NotAvailable(str(error)) from error


def queried(query: str, payload: bytes) -> object:
    """The one result of a query; none, several and errors are refused (``util/jq/jq.go``)."""
    done = subprocess.run([program("gojq"), "-c", query], input=payload, capture_output=True, check=False)
    if done.returncode:
        raise NotAvailable(done.stderr.decode())
    (result,) = done.stdout.splitlines()
    return json.loads(result)


def formatted(value: object) -> str:
    """As Go's ``%v`` does."""
    if value is None or isinstance(value, bool):
        return {None: "<nil>", True: "true", False: "false"}[value]
    return str(value)


def reads(key: str, payload: bytes, *, later_s: float = 0) -> str | float:
    """What evcc has of one key, so long after it received this."""
    getter = Getter(READ[key])
    getter.receive(payload)
    getter.now_s += later_s
    return getter.string() if key == "status" else getter.float()


def now() -> datetime:
    """The programs take it from the machine."""
    return datetime.now(UTC)


TIMEOUT = timedelta(seconds=seconds(VEHICLE["soc"]["timeout"]))


# The file


def test_evcc_knows_every_key_and_feature() -> None:
    assert set(VEHICLE) - {"name", "type"} <= VEHICLE_KEYS
    assert VEHICLE["type"] == "custom"
    assert set(VEHICLE["features"]) <= FEATURES
    assert set(READ) == {"soc", "status", "range", "limitsoc", "odometer"}
    for plugin in READ.values():
        assert set(plugin) <= PLUGIN_KEYS
        assert plugin["source"] == "mqtt"
    for service in EVCC["messaging"]["services"]:
        assert set(service) == SERVICE_KEYS
        assert set(service["send"]) <= PLUGIN_KEYS
    assert set(EVCC["messaging"]["events"]) <= EVENTS


def test_what_is_commented_out_is_right_too() -> None:
    text = (FOLDER / "evcc.yaml").read_text()
    block = re.search(r"^    # wakeup:\n(?:    #   .*\n)+", text, re.MULTILINE)
    assert block is not None
    found = yaml.safe_load(re.sub(r"^    # ", "", block[0], flags=re.MULTILINE))["wakeup"]
    assert set(found) <= PLUGIN_KEYS
    assert found["payload"] == "on"
    assert ControlTopics("evbatteryd", "homeassistant").read(found["topic"]) == ("zoe", "charging")


def test_every_value_is_given_up_after_the_same_time() -> None:
    for plugin in READ.values():
        assert timedelta(seconds=seconds(plugin["timeout"])) == TIMEOUT
        assert re.findall(r"< (\d+)", plugin["jq"]) == [str(int(TIMEOUT.total_seconds()))]


def test_the_readme_has_the_timeout_of_every_brand() -> None:
    readme = (FOLDER / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", readme, re.MULTILINE)
    assert all(seconds(duration) == int(in_seconds) for duration, in_seconds, _ in rows)
    listed = {name: int(in_seconds) for _, in_seconds, names in rows for name in names.split(", ")}
    others = listed.pop("all others")
    assert TIMEOUT.total_seconds() == others
    for profile in load_profiles().values():
        lost_after = told_again_every(profile) + GRACE
        assert listed.pop(profile.name, others) == lost_after.total_seconds(), profile.name
    assert not listed


# Values


def test_a_fresh_car_is_read() -> None:
    told = state_payload(
        now(),
        soc=62.5,
        range_km=245,
        charge_limit=80,
        odometer_km=1_048_211.125,
        charging=False,
        plugged_in=True,
    )
    assert {key: reads(key, told) for key in READ} == {
        "soc": 62.5,
        "status": "B",
        "range": 245,
        "limitsoc": 80,
        "odometer": 1_048_211.125,
    }


@pytest.mark.parametrize(
    ("values", "letter"),
    [
        ({"charging": True}, "C"),
        ({"charging": True, "plugged_in": True}, "C"),
        ({"charge_state": "fully_charged", "plugged_in": True}, "B"),
        ({"charging": False, "plugged_in": True}, "B"),
        ({"charging": False, "plugged_in": False}, "A"),
    ],
)
def test_the_letter_of_a_status(values: dict[str, Any], letter: str) -> None:
    assert reads("status", state_payload(now(), soc=50, **values)) == letter


def test_an_empty_battery_is_no_unknown_one() -> None:
    assert reads("soc", state_payload(now(), soc=0)) == 0


@pytest.mark.parametrize("key", READ)
def test_what_is_unknown_is_not_invented(key: str) -> None:
    with pytest.raises(NotAvailable, match="unknown"):
        reads(key, state_payload(now(), capacity_kwh=52))


@pytest.mark.parametrize("key", READ)
@pytest.mark.parametrize("freshness", [Freshness.STALE, Freshness.OFFLINE])
def test_what_is_not_fresh_is_not_taken(key: str, freshness: Freshness) -> None:
    with pytest.raises(NotAvailable, match="not fresh"):
        reads(key, everything(now(), freshness=freshness))


@pytest.mark.parametrize("key", READ)
def test_a_value_that_ages_is_given_up_as_soon_as_that_is_told(key: str) -> None:
    getter = Getter(READ[key])
    getter.receive(everything(now()))
    assert getter.string()
    getter.receive(everything(now(), freshness=Freshness.STALE))
    with pytest.raises(NotAvailable):
        getter.string()


@pytest.mark.parametrize("key", READ)
def test_what_a_broker_revives_is_not_taken(key: str) -> None:
    """Retained for ever, as with MQTT 3.1.1, and received only now, after a restart."""
    with pytest.raises(NotAvailable, match="not fresh"):
        reads(key, everything(now() - TIMEOUT - timedelta(minutes=1)))
    assert reads(key, everything(now() - TIMEOUT + timedelta(minutes=1)))


@pytest.mark.parametrize("key", READ)
def test_silence_ends_a_value_whatever_the_clocks_say(key: str) -> None:
    fast = everything(now() + timedelta(days=1))
    assert reads(key, fast, later_s=TIMEOUT.total_seconds() - 1)
    with pytest.raises(NotAvailable, match="outdated"):
        reads(key, fast, later_s=TIMEOUT.total_seconds() + 1)


def test_a_deleted_topic_changes_nothing_until_the_timeout() -> None:
    """Why the scalar topics would not do."""
    getter = Getter(READ["soc"])
    getter.receive(everything(now()))
    getter.receive(b"")
    assert getter.float() == 62


def everything(published_at: datetime, freshness: Freshness = Freshness.FRESH) -> bytes:
    return state_payload(
        published_at,
        freshness=freshness,
        soc=62,
        range_km=245,
        charge_limit=80,
        odometer_km=48_211,
        charging=True,
        plugged_in=True,
    )


# The way back


def test_evcc_tells_hints_that_we_understand() -> None:
    told = {event: hint_named(text["title"]) for event, text in EVCC["messaging"]["events"].items()}
    assert told == {
        "connect": Hint.PLUGGED_IN,
        "disconnect": Hint.UNPLUGGED,
        "start": Hint.CHARGING,
        "stop": Hint.CHARGING_STOPPED,
    }
    (service,) = EVCC["messaging"]["services"]
    assert service["type"] == "custom"
    assert service["encoding"] == "title"  # Push.Send publishes the title alone
    assert ControlTopics("evbatteryd", "homeassistant").read(service["send"]["topic"]) == ("zoe", "event")
    assert (
        "retained" not in service["send"]
    )  # Mqtt publishes unretained then, and retained hints are not taken
    # An event whose message is empty is not sent at all (Hub.Run).
    assert all(text["msg"].strip() for text in EVCC["messaging"]["events"].values())

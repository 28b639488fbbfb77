"""``check --online`` against a real broker and the simulator, with everything wrong in turn."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from evbatteryd import checkup
from evbatteryd.checkup import Finding, Verdict, findings
from evbatteryd.cli import main
from evbatteryd.clock import WallClock
from evbatteryd.localkey import path_of
from evbatteryd.settings import load_settings
from evbatteryd.simulator import Simulator, SimulatorOptions
from tests.mosquitto import LOOPBACK, Mosquitto, Witness, free_port
from tests.sinks.test_connection import ACCEPTED, scripted
from tests.test_operate import KEY, running

COMMANDS = ", ".join(f"evbatteryd/+/{kind}/set" for kind in ("poll", "charging", "charge_limit", "event"))
PASSWORD = "hunter2-of-the-broker"


class Place:
    """A configuration whose every part is there; a test spoils what it is about."""

    def __init__(self, folder: Path, simulator: Simulator, origin: str, broker: Mosquitto) -> None:
        self.folder = folder
        self.simulator = simulator
        self.secret = json.dumps(simulator.client_secret)
        self.origin = origin
        self.mqtt_url = broker.url
        self.mqtt = ""
        self.listen = f"{LOOPBACK}:{free_port()}"
        self.db = folder / "store" / "evbatteryd.db"

    def file(self) -> Path:
        path = self.folder / "evbatteryd.toml"
        origins = ", ".join(
            f'{host} = "{self.origin}"' for host in ("connect", "iam", "vehicle", "management")
        )
        path.write_text(
            f'[smartcar.home]\nclient_id = "{self.simulator.client_id}"\nclient_secret = {self.secret}\n'
            f"origins = {{ {origins} }}\n"
            f'[mqtt]\nurl = "{self.mqtt_url}"\n{self.mqtt}\n'
            f'[http]\nlisten = "{self.listen}"\n[store]\nurl = "sqlite:///{self.db}"\n'
        )
        return path

    async def found(self) -> dict[str, Finding]:
        """By what was tried and, where several of a kind are, by where."""
        settings, _ = load_settings(self.file(), {}, without_credentials=True)
        found = [one async for one in findings(settings, WallClock())]
        assert PASSWORD not in repr(found)
        assert self.simulator.client_secret not in repr(found)
        return {f"{one.what} {one.where}" if "ing" in one.what else one.what: one for one in found}

    async def check(self, *flags: str) -> Result:
        file = str(self.file())
        return await asyncio.to_thread(
            CliRunner().invoke, main, ["check", "--config", file, "--online", *flags]
        )


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Mosquitto]:
    async with Mosquitto(tmp_path / "mosquitto") as running_broker:
        yield running_broker


@asynccontextmanager
async def placed(folder: Path, broker: Mosquitto) -> AsyncIterator[Place]:
    simulator = Simulator(SimulatorOptions(vehicles=1))
    async with simulator.serving(LOOPBACK, 0) as origin:
        (folder / "store").mkdir()
        yield Place(folder, simulator, origin, broker)


@pytest.fixture
async def place(tmp_path: Path, broker: Mosquitto) -> AsyncIterator[Place]:
    async with placed(tmp_path, broker) as made:
        yield made


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_where_all_is_well_everything_is_good(place: Place, broker: Mosquitto, protocol: str) -> None:
    place.mqtt = f'protocol = "{protocol}"'
    async with Witness(broker.port, "#") as witness:
        found = await place.found()
        assert {one.verdict for one in found.values()} == {Verdict.GOOD}, found
        assert list(found) == [
            "Smartcar application home",
            "store",
            "HTTP",
            "MQTT broker",
            "MQTT publishing evbatteryd/bridge/check",
            f"MQTT subscribing {COMMANDS}",
            "MQTT publishing homeassistant/device/evbatteryd_check_/config",
        ]
        assert f"MQTT {protocol}" in found["MQTT broker"].said
        # No last will, and nothing that would be kept.
        await witness.until(lambda w: len(w.heard) == 2)
        assert not any(message.retain for message in witness.heard)


async def test_no_call_is_spent(place: Place) -> None:
    await place.found()
    asked = place.simulator.world.stats.as_json()
    assert asked["requests"] == {"token": {"200": 1}}
    assert asked["vehicles"] == {}


async def test_without_discovery_its_topics_are_left_alone(place: Place) -> None:
    place.mqtt = "discovery = false"
    assert not [key for key in await place.found() if "homeassistant" in key]


async def test_a_running_daemon_keeps_its_connection(place: Place, broker: Mosquitto) -> None:
    async with Witness(broker.port, identifier="evbatteryd") as daemon:
        await place.found()
        await daemon.until(lambda w: w.last("evbatteryd/bridge/check") == "check")
        listening = daemon._listening
        assert listening is not None
        assert not listening.done()


async def test_refused_credentials_are_said(place: Place) -> None:
    place.secret = '"another-secret"'
    finding = (await place.found())["Smartcar application home"]
    assert finding.verdict is Verdict.FAILED
    assert "refuses the client id or secret" in finding.said
    assert "dashboard.smartcar.com" in finding.mend


async def test_a_way_that_leads_nowhere_is_said(place: Place) -> None:
    place.origin = f"http://{LOOPBACK}:{free_port()}"
    finding = (await place.found())["Smartcar application home"]
    assert (finding.verdict, finding.said) == (Verdict.FAILED, "no connection could be made")
    assert "firewall" in finding.mend


async def test_a_credential_that_only_systemd_hands_over_is_named(place: Place) -> None:
    place.secret = '{ credential = "smartcar-secret" }'
    place.mqtt = 'username = "ev"\npassword = { credential = "mqtt-password" }'
    found = await place.found()
    for key, name in (("Smartcar application home", "smartcar-secret"), ("MQTT broker", "mqtt-password")):
        assert found[key].verdict is Verdict.FAILED
        assert repr(name) in found[key].said
        assert "systemd-run" in found[key].mend


async def test_a_store_that_cannot_be_kept_is_said(place: Place) -> None:
    place.db = Path("/proc/nowhere/evbatteryd.db")
    finding = (await place.found())["store"]
    assert finding.verdict is Verdict.FAILED
    assert "cannot be written to" in finding.said


async def test_a_store_that_is_still_to_be_made_is_made_where_it_can(place: Place) -> None:
    place.db = place.folder / "not" / "yet" / "evbatteryd.db"
    assert (await place.found())["store"].verdict is Verdict.GOOD
    assert not place.db.parent.exists()


async def test_a_disk_that_is_nearly_full_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup, "LEAST_FREE_BYTES", 2**62)
    finding = (await place.found())["store"]
    assert (finding.verdict, finding.mend[:10]) == (Verdict.FAILED, "Make room:")


async def test_an_address_that_another_program_has_is_said(place: Place) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        place.listen = f"{LOOPBACK}:{taken.getsockname()[1]}"
        finding = (await place.found())["HTTP"]
    assert finding.verdict is Verdict.FAILED
    assert "not known to be by evbatteryd" in finding.said


@pytest.mark.parametrize("unix", [True, False])
async def test_an_address_that_our_own_daemon_has_is_good(place: Place, unix: bool) -> None:
    """It is known by its key, where being at this machine proves nothing."""
    path = place.folder / "http.sock" if unix else None
    async with running(unix_path=path, public_url="https://ev.example.org") as daemon:
        place.listen = daemon.listen
        path_of(place.db).write_text(KEY)
        path_of(place.db).chmod(0o600)
        finding = (await place.found())["HTTP"]
        assert finding.verdict is Verdict.GOOD
        assert "runs there" in finding.said
        path_of(place.db).write_text("x" * 43)
        finding = (await place.found())["HTTP"]
        assert finding.verdict is Verdict.FAILED
        assert "another database" in finding.said


async def test_a_socket_that_a_killed_daemon_left_is_no_obstacle(place: Place) -> None:
    place.listen = f"unix:{place.folder}/http.sock"
    assert (await place.found())["HTTP"].said == "free"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{place.folder}/http.sock")
    assert (await place.found())["HTTP"].said == "free"


async def test_an_address_that_is_not_of_this_machine_is_said(place: Place) -> None:
    place.listen = "192.0.2.1:9782"  # RFC 5737: of nobody
    finding = (await place.found())["HTTP"]
    assert finding.verdict is Verdict.FAILED
    assert "no such address" in finding.mend


# The broker


async def test_a_broker_that_is_away_is_said_and_nothing_further_tried(place: Place) -> None:
    place.mqtt_url = f"mqtt://{LOOPBACK}:{free_port()}"
    found = await place.found()
    assert [key for key in found if key.startswith("MQTT")] == ["MQTT broker"]
    assert found["MQTT broker"].verdict is Verdict.FAILED
    assert "connection refused" in found["MQTT broker"].said


async def test_a_wrong_password_is_said_and_never_shown(tmp_path: Path) -> None:
    async with (
        Mosquitto(tmp_path / "mosquitto", users={"ev": "another"}) as broker,
        placed(tmp_path, broker) as place,
    ):
        place.mqtt = f'username = "ev"\npassword = "{PASSWORD}"'
        finding = (await place.found())["MQTT broker"]
        assert finding.verdict is Verdict.FAILED
        assert "not authorized" in finding.said
        assert "mqtt.password" in finding.mend


@pytest.mark.parametrize(("protocol", "verdict"), [("5", Verdict.FAILED), ("3.1.1", Verdict.UNKNOWN)])
async def test_a_topic_that_may_not_be_published_to_is_named(
    tmp_path: Path, protocol: str, verdict: Verdict
) -> None:
    rules = tmp_path / "acl"
    rules.write_text("topic read #\ntopic write evbatteryd/#\n")
    async with (
        Mosquitto(tmp_path / "mosquitto", settings=f"acl_file {rules}") as broker,
        placed(tmp_path, broker) as place,
    ):
        place.mqtt = f'protocol = "{protocol}"'
        found = await place.found()
        assert found["MQTT publishing evbatteryd/bridge/check"].verdict is Verdict.GOOD
        finding = found["MQTT publishing homeassistant/device/evbatteryd_check_/config"]
        assert finding.verdict is verdict, finding
        assert "homeassistant/#" in finding.mend


async def test_a_topic_that_may_not_be_subscribed_to_is_named(place: Place) -> None:
    async with scripted(ACCEPTED["5"], b"\x00\x01\x87\x01\x01") as (port, _):
        place.mqtt_url = f"mqtt://{LOOPBACK}:{port}"
        finding = (await place.found())[f"MQTT subscribing {COMMANDS}"]
    assert finding.verdict is Verdict.FAILED
    assert finding.said == "refused: evbatteryd/+/charging/set: not authorized"


async def test_what_the_broker_limits_is_told(tmp_path: Path) -> None:
    limits = "max_inflight_messages 5\nmax_packet_size 4096\nmax_keepalive 20\nretain_available false"
    async with (
        Mosquitto(tmp_path / "mosquitto", settings=limits) as broker,
        placed(tmp_path, broker) as place,
    ):
        said = (await place.found())["MQTT broker"].said
        for words in ("5 messages", "4096 bytes", "every 20 s", "keeps nothing", "not encrypted"):
            assert words in said


# As it is typed


async def test_every_line_says_what_and_where_and_how_it_is(place: Place) -> None:
    result = await place.check()
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert f"good: Smartcar application home ({place.origin}): the credentials are accepted." in lines
    assert sum(line.startswith("good: ") for line in lines) == 7


async def test_a_failure_is_the_exit_code_and_the_secret_is_nowhere(place: Place) -> None:
    place.mqtt_url = f"mqtt://{LOOPBACK}:{free_port()}"
    place.mqtt = f'username = "ev"\npassword = "{PASSWORD}"'
    result = await place.check()
    assert result.exit_code == 1
    (line,) = (line for line in result.output.splitlines() if line.startswith("error: MQTT"))
    assert place.mqtt_url in line
    assert "Start the broker" in line
    assert PASSWORD not in result.output
    assert place.simulator.client_secret not in result.output


async def test_all_of_it_as_json(place: Place) -> None:
    place.secret = '"another-secret"'
    result = await place.check("--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    verdicts = {one["what"]: one["verdict"] for one in document["online"]}
    assert verdicts["Smartcar application home"] == "error"
    assert verdicts["MQTT broker"] == "good"
    assert set(document["online"][0]) == {"what", "where", "verdict", "said", "mend"}


async def test_a_file_with_a_mistake_is_not_tried(place: Place) -> None:
    place.mqtt = "no_such_key = 1"
    result = await place.check()
    assert result.exit_code == 1
    assert "Smartcar application" not in result.output

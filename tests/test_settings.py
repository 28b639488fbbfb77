"""The configuration: taken whole, or refused with every mistake by name."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from evbatteryd.domain.enrolment import PERMISSIONS
from evbatteryd.domain.ledger import Budget, Period
from evbatteryd.problems import Misconfigured, Problem
from evbatteryd.secret import Secret
from evbatteryd.settings import (
    ENVIRONMENT,
    Listen,
    MqttUrl,
    Proxies,
    Settings,
    describe,
    known_keys,
    load_settings,
    parse_listen,
)

EXAMPLE = Path(__file__).parent.parent / "config" / "evbatteryd.toml"
SECRET = "b-very-hush-hush-Secret_42"
TOKEN = "an-admin-token-Of-Ours"
MINIMAL = """
[smartcar.home]
client_id = "client_1"
client_secret = { file = "secret" }
"""


PROXIED = MINIMAL + '[http]\ntrusted_proxies = ["10.0.0.1"]\n'
"""Behind a reverse proxy; open at the end of [http]."""
ADMIN = 'admin_token = { file = "secret" }'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "secret").chmod(0o600)
    return tmp_path


@dataclass
class Loader:
    folder: Path

    def load(
        self, text: str, environ: Mapping[str, str] | None = None
    ) -> tuple[Settings, tuple[Problem, ...]]:
        path = self.folder / "evbatteryd.toml"
        path.write_text(text)
        return load_settings(path, environ or {})

    def settings(self, text: str = MINIMAL, **environ: str) -> Settings:
        """Settings of a file that gives no reason to warn."""
        settings, warnings = self.load(text, environ)
        assert warnings == ()
        return settings

    def problems(self, text: str, **environ: str) -> dict[str, Problem]:
        """Every mistake by its key; fails if there is none."""
        with pytest.raises(Misconfigured) as refused:
            self.load(text, environ)
        found = {problem.key: problem for problem in refused.value.problems}
        assert len(found) == len(refused.value.problems)
        return found

    def only_problem(self, text: str, **environ: str) -> Problem:
        (problem,) = self.problems(text, **environ).values()
        return problem

    def only_warning(self, text: str, **environ: str) -> Problem:
        (warning,) = self.load(text, environ)[1]
        assert warning.warning
        return warning


@pytest.fixture
def loader(folder: Path) -> Loader:
    return Loader(folder)


# --- what is taken ------------------------------------------------------------------------------------


def test_one_application_is_all_it_takes(loader: Loader) -> None:
    settings = loader.settings()
    home = settings.smartcar["home"]
    assert home.name == "home"
    assert home.client_id == "client_1"
    assert home.client_secret.reveal() == SECRET
    assert home.management_token is None
    assert home.mode == "live"
    assert home.permissions == PERMISSIONS
    assert home.country is None
    assert home.origins.iam == "https://iam.smartcar.com"
    assert home.budget == Budget()
    assert settings.mqtt is not None
    assert settings.mqtt.url == MqttUrl("mqtt", "localhost", 1883)
    http = settings.http
    assert http.listen == Listen("127.0.0.1", 9782)
    assert (http.public_url, http.admin_token, http.admin_header) == (None, None, None)
    assert not http.trusted_proxies
    assert (http.admin_users, http.open_to_read, http.enrolment) == ((), False, "invitation")
    assert settings.store.url.path == Path("/var/lib/evbatteryd/evbatteryd.db")
    assert settings.store.history == timedelta(days=400)
    assert (settings.log.level, settings.log.format) == ("info", "json")
    assert settings.polling.max_in_flight == 512
    assert settings.polling.consents_every == timedelta(minutes=15)
    assert settings.polling.longest_wait == timedelta(hours=12)
    assert settings.profiles["renault"].name == "Renault"


def test_every_key_is_read(loader: Loader, folder: Path) -> None:
    for name in ("ca.pem", "client.pem", "client.key"):
        (folder / name).touch()
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    settings = loader.settings(
        MINIMAL
        + """
        application_id = "app"
        management_token = { file = "secret" }
        webhook_id = "hook"
        permissions = ["read_battery", "control_charge", "read_battery"]
        country = "de"
        mode = "simulated"
        origins = { iam = "http://127.0.0.1:8080/", vehicle = "https://[2001:db8::1]:8443" }
        [smartcar.home.budget]
        bucket = 1200
        refill_per_minute = 20
        calls_per_vehicle = 100
        period = "day"
        anchor_day = 31
        pooled = true
        [mqtt]
        url = "wss://broker.example.org/ws?a=b"
        username = "ev"
        password = { file = "secret" }
        ca_file = "ca.pem"
        client_certificate = "client.pem"
        client_key = "client.key"
        client_id = "garage"
        base_topic = "home/ev"
        protocol = "3.1.1"
        tls_server_name = "broker"
        keepalive = "1m"
        session_expiry = "0s"
        discovery = false
        discovery_prefix = "ha"
        outbox_readings = 1000
        outbox_age = "1h"
        json_state = false
        scalars = true
        [http]
        listen = "unix:/run/evbatteryd/http.sock"
        public_url = "https://ev.example.org/"
        admin_token = { file = "token" }
        trusted_proxies = ["10.1.2.0/24", "unix", "::1"]
        admin_header = "Remote-User"
        admin_users = ["ada", "grace"]
        open_to_read = true
        enrolment = "open"
        [store]
        url = "sqlite:////srv/ev.db"
        history = "30d"
        [log]
        level = "debug"
        format = "journal"
        [polling]
        max_in_flight = 8
        consents_every = "1h30m"
        longest_wait = "6h"
        [brands.renault]
        charging = "20m"
        """
    )
    home = settings.smartcar["home"]
    assert (home.application_id, home.webhook_id, home.mode) == ("app", "hook", "simulated")
    assert home.management_token == Secret(SECRET)
    assert home.permissions == ("read_battery", "control_charge")
    assert home.country == "DE"
    assert home.origins.iam == "http://127.0.0.1:8080"
    assert home.origins.vehicle == "https://[2001:db8::1]:8443"
    assert home.origins.connect == "https://connect.smartcar.com"
    assert home.budget == Budget(
        bucket=1200,
        refill_per_minute=20.0,
        calls_per_vehicle=100,
        period=Period.DAY,
        anchor_day=31,
        pooled=True,
    )
    assert isinstance(home.budget.period, Period)
    mqtt = settings.mqtt
    assert mqtt is not None
    assert mqtt.url == MqttUrl("wss", "broker.example.org", 443, "/ws?a=b")
    assert mqtt.url.tls
    assert (mqtt.username, mqtt.password) == ("ev", Secret(SECRET))
    assert mqtt.ca_file == folder / "ca.pem"
    assert (mqtt.client_certificate, mqtt.client_key) == (folder / "client.pem", folder / "client.key")
    assert (mqtt.client_id, mqtt.base_topic, mqtt.discovery_prefix) == ("garage", "home/ev", "ha")
    assert (mqtt.protocol, mqtt.json_state, mqtt.scalars) == ("3.1.1", False, True)
    assert mqtt.tls_server_name == "broker"
    assert (mqtt.keepalive, mqtt.session_expiry) == (timedelta(minutes=1), timedelta())
    assert not mqtt.discovery
    assert (mqtt.outbox_readings, mqtt.outbox_age) == (1000, timedelta(hours=1))
    assert settings.http.listen == Listen(unix_path=Path("/run/evbatteryd/http.sock"))
    http = settings.http
    assert http.public_url == "https://ev.example.org"
    assert http.admin_token == Secret(TOKEN)
    assert http.trusted_proxies == Proxies((ip_network("10.1.2.0/24"), ip_network("::1")), unix=True)
    assert (http.admin_header, http.admin_users) == ("Remote-User", ("ada", "grace"))
    assert (http.open_to_read, http.enrolment) == (True, "open")
    assert settings.store.url.path == Path("/srv/ev.db")
    assert settings.store.history == timedelta(days=30)
    assert (settings.log.level, settings.log.format) == ("debug", "journal")
    assert settings.polling.max_in_flight == 8
    assert settings.polling.consents_every == timedelta(hours=1, minutes=30)
    assert settings.polling.longest_wait == timedelta(hours=6)
    assert settings.profiles["renault"].charging == timedelta(minutes=20)
    assert [secret.reveal() for secret in settings.secrets()] == [SECRET] * 3 + [TOKEN]


def test_settings_are_frozen(loader: Loader) -> None:
    settings = loader.settings()
    with pytest.raises(AttributeError):
        settings.file = "x"  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        settings.polling.max_in_flight = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.smartcar["other"] = settings.smartcar["home"]  # type: ignore[index]


def test_mqtt_can_be_switched_off(loader: Loader) -> None:
    assert loader.settings(MINIMAL + "[mqtt]\nenabled = false").mqtt is None


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "path"),
    [
        ("mqtt://broker", "broker", 1883, False, None),
        ("mqtts://broker/", "broker", 8883, True, None),
        ("ws://broker", "broker", 80, False, "/mqtt"),
        ("wss://broker:9001/live", "broker", 9001, True, "/live"),
        ("mqtt://[::1]:1884", "::1", 1884, False, None),
    ],
)
def test_where_the_broker_is(
    loader: Loader, url: str, host: str, port: int, tls: bool, path: str | None
) -> None:
    mqtt = loader.settings(MINIMAL + f'[mqtt]\nurl = "{url}"').mqtt
    assert mqtt is not None
    assert (mqtt.url.host, mqtt.url.port, mqtt.url.tls, mqtt.url.websocket_path) == (host, port, tls, path)
    again = loader.settings(MINIMAL + f'[mqtt]\nurl = "{mqtt.url}"').mqtt
    assert again is not None
    assert again.url == mqtt.url


@pytest.mark.parametrize("text", ["127.0.0.1:9782", "[::1]:0", "localhost:80", "unix:/run/ev.sock"])
def test_where_to_listen_reads_as_it_is_written(text: str) -> None:
    assert str(parse_listen(text)) == text


@pytest.mark.parametrize(
    "text", ["", "9782", ":9782", "::1:80", "*:80", "host:65536", "unix:ev.sock", "unix:"]
)
def test_where_nobody_can_listen(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_listen(text)


# --- the environment ----------------------------------------------------------------------------------


def test_the_environment_has_the_last_word(loader: Loader) -> None:
    settings = loader.settings(
        MINIMAL
        + MINIMAL.replace("home", "Work").replace("client_1", "client_2")
        + '[mqtt]\nurl = "mqtt://file"',
        EVBATTERYD__SMARTCAR__HOME__BUDGET__BUCKET="60",
        evbatteryd__smartcar__work__application_id="1234",
        EVBATTERYD__SMARTCAR__WORK__PERMISSIONS='["read_battery"]',
        EVBATTERYD__HTTP__TRUSTED_PROXIES="unix",
        EVBATTERYD__MQTT__URL="mqtt://environment:1884",
        EVBATTERYD__MQTT__SCALARS="false",
        EVBATTERYD__BRANDS__RENAULT__CHARGING="25m",
        EVBATTERYD__STORE__HISTORY="'5d'",
        EVBATTERYD_MQTT__URL="not ours: one underscore",
        OTHER__MQTT__URL="not ours",
    )
    assert settings.smartcar["home"].budget.bucket == 60
    assert settings.smartcar["Work"].application_id == "1234"
    assert settings.smartcar["Work"].permissions == ("read_battery",)
    assert settings.http.trusted_proxies == Proxies(unix=True)
    assert settings.mqtt is not None
    assert str(settings.mqtt.url) == "mqtt://environment:1884"
    assert not settings.mqtt.scalars
    assert settings.store.history == timedelta(days=5)
    assert settings.profiles["renault"].charging == timedelta(minutes=25)


def test_an_application_may_come_from_the_environment_alone(loader: Loader) -> None:
    settings = loader.settings(
        "",
        EVBATTERYD__SMARTCAR__HOME__CLIENT_ID="client_12345",
        EVBATTERYD__SMARTCAR__HOME__CLIENT_SECRET='{ file = "secret" }',
        EVBATTERYD__SMARTCAR__CABIN__CLIENT_ID="client_67890",
        EVBATTERYD__SMARTCAR__CABIN__CLIENT_SECRET__FILE="secret",
    )
    assert settings.smartcar["home"].client_id == "client_12345"
    assert settings.smartcar["cabin"].client_secret.reveal() == SECRET


def test_text_that_looks_like_a_number_is_text_where_text_is_wanted(loader: Loader) -> None:
    settings, warnings = loader.load(
        MINIMAL,
        {
            "EVBATTERYD__MQTT__USERNAME": "0012",
            "EVBATTERYD__MQTT__PASSWORD": "1234",
            "EVBATTERYD__MQTT__PROTOCOL": "5",
            "EVBATTERYD__MQTT__BASE_TOPIC": "7",
        },
    )
    assert settings.mqtt is not None
    assert settings.mqtt.username == "0012"
    assert settings.mqtt.password == Secret("1234")
    assert settings.mqtt.base_topic == "7"
    assert [(warning.file, warning.key) for warning in warnings] == [
        (ENVIRONMENT, "EVBATTERYD__MQTT__PASSWORD")
    ]


def test_bytes_that_are_no_text_in_the_environment(loader: Loader) -> None:
    variables = {
        "EVBATTERYD__MQTT__USERNAME": "\udcff",
        "EVBATTERYD__MQTT__CA_FILE": "\udcff",
        "EVBATTERYD__MQTT__BASE_TOPIC": "\udcff",
        "EVBATTERYD__HTTP__LISTEN": "\udcff:1",
    }
    assert set(loader.problems(MINIMAL, **variables)) == set(variables)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EVBATTERYD__MQTT__BASE_TOPIK", "x", "base_topic"),
        ("EVBATTERYD__MQQT__URL", "mqtt://x", "'mqtt'"),
        ("EVBATTERYD__POLLING__MAX_IN_FLIGHT", "many", "whole number"),
        ("EVBATTERYD__MQTT__URL__HOST", "x", "mqtt.url is no table"),
        ("EVBATTERYD__MQTT", "x", "names no key"),
        ("EVBATTERYD__STORE", "{ history = '5d' }", "names no key"),
        ("EVBATTERYD__", "x", "names no key"),
        ("EVBATTERYD__MQTT____URL", "x", "names no key"),
        ("EVBATTERYD__SMARTCAR__HOM__BUDGET__BUCKET", "5", "smartcar.hom.client_id is missing"),
        ("EVBATTERYD__BRANDS__RENAULT__CHARGNG", "5m", "charging"),
    ],
)
def test_a_mistake_in_the_environment_names_the_variable(
    loader: Loader, variable: str, value: str, says: str
) -> None:
    with pytest.raises(Misconfigured) as refused:
        loader.load(MINIMAL + '[mqtt]\nurl = "mqtt://x"', {variable: value})
    assert {(problem.file, problem.key) for problem in refused.value.problems} == {(ENVIRONMENT, variable)}
    assert says in str(refused.value)


# --- secrets ------------------------------------------------------------------------------------------


def with_secret(secret: str) -> str:
    return f'[smartcar.home]\nclient_id = "client_1"\nclient_secret = {secret}\n'


def test_a_credential_of_systemd(loader: Loader, folder: Path) -> None:
    settings = loader.settings(with_secret('{ credential = "secret" }'), CREDENTIALS_DIRECTORY=str(folder))
    assert settings.smartcar["home"].client_secret.reveal() == SECRET


def test_a_credential_without_systemd(loader: Loader) -> None:
    problem = loader.only_problem(with_secret('{ credential = "hush" }'))
    assert problem.key == "smartcar.home.client_secret"
    assert "'hush'" in problem.what
    assert "$CREDENTIALS_DIRECTORY is not set" in problem.what
    assert "LoadCredential=hush" in problem.mend


def test_a_credential_that_systemd_does_not_have(loader: Loader, folder: Path) -> None:
    problem = loader.only_problem(with_secret('{ credential = "hush" }'), CREDENTIALS_DIRECTORY=str(folder))
    assert "'hush' cannot be read (No such file or directory)" in problem.what
    assert str(folder) not in problem.what + problem.mend


@pytest.mark.parametrize("name", ["../secret", "/etc/shadow", "", ".", ".."])
def test_a_credential_stays_in_its_directory(loader: Loader, folder: Path, name: str) -> None:
    (folder / "inner").mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(folder / "inner")}
    problem = loader.only_problem(with_secret(f'{{ credential = "{name}" }}'), **environ)
    assert "plain file name" in problem.what


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\r\n", "is empty"),
        (b"  \n", "is empty"),
        (b"one\ntwo\n", "more than one line"),
        (b"a\x00b", "control characters"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_a_file_that_holds_no_secret(loader: Loader, folder: Path, content: bytes, says: str) -> None:
    (folder / "bad").write_bytes(content)
    assert says in loader.only_problem(with_secret('{ file = "bad" }')).what


@pytest.mark.parametrize("content", [SECRET, SECRET + "\n", SECRET + "\r\n", f" {SECRET} \n"])
def test_only_the_end_of_the_line_is_stripped(loader: Loader, folder: Path, content: str) -> None:
    (folder / "secret").write_bytes(content.encode())
    secret = loader.settings().smartcar["home"].client_secret
    assert secret.reveal() == content.rstrip("\r\n")


def test_a_secret_file_that_is_not_there(loader: Loader) -> None:
    problem = loader.only_problem(with_secret('{ file = "nowhere" }'))
    assert problem.what == "names a file that cannot be read (No such file or directory)"


def test_a_secret_file_that_everybody_can_read_is_warned_of(loader: Loader, folder: Path) -> None:
    (folder / "secret").chmod(0o644)
    warning = loader.only_warning(MINIMAL)
    assert warning.key == "smartcar.home.client_secret"
    assert "everybody" in warning.what


def test_a_literal_secret_is_warned_of_and_not_shown(loader: Loader) -> None:
    warning = loader.only_warning(with_secret(f'"{SECRET}"'))
    assert warning.key == "smartcar.home.client_secret"
    assert "plain text" in warning.what
    assert SECRET not in str(warning)


@pytest.mark.parametrize(
    "secret",
    [
        "5",
        "true",
        '{ file = "\\u0000" }',
        '{ credential = "\\u0000" }',
        '{ file = "~nobody-at-all/x" }',
        "{}",
        '{ fil = "x" }',
        '{ file = "a", credential = "b" }',
        "{ file = 1 }",
        "[]",
        '""',
        '" "',
    ],
)
def test_what_is_no_secret(loader: Loader, secret: str) -> None:
    problems = [problem for problem in loader.problems(with_secret(secret)).values() if not problem.warning]
    assert [problem.key for problem in problems] == ["smartcar.home.client_secret"]


def test_credentials_in_the_url_are_moved_and_warned_of(loader: Loader) -> None:
    settings, (warning,) = loader.load(MINIMAL + '[mqtt]\nurl = "mqtts://us%20er:hush%40hush@broker:1"', {})
    mqtt = settings.mqtt
    assert mqtt is not None
    assert str(mqtt.url) == "mqtts://broker:1"
    assert mqtt.username == "us er"
    assert mqtt.password == Secret("hush@hush")
    assert warning.key == "mqtt.url"
    assert "hush" not in str(warning)


def test_keys_of_their_own_go_before_credentials_in_the_url(loader: Loader) -> None:
    text = MINIMAL + '[mqtt]\nurl = "mqtt://a:b-c-d@broker"\nusername = "e"\npassword = { file = "secret" }'
    mqtt = loader.load(text)[0].mqtt
    assert mqtt is not None
    assert (mqtt.username, mqtt.password) == ("e", Secret(SECRET))


def test_a_secret_is_never_shown() -> None:
    class Model(BaseModel):
        secret: Secret

    @dataclass
    class Holder:
        secret: Secret

    secret = Secret(SECRET)
    model = Model(secret=secret)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}{secret!s}{secret!r}{secret:>40}",
        "%s %r" % (secret, secret),  # noqa: UP031
        str(model.model_dump()),
        model.model_dump_json(),
        repr(model),
        repr(Holder(secret)),
        str(asdict(Holder(secret))),
        str(copy.deepcopy(Holder(secret))),
    ]
    assert SECRET not in "".join(shown)
    assert all("***" in text for text in shown)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(secret, protocol)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_a_secret_equals_its_like_alone() -> None:
    assert Secret("é") == Secret("é")
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert copy.deepcopy(Secret("a")).reveal() == "a"
    with pytest.raises(ValueError, match="not empty"):
        Secret("")


def test_describe_shows_everything_but_secrets(loader: Loader) -> None:
    described = describe(
        loader.settings(
            MINIMAL
            + 'management_token = { file = "secret" }\n'
            + '[mqtt]\npassword = { file = "secret" }\n'
            + '[polling]\nconsents_every = "1h30m"\n'
            + '[http]\nadmin_token = { file = "secret" }\ntrusted_proxies = "10.0.0.1"'
        )
    )
    text = json.dumps(described)
    assert SECRET not in text
    keys = set(dotted(json.loads(text)))
    assert {key.replace("NAME", "home") for key in known_keys()} <= keys
    assert text.count('"***"') == 4
    assert '"trusted_proxies": ["10.0.0.1/32"]' in text
    assert '"consents_every": "1h30m"' in text
    assert '"url": "mqtt://localhost:1883"' in text
    assert '"listen": "127.0.0.1:9782"' in text


# --- what is refused ----------------------------------------------------------------------------------


def test_all_mistakes_at_once(loader: Loader) -> None:
    problems = loader.problems(
        f"""
        fleet = 1
        [smartcar.a]
        client_id = 5
        client_secret = "{SECRET}"
        clientsecret = "x"
        mode = "dead"
        [smartcar.a.budget]
        bucket = 0
        refill_per_minute = 0
        calls_per_vehicle = 0
        anchor_day = 32
        period = "week"
        refil_per_minute = 2
        [smartcar.b]
        origins = {{ iam = "https://x/y", vehicle = "ftp://x", managment = "https://x" }}
        [mqtt]
        base_topic = "a/#"
        json_state = 1
        [store]
        history = 400
        [polling]
        max_in_flight = 1.5
        consents_every = "soon"
        longest_wait = 12
        [brands.renot]
        charging = "20m"
        """
    )
    expected = {
        "fleet": "Known here: brands",
        "smartcar.a.client_id": "must be text",
        "smartcar.a.client_secret": "plain text",
        "smartcar.a.clientsecret": "Did you mean 'client_secret'?",
        "smartcar.a.mode": "must be 'live' or 'simulated'",
        "smartcar.a.budget.bucket": "at least 1",
        "smartcar.a.budget.refill_per_minute": "above 0",
        "smartcar.a.budget.calls_per_vehicle": "at least 1",
        "smartcar.a.budget.anchor_day": "at most 31",
        "smartcar.a.budget.period": "must be 'day' or 'month'",
        "smartcar.a.budget.refil_per_minute": "Did you mean 'refill_per_minute'?",
        "smartcar.b.client_id": "is missing",
        "smartcar.b.client_secret": "is missing",
        "smartcar.b.origins.iam": "no path",
        "smartcar.b.origins.vehicle": "must begin with https://",
        "smartcar.b.origins.managment": "Did you mean 'management'?",
        "mqtt.base_topic": "must not contain + or #",
        "mqtt.json_state": "must be true or false",
        "store.history": "is not a duration",
        "polling.max_in_flight": "must be a whole number",
        "polling.consents_every": "is not a duration",
        "polling.longest_wait": "is not a duration",
        "brands.renot": "Did you mean 'renault'?",
    }
    assert set(problems) == set(expected)
    for key, says in expected.items():
        assert says in str(problems[key]), problems[key]
        assert problems[key].file == str(loader.folder / "evbatteryd.toml")
        assert problems[key].mend.endswith((".", "?"))
    assert [key for key, problem in problems.items() if problem.warning] == ["smartcar.a.client_secret"]
    assert SECRET not in "".join(map(str, problems.values()))


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("", "smartcar", "no application"),
        ("[smartcar]", "smartcar", "no application"),
        ("smartcar = 1", "smartcar", "is no table"),
        ('[smartcar]\nclient_id = "x"', "smartcar.client_id", "outside of an application"),
        (MINIMAL.replace(".home", '."a b"'), "smartcar.a b", "no name for an application"),
        (MINIMAL + 'name = "x"', "smartcar.home.name", "not a key"),
        (MINIMAL + 'budget = "x"', "smartcar.home.budget", "must be a table"),
        (MINIMAL + "webhook_id = ''", "smartcar.home.webhook_id", "is empty"),
        (MINIMAL + "webhook_id = 'x'", "smartcar.home.webhook_id", "needs management_token"),
        (MINIMAL + "permissions = 'read_battery'", "smartcar.home.permissions", "list of text"),
        (MINIMAL + "permissions = []", "smartcar.home.permissions", "list of permissions"),
        (MINIMAL + "permissions = ['battery']", "smartcar.home.permissions", "list of permissions"),
        (MINIMAL + "permissions = ['read_battery x']", "smartcar.home.permissions", "list of permissions"),
        (MINIMAL + "country = 'Germany'", "smartcar.home.country", "two letters"),
        (MINIMAL + "country = '\u017fs'", "smartcar.home.country", "two letters"),
        (MINIMAL + "country = 49", "smartcar.home.country", "must be text"),
        (MINIMAL + "webhook_id = ' x'", "smartcar.home.webhook_id", "begin or end with a blank"),
        (MINIMAL + "budget = { refill_per_minute = inf }", "smartcar.home.budget.refill_per_minute", "ends"),
        (MINIMAL + "budget = { bucket = true }", "smartcar.home.budget.bucket", "whole number"),
        (MINIMAL + 'origins = { iam = "https://u:p@x" }', "smartcar.home.origins.iam", "no user"),
        (MINIMAL + 'origins = { iam = "https://x?y" }', "smartcar.home.origins.iam", "query"),
        (MINIMAL + 'origins = { iam = "https://x:99999" }', "smartcar.home.origins.iam", "not a URL"),
        (MINIMAL + 'origins = { iam = "iam.smartcar.com" }', "smartcar.home.origins.iam", "not a URL"),
        (MINIMAL + "mqtt = 1", "smartcar.home.mqtt", "not a key"),
        ("mqtt = 1\n" + MINIMAL, "mqtt", "must be a table"),
        ("brands = 1\n" + MINIMAL, "brands", "is no table"),
        ("[brands]\nrenault = 1\n" + MINIMAL, "brands.renault", ""),
        (MINIMAL + '[mqtt]\nurl = "http://x"', "mqtt.url", "must begin with mqtt://"),
        (MINIMAL + '[mqtt]\nurl = "localhost"', "mqtt.url", "not a URL"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://x/topic"', "mqtt.url", "only ws:// and wss:// have a path"),
        (MINIMAL + '[mqtt]\nurl = "mqtt://[::1"', "mqtt.url", "not a URL"),
        (MINIMAL + '[mqtt]\nbase_topic = "/ev"', "mqtt.base_topic", "leading"),
        (MINIMAL + '[mqtt]\nbase_topic = "ev/"', "mqtt.base_topic", "trailing"),
        (MINIMAL + '[mqtt]\nbase_topic = "a//b"', "mqtt.base_topic", "doubled"),
        (MINIMAL + '[mqtt]\nbase_topic = ""', "mqtt.base_topic", "must be a topic"),
        (MINIMAL + '[mqtt]\nbase_topic = "$SYS"', "mqtt.base_topic", "$"),
        (MINIMAL + '[mqtt]\nbase_topic = "a\\u0000"', "mqtt.base_topic", "control"),
        (MINIMAL + '[mqtt]\ndiscovery_prefix = "+"', "mqtt.discovery_prefix", "+"),
        (MINIMAL + "[mqtt]\njson_state = false\nscalars = false", "mqtt", "publish nothing"),
        (MINIMAL + '[mqtt]\nurl = "mqtts://x"\nca_file = "nowhere"', "mqtt.ca_file", "cannot be read"),
        (MINIMAL + '[mqtt]\nurl = "mqtts://x"\nca_file = "\\u0000"', "mqtt.ca_file", "not the path"),
        (MINIMAL + '[mqtt]\nca_file = "secret"', "mqtt", "without TLS"),
        (MINIMAL + '[mqtt]\nurl = "mqtts://x"\nclient_key = "secret"', "mqtt", "alone"),
        (MINIMAL + '[mqtt]\ntls_server_name = "x"', "mqtt", "without TLS"),
        (MINIMAL + '[mqtt]\nkeepalive = "4s"', "mqtt.keepalive", "from 5s to 18h"),
        (MINIMAL + '[mqtt]\nkeepalive = "19h"', "mqtt.keepalive", "from 5s to 18h"),
        (MINIMAL + '[mqtt]\nsession_expiry = "2d"', "mqtt.session_expiry", "from 0s to 1d"),
        (MINIMAL + "[mqtt]\nsession_expiry = 60", "mqtt.session_expiry", "not a duration"),
        (MINIMAL + '[mqtt]\ndiscovery = "yes"', "mqtt.discovery", "true or false"),
        (MINIMAL + "[mqtt]\noutbox_readings = 999", "mqtt.outbox_readings", "at least 1000"),
        (MINIMAL + '[mqtt]\noutbox_age = "59m"', "mqtt.outbox_age", "from 1h to"),
        (
            MINIMAL + '[mqtt]\nprotocol = "3.1.1"\npassword = { file = "secret" }',
            "mqtt",
            "without a username",
        ),
        (MINIMAL + '[http]\nlisten = "localhost"', "http.listen", "address with a port"),
        (MINIMAL + '[http]\npublic_url = "ev.example.org"', "http.public_url", "not a URL"),
        (MINIMAL + '[http]\npublic_url = "https://x/ev"', "http.public_url", "must have no path"),
        (MINIMAL + '[http]\nadmin_token = { file = "short" }', "http.admin_token", "16 characters"),
        (MINIMAL + '[http]\ntrusted_proxies = ["proxy"]', "http.trusted_proxies", "addresses or networks"),
        (MINIMAL + '[http]\ntrusted_proxies = ["10.0.0.1/8"]', "http.trusted_proxies", "addresses or"),
        (MINIMAL + '[http]\ntrusted_proxies = ["0.0.0.0/0"]', "http.trusted_proxies", "trust everybody"),
        (MINIMAL + "[http]\ntrusted_proxies = [1]", "http.trusted_proxies", "list of text"),
        (PROXIED + 'admin_header = "Remote User"', "http.admin_header", "not the name of a header"),
        (PROXIED + 'admin_header = "x-forwarded-For"', "http.admin_header", "anybody's request"),
        (MINIMAL + '[http]\nadmin_header = "Remote-User"', "http.admin_header", "without trusted_proxies"),
        (PROXIED + 'admin_users = ["ada"]', "http.admin_users", "without admin_header"),
        (PROXIED + 'admin_header = "U"\nadmin_users = "ada"', "http.admin_users", "list of text"),
        (MINIMAL + '[http]\nenrolment = "closed"', "http.enrolment", "'open'"),
        (MINIMAL + '[store]\nurl = "postgresql://u:p@h/db"', "store.url", "not supported by this version"),
        (MINIMAL + '[store]\nurl = "sqlite:///ev.db"', "store.url", "absolute path"),
        (MINIMAL + '[store]\nurl = "sqlite://ev.db"', "store.url", "absolute path"),
        (MINIMAL + '[store]\nurl = "/var/lib/ev.db"', "store.url", "must begin with sqlite:///"),
        (MINIMAL + '[store]\nhistory = "0d"', "store.history", "above zero"),
        (MINIMAL + '[store]\nhistory = "40000d"', "store.history", "at most 100 years"),
        (MINIMAL + '[store]\nhistory = "99999999999999999d"', "store.history", "is not a duration"),
        (MINIMAL + '[log]\nlevel = "INFO"', "log.level", "'info'"),
        (MINIMAL + '[polling]\nconsents_every = "0s"', "polling.consents_every", "above zero"),
        (MINIMAL + '[polling]\nlongest_wait = "0h"', "polling.longest_wait", "above zero"),
        (MINIMAL + "[polling]\nmax_in_flight = 0", "polling.max_in_flight", "at least 1"),
    ],
)
def test_each_mistake_by_name(loader: Loader, folder: Path, text: str, key: str, says: str) -> None:
    (folder / "short").write_text("fifteen-letters")
    (folder / "short").chmod(0o600)
    problem = loader.only_problem(text)
    assert (problem.key, problem.warning) == (key, False)
    assert says in problem.what


def test_two_applications_are_not_the_same_one(loader: Loader) -> None:
    problem = loader.only_problem(MINIMAL + MINIMAL.replace("home", "cabin"))
    assert problem.key == "smartcar.cabin.client_id"
    assert "[smartcar.home]" in problem.what


def test_a_mistake_elsewhere_does_not_look_like_one_of_those_that_build_on_it(loader: Loader) -> None:
    problem = loader.only_problem(
        MINIMAL + '[http]\ntrusted_proxies = 5\nadmin_header = "Remote-User"\nadmin_users = ["ada"]'
    )
    assert problem.key == "http.trusted_proxies"
    problem = loader.only_problem(MINIMAL + "webhook_id = 'x'\nmanagement_token = {}")
    assert problem.key == "smartcar.home.management_token"


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        (
            MINIMAL + 'origins = { vehicle = "http://api.example.org" }',
            "smartcar.home.origins.vehicle",
            "unencrypted",
        ),
        (
            PROXIED + f'public_url = "http://ev.example.org"\n{ADMIN}',
            "http.public_url",
            "https://",
        ),
        (MINIMAL + 'application_id = "client_1"', "smartcar.home.application_id", "client_id"),
        (
            MINIMAL + 'permissions = ["read_battery", "read_vin", "read_location"]',
            "smartcar.home.permissions",
            "read_location and read_vin would tell",
        ),
        (
            MINIMAL + 'permissions = ["read_battery", "read_user_profile"]',
            "smartcar.home.permissions",
            "read_user_profile would tell",
        ),
        (MINIMAL + 'permissions = ["read_charge"]', "smartcar.home.permissions", "without read_battery"),
    ],
)
def test_what_is_worth_saying(loader: Loader, text: str, key: str, says: str) -> None:
    warning = loader.only_warning(text)
    assert warning.key == key
    assert says in warning.what


@pytest.mark.parametrize("listen", ["0.0.0.0:9782", "[::]:9782", "ev.example.org:9782"])
def test_who_gets_in_from_the_network_is_said(loader: Loader, listen: str) -> None:
    text = MINIMAL + f'[http]\nlisten = "{listen}"\n'
    nobody = loader.only_warning(text)
    assert nobody.key == "http.listen"
    assert "nobody but this machine" in nobody.what
    for more in ("", ADMIN):
        everybody = loader.only_warning(text + f"open_to_read = true\n{more}")
        assert everybody.key == "http.listen"
        assert "open to the network, without a password" in everybody.what
    loader.settings(text + ADMIN)
    loader.settings(text + 'trusted_proxies = ["10.0.0.1"]\nadmin_header = "Remote-User"')


@pytest.mark.parametrize("listen", ["127.0.0.1:9782", "0.0.0.0:9782", "unix:/run/ev.sock"])
def test_a_public_address_without_a_way_in_for_operators_is_said(loader: Loader, listen: str) -> None:
    text = PROXIED + f'listen = "{listen}"\npublic_url = "https://ev.example.org"\n'
    warning = loader.only_warning(text)
    assert warning.key == "http.public_url"
    assert "only `evbatteryd` commands at this machine" in warning.what
    loader.settings(text + ADMIN)
    loader.settings(text + 'admin_header = "Remote-User"')


@pytest.mark.parametrize(
    ("listen", "proxy"),
    [("127.0.0.1:9782", "127.0.0.1"), ("0.0.0.0:9782", "127.0.0.1"), ("unix:/run/ev.sock", "unix")],
)
def test_a_proxy_that_nobody_named_is_said(loader: Loader, listen: str, proxy: str) -> None:
    text = MINIMAL + f'[http]\nlisten = "{listen}"\npublic_url = "https://ev.example.org"\n{ADMIN}\n'
    warning = loader.only_warning(text)
    assert warning.key == "http.trusted_proxies"
    assert "rate limits count them together" in warning.what
    mend = f'trusted_proxies = ["{proxy}"]'
    assert mend in warning.mend
    loader.settings(text + mend)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "[::1]", "localhost", "api.localhost"])
def test_loopback_needs_no_warning(loader: Loader, host: str) -> None:
    loader.settings(
        MINIMAL + f'origins = {{ vehicle = "http://{host}:1" }}\n[http]\nlisten = "{host}:1"\n'
        f'public_url = "http://{host}:1"'
    )


def test_a_syntax_error_has_a_line_and_a_column(loader: Loader) -> None:
    problem = loader.only_problem('[mqtt]\nurl = "a"\nurl : "b"\n')
    assert re.match(r"line 3, column \d+ is not valid TOML: expected '='", problem.what), problem


def test_a_file_that_ends_too_early(loader: Loader) -> None:
    assert "is not valid TOML" in loader.only_problem('[mqtt]\nurl = "a').what


def test_a_file_that_is_not_utf8(folder: Path) -> None:
    path = folder / "evbatteryd.toml"
    path.write_bytes(b'[mqtt]\nurl = "m\xfc"\n')
    with pytest.raises(Misconfigured, match="line 2 is not UTF-8"):
        load_settings(path, {})


def test_a_byte_order_mark_does_no_harm(folder: Path) -> None:
    path = folder / "evbatteryd.toml"
    path.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert "home" in load_settings(path, {})[0].smartcar


def test_a_missing_file_says_how_to_begin(folder: Path) -> None:
    with pytest.raises(Misconfigured) as refused:
        load_settings(folder / "nowhere.toml", {})
    (problem,) = refused.value.problems
    assert problem.file == str(folder / "nowhere.toml")
    assert problem.what == "does not exist"
    assert "[smartcar.NAME]" in problem.mend
    assert "evbatteryd demo" in problem.mend


def test_a_folder_is_no_file(folder: Path) -> None:
    with pytest.raises(Misconfigured, match="Is a directory"):
        load_settings(folder, {})


def test_a_file_that_may_not_be_read(folder: Path) -> None:
    path = folder / "evbatteryd.toml"
    path.write_text(MINIMAL)
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # nobody: root may read everything
    try:
        with pytest.raises(Misconfigured, match="may not be read"):
            load_settings(path, {})
    finally:
        if root:
            os.seteuid(0)


SECRET_KEYS = {
    "http.admin_token",
    "mqtt.password",
    "smartcar.NAME.client_secret",
    "smartcar.NAME.management_token",
}
TOML_VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(-(2**63), 2**63 - 1),
        st.floats(),
        st.text(st.characters(codec="utf-8")),
        st.just(SECRET),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc-_ é", min_size=1), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(known_keys())), value=TOML_VALUES)
def test_whatever_a_key_holds_it_is_taken_or_refused_by_its_name(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text('[smartcar.NAME]\nclient_id = "client_1"\nclient_secret = "literal-secret"\n')
    environ = {"EVBATTERYD__" + key.replace(".", "__"): as_toml(value)}
    try:
        settings, warnings = load_settings(path, environ)
    except Misconfigured as refused:
        for problem in refused.problems:
            if problem.warning:
                continue
            assert problem.file == ENVIRONMENT or problem.key == "mqtt"
            assert SECRET not in str(problem)
    else:
        assert SECRET not in "".join(map(str, warnings))
        if value == SECRET and key in SECRET_KEYS:
            assert SECRET not in str(describe(settings))


def as_toml(value: object) -> str:
    match value:
        case dict():
            pairs = (f"{json.dumps(key)} = {as_toml(inner)}" for key, inner in value.items())
            return "{" + ", ".join(pairs) + "}"
        case list():
            return "[" + ", ".join(map(as_toml, value)) + "]"
        case bool() | str():
            return json.dumps(value).replace("\x7f", "\\u007f")
        case _:
            return repr(value)


# --- the example --------------------------------------------------------------------------------------


def dotted(table: Mapping[str, object], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in table.items():
        inner = isinstance(value, dict) and not {"credential", "file"} & value.keys()
        keys += dotted(value, f"{prefix}{key}.") if inner else [prefix + key]
    return keys


@pytest.fixture
def spelled_out() -> str:
    """The example with every key that is commented out taken in."""
    return re.sub(r"(?m)^#(?=\S)", "", EXAMPLE.read_text())


def test_the_example_is_a_starting_point(folder: Path) -> None:
    (folder / "smartcar-secret").write_text(SECRET)
    credentials = {"CREDENTIALS_DIRECTORY": str(folder)}
    with pytest.raises(Misconfigured) as told:
        load_settings(EXAMPLE, credentials)
    assert [(p.key, p.what) for p in told.value.problems] == [("smartcar.home.client_id", "is not filled in")]
    filled = folder / "filled.toml"
    filled.write_text(EXAMPLE.read_text().replace('"client_..."', '"client_1"'))
    settings, warnings = load_settings(filled, credentials)
    assert warnings == ()
    assert settings.smartcar["home"].client_secret.reveal() == SECRET


def test_by_hand_a_credential_is_taken_on_trust(folder: Path) -> None:
    filled = folder / "filled.toml"
    filled.write_text(EXAMPLE.read_text().replace('"client_..."', '"client_1"'))
    with pytest.raises(Misconfigured, match="CREDENTIALS_DIRECTORY is not set"):
        load_settings(filled, {})
    _, (warning,) = load_settings(filled, {}, without_credentials=True)
    assert warning.key == "smartcar.home.client_secret"
    assert "LoadCredential=smartcar-secret" in warning.mend


def test_an_id_that_is_none_of_api_credentials_is_warned_of(loader: Loader, folder: Path) -> None:
    (folder / "s").touch(mode=0o600)
    (folder / "s").write_text(SECRET)
    text = '[smartcar.home]\nclient_id = "878ee5e5-07d3-4075"\nclient_secret = { file = "s" }'
    assert loader.only_warning(text).key == "smartcar.home.client_id"


def test_the_example_has_every_key_and_no_other(spelled_out: str) -> None:
    table = tomllib.loads(spelled_out)
    assert set(table.pop("brands")) == {"renault"}
    assert {key.replace("smartcar.home", "smartcar.NAME") for key in dotted(table)} == known_keys()


def test_the_example_tells_the_defaults(loader: Loader, spelled_out: str) -> None:
    """A value that is commented out is the default, unless the default is that there is none."""
    described = describe(loader.settings())

    def compare(said: Mapping[str, object], default: Mapping[str, object], path: str) -> None:
        for key, value in said.items():
            if isinstance(value, dict) and isinstance(default[key], dict):
                compare(value, default[key], f"{path}.{key}")
            elif default[key] not in (None, []) and f"{path}.{key}" not in required:
                assert value == default[key], f"{path}.{key}"

    required = {".smartcar.home.client_id", ".smartcar.home.client_secret"}
    table = tomllib.loads(spelled_out)
    del table["brands"]
    compare(table, described, "")


def test_the_spelled_out_example_can_be_read_too(loader: Loader, folder: Path, spelled_out: str) -> None:
    for name in (
        "smartcar-secret",
        "smartcar-management-token",
        "mqtt-password",
        "admin-token",
        "pem",
    ):
        (folder / name).write_text(SECRET)
    text = re.sub(r'"/etc/evbatteryd/[\w.-]+"', '"pem"', spelled_out).replace("mqtt://", "mqtts://")
    text = text.replace('"client_..."', '"client_1"')
    settings = loader.settings(text, CREDENTIALS_DIRECTORY=str(folder))
    assert settings.profiles["renault"].charging == timedelta(minutes=20)


def test_every_document_calls_the_admin_tokens_credential_the_same() -> None:
    root = EXAMPLE.parent.parent
    named = {
        name
        for document in ("config/evbatteryd.toml", "docs/enrolment.md")
        for name in re.findall(r'admin_token = \{ credential = "([\w-]+)" \}', (root / document).read_text())
    }
    unit = (root / "systemd/evbatteryd.service").read_text()
    assert [name for name in named if f"LoadCredential={name}:" in unit] == ["admin-token"]
    assert len(named) == 1

"""One TOML file and the environment become frozen :class:`Settings`: taken whole, or refused by name."""

from __future__ import annotations

import ipaddress
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar, cast
from urllib.parse import SplitResult, unquote, urlsplit
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainValidator,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema

from evbatteryd.brands import load_profiles
from evbatteryd.domain.enrolment import PERMISSIONS
from evbatteryd.domain.ledger import Budget, Period
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.durations import parse_duration
from evbatteryd.problems import Misconfigured, Problem, did_you_mean
from evbatteryd.secret import MASK, Secret

DEFAULT_PATH: Final = Path("/etc/evbatteryd/evbatteryd.toml")
ENVIRONMENT_PREFIX: Final = "EVBATTERYD__"
ENVIRONMENT: Final = "environment"
"""``Problem.file`` of a mistake in a variable rather than in the file."""

_LONGEST: Final = timedelta(days=36500)
_LARGEST_SECRET_BYTES: Final = 65536
_SHORTEST_TOKEN: Final = 16
"""Characters of an admin token: 16 of base64 are 96 bits."""
_APPLICATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_NAME: Final = "[name]"
"""What the name of an application is called while it is validated: nothing that a file could say."""

KeyPath = tuple[str, ...]
"""Where a key stands: ``("smartcar", "home", "client_id")``."""


# --- what validators share ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """What validators of one table know of where it stands, and what they think worth saying."""

    folder: Path
    environ: Mapping[str, str]
    warnings: list[tuple[KeyPath, str, str]]
    without_credentials: bool = False
    """Looked at by hand: what systemd would hand over is not there to be read."""

    def warn(self, key: KeyPath, what: str, mend: str) -> None:
        self.warnings.append((key, what, mend))


def _place(info: ValidationInfo) -> _Place:
    return cast(_Place, info.context)


def _wrong(what: str, mend: str) -> PydanticCustomError:
    return PydanticCustomError("wrong", "{what}", {"what": what, "mend": mend})


def _unreadable(error: OSError) -> PydanticCustomError:
    """Does not repeat the path: what stands there may be the secret itself, by mistake."""
    return _wrong(
        f"names a file that cannot be read ({error.strerror})",
        "Name one that exists and that the user evbatteryd runs as may read; "
        "a relative path counts from the folder of the configuration",
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticCustomError("string_type", "not text")
    return value


def _loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_DURATION_MEND: Final = 'Write a number with its unit, in quotes: "30s", "15m", "1h30m", "400d"'


def _any_duration(value: object) -> timedelta:
    if not isinstance(value, str):
        raise _wrong("is not a duration", _DURATION_MEND)
    text = value
    try:
        return parse_duration(text)
    except ValueError:
        raise _wrong("is not a duration", _DURATION_MEND) from None


def _duration(value: object) -> timedelta:
    span = _any_duration(value)
    if not timedelta() < span <= _LONGEST:
        raise _wrong("must be above zero and at most 100 years", _DURATION_MEND)
    return span


def _duration_within(least: timedelta, most: timedelta) -> PlainValidator:
    def check(value: object) -> timedelta:
        span = _any_duration(value)
        if not least <= span <= most:
            raise _wrong(f"must be from {_written(least)} to {_written(most)}", _DURATION_MEND)
        return span

    return PlainValidator(check)


def _path(text: str, place: _Place) -> Path:
    if not text.isprintable():
        raise _wrong("is not the path of a file", "Remove control characters")
    return place.folder / text


def _existing_file(value: object, info: ValidationInfo) -> Path:
    path = _path(_text(value), _place(info))
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise _unreadable(error) from None


def _topic(value: object) -> str:
    topic = _text(value)
    if not topic or topic != topic.strip("/") or "//" in topic:
        raise _wrong(
            "must be a topic without a leading, trailing or doubled slash", 'Write it like "home/ev"'
        )
    if not topic.isprintable() or any(sign in topic for sign in "+#"):
        raise _wrong("must not contain + or # or control characters", 'Write it like "home/ev"')
    if topic.startswith("$"):
        raise _wrong("must not begin with $, which brokers keep for themselves", 'Write it like "home/ev"')
    return topic


def _zone(name: object) -> ZoneInfo:
    mend = 'write a name such as "Europe/Berlin"'
    try:
        return ZoneInfo(str(name))
    except (KeyError, ValueError, OSError) as error:  # no such zone, or no name that a file could have
        raise _wrong("is not a time zone that this machine knows", mend) from error


Duration = Annotated[timedelta, PlainValidator(_duration)]


def _texts(value: object, mend: str) -> tuple[str, ...]:
    """A list of text as a tuple, each once, in the order of the file."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise _wrong("must be a list of text", mend)
    return tuple(dict.fromkeys(value))


ExistingFile = Annotated[Path, PlainValidator(_existing_file)]
Topic = Annotated[str, PlainValidator(_topic)]
Words = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S(.*\S)?$")]


# --- secrets ------------------------------------------------------------------------------------------


def _secret(value: object, info: ValidationInfo) -> Secret:
    place, field = _place(info), str(info.field_name)
    match value:
        case Secret():
            return value
        case str():
            secret = _checked_secret(value, "the text")
            place.warn(
                (field,),
                "the secret stands there in plain text",
                'Move it out: { credential = "name" } (systemd) or { file = "path" }',
            )
            return secret
        case {"credential": str(name), **rest} if not rest:
            return _credential(name, field, place)
        case {"file": str(name), **rest} if not rest:
            return _secret_file(_path(name, place), field, place)
        case dict():
            raise _wrong(
                "must have one of the keys credential and file, and nothing else",
                'Write { credential = "name" } or { file = "path" }',
            )
        case _:
            raise PydanticCustomError("string_type", "not text")


_NOT_LOOKED_AT: Final = ", not looked at"


def is_placeholder(secret: Secret) -> bool:
    """Whether it stands for a credential that only systemd hands over, whose name it begins with."""
    return secret.reveal().endswith(_NOT_LOOKED_AT)


def _credential(name: str, field: str, place: _Place) -> Secret:
    if not name or "/" in name or name.startswith(".") or not name.isprintable():
        raise _wrong(
            "a credential's name must be a plain file name",
            f"LoadCredential={name or 'name'}:... in the unit gives it",
        )
    folder = place.environ.get("CREDENTIALS_DIRECTORY")
    if not folder and place.without_credentials:
        place.warn(
            (field,),
            f"the credential {name!r} was not looked at: only systemd hands it over",
            f"The unit needs LoadCredential={name}:/path/to/secret",
        )
        return Secret(f"{name}{_NOT_LOOKED_AT}")
    if not folder:
        raise _wrong(
            f"the credential {name!r} cannot be read: $CREDENTIALS_DIRECTORY is not set",
            f"systemd sets it for a unit with LoadCredential={name}:/path/to/secret; "
            'outside systemd use { file = "path" }',
        )
    try:
        return _read_secret(Path(folder) / name, f"the credential {name!r}")
    except OSError as error:
        raise _wrong(
            f"the credential {name!r} cannot be read ({error.strerror})",
            f"Add LoadCredential={name}:/path/to/secret to the unit",
        ) from None


def _secret_file(path: Path, field: str, place: _Place) -> Secret:
    try:
        secret = _read_secret(path, "the file it names")
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(error) from None
    if mode & stat.S_IROTH:
        place.warn((field,), f"everybody on this machine can read {path}", f"Run: chmod o= {path}")
    return secret


def _read_secret(path: Path, called: str) -> Secret:
    with path.open("rb") as opened:
        raw = opened.read(_LARGEST_SECRET_BYTES)
    try:
        return _checked_secret(raw.decode().rstrip("\r\n"), called)
    except UnicodeDecodeError:
        raise _wrong(f"{called} is not UTF-8 text", "Write the secret alone into it, on one line") from None


def _checked_secret(value: str, called: str) -> Secret:
    if not value.strip():
        raise _wrong(f"{called} is empty", "Write the secret into it")
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in value):
        raise _wrong(
            f"{called} holds more than one line or control characters",
            "Write the secret alone into it, on one line",
        )
    return Secret(value)


SecretField = Annotated[Secret, PlainValidator(_secret)]


def _admin_token(value: object, info: ValidationInfo) -> Secret:
    secret = _secret(value, info)
    if len(secret.reveal()) < _SHORTEST_TOKEN:
        raise _wrong(
            f"is shorter than {_SHORTEST_TOKEN} characters: it could be guessed",
            "Make one: openssl rand -base64 24",
        )
    return secret


# --- addresses ----------------------------------------------------------------------------------------


def _split_url(value: object, example: str) -> tuple[SplitResult, str, int | None]:
    """The parts of a URL, its host and its port. Messages never repeat it: it may hold a password."""
    text = _text(value)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise _wrong("is not a URL", f"Write it like {example!r}") from None
    if not parts.scheme or not host or not text.isprintable() or " " in text:
        raise _wrong("is not a URL", f"Write it like {example!r}")
    return parts, host, port


def _web_url(value: object, example: str) -> tuple[SplitResult, str, int | None]:
    parts, host, port = _split_url(value, example)
    if parts.scheme not in {"http", "https"}:
        raise _wrong("must begin with https:// or http://", f"Write it like {example!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise _wrong("must have no user, password, query or fragment", f"Write it like {example!r}")
    return parts, host, port


def _origin(value: object, info: ValidationInfo) -> str:
    example = "https://iam.smartcar.com"
    parts, host, port = _web_url(value, example)
    if parts.path not in {"", "/"}:
        raise _wrong("must have no path", f"Write it like {example!r}")
    if parts.scheme == "http" and not _loopback(host):
        _place(info).warn(
            ("origins", str(info.field_name)),
            f"secrets and tokens go to {host} unencrypted",
            "Use https://",
        )
    return f"{parts.scheme}://{_bracketed(host)}" + (f":{port}" if port is not None else "")


def _public_url(value: object, info: ValidationInfo) -> str:
    example = "https://ev.example.org"
    parts, host, port = _web_url(value, example)
    if parts.path not in {"", "/"}:
        raise _wrong(
            "must have no path: the pages live at the root of their host",
            f"Give evbatteryd a host name of its own and write it like {example!r}",
        )
    if parts.scheme == "http" and not _loopback(host):
        _place(info).warn(
            ("public_url",),
            "Smartcar sends webhooks and owners to https:// addresses alone",
            "Put a reverse proxy with a certificate in front and write https://",
        )
    return f"{parts.scheme}://{_bracketed(host)}" + (f":{port}" if port is not None else "")


@dataclass(frozen=True, slots=True)
class MqttUrl:
    """Where the broker is: ``mqtt``, ``mqtts``, ``ws`` or ``wss``, without user and password."""

    scheme: str
    host: str
    port: int
    websocket_path: str | None = None
    """Path of the WebSocket; None for plain MQTT."""

    @property
    def tls(self) -> bool:
        return self.scheme in {"mqtts", "wss"}

    def __str__(self) -> str:
        return f"{self.scheme}://{_bracketed(self.host)}:{self.port}{self.websocket_path or ''}"


_MQTT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883, "ws": 80, "wss": 443}
_MQTT_EXAMPLE: Final = "mqtt://localhost:1883"


def _mqtt_url(value: object) -> MqttUrl:
    if isinstance(value, MqttUrl):
        return value
    parts, host, port = _split_url(value, _MQTT_EXAMPLE)
    if parts.scheme not in _MQTT_PORTS:
        raise _wrong("must begin with mqtt://, mqtts://, ws:// or wss://", f"Write it like {_MQTT_EXAMPLE!r}")
    websocket = parts.scheme in {"ws", "wss"}
    if parts.fragment or (not websocket and (parts.query or parts.path not in {"", "/"})):
        raise _wrong(
            "must end after the port: only ws:// and wss:// have a path",
            "The topic is set by base_topic",
        )
    path = (parts.path or "/mqtt") + (f"?{parts.query}" if parts.query else "")
    return MqttUrl(parts.scheme, host, port or _MQTT_PORTS[parts.scheme], path if websocket else None)


@dataclass(frozen=True, slots=True)
class Listen:
    """Where the HTTP server listens: ``host`` and ``port``, or ``unix_path``."""

    host: str | None = None
    port: int | None = None
    unix_path: Path | None = None

    def __str__(self) -> str:
        if self.unix_path is not None:
            return f"unix:{self.unix_path}"
        return f"{_bracketed(self.host or '')}:{self.port}"


_LISTEN: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+)):(\d{1,5})")
_LISTEN_MEND: Final = 'Write "127.0.0.1:9782", "[::1]:9782" or "unix:/run/evbatteryd/http.sock"'


def parse_listen(value: object) -> Listen:
    """``"127.0.0.1:9782"``, ``"[::1]:9782"``, ``"unix:/path"``. Raises ValueError that says what is wrong."""
    text = _text(value)
    if text.startswith("unix:"):
        path = Path(text.removeprefix("unix:"))
        if not path.is_absolute():
            raise _wrong("the path of the socket must be absolute", _LISTEN_MEND)
        return Listen(unix_path=path)
    parts = _LISTEN.fullmatch(text)
    if parts is None or int(parts[3]) > 65535:
        raise _wrong("must be an address with a port, or the path of a socket", _LISTEN_MEND)
    return Listen(host=parts[1] or parts[2], port=int(parts[3]))


@dataclass(frozen=True, slots=True)
class Proxies:
    """Whose word about a request counts: who sends it, over what, and which user is signed in."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    unix: bool = False
    """Whoever comes over the Unix socket."""

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    def written(self) -> list[str]:
        """As the file spells them."""
        return ["unix"] * self.unix + [str(network) for network in self.networks]


_PROXIES_MEND: Final = 'Write addresses and networks, ["127.0.0.1", "10.0.0.0/8"], or ["unix"] for the socket'


def _proxies(value: object) -> Proxies:
    if isinstance(value, Proxies):
        return value
    written = _texts([value] if isinstance(value, str) else value, _PROXIES_MEND)
    try:
        networks = tuple(ipaddress.ip_network(text) for text in written if text != "unix")
    except ValueError:
        raise _wrong("must be addresses or networks", _PROXIES_MEND) from None
    if any(network.prefixlen == 0 for network in networks):
        raise _wrong("would trust everybody", "Name the proxy's own address")
    return Proxies(networks, "unix" in written)


_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""RFC 9110, 5.6.2."""
_IN_EVERY_REQUEST: Final = frozenset(
    {
        "accept",
        "authorization",
        "connection",
        "cookie",
        "forwarded",
        "host",
        "origin",
        "referer",
        "user-agent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "x-real-ip",
    }
)
"""Headers that say nothing about who is signed in, in lower case."""


def _admin_header(value: object, info: ValidationInfo) -> str:
    text, mend = _text(value), 'Name the header in which the proxy passes the user on, "Remote-User"'
    if not _HEADER.fullmatch(text):
        raise _wrong("is not the name of a header", mend)
    if text.lower() in _IN_EVERY_REQUEST:
        raise _wrong("is a header that anybody's request may have", mend)
    if info.data.get("trusted_proxies") == Proxies():
        raise _wrong(
            "is believed of nobody without trusted_proxies",
            "Name in trusted_proxies the addresses that the reverse proxy comes from",
        )
    return text


def _admin_users(value: object, info: ValidationInfo) -> tuple[str, ...]:
    users = _texts(value, 'Write it like ["ada", "grace"]')
    if users and "admin_header" in info.data and info.data["admin_header"] is None:
        raise _wrong(
            "counts for nothing without admin_header",
            "Name in admin_header the header in which the reverse proxy passes the user on",
        )
    return users


# --- the tables of the file ---------------------------------------------------------------------------


class _Table(BaseModel):
    """A table of the file: frozen once read, no key unknown, no value of another type."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Origins(_Table):
    """Smartcar's hosts, ``scheme://host[:port]`` without a trailing slash."""

    connect: Annotated[str, PlainValidator(_origin)] = "https://connect.smartcar.com"
    iam: Annotated[str, PlainValidator(_origin)] = "https://iam.smartcar.com"
    vehicle: Annotated[str, PlainValidator(_origin)] = "https://vehicle.api.smartcar.com"
    management: Annotated[str, PlainValidator(_origin)] = "https://management.api.smartcar.com"


_BUDGET: Final = Budget()


class _BudgetTable(_Table):
    bucket: Annotated[int, Field(ge=1)] = _BUDGET.bucket
    refill_per_minute: Annotated[float, Field(gt=0, allow_inf_nan=False)] = _BUDGET.refill_per_minute
    calls_per_vehicle: Annotated[int, Field(ge=1)] = _BUDGET.calls_per_vehicle
    period: Literal["day", "month"] = _BUDGET.period.value
    anchor_day: Annotated[int, Field(ge=1, le=31)] = _BUDGET.anchor_day
    pooled: bool = _BUDGET.pooled


def _budget(value: Any) -> Budget:
    return Budget(**{**dict(value), "period": Period(value.period)})


BudgetField = Annotated[
    Budget,
    GetPydanticSchema(
        lambda _, handler: core_schema.no_info_after_validator_function(_budget, handler(_BudgetTable))
    ),
]


def _client_id(value: object, info: ValidationInfo) -> str:
    text = _text(value).strip()
    mend = 'Copy it from the API credentials at https://dashboard.smartcar.com: "client_" and more'
    if not text or text.strip("._") in {"client", ""}:
        raise _wrong("is not filled in", mend)
    if not text.startswith("client_"):
        _place(info).warn(("client_id",), 'does not begin with "client_", as API credentials do', mend)
    return text


def _application_id(value: str, info: ValidationInfo) -> str:
    if value.startswith("client_"):
        _place(info).warn(
            ("application_id",),
            'begins with "client_": that is the client_id, and Connect does not know it',
            "Copy the application's own id (a UUID) from https://dashboard.smartcar.com",
        )
    return value


_PERMISSION: Final = re.compile(r"(?:read|control)_[a-z_]*[a-z]")
_PERSONAL: Final = frozenset({"read_charge_locations", "read_location", "read_user_profile", "read_vin"})


def _permissions(value: object, info: ValidationInfo) -> tuple[str, ...]:
    mend = 'Write Smartcar\'s names, ["read_battery", "read_charge"]: https://smartcar.com/docs/api-reference/permissions'
    names = _texts(value, mend)
    if not names or not all(map(_PERMISSION.fullmatch, names)):
        raise _wrong("must be a list of permissions: read_... and control_...", mend)
    if personal := sorted(_PERSONAL.intersection(names)):
        _place(info).warn(
            ("permissions",),
            f"{_and(personal)} would tell where somebody is or who they are: personal, and "
            "evbatteryd has no use for it",
            "Remove it, unless other programs of yours need it",
        )
    if "read_battery" not in names:
        _place(info).warn(
            ("permissions",), "without read_battery there is no state of charge", "Add read_battery"
        )
    return names


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _country(value: object) -> str:
    text = _text(value)
    if not re.fullmatch("[A-Za-z]{2}", text):
        raise _wrong("must be a country's code of two letters", 'Write it like "DE" (ISO 3166-1)')
    return text.upper()


def _webhook_id(value: str, info: ValidationInfo) -> str:
    if "management_token" in info.data and info.data["management_token"] is None:
        raise _wrong(
            "needs management_token: without it nobody can tell whether a delivery is Smartcar's",
            "Add management_token, from the application at https://dashboard.smartcar.com",
        )
    return value


class SmartcarSettings(_Table):
    """One application at Smartcar."""

    name: str = Field(alias=_NAME)
    """From the table's own name: ``[smartcar.NAME]``."""
    application_id: Annotated[Words, AfterValidator(_application_id)] | None = None
    """A UUID, for the link to Connect."""
    client_id: Annotated[str, PlainValidator(_client_id)] = Field(
        description='Copy it from the credentials at https://dashboard.smartcar.com, "client_..."'
    )
    client_secret: SecretField = Field(
        description='Name where the secret is kept: { credential = "smartcar-secret" } or { file = "path" }'
    )
    management_token: SecretField | None = None
    """Signs webhooks, and asks for subscriptions to them."""
    webhook_id: Annotated[Words, AfterValidator(_webhook_id)] | None = None
    """New cars are subscribed to it."""
    permissions: Annotated[tuple[str, ...], PlainValidator(_permissions)] = PERMISSIONS
    """What owners are asked for."""
    country: Annotated[str, PlainValidator(_country)] | None = None
    """Which brands Connect offers, unless the owner's link says otherwise. ISO 3166-1, two letters."""
    mode: Literal["live", "simulated"] = "live"
    origins: Origins = Field(default_factory=Origins)
    budget: BudgetField = _BUDGET


class MqttSettings(_Table):
    """The broker that readings are published to."""

    enabled: bool = True
    url: Annotated[MqttUrl, PlainValidator(_mqtt_url)] = MqttUrl("mqtt", "localhost", 1883)
    username: Words | None = None
    password: SecretField | None = None
    ca_file: ExistingFile | None = None
    client_certificate: ExistingFile | None = None
    client_key: ExistingFile | None = None
    client_id: Words = "evbatteryd"
    base_topic: Topic = "evbatteryd"
    protocol: Literal["5", "3.1.1"] = "5"
    tls_server_name: Words | None = None
    """Whose certificate is expected; None: that of the host in ``url``."""
    keepalive: Annotated[timedelta, _duration_within(timedelta(seconds=5), timedelta(hours=18))] = timedelta(
        seconds=30
    )
    """The broker and we hear of each other at least so often. 16 bits of seconds on the wire."""
    session_expiry: Annotated[timedelta, _duration_within(timedelta(), timedelta(days=1))] = timedelta(
        minutes=1
    )
    """How long the broker keeps commands and events for us while we are away. MQTT 5 alone."""
    discovery: bool = True
    """Home Assistant is told of every car."""
    discovery_prefix: Topic = "homeassistant"
    json_state: bool = True
    scalars: bool = True
    outbox_readings: Annotated[int, Field(ge=1000)] = 1_000_000
    """Readings that may wait for the broker; of more, the oldest are given up."""
    outbox_age: Annotated[timedelta, _duration_within(timedelta(hours=1), _LONGEST)] = timedelta(days=30)
    """How long they may."""

    @model_validator(mode="before")
    @classmethod
    def _credentials_out_of_the_url(cls, table: Any, info: ValidationInfo) -> Any:
        """Move user and password of the URL to the keys that are theirs; those keys win."""
        if not isinstance(table, dict) or not isinstance(table.get("url"), str):
            return table
        try:
            parts = urlsplit(table["url"])
        except ValueError:
            return table
        if parts.username is None:
            return table
        _place(info).warn(
            ("url",),
            "user and password stand in the URL",
            'Write username = "..." and password = { credential = "name" } instead',
        )
        moved: dict[str, object] = {"username": unquote(parts.username)} if parts.username else {}
        if parts.password:
            moved["password"] = Secret(unquote(parts.password))
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        return {**moved, **table, "url": bare}

    @model_validator(mode="after")
    def _goes_together(self) -> MqttSettings:
        if (self.client_certificate is None) != (self.client_key is None):
            raise _wrong("has one of client_certificate and client_key alone", "Give both or neither")
        if not self.url.tls and (self.ca_file or self.client_certificate):
            raise _wrong(
                "has a certificate for a connection without TLS",
                "Use mqtts:// or wss://, or remove the certificates",
            )
        if not self.url.tls and self.tls_server_name is not None:
            raise _wrong(
                "has tls_server_name for a connection without TLS",
                "Use mqtts:// or wss://, or remove tls_server_name",
            )
        if self.password is not None and self.username is None and self.protocol == "3.1.1":
            raise _wrong("has a password without a username, which MQTT 3.1.1 forbids", "Add username")
        if not (self.json_state or self.scalars):
            raise _wrong("would publish nothing: json_state and scalars are both false", "Set one to true")
        return self


class HttpSettings(_Table):
    """The one listener: page, metrics, health, enrolment, webhooks; and who may do what there."""

    listen: Annotated[Listen, PlainValidator(parse_listen)] = Listen("127.0.0.1", 9782)
    public_url: Annotated[str, PlainValidator(_public_url)] | None = None
    """``scheme://host[:port]``: how the world reaches it."""
    admin_token: Annotated[Secret, PlainValidator(_admin_token)] | None = None
    trusted_proxies: Annotated[Proxies, PlainValidator(_proxies)] = Proxies()
    admin_header: Annotated[str, PlainValidator(_admin_header)] | None = None
    """In which a trusted proxy names the user it has signed in."""
    admin_users: Annotated[tuple[str, ...], PlainValidator(_admin_users)] = ()
    """Whom it may name; empty: anybody."""
    open_to_read: bool = False
    """Everybody may see the cars and the metrics."""
    enrolment: Literal["invitation", "open"] = "invitation"
    """``open``: anybody may enrol a car, without an invitation."""

    @model_validator(mode="after")
    def _who_gets_in(self, info: ValidationInfo) -> HttpSettings:
        """Warn of doors that are open to more people, or to fewer, than somebody may expect."""
        warn = _place(info).warn
        beyond = self.listen.host is not None and not _loopback(self.listen.host)
        proxied = self.public_url is not None and not _loopback(urlsplit(self.public_url).hostname or "")
        operable = self.admin_token is not None or self.admin_header is not None
        if beyond and self.open_to_read:
            warn(
                ("listen",),
                "the page and the metrics are open to the network, without a password (open_to_read)",
                "Remove open_to_read and set admin_token, or make sure a firewall guards it",
            )
        if proxied and not self.trusted_proxies:
            proxy = "unix" if self.listen.unix_path is not None else "127.0.0.1"
            warn(
                ("trusted_proxies",),
                "all visitors look like the proxy: rate limits count them together",
                f'Name the proxy: trusted_proxies = ["{proxy}"], or the address that it comes from; '
                "it has to send X-Forwarded-For",
            )
        if proxied and not operable:
            warn(
                ("public_url",),
                "only `evbatteryd` commands at this machine can operate it: whoever comes through the public "
                "address is a stranger",
                "Set admin_token, or trusted_proxies and admin_header",
            )
        elif beyond and not operable and not self.open_to_read:
            warn(
                ("listen",),
                "nobody but this machine can see the page: the network gets in with admin_token or "
                "admin_header alone",
                'Set admin_token, or listen on "127.0.0.1:9782"',
            )
        return self


@dataclass(frozen=True, slots=True)
class SqliteUrl:
    """``sqlite:////absolute/path``."""

    path: Path

    def __str__(self) -> str:
        return f"sqlite:///{self.path}"


def _sqlite_url(value: object) -> SqliteUrl:
    text = _text(value)
    mend = 'Write an absolute path after three slashes: "sqlite:////var/lib/evbatteryd/evbatteryd.db"'
    if text.startswith(("postgres://", "postgresql://", "postgresql+")):
        raise _wrong("PostgreSQL is not supported by this version", mend)
    if not text.startswith("sqlite:"):
        raise _wrong("must begin with sqlite:///", mend)
    path = text.removeprefix("sqlite:///")
    if path == text or not path.startswith("/") or path.endswith("/") or not path.isprintable():
        raise _wrong("must name a file by its absolute path", mend)
    return SqliteUrl(Path(path))


class StoreSettings(_Table):
    """Where everything is kept that must survive."""

    url: Annotated[SqliteUrl, PlainValidator(_sqlite_url)] = SqliteUrl(
        Path("/var/lib/evbatteryd/evbatteryd.db")
    )
    history: Duration = timedelta(days=400)
    """How long readings are kept."""


class LogSettings(_Table):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console", "journal"] = "json"


class PollingSettings(_Table):
    max_in_flight: Annotated[int, Field(ge=1)] = 512
    """Polls that may wait for an answer at the same time."""
    consents_every: Duration = timedelta(minutes=15)
    """How often the list of consenting vehicles is read again."""
    longest_wait: Duration = timedelta(hours=12)
    """A car that was not asked for that long after it fell due goes before all that gain more."""
    time_zone: Annotated[ZoneInfo | None, PlainValidator(_zone)] = None
    """Where the cars' people live: their habits go by its hours. None: where the machine is."""


_TABLES: Final[Mapping[str, type[_Table]]] = {
    "mqtt": MqttSettings,
    "http": HttpSettings,
    "store": StoreSettings,
    "log": LogSettings,
    "polling": PollingSettings,
}
_SECTIONS: Final = ("smartcar", *_TABLES, "brands")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The effective configuration: the file, the environment over it, defaults beneath."""

    file: str
    smartcar: Mapping[str, SmartcarSettings]
    mqtt: MqttSettings | None
    """None: nothing is published to a broker."""
    http: HttpSettings
    store: StoreSettings
    log: LogSettings
    polling: PollingSettings
    profiles: Mapping[str, BrandProfile]

    def secrets(self) -> Iterator[Secret]:
        """Every secret of the configuration: what the log must never show."""
        for application in self.smartcar.values():
            yield application.client_secret
            if application.management_token is not None:
                yield application.management_token
        if self.mqtt is not None and self.mqtt.password is not None:
            yield self.mqtt.password
        if self.http.admin_token is not None:
            yield self.http.admin_token


def known_keys() -> frozenset[str]:
    """Every key a file may have, dotted, with ``NAME`` for an application's name; without ``brands``."""
    return frozenset(
        {
            *_dotted("smartcar.NAME", SmartcarSettings),
            *(key for section, table in _TABLES.items() for key in _dotted(section, table)),
        }
    )


def _dotted(prefix: str, table: type) -> Iterator[str]:
    for key, inner in _keys(table).items():
        if _keys(inner):
            yield from _dotted(f"{prefix}.{key}", inner)
        else:
            yield f"{prefix}.{key}"


def _keys(table: Any) -> dict[str, Any]:
    """The keys of a table and the types of their values; nothing for what is not a table."""
    if isinstance(table, type) and issubclass(table, BaseModel):
        return {key: field.annotation for key, field in table.model_fields.items() if field.alias is None}
    return {field.name: None for field in fields(table)} if table is Budget else {}


# --- reading ------------------------------------------------------------------------------------------


def load_settings(
    path: Path, environ: Mapping[str, str], *, without_credentials: bool = False
) -> tuple[Settings, tuple[Problem, ...]]:
    """Read ``path``, lay ``EVBATTERYD__SECTION__KEY`` of ``environ`` over it, and check everything.

    ``without_credentials``: for a look by hand, outside of systemd. A credential is then a warning, and its
    secret not the real one.

    Returns the settings and what is worth saying about them. Raises :class:`Misconfigured` with every
    mistake, and every warning, at once.
    """
    reader = _Reader(path, environ, without_credentials)
    reader.overlay()
    return reader.settings()


def _read(path: Path) -> dict[str, Any]:
    """The file's tables. Raises :class:`Misconfigured`."""

    def refuse(what: str, mend: str) -> Misconfigured:
        return Misconfigured([Problem(file=str(path), key="", what=what, mend=mend)])

    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise refuse(
            "does not exist",
            "Begin with the commented example, config/evbatteryd.toml: copy it there and fill in one "
            "[smartcar.NAME]. `evbatteryd demo` needs no file at all.",
        ) from None
    except PermissionError:
        raise refuse(
            "may not be read",
            f"Let the user evbatteryd runs as read it: chgrp evbatteryd {path}; chmod g+r {path}.",
        ) from None
    except OSError as error:
        raise refuse(f"cannot be read ({error.strerror})", "Name a file that can be read.") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise refuse(f"line {line} is not UTF-8 text", "Save the file as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise refuse(
            _syntax(str(error)), "Mend that place; https://toml.io shows how TOML is written."
        ) from None


def _syntax(message: str) -> str:
    """tomllib's words, the place first: ``line 3, column 5: expected '=' after a key``."""
    said, _, place = message.rpartition(" (at ")
    said, place = (said, place.rstrip(")")) if said else (message, "the file")
    return f"{place} is not valid TOML: {said[0].lower()}{said[1:]}"


@dataclass(frozen=True, slots=True)
class _Override:
    """One value of the environment."""

    variable: str
    raw: str
    leaf: bool
    """False: a table that this variable made on the way to its key."""


T = TypeVar("T", bound=_Table)


class _Reader:
    """One reading of a configuration: the tables, where each value came from, and what is wrong."""

    def __init__(self, path: Path, environ: Mapping[str, str], without_credentials: bool) -> None:
        self._without_credentials = without_credentials
        self._file = str(path)
        self._folder = path.absolute().parent
        self._environ = environ
        self._raw = _read(path)
        self._overrides: dict[KeyPath, _Override] = {}
        self._errors: list[Problem] = []
        self._warnings: list[Problem] = []

    # The environment.

    def overlay(self) -> None:
        """Put the environment's values into the tables, as if the file had said so."""
        for variable in sorted(self._environ):
            if variable.upper().startswith(ENVIRONMENT_PREFIX):
                self._override(variable, variable[len(ENVIRONMENT_PREFIX) :].split("__"))

    def _override(self, variable: str, parts: list[str]) -> None:
        raw, table = self._environ[variable], self._raw
        path: KeyPath = ()
        for part in parts[:-1]:
            key = _spelled_as_in(table, part)
            path = (*path, key)
            if key not in table:
                table[key] = {}
                self._overrides[path] = _Override(variable, raw, leaf=False)
            table = table[key]
            if not isinstance(table, dict):
                self._refuse_variable(variable, f"{_dot(path)} is no table", "Remove the variable.")
                return
        if len(parts) < 2 or not all(parts):
            self._refuse_variable(
                variable, "names no key", f"Write it like {ENVIRONMENT_PREFIX}MQTT__URL or remove it."
            )
            return
        key = _spelled_as_in(table, parts[-1])
        table[key] = _toml_value(raw)
        self._overrides[(*path, key)] = _Override(variable, raw, leaf=True)

    def _refuse_variable(self, variable: str, what: str, mend: str) -> None:
        self._errors.append(Problem(file=ENVIRONMENT, key=variable, what=what, mend=mend))

    # The tables.

    def settings(self) -> tuple[Settings, tuple[Problem, ...]]:
        for section in self._raw:
            if section not in _SECTIONS:
                self._error(
                    (section,), "is not a section that evbatteryd knows", did_you_mean(section, _SECTIONS)
                )
        applications = self._applications()
        mqtt = self._table(MqttSettings, ("mqtt",), self._raw.get("mqtt", {}))
        http = self._table(HttpSettings, ("http",), self._raw.get("http", {}))
        store = self._table(StoreSettings, ("store",), self._raw.get("store", {}))
        log = self._table(LogSettings, ("log",), self._raw.get("log", {}))
        polling = self._table(PollingSettings, ("polling",), self._raw.get("polling", {}))
        profiles = self._profiles()
        if self._errors or not (mqtt and http and store and log and polling):
            raise Misconfigured([*self._errors, *self._warnings])
        settings = Settings(
            file=self._file,
            smartcar=MappingProxyType(applications),
            mqtt=mqtt if mqtt.enabled else None,
            http=http,
            store=store,
            log=log,
            polling=polling,
            profiles=MappingProxyType(profiles),
        )
        return settings, tuple(self._warnings)

    def _applications(self) -> dict[str, SmartcarSettings]:
        tables = self._raw.get("smartcar", {})
        if not isinstance(tables, dict):
            self._error(
                ("smartcar",), "is no table", "Write [smartcar.home] and the application's keys below it."
            )
            return {}
        if not tables:
            self._error(
                ("smartcar",),
                "there is no application at Smartcar to ask",
                "Create one at https://dashboard.smartcar.com (free of charge) and write [smartcar.home] "
                "with its client_id and client_secret. `evbatteryd demo` needs none.",
            )
        applications: dict[str, SmartcarSettings] = {}
        for name, table in tables.items():
            path = ("smartcar", name)
            if not isinstance(table, dict):
                self._error(
                    path,
                    "stands outside of an application",
                    "Write [smartcar.home] above it: every application has a name.",
                )
            elif not _APPLICATION.fullmatch(name):
                self._error(path, "is no name for an application", "Use at most 63 letters, digits, - and _.")
            elif application := self._table(SmartcarSettings, path, {**table, _NAME: name}):
                applications[name] = application
        self._told_apart(applications)
        return applications

    def _told_apart(self, applications: Mapping[str, SmartcarSettings]) -> None:
        names: dict[str, str] = {}
        for name, application in applications.items():
            first = names.setdefault(application.client_id, name)
            if first != name:
                self._error(
                    ("smartcar", name, "client_id"),
                    f"is the client_id of [smartcar.{first}] too",
                    "Both would spend the same calls twice: remove one of the two tables.",
                )

    def _profiles(self) -> dict[str, BrandProfile]:
        overrides = self._raw.get("brands", {})
        if not isinstance(overrides, dict):
            self._error(("brands",), "is no table", "Write [brands.renault] and the keys to change below it.")
            return {}
        try:
            return load_profiles(overrides, file=self._file)
        except Misconfigured as error:
            for problem in error.problems:
                if problem.file == self._file:
                    self._error(tuple(problem.key.split(".")), problem.what, problem.mend)
                else:
                    self._errors.append(problem)
            return {}

    def _table(self, model: type[T], path: KeyPath, table: Any) -> T | None:
        """``table`` as ``model``; or None, and what is wrong with it is among the problems."""
        place = _Place(self._folder, self._environ, [], self._without_credentials)
        try:
            result = model.model_validate(table, context=place)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False)
            if self._taken_literally(details, path, table):
                return self._table(model, path, table)
            for detail in details:
                self._detail(model, path, detail)
            result = None
        for key, what, mend in place.warnings:
            self._warnings.append(self._problem((*path, *key), what, mend + ".", warning=True))
        return result

    def _taken_literally(self, details: list[ErrorDetails], path: KeyPath, table: dict[str, Any]) -> bool:
        """Put back what a variable said where text is wanted and TOML saw a number (``PASSWORD=1234``)."""
        changed = False
        for detail in details:
            loc = tuple(str(part) for part in detail["loc"])
            override = self._overrides.get((*path, *loc))
            if (
                override is None
                or not override.leaf
                or detail["type"] not in {"string_type", "literal_error"}
            ):
                continue
            inner = table
            for part in loc[:-1]:
                inner = inner[part]
            if inner[loc[-1]] != override.raw:
                inner[loc[-1]] = override.raw
                changed = True
        return changed

    # The problems.

    def _detail(self, model: type[_Table], path: KeyPath, detail: ErrorDetails) -> None:
        loc = tuple(str(part) for part in detail["loc"])
        self._error((*path, *loc), *_in_plain_words(model, loc, detail))

    def _error(self, path: KeyPath, what: str, mend: str) -> None:
        self._errors.append(self._problem(path, what, mend))

    def _problem(self, path: KeyPath, what: str, mend: str, *, warning: bool = False) -> Problem:
        """A problem at ``path``; where a variable put it there, it is the variable that is named."""
        for length in range(len(path), 0, -1):
            override = self._overrides.get(path[:length])
            if override is not None:
                said = what if override.leaf and length == len(path) else f"{_dot(path)} {what}"
                return Problem(file=ENVIRONMENT, key=override.variable, what=said, mend=mend, warning=warning)
        return Problem(file=self._file, key=_dot(path), what=what, mend=mend, warning=warning)


def _dot(path: KeyPath) -> str:
    return ".".join(path)


def _spelled_as_in(table: Mapping[str, object], part: str) -> str:
    """The key of ``table`` that ``part`` means, whatever its case."""
    return next((key for key in table if key.lower() == part.lower()), part.lower())


def _toml_value(text: str) -> object:
    """``text`` as a TOML value if it is one, else itself."""
    try:
        document = tomllib.loads(f"value = {text}")
    except ValueError:
        return text
    return document["value"] if len(document) == 1 else text


_KINDS: Final = {
    "string_type": ("must be text", "Write it in quotes."),
    "int_type": ("must be a whole number", "Write digits without quotes."),
    "int_from_float": ("must be a whole number", "Write digits without quotes."),
    "float_type": ("must be a number", "Write digits without quotes."),
    "finite_number": ("must be a number that ends", "Write digits without quotes."),
    "bool_type": ("must be true or false", "Write true or false without quotes."),
    "string_too_short": ("is empty", "Fill it in, or remove the line."),
    "string_pattern_mismatch": ("must not begin or end with a blank", "Remove the blanks."),
    "model_type": ("must be a table", "Write the keys in [brackets] below, or in { braces }."),
}
_BOUNDS: Final = {"greater_than": "above", "greater_than_equal": "at least", "less_than_equal": "at most"}


def _in_plain_words(model: type[_Table], loc: KeyPath, detail: ErrorDetails) -> tuple[str, str]:
    """What is wrong and how to mend it, from one of pydantic's errors. Never the value."""
    kind, context = detail["type"], detail.get("ctx", {})
    match kind:
        case "wrong":
            return context["what"], f"{context['mend']}."
        case "missing":
            return "is missing", f"{model.model_fields[loc[-1]].description}."
        case "extra_forbidden":
            return "is not a key that evbatteryd knows", did_you_mean(loc[-1], _keys_at(model, loc[:-1]))
        case "literal_error":
            return f"must be {context['expected']}", "Choose one of them, in quotes."
        case _ if kind in _BOUNDS:
            bound = next(context[name] for name in ("gt", "ge", "le") if name in context)
            return f"must be {_BOUNDS[kind]} {bound}", "Correct the number, or remove the line."
        case _:
            return _KINDS.get(kind, ("is not valid", "Correct it, or remove the line."))


def _keys_at(model: type[_Table], loc: KeyPath) -> Iterator[str]:
    table: Any = model
    for part in loc:
        table = _keys(table)[part]
    return iter(_keys(table))


# --- showing ------------------------------------------------------------------------------------------


def describe(settings: Settings) -> dict[str, object]:
    """The effective configuration as plain text, numbers and tables; secrets are masked."""
    return {field.name: _shown(getattr(settings, field.name)) for field in fields(settings)}


def _shown(value: Any) -> object:
    match value:
        case Secret():
            return MASK
        case timedelta():
            return _written(value)
        case BaseModel():
            return {name: _shown(getattr(value, name)) for name in type(value).model_fields}
        case Proxies():
            return value.written()
        case Path() | MqttUrl() | Listen() | SqliteUrl():
            return str(value)
        case Mapping():
            return {key: _shown(inner) for key, inner in value.items()}
        case frozenset():
            return sorted(map(str, value))
        case tuple():
            return [_shown(inner) for inner in value]
        case str():
            return str(value)
        case _ if is_dataclass(value):
            return {field.name: _shown(getattr(value, field.name)) for field in fields(value)}
        case _:
            return value


def _written(span: timedelta) -> str:
    """A duration as the file spells it: ``1h30m``, ``400d``."""
    left = round(span.total_seconds() * 1000)
    text = ""
    for unit, milliseconds in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, milliseconds)
        text += f"{count}{unit}" if count else ""
    return text or "0s"

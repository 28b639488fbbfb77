"""The log: one event a line whatever is logged, and no secret in it however it got there."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import quote, quote_plus

import pytest
import structlog
from hypothesis import assume, example, given
from hypothesis import strategies as st
from multidict import CIMultiDict
from pydantic import BaseModel

from evbatteryd import logs
from evbatteryd.logs import Redactor, configure, get_logger, redact_text, redactor
from evbatteryd.secret import Secret

SECRET = "b-very.hush_Hush-4242"
VIN = "WVWZZZE1ZMP012345"
USER = "3f2b8f0e-93d1-4f0c-9a55-0a8f6c1b2d3e"


class Log:
    """A configured log and what it wrote."""

    def __init__(self, level: str = "debug", kind: str = "json") -> None:
        self.stream = io.BytesIO()
        configure(level, kind, stream=self.stream)
        self.logger = get_logger("evbatteryd.test")

    @property
    def raw(self) -> bytes:
        return self.stream.getvalue()

    @property
    def text(self) -> str:
        return self.raw.decode()

    @property
    def events(self) -> list[dict[str, object]]:
        assert self.raw == b"" or self.raw.endswith(b"\n")
        return [json.loads(line) for line in self.raw.split(b"\n")[:-1]]

    @property
    def event(self) -> dict[str, object]:
        (event,) = self.events
        return event


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture(autouse=True)
def _afterwards() -> Iterator[None]:
    hook, level = sys.excepthook, logging.getLogger().level
    yield
    structlog.contextvars.clear_contextvars()
    structlog.reset_defaults()
    configure("info", "console")
    sys.excepthook = hook
    logging.getLogger().setLevel(level)


@pytest.fixture
def secret() -> Iterator[str]:
    redactor.register(SECRET)
    yield SECRET
    redactor.forget(SECRET)


# --- the shape of a line ------------------------------------------------------------------------------


def test_one_event_is_one_line_of_json(log: Log) -> None:
    before = datetime.now(UTC)
    log.logger.bind(vehicle="zoe").warning("poll.failing", attempts=3, soc=61.5, known=None, ok=False)
    event = log.event
    stamp = str(event.pop("timestamp"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", stamp)
    assert before <= datetime.fromisoformat(stamp) <= datetime.now(UTC)
    assert list(event) == ["level", "event", "logger", "vehicle", "attempts", "soc", "known", "ok"]
    assert event == {
        "level": "warning",
        "event": "poll.failing",
        "logger": "evbatteryd.test",
        "vehicle": "zoe",
        "attempts": 3,
        "soc": 61.5,
        "known": None,
        "ok": False,
    }


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", ["debug", "info", "warning", "error", "critical"]),
        ("info", ["info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
def test_what_is_below_the_level_is_not_written(level: str, written: list[str]) -> None:
    log = Log(level)
    for method in ("debug", "info", "warning", "error", "critical"):
        getattr(log.logger, method)("x")
    assert [event["level"] for event in log.events] == written


def test_a_logger_that_is_kept_follows_a_new_configuration() -> None:
    first = Log("error")
    kept, by_structlog = first.logger, structlog.get_logger("other").bind()
    kept.info("early")
    second = Log("info")
    kept.info("late")
    by_structlog.info("late too")
    assert first.raw == b""
    assert [(event["event"], event["logger"]) for event in second.events] == [
        ("late", "evbatteryd.test"),
        ("late too", "other"),
    ]


def test_context_of_the_task_is_added(log: Log) -> None:
    structlog.contextvars.bind_contextvars(application="home", client_secret=SECRET)
    log.logger.info("x", vehicle="zoe")
    assert log.event["application"] == "home"
    assert log.event["client_secret"] == "***"


def test_fields_that_are_called_like_ours_are_kept_beside_them(log: Log) -> None:
    log.logger.info("x", level=80, timestamp="soon")
    assert log.event["level"] == "info"
    assert log.event["level_"] == 80
    assert log.event["timestamp_"] == "soon"


def test_an_exception_comes_with_its_traceback(log: Log) -> None:
    try:
        raise ValueError("no such\ncar")
    except ValueError as error:
        kept = error
        log.logger.exception("poll.broke")
    log.logger.error("poll.broke.again", exc_info=kept)
    for event in log.events:
        assert event["level"] == "error"
        assert "Traceback (most recent call last)" in str(event["exception"])
        assert str(event["exception"]).endswith("ValueError: no such\ncar")


def test_of_a_long_traceback_the_end_is_kept(log: Log) -> None:
    log.logger.error(
        "x", exc_info=ExceptionGroup("many", [ValueError("y" * 500)] * 14 + [ValueError("z" * 2000)])
    )
    log.logger.error("x", exc_info=ValueError("y" * 9000))
    several, single = (str(event["exception"]) for event in log.events)
    assert len(several) <= 8000
    assert "z" * 2000 in several
    assert several.endswith("-----")
    assert single.startswith("ValueError: yyy")
    assert single.endswith("… (cut)")


def test_exc_info_without_an_exception_adds_nothing(log: Log) -> None:
    for exc_info in (True, False, None, (None, None, None)):
        log.logger.error("x", exc_info=exc_info)
    assert all("exception" not in event for event in log.events)


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    password: str


@dataclass
class Account:
    name: str
    client_secret: str
    inner: object = None
    hidden: str = field(default="unseen", repr=False)


def test_values_of_all_sorts(log: Log) -> None:
    log.logger.info(
        "x",
        enum=Colour.RED,
        instant=datetime(2026, 11, 22, 7, 30, tzinfo=UTC),
        span=timedelta(minutes=15),
        path=Path("/tmp/x"),
        error=ValueError("no"),
        raw=b"caf\xc3\xa9 \xff",
        names={"b": (1, 2.5), 3: None},
        members={7},
        account=Account("ev", SECRET, inner=[datetime(2026, 1, 1, tzinfo=UTC)]),
        point=Point(1, SECRET),
        nothing=float("nan"),
        large=2**70,
        larger=10**5000,
        text="\ud800",
    )
    event = log.event
    assert event["enum"] == "red"
    assert event["instant"] == "2026-11-22T07:30:00Z"
    assert event["span"] == 900.0
    assert "/tmp/x" in str(event["path"])
    assert event["error"] == "ValueError: no"
    assert event["raw"] == "café \\xff"
    assert event["names"] == {"b": [1, 2.5], "3": None}
    assert event["members"] == [7]
    assert event["account"] == {"name": "ev", "client_secret": "***", "inner": ["2026-01-01T00:00:00Z"]}
    assert event["point"] == {"x": 1, "password": "***"}
    assert event["nothing"] is None
    assert event["large"] == str(2**70)
    assert event["larger"] == "<integer of 16610 bits>"
    assert event["text"] == "\\ud800"


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError(SECRET)


class HostileKey(Hostile):
    def __hash__(self) -> int:
        return 1


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError(SECRET)


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError(SECRET)


def contains_itself() -> list[object]:
    items: list[object] = []
    items.extend([items] * 300)
    return items


@pytest.mark.parametrize("kind", ["json", "console", "journal"])
@pytest.mark.parametrize(
    "value",
    [
        Hostile(),
        [Hostile()],
        {HostileKey(): Hostile()},
        Account(Hostile(), Hostile()),  # type: ignore[arg-type]
        HostileError("x"),
        HostileText("x\ny"),
        contains_itself(),
        {"a": {"b": contains_itself()}},
        memoryview(b"a\nb"),
        SimpleNamespace(a=1),
        Hostile,
        "\r\n\x00\x1b[31m\u2028\u2029\x85\ud800",
        10**6000,
        [10**6000, float("inf"), "\udfff"],
        ExceptionGroup("many", [ValueError("a\nb"), HostileError("c")]),
        "x\n" * 5_000_000,
        b"\xff" * 10_000_000,
        {str(number): number for number in range(100_000)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_logged_it_is_one_line(kind: str, value: object) -> None:
    log = Log(kind=kind)
    log.logger.info("x", value=value)
    log.logger.info("y\nz")
    lines = log.text.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2
    assert all(len(line) < 150_000 for line in lines)
    assert "log.unwritable" not in log.text
    assert SECRET not in log.text
    if kind == "json":
        assert all(json.loads(line) for line in lines)
    else:
        assert all(line.isprintable() for line in lines)


def test_an_exception_that_cannot_be_shown(log: Log) -> None:
    log.logger.error("x", exc_info=HostileError("x"))
    assert "HostileError" in str(log.event["exception"])
    assert SECRET not in log.text


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters()),
        st.binary(),
        st.datetimes(timezones=st.just(UTC)),
        st.timedeltas(),
        st.builds(ValueError, st.text(st.characters())),
    ),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(st.characters()), inner)
    ),
)


@pytest.mark.parametrize("kind", ["json", "console", "journal"])
@given(name=st.text(st.characters()), event=st.text(st.characters()), value=ANYTHING)
def test_any_value_is_one_line(kind: str, name: str, event: str, value: object) -> None:
    assume("log.unwritable" not in repr((name, event, value)))
    log = Log(kind=kind)
    log.logger.info(event, **{f"x{name}": value})
    assert log.raw.count(b"\n") == 1
    assert b"log.unwritable" not in log.raw
    if kind == "json":
        assert set(log.event) >= {"timestamp", "level", "event", "logger"}
    else:
        assert log.text[:-1].isprintable()


# --- formats ------------------------------------------------------------------------------------------


def test_the_journal_gets_priorities_and_words() -> None:
    log = Log(kind="journal")
    log.logger.debug("a")
    log.logger.info("poll.answered", vehicle="zoe", reason="two words", soc=61.5, more={"a": 1}, no="")
    log.logger.warning("c", line="1\n2", quote='"', equals="a=b")
    log.logger.error("d")
    log.logger.critical("e f")
    assert log.text.splitlines() == [
        "<7>a logger=evbatteryd.test",
        '<6>poll.answered logger=evbatteryd.test vehicle=zoe reason="two words" soc=61.5 more={"a":1} no=""',
        r'<4>c logger=evbatteryd.test line="1\n2" quote="\"" equals="a=b"',
        "<3>d logger=evbatteryd.test",
        '<2>"e f" logger=evbatteryd.test',
    ]


def test_the_console_is_for_people() -> None:
    log = Log(kind="console")
    log.logger.warning("poll.failing", vehicle="zoë", reason="two words")
    assert re.fullmatch(
        r"\d\d:\d\d:\d\dZ warning  poll\.failing logger=evbatteryd\.test vehicle=zoë reason=\"two words\"\n",
        log.text,
    )


def test_on_the_console_a_traceback_is_indented_below() -> None:
    log = Log(kind="console")
    try:
        raise ValueError("forged\n12:00:00Z info fine \x1b[2J")
    except ValueError:
        log.logger.exception("x")
    first, *below = log.text.splitlines()
    assert "exception" not in first
    assert below[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") for line in below)
    assert below[-1] == r"    12:00:00Z info fine \x1b[2J"


def terminal_output(environ: dict[str, str]) -> bytes:
    """What a program with the console's format writes to a real terminal."""
    leader, follower = pty.openpty()
    code = "from evbatteryd.logs import *; configure('info', 'console'); get_logger('a').error('x', b=1)"
    subprocess.run(
        [sys.executable, "-c", code],
        stderr=follower,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", **environ},
        check=True,
    )
    os.close(follower)
    output = os.read(leader, 4096)
    os.close(leader)
    return output


def test_colours_are_for_terminals_that_want_them() -> None:
    assert b"\x1b[31m" in terminal_output({})
    assert b"\x1b" not in terminal_output({"NO_COLOR": "1"})
    assert b"\x1b" not in terminal_output({"TERM": "dumb"})
    log = Log(kind="console")
    log.logger.error("x")
    assert "\x1b" not in log.text


def test_text_streams_are_written_to_as_well() -> None:
    stream = io.StringIO()
    configure("info", "json", stream=stream)
    get_logger("a").info("é")
    assert json.loads(stream.getvalue())["event"] == "é"


def test_standard_error_is_where_lines_go(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    configure("info", "json")
    get_logger("a").info("x")
    captured = capfdbinary.readouterr()
    assert captured.out == b""
    assert json.loads(captured.err)["event"] == "x"


def test_a_reader_that_is_gone_is_no_reason_to_fail() -> None:
    log = Log()
    log.stream.close()
    log.logger.info("x")
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb", buffering=0) as broken:
        configure("info", "json", stream=broken)
        log.logger.info("x")


# --- libraries that use the standard library's log ----------------------------------------------------


@pytest.mark.parametrize("name", ["apscheduler.executors.default", "mqtt", "aiohttp.access", "asyncio"])
def test_records_of_libraries_go_the_same_way(log: Log, secret: str, name: str) -> None:
    library = logging.getLogger(name)
    library.info("chatter")
    library.warning("There are %d pending publish calls (%s).", 12, secret)
    try:
        raise RuntimeError(f"Bearer {secret}")
    except RuntimeError:
        library.exception("Job raised")
    first, second = log.events
    assert (first["event"], first["level"], first["logger"]) == (
        "There are 12 pending publish calls (***).",
        "warning",
        name,
    )
    assert (second["event"], second["level"]) == ("Job raised", "error")
    assert "RuntimeError: Bearer ***" in str(second["exception"])


def test_a_record_that_cannot_be_formatted_is_still_a_line(log: Log) -> None:
    (ours,) = (
        handler for handler in logging.getLogger().handlers if type(handler).__module__ == logs.__name__
    )

    def record(level: int, message: str, *arguments: object) -> logging.LogRecord:
        return logging.LogRecord("mqtt", level, "x.py", 1, message, arguments, None, sinfo="Stack (x.py)")

    ours.handle(record(30, "%d cars", "many"))
    ours.handle(record(35, "%s", Hostile()))
    ours.handle(record(5, "fine"))
    first, second, third = log.events
    assert (first["event"], first["stack"]) == ("%d cars", "Stack (x.py)")
    assert (second["event"], second["level"]) == ("%s", "warning")
    assert (third["event"], third["level"]) == ("fine", "debug")


def test_a_higher_level_holds_for_libraries_too() -> None:
    log = Log("error")
    logging.getLogger("some.library").warning("x")
    logging.getLogger("some.library").error("y")
    assert [event["event"] for event in log.events] == ["y"]


def test_configured_twice_nothing_is_written_twice() -> None:
    Log()
    log = Log()
    logging.getLogger("mqtt").warning("x")
    assert len(log.events) == 1


def test_an_exception_that_nobody_catches_is_a_line_without_secrets() -> None:
    code = (
        "from evbatteryd.logs import *; configure('info', 'json');"
        f"redactor.register({SECRET!r}); raise ValueError({SECRET!r})"
    )
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert died.returncode == 1
    event = json.loads(died.stderr)
    assert (event["event"], event["level"]) == ("uncaught", "critical")
    assert event["exception"].endswith("ValueError: ***")


# --- redaction: by key --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        *(
            "client_secret",
            "secret",
            "token",
            "access_token",
            "refreshToken",
            "password",
            "mqtt_password",
            "passwd",
        ),
        *(
            "Authorization",
            "authorization",
            "api_key",
            "apiKey",
            "x-api-key",
            "private_key",
            "Cookie",
            "Set-Cookie",
        ),
        *(
            "credentials",
            "user_id",
            "userId",
            "sc-user-id",
            "SC-User-Id",
            "user_ref",
            "user",
            "owner",
            "email",
        ),
        *("vin", "VIN", "vehicle_vin", "vehicleVin", "latitude", "longitude", "auth"),
    ],
)
def test_a_key_hides_what_it_holds(log: Log, key: str) -> None:
    hidden = "sesame"
    for _ in range(2):  # the second time all keys and texts are known
        log.logger.info("x", **{key: hidden})
        log.logger.info("x", nested=[{"a": {key: [hidden]}}], number={key: 471_147_114_711})
        log.logger.info("x", headers=CIMultiDict({key: hidden}), raw=((key.encode(), hidden.encode()),))
        log.logger.info("x", listed=[(key, hidden)], model=type("M", (BaseModel,), {})())
    assert hidden not in log.text
    assert "471147114711" not in log.text
    assert log.events[0][key] == "***"
    assert log.events[4][key] == "***"


@pytest.mark.parametrize(
    "key", ["vehicle", "event_name", "driving", "kelvin", "author", "superuserless", "spin", "key"]
)
def test_a_key_that_only_looks_similar_hides_nothing(log: Log, key: str) -> None:
    log.logger.info("x", **{key: "open"})
    assert log.event[key] == "open"


def test_absence_and_yes_or_no_are_no_secrets(log: Log) -> None:
    log.logger.info("x", token=None, password=True, nested={"secret": False, "vin": None})
    assert log.event["token"] is None
    assert log.event["password"] is True
    assert log.event["nested"] == {"secret": False, "vin": None}


def test_a_word_seen_as_a_value_is_still_a_sensitive_key(log: Log) -> None:
    log.logger.info("x", field="vin")
    log.logger.info("x", vin="sesame")
    assert log.events[1]["vin"] == "***"


def test_secrets_of_the_configuration_hide_themselves(log: Log) -> None:
    class Model(BaseModel):
        held: Secret

    log.logger.info("x", a=Secret("sesame"), b=[Secret("sesame")], c=Model(held=Secret("sesame")))
    assert "sesame" not in log.text


# --- redaction: by pattern ----------------------------------------------------------------------------

BASIC = base64.b64encode(b"client:sesame").decode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Authorization: Bearer sesame.open-1", "Authorization: *** ***"),
        ("sent Bearer sesame.open-1 to it", "sent Bearer *** to it"),
        ("bearer%20sesame.open", "bearer%20***"),
        (f"Basic {BASIC}", "Basic ***"),
        ("mqtt://ev:sesame@broker:1883/x", "mqtt://***@broker:1883/x"),
        ("mqtt://ev:ses@me@broker/x", "mqtt://***@broker/x"),
        ("https://a/t?client_id=a&client_secret=sesame&x=1", "https://a/t?client_id=a&client_secret=***&x=1"),
        ("grant_type=refresh_token&refresh_token=sesame", "grant_type=refresh_token&refresh_token=***"),
        ("https://a/callback?code=sesame&state=1", "https://a/callback?code=***&state=1"),
        ('{"access_token": "sesame", "a": 1}', '{"access_token": ***, "a": 1}'),
        ('{"access_token": "ses\\"ame", "a": 1}', '{"access_token": ***, "a": 1}'),
        (r"{\"access_token\": \"sesame\", \"a\": 1}", r"{\"access_token\": ***, \"a\": 1}"),
        ('{"access_token": "sesam', '{"access_token": ***'),
        ("{'password': 'it\\'s sesame', 'a': 1}", "{'password': ***, 'a': 1}"),
        ("{'password': b'sesame'}", "{'password': b***}"),
        ("Account(client_secret='sesame', a=1)", "Account(client_secret=***, a=1)"),
        ('{"tokens": ["sesame", "open"], "a": 1}', '{"tokens": ***, "a": 1}'),
        ("<CIMultiDict('sc-user-id': 'sesame')>", "<CIMultiDict('sc-user-id': ***)>"),
        (f"sc-user-id: {USER}", "sc-user-id: ***"),
        (f"/v3/users/{USER}/x", "/v3/users/***/x"),
        (f"userId={USER};", "userId=***;"),
        ("vin: 12345", "vin: ***"),
        (f"car {VIN} found", "car *** found"),
        (f"car {VIN.lower()}", "car ***"),
        (f"/vehicles/{VIN}/x", "/vehicles/***/x"),
        (f"a\n{VIN}\nb", "a\n***\nb"),
        (f'"{VIN}"', '"***"'),
        ("latitude=52.5163", "latitude=***"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(log: Log, text: str, shown: str) -> None:
    log.logger.info("x", text=text)
    log.logger.info(text)
    log.logger.info("x", inner=[{"a": text}])
    log.logger.info("x", raw=text.encode())
    first, second, third, fourth = log.events
    assert first["text"] == shown
    assert second["event"] == shown
    assert third["inner"] == [{"a": shown}]
    assert fourth["raw"] == shown


@pytest.mark.parametrize(
    "text",
    [
        "driving",
        "charging: the next update of the OEM is expected at 08:07 UTC",
        "renault_zoe_2021",
        "evbatteryd/renault_zoe/state",
        "https://vehicle.api.smartcar.com/v3/vehicles/x?page=2",
        "RATE_LIMIT:SMARTCAR_API",
        "3f2b8f0e-93d1-4f0c-9a55-0a8f6c1b2d3e",
        "2026-11-22T07:30:00.123456Z",
        "internationalised",  # 17 letters, no digit
        "12345678901234567",  # 17 digits, no letter
        "ABCDEFGHJKLMN12345",  # 18
        "IOQIOQIOQIOQIO123",  # letters that no VIN has
        "50 % of 100 %",
        "a\\b",
        "who@example.org",
        "mqtt://broker:1883",
        "café",
        "",
    ],
)
def test_what_is_harmless_stays(log: Log, text: str) -> None:
    for _ in range(2):
        log.logger.info(text, reason=text, inner=[text])
    for event in log.events:
        assert (event["event"], event["reason"], event["inner"]) == (text, text, [text])


FRAGMENTS = st.lists(
    st.sampled_from(
        [
            *(
                "client_secret",
                "token",
                "PassWord",
                "user_id",
                "vin",
                "vin_",
                "Vin",
                "authorization",
                "cookie",
            ),
            *(
                "Bearer ",
                "basic ",
                "?code=",
                "&code=",
                "://",
                "a@b",
                "users/",
                USER,
                VIN,
                VIN[:-1],
                "api-key",
            ),
            *(
                "=",
                ":",
                "'",
                '"',
                " ",
                "\\",
                "%",
                "%3D",
                "%3a",
                "{",
                "}",
                "[",
                "]",
                ",",
                "x",
                "sesame",
                "\n",
                "é",
                "-",
            ),
        ]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


@given(text=FRAGMENTS)
def test_the_short_cut_for_harmless_texts_changes_nothing(text: str) -> None:
    """A text with a percent sign is always looked at closely: it must not make a difference."""
    careful = Redactor()
    assert careful.text(f"% {text}") == f"% {careful.text(text)}"


@given(text=FRAGMENTS)
def test_what_was_redacted_stays_as_it_is_in_an_event(text: str) -> None:
    careful = Redactor()
    assert careful.fields({"event": "x", "text": text})["text"] == careful.text(text)
    assert careful.fields({"event": "x", "text": text})["text"] == careful.text(text)  # remembered


# --- redaction: registered secrets --------------------------------------------------------------------


def twice(encode: Callable[[str], str]) -> Callable[[str], str]:
    return lambda secret: encode(encode(secret))


ENCODINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "url": lambda secret: quote(secret, safe=""),
    "url, slashes kept": quote,
    "url, lower case": lambda secret: re.sub("%..", lambda hexed: hexed[0].lower(), quote(secret, safe="")),
    "url, every byte": lambda secret: "".join(f"%{byte:02X}" for byte in secret.encode()),
    "form": quote_plus,
    "url twice": twice(quote_plus),
    "json": json.dumps,
    "json with umlauts": lambda secret: json.dumps(secret, ensure_ascii=False),
    "json twice": twice(json.dumps),
    "json in url": lambda secret: quote(json.dumps(secret)),
    "url in json": lambda secret: json.dumps(quote(secret)),
    "repr": repr,
    "ascii": ascii,
    "repr of bytes": lambda secret: repr(secret.encode()),
    "basic authorization": lambda secret: base64.b64encode(f"client:{secret}".encode()).decode(),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64, shifted": lambda secret: base64.b64encode(f"ab{secret}cd".encode()).decode(),
    "base64 for urls": lambda secret: base64.urlsafe_b64encode(f"a{secret}".encode()).decode(),
    "base64 in url": lambda secret: quote(base64.b64encode(secret.encode()), safe=""),
}


def raised(text: str) -> BaseException:
    try:
        try:
            raise KeyError(text)
        except KeyError as error:
            raise ExceptionGroup(text, [ValueError(text)]) from error
    except ExceptionGroup as error:
        error.add_note(text)
        return error


PLACES: dict[str, Callable[[structlog.BoundLoggerBase, str], None]] = {
    "event": lambda log, text: log.info(text),
    "value": lambda log, text: log.info("x", value=text),
    "inside a text": lambda log, text: log.info("x", value=f"before {text} behind"),
    "amid letters": lambda log, text: log.info("x", value=f"a/{text}/b"),
    "key": lambda log, text: log.info("x", **{text: 1}),
    "bound": lambda log, text: log.bind(value=text).info("x"),
    "bytes": lambda log, text: log.info("x", value=text.encode()),
    "list": lambda log, text: log.info("x", value=[(text,), {text}]),
    "dict": lambda log, text: log.info("x", value={"a": {text: text}}),
    "dict by bytes": lambda log, text: log.info("x", value={text.encode(): 1}),
    "dataclass": lambda log, text: log.info("x", value=Account(text, "", inner=text)),
    "object": lambda log, text: log.info("x", value=SimpleNamespace(a=text)),
    "exception as a value": lambda log, text: log.info("x", error=ValueError(text)),
    "traceback": lambda log, text: log.error("x", exc_info=raised(text)),
    "record of a library": lambda _, text: logging.getLogger("mqtt").warning("said %s", text),
    "traceback of a library": lambda _, text: logging.getLogger("mqtt").error("x", exc_info=raised(text)),
    "behind much": lambda log, text: log.info("x", value="x " * 2000 + text),
}

SECRETS = st.one_of(
    st.from_regex(r"[A-Za-z0-9_.~-]{12,48}", fullmatch=True),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=40),
    st.text(st.sampled_from("aZ09 %\\\"'&=+/#?éß€😀\n\t{}[]:,;"), min_size=8, max_size=40),
)


def leaves(value: object) -> Iterator[str]:
    """Every text of a decoded line, keys included."""
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from leaves(inner)
        case list():
            for inner in value:
                yield from leaves(inner)
        case str():
            yield value


@pytest.mark.parametrize("kind", ["json", "console", "journal"])
@given(secret=SECRETS, encoding=st.sampled_from(sorted(ENCODINGS)), place=st.sampled_from(sorted(PLACES)))
@example(secret="p%41ss%word", encoding="url", place="value")
@example(secret="evbatteryd", encoding="as it is", place="value")
@example(secret="1234567890", encoding="as it is", place="key")
def test_a_registered_secret_is_nowhere(kind: str, secret: str, encoding: str, place: str) -> None:
    encoded = ENCODINGS[encoding](secret)
    log = Log(kind=kind)
    redactor.register(secret)
    try:
        PLACES[place](log.logger, encoded)
    finally:
        redactor.forget(secret)
    texts = list(leaves(log.event)) if kind == "json" else [log.text]
    for text in texts:
        assert secret not in text
        assert encoded not in text


@pytest.mark.parametrize(
    "value", [1234567, [1234567], {"a": {"b": 1234567}}, 0.1234567, 91234567890123456789012]
)
def test_a_secret_of_digits_is_not_shown_as_a_number(log: Log, value: object) -> None:
    redactor.register("1234567")
    try:
        log.logger.info("x", value=value, fine=12.5)
    finally:
        redactor.forget("1234567")
    assert "1234567" not in log.text.split("Z", 1)[1]
    assert log.event["fine"] == 12.5


def test_a_text_that_was_harmless_is_hidden_once_it_is_a_secret(log: Log) -> None:
    for _ in range(2):
        log.logger.info("x", value="open-sesame", **{"open-sesame": 1})
    redactor.register("open-sesame")
    log.logger.info("x", value="open-sesame", **{"open-sesame": 1})
    redactor.forget("open-sesame")
    log.logger.info("x", value="open-sesame")
    before, _, during, after = log.events
    assert before["value"] == after["value"] == "open-sesame"
    assert during["value"] == "***"
    assert "open-sesame" not in during


def test_a_text_too_long_to_be_read_ends_with_no_half_secret() -> None:
    careful = Redactor()
    long_secret = "".join(map(str, range(300)))
    careful.register(long_secret)
    shown = careful.text(f"{long_secret} " * 1000)
    assert set(shown.removesuffix("… (cut)").split()) == {"***"}


def test_what_two_registered_one_cannot_forget() -> None:
    careful = Redactor()
    careful.register("open-sesame")
    careful.register("open-sesame")
    careful.forget("open-sesame")
    assert careful.text("open-sesame") == "***"
    careful.forget("open-sesame")
    careful.forget("open-sesame")
    assert careful.text("open-sesame") == "open-sesame"
    careful.register("open-sesame")
    assert careful.text("open-sesame") == "***"


def test_the_longer_of_two_secrets_goes_first() -> None:
    careful = Redactor()
    for value in ("sesame", "sesame-open", "open-sesame-open"):
        careful.register(value)
    assert careful.text("a open-sesame-open b sesame-open c sesame") == "a *** b *** c ***"


def test_the_rest_of_an_encoded_text_goes_with_the_secret() -> None:
    careful = Redactor()
    careful.register(SECRET)
    encoded = base64.b64encode(f"client:{SECRET}".encode()).decode()
    assert careful.text(f"sent {encoded} to it") == "sent *** to it"


def test_a_secret_too_short_to_look_for_is_hidden_by_its_key_alone(log: Log) -> None:
    redactor.register("ev")
    redactor.register("")
    try:
        log.logger.info("event", password="ev")
    finally:
        redactor.forget("ev")
        redactor.forget("")
    assert log.event["event"] == "event"
    assert log.event["password"] == "***"


@pytest.mark.parametrize("secret", ["event", "level", "logger", "info", "timestamp", '","', "null", "true"])
def test_an_unlucky_secret_does_not_break_the_line(log: Log, secret: str) -> None:
    redactor.register(secret)
    try:
        log.logger.info("x", value=secret, ok=True, none=None)
    finally:
        redactor.forget(secret)
    event = log.event
    assert set(event) == {"timestamp", "level", "event", "logger", "value", "ok", "none"}
    assert event["event"] == "x"


# --- excerpts of payloads -----------------------------------------------------------------------------


def test_an_excerpt_of_json_is_redacted_by_its_keys(secret: str) -> None:
    payload = {
        "data": [{"id": USER, "attributes": {"vin": "short", "soc": {"value": 61}, "note": f"a {secret}"}}],
        "tokens": ["sesame"],
        "users": {"user": {"id": "sesame"}},
    }
    excerpt = redact_text(json.dumps(payload))
    assert json.loads(excerpt) == {
        "data": [{"id": "***", "attributes": {"vin": "***", "soc": {"value": 61}, "note": "a ***"}}],
        "tokens": "***",
        "users": {"user": "***"},
    }


@pytest.mark.parametrize("end", range(20, 110, 3))
def test_an_excerpt_that_was_cut_before_it_came_here(secret: str, end: int) -> None:
    payload = f'{{"soc": 61, "access_token": "sesame-sesame", "note": "x {secret}", "id": "{USER}"}}'[:end]
    excerpt = redact_text(payload)
    assert "sesame" not in excerpt
    assert SECRET[:5] not in excerpt
    assert excerpt.startswith('{"soc": 61'[:end])


def test_an_excerpt_is_bounded() -> None:
    assert redact_text("<html>" + "é" * 10_000_000) == "<html>" + "é" * 1994 + "… (10000006 characters)"
    assert redact_text("abc", 2) == "ab… (3 characters)"
    assert redact_text("abc", 3) == "abc"
    assert redact_text("") == ""


@given(before=st.text(max_size=30), secret=SECRETS, limit=st.integers(1, 80))
def test_no_excerpt_ends_in_the_middle_of_a_secret(before: str, secret: str, limit: int) -> None:
    redactor.register(secret)
    try:
        excerpt = redact_text(f"{before}|{secret}|rest", limit)
    finally:
        redactor.forget(secret)
    assert f"|{secret[:4]}" not in excerpt


def test_there_is_one_redactor() -> None:
    assert logs.redactor is redactor

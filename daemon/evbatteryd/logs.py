"""The log: structlog, set up once; what must not be seen is masked here.

Every key, and every text below it, is cleaned before anything is rendered; texts that repeat (names, brands,
outcomes) are remembered as clean. What is hidden: values under keys that name a secret or a person, every
registered secret in any usual encoding, credentials in headers, URLs and forms, and vehicle identification
numbers. Rather too much is masked than too little: call no harmless field ``token`` or ``user``.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from functools import lru_cache
from types import TracebackType
from typing import Any, BinaryIO, Final, TextIO
from urllib.parse import unquote, unquote_plus

import orjson
import structlog
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, Processor

from evbatteryd.secret import MASK, Secret

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_LONGEST_TEXT: Final = 8000
"""Characters of one text that are written; the rest is left out."""
_LONGEST_READ: Final = 65536
"""Characters of one text that are looked at."""
_LARGEST_EVENT: Final = 2000
"""Values inside one value of an event."""
_DEEPEST: Final = 8
_DEEPEST_ENCODING: Final = 3
"""JSON in JSON in a URL."""
_SHORTEST_SECRET: Final = 4
"""Shorter ones are hidden by their key alone: searched for, they would shred every line."""
_SHORTEST_BASE64: Final = 8


# --- what is hidden -----------------------------------------------------------------------------------

_NAMES: Final = (
    r"secret|token|passw|passphrase|pwd|authorization|api[_-]?key|private[_-]?key|credential|cookie"
    r"|user[_-]?id|user[_-]?ref|latitude|longitude"
)
_SENSITIVE_KEY: Final = re.compile(
    rf"(?i){_NAMES}|(?:^|[^a-z])(?:vin|user|owner|auth|email|pin)$|(?-i:[a-z]Vin$)"
)

# A name of the list, what separates it from its value, and the value: quoted (also inside a quoted text, with
# backslashes), in brackets, or up to a separator.
_PAIR: Final = re.compile(
    rf"""(?ix)
    ((?:{_NAMES}|\bvin\b)[\w-]{{0,40}} \\*["']? \s{{0,8}} (?:[:=]|=>|%3[ad]) \s{{0,8}} (?:b(?=["']))?)
    (?: "(?:[^"\\]|\\.)*+"? | '(?:[^'\\]|\\.)*+'? | \\["'] .*? (?:(?<!\\)\\["']|$)
      | \[[^\]]*+\]? | \{{[^}}]*+\}}? | [^\s&,;"'\\)\]}}>]++ )
    """
)
_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    # Credentials of a header; base64 and tokens of RFC 7235.
    (re.compile(r"(?i)\b(bearer|basic)(\s+|%20|\+)[\w.~+/%-]{6,}=*"), rf"\g<1>\g<2>{MASK}"),
    # An authorization code on its way through a redirect.
    (re.compile(r"(?i)([?&]code=)[^&\s\"'#\\]+"), rf"\g<1>{MASK}"),
    # scheme://user:password@host
    (
        re.compile(r"(?i)(\b[a-z][a-z0-9+.-]{0,20}:\\?/\\?/)[^\s/?#\"'<>@]*@(?:[^\s/?#\"'<>@]*@)*"),
        rf"\g<1>{MASK}@",
    ),
    (re.compile(r"(?i)(\busers?/)[0-9a-f]{8}-[0-9a-f-]{27}"), rf"\g<1>{MASK}"),
    (_PAIR, rf"\g<1>{MASK}"),
)
# ISO 3779: 17 letters and digits without I, O, Q. One letter and one digit at least, lest words are hidden.
_VIN: Final = re.compile(
    r"(?i)(?<![a-z0-9])(?=[a-z0-9]{0,16}[0-9])(?=[a-z0-9]{0,16}[a-z])[a-hj-npr-z0-9]{17}(?![a-z0-9])"
)
_UUID: Final = re.compile(r"(?i)(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])")

_HINTS: Final = (
    *("%", "\\", "@", "secret", "token", "passw", "passphrase", "pwd", "authorization", "bearer", "basic"),
    *("api_key", "api-key", "apikey", "private", "credential", "cookie", "user", "latitude", "longitude"),
    *("vin=", "vin:", "vin'", 'vin"', "vin ", "vin-", "code="),
)
"""No text without one of these, in lower case, is changed by a pattern (a VIN apart)."""

_RUN: Final = 13
"""So many letters and digits in a row: a VIN or a secret; not a word, a time or a part of a UUID."""
_RUN_SHAPE: Final = b"a" * _RUN
_SHAPES: Final = bytes.maketrans(
    bytes(range(256)), bytes(97 if chr(code).isalnum() and code < 128 else 32 for code in range(256))
)


_PLAIN: Final = frozenset({bool, type(None), datetime})
_NUMBERS: Final = frozenset({int, float})
_OWN_KEYS: Final = frozenset({"event", "logger", "exception", "stack"})


@lru_cache(maxsize=4096)
def _is_sensitive(key: str) -> bool:
    return _SENSITIVE_KEY.search(key) is not None


@dataclass(frozen=True, slots=True)
class _Needles:
    """What the registered secrets look like in a text."""

    plain: tuple[str, ...] = ()
    """As they are, longest first: one may contain another."""
    base64: tuple[str, ...] = ()
    """What does not depend on the neighbours when a text that contains one is encoded."""
    runs: tuple[str, ...] = ()
    """Those of both that are found only where there is a run of letters and digits; ``others`` anywhere."""
    others: tuple[str, ...] = ()
    numeric: bool = False
    """Whether one might be found in a number."""

    @classmethod
    def of(cls, secrets: Sequence[str]) -> _Needles:
        plain = {form for secret in secrets for form in _plain_forms(secret)}
        encoded = {core for secret in secrets for core in _base64_cores(secret)} - plain
        every = plain | encoded
        runs = {needle for needle in every if len(needle) >= _RUN and needle.isascii() and needle.isalnum()}
        return cls(
            plain=tuple(sorted(plain, key=len, reverse=True)),
            base64=tuple(sorted(encoded, key=len, reverse=True)),
            runs=tuple(runs),
            others=tuple(every - runs),
            numeric=any(needle.strip("-+.e0123456789") == "" for needle in plain),
        )


def _plain_forms(secret: str) -> Iterator[str]:
    yield secret
    if " " in secret:
        yield secret.replace(" ", "+")  # forms
    if not secret.isascii():
        yield secret.encode("utf-8", "surrogatepass").decode("latin-1")  # bytes that were taken for text


def _base64_cores(secret: str) -> Iterator[str]:
    data = secret.encode("utf-8", "surrogatepass")
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode()
        first, end = -(-8 * before // 6), 8 * (before + len(data)) // 6
        core = encoded[first:end]
        if len(core) >= _SHORTEST_BASE64:
            yield core
            yield core.translate(_URL_SAFE)


_URL_SAFE: Final = str.maketrans("+/", "-_")
_BASE64_RUN: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|(.))", re.DOTALL)
_LETTER_ESCAPES: Final = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def _unescaped(text: str) -> str:
    """``text`` without the escapes of JSON and of Python, which doubled ones survive as single ones."""

    def character(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        if code is None:
            return _LETTER_ESCAPES.get(match[4], match[4])
        return chr(int(code, 16)) if int(code, 16) <= sys.maxunicode else match[0]

    plain = _ESCAPE.sub(character, text)
    return plain.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decoded(text: str) -> Iterator[str]:
    if "%" in text:
        yield unquote(text)
        if "+" in text:
            yield unquote_plus(text)
    if "\\" in text:
        yield _unescaped(text)


class Redactor:
    """Masks secrets in anything that is about to be shown. Safe to use from several threads."""

    def __init__(self) -> None:
        self._registered: Counter[str] = Counter()
        self._needles = _Needles()
        self._remembered = _Remembered()
        self._lock = threading.Lock()

    def register(self, secret_value: str) -> None:
        """Never show this value from now on. Registered twice, it must be forgotten twice."""
        with self._lock:
            self._registered[secret_value] += 1
            self._look_for_all()

    def forget(self, secret_value: str) -> None:
        """This value is no secret any more (a token that expired). Unknown values are ignored."""
        with self._lock:
            self._registered[secret_value] -= 1
            self._registered = +self._registered
            self._look_for_all()

    def _look_for_all(self) -> None:
        self._needles = _Needles.of([value for value in self._registered if len(value) >= _SHORTEST_SECRET])
        # After the needles: who still adds to the old ones adds to what nobody reads any more.
        self._remembered = _Remembered()

    # One event.

    def fields(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """``event`` with every key and value cleaned: text, numbers, datetimes, lists and dicts are left."""
        remembered = self._remembered
        numeric = self._needles.numeric
        texts: list[str] = []
        keys: list[str] = []
        cleaned: dict[str, Any] = {}
        for key, value in event.items():
            kind = type(value)
            if key not in remembered.keys:
                keys.append(key)
                if _is_sensitive(key) and value is not None and kind is not bool:
                    cleaned[key] = MASK
                    continue
            if kind is str:
                if value not in remembered.texts:
                    texts.append(value)
                cleaned[key] = value
            elif kind in _PLAIN or (kind in _NUMBERS and not numeric):
                cleaned[key] = value
            else:
                cleaned[key] = self.value(value)
        unknown = texts + keys
        if not unknown:
            return cleaned
        if not self._suspects("\n".join(unknown)):
            remembered.add(texts, keys)
            return cleaned
        return {
            key if key in _OWN_KEYS else self.text(key): self.text(value) if type(value) is str else value
            for key, value in cleaned.items()
        }

    def _suspects(self, text: str) -> bool:
        """Whether ``text`` may hold something to hide: cheap, and rather yes than no."""
        if len(text) > _LONGEST_TEXT:
            return True
        lower = text.lower()
        for hint in _HINTS:
            if hint in lower:
                return True
        needles = self._needles
        for needle in needles.others:
            if needle in text:
                return True
        if _RUN_SHAPE in text.encode("utf-8", "surrogatepass").translate(_SHAPES):
            return _VIN.search(text) is not None or any(needle in text for needle in needles.runs)
        return False

    # One value.

    def value(self, value: object) -> Any:
        """``value`` cleaned and made of text, numbers, lists and dicts alone. Never raises."""
        return _Walk(self).shown(value)

    def number(self, number: float) -> float | str:
        """``number``, unless a registered secret is in its digits."""
        if self._needles.numeric and self.text(_digits(number)) != _digits(number):
            return MASK
        return number

    # One text.

    def text(self, text: str) -> str:
        """``text`` with everything masked that must not be seen, and cut if it is very long."""
        longer = len(text) > _LONGEST_READ
        if longer:
            text = self.without_torn_end(text[:_LONGEST_READ])
        masked = self._masked(text)
        if longer or len(masked) > _LONGEST_TEXT:
            return f"{masked[:_LONGEST_TEXT]}… (cut)"
        return masked

    def without_torn_end(self, text: str) -> str:
        """``text`` without the beginning of a secret that was cut at its end."""
        for needle in (*self._needles.plain, *self._needles.base64):
            for length in range(min(len(needle) - 1, len(text)), _SHORTEST_SECRET - 1, -1):
                if text.endswith(needle[:length]):
                    return text[:-length] + MASK
        return text

    def _masked(self, text: str) -> str:
        if not self._suspects(text):
            return text
        text = self._without_needles(text)
        for _ in range(_DEEPEST):
            revealed = self._revealed(text) if "%" in text or "\\" in text else None
            if revealed is None:
                break
            text = self._without_needles(revealed)
        else:
            return MASK
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return _VIN.sub(MASK, text)

    def _without_needles(self, text: str) -> str:
        for needle in self._needles.plain:
            text = text.replace(needle, MASK)
        for needle in self._needles.base64:
            while (at := text.find(needle)) >= 0:
                start, end = at, at + len(needle)
                while start > 0 and text[start - 1] in _BASE64_RUN:
                    start -= 1
                while end < len(text) and text[end] in _BASE64_RUN:
                    end += 1
                text = text[:start] + MASK + text[end:]
        return text

    def _revealed(self, text: str) -> str | None:
        """``text`` decoded in whatever way shows a secret in it; None if there is none to be seen."""
        needles = (*self._needles.plain, *self._needles.base64)
        seen, latest = {text}, [text]
        for _ in range(_DEEPEST_ENCODING if needles else 0):
            latest = [plain for encoded in latest for plain in _decoded(encoded) if plain not in seen]
            for plain in latest:
                if any(needle in plain for needle in needles):
                    return plain
            seen.update(latest)
        return None


class _Remembered:
    """Texts and keys that were found to be harmless. Thrown away when another secret is registered."""

    __slots__ = ("keys", "texts")

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.keys: set[str] = set()

    def add(self, texts: list[str], keys: list[str]) -> None:
        if len(self.texts) > 8192:
            self.texts.clear()
        if len(self.keys) > 1024:
            self.keys.clear()
        self.texts.update(text for text in texts if len(text) <= 64)
        self.keys.update(key for key in keys if not _is_sensitive(key))


class _Walk:
    """One way through a value of an event, which may be large, deep, or contain itself."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._left = _LARGEST_EVENT

    def shown(self, value: object, depth: int = 0) -> Any:
        try:
            return self._shown(value, depth)
        except Exception:
            return f"<{type(value).__name__} that cannot be shown>"

    def _shown(self, value: Any, depth: int) -> Any:
        self._left -= 1
        match value:
            case None | bool():
                return value
            case Enum():
                return self.shown(value.value, depth + 1)
            case int():
                return self._redactor.number(int(value))
            case float():
                return self._redactor.number(float(value))
            case str():
                return self._redactor.text(str.__str__(value))
            case Secret():
                return MASK
            case bytes() | bytearray() | memoryview():
                few = bytes(value[: 4 * _LONGEST_READ + 4])  # more characters than are looked at
                return self._redactor.text(few.decode("utf-8", "backslashreplace"))
            case datetime() | date() | time():
                return value.isoformat().replace("+00:00", "Z")
            case timedelta():
                return value.total_seconds()
            case BaseException():
                return self._redactor.text(f"{type(value).__name__}: {value}")
            case _ if depth > _DEEPEST:
                return "…"
            case Mapping():
                return self._pairs(value.items(), depth)
            case _ if is_dataclass(value) and not isinstance(value, type):
                visible = (field.name for field in fields(value) if field.repr)
                return self._pairs(((name, getattr(value, name, None)) for name in visible), depth)
            case tuple() if hasattr(value, "_fields"):
                return self._pairs(zip(value._fields, value, strict=False), depth)
            case (str() | bytes() as name, _) if _is_sensitive(self.shown(name)):
                return [self.shown(name), MASK]  # a header, (b"sc-user-id", b"..."), wherever it stands
            case list() | tuple() | Set():
                return self._items(value, depth)
            case _:
                return self._redactor.text(repr(value))

    def _pairs(self, pairs: Iterable[tuple[object, object]], depth: int) -> dict[str, Any]:
        shown: dict[str, Any] = {}
        for key, inner in pairs:
            if self._left <= 0:
                shown["…"] = "…"
                break
            name = str(self.shown(key, _DEEPEST))
            hidden = _is_sensitive(name) and inner is not None and not isinstance(inner, bool)
            shown[name] = MASK if hidden else self.shown(inner, depth + 1)
        return shown

    def _items(self, items: Iterable[object], depth: int) -> list[Any]:
        shown: list[Any] = []
        for inner in items:
            if self._left <= 0:
                shown.append("…")
                break
            shown.append(self.shown(inner, depth + 1))
        return shown


redactor: Final = Redactor()
"""The one that the log uses. Whoever gets a secret at run time registers it here."""


def redact_text(text: str, limit: int = 2000) -> str:
    """The beginning of a payload, at most ``limit`` characters: masked, and without UUIDs."""
    total = len(text)
    excerpt = redactor.without_torn_end(text[:_LONGEST_READ])
    try:
        excerpt = orjson.dumps(redactor.value(orjson.loads(excerpt))).decode()
    except ValueError:
        excerpt = redactor.text(excerpt)
    excerpt = _UUID.sub(MASK, excerpt)
    return excerpt if len(excerpt) <= limit else f"{excerpt[:limit]}… ({total} characters)"


# --- rendering ----------------------------------------------------------------------------------------


def _digits(number: float) -> str:
    """A number as text; one that would fill pages as its size."""
    if isinstance(number, int) and number.bit_length() > 1024:
        return f"<integer of {number.bit_length()} bits>"
    return str(number)


def _encodable(value: Any) -> Any:
    """``value`` without what JSON or UTF-8 cannot say: large integers, lone surrogates."""
    match value:
        case dict():
            return {_encodable(key): _encodable(inner) for key, inner in value.items()}
        case list():
            return [_encodable(inner) for inner in value]
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case int() if value.bit_length() > 63:
            return _digits(value)
        case _:
            return value


def _json(event: object) -> bytes:
    try:
        return orjson.dumps(event, option=orjson.OPT_UTC_Z)
    except TypeError:
        return orjson.dumps(_encodable(event), option=orjson.OPT_UTC_Z)


def _word(value: object) -> str:
    """A value of ``key=value``: bare if it is one word, else quoted and on one line."""
    match value:
        case str():
            text = value
        case datetime():
            text = value.isoformat().replace("+00:00", "Z")
        case _:
            return _on_one_line(_json(value).decode())
    if text and text.isprintable() and not any(sign in text for sign in ' ="'):
        return text
    return _on_one_line(json.dumps(text, ensure_ascii=False))


def _on_one_line(text: str) -> str:
    """``text`` with every character escaped that might move a cursor, or hide."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _words(event: Mapping[str, Any], left_out: Set[str]) -> Iterator[str]:
    for key, value in event.items():
        if key not in left_out:
            yield f"{_word(key)}={_word(value)}"


_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def _journal(event: dict[str, Any]) -> bytes:
    """``<4>poll.failing vehicle=zoe``: sd-daemon(3)'s priority; the journal has the time itself."""
    words = _words(event, {"timestamp", "level", "event"})
    line = " ".join((_word(event["event"]), *words))
    return f"<{_PRIORITIES[event['level']]}>{line}".encode()


_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}


class _Console:
    """For people: time, level, event, the rest; a traceback indented below."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour

    def __call__(self, event: dict[str, Any]) -> bytes:
        level, name = event["level"], event["event"]
        words = _words(event, {"timestamp", "level", "event", "exception"})
        line = " ".join(
            (
                f"{event['timestamp']:%H:%M:%S}Z",
                self._painted(f"{level:<8}", _COLOURS[level]),
                self._painted(_on_one_line(name) if isinstance(name, str) else _word(name), "1"),
                *(self._painted(word, "2") for word in words),
            )
        )
        for below in str(event.get("exception", "")).splitlines():
            line += f"\n    {_on_one_line(below)}"
        return line.encode("utf-8", "backslashreplace")

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colour else text


def _exception(exc_info: object) -> BaseException | None:
    """Which exception ``exc_info`` means, in any of the ways the standard library's log has for it."""
    match exc_info:
        case BaseException():
            return exc_info
        case (_, BaseException() as error, _):
            return error
        case _:
            return sys.exception() if exc_info else None


def _traceback(error: BaseException) -> str:
    """The last lines of the traceback if it is very long: they say what happened."""
    text = "".join(traceback.format_exception(error, limit=-20)).rstrip("\n")
    if len(text) <= _LONGEST_TEXT:
        return text
    _, _, whole_lines = text[-_LONGEST_TEXT:].partition("\n")
    return whole_lines or text


_RESERVED: Final = frozenset({"timestamp", "level"})


class _Pipeline:
    """The only processor: an event becomes one line. Re-configured in place, so that loggers may be kept."""

    def __init__(self) -> None:
        self.threshold = LEVELS["info"]
        self.render: Callable[[dict[str, Any]], bytes] = _Console(colour=False)
        self.stream: TextIO | BinaryIO | None = None
        """None: whatever standard error is at that moment."""
        self._lock = threading.Lock()

    def __call__(self, logger: Any, level: str, event: EventDict) -> bytes:
        try:
            return self.render(self._cleaned(logger, level, event))
        except Exception as error:  # a log line must never cost more than itself
            broken = {"event": "log.unwritable", "error": type(error).__name__}
            return self.render({"timestamp": datetime.now(UTC), "level": level, **broken})

    def _cleaned(self, logger: Any, level: str, event: EventDict) -> dict[str, Any]:
        merge_contextvars(logger, level, event)
        if "exc_info" in event and (error := _exception(event.pop("exc_info"))) is not None:
            event["exception"] = _traceback(error)
        event.setdefault("logger", logger.name)
        cleaned = redactor.fields(event)
        for reserved in _RESERVED & cleaned.keys():
            cleaned[f"{reserved}_"] = cleaned.pop(reserved)
        return {
            "timestamp": datetime.now(UTC),
            "level": level,
            "event": cleaned.pop("event", ""),
            "logger": cleaned.pop("logger"),
            **cleaned,
        }

    def write(self, line: bytes) -> None:
        """One line, whole. A reader that is gone is no reason to fail."""
        stream: Any = self.stream or sys.stderr
        with self._lock, contextlib.suppress(OSError, ValueError):
            if isinstance(stream, io.TextIOBase) and not hasattr(stream, "buffer"):
                stream.write(line.decode() + "\n")
            else:
                getattr(stream, "buffer", stream).write(line + b"\n")
            stream.flush()


_pipeline: Final = _Pipeline()
_processors: Final[list[Processor]] = [_pipeline]


class _Output:
    """What structlog calls the wrapped logger: where finished lines go."""

    def __init__(self, name: str = "evbatteryd", *_: object) -> None:
        self.name = name

    def write(self, line: bytes) -> None:
        _pipeline.write(line)

    debug = info = warning = error = critical = write


class Logger(structlog.BoundLoggerBase):
    """structlog's bound logger: ``log.bind(vehicle="zoe").warning("poll.failing")``."""

    def debug(self, event: str, **fields: object) -> None:
        if _pipeline.threshold <= 10:
            self._proxy_to_logger("debug", event, **fields)

    def info(self, event: str, **fields: object) -> None:
        if _pipeline.threshold <= 20:
            self._proxy_to_logger("info", event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        if _pipeline.threshold <= 30:
            self._proxy_to_logger("warning", event, **fields)

    def error(self, event: str, **fields: object) -> None:
        self._proxy_to_logger("error", event, **fields)

    def exception(self, event: str, **fields: object) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._proxy_to_logger("error", event, **{"exc_info": True, **fields})

    def critical(self, event: str, **fields: object) -> None:
        self._proxy_to_logger("critical", event, **fields)


def get_logger(name: str) -> Logger:
    """A logger whose lines carry ``logger=name``. May be made before :func:`configure`, and kept."""
    return Logger(_Output(name), _processors, {})


class _Foreign(logging.Handler):
    """Takes the records of libraries that log by the standard library."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except Exception:
            message = str(record.msg)
        event: EventDict = {"event": message, "logger": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        if record.stack_info:
            event["stack"] = record.stack_info
        level = max(
            (name for name in LEVELS if LEVELS[name] <= record.levelno),
            key=LEVELS.__getitem__,
            default="debug",
        )
        _pipeline.write(_pipeline(_OUTPUT, level, event))


_OUTPUT: Final = _Output()
_foreign: Final = _Foreign()


def _uncaught(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, where)
    else:
        get_logger("evbatteryd").critical("uncaught", exc_info=error)


def configure(level: str, format: str, *, stream: TextIO | BinaryIO | None = None) -> None:  # noqa: A002
    """Set the log up: ``level`` of :data:`LEVELS`, ``format`` json, console or journal. May be repeated.

    Libraries that use the standard library's log go the same way, from WARNING on, and so do exceptions
    that nobody catches. ``stream`` is standard error if left out.
    """
    target = stream or sys.stderr
    colour = target.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    renderers: dict[str, Callable[[dict[str, Any]], bytes]] = {
        "json": _json,
        "console": _Console(colour=colour),
        "journal": _journal,
    }
    _pipeline.render = renderers[format]
    _pipeline.threshold = LEVELS[level]
    _pipeline.stream = stream
    structlog.configure(
        processors=_processors,
        wrapper_class=Logger,
        logger_factory=_Output,
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.removeHandler(_foreign)
    root.addHandler(_foreign)
    root.setLevel(max(LEVELS[level], logging.WARNING))
    sys.excepthook = _uncaught

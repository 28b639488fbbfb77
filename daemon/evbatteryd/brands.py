"""Brand profiles: read from ``config/brands/*.toml``, overridden by the operator, refused by name when wrong.

One file per make; its stem is the brand's key. Files that begin with an underscore are templates.
"""

from __future__ import annotations

import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from evbatteryd.domain.cadence import words
from evbatteryd.domain.commanding import Action
from evbatteryd.domain.profile import BrandProfile, CallLimit, Quirk
from evbatteryd.durations import parse_duration
from evbatteryd.problems import Misconfigured, Problem, did_you_mean

UNKNOWN: Final = "unknown"
"""Key of the profile for any make that no file names."""

_LONGEST: Final = timedelta(days=366)


def _duration(text: object) -> timedelta:
    try:
        span = parse_duration(text)
    except OverflowError:
        span = timedelta.max
    if not timedelta() < span <= _LONGEST:
        raise ValueError(f"{text!r} is not between 0 and a year")
    return span


def _quirk(text: object) -> Quirk:
    if text not in list(Quirk):
        raise ValueError(f"{text!r} is no quirk that evbatteryd knows")
    return Quirk(str(text))


def _action(text: object) -> Action:
    if text not in list(Action):
        raise ValueError(f"{text!r} is nothing that a car can be commanded")
    return Action(str(text))


def _make(make: str) -> str:
    if not _spelling(make):
        raise ValueError(f"{make!r} is no name of a make")
    return make


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Words = Annotated[str, Field(min_length=1)]


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Limit(TypedDict):
    calls: Annotated[int, Field(ge=1)]
    period: Duration


@with_config(ConfigDict(strict=True, extra="forbid"))
class _Figures(TypedDict, total=False):
    """What a brand's file or an operator's override may say. Which keys a file must have: _REQUIRED."""

    name: Words
    makes: list[Annotated[str, AfterValidator(_make)]]
    reports: Duration
    silence: Duration
    driving: Duration
    charging: Duration
    parked: Duration
    idle: Duration
    floor: Duration
    latency: Duration
    limit: _Limit
    soc_step_percent: Annotated[float, Field(gt=0, le=50, allow_inf_nan=False)]
    quirks: list[Annotated[Quirk, BeforeValidator(_quirk)]]
    actions: list[Annotated[Action, BeforeValidator(_action)]]
    start_stop_from_percent: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
    sources: dict[str, Words]


_CHECKED: Final = TypeAdapter(_Figures)
_KEYS: Final = tuple(_Figures.__annotations__)
_SOURCED: Final = tuple(key for key in _KEYS if key not in {"name", "makes", "sources"})
_OPTIONAL: Final = frozenset({"limit", "soc_step_percent", "quirks", "actions", "start_stop_from_percent"})
_REQUIRED: Final = tuple(key for key in _KEYS if key not in _OPTIONAL)
_FLOORED: Final = ("driving", "charging", "parked", "idle")

_WORDS: Final[Mapping[str, type[Action] | type[Quirk]]] = {"actions": Action, "quirks": Quirk}
"""Keys whose value is a list of words, and which."""

_HOW: Final = {
    "name": 'Write the brand as people read it, name = "Renault".',
    "makes": 'Write the makes as Smartcar spells them, makes = ["RENAULT"].',
    "limit": 'Write limit = { calls = 60, period = "1h" }, with at least one call.',
    "soc_step_percent": "Write percentage points, above 0 and at most 50; most brands have 1.",
    "quirks": 'Write a list of quirks, quirks = ["geofence"].',
    "actions": 'Write a list, actions = ["start", "stop", "limit"], or [] for cars that take no command.',
    "start_stop_from_percent": "Write a state of charge in percent, 0 to 100; most brands have none.",
    "sources": "Write a table [sources] that says in quotes where each figure comes from.",
}
_HOW_LONG: Final = 'Write a duration with its unit and in quotes, "15m" or "2h", at most a year.'


@dataclass(frozen=True, slots=True)
class _Place:
    """Where figures were read, so that a mistake in them can be named."""

    file: str
    prefix: str = ""

    def problem(self, key: str, what: str, mend: str) -> Problem:
        dotted = ".".join(part for part in (self.prefix, key) if part)
        return Problem(file=self.file, key=dotted, what=what, mend=mend)


@dataclass(frozen=True, slots=True)
class _Brand:
    """One brand while it is being checked: the shipped figures and what the operator says instead."""

    key: str
    shipped: _Figures
    shipped_at: _Place
    override: _Figures
    override_at: _Place

    @property
    def figures(self) -> _Figures:
        return {**self.shipped, **self.override}

    def at(self, *keys: str) -> tuple[_Place, str]:
        """Which of ``keys`` to blame, and where it stands: the operator's, if one of them is."""
        for key in keys:
            if key in self.override:
                return self.override_at, key
        return self.shipped_at, keys[0]


def brands_folder() -> Path:
    """Where the profiles are: inside the installed package, or ``config/brands`` of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "_data" / "config" / "brands"
    return installed if installed.is_dir() else package.parent.parent / "config" / "brands"


def load_profiles(
    overrides: Mapping[str, Mapping[str, object]] | None = None,
    *,
    folder: Path | None = None,
    file: str = "evbatteryd.toml",
) -> dict[str, BrandProfile]:
    """Every brand's profile by its key, with the operator's ``overrides`` (read from ``file``) applied.

    Raises :class:`Misconfigured` with every mistake of all files and overrides at once.
    """
    folder = folder or brands_folder()
    overrides = overrides or {}
    problems: list[Problem] = []
    brands: list[_Brand] = []
    paths = {path.stem: path for path in sorted(folder.glob("[!_]*.toml"))}
    if UNKNOWN not in paths:
        problems.append(
            _Place(str(folder)).problem(
                "",
                f"no {UNKNOWN}.toml, the profile for makes that no file names",
                "Install evbatteryd anew, or copy the file from its repository.",
            )
        )
    for key, path in paths.items():
        at = _Place(str(path))
        shipped = _read_file(path, at, problems)
        override_at = _Place(file, f"brands.{key}")
        override = _checked(overrides.get(key, {}), override_at, problems)
        brands.append(_Brand(key, shipped, at, override, override_at))
    problems.extend(
        _Place(file, f"brands.{key}").problem("", "no such brand", did_you_mean(key, paths))
        for key in overrides
        if key not in paths
    )
    for brand in brands:
        problems.extend(_impossible(brand))
    problems.extend(_claimed_twice(brands))
    if problems:
        raise Misconfigured(problems)
    return {brand.key: _profile(brand) for brand in brands}


def brand_of(make: str, profiles: Mapping[str, BrandProfile]) -> str:
    """Key of the profile for ``make`` in any spelling of case, spaces, hyphens and accents; or "unknown"."""
    spelling = _spelling(make)
    for key, profile in profiles.items():
        if any(_spelling(known) == spelling for known in profile.makes):
            return key
    return UNKNOWN


@lru_cache(maxsize=1024)
def _spelling(make: str) -> str:
    """``Citroën``, ``CITROEN``; ``Land Rover``, ``LAND_ROVER``: the letters and digits alone."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", make).casefold())
    return "".join(letter for letter in folded if letter.isalnum())


def _read_file(path: Path, at: _Place, problems: list[Problem]) -> _Figures:
    """The valid figures of a shipped file; its mistakes are added to ``problems``."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problems.append(at.problem("", f"cannot be read ({error.strerror})", "Make the file readable."))
        return {}
    except ValueError as error:  # both TOML's and UTF-8's errors
        problems.append(at.problem("", f"no TOML ({error})", "Mend the line it names."))
        return {}
    figures = _checked(raw, at, problems)
    problems.extend(
        at.problem(key, "missing", _HOW.get(key, _HOW_LONG)) for key in _REQUIRED if key not in raw
    )
    sources = figures.get("sources")
    if sources is not None:
        problems.extend(
            at.problem(f"sources.{key}", "missing", f"Say where the figure of {key!r} comes from.")
            for key in _SOURCED
            if key in raw and key not in sources
        )
    return figures


def _checked(raw: object, at: _Place, problems: list[Problem]) -> _Figures:
    """The keys of ``raw`` that are valid; what is wrong with the others is added to ``problems``."""
    try:
        figures = _CHECKED.validate_python(raw)
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems.extend(_problem(detail, at) for detail in details)
        wrong = {detail["loc"][0] for detail in details if detail["loc"]}
        if not isinstance(raw, Mapping) or not wrong:
            return {}
        figures = _CHECKED.validate_python({key: raw[key] for key in raw if key not in wrong})
    problems.extend(
        at.problem(f"sources.{key}", "unknown key", did_you_mean(key, _SOURCED))
        for key in figures.get("sources", {})
        if key not in _SOURCED
    )
    return figures


def _problem(detail: ErrorDetails, at: _Place) -> Problem:
    """One of pydantic's errors as a problem that says how to mend it."""
    loc = [str(part) for part in detail["loc"]]
    key = ".".join(loc)
    how = _HOW.get(loc[0], _HOW_LONG) if loc else 'Write a table with the keys to change, charging = "20m".'
    match detail["type"]:
        case "extra_forbidden":
            known = _KEYS if len(loc) == 1 else tuple(_Limit.__annotations__)
            return at.problem(key, "unknown key", did_you_mean(loc[-1], known))
        case "missing":
            return at.problem(key, "missing", how)
        case "value_error" if loc[0] in _WORDS:
            known = tuple(word.value for word in _WORDS[loc[0]])
            return at.problem(key, str(detail["ctx"]["error"]), did_you_mean(str(detail["input"]), known))
        case "value_error":
            return at.problem(key, str(detail["ctx"]["error"]), how)
        case "dict_type":
            return at.problem(key, "not a table", how)
        case _:
            message = detail["msg"]
            return at.problem(key, message[0].lower() + message[1:], how)


def _impossible(brand: _Brand) -> Iterator[Problem]:
    """Figures that are valid one by one and make no sense together."""
    figures: Mapping[str, Any] = brand.figures
    pairs = [("floor", key) for key in _FLOORED] + [("charging", "parked")]
    for shorter, longer in pairs:
        if shorter in figures and longer in figures and figures[shorter] > figures[longer]:
            at, key = brand.at(longer, shorter)
            yield at.problem(
                key,
                f"{shorter} ({words(figures[shorter])}) is longer than {longer} ({words(figures[longer])})",
                f"Make {shorter} at most as long as {longer}.",
            )
    if brand.key != UNKNOWN and figures.get("makes") == []:
        at, key = brand.at("makes")
        yield at.problem(key, "empty, so no car would ever have this profile", _HOW["makes"])


def _claimed_twice(brands: list[_Brand]) -> Iterator[Problem]:
    """Makes that two brands claim."""
    owners: dict[str, _Brand] = {}
    for brand in brands:
        for make in brand.figures.get("makes", ()):
            owner = owners.setdefault(_spelling(make), brand)
            if owner is brand:
                continue
            operators = "makes" in owner.override and "makes" not in brand.override
            blamed, other = (owner, brand) if operators else (brand, owner)
            at, key = blamed.at("makes")
            yield at.problem(
                key,
                f"{make!r} belongs to {other.key!r} too",
                "Keep the make in one brand and remove the other.",
            )


def _profile(brand: _Brand) -> BrandProfile:
    figures = brand.figures
    limit = figures.get("limit")
    here = {key: f"set in {brand.override_at.file}" for key in _SOURCED if key in brand.override}
    sources = {**brand.shipped["sources"], **here, **brand.override.get("sources", {})}
    return BrandProfile(
        brand=brand.key,
        name=figures["name"],
        makes=tuple(figures["makes"]),
        reports=figures["reports"],
        silence=figures["silence"],
        driving=figures["driving"],
        charging=figures["charging"],
        parked=figures["parked"],
        idle=figures["idle"],
        floor=figures["floor"],
        latency=figures["latency"],
        limit=None if limit is None else CallLimit(limit["calls"], limit["period"]),
        soc_step_percent=figures.get("soc_step_percent", 1.0),
        quirks=frozenset(figures.get("quirks", ())),
        actions=frozenset(figures["actions"]) if "actions" in figures else None,
        start_stop_from_percent=figures.get("start_stop_from_percent", 0.0),
        sources=tuple(sources.items()),
    )

"""The running daemon, operated from outside: a client of its API over the address it listens on.

It proves by the local key that it may. Every failure is one :class:`NotDone` in words an operator can use.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp
from pydantic import BaseModel, ConfigDict, ValidationError
from yarl import URL

from evbatteryd.domain.fleet import Trouble
from evbatteryd.domain.forecast import Binding, Standing
from evbatteryd.domain.freshness import Freshness
from evbatteryd.domain.vehicle import SLUG

QUICK: Final = timedelta(seconds=60)
"""For what the daemon can answer by itself, also while it is busy."""
ENDING: Final = timedelta(minutes=6)
"""For what it asks of Smartcar first, which may take 5 minutes."""
COMMANDED: Final = timedelta(seconds=90)
"""For a command, of which the daemon tells after 60 s what it knows."""
PAGE: Final = 500
"""Vehicles per call, the most that the daemon tells at once."""
_UNIX_HOST: Final = "localhost:9782"
"""What the daemon takes itself to be called when it is reached over a Unix socket."""


class NotDone(Exception):
    """What was asked for has not happened; the text says why and, if possible, what to do."""


class NoSuchThing(NotDone):
    """The daemon knows no vehicle, enrolment or invitation of that name."""


class _Told(BaseModel):
    """A document of the API. What we do not know of it is kept for whoever wants all of it."""

    model_config = ConfigDict(frozen=True, extra="allow")


class ToldVehicle(_Told):
    """A car as ``/api/vehicles`` tells it: percent, km; None is not known."""

    slug: str
    name: str
    make: str
    model: str | None
    year: int | None
    soc: float | None
    range_km: float | None
    charging: bool | None
    plugged_in: bool | None
    measured_at: datetime | None
    freshness: Freshness
    application: str
    invited: str | None
    permissions: tuple[str, ...]
    enrolled_at: datetime
    withdrawn_at: datetime | None
    last_outcome: str | None
    trouble: Trouble | None
    pushed_at: datetime | None
    next_poll: datetime | None
    calls_per_poll: int
    reason: str


class _Vehicles(_Told):
    now: datetime
    total: int
    vehicles: tuple[ToldVehicle, ...]


class Disconnected(_Told):
    """A consent that was ended."""

    vehicle: str
    erased: bool


class BegunEnrolment(_Told):
    """A trip through Connect that may begin."""

    id: int
    link: str
    callback: str
    """Where Connect sends the browser afterwards."""
    expires_at: datetime


class ArrivedVehicle(_Told):
    """A car of whoever consented."""

    slug: str
    name: str
    soc: float | None


class ToldEnrolment(_Told):
    """How such a trip stands. ``title``, ``what`` and ``then`` are words for the owner once it has ended."""

    id: int
    ending: str | None
    """``consented``, or the name of Connect's error; None: on its way."""
    title: str | None
    what: str | None
    then: str | None
    arrived: bool
    """The cars are enrolled."""
    vehicles: tuple[ArrivedVehicle, ...]

    @property
    def consented(self) -> bool:
        return self.ending == "consented"


class MadeInvitation(_Told):
    """An invitation. Its link is told once."""

    id: int
    name: str
    application: str
    link: str
    expires_at: datetime


class ToldForecast(_Told):
    """How the period of an application's plan will end, as ``/api/plan`` tells it. Calls of all its cars."""

    application: str
    calls_per_vehicle: int
    period: str
    pooled: bool
    renews_at: datetime
    vehicles: int
    """That are asked at all."""
    standings: dict[Standing, int]
    calls: int
    spent: int
    left: int
    expected: int
    even_per_day: float
    pace_per_day: float
    interval_s: int | None
    run_out: int
    first_out: datetime | None
    limited_by: Binding
    price: int | None
    other_calls_per_vehicle: int
    gain: float | None
    """In percentage points of the mean error of SoC."""
    advice: str


class ToldShare(_Told):
    """One car's part in it."""

    slug: str
    name: str
    application: str
    spent: int
    left: float
    calls_per_day: float
    interval_s: int | None
    standing: Standing
    price: int | None
    next_poll: datetime | None
    reason: str


class ToldPlan(_Told):
    """What the plans buy until they renew."""

    now: datetime
    applications: tuple[ToldForecast, ...]
    vehicles: tuple[ToldShare, ...] | None = None
    """None: not asked for."""


class ToldAnswer(_Told):
    """What a command was answered: also why it was refused."""

    outcome: str
    """One of :class:`~evbatteryd.domain.commanding.CommandOutcome`."""
    reason: str
    final: bool
    calls: int
    """What it has cost."""
    calls_left: int | None
    next_poll: datetime | None


_T = TypeVar("_T", bound=_Told)


class Operator:
    """One method for each call of the API. Each raises NotDone and nothing else of its own."""

    def __init__(self, session: aiohttp.ClientSession, origin: URL, called: str) -> None:
        self._session = session
        self._origin = origin
        self._called = called

    async def vehicles(self, *, withdrawn: bool = False) -> list[ToldVehicle]:
        """Every car; with ``withdrawn`` also those whose consent is gone."""
        told: dict[str, ToldVehicle] = {}
        query = {"limit": str(PAGE), "withdrawn": "1"} if withdrawn else {"limit": str(PAGE)}
        offset = 0
        while True:
            page = await self._get(_Vehicles, "vehicles", query={**query, "offset": str(offset)})
            told |= {vehicle.slug: vehicle for vehicle in page.vehicles}
            offset += PAGE
            if offset >= page.total:
                return list(told.values())

    async def now(self) -> datetime:
        """What time it is for the daemon: its clock need not be ours."""
        return (await self._get(_Vehicles, "vehicles", query={"limit": "1"})).now

    async def vehicle(self, slug: str) -> ToldVehicle:
        return await self._get(ToldVehicle, "vehicles", _slug(slug))

    async def rename(self, slug: str, *, name: str | None = None, new_slug: str | None = None) -> ToldVehicle:
        body = {"name": name, "slug": new_slug}
        return await self._post(ToldVehicle, "vehicles", _slug(slug), "rename", body=body)

    async def disconnect(self, slug: str, *, erase: bool = False) -> Disconnected:
        path = ("vehicles", _slug(slug), "disconnect")
        return await self._post(Disconnected, *path, body={"erase": erase}, within=ENDING)

    async def poll(self, slug: str) -> ToldAnswer:
        """Ask for the car at once. Refusals are answers, too."""
        path = ("vehicles", _slug(slug), "poll")
        return await self._ask(ToldAnswer, "POST", path, within=COMMANDED, refusals=True, json={})

    async def begin_enrolment(
        self, *, application: str | None = None, make: str | None = None, country: str | None = None
    ) -> BegunEnrolment:
        body = {"application": application, "make": make, "country": country}
        return await self._post(BegunEnrolment, "enrolments", body=body)

    async def enrolment(self, enrolment: int) -> ToldEnrolment:
        return await self._get(ToldEnrolment, "enrolments", str(enrolment))

    async def paste(self, address: str) -> ToldEnrolment:
        """Hand over the address at which a browser's trip through Connect ended."""
        return await self._post(ToldEnrolment, "enrolments", "paste", body={"address": address})

    async def invite(
        self, name: str, *, application: str | None = None, lasts: timedelta | None = None
    ) -> MadeInvitation:
        lasts_s = None if lasts is None else round(lasts.total_seconds())
        body = {"name": name, "application": application, "lasts_s": lasts_s}
        return await self._post(MadeInvitation, "invitations", body=body)

    async def plan(
        self, *, application: str | None = None, calls: int | None = None, vehicles: bool = False
    ) -> ToldPlan:
        """``calls``: per vehicle, the plan to compare with; ``vehicles``: each car's part, too."""
        query = {
            "application": application,
            "calls": None if calls is None else str(calls),
            "vehicles": "1" if vehicles else None,
        }
        return await self._get(
            ToldPlan, "plan", query={key: value for key, value in query.items() if value is not None}
        )

    async def _get(self, told: type[_T], *path: str, query: Mapping[str, str] | None = None) -> _T:
        return await self._ask(told, "GET", path, within=QUICK, params=query)

    async def _post(
        self, told: type[_T], *path: str, body: Mapping[str, object], within: timedelta = QUICK
    ) -> _T:
        given = {key: value for key, value in body.items() if value is not None}
        return await self._ask(told, "POST", path, within=within, json=given)

    async def _ask(
        self,
        told: type[_T],
        method: str,
        path: tuple[str, ...],
        *,
        within: timedelta,
        refusals: bool = False,
        **request: Any,
    ) -> _T:
        """``refusals``: a refusal may be told by the same document as what was done."""
        url = self._origin.joinpath("api", *path)
        timeout = aiohttp.ClientTimeout(total=within.total_seconds())
        try:
            async with self._session.request(
                method, url, timeout=timeout, allow_redirects=False, **request
            ) as response:
                status, document = response.status, await response.json()
        except aiohttp.ClientConnectorError as error:
            raise NotDone(self._unreached(error.os_error)) from error
        except TimeoutError as error:
            raise NotDone(
                f"evbatteryd at {self._called} did not answer within {within.total_seconds():.0f} s. "
                f"Whether it was done is not known: see `evbatteryd vehicles`"
            ) from error
        except (aiohttp.ContentTypeError, ValueError) as error:
            raise self._odd() from error
        except aiohttp.ClientError as error:
            raise NotDone(
                f"evbatteryd at {self._called} went away before it answered. "
                f"Whether it was done is not known: see `evbatteryd vehicles`"
            ) from error
        is_told = refusals and isinstance(document, Mapping) and "outcome" in document
        if not 200 <= status < 300 and not is_told:
            raise self._refused(status, document)
        try:
            return told.model_validate(document)
        except ValidationError:
            raise self._odd() from None  # The error would repeat the answer, which may hold a link.

    def _unreached(self, error: OSError) -> str:
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"this user may not use {self._called}: run it as the user evbatteryd or with sudo"
        return f"evbatteryd is not running at {self._called}: start it (systemctl start evbatteryd)"

    def _refused(self, status: int, document: object) -> NotDone:
        words = document.get("error") if isinstance(document, Mapping) else None
        if status == 401:
            return NotDone(
                f"the evbatteryd at {self._called} does not take this key: it has another database than the "
                f"one in this configuration"
            )
        if not isinstance(words, str) or not words:
            return self._odd()
        return NoSuchThing(words) if status == 404 else NotDone(words)

    def _odd(self) -> NotDone:
        return NotDone(
            f"what answered at {self._called} does not speak as this evbatteryd does: it is another program, "
            f"or another version. Restart evbatteryd after an upgrade"
        )


_LISTENING: Final = "0A"
"""Of the states in ``/proc/net/tcp``: https://docs.kernel.org/networking/proc_net_tcp.html."""


def listeners(port: int, tables: tuple[str, ...] = ("/proc/net/tcp", "/proc/net/tcp6")) -> set[int]:
    """The users (uids) whose programs listen on this TCP port, as Linux tells; empty where nobody tells."""
    found = set()
    for table in tables:
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    found.add(int(fields[7]))
    return found


def _must_be_of(owner: int, port: int | None, unix_path: Path | None) -> None:
    """Raises NotDone if another user's program waits where the daemon should: it must not get the key."""
    with contextlib.suppress(OSError):
        holders = {unix_path.stat().st_uid} if unix_path is not None else listeners(port or 0)
        if strangers := holders - {owner, 0}:
            raise NotDone(
                f"a program of user {min(strangers)} listens where evbatteryd should, but the key is that of "
                f"user {owner}, so it was not sent. Stop that program, or correct [http] listen"
            )


@asynccontextmanager
async def open_operator(
    *, host: str | None, port: int | None, unix_path: Path | None, key: str, owner: int | None = None
) -> AsyncIterator[Operator]:
    """The daemon that listens there. ``key``: the local key. Nothing is asked yet.

    ``owner``: the user (uid) that the daemon runs as. While it is down anybody on this machine may listen in
    its place: raises NotDone then, before the key is sent.
    """
    if owner is not None:
        _must_be_of(owner, port, unix_path)
    headers = {"Authorization": f"Bearer {key}"}
    connector: aiohttp.BaseConnector
    if unix_path is not None:
        called, origin = f"unix:{unix_path}", URL(f"http://{_UNIX_HOST}")
        connector = aiohttp.UnixConnector(path=str(unix_path))
    else:
        reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host or "", host or "")  # noqa: S104
        origin = URL.build(scheme="http", host=reached, port=port)
        called = f"{origin.host_subcomponent}:{port}"
        connector = aiohttp.TCPConnector()
        if reached in {"127.0.0.1", "::1"}:
            # Links that the daemon makes begin with the name it is called by. A browser keeps its cookies by
            # that name, and Connect leads back to localhost.
            headers["Host"] = f"localhost:{port}"
    # Not the environment's proxies: the key is for this machine's daemon alone.
    async with aiohttp.ClientSession(connector=connector, headers=headers, trust_env=False) as session:
        yield Operator(session, origin, called)


def _slug(text: str) -> str:
    """One part of an address. Raises NoSuchThing for what can be no vehicle's."""
    if not SLUG.fullmatch(text):
        raise NoSuchThing("no vehicle has this name")
    return text

"""Every seam of the daemon, on one page: small protocols that the flow needs and the rim provides."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol, Self

from evbatteryd.domain.commanding import Command, CommandAnswer, CommandKind
from evbatteryd.domain.enrolment import Ending, Enrolment, EnrolmentId, Invitation, InvitationId
from evbatteryd.domain.fleet import Car, Schedule
from evbatteryd.domain.forecast import CarForecast, Forecast
from evbatteryd.domain.hinting import HintAnswer
from evbatteryd.domain.ledger import Bucket, Budget, Share
from evbatteryd.domain.profile import BrandProfile
from evbatteryd.domain.reading import Observation, Origin, Reading, Rejected
from evbatteryd.domain.vehicle import Consent, Vehicle, VehicleId


class Clock(Protocol):
    """The one clock that every part is handed. In the demo it runs faster than the wall's."""

    @property
    def speed(self) -> float:
        """How many seconds of this clock pass in one real second."""
        ...

    def now(self) -> datetime:
        """Aware, UTC."""
        ...

    async def sleep(self, span: timedelta) -> None:
        """Until ``span`` has passed on this clock."""
        ...

    def real(self, span: timedelta) -> float:
        """``span`` of this clock in real seconds: for libraries that time by the wall."""
        ...


class Ticket(Protocol):
    """Leave to ask. A source spends one before each request; that is durable before it returns."""

    async def spend(self) -> None:
        """Reserve one request. Waits for the application's bucket.

        Raises :class:`BudgetSpent` when the plan has none left, :class:`StoreError` when it cannot be noted.
        """
        ...


class Source(Protocol):
    """One telematics API, for one application. Raises SourceError and nothing else of its own."""

    async def fetch(self, vehicle: Vehicle, profile: BrandProfile, ticket: Ticket) -> Observation:
        """Ask for everything worth knowing of this vehicle."""
        ...

    def consents(self, ticket: Ticket) -> AsyncIterator[Consent]:
        """Every vehicle that users of this application consent to, page by page."""
        ...

    async def consent_stands(self, consent: Consent, ticket: Ticket) -> bool:
        """Whether this one consent is still listed: asked before a car is taken for withdrawn."""
        ...

    async def consents_of(self, user_ref: str, ticket: Ticket) -> list[Consent]:
        """Every vehicle that this one user consents to."""
        ...

    async def revoke(self, consent: Consent, ticket: Ticket) -> None:
        """End the consent at the source. Nothing happens if it is over already."""
        ...

    async def command(self, vehicle: Vehicle, command: Command, ticket: Ticket) -> bool:
        """Have the car carry out a command that asks something of it. Whether it did; False: not known yet.

        Raises :class:`~evbatteryd.domain.errors.CommandFailed` if the car or its maker's cloud tried and
        failed, :class:`~evbatteryd.domain.errors.NotNow` if the car's state forbids it.
        """
        ...

    async def subscribe(self, consent: Consent, webhook_id: str, ticket: Ticket) -> None:
        """Have the source push this vehicle's data to a webhook. Nothing happens if it does so already."""
        ...


class Sink(Protocol):
    """One place readings go to. Raises SinkError and nothing else of its own."""

    @property
    def name(self) -> str:
        """Key of its cursor in the journal."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the other side is there."""
        ...

    @property
    def connection(self) -> int:
        """Number of the present or last connection to it: 0 before the first."""
        ...

    async def reachable(self) -> None:
        """Until the other side is there."""
        ...

    async def settle(self) -> bool:
        """Whether all that was taken over the present connection is known to have been passed on.

        Who takes something may still lose it with its own life. False: the connection is gone.
        """
        ...

    async def publish(self, readings: Sequence[Reading], over: int | None = None) -> None:
        """Tell these readings of one vehicle, oldest first. Returns when all of them were taken.

        ``over``: the connection to tell them over, or not at all; None: whichever there is. Raises
        :class:`SinkError` when it is not known whether all were taken, or some were refused; its ``taken`` is
        the position of the last one that is known to be.
        """
        ...

    def touch(self, vehicle_id: VehicleId) -> None:
        """A car's confirmation, freshness or consent changed without a reading, or its readings are told:
        tell how it stands when you can."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """One request, noted before it is sent. After a crash it counts as spent."""

    application: str
    vehicle_id: VehicleId | None
    """None: a request that no vehicle pays for (the list of connections)."""
    window_start: datetime
    bucket: Bucket
    """The application's bucket after this request."""
    at: datetime
    due: datetime | None = None
    """If given, the vehicle falls due then should the answer never be noted: no burst after a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What the ledger knows of one application in one period."""

    spent: Mapping[VehicleId, int]
    overhead: int
    """Requests that no vehicle pays for."""
    bucket: Bucket | None
    """As last noted; None before the first request ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """Everything that one answer changes, committed together or not at all."""

    car: Car
    """As it is after the answer. Its ``reading_id`` is set by the store when there is news."""
    news: bool
    """Whether the state holds something new: then a reading is written to the journal."""
    at: datetime
    """When the answer had arrived (ours)."""
    origin: Origin = Origin.POLL
    rejected: tuple[Rejected, ...] = ()
    excerpt: str | None = None
    """Redacted start of an answer that could not be read."""
    event_id: str | None = None
    """Of the webhook delivery that brought it; noted in the same commit."""


@dataclass(frozen=True, slots=True)
class Published:
    """What a sink may have left with somebody who keeps it, of one vehicle under one slug."""

    place: str
    """Where: the base of its topics, and of those of Home Assistant's discovery."""
    slug: str
    leaves: frozenset[str]
    """Names below it that may hold something."""
    gone: frozenset[str] = frozenset()
    """Names that were emptied; whoever forgot that shows them again."""
    digest: bytes = b""
    """Of what is held there, if that is known for certain; empty: it is not."""


class Manifest(Protocol):
    """What was published and may still be shown, across starts. Raises StoreError and nothing else."""

    async def published(self) -> list[Published]:
        """Everything that was noted."""
        ...

    async def note_published(self, notes: Iterable[Published]) -> None:
        """Note these in place of what was noted under the same place and slug. Durable when it returns.

        Those with neither ``leaves`` nor ``gone`` are forgotten.
        """
        ...

    async def mark(self, sink: str) -> str | None:
        """What the other side was last given to be known again by, and the digests to be believed; once.

        It is forgotten by being asked for: whoever ends in a crash finds none.
        """
        ...

    async def keep_mark(self, sink: str, mark: str) -> None:
        """Keep it for the next start, which may believe every digest then."""
        ...


class Store(Protocol):
    """Where everything is kept that must survive. Every method raises StoreError and nothing else of its own.

    A method that writes returns only when what it wrote is durable.
    """

    async def cars(self) -> list[Car]:
        """Every vehicle ever enrolled, with its state and schedule, by id."""
        ...

    async def enrol(
        self,
        consent: Consent,
        *,
        slug: str,
        name: str,
        brand: str,
        schedule: Schedule,
        at: datetime,
        invited: str | None = None,
    ) -> Car:
        """A new vehicle. The id is the store's; ``invited``: the name on the invitation by which it came."""
        ...

    async def update(self, car: Car) -> None:
        """Slug, name, consent, schedule and trouble as in ``car``; its state and readings stay."""
        ...

    async def erase(self, vehicle_id: VehicleId) -> bool:
        """Delete every reading and rejected value of a vehicle, and its state. What it has spent stays.

        False: what was deleted can still be found in a file, because another program reads it.
        """
        ...

    async def recent_events(self, since: datetime, limit: int) -> list[str]:
        """Ids of the newest webhook deliveries that were committed since then, oldest first."""
        ...

    async def forget_events(self, before: datetime) -> None:
        """Delete the notes of deliveries that were committed before that."""
        ...

    async def record(self, polled: Polled) -> tuple[Car, Reading | None]:
        """Commit an answer; return the car with its new ``reading_id``, and the reading if there was news."""
        ...

    async def reserve(self, reservation: Reservation) -> None:
        """Note a request before it is sent."""
        ...

    async def lore(self, application: str) -> bytes | None:
        """What the polling policy has learnt across this application's cars; None: nothing yet."""
        ...

    async def keep_lore(self, application: str, lore: bytes) -> None:
        """Keep it in place of what was kept before."""
        ...

    async def keep_bucket(self, application: str, bucket: Bucket) -> None:
        """The application's bucket, when it changed without a request."""
        ...

    async def account(self, application: str, window_start: datetime) -> Account:
        """What was spent in the period that starts at ``window_start``."""
        ...

    async def correct(
        self, application: str, vehicle_id: VehicleId, window_start: datetime, calls: int
    ) -> None:
        """Set a vehicle's spent calls: the source says it counts otherwise (430)."""
        ...

    async def cursor(self, sink: str) -> int:
        """Position up to which ``sink`` has taken everything; 0 for a new one."""
        ...

    async def owed(self, sink: str, after: int, limit: int) -> list[tuple[int, VehicleId]]:
        """Positions after ``after`` that ``sink`` has not taken, and whose they are, oldest first.

        Walk them by handing over the last position; an empty list ends the walk.
        """
        ...

    async def readings(self, positions: Iterable[int]) -> list[Reading]:
        """The readings of the journal at these positions, oldest first; those that are gone are left out."""
        ...

    async def delivered(
        self, sink: str, positions: Mapping[VehicleId, int], cursor: int | None = None
    ) -> None:
        """``sink`` has taken everything of these vehicles up to and including these positions.

        ``cursor``: and everything of all of them up to and including that. Neither ever goes back.
        """
        ...

    async def position_before(self, instant: datetime) -> int:
        """Position of the last reading fetched before ``instant``, nearly: readings are committed in the
        order of their answers, give or take what an answer waits for its commit. 0: there is none."""
        ...

    @property
    def head(self) -> int:
        """Position of the newest committed reading."""
        ...

    async def history(
        self, vehicle_id: VehicleId, since: datetime, until: datetime, limit: int
    ) -> list[Reading]:
        """Readings of one vehicle measured in [since, until), oldest first."""
        ...

    async def rejections(self, vehicle_id: VehicleId) -> list[Rejected]:
        """The last values of this vehicle that could not be, newest first."""
        ...

    async def prune(self, before: datetime) -> int:
        """Delete readings fetched before that and taken by every sink; return how many."""
        ...


class EnrolmentStore(Protocol):
    """Where consents on their way are kept. Raises StoreError and nothing else of its own.

    A method that writes returns only when what it wrote is durable. Digests are SHA-256.
    """

    async def invite(
        self, *, name: str, application: str, token: bytes, created_at: datetime, expires_at: datetime
    ) -> Invitation:
        """A new invitation; ``token`` is the digest of what its link holds."""
        ...

    async def invitation(self, token: bytes) -> Invitation | None:
        """The invitation with this digest."""
        ...

    async def invitations(self, limit: int) -> list[Invitation]:
        """The newest ones first."""
        ...

    async def revoke_invitation(self, invitation: InvitationId, at: datetime) -> Invitation | None:
        """Nobody may use it any more; None if there is none. One that was used stays as it is."""
        ...

    async def begin(
        self,
        *,
        application: str,
        state: bytes,
        browser: bytes | None,
        invitation: InvitationId | None,
        begun_at: datetime,
        expires_at: datetime,
    ) -> Enrolment:
        """Somebody sets out; ``state`` is the digest of the state that comes back."""
        ...

    async def enrolment(self, state: bytes) -> Enrolment | None:
        """The enrolment with this digest."""
        ...

    async def enrolment_by_id(self, enrolment: EnrolmentId) -> Enrolment | None: ...

    async def end(
        self, enrolment: EnrolmentId, *, ending: Ending, user_ref: str | None, at: datetime
    ) -> Enrolment | None:
        """Note how it ended, and a consent's invitation as used, if neither has happened yet.

        All at once, so that of two answers at the same time one alone counts. None: it is too late. An
        invitation that is no longer open at ``at`` keeps a consent from being noted.
        """
        ...

    async def awaited(self) -> list[Enrolment]:
        """Those that ended with a consent and whose cars have not been enrolled yet, oldest first."""
        ...

    async def arrived(self, enrolment: EnrolmentId, at: datetime) -> None:
        """The cars of this consent are enrolled."""
        ...

    async def forget_enrolments(self, before: datetime) -> None:
        """Delete enrolments and invitations that expired before that."""
        ...


class CannotChange(Exception):
    """What somebody wants of a car cannot be; the text says why and how to mend it. Nothing was changed."""


class Steward(Protocol):
    """What an operator may do to a car."""

    async def rename(self, vehicle_id: VehicleId, *, name: str | None, slug: str | None) -> Car:
        """Another display name, another slug, or both. Raises CannotChange."""
        ...

    async def disconnect(self, vehicle_id: VehicleId, *, erase: bool) -> Car:
        """End the consent at the source, stop asking, clear what is published; with ``erase`` its history.

        Raises CannotChange if the source did not end it: then the car is as it was.
        """
        ...


class Hints(Protocol):
    """Who takes what a wall box or an automation knows of a car. It costs no call."""

    async def told(self, slug: str, event: str, origin: str) -> HintAnswer:
        """``event``: the name of a :class:`~evbatteryd.domain.policy.outlook.Hint`; ``origin``: its way here.

        Raises nothing: whatever cannot be taken is refused, with the reason.
        """
        ...


class Commands(Protocol):
    """Who has commands carried out. They cost calls."""

    def give(self, slug: str, kind: CommandKind, text: str, origin: str) -> AsyncIterable[CommandAnswer]:
        """Have a car do what ``text`` says; ``origin``: its way here. One answer or several, the last of
        which is ``final``.

        Whoever commands what is being done already joins it: they are given the very object of the one
        before, and all its answers. Raises nothing: whatever cannot be done is refused, with the reason.
        Whoever stops listening stops nothing.
        """
        ...

    def possible(self, car: Car) -> frozenset[CommandKind]:
        """What this car can be commanded at all, as far as is known."""
        ...


class Ledger(Protocol):
    """One application's calls, as they stand."""

    @property
    def budget(self) -> Budget: ...

    @property
    def tokens(self) -> float:
        """Requests that the bucket would let pass at once."""
        ...

    def share(self, vehicle_id: VehicleId | None) -> Share:
        """What this car may have; None: of the application's period and cars alone."""
        ...

    def spent(self, vehicle_id: VehicleId) -> int:
        """Calls of this car in the present period."""
        ...


class Forecasts(Protocol):
    """How the plans' periods will end. Walks the fleet in slices."""

    @property
    def applications(self) -> Collection[str]: ...

    async def forecast(self, application: str, other_calls: int | None = None) -> Forecast:
        """Of one application; ``other_calls``: the plan to compare with, twice the calls unless given."""
        ...

    def cars(self, forecast: Forecast) -> AsyncIterator[list[tuple[Car, CarForecast]]]:
        """Its cars' parts in it, some at a time."""
        ...


class Log(Protocol):
    """Where events are told: a name, and what goes with it. structlog's bound loggers are such."""

    def bind(self, **fields: object) -> Self: ...
    def debug(self, event: str, **fields: object) -> None: ...
    def info(self, event: str, **fields: object) -> None: ...
    def warning(self, event: str, **fields: object) -> None: ...
    def error(self, event: str, **fields: object) -> None: ...
    def exception(self, event: str, **fields: object) -> None: ...


class Tally(Protocol):
    """Counts what happens. Never fails, never blocks."""

    def polled(self, make: str, outcome: str, took: timedelta) -> None: ...
    def lag(self, span: timedelta) -> None:
        """How long after it fell due a poll was begun."""
        ...

    def called(self, application: str) -> None: ...
    def webhook(self, event: str, outcome: str) -> None:
        """A delivery came, and this became of it."""
        ...

    def hint(self, event: str, outcome: str) -> None:
        """A wall box or an automation told this of a car, and this became of it."""
        ...

    def command(self, command: str, outcome: str) -> None:
        """A command came, and this became of it."""
        ...

    def rejected(self, make: str, signal: str) -> None: ...
    def budget(self, application: str, remaining: int) -> None: ...
    def bucket(self, application: str, level: float) -> None: ...
    def forecast(self, forecast: Forecast) -> None:
        """How an application's period will end."""
        ...

    def outbox(self, sink: str, readings: int) -> None:
        """Readings that a sink has not taken yet."""
        ...

    def given_up(self, sink: str, reason: str, readings: int) -> None:
        """Readings that a sink will never be offered again, untaken."""
        ...

    def in_flight(self, polls: int) -> None: ...
    def connected(self, up: bool) -> None: ...
    def published(self, messages: int) -> None: ...

"""Cars and fleets to look at, and the parts that the web acts through, as they behave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from evbatteryd.domain.commanding import CommandAnswer, CommandKind, CommandOutcome
from evbatteryd.domain.enrolment import (
    Ending,
    Enrolment,
    EnrolmentId,
    Invitation,
    InvitationId,
    InvitationState,
    invitation_state,
)
from evbatteryd.domain.errors import StoreError
from evbatteryd.domain.fleet import Car, Fleet, Schedule, Trouble
from evbatteryd.domain.hinting import HintAnswer, HintOutcome
from evbatteryd.domain.policy.outlook import Estimate, Trend
from evbatteryd.domain.ports import CannotChange, Clock
from evbatteryd.domain.profile import Activity, BrandProfile
from evbatteryd.domain.reading import BatteryState, Measurement, Signal, Value
from evbatteryd.domain.vehicle import SLUG, Consent, Vehicle, VehicleId
from evbatteryd.domain.webhook import WebhookAnswer
from tests.fakes import START

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

PROFILE = BrandProfile(
    brand="example",
    name="Example",
    makes=("EXAMPLE",),
    reports=10 * MINUTE,
    silence=timedelta(days=4),
    driving=15 * MINUTE,
    charging=20 * MINUTE,
    parked=2 * HOUR,
    idle=6 * HOUR,
    floor=5 * MINUTE,
    latency=timedelta(seconds=8),
)


def state(
    values: Mapping[Signal, Value], *, measured_at: datetime | None = START, fetched_at: datetime = START
) -> BatteryState:
    return BatteryState(
        {signal: Measurement(signal, value, measured_at, fetched_at) for signal, value in values.items()}
    )


def car(
    number: int = 1,
    *,
    slug: str | None = None,
    name: str | None = None,
    make: str = "EXAMPLE",
    model: str | None = "One",
    values: Mapping[Signal, Value] | None = None,
    measured_at: datetime | None = START,
    fetched_at: datetime = START,
    activity: Activity = Activity.PARKED,
    due: datetime | None = START + HOUR,
    reason: str = "parked; Example every 2 h",
    trouble: Trouble | None = None,
    withdrawn_at: datetime | None = None,
    pushed_at: datetime | None = None,
    application: str = "home",
    user_ref: str | None = None,
    invited: str | None = None,
    permissions: frozenset[str] = frozenset(),
    trend: Trend | None = None,
) -> Car:
    consent = Consent(
        application=application,
        connection_id=f"connection-{number}",
        vehicle_ref=f"vehicle-{number}",
        user_ref=user_ref or f"user-{number}",
        make=make,
        model=model,
        year=2024,
        permissions=permissions,
    )
    vehicle = Vehicle(
        id=VehicleId(number),
        slug=slug or f"car_{number}",
        name=f"Car {number}" if name is None else name,
        brand="example",
        consent=consent,
        enrolled_at=START,
        withdrawn_at=withdrawn_at,
        invited=invited,
    )
    return Car(
        vehicle=vehicle,
        schedule=Schedule(due=due, reason=reason, outcome="new", activity=activity, pushed_at=pushed_at),
        state=state(
            {Signal.SOC: 57.0} if values is None else values, measured_at=measured_at, fetched_at=fetched_at
        ),
        trouble=trouble,
        reading_id=f"reading-{number}",
        trend=trend,
    )


def rising(
    percent_per_hour: float,
    *,
    soc: float = 57.0,
    to: float = 80.0,
    since: datetime = START,
    until: datetime = START + 4 * HOUR,
) -> Trend:
    return Trend(soc, since, percent_per_hour, to, until)


def estimate(car: Car, now: datetime) -> Estimate | None:
    """As the policy does, but for the band: from a point below, or what was measured, to two above."""
    percent = None if car.trend is None else car.trend.at(now)
    if car.trend is None or percent is None:
        return None
    low, high = max(percent - 1, car.trend.soc_percent), min(percent + 2, 100.0)
    return Estimate(percent, low, high, car.trend.until)


def fleet(*cars: Car) -> Fleet:
    built = Fleet({"example": PROFILE})
    for one in cars:
        built.put(one)
    return built


class MemoryEnrolments:
    """An EnrolmentStore without a disk. ``broken``: it cannot be written, nor read."""

    def __init__(self) -> None:
        self.broken = False
        self._invitations: dict[InvitationId, Invitation] = {}
        self._tokens: dict[bytes, InvitationId] = {}
        self._enrolments: dict[EnrolmentId, Enrolment] = {}
        self._states: dict[bytes, EnrolmentId] = {}

    def _works(self) -> None:
        if self.broken:
            raise StoreError("disk full")

    async def invite(
        self, *, name: str, application: str, token: bytes, created_at: datetime, expires_at: datetime
    ) -> Invitation:
        self._works()
        made = Invitation(
            id=InvitationId(len(self._invitations) + 1),
            name=name,
            application=application,
            created_at=created_at,
            expires_at=expires_at,
        )
        self._invitations[made.id] = made
        self._tokens[token] = made.id
        return made

    async def invitation(self, token: bytes) -> Invitation | None:
        self._works()
        return self._invitations[self._tokens[token]] if token in self._tokens else None

    async def invitations(self, limit: int) -> list[Invitation]:
        self._works()
        return list(reversed(self._invitations.values()))[:limit]

    async def revoke_invitation(self, invitation: InvitationId, at: datetime) -> Invitation | None:
        self._works()
        found = self._invitations.get(invitation)
        if found is not None and found.used_at is None and found.revoked_at is None:
            found = self._invitations[invitation] = replace(found, revoked_at=at)
        return found

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
        self._works()
        begun = Enrolment(
            id=EnrolmentId(len(self._enrolments) + 1),
            application=application,
            begun_at=begun_at,
            expires_at=expires_at,
            browser=browser,
            invitation=invitation,
            invited=None if invitation is None else self._invitations[invitation].name,
        )
        self._enrolments[begun.id] = begun
        self._states[state] = begun.id
        return begun

    async def enrolment(self, state: bytes) -> Enrolment | None:
        self._works()
        return self._enrolments[self._states[state]] if state in self._states else None

    async def enrolment_by_id(self, enrolment: EnrolmentId) -> Enrolment | None:
        self._works()
        return self._enrolments.get(enrolment)

    async def end(
        self, enrolment: EnrolmentId, *, ending: Ending, user_ref: str | None, at: datetime
    ) -> Enrolment | None:
        self._works()
        found = self._enrolments[enrolment]
        if found.ended_at is not None:
            return None
        if ending is Ending.CONSENTED and found.invitation is not None:
            invitation = self._invitations[found.invitation]
            if invitation_state(invitation, at) is not InvitationState.OPEN:
                return None
            self._invitations[invitation.id] = replace(invitation, used_at=at)
        ended = replace(found, ended_at=at, ending=ending, user_ref=user_ref)
        self._enrolments[enrolment] = ended
        return ended

    async def awaited(self) -> list[Enrolment]:
        self._works()
        return [
            one
            for one in self._enrolments.values()
            if one.ending is Ending.CONSENTED and one.arrived_at is None
        ]

    async def arrived(self, enrolment: EnrolmentId, at: datetime) -> None:
        self._works()
        self._enrolments[enrolment] = replace(self._enrolments[enrolment], arrived_at=at)

    async def forget_enrolments(self, before: datetime) -> None:
        self._works()
        for key, one in list(self._enrolments.items()):
            if one.expires_at < before:
                del self._enrolments[key]


class FleetSteward:
    """A Steward that changes cars at once, in memory. ``unwilling``: why it changes nothing."""

    def __init__(self, fleet: Fleet, clock: Clock, change: Callable[[Car], None]) -> None:
        self.unwilling = ""
        self._fleet = fleet
        self._clock = clock
        self._change = change

    async def rename(self, vehicle_id: VehicleId, *, name: str | None, slug: str | None) -> Car:
        before = self._fleet[vehicle_id]
        vehicle = before.vehicle
        if slug is not None and slug != vehicle.slug:
            if not SLUG.fullmatch(slug):
                raise CannotChange(f"{slug!r} cannot be a slug")
            if slug in self._fleet.taken_slugs:
                raise CannotChange(f"another car has or had the slug {slug}")
            vehicle = replace(vehicle, slug=slug, former_slugs=(*vehicle.former_slugs, vehicle.slug))
        if name is not None:
            vehicle = replace(vehicle, name=name)
        return self._changed(replace(before, vehicle=vehicle))

    async def disconnect(self, vehicle_id: VehicleId, *, erase: bool) -> Car:
        before = self._fleet[vehicle_id]
        after = replace(before, vehicle=replace(before.vehicle, withdrawn_at=self._clock.now()))
        return self._changed(replace(after, state=BatteryState(), reading_id=None) if erase else after)

    def _changed(self, car: Car) -> Car:
        if self.unwilling:
            raise CannotChange(self.unwilling)
        self._change(car)
        return car


@dataclass(frozen=True)
class Delivered:
    """What a :class:`RememberingReceiver` was given."""

    body: bytes
    signature: str | None
    application: str | None


class RememberingReceiver:
    """A WebhookReceiver that remembers, and answers what a test says. ``gate``: it answers no sooner."""

    def __init__(self) -> None:
        self.delivered: list[Delivered] = []
        self.refusals: list[str] = []
        self.answer = WebhookAnswer(200, {"status": "taken"})
        self.gate = asyncio.Event()
        self.gate.set()

    async def receive(self, body: bytes, signature: str | None, application: str | None) -> WebhookAnswer:
        self.delivered.append(Delivered(body, signature, application))
        await self.gate.wait()
        return self.answer

    def refused(self, outcome: str) -> None:
        self.refusals.append(outcome)


class RememberingCommands:
    """Commands that remember, and answer one after the other what a test says."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, CommandKind, str, str]] = []
        self.answers = [command_answer(CommandOutcome.DONE)]
        self.endless = False
        """No answer comes after these."""

    async def give(
        self, slug: str, kind: CommandKind, text: str, origin: str
    ) -> AsyncIterator[CommandAnswer]:
        self.heard.append((slug, kind, text, origin))
        for answer in self.answers:
            yield answer
        if self.endless:
            await asyncio.Event().wait()

    def possible(self, car: Car) -> frozenset[CommandKind]:
        return frozenset(CommandKind)


def command_answer(outcome: CommandOutcome, **fields: object) -> CommandAnswer:
    usual = {
        "command": CommandKind.POLL,
        "value": None,
        "reason": "a new reading: 63 % measured 2 min ago",
        "final": True,
        "calls": 1,
        "calls_left": 36,
        "next_poll": START + 3 * MINUTE,
        "reading_id": "r-1",
    }
    return CommandAnswer(outcome=outcome, **(usual | fields))


class RememberingHints:
    """Hints that remember, and answer what a test says."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []
        self.answer = HintAnswer(
            event="plugged_in", outcome=HintOutcome.TAKEN, reason="asked soon", next_poll=START + 3 * MINUTE
        )

    async def told(self, slug: str, event: str, origin: str) -> HintAnswer:
        self.heard.append((slug, event, origin))
        return self.answer

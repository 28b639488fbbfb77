"""Consents on their way: who was invited, who set out for Smartcar's Connect, and how that ended.

Tokens and states are secrets of those who hold them: only their digests are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, NewType

EnrolmentId = NewType("EnrolmentId", int)
InvitationId = NewType("InvitationId", int)

PERMISSIONS: Final = ("read_vehicle_info", "read_battery", "read_charge", "read_odometer")
"""What owners are asked for unless the operator says otherwise. Neither VIN, nor owner, nor location."""

ENROLMENT_LASTS = timedelta(hours=1)
"""From setting out until the answer is refused: some brands send their owners through a portal and back."""
INVITATION_LASTS = timedelta(days=7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """Leave for somebody else to enrol cars, once."""

    id: InvitationId
    name: str
    """Whom it is for, as the operator calls them. Shown to them and beside their cars."""
    application: str
    """The name of the ``[smartcar.NAME]`` table."""
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    """When somebody consented by it."""
    revoked_at: datetime | None = None


class InvitationState(StrEnum):
    """What has become of an invitation; only an open one can be used."""

    OPEN = "open"
    USED = "used"
    EXPIRED = "expired"
    REVOKED = "revoked"


def invitation_state(invitation: Invitation, now: datetime) -> InvitationState:
    if invitation.used_at is not None:
        return InvitationState.USED
    if invitation.revoked_at is not None:
        return InvitationState.REVOKED
    return InvitationState.EXPIRED if now >= invitation.expires_at else InvitationState.OPEN


class Ending(StrEnum):
    """How Connect ended. The value is the ``error`` of its answer, except for the first and the last.

    https://smartcar.com/docs/errors/connect-errors
    """

    CONSENTED = "consented"
    DENIED = "access_denied"
    NO_VEHICLES = "no_vehicles"
    INCOMPATIBLE = "vehicle_incompatible"
    SUBSCRIPTION = "invalid_subscription"
    CONFIGURATION = "configuration_error"
    SERVER = "server_error"
    OTHER = "other"
    """An error that we do not know (yet)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """One trip through Connect."""

    id: EnrolmentId
    application: str
    begun_at: datetime
    expires_at: datetime
    browser: bytes | None
    """Digest of the cookie of the browser that set out; None: begun in a terminal, any bearer may end it."""
    invitation: InvitationId | None = None
    invited: str | None = None
    """The name on that invitation."""
    ended_at: datetime | None = None
    ending: Ending | None = None
    user_ref: str | None = None
    """The source's id of the user who consented. Personal: never shown."""
    arrived_at: datetime | None = None
    """When the cars of that user were enrolled."""


class Refusal(StrEnum):
    """Why an answer of Connect is not accepted. Nothing is changed then."""

    UNKNOWN = "unknown"
    """Nobody set out with this state: forged, or forgotten long since."""
    REPLAYED = "replayed"
    EXPIRED = "expired"
    OTHER_BROWSER = "other_browser"
    INVITATION = "invitation"
    """It was begun by an invitation that has been used, revoked or has expired since."""
    UNREADABLE = "unreadable"
    """It holds neither a user nor an error, or not a state."""


def refusal(
    enrolment: Enrolment | None, browser: bytes | None, *, bearer: bool, now: datetime
) -> Refusal | None:
    """Why the answer to this enrolment is not accepted; None if it is.

    ``browser``: digest of the cookie that came with it. ``bearer``: it came by a way that proves who brings
    it (the operator pasted it, or a terminal's enrolment ended in the operator's browser).
    """
    if enrolment is None:
        return Refusal.UNKNOWN
    if enrolment.ended_at is not None:
        return Refusal.REPLAYED
    if now >= enrolment.expires_at:
        return Refusal.EXPIRED
    if bearer or (enrolment.browser is not None and enrolment.browser == browser):
        return None
    return Refusal.OTHER_BROWSER

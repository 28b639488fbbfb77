"""What a webhook delivery says, read and known to be genuine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from evbatteryd.domain.errors import SourceError
from evbatteryd.domain.reading import Observation, Signal


class Event(StrEnum):
    """Kinds of deliveries, as they are counted."""

    VERIFY = "verify"
    STATE = "vehicle_state"
    ERROR = "vehicle_error"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class ToldError:
    """One error of a delivery."""

    error: SourceError
    """What it would have been as the answer to a poll."""
    resolved: bool
    """It is over."""
    signals: frozenset[Signal] | None
    """The signals it is about, of those that we read; None: of the whole vehicle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A signed delivery about one vehicle."""

    application: str
    """Whose management token signed it: the name of the ``[smartcar.NAME]`` table."""
    event: Event
    event_id: str
    """The same in every repetition."""
    vehicle_ref: str
    received_at: datetime
    webhook_id: str | None = None
    """The webhook that delivers it, by Smartcar's id; None if it does not say."""
    test: bool = False
    """Sent by the dashboard to try the address out: its values are of no car."""
    observation: Observation | None = None
    """What its signals say; None if none of them is one that we read, or has a value."""
    errors: tuple[ToldError, ...] = ()


@dataclass(frozen=True, slots=True)
class Challenge:
    """Smartcar asks whether this address is ours: it is told what only we can know."""

    answer: str


class NotTaken(Exception):
    """A delivery that is not accepted: nothing of it is believed and nothing is changed.

    ``outcome`` is the label it is counted under, ``status`` the HTTP status, the text says why in words.
    """

    def __init__(self, outcome: str, status: int, words: str) -> None:
        super().__init__(words)
        self.outcome = outcome
        self.status = status


@dataclass(frozen=True, slots=True)
class WebhookAnswer:
    """What whoever delivered is told."""

    status: int
    document: Mapping[str, str]


class WebhookReceiver(Protocol):
    """Takes deliveries as they arrive. A 2xx is answered only when what the delivery says is committed."""

    async def receive(self, body: bytes, signature: str | None, application: str | None) -> WebhookAnswer:
        """``application``: the one that the address names, if it names one. Raises nothing."""
        ...

    def refused(self, outcome: str) -> None:
        """A delivery was refused before it was read: it is counted."""
        ...

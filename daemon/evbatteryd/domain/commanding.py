"""Commands: what may be asked of a car, and what whoever asked is told."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

OPERATOR: Final = "http"
"""Origin of commands by an operator, over HTTP or the command line; all others come from automations."""
LOWEST_LIMIT: Final = 50
"""Percent; Smartcar takes 50 to 100 (https://smartcar.com/docs/api-reference/charge-commands/set-charge-limit)."""
HIGHEST_LIMIT: Final = 100


class CommandKind(StrEnum):
    """What is commanded: also the level of its topic, ``BASE/VEHICLE/KIND/set``."""

    POLL = "poll"
    CHARGING = "charging"
    CHARGE_LIMIT = "charge_limit"


class Action(StrEnum):
    """What a source may be asked to do to a car."""

    START = "start"
    STOP = "stop"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Command:
    """One command that was understood."""

    kind: CommandKind
    value: bool | int | None = None
    """Charging: on or off; the charge limit: percent, 50 to 100; a poll: None."""

    @property
    def action(self) -> Action | None:
        """What it asks of the car itself; None: nothing, only that it is read."""
        match self.kind:
            case CommandKind.POLL:
                return None
            case CommandKind.CHARGING:
                return Action.START if self.value else Action.STOP
            case CommandKind.CHARGE_LIMIT:
                return Action.LIMIT


class CommandOutcome(StrEnum):
    """What became of a command: also the label that it is counted under."""

    DONE = "done"
    """A poll brought its answer; the car's maker says that the command was carried out, and a reading is
    awaited that shows it."""
    PENDING = "pending"
    """Sent, and whether the car did it is not known yet: a reading is awaited that shows it."""
    CONFIRMED = "confirmed"
    """A reading shows that the car did it."""
    UNCONFIRMED = "unconfirmed"
    """No reading has shown it so far, and no further one is awaited for its sake."""
    NOT_UNDERSTOOD = "not_understood"
    UNKNOWN_VEHICLE = "unknown_vehicle"
    NOT_READ = "not_read"
    """A car whose consent, or whose application, is gone."""
    NOT_PERMITTED = "not_permitted"
    """Its owner has not consented to commands, or Smartcar or its maker does not let it be commanded."""
    NOT_CAPABLE = "not_capable"
    """The brand or this car cannot do it."""
    NOT_NOW = "not_now"
    """The state of the car, a wait that its source imposed, or the brand's floor forbids it at the moment; or
    its owner has to put something right first."""
    BUDGET_SPENT = "budget_spent"
    UNDER_WAY = "under_way"
    """The car had another command to carry out first: that took too long, or a newer one came meanwhile."""
    CHATTERING = "chattering"
    """Too many in the last hour, or by automations more than their part of the plan."""
    FAILED = "failed"
    """It was sent and failed, or it is not known whether it arrived."""

    @property
    def refused(self) -> bool:
        """Whether nothing was done, and why is told."""
        return self in _REFUSALS


_REFUSALS: Final = frozenset(
    {
        CommandOutcome.NOT_UNDERSTOOD,
        CommandOutcome.UNKNOWN_VEHICLE,
        CommandOutcome.NOT_READ,
        CommandOutcome.NOT_PERMITTED,
        CommandOutcome.NOT_CAPABLE,
        CommandOutcome.NOT_NOW,
        CommandOutcome.BUDGET_SPENT,
        CommandOutcome.UNDER_WAY,
        CommandOutcome.CHATTERING,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandAnswer:
    """What whoever commanded is told; a command has one answer or several, the last one says so."""

    command: CommandKind
    value: bool | int | str | None
    """As it was understood; what was not, cut short."""
    outcome: CommandOutcome
    reason: str
    """In one sentence."""
    final: bool
    calls: int = 0
    """What the command has cost so far."""
    calls_left: int | None = None
    """Of the car, in the plan's present period; None: nobody knows, or it is not ours to say."""
    next_poll: datetime | None = None
    reading_id: str | None = None
    """Of the reading that the answer rests on."""

    def document(self) -> dict[str, object]:
        """As JSON has it, wherever it is answered."""
        value = ("on" if self.value else "off") if isinstance(self.value, bool) else self.value
        return {
            "command": self.command,
            "value": value,
            "result": "refused" if self.outcome.refused else self.outcome,
            "outcome": self.outcome,
            "reason": self.reason,
            "final": self.final,
            "calls": self.calls,
            "calls_left": self.calls_left,
            "next_poll": self.next_poll,
            "reading_id": self.reading_id,
        }


def command_in(kind: CommandKind, text: str) -> Command | str:
    """The command that ``text`` (a payload, a JSON value written out) means; or why it means none."""
    word = text.strip().lower()
    match kind:
        case CommandKind.POLL:
            return Command(kind) if word == "now" else "the one word for a poll is now"
        case CommandKind.CHARGING:
            known = {"on": True, "true": True, "off": False, "false": False}
            return Command(kind, known[word]) if word in known else "charging is on or off"
        case CommandKind.CHARGE_LIMIT:
            percent = _whole(word)
            if percent is None or not LOWEST_LIMIT <= percent <= HIGHEST_LIMIT:
                return f"charge_limit is a whole percent, {LOWEST_LIMIT} to {HIGHEST_LIMIT}"
            return Command(kind, percent)


def _whole(word: str) -> int | None:
    """A whole number: ``80`` or ``80.0``, as templates write it."""
    digits, _, decimals = word.partition(".")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 3) or decimals.strip("0"):
        return None
    return int(digits)

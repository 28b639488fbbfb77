"""What can go wrong when a source is asked, named after what to do about it."""

from __future__ import annotations

from datetime import timedelta
from typing import ClassVar


class SourceError(Exception):
    """Nothing was read this time.

    ``code`` is ``TYPE:CODE`` of the source's error table or a short name of ours; ``detail`` is one plain
    sentence, free of secrets and of personal data.
    """

    outcome: ClassVar[str] = "failed"
    """The label this outcome is counted under."""

    def __init__(self, code: str, detail: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


class Unreachable(SourceError):
    """Back off and try again: the network, a time-out, a 5xx, the OEM's cloud."""

    outcome = "unreachable"
    in_doubt: bool = False
    """Of a command: the car may have done it all the same."""


class Unreadable(Unreachable):
    """Back off and try again; the redacted ``excerpt`` is kept, for our parser or theirs is wrong."""

    outcome = "unreadable"

    def __init__(self, code: str, detail: str, *, excerpt: str = "") -> None:
        super().__init__(code, detail)
        self.excerpt = excerpt


class RateLimited(SourceError):
    """This car waits for ``retry_after``; if that is None, it backs off exponentially."""

    outcome = "rate_limited"


class ApplicationRateLimited(SourceError):
    """Every car of the application waits."""

    outcome = "application_rate_limited"


class BudgetSpent(SourceError):
    """The plan is used up: not before its period turns. Said loudly."""

    outcome = "budget_spent"


class PlanRefused(SourceError):
    """The plan or the account is refused (suspended, invalid): only the operator can help. Said loudly."""

    outcome = "plan_refused"


class Asleep(SourceError):
    """The car is asleep or out of reach, not broken: ask at the brand's idle interval, and never wake it."""

    outcome = "asleep"


class NothingYet(Asleep):
    """The source knows the car and has no data of it (v3: not subscribed, or nothing ever arrived)."""

    outcome = "nothing_yet"


class ConsentLost(SourceError):
    """Stop asking for this car; only the owner can help, by consenting again."""

    outcome = "consent_lost"


class OwnerMustAct(SourceError):
    """Ask once a day: the owner has to put right something other than consent (virtual key, subscription)."""

    outcome = "owner_must_act"


class NotCapable(SourceError):
    """This car or the source can never answer this: do not ask again."""

    outcome = "not_capable"


class NotNow(SourceError):
    """The car's state forbids the command: wait until it has changed (plug it in, close the door)."""

    outcome = "not_now"


class NotPermitted(SourceError):
    """The car may not be commanded: its owner or the source's plan forbids it. It may still be read."""

    outcome = "not_permitted"


class CommandFailed(SourceError):
    """The car, or its maker's cloud, tried to carry out the command and failed: it may be given again."""

    outcome = "command_failed"


class ApplicationRefused(SourceError):
    """The application's own credentials are refused: no car's fault, no owner can help, the operator can."""

    outcome = "application_refused"


class StoreError(Exception):
    """The store did not keep what it was given (disk full, read-only, damaged). Nothing of it was kept."""


class SinkError(Exception):
    """A sink did not take what it was given. It will be offered again.

    ``taken``: position of the last reading of it that is known to be taken; 0: none is.
    """

    def __init__(self, words: str, *, taken: int = 0) -> None:
        super().__init__(words)
        self.taken = taken

"""The steps of Connect that need nobody: the link out, the answer back, and both in words. Pure.

Parameters and answers of Connect: https://smartcar.com/docs/connect/redirect-to-connect,
https://smartcar.com/docs/connect/handle-the-response; what each error means:
https://smartcar.com/docs/errors/connect-errors. With API v3 the answer holds the user's id, and a ``code``
that nobody needs: github.com/trooperthorn/ha_int_smartcar, ``docs/api-reference.md``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from evbatteryd.domain.enrolment import PERMISSIONS, Ending, Refusal

COUNTRY: Final = re.compile(r"[A-Z]{2}")
"""ISO 3166-1 alpha-2."""
LONGEST_ANSWER: Final = 4096
"""Characters of an address that is pasted."""
_STATE: Final = re.compile(r"[A-Za-z0-9_-]{20,128}")
_REF: Final = re.compile(r"[A-Za-z0-9_-]{8,64}")
"""A user's id is a UUID. Others are refused before they get into an address of Smartcar's API."""


_ERRORS: Final = {ending.value: ending for ending in Ending if ending is not Ending.CONSENTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectOptions:
    """One application, as far as Connect is concerned."""

    application: str
    """The name of the ``[smartcar.NAME]`` table."""
    application_id: str | None
    """None: not configured, so nobody can be sent to Connect."""
    connect_origin: str
    mode: str = "live"
    permissions: tuple[str, ...] = PERMISSIONS
    country: str | None = None


def connect_url(
    options: ConnectOptions,
    *,
    redirect_uri: str,
    state: str,
    make: str | None = None,
    country: str | None = None,
) -> str:
    """Where the owner's browser goes. ``make``: a brand's code, which skips the choice of brand."""
    query = {
        "response_type": "code",
        "client_id": options.application_id or "",
        "redirect_uri": redirect_uri,
        "scope": " ".join(options.permissions),
        "mode": options.mode,
        "state": state,
        # Whoever consents again wants to be asked, not waved through with what was granted before.
        "approval_prompt": "force",
    }
    if make:
        query["make"] = make
    if where := country or options.country:
        query["flags"] = f"country:{where}"
    return f"{options.connect_origin}/oauth/authorize?{urlencode(query)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectAnswer:
    """What Connect's redirect says."""

    state: str
    ending: Ending
    user_ref: str | None = None
    car: str | None = None
    """The car that is not compatible, if its owner agreed to tell: make, model and year."""

    def __repr__(self) -> str:
        return f"ConnectAnswer(ending={self.ending!r})"


def read_answer(query: Mapping[str, str]) -> ConnectAnswer | Refusal:
    """The answer in the parameters of a callback."""
    state, user = query.get("state", ""), query.get("user_id", "")
    if not _STATE.fullmatch(state):
        return Refusal.UNREADABLE
    if error := query.get("error"):
        car = " ".join(filter(None, (query.get(key, "").strip()[:40] for key in ("make", "model", "year"))))
        return ConnectAnswer(state=state, ending=_ERRORS.get(error, Ending.OTHER), car=car or None)
    if not _REF.fullmatch(user):
        return Refusal.UNREADABLE
    return ConnectAnswer(state=state, ending=Ending.CONSENTED, user_ref=user)


def pasted(text: str) -> Mapping[str, str]:
    """The parameters of an address that somebody copied out of a browser's address bar."""
    text = text.strip().strip("<>\"'")
    if len(text) > LONGEST_ANSWER:
        return {}
    try:
        parts = urlsplit(text)
    except ValueError:
        return {}
    return dict(parse_qsl(parts.query or text.lstrip("?")))


def digest(secret: str) -> bytes:
    """What is kept of a state, a token or a cookie. They are random, so no salt is needed."""
    return sha256(secret.encode()).digest()


@dataclass(frozen=True, slots=True)
class Words:
    """What an owner is told: a headline, what happened, and what can be done about it."""

    title: str
    what: str
    then: str
    again: bool
    """Whether trying again at once makes sense."""


ENDINGS: Final[Mapping[Ending, Words]] = {
    Ending.CONSENTED: Words(
        "Thank you, your consent has arrived",
        "It is written down, and your cars are looked for at Smartcar.",
        "You can withdraw your consent at any time at https://my.smartcar.com.",
        again=False,
    ),
    Ending.DENIED: Words(
        "You said no, and that is fine",
        "Nothing is read, and nothing was stored about you or your car.",
        "If you change your mind, begin again and choose Allow.",
        again=True,
    ),
    Ending.NO_VEHICLES: Words(
        "There is no car in that account",
        "You signed in, but the manufacturer's account holds no car.",
        "Sign in with the account that you use in the manufacturer's app, and make sure that the car shows "
        "up there.",
        again=True,
    ),
    Ending.INCOMPATIBLE: Words(
        "This car cannot be connected",
        "Smartcar cannot reach this model or year: most often it has no built-in mobile connection.",
        "If the account holds another car, begin again and choose that one.",
        again=True,
    ),
    Ending.SUBSCRIPTION: Words(
        "The car's connected services are not active",
        "The manufacturer lets nobody read the car without an active subscription to its connected services.",
        "Activate it in the manufacturer's app, then begin again. Consenting again without it does not help.",
        again=True,
    ),
    Ending.CONFIGURATION: Words(
        "Something is set up wrongly here",
        "Smartcar did not accept how this evbatteryd is set up. It is not your fault, and trying again does "
        "not help.",
        "Tell whoever runs it: the application's id, its redirect URI and its permissions at "
        "https://dashboard.smartcar.com have to match the configuration.",
        again=False,
    ),
    Ending.SERVER: Words(
        "Smartcar had a problem",
        "Smartcar or the manufacturer failed just now. Nothing is wrong with your account.",
        "Wait a few minutes, then begin again.",
        again=True,
    ),
    Ending.OTHER: Words(
        "That did not work",
        "Smartcar ended with an error that evbatteryd does not know.",
        "Begin again. If it happens twice, tell whoever runs this evbatteryd.",
        again=True,
    ),
}

_STANDS: Final = "If you agreed at Smartcar, that consent stands there: end it at https://my.smartcar.com."

REFUSALS: Final[Mapping[Refusal, Words]] = {
    Refusal.UNKNOWN: Words(
        "This link was not made here",
        "Nobody set out from here with it, or that was long ago. Nothing was changed here.",
        "Begin again from the page or the invitation you were given.",
        again=True,
    ),
    Refusal.REPLAYED: Words(
        "This link was used already",
        "Each trip to Smartcar counts once. Nothing was changed here now.",
        "If your car is not here yet, begin again.",
        again=True,
    ),
    Refusal.EXPIRED: Words(
        "That took too long",
        "An answer counts for one hour after setting out. Nothing was changed here.",
        f"Begin again: Smartcar will be quick this time. {_STANDS}",
        again=True,
    ),
    Refusal.OTHER_BROWSER: Words(
        "Another browser began this",
        "For your safety an answer counts only in the browser that set out. Nothing was changed here.",
        "Go back to that browser, or begin again in this one. Whoever runs evbatteryd can also paste the "
        f"address that this page had. {_STANDS}",
        again=True,
    ),
    Refusal.INVITATION: Words(
        "This invitation is no longer open",
        "It was used, taken back, or has expired. Nothing was changed here.",
        f"Ask whoever invited you for another one. {_STANDS}",
        again=False,
    ),
    Refusal.UNREADABLE: Words(
        "This address is not complete",
        "It holds no answer of Smartcar that can be read. Nothing was changed.",
        "If you pasted it, copy all of it: it holds user_id= and state=. Otherwise begin again.",
        again=True,
    ),
}

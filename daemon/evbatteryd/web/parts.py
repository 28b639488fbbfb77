"""What the handlers of pages and API look at and act through."""

from __future__ import annotations

from dataclasses import dataclass

from evbatteryd.domain.estimates import Estimator
from evbatteryd.domain.fleet import Fleet
from evbatteryd.domain.ports import Clock, Steward
from evbatteryd.enrol.enrolment import Enrolments
from evbatteryd.web.guard import Guard
from evbatteryd.web.rendering import Pages


@dataclass(frozen=True, slots=True)
class Parts:
    """Made once, with the application."""

    fleet: Fleet
    clock: Clock
    guard: Guard
    pages: Pages
    enrolments: Enrolments
    steward: Steward
    estimate: Estimator

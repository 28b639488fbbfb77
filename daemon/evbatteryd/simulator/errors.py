"""Smartcar's error table, with the status and the body of API v3.

https://smartcar.com/docs/errors/api-errors and the v3 reference; what is assumed is said so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

Json = dict[str, Any]

RETRY_LATER: Final = "RETRY_LATER"
REAUTHENTICATE: Final = "REAUTHENTICATE"
CONTACT_SUPPORT: Final = "CONTACT_SUPPORT"
ACTION_REQUIRED: Final = "ACTION_REQUIRED"
FINANCE: Final = "FINANCE"
USER_MESSAGE: Final = "Your request could not be completed."


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """One row of the table."""

    status: int
    type: str
    code: str | None
    resolution: str | None = None

    @property
    def name(self) -> str:
        return f"{self.type}:{self.code}" if self.code else self.type

    @property
    def title(self) -> str:
        return (self.code or self.type).replace("_", " ").title()

    @property
    def refuses(self) -> bool:
        """Said at the door, before anything is done or counted."""
        return self.status in (401, 403, 429, 430)


def _rows(status: int, kind: str, *codes: str | None, resolution: str | None = None) -> list[ErrorKind]:
    return [ErrorKind(status, kind, code, resolution) for code in codes]


_ACCOUNT: Final = "CONNECTED_SERVICES_ACCOUNT"

_TABLE: Final = [
    *_rows(400, "VALIDATION", None, "PARAMETER", "MISSING_PARAMETER", "INVALID_INPUT_FORMAT"),
    *_rows(401, "AUTHENTICATION", None, "UNAUTHORIZED"),
    *_rows(403, "AUTHENTICATION", "ACCESS_DENIED"),
    *_rows(403, "PERMISSION", None, "PERMISSION_DENIED", resolution=REAUTHENTICATE),
    *_rows(404, "RESOURCE_NOT_FOUND", None, "PATH", "VERSION", "SIGNAL_NOT_FOUND", "INVALID_PATH"),
    *_rows(400, _ACCOUNT, "AUTHENTICATION_FAILED", "PERMISSION", resolution=REAUTHENTICATE),
    *_rows(400, _ACCOUNT, "VIRTUAL_KEY_REQUIRED", resolution=ACTION_REQUIRED),
    *_rows(400, _ACCOUNT, "ACCOUNT_ISSUE", "NO_VEHICLES", "SUBSCRIPTION", "VEHICLE_MISSING"),
    *_rows(
        409,
        "VEHICLE_STATE",
        "ASLEEP",
        "UNREACHABLE",
        "REMOTE_ACCESS_DISABLED",
        "VEHICLE_OFFLINE_FOR_SERVICE",
        "CHARGING_IN_PROGRESS",
        "CHARGING_PLUG_CONNECTED",
        "CHARGING_PLUG_NOT_CONNECTED",
        "NOT_CHARGING",
        "FULLY_CHARGED",
        "CHARGE_FAULT",
        "DOOR_OPEN",
        "HOOD_OPEN",
        "TRUNK_OPEN",
        "IGNITION_ON",
        "IN_MOTION",
    ),
    *_rows(409, "VEHICLE_STATE", "UNKNOWN", "LOW_BATTERY", resolution=RETRY_LATER),
    *_rows(409, "VALIDATION", "CONFLICT"),  # assumption: what a second subscription is answered with
    *_rows(429, "RATE_LIMIT", "SMARTCAR_API", "VEHICLE", resolution=RETRY_LATER),
    *_rows(
        430, "BILLING", "VEHICLE_LIMIT", "VEHICLE_REQUEST_LIMIT", "INVALID_PLAN", resolution=CONTACT_SUPPORT
    ),
    *_rows(430, "BILLING", "ACCOUNT_SUSPENDED", resolution=FINANCE),
    *_rows(500, "SERVER", "INTERNAL", resolution=CONTACT_SUPPORT),
    *_rows(500, "SERVER", "MULTIPLE_RECORDS_FOUND", "RECORD_NOT_FOUND"),
    *_rows(501, "COMPATIBILITY", "MAKE_NOT_COMPATIBLE", "SMARTCAR_NOT_CAPABLE", "VEHICLE_NOT_CAPABLE"),
    *_rows(501, "COMPATIBILITY", "PLATFORM_NOT_CAPABLE", resolution=REAUTHENTICATE),
    *_rows(
        502,
        "UPSTREAM",
        "INVALID_DATA",
        "KNOWN_ISSUE",
        "NO_RESPONSE",
        "RATE_LIMIT",
        "UNKNOWN_ISSUE",
        resolution=RETRY_LATER,
    ),
    # 504 is in the v3 specification without a row in the table: type and code are an assumption.
    *_rows(504, "UPSTREAM", "TIMEOUT", resolution=RETRY_LATER),
]
ERRORS: Final = {row.name: row for row in _TABLE}
"""By ``TYPE:CODE``, or ``TYPE`` where the code is null."""


class Refused(Exception):
    """The request is answered with this error."""

    def __init__(self, name: str, *, retry_after_s: float | None = None, detail: str | None = None) -> None:
        super().__init__(name)
        self.kind = ERRORS[name]
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Lower case, as the SDK for Java wants them."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, ceil(self.retry_after_s)))}


def error_body(kind: ErrorKind, request_id: str, detail: str | None = None) -> Json:
    return {
        "errors": [
            {
                "status": str(kind.status),
                "type": kind.type,
                "code": kind.code,
                "title": kind.title,
                "detail": detail or _detail(kind.type, kind.code),
                "resolution": {"type": kind.resolution},
                "suggestedUserMessage": USER_MESSAGE,
                "links": {"about": _about(kind.type, kind.code)},
                "meta": {"requestId": request_id},
            }
        ]
    }


def signal_error(kind: ErrorKind) -> Json:
    """The ``status`` of a signal that has no value."""
    error: Json = {
        "type": kind.type,
        "code": kind.code,
        "title": kind.title,
        "detail": _detail(kind.type, kind.code),
    }
    if kind.resolution is not None:
        error["resolution"] = {"type": kind.resolution}
    return {"value": "ERROR", "error": error}


def told_error(
    kind: str,
    code: str | None,
    state: str,
    signals: Sequence[Json] | None,
    description: str | None,
    resolution: str | None,
) -> Json:
    """An error as a webhook tells it; one that is RESOLVED says neither what to do nor what to tell anybody.

    https://smartcar.com/docs/api-reference/webhooks/events/vehicle-error
    """
    row = ERRORS.get(f"{kind}:{code}" if code else kind)
    error: Json = {
        "type": kind,
        "code": code,
        "state": state,
        "description": description or _detail(kind, code),
    }
    if state == "ERROR":
        error |= {
            "suggestedUserMessage": USER_MESSAGE,
            "docURL": _about(kind, code),
            "resolution": {"type": resolution or (row.resolution if row is not None else None)},
        }
    return error if signals is None else error | {"signals": signals}


def _about(kind: str, code: str | None) -> str:
    page = f"https://smartcar.com/docs/errors/api-errors/{kind.lower().replace('_', '-')}-errors"
    return f"{page}#{code.lower().replace('_', '-')}" if code else page


def _detail(kind: str, code: str | None) -> str:
    return f"The request failed: {(code or kind).replace('_', ' ').lower()}."

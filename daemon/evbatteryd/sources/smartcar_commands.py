"""What Smartcar's API v3 answers to a command, read: pure functions from bytes to what became of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from evbatteryd.domain.errors import (
    CommandFailed,
    NotCapable,
    NotNow,
    NotPermitted,
    SourceError,
    Unreachable,
    Unreadable,
)
from evbatteryd.sources.smartcar_answers import (
    Fault,
    Json,
    decode,
    dig,
    error_for,
    excerpt_of,
    fault_of,
    word,
)

_DOUBT: Final = "it is not known whether the car did it"
_NOT_NOW_WORDS: Final = {
    "ASLEEP": "the car is in deep sleep and takes no command until it was driven",
    "UNREACHABLE": "the car is out of reach: try again when it stands where it has network",
    "REMOTE_ACCESS_DISABLED": "remote access is switched off: switch it on in the car",
    "VEHICLE_OFFLINE_FOR_SERVICE": "the car is in service: try again when it is back",
    "LOW_BATTERY": "the battery is too low for this command: try again when it holds more",
    "CHARGING_IN_PROGRESS": "the car is charging already",
    "CHARGING_PLUG_NOT_CONNECTED": "the car is not plugged in: plug it in first",
    "CHARGING_PLUG_CONNECTED": "the car is plugged in: unplug it first",
    "NOT_CHARGING": "the car is not charging",
    "FULLY_CHARGED": "the car is charged up to its limit already",
    "CHARGE_FAULT": (
        "the charger gives no current, or a charging schedule is in the way:"
        " check the cable, and the timers of the car and of the charger"
    ),
    "DOOR_OPEN": "a door is open: close it first",
    "HOOD_OPEN": "the hood is open: close it first",
    "TRUNK_OPEN": "the trunk is open: close it first",
    "IGNITION_ON": "the car is switched on: switch it off first",
    "IN_MOTION": "the car is moving: try again when it is parked",
}
"""VEHICLE_STATE: what whoever commanded can do about it.
https://smartcar.com/docs/errors/api-errors/vehicle-state-errors"""


def in_doubt(error: Unreachable, doubt: str = _DOUBT) -> Unreachable:
    """The same, of a command that the car may have carried out all the same."""
    doubtful = type(error)(error.code, f"{error.detail}; {doubt}")
    doubtful.in_doubt = True
    if isinstance(error, Unreadable) and isinstance(doubtful, Unreadable):
        doubtful.excerpt = error.excerpt
    return doubtful


def command_error_for(
    fault: Fault | None, *, status: int | None, retry_after: timedelta | None = None
) -> SourceError:
    """Smartcar's error table as a command has to read it. What forbids a command does not forbid reading.

    Where the car may have done it all the same (a time-out behind Smartcar), the detail says so.
    """
    error = _command_by_status(status) if fault is None else _command_by_fault(fault)
    if error is None:
        error = error_for(fault, status=status)
        if type(error) is Unreachable and (status is None or not 400 <= status < 500):
            error = in_doubt(error)
    error.retry_after = retry_after
    return error


def _command_by_fault(fault: Fault) -> SourceError | None:
    """None: it means the same as when a car is read."""
    match fault.type, fault.code:
        case "VEHICLE_STATE", code:
            words = _NOT_NOW_WORDS.get(code or "", "the car cannot do it in its present state")
            return NotNow(fault.name, words)
        case ("PERMISSION", _) | (_, "PERMISSION_DENIED"):
            return NotPermitted(fault.name, "the owner has not consented to commands, or no longer does")
        case "CONNECTED_SERVICES_ACCOUNT", "PERMISSION":
            return NotPermitted(
                fault.name, "the manufacturer does not let this owner's account command the car"
            )
        case "AUTHENTICATION", "ACCESS_DENIED":
            return NotPermitted(
                fault.name,
                "the application may not command this car: see its plan and vehicle access,"
                " and what the owner consented to",
            )
        case "COMPATIBILITY", "PLATFORM_NOT_CAPABLE":
            return NotCapable(fault.name, "this car cannot do it until its owner consents anew")
        case "COMPATIBILITY", _:
            return NotCapable(fault.name, "this car, make or model year cannot do it")
        case "RESOURCE_NOT_FOUND", _:
            return SourceError(fault.name, "Smartcar does not know this car, or not this command")
        case _:
            return None


def _command_by_status(status: int | None) -> SourceError | None:
    match status:
        case 409:
            return NotNow("HTTP_409", "the car cannot do it in its present state")
        case 501:
            return NotCapable("HTTP_501", "this car, make or model year cannot do it")
        case _:
            return None


ACCEPTED: Final = 202
"""A command that takes longer than 175 s is answered so, and its outcome follows in the body: what the
status line says is no result. https://smartcar.com/docs (commands of API v3), as told by
github.com/trooperthorn/ha_int_smartcar, ``docs/api-reference.md``, "The 202 contract"."""
_STATUS_PATHS: Final = (
    ("data", "attributes", "status", "value"),
    ("data", "attributes", "status"),
    ("data", "status"),
    ("attributes", "status"),
    ("status",),
)
"""Where a command's answer may say how it went: wrapped as JSON:API has it, or at the root as API v2 and the
tests of github.com/wbyoung/smartcar (``tests/test_switch.py``) have it for v3, too."""
_FAULT_PATHS: Final = (("error",), ("data", "attributes", "error"), ("data", "attributes", "status", "error"))
_FAULT_TYPES: Final = frozenset(
    {
        *("AUTHENTICATION", "BILLING", "COMPATIBILITY", "CONNECTED_SERVICES_ACCOUNT", "PERMISSION"),
        *("RATE_LIMIT", "RESOURCE_NOT_FOUND", "SERVER", "UPSTREAM", "VALIDATION", "VEHICLE_STATE"),
    }
)
"""https://smartcar.com/docs/errors/api-errors"""
_DONE: Final = "SUCCESS"
_FAILED: Final = frozenset({"FAILURE", "FAILED", "ERROR"})


def command_done(body: bytes, status: int) -> bool:
    """Whether a command that was answered with ``status`` (2xx) was carried out; False: it is not known yet.

    The documented words are SUCCESS, FAILURE and PENDING, in any case; an error in the body counts for more
    than the status line. An answer that says nothing of it, nothing at all, or a word that nobody knows,
    leaves it open: the next reading shows it. So does a 202 that cannot be read, for it was a promise.

    Raises :class:`CommandFailed`, what :func:`command_error_for` makes of an error in the body, and
    Unreadable for a body that is no answer of Smartcar's.
    """
    if not body.strip():
        return False
    try:
        found = decode(body, "the command")
    except Unreadable as error:
        if status == ACCEPTED:
            return False
        raise in_doubt(error) from None
    outcome = next(filter(None, (word(dig(found, *path)) for path in _STATUS_PATHS)), None)
    fault = _fault_in(found)
    if fault is not None:
        problem = command_error_for(fault, status=None)
        if isinstance(problem, Unreadable):
            problem.excerpt = excerpt_of(body)
        raise problem
    if outcome in _FAILED:
        raise CommandFailed("FAILURE", "the car, or its manufacturer's cloud, tried and failed")
    return outcome == _DONE


def _fault_in(found: Json) -> Fault | None:
    """An error of any shape: listed, wrapped, or the root itself, where a resource has a ``type``, too."""
    errors = dig(found, "errors")
    listed = errors if isinstance(errors, list) else [errors]
    said = [raw for raw in (*listed, *(dig(found, *path) for path in _FAULT_PATHS)) if raw]
    if said:
        return next(filter(None, map(fault_of, said)), Fault("UNKNOWN", None, None))
    root = fault_of(found)
    return root if root is not None and root.type in _FAULT_TYPES else None

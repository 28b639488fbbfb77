"""How webhooks are delivered: as Smartcar does it, or badly, as a test wants it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

VERSION: Final = "4.0"
SIGNATURE_HEADER: Final = "SC-Signature"

MOST_DUPLICATES: Final = 32
MOST_BYTES: Final = 1 << 26
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
"""A field name of HTTP (RFC 9110, section 5.6.2)."""


class BadConduct(ValueError):
    """A conduct that cannot be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How each delivery is sent."""

    duplicate: int = 0
    """Extra copies, sent at the same time: the same event, each a delivery of its own."""
    shuffle_s: float = 0.0
    """Each attempt comes up to so many of the world's seconds late."""
    wrong_signature: float = 0.0
    """Share of the deliveries that somebody with another token has signed."""
    reserialised: bool = False
    """Other white space is put in after signing, so that the signature does not fit the bytes."""
    unsigned: bool = False
    header: str = SIGNATURE_HEADER
    """How the name of the signature's header is spelt."""
    version: str = VERSION
    """As ``meta`` tells it."""
    paused: bool = False
    """The webhook is disabled: what happens meanwhile is never told, and later all vehicles begin anew."""
    oversize_bytes: int = 0
    """The body is filled up to at least that size."""

    def changed(self, written: object) -> Conduct:
        """With the fields of a JSON object instead of its own. Raises BadConduct."""
        if not isinstance(written, dict) or not written or set(written) - set(_FITS):
            raise BadConduct(f"expected an object of {', '.join(_FITS)}")
        for name, value in written.items():
            words, fits = _FITS[name]
            if not fits(value):
                raise BadConduct(f"{name} is {words}")
        return replace(self, **written)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


AS_SMARTCAR: Final = Conduct()


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _is_number(value: object, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


_FITS: Final[Mapping[str, tuple[str, Callable[[object], bool]]]] = {
    "duplicate": (f"a whole number up to {MOST_DUPLICATES}", lambda it: _is_whole(it, MOST_DUPLICATES)),
    "shuffle_s": ("a number of seconds up to a day", lambda it: _is_number(it, 86400)),
    "wrong_signature": ("a share from 0 to 1", lambda it: _is_number(it, 1)),
    "reserialised": ("true or false", _is_flag),
    "unsigned": ("true or false", _is_flag),
    "header": ("the name of a header", lambda it: isinstance(it, str) and bool(_HEADER.fullmatch(it))),
    "version": ("text", lambda it: isinstance(it, str)),
    "paused": ("true or false", _is_flag),
    "oversize_bytes": (f"a whole number up to {MOST_BYTES}", lambda it: _is_whole(it, MOST_BYTES)),
}

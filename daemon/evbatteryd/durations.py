"""Durations as people write them: ``"90s"``, ``"15m"``, ``"1h30m"``, ``"7d"``."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*")


def parse_duration(text: object) -> timedelta:
    """``"15m"`` -> 15 minutes. Raises ValueError that says how to write it."""
    if not isinstance(text, str):
        raise ValueError(f'a duration is written with its unit and in quotes, "15m", not {text!r}')
    total, at = 0.0, 0
    stripped = text.strip()
    while at < len(stripped):
        part = _PART.match(stripped, at)
        if part is None:
            break
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    if not stripped or at != len(stripped):
        raise ValueError(f'{text!r} is no duration; write it like "90s", "15m", "1h30m" or "7d"')
    try:
        return timedelta(seconds=total)
    except OverflowError:
        raise ValueError(f"{text!r} is longer than time lasts") from None

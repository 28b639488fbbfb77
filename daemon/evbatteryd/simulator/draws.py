"""Chance that can be repeated: every draw is a function of a key and a number, of nothing drawn before.

So an answer depends neither on the order of requests nor on how many there were, and a fleet of 100,000
cars needs no generator per car.
"""

from __future__ import annotations

import hashlib
from math import exp
from statistics import NormalDist
from typing import Final

_MASK: Final = (1 << 64) - 1
_NORMAL: Final = NormalDist()


def key_of(*parts: object) -> int:
    """64 bits for any words: slow, for what is drawn once."""
    text = "\x1f".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def mix(key: int, number: int) -> int:
    """64 bits for ``number`` under ``key`` (the finaliser of splitmix64)."""
    z = (key + number * 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def unit(key: int, number: int) -> float:
    """Uniform in [0, 1)."""
    return (mix(key, number) >> 11) * 2.0**-53


def between(key: int, number: int, low: float, high: float) -> float:
    """Uniform in [low, high)."""
    return low + unit(key, number) * (high - low)


def log_normal(key: int, number: int, median: float, sigma: float) -> float:
    """Above 0; ``sigma`` is that of the logarithm."""
    if sigma == 0:
        return median
    return median * exp(sigma * _NORMAL.inv_cdf(unit(key, number) + 2.0**-54))


def uuid_of(key: int, number: int) -> str:
    """A version 4 UUID."""
    digits = f"{mix(key, 2 * number):016x}{mix(key, 2 * number + 1):016x}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def token_of(key: int, number: int) -> str:
    """32 hexadecimal digits, as client ids and secrets are made of."""
    return f"{mix(key, 2 * number):016x}{mix(key, 2 * number + 1):016x}"

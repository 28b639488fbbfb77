"""Mistakes of a configuration, collected so that all of them can be told at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake: where, what is wrong, how to mend it. Never holds the value of a secret."""

    file: str
    key: str
    """Dotted path of the key, ``smartcar.home.client_id``; empty for the file as a whole."""
    what: str
    mend: str
    warning: bool = False
    """Worth saying, but nothing that keeps evbatteryd from running."""

    def __str__(self) -> str:
        place = f"{self.file}: {self.key}" if self.key else self.file
        return f"{place}: {self.what}. {self.mend}"


class Misconfigured(Exception):
    """The configuration cannot be used; ``problems`` says every reason at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """How to mend an unknown key: the nearest known one, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}."

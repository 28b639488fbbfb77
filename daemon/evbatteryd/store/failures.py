"""What an error of SQLite means to whoever runs the daemon, in plain words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evbatteryd.domain.errors import StoreError

_PRIMARY = 0xFF
"""The low byte of an extended result code (https://sqlite.org/rescode.html)."""

_MEANINGS = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_IOERR: "the disk is full or failing",
    sqlite3.SQLITE_READONLY: "the file, its folder or the file system is read-only",
    sqlite3.SQLITE_BUSY: "locked by another program: is a backup or an sqlite3 shell at work on it?",
    sqlite3.SQLITE_LOCKED: "locked by another program: is a backup or an sqlite3 shell at work on it?",
    sqlite3.SQLITE_CANTOPEN: "it cannot be opened: is its folder there, may evbatteryd write to it?",
    sqlite3.SQLITE_PERM: "evbatteryd may not read or write it",
    sqlite3.SQLITE_CORRUPT: (
        "the database is damaged: move it away and put a backup in its place, or start without one: "
        "vehicles whose owners consented are found again, their history is not"
    ),
    sqlite3.SQLITE_NOTADB: (
        "this is not an SQLite database, or its first page is damaged: move it away, or name another file"
    ),
}


def explained(error: Exception, path: Path) -> Exception:
    """What a caller of the store is to see of ``error``; a mistake of ours stays what it is."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
            return StoreError(f"{path}: no such vehicle is enrolled")
        meaning = _MEANINGS.get(code & _PRIMARY)
        return StoreError(f"{path}: {meaning} ({error})" if meaning else f"{path}: {error}")
    if isinstance(error, StoreError):
        return StoreError(*error.args)
    if isinstance(error, UnicodeEncodeError | OverflowError):
        return StoreError(f"{path}: this cannot be kept ({error.__class__.__name__})")
    return error


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Raise whatever SQLite or the file system raises about ``path`` as a StoreError in plain words."""
    try:
        yield
    except sqlite3.Error as error:
        raise explained(error, path) from error
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error

"""The database file: created, locked, known for ours, brought up to date, opened."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from importlib import resources
from pathlib import Path
from typing import Final

from evbatteryd.domain.errors import StoreError
from evbatteryd.store import statements as sql

_APPLICATION_ID: Final = int.from_bytes(b"evbd")
_OLDEST_SQLITE: Final = (3, 38, 0)
"""JSON functions in every build; STRICT tables and RETURNING are older."""
BUSY_SECONDS: Final = 5.0
"""How long to wait for another program (a backup, a shell) to let go of the file."""
_CACHE_KIB: Final = 16 * 1024
_WAL_BYTES: Final = 64 * 1024 * 1024
"""What the write-ahead log is cut back to after a burst."""


class Lock:
    """Leave to write, for one process at a time. Ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        """Raises StoreError if another process has it."""
        self._file = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 20).decode("ascii", "replace").strip()
            os.close(self._file)
            by = f"process {holder}" if holder else "another process"
            raise StoreError(f"{path} is already in use by {by}") from error
        os.ftruncate(self._file, 0)
        os.write(self._file, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        os.close(self._file)


def make_file(path: Path) -> None:
    """An empty file that only its owner may read, in a folder likewise, unless it is there already."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The one connection that writes. What a commit returned from survives a power cut."""
    connection = _connect(path, "rw")
    try:
        migrate(connection, path)
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        # What is deleted or overwritten is personal: zeros take its place, or it would stay in free space.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_for_reading(path: Path) -> sqlite3.Connection:
    """A connection that never waits for the one that writes. Raises StoreError if the schema is old."""
    connection = _connect(path, "ro")
    try:
        version, current = _version(connection, path), len(_migrations())
        if version < current:
            raise StoreError(
                f"{path} was written by an older evbatteryd (schema {version}, this one needs {current}): "
                "start the daemon once, it brings the file up to date"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date, one step and one transaction after the other.

    Raises StoreError, and leaves the file as it is, if that is not ours or newer than this program.
    """
    version = _version(connection, path)
    connection.execute("PRAGMA journal_mode = WAL")
    for number, script in enumerate(_migrations(), start=1):
        if number > version:
            try:
                connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT")
            except sqlite3.Error:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def head(connection: sqlite3.Connection) -> int:
    """Position of the newest reading, 0 before the first."""
    found = connection.execute(sql.HEAD).fetchone()
    return 0 if found is None else int(found[0])


def application_key(connection: sqlite3.Connection, name: str) -> int:
    """The key of an application, which it is given when it is first heard of."""
    found = connection.execute(sql.APPLICATION, (name,)).fetchall()
    [(application_id,)] = found or connection.execute(sql.NEW_APPLICATION, (name,)).fetchall()
    return int(application_id)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        needed = ".".join(map(str, _OLDEST_SQLITE))
        raise StoreError(f"SQLite {needed} or newer is needed; this Python has {sqlite3.sqlite_version}")
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    return connection


def _version(connection: sqlite3.Connection, path: Path) -> int:
    """Of the schema; 0 for a file that is still empty. Raises StoreError if it is none that we can use."""
    [application] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    [entries] = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application != _APPLICATION_ID and (application, version, entries) != (0, 0, 0):
        raise StoreError(f"{path} is another program's database: name another file")
    current = len(_migrations())
    if version > current:
        raise StoreError(
            f"{path} was written by a newer evbatteryd (schema {version}, this one knows {current}): "
            "install that version again, or name another file"
        )
    return int(version)


def _migrations() -> list[str]:
    """Every step of the schema, in order; the first leads from nothing to version 1."""
    folder = resources.files("evbatteryd.store") / "schema"
    steps = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name
    )
    return [step.read_text() for step in steps]

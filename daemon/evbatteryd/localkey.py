"""The key that daemon and command line share: whoever may read the database may operate.

It lies beside the database, ``evbatteryd.db.key``. The daemon makes it at its first start; nobody else does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

_BYTES: Final = 32
_KEY: Final = re.compile(r"[A-Za-z0-9_-]{43}")
"""So many bytes in URL-safe base64."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class UnusableKey(ValueError):
    """The file is there, and no key can be taken from it; the text says why and how to mend it."""


def path_of(db_path: Path) -> Path:
    """Where the key of this database is."""
    return db_path.with_name(db_path.name + ".key")


def owner(db_path: Path) -> int:
    """The user (uid) that the daemon runs as: who made the key. Raises OSError."""
    return path_of(db_path).stat().st_uid


def load_or_make(db_path: Path) -> str:
    """The key of this database, made if there is none yet. For the daemon, which holds the database's lock.

    Raises OSError or UnusableKey that says what is wrong and how to mend it.
    """
    with contextlib.suppress(FileNotFoundError):
        return load(db_path)
    key, path = secrets.token_urlsafe(_BYTES), path_of(db_path)
    try:
        _write(path, key)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write the key {path} ({error.strerror}): let the user that evbatteryd runs as write to "
            f"{path.parent}, and see that the disk is not full",
        ) from error
    return key


def load(db_path: Path) -> str:
    """The key of this database. Raises OSError or UnusableKey that says what is wrong and how to mend it."""
    path = path_of(db_path)
    try:
        with open(path, "rb", opener=_at_once) as file:
            _must_be_private(path, os.fstat(file.fileno()).st_mode)
            content = file.read(1024)
    except OSError as error:
        raise type(error)(error.errno, _why_not_read(path, error)) from error
    key = content.decode("ascii", "replace").strip()
    if not _KEY.fullmatch(key):
        raise UnusableKey(f"{path} holds no key: remove it and restart evbatteryd, which makes another")
    return key


def _at_once(path: str, flags: int) -> int:
    """Whatever stands there, a pipe say, must not hold us up before it is looked at."""
    return os.open(path, flags | os.O_NONBLOCK)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _must_be_private(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise UnusableKey(f"{path} is no file: remove it and restart evbatteryd, which makes another")
    if mode & _OTHERS:
        raise UnusableKey(
            f"{path} can be read or changed by other users, who could then operate evbatteryd. "
            f"Run: chmod 600 {path}"
        )


def _why_not_read(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"there is no key {path}: evbatteryd makes it when it starts. Is it running?"
        case errno.EACCES | errno.EPERM:
            return f"this user may not read {path}: run it as the user evbatteryd or with sudo"
        case _:
            return f"the key {path} cannot be read ({error.strerror})"


def _write(path: Path, key: str) -> None:
    """The whole file or none, also if the machine loses power meanwhile."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)  # Left by a start that did not get to its end.
    try:
        with open(new, "xb", opener=_private) as file:
            file.write(f"{key}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)

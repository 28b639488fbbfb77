"""The key beside the database: made once, private, whole; and words for whoever cannot read it."""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evbatteryd.localkey import UnusableKey, load, load_or_make, path_of


@pytest.fixture
def db(tmp_path: Path) -> Path:
    return tmp_path / "evbatteryd.db"


@contextmanager
def nobody() -> Iterator[None]:
    """As a user without rights: root may do everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_it_is_made_once_and_stays(db: Path) -> None:
    key = load_or_make(db)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", key)
    assert load(db) == load_or_make(db) == key
    assert path_of(db) == db.parent / "evbatteryd.db.key"
    assert [path.name for path in db.parent.iterdir()] == ["evbatteryd.db.key"]


def test_each_database_has_its_own(db: Path, tmp_path: Path) -> None:
    assert load_or_make(db) != load_or_make(tmp_path / "other.db")


def test_nobody_else_can_read_it_whatever_the_umask(db: Path) -> None:
    before = os.umask(0)
    try:
        load_or_make(db)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path_of(db).stat().st_mode) == 0o600


def test_the_command_line_makes_none(db: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no key .*evbatteryd\.db\.key.* Is it running\?"):
        load(db)
    assert not path_of(db).exists()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no key"):
        load(tmp_path / "nowhere" / "evbatteryd.db")
    with pytest.raises(OSError, match="cannot write the key"):
        load_or_make(tmp_path / "nowhere" / "evbatteryd.db")


def test_whoever_may_not_read_it_is_told_how(db: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    load_or_make(db)
    path_of(db).chmod(0)
    for folder in (db.parent, tmp_path_factory.getbasetemp(), tmp_path_factory.getbasetemp().parent):
        folder.chmod(0o755)
    with nobody(), pytest.raises(PermissionError, match="run it as the user evbatteryd or with sudo"):
        load(db)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660])
def test_one_that_others_can_get_at_is_refused(db: Path, mode: int) -> None:
    load_or_make(db)
    path_of(db).chmod(mode)
    for read in (load, load_or_make):
        with pytest.raises(UnusableKey, match=r"Run: chmod 600 .*evbatteryd\.db\.key"):
            read(db)
    path_of(db).chmod(0o600)
    assert load(db)


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 43, b"a" * 44, b"a" * 5000])
def test_what_is_no_key_is_refused_and_not_shown(db: Path, content: bytes) -> None:
    path_of(db).write_bytes(content)
    path_of(db).chmod(0o600)
    for read in (load, load_or_make):
        with pytest.raises(UnusableKey, match="holds no key: remove it") as refused:
            read(db)
        assert "short" not in str(refused.value)


def test_a_pipe_in_its_place_holds_nobody_up(db: Path) -> None:
    os.mkfifo(path_of(db), 0o600)
    with pytest.raises(UnusableKey, match="is no file"):
        load(db)


def test_a_folder_in_its_place(db: Path) -> None:
    path_of(db).mkdir()
    with pytest.raises(IsADirectoryError, match=r"cannot be read \(Is a directory\)"):
        load(db)


def test_a_start_that_broke_off_is_made_good(db: Path) -> None:
    left = db.parent / "evbatteryd.db.key.new"
    left.write_text("half a k")
    key = load_or_make(db)
    assert load(db) == key
    assert not left.exists()


def test_a_full_disk_leaves_nothing_behind(db: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from evbatteryd.localkey import load_or_make\n"
        "load_or_make(Path(sys.argv[1]))"
    )

    def no_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

    ended = subprocess.run(
        [sys.executable, "-B", "-c", program, str(db)],
        preexec_fn=no_room,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert f"cannot write the key {path_of(db)} ({os.strerror(errno.EFBIG)})" in ended.stderr
    assert list(db.parent.iterdir()) == []

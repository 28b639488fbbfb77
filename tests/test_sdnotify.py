"""What systemd hears, at a real socket."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

import pytest

from evbatteryd.sdnotify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_we_are_ready_alive_and_stopping(tmp_path: Path, abstract: bool) -> None:
    name = f"@evbatteryd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        notifier.ready("3 vehicles")
        notifier.alive()
        notifier.stopping()
        heard = [systemd.recv(1000).decode() for _ in range(3)]
    assert heard == ["READY=1\nSTATUS=3 vehicles", "WATCHDOG=1", "STOPPING=1\nSTATUS=Stopping"]


def test_without_systemd_nothing_is_said_and_a_socket_that_is_gone_harms_nobody(tmp_path: Path) -> None:
    Notifier({}).ready("all well")
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).alive()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "60000000"}, timedelta(minutes=1)),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, timedelta(minutes=1)),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_ours_only_if_it_names_us(
    environ: dict[str, str], expected: timedelta | None
) -> None:
    assert Notifier(environ).watchdog == expected

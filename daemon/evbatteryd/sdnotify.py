"""systemd's notification protocol: a datagram to the socket that ``NOTIFY_SOCKET`` names.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from datetime import timedelta


class Notifier:
    """Tells systemd how we are. Outside of systemd it says nothing; a lost datagram is nobody's failure."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        # "@name" is the abstract namespace, which the kernel writes with a leading zero byte.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = self._watchdog(environ)

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        self._send(f"STATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        self._send("STOPPING=1\nSTATUS=Stopping")

    @staticmethod
    def _watchdog(environ: Mapping[str, str]) -> timedelta | None:
        """How long systemd waits for a sign of life; None if it does not, or not of this process."""
        if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
            return None
        microseconds = environ.get("WATCHDOG_USEC", "")
        return timedelta(microseconds=int(microseconds)) if microseconds.isdigit() else None

    def _send(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                out.sendto(message.encode(), self._address)
        except OSError:
            return

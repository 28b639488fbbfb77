"""Where the local web listens: a port or a Unix socket, and what to say when it cannot."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web, web_response
from aiohttp.http_exceptions import HttpProcessingError

GRACE_S = 3.0
"""Real seconds that answers under way have when the daemon ends."""

# What every answer says in "Server": aiohttp would tell everybody its version and Python's. Set here, and not
# by the application's signals, because answers to what is no HTTP come from aiohttp alone.
web_response.SERVER_SOFTWARE = "evbatteryd"  # type: ignore[attr-defined]


def _is_ours(record: logging.LogRecord) -> bool:
    """aiohttp answers what is no HTTP with 400, and would log it as an error: with what was sent, secrets or
    not, and as often as anybody likes."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)


_log = logging.getLogger(__name__)
_log.addFilter(_is_ours)


@asynccontextmanager
async def serving(
    app: web.Application, *, host: str | None, port: int | None, unix_path: Path | None
) -> AsyncIterator[str]:
    """Listen on ``host`` and ``port`` (0: a free one), or on a Unix socket; yield the address.

    Raises OSError that says what is taken and how to mend it.
    """
    runner = web.AppRunner(app, access_log=None, logger=_log, shutdown_timeout=GRACE_S)
    await runner.setup()
    try:
        if unix_path is None:
            yield await _listen_tcp(runner, host, port)
        else:
            await _listen_unix(runner, unix_path)
            try:
                yield f"unix:{unix_path}"
            finally:
                await asyncio.to_thread(unix_path.unlink, missing_ok=True)
    finally:
        await runner.cleanup()


async def _listen_tcp(runner: web.AppRunner, host: str | None, port: int | None) -> str:
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise _unusable(f"{host or '*'}:{port}", error) from error
    address, bound = runner.addresses[0][:2]
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104
    return f"http://[{reached}]:{bound}" if ":" in reached else f"http://{reached}:{bound}"


async def _listen_unix(runner: web.AppRunner, path: Path) -> None:
    try:
        # asyncio would silently take the socket away from another daemon that is listening on it.
        if await _answers(path):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        await web.UnixSite(runner, path).start()
    except OSError as error:
        raise _unusable(f"unix:{path}", error) from error


async def _answers(path: Path) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


_MEND = {
    errno.EADDRINUSE: (
        "another program has it, perhaps another evbatteryd. "
        "Stop that one, or give [http] listen another address"
    ),
    errno.EACCES: (
        "this user may not. Give [http] listen a port from 1024 on, or a folder that this user may write to"
    ),
    errno.EADDRNOTAVAIL: "this machine has no such address. Mend [http] listen",
}


def _unusable(address: str, error: OSError) -> OSError:
    why = _MEND.get(error.errno or 0, f"{error.strerror or error}. Mend [http] listen")
    return OSError(error.errno, f"cannot listen on {address}: {why}")

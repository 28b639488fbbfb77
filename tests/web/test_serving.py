"""Where it listens, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from evbatteryd.web.app import serving


def app() -> web.Application:
    async def hello(_: web.Request) -> web.Response:
        return web.Response(text="hello")

    built = web.Application()
    built.router.add_get("/", hello)
    return built


async def fetched(url: str, connector: aiohttp.BaseConnector | None = None) -> str:
    async with aiohttp.ClientSession(connector=connector) as client, client.get(url) as answer:
        return await answer.text()


@pytest.mark.parametrize("head", ["GET / HTTP/1.1\r\nHost: x", "GET /none HTTP/1.1\r\nHost: x", "no HTTP"])
async def test_no_answer_tells_versions(head: str) -> None:
    async with serving(app(), host="127.0.0.1", port=0, unix_path=None) as url:
        host, port = url.removeprefix("http://").split(":")
        incoming, outgoing = await asyncio.open_connection(host, int(port))
        outgoing.write(f"{head}\r\nConnection: close\r\n\r\n".encode())
        answer = await incoming.read()
        outgoing.close()
    assert b"\r\nServer: evbatteryd\r\n" in answer
    assert b"aiohttp" not in answer


async def test_port_0_is_a_free_port() -> None:
    async with serving(app(), host="127.0.0.1", port=0, unix_path=None) as url:
        assert not url.endswith(":0")
        assert await fetched(url) == "hello"


async def test_every_interface_is_reached_by_loopback() -> None:
    async with serving(app(), host="0.0.0.0", port=0, unix_path=None) as url:
        assert url.startswith("http://127.0.0.1:")
        assert await fetched(url) == "hello"


async def test_ipv6_is_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    async with serving(app(), host="::1", port=0, unix_path=None) as url:
        assert url.startswith("http://[::1]:")
        assert await fetched(url) == "hello"


async def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"cannot listen on 127\.0\.0\.1:{port}: another program"
        ) as caught:
            async with serving(app(), host="127.0.0.1", port=port, unix_path=None):
                pass
    assert caught.value.errno == errno.EADDRINUSE
    assert "[http] listen" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
async def test_an_address_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(OSError, match=rf"cannot listen on {host}:0: .*Mend \[http\] listen"):
        async with serving(app(), host=host, port=0, unix_path=None):
            pass


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with serving(app(), host=None, port=None, unix_path=path) as url:
        assert url == f"unix:{path}"
        assert await fetched("http://local/", aiohttp.UnixConnector(str(path))) == "hello"
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    async with serving(app(), host=None, port=None, unix_path=path):
        assert await fetched("http://local/", aiohttp.UnixConnector(str(path))) == "hello"


async def test_a_socket_that_answers_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    async with serving(app(), host=None, port=None, unix_path=path):
        with pytest.raises(OSError, match=r"another program has it"):
            async with serving(app(), host=None, port=None, unix_path=path):
                pass
        assert await fetched("http://local/", aiohttp.UnixConnector(str(path))) == "hello"


async def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot listen on unix:.*missing/http\.sock: .*\[http\] listen"):
        async with serving(app(), host=None, port=None, unix_path=tmp_path / "missing" / "http.sock"):
            pass

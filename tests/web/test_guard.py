"""Who is asking, and what they may: at the machine, far away, through proxies, with tokens and forgeries."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from unittest.mock import Mock

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict
from structlog.testing import capture_logs

from evbatteryd.web import answers
from evbatteryd.web import guard as guard_module
from evbatteryd.web.guard import (
    BROWSER_COOKIE,
    SESSION_COOKIE,
    SESSION_LASTS,
    VISITOR,
    Access,
    Guard,
    Level,
    Visitor,
    public,
    reader,
    safe_next,
)
from evbatteryd.web.serving import serving
from tests.fakes import VirtualClock
from tests.web.builders import car
from tests.web.conftest import AT_THE_MACHINE, LOCAL_KEY, Serve, Site

ADMIN_TOKEN = "admin-token-of-24-letters"
OURS = "https://ev.example.org"
EXPOSED = Access(local_key=LOCAL_KEY, public_url=OURS, admin_token=ADMIN_TOKEN)
"""Loopback proves nothing here: the proxy stands there."""
PROXIED = Access(
    local_key=LOCAL_KEY,
    public_url=OURS,
    admin_token=ADMIN_TOKEN,
    trusted_proxies=(ip_network("127.0.0.0/8"), ip_network("10.0.0.0/8")),
    admin_header="Remote-User",
    admin_users=frozenset({"ada", "Zoë"}),
)
NO_TIME = timedelta()
FORMS = {"Content-Type": "application/x-www-form-urlencoded"}
RIGHT, WRONG = {"Authorization": f"Bearer {ADMIN_TOKEN}"}, {"Authorization": f"Bearer {ADMIN_TOKEN}!"}

# Every route, and for whom it is


_LEVELS = {
    Level.PUBLIC: {
        "GET /-/healthy",
        "GET /-/ready",
        "GET /assets/{name}",
        "GET /favicon.svg",
        "GET /enrol",
        "POST /enrol",
        "GET /enrol/i/{token}",
        "GET /enrol/callback",
        "GET /enrol/done",
        "POST /enrol/paste",
        "GET /sign-in",
        "POST /sign-in",
        "POST /sign-out",
        "POST /webhooks/smartcar",
        "POST /webhooks/smartcar/{application}",
    },
    Level.READER: {
        "GET /",
        "GET /rows",
        "GET /metrics",
        "GET /api/vehicles",
        "GET /api/vehicles/{slug}",
        "GET /api/events",
    },
    Level.OPERATOR: {
        "GET /vehicles",
        "GET /vehicles/{slug}",
        "POST /vehicles/{slug}/rename",
        "POST /vehicles/{slug}/disconnect",
        "GET /invitations",
        "GET /invitations/made",
        "GET /api/plan",
        "POST /invitations",
        "POST /invitations/{id}/revoke",
        "POST /api/vehicles/{slug}/rename",
        "POST /api/vehicles/{slug}/disconnect",
        "POST /api/vehicles/{slug}/event",
        "POST /api/vehicles/{slug}/poll",
        "POST /api/vehicles/{slug}/charging",
        "POST /api/vehicles/{slug}/charge_limit",
        "POST /api/enrolments",
        "POST /api/enrolments/paste",
        "GET /api/enrolments/{id}",
        "POST /api/invitations",
        "GET /api/invitations",
        "POST /api/invitations/{id}/revoke",
    },
}
_UNFORGED = {"POST /webhooks/smartcar", "POST /webhooks/smartcar/{application}"}


def _routes(site: Site) -> set[str]:
    return {
        f"{route.method} {route.resource.canonical}"
        for route in site.app.router.routes()
        if route.method != "HEAD"
    }


def _filled(path: str) -> str:
    return path.format(slug="car_1", name="style.css", token="x", id="1", application="home")


async def test_every_route_is_listed_here(serve: Serve) -> None:
    async with serve() as site:
        assert _routes(site) == set.union(*_LEVELS.values())


@pytest.mark.parametrize(("level", "routes"), _LEVELS.items())
async def test_every_route_is_for_whom_we_think(serve: Serve, level: Level, routes: Iterable[str]) -> None:
    """Asked without any right, with and without ``open_to_read``: who is turned away says for whom it is."""
    for opened in (False, True):
        access = Access(local_key=LOCAL_KEY, public_url=OURS, open_to_read=opened)
        may = level is Level.PUBLIC or (level is Level.READER and opened)
        async with serve(access=access) as site:
            for route in sorted(routes):
                method, path = route.split(" ")
                async with site.client.request(
                    method, site.url + _filled(path), allow_redirects=False
                ) as answer:
                    assert (answer.status != 401) is may, route


async def test_every_post_but_the_machines_wants_our_form(serve: Serve) -> None:
    async with serve(car()) as site:
        for route in _routes(site):
            method, path = route.split(" ")
            if method == "POST":
                async with site.client.post(site.url + _filled(path), data={"form": "0" * 64}) as answer:
                    assert (answer.status == 403) is (route not in _UNFORGED), route


# Every kind of visitor


def _request(headers: Mapping[str, str], peer: str) -> web.Request:
    """A request that came from ``peer``, which no test can make a real connection come from."""

    def told(name: str, default: object = None) -> object:
        return (peer, 40_000) if name == "peername" else default

    return make_mocked_request("GET", "/", CIMultiDict(headers), transport=Mock(get_extra_info=told))


def _seen(access: Access, headers: Mapping[str, str], peer: str) -> Visitor:
    return Guard(access, VirtualClock()).visitor(_request(headers, peer))


def _signed_in(access: Access, *, ago: timedelta = NO_TIME) -> str:
    """The session's cookie, as ``access`` set it ``ago``."""
    guard, request, response = Guard(access, VirtualClock()), _request({}, "192.0.2.1"), web.Response()
    guard._clock._now -= ago
    request[VISITOR] = guard.visitor(request)
    guard.sign_in(request, response)
    return response.cookies[SESSION_COOKIE].value


def _cookie(value: str) -> dict[str, str]:
    return {"Cookie": f"{SESSION_COOKIE}={value}"}


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


_SESSION = _signed_in(EXPOSED)
_EXPIRES, _NONCE, _MARK = _SESSION.split(".")
_OTHER_TOKEN = replace(EXPOSED, admin_token="another-token-of-24-lett")
_OTHER_KEY = replace(EXPOSED, local_key="another-key")
_NO_TOKEN = replace(EXPOSED, admin_token=None)
_ANYBODY = replace(PROXIED, admin_users=frozenset())

OPERATORS = {
    "at the machine": (AT_THE_MACHINE, {}),
    "at the machine, by name": (AT_THE_MACHINE, {"Host": "localhost:9782"}),
    "at the machine, in capitals": (AT_THE_MACHINE, {"Host": "LocalHost"}),
    "at the machine, by IPv6": (AT_THE_MACHINE, {"Host": "[::1]:9782"}),
    "at the machine, which is its public address": (replace(EXPOSED, public_url="http://localhost:9782"), {}),
    "command line": (EXPOSED, _bearer(LOCAL_KEY)),
    "admin token": (EXPOSED, _bearer(ADMIN_TOKEN)),
    "admin token, small letters": (EXPOSED, {"Authorization": f"bearer {ADMIN_TOKEN} "}),
    "admin token, by another name": (replace(AT_THE_MACHINE, admin_token=ADMIN_TOKEN), RIGHT | {"Host": "x"}),
    "signed in": (EXPOSED, _cookie(_SESSION)),
    "vouched for": (PROXIED, {"Remote-User": "ada"}),
    "vouched for, not ASCII": (PROXIED, {"Remote-User": "Zoë"}),
    "vouched for, whoever it is": (_ANYBODY, {"Remote-User": "eve"}),
}
STRANGERS = {
    **{
        f"rebound name {host}": (AT_THE_MACHINE, {"Host": host})
        for host in (
            "evil.example",
            "evil.example:9782",
            "localhost.evil.example",
            "evil.example.localhost.",
            "localhost.",
            "evil@localhost",
            "localhost:x",
            "localhost:99999",
            "localhost/evil",
            "localhost evil",
            "127.0.0.1.evil.example",
            "[::1",
            "[::2]",
            "[localhost]",
            "0.0.0.0",
            "192.168.1.7:9782",
            "\udcff",
            "",
        )
    },
    **{
        f"through a proxy that says {header}": (AT_THE_MACHINE, {header: "127.0.0.1"})
        for header in (
            "Forwarded",
            "Via",
            "X-Forwarded-For",
            "x-forwarded-host",
            "X-Forwarded-Proto",
            "X-Forwarded-Server",
            "X-Real-IP",
            "X-Client-IP",
            "True-Client-IP",
            "CF-Connecting-IP",
        )
    },
    "through the proxy of a public address": (EXPOSED, {}),
    "through the proxy, claiming the machine": (EXPOSED, {"Host": "localhost"}),
    "through a trusted proxy at the machine": (replace(PROXIED, public_url=None), {"Host": "localhost"}),
    "no token": (EXPOSED, {"Authorization": "Bearer"}),
    "no token set, none sent": (_NO_TOKEN, {"Authorization": "Bearer "}),
    "no token set, its name sent": (_NO_TOKEN, _bearer("None")),
    "wrong token": (EXPOSED, WRONG),
    "half a token": (EXPOSED, _bearer(ADMIN_TOKEN[:-1])),
    "token that is no text": (EXPOSED, _bearer("\udcff\udced")),
    "token of another scheme": (EXPOSED, {"Authorization": f"Basic {ADMIN_TOKEN}"}),
    "session of another token": (_OTHER_TOKEN, _cookie(_SESSION)),
    "session of another key": (_OTHER_KEY, _cookie(_SESSION)),
    "session without a token set": (_NO_TOKEN, _cookie(_signed_in(_NO_TOKEN))),
    "session that expired": (EXPOSED, _cookie(_signed_in(EXPOSED, ago=SESSION_LASTS))),
    "session made longer": (EXPOSED, _cookie(f"{int(_EXPIRES) + 1}.{_NONCE}.{_MARK}")),
    "session of another nonce": (EXPOSED, _cookie(f"{_EXPIRES}.x{_NONCE}.{_MARK}")),
    "session without a mark": (EXPOSED, _cookie(f"{_EXPIRES}.{_NONCE}.")),
    "session of nothing": (EXPOSED, _cookie("..")),
    "session that is no text": (EXPOSED, _cookie(f"{_EXPIRES}.\udcff.\udcff")),
    "session of odd digits": (EXPOSED, _cookie(f"\u0661{_EXPIRES[1:]}.{_NONCE}.{_MARK}")),
    "forwarded for nobody": (PROXIED, {"X-Forwarded-For": "\udcff"}),
    "not on the list": (PROXIED, {"Remote-User": "eve"}),
    "on the list, in capitals": (PROXIED, {"Remote-User": "ADA"}),
    "not signed in at the proxy": (_ANYBODY, {"Remote-User": " "}),
    "vouched for by a stranger": (replace(PROXIED, trusted_proxies=()), {"Remote-User": "ada"}),
    "vouched for in another header": (PROXIED, {"Remote_User": "ada"}),
    "vouched for with no header set": (replace(PROXIED, admin_header=None), {"Remote-User": "ada"}),
}


async def _status(url: str, path: str, headers: Mapping[str, str]) -> int:
    """Over real HTTP, byte by byte as said: clients would mend what is odd about it."""
    host, port = url.removeprefix("http://").split(":")
    lines = {"Host": f"{host}:{port}"} | dict(headers) | {"Connection": "close"}
    sent = f"GET {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    incoming, outgoing = await asyncio.open_connection(host, int(port))
    outgoing.write(f"{sent}\r\n".encode(errors="surrogateescape"))
    answer = await incoming.read()
    outgoing.close()
    return int(answer.split(b" ")[1])


async def _answer(_: web.Request) -> web.Response:
    return web.Response()


async def _read(_: web.Request) -> web.Response:
    return web.Response()


async def _operate(_: web.Request) -> web.Response:
    return web.Response()


def _guarded(access: Access) -> web.Application:
    """A page for each level, and the guard alone."""
    app = web.Application(middlewares=[Guard(access, VirtualClock()).middleware])
    app.router.add_get("/public", public(_answer))
    app.router.add_get("/reader", reader(_read))
    app.router.add_get("/operator", _operate)
    return app


@pytest.mark.parametrize(
    ("access", "headers", "operator"),
    [
        pytest.param(*visit, operator, id=name)
        for visits, operator in ((OPERATORS, True), (STRANGERS, False))
        for name, visit in visits.items()
    ],
)
async def test_who_gets_to_see_what(access: Access, headers: dict[str, str], operator: bool) -> None:
    for opened in (False, True):
        app = _guarded(replace(access, open_to_read=opened))
        async with serving(app, host="127.0.0.1", port=0, unix_path=None) as url:
            assert await _status(url, "/public", headers) == 200
            assert await _status(url, "/reader", headers) == (200 if operator or opened else 401)
            assert await _status(url, "/operator", headers) == (200 if operator else 401)


async def test_a_user_named_twice_is_nobody(serve: Serve) -> None:
    """The proxy added its header to the one that the visitor sent."""
    async with serve(access=PROXIED) as site:
        twice = CIMultiDict([("Remote-User", "ada"), ("Remote-User", "eve")])
        async with site.client.get(f"{site.url}/api/invitations", headers=twice) as answer:
            assert answer.status == 401


async def test_a_request_without_a_host_is_not_at_the_machine(serve: Serve) -> None:
    async with serve() as site:
        host, port = site.url.removeprefix("http://").split(":")
        incoming, outgoing = await asyncio.open_connection(host, int(port))
        outgoing.write(b"GET /api/invitations HTTP/1.0\r\n\r\n")
        assert b" 401 " in (await incoming.read()).split(b"\r\n")[0]
        outgoing.close()


async def test_what_speaks_an_old_http_is_a_proxy(serve: Serve) -> None:
    """As nginx does with nothing but ``proxy_pass http://127.0.0.1:9782;``."""
    async with serve() as site:
        host, port = site.url.removeprefix("http://").split(":")
        for version, status in (("1.0", b" 401 "), ("1.1", b" 200 ")):
            incoming, outgoing = await asyncio.open_connection(host, int(port))
            head = f"GET /api/invitations HTTP/{version}\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n"
            outgoing.write(f"{head}\r\n".encode())
            assert status in (await incoming.read()).split(b"\r\n")[0]
            outgoing.close()


async def test_over_a_unix_socket(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    visits = ((AT_THE_MACHINE, 200), (replace(AT_THE_MACHINE, trusts_unix=True), 401), (EXPOSED, 401))
    for access, status in visits:
        async with (
            serve(access=access, unix_path=path) as site,
            site.client.get(f"{site.url}/api/invitations") as answer,
        ):
            assert answer.status == status
    vouching = replace(PROXIED, trusts_unix=True, trusted_proxies=())
    async with serve(access=vouching, unix_path=path) as site:
        headers = {"Remote-User": "ada"}
        async with site.client.get(f"{site.url}/api/invitations", headers=headers) as answer:
            assert answer.status == 200


_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "Host",
                "Authorization",
                "Cookie",
                "Forwarded",
                "X-Forwarded-For",
                "X-Forwarded-Host",
                "X-Forwarded-Proto",
                "X-Real-IP",
                "Remote-User",
                "Origin",
                "Referer",
                "Sec-Fetch-Site",
            ]
        ),
        st.sampled_from(
            [
                "localhost",
                "127.0.0.1",
                "[::1]:9782",
                "::1",
                "unix",
                "10.0.0.1, 127.0.0.1",
                "ev.example.org",
                OURS,
                "ada",
                "https",
                "same-origin",
                "Bearer ",
                "Bearer None",
                f"Bearer {ADMIN_TOKEN[:-1]}",
                f"{SESSION_COOKIE}={_EXPIRES}.{_NONCE}.{'0' * 64}",
                f"{SESSION_COOKIE}=99999999999..",
            ]
        )
        | st.text(max_size=20),
    ),
    max_size=8,
)
_REMOTE = st.sampled_from(["192.0.2.7", "192.168.1.7", "2001:db8::7", "::ffff:192.0.2.7", "fe80::7%eth0"])
_ACCESSES = [AT_THE_MACHINE, EXPOSED, PROXIED, _ANYBODY, replace(PROXIED, trusts_unix=True, public_url=None)]


@given(access=st.sampled_from(_ACCESSES), headers=_HEADERS, peer=_REMOTE)
def test_no_headers_make_an_operator_of_a_stranger(
    access: Access, headers: list[tuple[str, str]], peer: str
) -> None:
    """And none makes them count as somebody else."""
    visitor = _seen(access, CIMultiDict(headers), peer)
    assert not visitor.operator
    assert not visitor.local
    assert visitor.address == _seen(access, {}, peer).address


@given(access=st.sampled_from([EXPOSED, replace(PROXIED, admin_header=None)]), headers=_HEADERS)
def test_no_headers_make_an_operator_of_whoever_comes_through_the_proxy(
    access: Access, headers: list[tuple[str, str]]
) -> None:
    assert not _seen(access, CIMultiDict(headers), "127.0.0.1").operator


# By what visits are counted


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7", "192.0.2.7"),  # The first was made up by the visitor.
        ("192.0.2.7, 10.1.2.3", "192.0.2.7"),
        ("192.0.2.7:51234", "192.0.2.7"),
        ("[2001:db8:1:2::7]:51234", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("192.0.2.7, ::ffff:10.1.2.3", "192.0.2.7"),
        ("10.1.2.3", "10.9.9.9"),
        ("unknown", "10.9.9.9"),
        ("192.0.2.7, ä", "10.9.9.9"),
        ("192.0.2.7,", "10.9.9.9"),
        ("", "10.9.9.9"),
    ],
)
def test_the_nearest_address_that_is_no_proxy_counts(forwarded: str, address: str) -> None:
    assert _seen(PROXIED, {"X-Forwarded-For": forwarded}, "10.9.9.9").address == address
    assert _seen(PROXIED, {"X-Forwarded-For": forwarded}, "192.0.2.99").address == "192.0.2.99"


def test_several_lines_of_forwarding_are_one() -> None:
    lines = CIMultiDict([("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "192.0.2.7, 10.0.0.2")])
    assert _seen(PROXIED, lines, "10.9.9.9").address == "192.0.2.7"


# Guessing


async def test_whoever_guesses_tokens_has_to_wait_and_whoever_has_one_never_does(serve: Serve) -> None:
    """All of them come from one address here."""
    async with serve(access=EXPOSED) as site:
        path = "/api/invitations"
        assert [await _status(site.url, path, WRONG) for _ in range(12)] == [401] * 9 + [429] * 3
        assert await _status(site.url, path, RIGHT) == 200
        assert await _status(site.url, path, _bearer(LOCAL_KEY)) == 200
        assert await _status(site.url, path, {}) == 401
        async with site.client.get(site.url + path, headers=WRONG) as answer:
            assert (answer.status, answer.headers["Retry-After"]) == (429, "60")
        await site.clock.advance(timedelta(minutes=2))
        assert [await _status(site.url, path, WRONG) for _ in range(2)] == [401, 429]


async def test_wrong_tokens_are_told_once_an_hour(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        with capture_logs() as log:
            for _ in range(15):
                await _status(site.url, "/api/invitations", WRONG)
            await site.clock.advance(timedelta(minutes=59))
            await _status(site.url, "/api/invitations", WRONG)
            assert log == [{"event": "operator.wrong_token", "log_level": "warning"}]
            await site.clock.advance(timedelta(minutes=1))
            await _status(site.url, "/api/invitations", WRONG)
            await _status(site.url, "/api/invitations", RIGHT)
        assert log == [{"event": "operator.wrong_token", "log_level": "warning"}] * 2


# Signing out


def _visit(guard: Guard, session: str) -> web.Request:
    request = _request(_cookie(session), "192.0.2.1")
    request[VISITOR] = guard.visitor(request)
    return request


def test_signed_out_sessions_are_remembered_until_they_would_have_expired() -> None:
    guard = Guard(EXPOSED, VirtualClock())
    sessions = [_signed_in(EXPOSED) for _ in range(3)]
    for session in sessions[:2]:
        guard.sign_out(_visit(guard, session), web.Response())
    assert [_visit(guard, session)[VISITOR].operator for session in sessions] == [False, False, True]
    guard.sign_out(_visit(guard, "1.x.y"), web.Response())
    guard.sign_out(_visit(guard, sessions[0]), web.Response())
    assert len(guard._signed_out) == 2
    guard._clock._now += SESSION_LASTS / 2
    late = _signed_in(EXPOSED, ago=-SESSION_LASTS / 2)
    guard._clock._now += SESSION_LASTS / 2
    guard.sign_out(_visit(guard, late), web.Response())
    assert len(guard._signed_out) == 1


def test_signed_out_sessions_are_remembered_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "MOST_SIGNED_OUT", 2)
    guard = Guard(EXPOSED, VirtualClock())
    sessions = [_signed_in(EXPOSED) for _ in range(3)]
    for session in sessions:
        guard.sign_out(_visit(guard, session), web.Response())
    assert [_visit(guard, session)[VISITOR].operator for session in sessions] == [True, False, False]


async def test_right_tokens_are_not_counted(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        assert {await _status(site.url, "/api/invitations", RIGHT) for _ in range(30)} == {200}


# Turned away


async def test_a_browser_is_led_to_sign_in_and_a_program_is_told(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        page = {"Accept": "text/html,*/*"}
        where = f"{site.url}/vehicles/car_1?secret=x"
        async with site.client.get(where, headers=page, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/sign-in?next=/vehicles/car_1")
        async with site.client.get(where) as answer:
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        async with site.client.post(where.replace("?", "/rename?"), headers=page) as answer:
            assert answer.status == 401


@pytest.mark.parametrize(
    "path", ["/", "/vehicles", "/vehicles/car_1?done=renamed", "/?q=a+%26&freshness=fresh"]
)
def test_next_is_a_path_of_ours(path: str) -> None:
    assert safe_next(path) == path


@pytest.mark.parametrize(
    "path",
    [
        "",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "evil",
        " /x",
        "/x\r\nSet-Cookie: a=b",
        "/ä",
        "/\udcff",
    ],
)
def test_next_leads_nowhere_else(path: str) -> None:
    assert safe_next(path) == "/"


# Forms


async def _form(site: Site) -> str:
    """What a form of ours holds, for the browser that the site's client is."""
    found = re.search(r'name="form" value="([0-9a-f]{64})"', await site.text("/enrol"))
    assert found is not None
    return found[1]


async def _posted(site: Site, headers: dict[str, str] | None = None, **fields: str) -> int:
    """What becomes of an invitation's form."""
    async with site.client.post(
        f"{site.url}/invitations", data=fields, headers=headers, allow_redirects=False
    ) as answer:
        return answer.status


@pytest.fixture
async def at_home(serve: Serve) -> AsyncIterator[Site]:
    """A browser at the machine. It knows it by a name: browsers keep no cookies of an address in tests."""
    async with serve() as site:
        site.url = site.url.replace("127.0.0.1", "localhost")
        site.client.headers["Host"] = "localhost"
        yield site


_OURS_SAID = [
    {},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost"},
]
_THEIRS_SAID = [
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
    {"Sec-Fetch-Site": ""},
    {"Origin": "https://evil.example"},
    {"Origin": "http://localhost:81"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "http://localhost@evil.example"},
    {"Origin": "null"},
    {"Origin": ""},
    {"Origin": "http://[::1"},
]


@pytest.mark.parametrize("said", _OURS_SAID)
async def test_our_own_forms_are_taken(at_home: Site, said: dict[str, str]) -> None:
    assert await _posted(at_home, said, form=await _form(at_home), name="Ada", days="7") == 303
    assert [one.name for one in await at_home.enrolments.invitations()] == ["Ada"]


@pytest.mark.parametrize("said", _THEIRS_SAID)
async def test_what_another_site_sends_is_not(at_home: Site, said: dict[str, str]) -> None:
    assert await _posted(at_home, said, form=await _form(at_home), name="Ada", days="7") == 403
    assert await at_home.enrolments.invitations() == []


async def test_a_form_needs_its_token_and_its_browser(at_home: Site) -> None:
    token = await _form(at_home)
    for wrong in ("", "0" * 64, token[:-1], "\udcff".encode(errors="replace").decode(), "ä"):
        assert await _posted(at_home, form=wrong, name="Ada") == 403
    assert await _posted(at_home, name="Ada") == 403
    at_home.client.cookie_jar.clear()
    assert await _posted(at_home, form=token, name="Ada") == 403
    assert await _posted(at_home, {"Cookie": f"{BROWSER_COOKIE}=forged.{token}"}, form=token) == 403
    assert await at_home.enrolments.invitations() == []


async def test_the_public_origin_counts_whatever_the_proxy_makes_of_the_host(serve: Serve) -> None:
    access = replace(EXPOSED, open_enrolment=True)
    async with serve(access=access) as site:
        site.url = site.url.replace("127.0.0.1", "localhost")
        token = await _form(site)
        for origin, status in ((OURS, 303), (f"{OURS}:443", 303), (f"{OURS}:444", 403), ("null", 403)):
            where, headers = f"{site.url}/enrol", {"Origin": origin}
            async with site.client.post(
                where, data={"form": token}, headers=headers, allow_redirects=False
            ) as answer:
                assert answer.status == status, origin


async def test_a_token_in_a_header_needs_no_form(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        where, sent = f"{site.url}/api/invitations", {"name": "Ada"}
        async with site.client.post(where, json=sent, headers=RIGHT) as answer:
            assert answer.status == 201
        async with site.client.post(where, json=sent, headers=_cookie(_SESSION)) as answer:
            assert answer.status == 403


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        (FORMS, b"form=\xff\xfe", 400),
        (FORMS, b"form=%ff", 403),
        (FORMS, b"&".join(b"a=b" for _ in range(2_000)), 413),
        (FORMS, b"a" * (answers.LARGEST_BODY + 1), 413),
        (FORMS | {"Content-Encoding": "gzip"}, b"not gzip", 400),
        ({"Content-Type": f"{FORMS['Content-Type']}; charset=unicode_escape"}, b"form=\\ud800", 415),
        ({"Content-Type": f"{FORMS['Content-Type']}; charset=nonsense"}, b"form=x", 415),
        ({"Content-Type": "multipart/form-data"}, b"no boundary", 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\nform\r\n--x--", 415),
        ({"Content-Type": "text/plain"}, b"form=x", 403),
        ({"Content-Type": ";;;"}, b"form=x", 403),
    ],
)
async def test_what_is_no_form_is_a_clean_refusal(
    serve: Serve, headers: dict[str, str], body: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        serve(access=EXPOSED) as site,
        site.client.post(f"{site.url}/sign-in", data=body, headers=headers) as answer,
    ):
        assert answer.status == status
    assert not caplog.records


async def test_a_form_that_trickles_in_is_not_waited_for(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "BODY_WITHIN_S", 0.01)
    async with serve(access=EXPOSED) as site:
        host, port = site.url.removeprefix("http://").split(":")
        incoming, outgoing = await asyncio.open_connection(host, int(port))
        outgoing.write(b"POST /sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nform")
        assert b" 408 " in await incoming.readline()
        outgoing.close()
        await outgoing.wait_closed()


# What goes with every answer


async def test_https_is_insisted_on_where_it_is_spoken(serve: Serve) -> None:
    visits = (
        (PROXIED, {"X-Forwarded-Proto": "https"}, True),
        (PROXIED, {"X-Forwarded-Proto": "http"}, False),
        (EXPOSED, {"Host": "EV.example.org"}, True),
        (EXPOSED, {"Host": "other.example.org"}, False),
        (EXPOSED, {"X-Forwarded-Proto": "https"}, False),
        (AT_THE_MACHINE, {}, False),
    )
    for access, headers, secure in visits:
        async with serve(access=replace(access, open_enrolment=True)) as site:
            for path in ("/-/ready", "/nowhere", "/enrol"):
                async with site.client.get(site.url + path, headers=headers) as answer:
                    assert ("Strict-Transport-Security" in answer.headers) is secure, headers
            assert ("; Secure" in answer.headers["Set-Cookie"]) is secure


async def test_cookies_are_for_us_alone(serve: Serve) -> None:
    async with serve() as site, site.client.get(f"{site.url}/enrol") as answer:
        cookie = answer.headers["Set-Cookie"]
        for part in ("HttpOnly", "SameSite=Lax", "Path=/"):
            assert part in cookie
        assert "Domain" not in cookie

"""Who is asking, and what they may: operators, readers, the public; forms that are ours; browsers we know.

An *operator* is whoever sits at this machine (over loopback, unless ``public_url`` or ``trusted_proxies``
say that a proxy stands there), holds the admin token or the local key, is signed in with the former, or is
vouched for by a trusted proxy. *Readers* are operators, or everybody if the configuration says so. Some pages
are for the public. What is not marked is for operators.
"""

from __future__ import annotations

import hmac
import re
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, Final, TypeVar
from urllib.parse import SplitResult, urlencode, urlsplit

import orjson
import structlog
from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Handler
from multidict import MultiMapping

from evbatteryd.domain.ports import Clock
from evbatteryd.web.answers import body_of
from evbatteryd.web.limits import Limiter, Rate

SESSION_LASTS: Final = timedelta(days=7)
BROWSER_COOKIE: Final = "evbatteryd_browser"
SESSION_COOKIE: Final = "evbatteryd_session"
FORM_FIELD: Final = "form"
"""Name of the hidden field that proves a form is ours."""
UNIX: Final = "unix"
"""The address of whoever comes over a Unix socket."""
_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_FORWARDED: Final = re.compile(
    r"(?:x-)?forwarded(?:-.*)?|via|x-real-ip|(?:.*-)?(?:client|connecting)-ip|cf-ray", re.IGNORECASE
)
"""Headers by which proxies, tunnels and content networks tell that they stand in between."""
_HOST: Final = re.compile(
    r"(?P<name>\[[0-9a-f:.]+\]|[^\s\[\]:/?#@\\]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE
)
_OURS: Final = re.compile(r"/(?!/)[\w.~!$&'()*+,;=:@%/?-]*", re.ASCII)
"""A path, with or without a query. Neither ``//host`` nor what a browser would turn into it: backslashes,
and the tabs and line ends that it drops."""
_WRONG_TOKENS: Final = Rate(10, timedelta(minutes=10))
"""Of an address, before it is told to wait. Only against noise: the admin token has at least 16 characters,
which nobody finds by guessing. So a right one never has to wait for the wrong ones of others, who may well
come from the same address: behind a proxy that is not trusted everybody does."""
_WRONG_TOKENS_TOLD: Final = Rate(1, timedelta(hours=1))
"""How often the log says that somebody sent one."""
_ANYBODY: Final = "anybody"
MOST_SIGNED_OUT = 10_000
"""Sessions remembered as signed out; the one that was signed out first is forgotten first."""
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}

Network = IPv4Network | IPv6Network
_H = TypeVar("_H", bound=Callable[..., Awaitable[web.StreamResponse]])


class Level(IntEnum):
    """For whom a page is."""

    PUBLIC = 0
    READER = 1
    OPERATOR = 2


_LEVEL: Final = "_evbatteryd_level"
_UNFORGED: Final = "_evbatteryd_unforged"
_log = structlog.get_logger()


def public(handler: _H) -> _H:
    """Mark a handler as for everybody."""
    return _marked(handler, Level.PUBLIC)


def reader(handler: _H) -> _H:
    """Mark a handler as for those who may see the cars."""
    return _marked(handler, Level.READER)


def machine(handler: _H) -> _H:
    """Mark a handler as called by programs that prove by themselves who they are: no form, no cookie."""
    setattr(handler, _UNFORGED, True)
    return _marked(handler, Level.PUBLIC)


def _marked(handler: _H, level: Level) -> _H:
    setattr(handler, _LEVEL, level)
    return handler


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may do what, as configured."""

    local_key: str = field(repr=False)
    """Shared with the command line by a file that only this user reads; also what cookies are signed with."""
    public_url: str | None = None
    admin_token: str | None = field(default=None, repr=False)
    trusted_proxies: tuple[Network, ...] = ()
    trusts_unix: bool = False
    """Whoever comes over the Unix socket is a trusted proxy."""
    admin_header: str | None = None
    """In which a trusted proxy names the user it has signed in."""
    admin_users: frozenset[str] = frozenset()
    """Whom it may name; empty: anybody."""
    open_to_read: bool = False
    open_enrolment: bool = False
    """Anybody may enrol a car, without an invitation."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Whoever sent a request."""

    address: str
    """What visits are counted by, as far as trusted proxies tell: an IPv4 address, or the first 64 bits of an
    IPv6 address, for that much everybody has; ``unix`` for a Unix socket."""
    local: bool
    """At this machine, with nobody in between."""
    operator: bool
    bearer: bool
    """Proved by a token in a header, which no foreign page can make a browser send."""
    secure: bool
    """The browser speaks HTTPS to us or to the proxy."""


VISITOR = web.RequestKey("visitor", Visitor)
_BROWSER = web.RequestKey("browser", str)


@dataclass(frozen=True, slots=True)
class _Session:
    """What the cookie of an operator who signed in holds."""

    nonce: str
    expires: datetime


class Guard:
    """Decides for each request. :attr:`middleware` refuses what may not be."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self.access = access
        self._clock = clock
        self._public = urlsplit(access.public_url) if access.public_url else None
        # The proxy that a public address needs may stand at this machine: then loopback proves nothing.
        self._trusts_loopback = self._public is None or is_loopback(self._public.hostname or "")
        self._wrong_tokens = Limiter(_WRONG_TOKENS, clock)
        self._wrong_tokens_told = Limiter(_WRONG_TOKENS_TOLD, clock)
        self._signed_out: dict[str, datetime] = {}
        """When each session that was signed out would have expired."""

    # Who it is

    def visitor(self, request: web.Request) -> Visitor:
        """Counts a wrong token in its header: to be asked once for each request."""
        peer = _peer(request)
        trusted = self._trusted(peer)
        address = _counted_by(self._client(request, peer) if trusted else peer)
        local = (
            self._trusts_loopback
            and not trusted
            and (peer == UNIX or is_loopback(peer))
            # Browsers and command lines have spoken 1.1 for decades. 1.0 is what nginx speaks to whatever is
            # behind it, unless told otherwise; it says Host: 127.0.0.1 then, and not a word of itself:
            # https://nginx.org/en/docs/http/ngx_http_proxy_module.html#proxy_http_version
            and request.version >= HttpVersion11
            and is_loopback(host_of(request))  # Any other name may have been pointed here: DNS rebinding.
            and not any(_FORWARDED.fullmatch(name) for name in request.headers)
        )
        bearer = self._bears_a_token(request, address)
        signed_in = self._session(request) is not None
        operator = local or bearer or signed_in or (trusted and self._vouched_for(request))
        return Visitor(address, local, operator, bearer, self._secure(request, trusted))

    def _trusted(self, peer: str) -> bool:
        if peer == UNIX:
            return self.access.trusts_unix
        return _within(peer, self.access.trusted_proxies)

    def _client(self, request: web.Request, peer: str) -> str:
        """The nearest address that is no trusted proxy: those before it may have been made up."""
        hops = [hop for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
        for hop in reversed(hops):
            name = _name_in(hop.strip())
            if not _within(name, self.access.trusted_proxies):
                return peer if _ip(name) is None else name
        return peer

    def _secure(self, request: web.Request, trusted: bool) -> bool:
        if trusted and request.headers.get("X-Forwarded-Proto", "").lower() == "https":
            return True
        public = self.access.public_url or ""
        if public.startswith("https:") and _origin_of(public) == _origin_of(f"https://{request.host}"):
            return True
        return request.secure

    def _bears_a_token(self, request: web.Request, address: str) -> bool:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            return False
        token = token.strip()
        if _same(token, self.access.local_key) or self.admits(token):
            return True
        self.wrong_token(address)
        return False

    def _vouched_for(self, request: web.Request) -> bool:
        if self.access.admin_header is None:
            return False
        users = request.headers.getall(self.access.admin_header, [])
        if len(users) != 1 or not users[0].strip():
            return False
        return not self.access.admin_users or users[0].strip() in self.access.admin_users

    # Signing in

    def admits(self, token: str) -> bool:
        """Whether this is the admin token. The local key is for programs, not for people."""
        known = self.access.admin_token
        return known is not None and _same(token, known)

    def wrong_token(self, address: str) -> int:
        """Somebody sent one. Returns how many real seconds they have to wait; 0 if they need not."""
        if not self._wrong_tokens_told.take(_ANYBODY):
            _log.warning("operator.wrong_token")
        return self._wrong_tokens.take(address)

    def sign_in(self, request: web.Request, response: web.StreamResponse) -> None:
        expires = int((self._clock.now() + SESSION_LASTS).timestamp())
        nonce = secrets.token_urlsafe(16)
        value = f"{expires}.{nonce}.{self._session_mark(expires, nonce)}"
        self.set_cookie(request, response, SESSION_COOKIE, value, lasts=SESSION_LASTS)

    def sign_out(self, request: web.Request, response: web.StreamResponse) -> None:
        """End the session: whoever kept its cookie is signed out, too. A restart forgets that."""
        session = self._session(request)
        if session is not None:
            self._remember_signed_out(session)
        response.del_cookie(SESSION_COOKIE, path="/", secure=request[VISITOR].secure, httponly=True)

    def _remember_signed_out(self, session: _Session) -> None:
        now = self._clock.now()
        known = {nonce: expires for nonce, expires in self._signed_out.items() if expires > now}
        known[session.nonce] = session.expires
        if len(known) > MOST_SIGNED_OUT:
            del known[next(iter(known))]
        self._signed_out = known

    def _session(self, request: web.Request) -> _Session | None:
        """The session that the cookie tells of; None if it is none of ours, or over."""
        expires, _, rest = request.cookies.get(SESSION_COOKIE, "").partition(".")
        nonce, _, mark = rest.partition(".")
        if self.access.admin_token is None or not (
            expires.isascii() and expires.isdigit() and len(expires) < 12
        ):
            return None
        if not _same(mark, self._session_mark(int(expires), nonce)) or nonce in self._signed_out:
            return None
        session = _Session(nonce, datetime.fromtimestamp(int(expires), UTC))
        return session if self._clock.now() < session.expires else None

    def _session_mark(self, expires: int, nonce: str) -> str:
        """Of a session. It ends with the admin token that began it."""
        return self._mark("session", f"{expires}.{nonce}.{self.access.admin_token}")

    def _mark(self, purpose: str, text: str) -> str:
        return hmac.new(_bytes(self.access.local_key), _bytes(f"{purpose}\n{text}"), sha256).hexdigest()

    # Browsers and forms

    def browser(self, request: web.Request) -> str | None:
        """The identity that we gave this browser; None if it has none, or a forged one."""
        if _BROWSER in request:
            return request[_BROWSER]
        return self.signed_cookie(request, BROWSER_COOKIE)

    def introduce(self, request: web.Request) -> str:
        """The browser's identity, a new one if need be: it is set with the response."""
        known = self.browser(request)
        if known is None:
            known = request[_BROWSER] = secrets.token_urlsafe(24)
        return known

    def form_token(self, request: web.Request) -> str:
        """What a form of ours holds in its hidden field."""
        return self._mark("form", self.introduce(request))

    async def remember(self, request: web.Request, response: web.StreamResponse) -> None:
        """Set the cookie of a browser that was introduced just now. For ``on_response_prepare``."""
        if _BROWSER in request:
            self.set_signed_cookie(
                request, response, BROWSER_COOKIE, request[_BROWSER], lasts=timedelta(days=30)
            )
            # aiohttp has made headers of the cookies before it asks: one that comes now has to do so itself.
            response.headers.add("Set-Cookie", response.cookies[BROWSER_COOKIE].OutputString())

    def set_signed_cookie(
        self, request: web.Request, response: web.StreamResponse, name: str, value: str, *, lasts: timedelta
    ) -> None:
        """``value`` must not hold a dot."""
        self.set_cookie(request, response, name, f"{value}.{self._mark(name, value)}", lasts=lasts)

    def signed_cookie(self, request: web.Request, name: str) -> str | None:
        """The value that we signed; None if there is none, or not by us."""
        value, _, mark = request.cookies.get(name, "").partition(".")
        fits = _same(mark, self._mark(name, value))
        return value if value and fits else None

    def set_signed_document(
        self,
        request: web.Request,
        response: web.StreamResponse,
        name: str,
        document: object,
        *,
        lasts: timedelta,
    ) -> None:
        """``document``: anything that JSON can hold. The browser can read it, and cannot change it."""
        value = urlsafe_b64encode(orjson.dumps(document)).decode().rstrip("=")
        self.set_signed_cookie(request, response, name, value, lasts=lasts)

    def signed_document(self, request: web.Request, name: str) -> Any:
        """The document that we signed, as JSON has it; None if there is none, or not by us."""
        value = self.signed_cookie(request, name)
        return None if value is None else orjson.loads(urlsafe_b64decode(value + "=" * (-len(value) % 4)))

    def set_cookie(
        self, request: web.Request, response: web.StreamResponse, name: str, value: str, *, lasts: timedelta
    ) -> None:
        # Lax, not Strict: Connect leads the browser back to us from another site, and it has to know us then.
        response.set_cookie(
            name,
            value,
            max_age=int(lasts.total_seconds()),
            path="/",
            httponly=True,
            samesite="Lax",
            secure=request[VISITOR].secure,
        )

    # What may be

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        visitor = request[VISITOR] = self.visitor(request)
        meant_for = request.match_info.handler
        if request.match_info.http_exception is not None:
            return await handler(request)
        level = getattr(meant_for, _LEVEL, Level.OPERATOR)
        if not self._may(visitor, level):
            raise self._refusal(request, visitor)
        if request.method not in _SAFE and not getattr(meant_for, _UNFORGED, False):
            fields = await _form_of(request)
            if not visitor.bearer:
                self._must_be_our_form(request, fields)
        return await handler(request)

    def _may(self, visitor: Visitor, level: Level) -> bool:
        if visitor.operator or level is Level.PUBLIC:
            return True
        return level is Level.READER and self.access.open_to_read

    def _refusal(self, request: web.Request, visitor: Visitor) -> web.HTTPException:
        wait_s = self._wrong_tokens.wait_s(visitor.address) if "Authorization" in request.headers else 0
        if wait_s:
            return web.HTTPTooManyRequests(
                text="too many wrong tokens came from this address: wait, then try again",
                headers={"Retry-After": str(wait_s)},
            )
        page = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
        if page and self.access.admin_token is not None:
            # Without its query, which is not for other addresses to hold.
            return web.HTTPSeeOther("/sign-in?" + urlencode({"next": request.rel_url.raw_path}))
        headers = {"WWW-Authenticate": 'Bearer realm="evbatteryd"'}
        return web.HTTPUnauthorized(text=self._how_to_get_in(), headers=headers)

    def _how_to_get_in(self) -> str:
        if self.access.admin_token is not None:
            return 'this is for those who run evbatteryd: sign in, or send "Authorization: Bearer TOKEN"'
        return (
            "this is for those who run evbatteryd. Open it at the machine itself (or through an SSH tunnel), "
            "or set admin_token in [http]; open_to_read = true there lets everybody see the cars"
        )

    def _must_be_our_form(self, request: web.Request, fields: MultiMapping[object]) -> None:
        """Raises HTTPForbidden for what another site may have made the browser send."""
        sent, browser = fields.get(FORM_FIELD), self.browser(request)
        ours = isinstance(sent, str) and browser is not None and _same(sent, self._mark("form", browser))
        if not ours or self._foreign(request):
            raise web.HTTPForbidden(
                text="this form was not made here, or is too old. Load the page anew and try again; "
                "cookies have to be allowed"
            )

    def _foreign(self, request: web.Request) -> bool:
        """Whether the browser says that a page of another site sent this. Others say nothing."""
        site = request.headers.get("Sec-Fetch-Site")
        if site is not None:
            return site not in ("same-origin", "none")
        origin = request.headers.get("Origin")
        # Whether the browser speaks HTTPS is not always known here: a proxy need not tell.
        names = [f"http://{request.host}", f"https://{request.host}", self.access.public_url or ""]
        return origin is not None and _origin_of(origin) not in {*filter(None, map(_origin_of, names))}


async def _form_of(request: web.Request) -> MultiMapping[object]:
    """The fields of a form; none if something else was sent. Raises HTTPException if it cannot be read.

    Forms of ours are encoded in one way. The others, which foreign pages can send, too, are not even parsed.
    """
    if request.content_type.startswith("multipart/") or (request.charset or "utf-8").lower() != "utf-8":
        raise web.HTTPUnsupportedMediaType(text="send application/x-www-form-urlencoded or JSON, in UTF-8")
    await body_of(request)
    try:
        return await request.post()
    except ValueError:
        raise web.HTTPBadRequest(text="this form is not in UTF-8") from None


def safe_next(path: str) -> str:
    """``path`` if it leads to a page of ours; ``/`` if it might lead anywhere else."""
    return path if _OURS.fullmatch(path) else "/"


def _same(one: str, other: str) -> bool:
    """Compared in a time that tells nothing."""
    return hmac.compare_digest(_bytes(one), _bytes(other))


def _bytes(text: str) -> bytes:
    """A header that is not UTF-8 comes with lone surrogates in it."""
    return text.encode(errors="surrogatepass")


def _peer(request: web.Request) -> str:
    """The address at the other end of the connection."""
    return request.remote or UNIX


def host_of(request: web.Request) -> str:
    """The name under which the browser knows us, without its port, in lower case; empty if it is no name."""
    return _name_in(request.headers.get("Host", ""))


def _name_in(authority: str) -> str:
    """``[::1]:9782`` -> ``::1``, ``Host:80`` -> ``host``; an address without brackets and port as it is."""
    if _ip(authority) is not None:
        return authority
    found = _HOST.fullmatch(authority)
    if found is None or int(found["port"] or 0) > 65_535:
        return ""
    return found["name"].strip("[]").lower()


def _origin_of(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what has none, such as ``null``."""
    try:
        parts: SplitResult = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
        return None
    return parts.scheme, parts.hostname, port or _DEFAULT_PORTS[parts.scheme]


def is_loopback(name: str) -> bool:
    """Whether this name or address is that of the machine itself, whatever any name server says."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    found = _ip(name)
    return found is not None and found.is_loopback


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    """An IPv4 address in the guise of an IPv6 one is told as what it is."""
    try:
        found = ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _within(address: str, networks: tuple[Network, ...]) -> bool:
    found = _ip(address)
    return found is not None and any(found in network for network in networks)


def _counted_by(address: str) -> str:
    found = _ip(address)
    if isinstance(found, IPv6Address) and not found.is_loopback:
        return str(IPv6Network((int(found), 64), strict=False))
    return address if found is None else str(found)

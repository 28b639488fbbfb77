"""Those who look at the web: browsers that keep cookies and fill in forms, at the machine or far away."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import unescape
from urllib.parse import parse_qs, urlsplit

import aiohttp

from tests.web.conftest import PATIENCE, Site

USER = "b6e1f2a4-0c3d-4e5f-8a9b-1c2d3e4f5a6b"
"""A user's id, as Smartcar's redirect holds it: it must show up nowhere."""
AWAY = {"Via": "1.1 proxy.example.org"}
"""What a proxy adds: whoever comes through one is not at the machine."""


@dataclass(frozen=True)
class Seen:
    """What somebody got to see."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def location(self) -> str:
        return self.headers["Location"]

    @property
    def everything(self) -> str:
        return self.text + "".join(f"\n{name}: {value}" for name, value in self.headers.items())

    @property
    def words(self) -> str:
        """Its text as people read it."""
        return " ".join(unescape(re.sub(r"<[^>]+>", " ", self.text)).split())


class Person:
    """Somebody at a browser that follows no redirect by itself."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.url = url
        self.client = client

    async def get(self, path: str, **headers: str) -> Seen:
        return await self._ask("GET", path, headers=headers)

    async def post(self, path: str, **fields: str) -> Seen:
        """A form that is made up."""
        return await self._ask("POST", path, data=fields)

    async def submit(self, page: str, path: str, **fields: str) -> Seen:
        """The form of that page that leads to ``path``, filled in."""
        shown = await self.get(page)
        assert f'action="{path}"' in shown.text, shown.words
        found = re.search(r'name="form" value="([0-9a-f]{64})"', shown.text)
        assert found is not None
        return await self.post(path, form=found[1], **fields)

    async def set_out(self, **fields: str) -> str:
        """Off to Connect; returns the state that it is told."""
        seen = await self.submit("/enrol", "/enrol", **fields)
        assert seen.status == 303, seen.words
        return state_of(seen.location)

    async def come_back(self, state: str, **answer: str) -> Seen:
        """As Connect leads back: with a consent unless ``answer`` says otherwise."""
        query = {"state": state} | (answer or {"user_id": USER, "code": "8f3c"})
        return await self._ask("GET", "/enrol/callback", params=query)

    async def _ask(self, method: str, path: str, **more: object) -> Seen:
        async with self.client.request(method, self.url + path, allow_redirects=False, **more) as answer:
            return Seen(answer.status, answer.headers.copy(), await answer.text())


def state_of(link: str) -> str:
    """The state in Connect's address."""
    return parse_qs(urlsplit(link).query)["state"][0]


@asynccontextmanager
async def person(site: Site, *, away: bool = False) -> AsyncIterator[Person]:
    """A new browser, at the machine or ``away``."""
    url = site.url.replace("127.0.0.1", "localhost")
    async with aiohttp.ClientSession(timeout=PATIENCE, headers=AWAY if away else None) as client:
        yield Person(url, client)

"""Deliveries over real HTTP: handed on as they came, bounded in size, time, number and mistakes."""

from __future__ import annotations

import asyncio
import gzip
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from ipaddress import ip_network

import aiohttp
import pytest
from structlog.testing import capture_logs

from evbatteryd.domain.webhook import WebhookAnswer
from evbatteryd.flow import intake
from evbatteryd.web import answers, receiving
from evbatteryd.web.guard import Access
from tests.fakes import settle, until
from tests.web.builders import MINUTE, Delivered
from tests.web.conftest import LOCAL_KEY, Serve, Site

PATH = "/webhooks/smartcar"
SIGNATURE = "0f" * 32
SMARTCAR_WAITS_S = 15.0
"""https://smartcar.com/docs/integrations/webhooks/best-practices/reliability"""
BODY = b'{ "b": 1,\t"a": "\xc3\xa4 \xff" }\n'
"""Neither as JSON would be written again, nor all of it text."""
EXPOSED = Access(local_key=LOCAL_KEY, public_url="https://ev.example.org")
PROXIED = replace(EXPOSED, trusted_proxies=(ip_network("127.0.0.0/8"),))


async def delivered(
    site: Site, body: bytes = BODY, path: str = PATH, **headers: str
) -> tuple[int, dict[str, object], dict[str, str]]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with site.client.post(site.url + path, data=body, headers=named) as answer:
        return answer.status, await answer.json(), dict(answer.headers)


async def test_a_delivery_is_handed_on_byte_by_byte(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        site.webhook.answer = WebhookAnswer(202, {"challenge": "x"})
        status, document, _ = await delivered(site, SC_Signature=SIGNATURE)
        assert (status, document) == (202, {"challenge": "x"})
        await delivered(site, b"", f"{PATH}/home", sc_signature=SIGNATURE)
        await delivered(site, b"x", f"{PATH}/fleet%20two")
        assert site.webhook.delivered == [
            Delivered(BODY, SIGNATURE, None),
            Delivered(b"", SIGNATURE, "home"),
            Delivered(b"x", None, "fleet two"),
        ]
        assert site.webhook.refusals == []


async def test_any_content_type_will_do(serve: Serve) -> None:
    """Nothing of it is a form: what is signed are the bytes."""
    async with serve(access=EXPOSED) as site:
        for kind in ("application/json", "multipart/form-data", "application/x-www-form-urlencoded", "x"):
            assert (await delivered(site, Content_Type=kind))[0] == 200
        assert {one.body for one in site.webhook.delivered} == {BODY}


async def test_two_signatures_are_none_that_fits(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        twice = [("SC-Signature", SIGNATURE), ("SC-Signature", "1" * 64)]
        async with site.client.post(site.url + PATH, data=BODY, headers=twice):
            pass
        assert site.webhook.delivered[0].signature == f"{SIGNATURE}, {'1' * 64}"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_deliveries_are_posted(serve: Serve, method: str) -> None:
    async with (
        serve(access=EXPOSED) as site,
        site.client.request(method, site.url + PATH) as answer,
    ):
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert site.webhook.delivered == []


async def test_what_is_too_large_is_not_read(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        most = b"a" * answers.LARGEST_BODY
        assert (await delivered(site, most, SC_Signature=SIGNATURE))[0] == 200
        status, document, _ = await delivered(site, most + b"a", SC_Signature=SIGNATURE)
        assert (status, document["status"]) == (413, 413)

        # It is refused for what it says of itself: nothing of it has to arrive.
        head = b"POST /webhooks/smartcar HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n"
        assert await sent(site, head) == 413

        async def endless() -> AsyncIterator[bytes]:
            for _ in range(40):
                yield b"a" * 8192

        # Without a Content-Length its size shows only as it comes.
        async with site.client.post(site.url + PATH, data=endless()) as answer:
            assert answer.status == 413
        assert [len(one.body) for one in site.webhook.delivered] == [answers.LARGEST_BODY]
        assert site.webhook.refusals == ["too_large"] * 3


async def test_a_small_body_that_unpacks_to_a_large_one_is_too_large(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        packed = gzip.compress(b"a" * (answers.LARGEST_BODY * 50))
        assert len(packed) < answers.LARGEST_BODY
        assert (await delivered(site, packed, Content_Encoding="gzip"))[0] == 413
        assert site.webhook.refusals == ["too_large"]


async def test_what_trickles_in_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    assert receiving.BODY_WITHIN_S + intake.ANSWERED_WITHIN_S < SMARTCAR_WAITS_S
    monkeypatch.setattr(receiving, "BODY_WITHIN_S", 0.01)
    async with serve(access=EXPOSED) as site:
        status = await sent(
            site, b"POST /webhooks/smartcar HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nab"
        )
        assert status == 408
        assert site.webhook.refusals == ["too_slow"]
        assert site.webhook.delivered == []


async def test_what_is_cut_off_or_damaged_is_not_handed_on(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(access=EXPOSED) as site:
        head = b"POST /webhooks/smartcar HTTP/1.1\r\nHost: x\r\n"
        assert await sent(site, head + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc") == 400
        assert site.webhook.refusals == ["damaged"]
        # No HTTP at all: answered before any of our parts sees it, and nothing of it is logged.
        for rubbish in (
            head + b"Transfer-Encoding: chunked\r\n\r\nsecret\r\n",
            head + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
            head + b"Host: y\r\n\r\n",
            b"POST /webhooks/smartcar?secret HTTP/9\r\n\r\n",
        ):
            assert await sent(site, rubbish) == 400
        assert site.webhook.delivered == []
    assert not caplog.records


async def sent(site: Site, raw: bytes) -> int:
    """What is answered to these bytes, of which no more come."""
    host, port = site.url.removeprefix("http://").split(":")
    incoming, outgoing = await asyncio.open_connection(host, int(port))
    outgoing.write(raw)
    status = int((await incoming.readline()).split(b" ")[1])
    outgoing.close()
    await outgoing.wait_closed()
    return status


@dataclass
class Begun:
    """A delivery whose last byte has not been sent."""

    incoming: asyncio.StreamReader
    outgoing: asyncio.StreamWriter

    async def answered(self) -> int:
        return int((await self.incoming.readline()).split(b" ")[1])

    async def ended(self) -> int:
        """What is answered to all of it."""
        self.outgoing.write(b"c")
        return await self.answered()

    async def hang_up(self) -> None:
        self.outgoing.close()
        await self.outgoing.wait_closed()


async def begin(
    site: Site, stack: AsyncExitStack, *, of: str = "192.0.2.7", path: str = PATH, more: str = ""
) -> Begun:
    host, port = site.url.removeprefix("http://").split(":")
    one = Begun(*await asyncio.open_connection(host, int(port)))
    stack.push_async_callback(one.hang_up)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {of}\r\nContent-Length: 3\r\n{more}"
    one.outgoing.write(f"{head}Expect: 100-continue\r\n\r\nab".encode())
    # That is said when the head is understood; right after it the body is waited for.
    assert await one.answered() == 100
    await one.incoming.readline()
    await settle()
    return one


async def test_slow_bodies_keep_nobody_out(serve: Serve) -> None:
    async with serve(access=PROXIED) as site, AsyncExitStack() as stack:
        slow = [
            await begin(site, stack, of=f"192.0.2.{number % 4}") for number in range(receiving.MOST_AT_ONCE)
        ]
        assert (await delivered(site, SC_Signature=SIGNATURE))[0] == 200
        assert await slow[0].ended() == 200
        assert [one.body for one in site.webhook.delivered] == [BODY, b"abc"]
        assert site.webhook.refusals == []


async def test_an_address_has_so_many_bodies_under_way(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MOST_READING_EACH", 2)
    async with serve(access=PROXIED) as site, AsyncExitStack() as stack:
        first, _ = [await begin(site, stack) for _ in range(2)]
        third = await begin(site, stack)
        assert await third.answered() == 503
        assert b"Retry-After: 10" in await third.incoming.readuntil(b"\r\n\r\n")
        assert site.webhook.refusals == ["too_many"]
        assert await (await begin(site, stack, of="192.0.2.8")).ended() == 200
        # What has come as a whole is not waited for: Smartcar's, behind a proxy that is not trusted.
        head = b"POST /webhooks/smartcar HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.7\r\n"
        assert await sent(site, head + b"Content-Length: 3\r\n\r\nabc") == 200
        assert await first.ended() == 200
        assert await (await begin(site, stack)).ended() == 200


async def test_so_many_bodies_are_under_way_in_all(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MOST_READING", 2)
    async with serve(access=PROXIED) as site, AsyncExitStack() as stack:
        first, second = [await begin(site, stack, of=f"192.0.2.{number}") for number in range(2)]
        assert await (await begin(site, stack)).answered() == 503
        assert await first.ended() == 200
        # Who hangs up takes up no room.
        await second.hang_up()
        await until(lambda: site.webhook.refusals == ["too_many", "damaged"])
        again = [await begin(site, stack) for _ in range(2)]
        assert [await one.ended() for one in again] == [200, 200]


@pytest.mark.parametrize("path", [PATH, "/sign-in", "/api/invitations"])
async def test_who_hangs_up_in_the_middle_is_no_mistake_of_ours(
    serve: Serve, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(access=EXPOSED) as site, AsyncExitStack() as stack:
        idle = asyncio.all_tasks()
        with capture_logs() as log:
            for _ in range(3):
                one = await begin(site, stack, path=path, more=f"Authorization: Bearer {LOCAL_KEY}\r\n")
                await one.hang_up()
            await until(lambda: asyncio.all_tasks() <= idle)
        assert site.webhook.refusals == (["damaged"] * 3 if path == PATH else [])
        assert log == []
    assert not caplog.records


async def test_a_flood_is_told_to_come_again(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        site.webhook.gate.clear()
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

            async def deliver() -> int:
                async with client.post(site.url + PATH, data=BODY) as answer:
                    if answer.status == 503:
                        assert answer.headers["Retry-After"] == "10"
                    return answer.status

            flood = [asyncio.create_task(deliver()) for _ in range(receiving.MOST_AT_ONCE + 20)]
            await until(lambda: sum(task.done() for task in flood) == 20)
            assert len(site.webhook.delivered) == receiving.MOST_AT_ONCE
            site.webhook.gate.set()
            statuses = await asyncio.gather(*flood)
        assert sorted(statuses) == [200] * receiving.MOST_AT_ONCE + [503] * 20
        assert site.webhook.refusals == ["too_many"] * 20
        assert (await delivered(site))[0] == 200


@pytest.mark.parametrize("status", [400, 401])
async def test_whoever_is_not_believed_has_to_wait(serve: Serve, status: int) -> None:
    async with serve(access=EXPOSED) as site:
        site.webhook.answer = WebhookAnswer(status, {"error": "no"})
        for _ in range(receiving.REFUSED.burst):
            assert (await delivered(site))[0] == status
        read = len(site.webhook.delivered)
        for signature in ("", "0f" * 31, "0g" * 32, SIGNATURE + "0", f"{SIGNATURE}, {SIGNATURE}"):
            refused, _, headers = await delivered(site, SC_Signature=signature)
            assert (refused, headers["Retry-After"]) == (429, "1")
        assert len(site.webhook.delivered) == read
        assert site.webhook.refusals == ["too_often"] * 5
        # What looks signed is read all the same: it may be Smartcar, behind the same proxy.
        assert (await delivered(site, SC_Signature=SIGNATURE))[0] == status
        assert (await delivered(site, SC_Signature=SIGNATURE.upper()))[0] == status
        await site.clock.advance(MINUTE)
        assert (await delivered(site))[0] == status


async def test_whatever_cannot_be_read_counts_as_not_believed(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        site.webhook.answer = WebhookAnswer(401, {"error": "no"})
        for _ in range(receiving.REFUSED.burst - 1):
            assert (await delivered(site))[0] == 401
        head = b"POST /webhooks/smartcar HTTP/1.1\r\nHost: x\r\n"
        assert await sent(site, head + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc") == 400
        assert (await delivered(site))[0] == 429


async def test_what_is_taken_or_cannot_be_taken_now_is_never_too_often(serve: Serve) -> None:
    async with serve(access=EXPOSED) as site:
        for status in (200, 404, 503):
            site.webhook.answer = WebhookAnswer(status, {})
            for _ in range(50):
                assert (await delivered(site))[0] == status


async def test_a_delivery_needs_no_right_and_tells_no_log(serve: Serve) -> None:
    secret = os.urandom(8).hex()
    async with serve(access=EXPOSED) as site:
        with capture_logs() as log:
            await delivered(site, secret.encode(), f"{PATH}?key={secret}", SC_Signature=SIGNATURE)

            async def fail(*_: object) -> WebhookAnswer:
                raise RuntimeError("a bug")

            site.webhook.receive = fail
            status, document, _ = await delivered(site, secret.encode(), f"{PATH}/{secret}?key={secret}")
        assert (status, document["status"]) == (500, 500)
        assert [line["event"] for line in log] == ["http.failed"]
        assert secret not in str(log)
        assert secret not in str(document)

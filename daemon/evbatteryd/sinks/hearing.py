"""What is heard on MQTT: hints and commands on ``BASE/VEHICLE/.../set``, and the answers to them.

Whoever may publish there may send what they like as often as they like. So what waits to be taken is bounded
for each car, and a flood of one car's messages crowds out nothing but itself. A retained one is not taken: a
broker tells it again and again, long after it was meant.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterable, Callable, Container, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import aiomqtt
import orjson
import paho.mqtt.client as paho

from evbatteryd.domain.commanding import CommandAnswer, CommandKind
from evbatteryd.domain.hinting import HintAnswer, label_of
from evbatteryd.domain.ports import Commands, Hints, Log, Tally
from evbatteryd.sinks.connection import Connection

EVENT: Final = "event"
"""The kind of what is no command but a hint."""
KINDS: Final = (EVENT, *CommandKind)
HEARERS: Final = 8
"""Hints that are taken at a time: as many as may wait for the store."""
MOST_COMMANDS_EACH: Final = 8
"""Commands to one car whose answers are awaited at a time; and to all that are no cars of ours together."""
MOST_REQUESTERS_EACH: Final = 8
"""Who joined a command to one car, and wants its answers on a topic of their own."""
REFUSALS_APART_S = 0.1
"""Real seconds that a place is held after a refusal: nonsense is not answered as fast as it is sent."""
ANSWER_WAITS_S: Final = 60.0
"""Real seconds that an answer waits for a connection."""
ANSWER_AGAIN_S = 0.1
"""Real seconds after which an answer that the connection took with it is told again."""
MOST_WAITING: Final = 4_096
MOST_WAITING_EACH: Final = 8
"""Messages to one car; and to all that are no cars of ours together."""
LONGEST_LEVEL: Final = 128
"""Characters of a topic's level that may name a car. Slugs have 64 at most."""
LONGEST_HINT: Final = 256
"""Bytes. What is longer is cut, and then no hint of ours."""
LONGEST_RESPONSE_TOPIC: Final = 1_024
"""Characters."""
DEEPEST_RESPONSE_TOPIC: Final = 64
"""Slashes. Brokers hang up upon too many: mosquitto upon 200."""
_WILDCARDS: Final = frozenset("+#\0")


class Heard(NamedTuple):
    """One message on a topic of hints or commands."""

    level: str
    """The vehicle, as the topic names it."""
    kind: str
    """One of :data:`KINDS`."""
    text: str
    response_topic: str | None = None
    correlation: bytes | None = None
    """What a requester knows its answer by (MQTT 5)."""


@dataclass(frozen=True, slots=True)
class ControlTopics:
    """Where hints and commands come from and where their answers go, below one base topic.

    ``prefix``: of Home Assistant's discovery.
    """

    base: str
    prefix: str

    @property
    def patterns(self) -> tuple[str, ...]:
        return tuple(f"{self.base}/+/{kind}/set" for kind in KINDS)

    def read(self, topic: str) -> tuple[str, str] | None:
        """Vehicle and kind that a topic of :attr:`patterns` names; None if that can be no vehicle of ours."""
        level, _, rest = topic.removeprefix(f"{self.base}/").partition("/")
        kind = rest.removesuffix("/set")
        return (level, kind) if level and len(level) <= LONGEST_LEVEL and kind in KINDS else None

    def result(self, level: str, kind: str) -> str:
        return f"{self.base}/{level}/{kind}/result"

    def response(self, asked: object) -> str | None:
        """Where a requester wants its answer, if we may publish there.

        Not below our own base topic, nor where Home Assistant listens: nobody may have us say there what is
        not so.
        """
        if not isinstance(asked, str) or not 0 < len(asked) <= LONGEST_RESPONSE_TOPIC:
            return None
        if asked.count("/") > DEEPEST_RESPONSE_TOPIC:
            return None
        ours = any(asked == root or asked.startswith(f"{root}/") for root in (self.base, self.prefix))
        return None if ours or asked.startswith("$") or _WILDCARDS & set(asked) else asked


class Inbox:
    """Messages that wait to be taken, oldest first. ``slugs``: those of cars, past ones too."""

    def __init__(self, slugs: Container[str]) -> None:
        self._slugs = slugs
        self._waiting: deque[tuple[str | None, Heard]] = deque()
        self._each: Counter[str | None] = Counter()
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, heard: Heard) -> bool:
        """Whether there was room for it."""
        who = heard.level if heard.level in self._slugs else None
        if len(self._waiting) >= MOST_WAITING or self._each[who] >= MOST_WAITING_EACH:
            return False
        self._each[who] += 1
        self._waiting.append((who, heard))
        self._arrived.set()
        return True

    async def take(self) -> Heard:
        """The oldest; waits for one."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        who, heard = self._waiting.popleft()
        self._each[who] -= 1
        if not self._each[who]:
            del self._each[who]
        return heard


def text_of(payload: bytes) -> str:
    """What a payload says: plain text, or a JSON string."""
    if len(payload) <= LONGEST_HINT and payload.lstrip().startswith(b'"'):
        try:
            told = orjson.loads(payload)
        except orjson.JSONDecodeError:
            told = None
        if isinstance(told, str):
            return told
    return payload[: LONGEST_HINT + 1].decode("utf-8", "replace")


def answer_json(answer: HintAnswer | CommandAnswer) -> bytes:
    """The payload of ``BASE/VEHICLE/KIND/result``."""
    return orjson.dumps(answer.document(), _written, orjson.OPT_PASSTHROUGH_DATETIME)


def _written(at: datetime) -> str:
    """Like the times of the state."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Ears:
    """Takes what arrives to hints and commands, and answers.

    ``established``: the present connection, as soon as there is one. ``origin``: what the takers are told of
    the way that it came.
    """

    def __init__(
        self,
        topics: ControlTopics,
        slugs: Container[str],
        hints: Hints,
        commands: Commands,
        tally: Tally,
        log: Log,
        *,
        origin: str,
        established: Callable[[], Coroutine[Any, Any, Connection]],
    ) -> None:
        self.topics = topics
        self._hints = hints
        self._commands = commands
        self._tally = tally
        self._log = log
        self._origin = origin
        self._established = established
        self._inbox = Inbox(slugs)
        self._slugs = slugs
        self._commanding: set[asyncio.Task[None]] = set()
        self._followed: set[AsyncIterable[CommandAnswer]] = set()
        """Commands whose answers are told where everybody may see them."""
        self._awaited: Counter[str | None] = Counter()
        self._requesters: Counter[str | None] = Counter()
        """Of each car (None: of all that are no cars of ours), how many answers are awaited."""
        self._said: set[str] = set()

    def hear(self, message: paho.MQTTMessage) -> None:
        """Put what arrived where it is taken. Called for every message, however many: does little."""
        found, text = self.topics.read(message.topic), text_of(bytes(message.payload))
        if found is None:
            self._count(EVENT, text, "dropped")
            return
        level, kind = found
        if message.retain:
            self._count(kind, text, "retained")
            self._say("mqtt.control_retained", kind, "Publish events and commands without the retain flag.")
            return
        asked = self.topics.response(getattr(message.properties, "ResponseTopic", None))
        correlation = getattr(message.properties, "CorrelationData", None)
        heard = Heard(level, kind, text, asked, correlation)
        if not self._inbox.put(heard):
            self._drop(heard)

    async def take(self) -> None:
        """Take one after the other, whether there is a connection or not; until cancelled."""
        try:
            while True:
                heard = await self._inbox.take()
                if heard.kind != EVENT:
                    self._command(heard)
                    continue
                answer = await self._hints.told(heard.level, heard.text, self._origin)
                with suppress(TimeoutError):
                    await self._answer(heard, answer)
                if answer.outcome.result == "refused":
                    await asyncio.sleep(REFUSALS_APART_S)
        finally:
            for task in self._commanding:
                task.cancel()

    def _command(self, heard: Heard) -> None:
        """Its answers may take minutes: nobody else waits for them. They are told once where everybody sees
        them, however many joined in it, and to each requester who may be told."""
        who = heard.level if heard.level in self._slugs else None
        if self._awaited[who] >= MOST_COMMANDS_EACH:
            self._drop(heard)
            return
        answers = self._commands.give(heard.level, CommandKind(heard.kind), heard.text, self._origin)
        if answers not in self._followed:
            self._followed.add(answers)
            task = self._follow(heard, answers, self._awaited, who, joined=False)
            task.add_done_callback(lambda _: self._followed.discard(answers))
        elif heard.response_topic is not None:
            if self._requesters[who] >= MOST_REQUESTERS_EACH:
                self._drop(heard)
                return
            self._follow(heard, answers, self._requesters, who, joined=True)

    def _follow(
        self,
        heard: Heard,
        answers: AsyncIterable[CommandAnswer],
        places: Counter[str | None],
        who: str | None,
        *,
        joined: bool,
    ) -> asyncio.Task[None]:
        def over(task: asyncio.Task[None]) -> None:
            places[who] -= 1
            if not places[who]:
                del places[who]
            self._commanding.discard(task)
            if not task.cancelled() and (bug := task.exception()) is not None:
                self._log.error("command.bug", exc_info=bug)

        task = asyncio.create_task(self._pass_on(heard, answers, joined), name=f"command {heard.kind}")
        places[who] += 1
        self._commanding.add(task)
        task.add_done_callback(over)
        return task

    def _drop(self, heard: Heard) -> None:
        self._count(heard.kind, heard.text, "dropped")
        self._say("mqtt.control_dropped", heard.kind, "Look for whoever publishes so many.")

    async def _pass_on(self, heard: Heard, answers: AsyncIterable[CommandAnswer], joined: bool) -> None:
        async for answer in answers:
            with suppress(TimeoutError):
                await self._answer(heard, answer, joined=joined)
            if answer.outcome.refused:
                await asyncio.sleep(REFUSALS_APART_S)

    async def _answer(
        self, heard: Heard, answer: HintAnswer | CommandAnswer, *, joined: bool = False
    ) -> None:
        """Where everybody may see it, unless somebody else's command was ``joined``, and where a requester
        asked for it. Raises TimeoutError."""
        payload = answer_json(answer)
        ways: list[tuple[str | None, bytes | None]] = [
            (None if joined else self.topics.result(heard.level, heard.kind), None),
            (heard.response_topic, heard.correlation),
        ]
        async with asyncio.timeout(ANSWER_WAITS_S):
            for topic, correlation in ways:
                again = topic != heard.response_topic
                if topic is not None and await self._tell(topic, payload, correlation, again=again):
                    self._say("mqtt.answer_refused", heard.kind, "Allow this user to publish answers.")

    async def _tell(self, topic: str, payload: bytes, correlation: bytes | None, *, again: bool) -> bool:
        """Tell an answer, over the next connection if it is to be told again. Whether the broker refused it.

        Where somebody else wants it, only once: a broker may hang up upon that topic.
        """
        while True:
            connection = await self._established()
            try:
                await connection.slot()
                told = await connection.answer(topic, payload, correlation)
            except aiomqtt.MqttError:
                told = None
            if told is not None:
                self._tally.published(0 if told.is_failure else 1)
                return told.is_failure
            if not again:
                return False
            await asyncio.sleep(ANSWER_AGAIN_S)

    def _count(self, kind: str, text: str, outcome: str) -> None:
        if kind == EVENT:
            self._tally.hint(label_of(text), outcome)
        else:
            self._tally.command(kind, outcome)

    def _say(self, event: str, kind: str, mend: str) -> None:
        """Once: how often it happens is counted."""
        if event not in self._said:
            self._said.add(event)
            self._log.warning(event, topic=f"{self.topics.base}/+/{kind}/set", mend=mend)

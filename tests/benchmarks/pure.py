"""What deciding costs: one answer parsed, checked, merged, and the next poll decided; who goes first."""

from __future__ import annotations

import argparse
import random
import timeit
from datetime import timedelta

import orjson

from evbatteryd.brands import load_profiles
from evbatteryd.domain.cadence import Answered, Facts, activity, next_poll
from evbatteryd.domain.ledger import Share
from evbatteryd.domain.plausibility import plausible
from evbatteryd.domain.reading import BatteryState, Signal, merge
from evbatteryd.domain.vehicle import VehicleId
from evbatteryd.domain.worth import Claim
from evbatteryd.flow.waiting import WaitingRoom
from evbatteryd.sources.smartcar_answers import observe, parse_page
from tests.benchmarks.upstream import signals
from tests.fakes import START

ROUNDS = 20_000
CROWDS = (1_000, 100_000)
"""Cars that wait for the same request."""


def run(options: argparse.Namespace) -> None:
    profile = load_profiles()["renault"]
    earlier = signals(55.0, START - timedelta(minutes=30))
    body = orjson.dumps({"data": signals(56.0, START), "links": {"next": None}})
    before, _ = merge(BatteryState(), observe(tuple(earlier), START).measurements)
    observation = observe(parse_page(body, "the list").resources, START)
    after, _ = merge(before, observation.measurements)
    facts = Facts(
        profile=profile,
        outcome=Answered(frozenset({Signal.SOC})),
        activity=activity(before, after, profile, START),
        share=Share(
            calls_left=400,
            calls=500,
            began_at=START - timedelta(days=21),
            renews_at=START + timedelta(days=9),
            application_interval=timedelta(minutes=10),
        ),
    )
    parts = {
        "parse one answer (10 signals)": lambda: observe(parse_page(body, "the list").resources, START),
        "plausible": lambda: plausible(observation, before, START),
        "merge": lambda: merge(before, observation.measurements),
        "activity and next_poll": lambda: (
            activity(before, after, profile, START),
            next_poll(facts, START),
        ),
    }
    total = 0.0
    for name, part in parts.items():
        best = min(timeit.repeat(part, number=ROUNDS, repeat=3)) / ROUNDS * 1e6
        total += best
        print(f"{name:<34} {best:8.1f} us")
    print(f"{'together':<34} {total:8.1f} us")
    contention()


def contention() -> None:
    """One car let in, the worthiest let out, of so many that wait, of all brands and all slopes."""
    dice, brands = random.Random(0), sorted(load_profiles())
    for crowd in CROWDS:
        room = WaitingRoom()
        claims = [
            Claim(
                due=START - timedelta(seconds=dice.uniform(0, 3600)),
                since=START - timedelta(seconds=dice.uniform(3600, 36000)),
                slope=10 ** dice.uniform(-3, 0),
            )
            for _ in range(crowd)
        ]
        for number, claim in enumerate(claims):
            room.enter(VehicleId(number), dice.choice(brands), claim)

        asked = [Claim(due=START, since=START, slope=claim.slope) for claim in claims]

        def turn(room: WaitingRoom = room, asked: list[Claim] = asked) -> None:
            taken = room.take(START, lambda brand: True)
            assert taken is not None
            room.enter(taken, brands[taken % len(brands)], asked[taken])

        best = min(timeit.repeat(turn, number=ROUNDS // 10, repeat=3)) / (ROUNDS // 10) * 1e6
        print(f"{f'take and enter, {crowd:,} waiting':<34} {best:8.1f} us")

"""``python -m tests.benchmarks [NAME ...] [--seconds N] [--vehicles N ...] [--quick]``."""

from __future__ import annotations

import argparse

from tests.benchmarks import end_to_end, memory, mqtt, pure, webhooks

BENCHMARKS = {
    "pure": pure.run,
    "end-to-end": end_to_end.run,
    "webhooks": webhooks.run,
    "mqtt": mqtt.run,
    "memory": memory.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="which; all by default")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each measured stretch")
    parser.add_argument("--vehicles", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--quick", action="store_true", help="mqtt: a tenth of everything")
    options = parser.parse_args()
    for name in options.names or BENCHMARKS:
        print(f"# {name}", flush=True)
        BENCHMARKS[name](options)


if __name__ == "__main__":
    main()

"""``python -m evbatteryd.simulator``."""

from evbatteryd.simulator.command import simulate

if __name__ == "__main__":
    simulate()

"""A pretend Smartcar, with cars that drive and charge, for demonstrations and tests.

It imports nothing of the daemon, so that no mistake can hide on both sides.
"""

from evbatteryd.simulator.server import Simulator
from evbatteryd.simulator.world import SimulatorOptions

__all__ = ["Simulator", "SimulatorOptions"]

"""Telematics APIs: each asks, and parses what it is answered. One row in SOURCES each."""

from evbatteryd.sources.smartcar import open_smartcar

SOURCES = {"smartcar": open_smartcar}

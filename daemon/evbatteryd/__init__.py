"""evbatteryd: click, consent, get the state of charge."""

__version__ = "0.1.0"

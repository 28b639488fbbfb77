"""Where everything is kept that must survive."""

from evbatteryd.store.sqlite import SqliteStore, open_store

__all__ = ["SqliteStore", "open_store"]

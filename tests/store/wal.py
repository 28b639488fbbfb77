"""SQLite's write-ahead log, read from outside (https://sqlite.org/fileformat2.html#walformat)."""

from __future__ import annotations

import struct
from pathlib import Path


def commits(path: Path) -> int:
    """Transactions in the log of the database at ``path``: its frames that end one."""
    data = path.with_name(path.name + "-wal").read_bytes()
    page_size, salts = struct.unpack_from(">I", data, 8)[0], data[16:24]
    frames = range(32, len(data) - page_size - 23, 24 + page_size)
    return sum(
        struct.unpack_from(">I", data, frame + 4)[0] > 0
        for frame in frames
        if data[frame + 8 : frame + 16] == salts
    )

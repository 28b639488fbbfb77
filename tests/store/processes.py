"""Processes that a test can kill."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def child(verb: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """One of the verbs of ``tests.store.child`` at work on the store at ``path``."""
    command = [sys.executable, "-m", "tests.store.child", verb, str(path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()

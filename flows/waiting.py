"""Wait for a lock file and say so. The kernel frees it when its holder dies, however that happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

Say = Callable[[str], None]

_SAY_EVERY_S = 60.0


@contextmanager
def waited_for(path: Path, words: str, say: Say) -> Iterator[None]:
    """Hold the lock of a file in the block; `words` say now and then what is waited for."""
    lock, patience_s = FileLock(path), 0.0
    while not lock.is_locked:
        try:
            lock.acquire(timeout=patience_s)
        except Timeout:
            say(words)
            patience_s = _SAY_EVERY_S
    try:
        yield
    finally:
        lock.release()

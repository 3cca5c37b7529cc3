"""Progress of long loops: a bar on a terminal, plain lines with rate and ETA elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
_LINE_EVERY_S = 5.0


def _one(item: object) -> int:
    return 1


def progress(
    items: Iterable[Item], name: str, total: int, size: Callable[[Item], int] = _one, num_done: int = 0
) -> Iterator[Item]:
    """Yield the items while showing how many of `total` are done, how fast, and when the rest will be.

    size: for how many an item counts. num_done: how many were done before.
    """
    if sys.stderr.isatty():
        with tqdm(desc=name, total=total, initial=num_done, dynamic_ncols=True) as bar:
            for item in items:
                yield item
                bar.update(size(item))
    else:
        yield from _with_lines(items, name, total, size, num_done)


def _with_lines(
    items: Iterable[Item], name: str, total: int, size: Callable[[Item], int], num_done: int
) -> Iterator[Item]:
    start = last = time.monotonic()
    done = num_done
    for item in items:
        yield item
        now, done = time.monotonic(), done + size(item)
        if now - last >= _LINE_EVERY_S or done == total:
            last = now
            print(_line(name, done, total, now - start, num_done), flush=True)


def _line(name: str, done: int, total: int, elapsed_s: float, num_before: int) -> str:
    rate = (done - num_before) / max(elapsed_s, 1e-9)
    remaining_s = int((total - done) / rate)
    eta = f"{remaining_s // 60}:{remaining_s % 60:02d}"
    return f"{name}: {done}/{total} ({100 * done // total}%) {rate:.2f}/s ETA {eta}"

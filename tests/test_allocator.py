"""Freed memory stays with the process: taking it again costs no new page."""

from __future__ import annotations

import ctypes
import platform
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minillm import allocator
from tests.imports import ROOT

COUNT_FAULTS = """
import resource, torch
from minillm.device import choose_compute

choose_compute("cpu", "float32", 1, 128, False)

def take_and_free():
    [torch.ones(24 * 2**18) for _ in range(4)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(10):
    take_and_free()
before = faults()
for _ in range(10):
    take_and_free()
print(faults() - before)
"""

PAGES_EACH_TIME = 4 * 24 * 2**20 // 4096
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, other ways")


def printed(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_is_freed_and_taken_again_has_its_pages() -> None:
    assert printed(COUNT_FAULTS) < PAGES_EACH_TIME  # of ten times; without it, often every time


@pytest.mark.parametrize("limited", ["RLIMIT_AS", "RLIMIT_DATA", None])
def test_where_addresses_are_limited_the_allocator_stays_as_it_is(
    limited: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    number = limited and getattr(resource, limited)
    infinite = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**33, 2**34) if kind == number else infinite)
    monkeypatch.setattr(allocator, "_OVERCOMMIT", Path("/nowhere"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *what: asked.append(what)))
    allocator.keep_freed_memory()
    assert bool(asked) == (limited is None)


def test_where_the_system_counts_addresses_the_allocator_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "overcommit_memory").write_text("2\n")
    monkeypatch.setattr(allocator, "_OVERCOMMIT", tmp_path / "overcommit_memory")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    asked: list[Any] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda *what: asked.append(what)))
    allocator.keep_freed_memory()
    assert asked == []

"""Freed memory stays with the process: taking it again costs no new page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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

TAKE_MOST_OF_WHAT_MAY_BE_TAKEN = """
import resource, torch
from minillm.device import choose_compute

used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 600 * 2**20,) * 2)
choose_compute("cpu", "float32", 1, 128, False)
print(len([torch.ones(20 * 2**18) for _ in range(20)]))
"""

PAGES_EACH_TIME = 4 * 24 * 2**20 // 4096
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, other ways")


def printed(code: str) -> int:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_is_freed_and_taken_again_has_its_pages() -> None:
    assert printed(COUNT_FAULTS) < PAGES_EACH_TIME  # of ten times; without it, often every time


def test_where_addresses_are_limited_none_are_taken_in_advance() -> None:
    assert printed(TAKE_MOST_OF_WHAT_MAY_BE_TAKEN) == 20

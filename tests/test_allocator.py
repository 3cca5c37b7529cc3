"""Freed memory stays with the process: taking it again costs no new page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.imports import ROOT

COUNT_FAULTS = """
import resource, sys, torch
if len(sys.argv) > 2:
    used_kib = int(open("/proc/self/statm").read().split()[0]) * 4
    resource.setrlimit(resource.RLIMIT_AS, ((used_kib + 600 * 1024) * 1024,) * 2)
from minillm.device import choose_compute

choose_compute(sys.argv[1], "float32", 1, 128, False)

def used(mib):
    torch.ones(mib * 2**18)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for mib in (8, 24):
    used(mib)
before = faults()
for _ in range(10):
    for mib in (8, 24):
        used(mib)
print(faults() - before)
"""


PAGES_EACH_TIME = (8 + 24) * 2**20 // 4096
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, other ways")


def num_faults(*arguments: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, "cpu", *arguments]
    return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_memory_that_is_freed_and_taken_again_has_its_pages() -> None:
    assert num_faults() < PAGES_EACH_TIME  # of ten times; without it, every time


def test_where_addresses_are_limited_none_are_taken_in_advance() -> None:
    assert num_faults("limited") > PAGES_EACH_TIME

"""Freed memory stays with the process: taking it again costs no new page."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.imports import ROOT

COUNT_FAULTS = """
import resource, sys, torch
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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory in its own way")
def test_memory_that_is_freed_and_taken_again_has_its_pages() -> None:
    command = [sys.executable, "-c", COUNT_FAULTS, "cpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    pages_each_time = (8 + 24) * 2**20 // 4096
    assert int(done.stdout) < pages_each_time  # of ten times; without it, every time

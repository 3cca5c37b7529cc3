"""Every foreseen failure of a stage has an exit code and one line of its own."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import tasks.__main__ as entry
from minillm.errors import DamagedError, NonFiniteError, UserError
from tasks.endings import DAMAGED, DISK_FULL, NON_FINITE, OUT_OF_MEMORY, SYSTEM_ERROR, USER_ERROR, ending
from tests.imports import ROOT


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (UserError("params.yaml: seed: missing"), USER_ERROR),
        (NonFiniteError("loss is nan"), NON_FINITE),
        (DamagedError("model: not as it was written"), DAMAGED),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), DISK_FULL),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), DISK_FULL),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "models"), SYSTEM_ERROR),
        (MemoryError(), OUT_OF_MEMORY),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), OUT_OF_MEMORY),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_a_foreseen_failure_has_its_exit_code(error: BaseException, exit_code: int) -> None:
    end = ending(error)
    assert end is not None and end.exit_code == exit_code and "\n" not in end.line


def test_an_unforeseen_failure_keeps_its_traceback() -> None:
    assert ending(RuntimeError("shapes do not match")) is None and ending(KeyError("name")) is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_fault_03_what_safetensors_says_of_a_full_disk_is_understood() -> None:
    with pytest.raises(OSError) as plain, open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")
    with pytest.raises(Exception, match="No space left") as caught:
        raise type("SafetensorError", (Exception,), {})(f"I/O error: {plain.value.strerror} (os error 28)")
    end = ending(caught.value)
    assert end is not None and end.exit_code == DISK_FULL


def test_fault_10_memory_that_the_processor_cannot_give_is_said_with_what_to_change() -> None:
    code = """
        import resource, sys, torch
        from tasks.endings import ending
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        try:
            torch.empty(16 << 30, dtype=torch.uint8)
        except RuntimeError as error:
            end = ending(error)
        print(end.line)
        sys.exit(end.exit_code)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == OUT_OF_MEMORY, done.stderr
    assert "micro_batch_tokens" in done.stdout and "gradient_checkpointing" in done.stdout


def test_sigterm_while_python_itself_ends_does_not_change_the_exit_code() -> None:
    code = """
import os, runpy, signal, sys

class Late:
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGTERM):
        kill(pid, number)

sys.late = Late()
sys.argv = ["tasks", "--help"]
runpy.run_module("tasks", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_sigterm_keeps_its_exit_code_when_a_library_turns_it_into_an_error_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Native modules do so while they are loaded: "ImportError: initialization failed"."""

    def load(*arguments: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except SystemExit as error:
            raise ImportError("initialization failed") from error

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(entry, "run_stage", load)
    try:
        assert entry.main(["report"]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)

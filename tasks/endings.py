"""How a stage that fails ends: one line that says why, and an exit code that says what kind of failure it was."""

from __future__ import annotations

import errno
import signal
from typing import NamedTuple

from minillm.errors import DamagedError, NonFiniteError, UserError

USER_ERROR, NON_FINITE, SYSTEM_ERROR, DISK_FULL, OUT_OF_MEMORY, DAMAGED = 2, 3, 4, 5, 6, 7
INTERRUPTED = 128 + signal.SIGINT
_NO_SPACE = "No space left on device"
# What torch on a CPU, torch on a GPU and Python say when memory is short.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_MEMORY_ADVICE = (
    "smaller micro-batches need less and give the same result: ...micro_batch_tokens, evaluate.score_batch_tokens, "
    "distill.rollout.batch_size, evaluate.batch_size; or runtime.gradient_checkpointing: true"
)


class Ending(NamedTuple):
    """What a failed stage leaves with."""

    exit_code: int
    line: str


def ending(error: BaseException) -> Ending | None:
    """Return how to end after a foreseen failure; None for one that needs its traceback."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return Ending(INTERRUPTED, "interrupted; nothing of this stage was published")
    for kind, code in ((UserError, USER_ERROR), (NonFiniteError, NON_FINITE), (DamagedError, DAMAGED)):
        if isinstance(error, kind):
            return Ending(code, f"error: {error}")
    if _is_disk_full(error, text):
        return Ending(DISK_FULL, f"error: the disk is full; nothing was half written: make room and run again ({text})")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _speaks_of_memory(text)):
        return Ending(OUT_OF_MEMORY, f"error: out of memory: {_MEMORY_ADVICE} ({text})")
    return Ending(SYSTEM_ERROR, f"error: {error}") if isinstance(error, OSError) else None


def _is_disk_full(error: BaseException, text: str) -> bool:
    """Return whether room was missing; safetensors and pyarrow have errors of their own for it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE in text


def _speaks_of_memory(text: str) -> bool:
    return any(words in text for words in _NO_MEMORY)

"""Named places where a test can make this process die or fail; without MINILLM_FAILPOINT they do nothing.

MINILLM_FAILPOINT=NAME:N:ACTION acts when NAME is passed for the Nth time (from 1): kill (SIGKILL), enospc (an OSError:
no space left), raise (a RuntimeError).
"""

from __future__ import annotations

import errno
import os
import signal

VARIABLE = "MINILLM_FAILPOINT"
_plan = os.environ.get(VARIABLE, "")
_times_passed = 0


def failpoint(name: str) -> None:
    """Act if the plan names this place and this time."""
    if _plan and _plan.startswith(f"{name}:"):
        _pass(*_plan.split(":")[1:])


def _pass(number: str, action: str) -> None:
    global _times_passed
    _times_passed += 1
    if _times_passed != int(number):
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "enospc":
        raise OSError(errno.ENOSPC, "no space left on device (failpoint)")
    else:
        raise RuntimeError(f"failpoint {_plan}")

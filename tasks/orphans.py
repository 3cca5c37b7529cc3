"""A stage ends when the DVC that started it has died: nobody would record it, and the next run would start another."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from tasks.lineage import UNDER_DVC, dvc_above

_EVERY_S = 1.0


def end_with_dvc() -> None:
    """From now on tell this process to end, as a user would, once its DVC is gone; a stage started by hand has none."""
    dvc = dvc_above()
    if dvc is not None:
        threading.Thread(target=_watch, args=(dvc,), name="dvc-watch", daemon=True).start()
    elif UNDER_DVC in os.environ:  # it died while this process was loading
        os.kill(os.getpid(), signal.SIGTERM)


def _watch(dvc: psutil.Process) -> None:
    while _is_alive(dvc):
        time.sleep(_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False

"""Run one stage: `python -m tasks STAGE`; apply a preset: `preset NAME`; send MLflow what waits for it: `sync`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tasks.endings import ending
from tasks.orphans import end_with_dvc
from tasks.runner import STAGES, run_stage

_SIGNAL_EXIT_BASE = 128
_signals: list[int] = []  # that told this process to end


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of one stage or preset; users' mistakes end in one line each, without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tasks", description=__doc__)
    parser.add_argument("stage", choices=[*STAGES, "preset", "sync"], help="a stage of dvc.yaml, `preset`, or `sync`")
    parser.add_argument("name", nargs="?", help="with `preset`: a name in configs/, or a path to an overlay")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    _quieten_libraries()
    _signals.clear()
    signal.signal(signal.SIGTERM, _end)
    try:
        _dispatch(parser, options)
    except (Exception, KeyboardInterrupt) as error:
        if _signals:  # a library that is being loaded may make another error of our SystemExit
            return _SIGNAL_EXIT_BASE + _signals[0]
        end = ending(error)
        if end is None:
            raise
        print(end.line, file=sys.stderr)
        return end.exit_code
    return 0


def _end(number: int, frame: object) -> NoReturn:
    """Leave through every `finally`, so that temporary files go and the run is closed as killed."""
    _signals.append(number)
    sys.exit(_SIGNAL_EXIT_BASE + number)


def _quieten_libraries() -> None:
    """Keep other libraries' notices and telemetry out, and bound how long their idle threads spin."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # docs/decisions/arithmetic.md
    for name in ("absl", "httpx"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _dispatch(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.stage in STAGES:
        end_with_dvc()
        run_stage(options.stage)
    elif options.stage == "sync":
        _sync()
    elif options.name is None:
        parser.error("preset needs a name")
    else:
        from tasks.preset import apply_preset

        print(apply_preset(options.name))


def _sync() -> None:
    from minillm.params import load_params
    from tasks.tracking import sync_records

    if num_left := sync_records(load_params(Path("params.yaml"))):
        sys.exit(f"MLflow: records of {num_left} runs still wait")
    print("MLflow has every record")


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        # All is done or closed. While Python ends it gives SIGTERM its default action, which would hide the exit code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

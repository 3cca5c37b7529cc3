"""Run the flow against the server at PREFECT_API_URL and end in a short message: the child of `python -m flows`."""

from __future__ import annotations

import logging
import sys

from flows.pipeline import pipeline
from flows.reproduction import DvcError
from flows.request import PipelineRequest

_FAILED_EXIT = 1


def main(stages: list[str]) -> int:
    """Return 0 when the flow completed and 1 when it did not, having said why and what to do."""
    logging.getLogger("prefect.task_runs").addFilter(_without_empty_traceback)
    state = pipeline(PipelineRequest(stages=stages), return_state=True)
    if state.is_completed():
        return 0
    _explain(state.message, state.result(raise_on_failure=False))
    return _FAILED_EXIT


def _without_empty_traceback(record: logging.LogRecord) -> bool:
    """Drop the "NoneType: None" that Prefect logs for a task that returns a failed state; keep every record."""
    if record.exc_info and record.exc_info[0] is None:
        record.exc_info = None
    return True


def _explain(message: str | None, cause: object) -> None:
    lines = [f"error: {message}"]
    if isinstance(cause, DvcError):
        lines += [f"  | {line}" for line in cause.lines]
        lines += ["Mend the cause and run the same command again: finished stages are not repeated."]
    print("\n".join(lines), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m flows.local` (`make run`): plain `dvc repro` without Prefect; measures the run and shows the results."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from flows.compare_workspace import recover
from flows.environment import mlflow_url, prefect_url
from flows.finish import record_outcomes, registry_line
from flows.graph import stage_order
from flows.memory import PeakMemory
from flows.placement import occupied
from flows.processes import exit_on_sigterm
from flows.reproduction import DvcError, StageRun, reproduce
from minillm.errors import UserError
from minillm.params import load_params
from minillm.preflight import check_models
from tasks.result_table import result_table
from tasks.storage import METRICS_DIR, REPORT_PATH, write_json

RUN_RECORD_PATH = METRICS_DIR / "run.json"
_USER_ERROR_EXIT = 2
_INTERRUPTED_EXIT = 130


def main() -> int:
    """Return DVC's exit code, 2 for a mistake found before it started, or 130 after Ctrl-C."""
    exit_on_sigterm()
    root = Path.cwd()
    try:
        with occupied(root, "run"):  # before params.yaml is read: a comparison sets knobs in it
            recover(root)
            _run(root)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR_EXIT
    except DvcError as error:
        print(f"error: {error}\nMend the cause and run again: finished stages are not repeated.", file=sys.stderr)
        return error.exit_code if error.exit_code > 0 else 1
    except KeyboardInterrupt:
        print("interrupted; run again to go on", file=sys.stderr)
        return _INTERRUPTED_EXIT
    return 0


def _run(root: Path) -> None:
    params = load_params(root / "params.yaml")
    check_models(params.teacher_model, params.student_model)
    environment = {"MINILLM_PIPELINE_KEY": str(uuid.uuid4())}  # tracking groups the stages of one key
    stages = run_and_record(root, environment)
    record_outcomes(params, stages, environment)
    registered = registry_line(params, environment)
    print(f"\n{_stage_lines(stages)}\n\n{result_table(root)}\n\n{_where_next(mlflow_url(params.tracking))}")
    if registered:
        print(registered)


def run_and_record(root: Path, environment: Mapping[str, str]) -> dict[str, StageRun]:
    """Run `dvc repro`, write metrics/run.json about it, and return what was done with each stage, in graph order.

    A failed run writes nothing: the file is about the last run that ended well.
    """
    memory, start_s = PeakMemory(), time.monotonic()
    seen = reproduce(root, None, _show, environment, on_start=memory.watch, stderr_to_terminal=True)
    wall_s = time.monotonic() - start_s
    stages = {name: seen[name] for name in stage_order(root) if name in seen}
    record = {name: {**asdict(run), "wall_s": round(run.wall_s, 2)} for name, run in stages.items()}
    write_json(root / RUN_RECORD_PATH, {"wall_s": round(wall_s, 2), "peak_rss_mib": memory.peak_mib, "stages": record})
    return stages


def _show(line: str) -> None:
    print(line, flush=True)


def _stage_lines(stages: dict[str, StageRun]) -> str:
    width = max(map(len, stages), default=0)
    return "\n".join(f"{name:<{width}}  {run.outcome:<8}  {run.wall_s:8.1f} s" for name, run in stages.items())


def _where_next(mlflow_page: str) -> str:
    return "\n".join(
        (
            f"report:    {REPORT_PATH}",
            "numbers:   dvc metrics show; dvc exp show",
            f"pages:     make ui  (MLflow {mlflow_page}, Prefect {prefect_url()})",
        )
    )


if __name__ == "__main__":
    sys.exit(main())

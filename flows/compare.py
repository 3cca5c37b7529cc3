"""`python -m flows.compare` (`make compare`): methods under several seeds as DVC experiments, one table, one figure."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flows.compare_figure import comparison_figure
from flows.compare_results import RESULTS_PATH, Record, Results, markdown_page, table_rows, text_table
from flows.compare_runs import run_experiment
from flows.compare_variants import (
    DEFAULT_SEEDS,
    DEFAULT_VARIANTS,
    VARIANTS,
    Run,
    params_digest,
    planned_runs,
    with_settings,
)
from flows.compare_workspace import PARAMS_NAME, end_by_signal, kept_workspace
from flows.environment import mlflow_url
from minillm.config import Params
from minillm.errors import UserError
from minillm.params import load_params, parse_params, read_yaml
from tasks.storage import REPORT_PATH, replacing

TABLE_PATH = REPORT_PATH.parent / "compare.md"
FIGURE_PATH = REPORT_PATH.parent / "compare.svg"
_FAILED_EXIT = 1
_USER_ERROR_EXIT = 2
_INTERRUPTED_EXIT = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for, show all that is known, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.compare", description=__doc__, allow_abbrev=False)
    parser.add_argument("--variants", nargs="+", default=DEFAULT_VARIANTS, metavar="NAME", help=", ".join(VARIANTS))
    parser.add_argument("--seeds", nargs="+", default=DEFAULT_SEEDS, metavar="N", help="integers >= 0")
    options = parser.parse_args(arguments)
    end_by_signal()
    try:
        return _compare(Path.cwd(), planned_runs(options.variants, options.seeds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR_EXIT
    except KeyboardInterrupt:
        print("interrupted; the workspace is as it was. Run again to go on: what is done stays done", file=sys.stderr)
        return _INTERRUPTED_EXIT


def _compare(root: Path, runs: Sequence[Run]) -> int:
    with kept_workspace(root) as workspace:
        own = load_params(root / PARAMS_NAME)
        content = read_yaml(root / PARAMS_NAME)
        expected = {run: _params_of(run, content) for run in runs}  # a variant that they do not allow ends it here
        results = Results(root)
        failed = []
        for number, run in enumerate(runs, start=1):
            print(f"\n[{number}/{len(runs)}] {run.variant}, seed {run.seed}", flush=True)
            workspace.start(with_settings(content, run.settings))
            if not _attempt(root, run, expected[run], results):
                failed.append(run)
    _publish(root, _known(results, content, failed))
    print(_closing_lines(runs, failed, mlflow_url(own.tracking)))
    return _FAILED_EXIT if failed else 0


def _params_of(run: Run, content: Any) -> Params:
    return parse_params(with_settings(content, run.settings), f"{run.variant}: {PARAMS_NAME}")


def _attempt(root: Path, run: Run, expected: Params, results: Results) -> bool:
    """Return whether a run ended well; if not, one line says why."""
    start_s = time.time()
    try:
        if run_experiment(root, run.name, run.settings) != expected:
            raise UserError(f"{PARAMS_NAME} was edited while it ran")
        results.add(run, params_digest(expected), start_s)
    except UserError as error:
        print(f"failed: {run.variant}, seed {run.seed}: {error}", file=sys.stderr, flush=True)
        return False
    return True


def _known(results: Results, content: Any, failed: Sequence[Run]) -> dict[Run, Record]:
    """Return the records made with the params in force, also by earlier calls, but none of a run that now fails."""
    records = {}
    for run in results.recorded_runs():
        with contextlib.suppress(UserError):  # params of today may not allow a variant of an earlier call
            record = results.record(run, params_digest(_params_of(run, content)))
            if record is not None and run not in failed:
                records[run] = record
    return records


def _publish(root: Path, records: Mapping[Run, Record]) -> None:
    if not records:
        return
    rows = table_rows(records)
    pages = {FIGURE_PATH: comparison_figure(rows), TABLE_PATH: markdown_page(rows, records, FIGURE_PATH.name)}
    for path, text in pages.items():
        with replacing(root / path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    print(f"\n{text_table(rows)}\n\ntable:   {TABLE_PATH}\nfigure:  {FIGURE_PATH}\nnumbers: {RESULTS_PATH}")


def _closing_lines(runs: Sequence[Run], failed: Sequence[Run], mlflow_page: str) -> str:
    lines = [f"runs:    dvc exp show; make ui (MLflow {mlflow_page})"]
    done = [run.name for run in runs if run not in failed]
    if done:
        lines.append(f"{PARAMS_NAME} and all outputs are as before; `dvc exp apply {done[-1]}` brings that run's.")
    if failed:
        names = ", ".join(f"{run.variant} {run.seed}" for run in failed)
        lines.append(f"{len(failed)} of {len(runs)} runs failed: {names}. Their errors are above; run again to retry.")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

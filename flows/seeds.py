"""`python -m flows.seeds 17 18 19` (`make seeds`): one DVC experiment a seed, and a table with the spread over them."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.compare_runs import run_experiment
from flows.compare_variants import with_settings
from flows.compare_workspace import PARAMS_NAME, end_by_signal, kept_workspace
from minillm.errors import UserError
from minillm.params import load_params, parse_params, read_yaml
from tasks.storage import METRICS_DIR, read_json, write_json

Report = dict[str, dict[str, float]]

_COLUMNS = (
    ("teacher", "rougeL"),
    *((model, name) for model in ("warmup", "student") for name in ("rougeL", "reverse_kl")),
)
SEEDS_PATH = METRICS_DIR / "seeds.json"
_USER_ERROR_EXIT = 2
_INTERRUPTED_EXIT = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every seed, print the table, and return the exit code; params.yaml and outputs end as they were."""
    parser = argparse.ArgumentParser(prog="python -m flows.seeds", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+", help="integers >= 0")
    seeds = sorted(set(parser.parse_args(arguments).seeds))
    end_by_signal()
    root = Path.cwd()
    try:
        reports = _reports(root, seeds)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR_EXIT
    except KeyboardInterrupt:
        print("interrupted; the workspace is as it was. Run again to go on: what is done stays done", file=sys.stderr)
        return _INTERRUPTED_EXIT
    write_json(root / SEEDS_PATH, reports)
    print(f"{spread_table(reports)}\n{_where_next(seeds[-1])}")
    return 0


def _reports(root: Path, seeds: Sequence[int]) -> dict[int, Report]:
    with kept_workspace(root, work="run over seeds") as workspace:
        load_params(root / PARAMS_NAME)
        content = read_yaml(root / PARAMS_NAME)
        contents = {seed: with_settings(content, {"seed": seed}) for seed in seeds}
        for seed in seeds:  # one that cannot be ends it here
            parse_params(contents[seed], f"seed {seed}: {PARAMS_NAME}")
        reports = {}
        for seed in seeds:
            workspace.start(contents[seed])
            reports[seed] = run_seed(root, seed)
        return reports


def _where_next(seed: int) -> str:
    return f"{PARAMS_NAME} and all outputs are as before; `dvc exp apply seed-{seed}` brings that run's."


def run_seed(root: Path, seed: int) -> Report:
    """Return metrics/report.json of the experiment `seed-SEED`; what DVC has in its cache is not run again."""
    try:
        run_experiment(root, f"seed-{seed}", {"seed": seed})
    except UserError as error:
        raise UserError(f"seed {seed}: {error}") from None
    report: Report = read_json(root / METRICS_DIR / "report.json")
    return report


def spread_table(reports: dict[int, Report]) -> str:
    """Return one line a seed, then the mean and the standard deviation over seeds (n - 1)."""
    rows = {str(seed): [report[model][name] for model, name in _COLUMNS] for seed, report in sorted(reports.items())}
    columns = list(zip(*rows.values(), strict=True))
    rows["mean"] = [statistics.fmean(column) for column in columns]
    if len(reports) > 1:
        rows["std"] = [statistics.stdev(column) for column in columns]
    names = [f"{model} {name}" for model, name in _COLUMNS]
    lines = ["seed  " + "  ".join(names)]
    for label, values in rows.items():
        cells = [f"{value:{len(name)}.3f}" for value, name in zip(values, names, strict=True)]
        lines.append(f"{label:<4}  " + "  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

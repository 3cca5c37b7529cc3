"""`python -m flows.seeds 17 18 19` (`make seeds`): one DVC experiment a seed, and a table with the spread over them."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from flows.compare_runs import run_experiment
from flows.processes import exit_on_sigterm
from minillm.errors import UserError
from minillm.params import load_params
from tasks.storage import METRICS_DIR, read_json, write_json

Report = dict[str, dict[str, float]]

_COLUMNS = (
    ("teacher", "rougeL"),
    *((model, name) for model in ("warmup", "student") for name in ("rougeL", "reverse_kl")),
)
SEEDS_PATH = METRICS_DIR / "seeds.json"


def main() -> int:
    """Run every seed, that of params.yaml last so that the workspace ends with it, and print the table."""
    exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m flows.seeds", description=__doc__)
    parser.add_argument("seeds", type=int, nargs="+", help="integers >= 0")
    seeds = parser.parse_args().seeds
    root = Path.cwd()
    try:
        own = load_params(root / "params.yaml").seed
        reports = {seed: run_seed(root, seed) for seed in sorted(seeds, key=lambda seed: (seed == own, seed))}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_json(root / SEEDS_PATH, reports)
    print(spread_table(reports))
    return 0


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

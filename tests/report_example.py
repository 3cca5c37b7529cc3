"""Inputs of the stage report that look like a real run's, written into the current directory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tasks.storage import METRICS_DIR, PLOTS_DIR, RESPONSES_DIR, write_curve, write_json

PREPARE = {
    "rows": {"input": 2800, "accepted": 2731, "quarantined": 69},
    "reasons": {"prompt_too_long": 41, "response_too_long": 26, "duplicate": 2},
    "splits": {"train": 2281, "validation": 200, "evaluation": {"test": 250}},
    "tokens": {"prompt": {"mean": 47.31, "p95": 88, "max": 128}, "response": {"mean": 14.2, "p95": 37, "max": 48}},
    "corpus": {"documents": 112, "blocks": 1024, "tokens": 131072, "tokens_left": 77},
}
TEACHER = {
    "parameters": 134515008, "english_perplexity": 22.4, "loss_initial": 2.134, "loss": 0.871, "best_step": 60,
}  # fmt: skip
WARMUP = {
    "parameters": 99110592, "num_layers": 20, "kept_layers": [*range(9), 10, 12, *range(20, 29)], "loss_cut": 5.2,
    "loss": 1.243, "best_step": 120,
}  # fmt: skip
DISTILL = {
    "best_step": 20,
    "initial": {"reverse_kl": 0.645, "rougeL": 41.2, "length_mean": 13.1},
    "best": {"reverse_kl": 0.401, "rougeL": 45.9, "length_mean": 12.2},
}


def score(rouge: float, std: float, reverse_kl: float | None) -> dict[str, Any]:
    """Return the scores of one model on one set."""
    sampled = {"rougeL": rouge, "rougeL_std": std, "length_mean": 13.25, "eos_rate": 0.964, "distinct_4": 0.871}
    greedy = {"rougeL": rouge + 6.5, "length_mean": 12.0, "eos_rate": 1.0, "distinct_4": 0.4}
    known = {"num_rows": 250, "sampled": sampled, "greedy": greedy}
    return known if reverse_kl is None else known | {"reverse_kl": reverse_kl}


def evaluate() -> dict[str, Any]:
    """Return the metrics of the stage evaluate."""
    return {
        "teacher": {"test": score(58.126, 0.4, None)},
        "warmup": {"test": score(43.504, 0.55, 0.6131)},
        "student": {"test": score(47.251, 0.61, 0.4219)},
    }


def responses() -> list[dict[str, Any]]:
    """Return evaluation rows with their responses."""
    asks = [
        ("Reverse the words of the sentence.", "the river runs past a mill", ["mill a past runs river the"]),
        ("Which of these is a fruit: hammer, apple, cloud?", "", ["apple", "An apple."]),
        ("Write the next three numbers of the series.", "3, 6, 9, 12", ["15, 18, 21"]),
        ("Sort these names alphabetically, one on each line.", "Zoe\nAdam\nMia", ["Adam\nMia\nZoe"]),
        ("Is the statement true or false?", "A week has eight days.", ["False. A week has seven days."]),
    ]
    return [
        {
            "row_id": f"{index:05d}",
            "instruction": ask,
            "input": given,
            "references": references,
            "category": ["text", "choice", "series", "order", "fact"][index % 5],
            "responses": {
                "teacher": {"greedy": references[0], "seed-10": references[0], "seed-20": references[-1]},
                "warmup": {
                    "greedy": given[: 20 + index % 7],
                    "seed-10": "",
                    "seed-20": "The answer is the the the answer, as it were, of a question that nobody has asked.",
                },
                "student": {"greedy": references[0].lower(), "seed-10": references[-1], "seed-20": given.upper()},
            },
        }
        for index in range(250)
        for ask, given, references in [asks[index % 5]]
    ]


def supervised_curve(start: float, end: float, num_steps: int) -> list[dict[str, float]]:
    """Return a curve of training losses at every step and validation losses at some."""
    rows = []
    for step in range(num_steps + 1):
        fit = end + (start - end) * math.exp(-step / 18)
        row: dict[str, float] = {"step": step, "is_best": 0.0}
        if step:
            row["train/loss"] = fit + 0.08 * math.sin(step * 2.3) * fit**0.5
            row["optim/lr"] = 5e-5 * min(1.0, step / 8) * (1 - step / num_steps / 1.1)
        if step % 20 == 0:
            row |= {"validation/loss": fit + 0.06, "is_best": 1.0}
        rows.append(row)
    return rows


def distill_curve() -> list[dict[str, float]]:
    """Return a curve of phases, with validation scores at every tenth."""
    rows = []
    for step in range(31):
        gone = 1 - math.exp(-step / 9)
        row: dict[str, float] = {"step": step, "is_best": 0.0}
        if step:
            row |= {
                "kl/reverse": 0.64 - 0.25 * gone + 0.02 * math.sin(step * 1.7),
                "reward/mean": -0.61 + 0.26 * gone + 0.03 * math.sin(step * 2.1),
                "policy/clipped_frac": 0.031 + 0.012 * math.sin(step),
                "response/length_mean": 13.8 - 1.4 * gone + 0.4 * math.sin(step * 3),
                "response/end_rate": 0.9 + 0.08 * gone,
                "policy/entropy": 1.31 - 0.4 * gone,
                "optim/gradient_norm": 1.1 + 0.3 * math.sin(step * 1.1),
                "optim/lr": 2e-5 * min(1, step / 4),
                "train/loss": 1.3 - gone,
                "train/language_model_loss": 3.2 - 0.02 * step,
            }
        if step % 10 == 0:
            row |= {
                "validation/reverse_kl": 0.645 - 0.244 * gone,
                "validation/rougeL": 41.2 + 4.7 * gone,
                "validation/length_mean": 13.1 - gone,
            }
        rows.append(row)
    return rows


def write_inputs() -> None:
    """Write everything that the stage report reads."""
    by_stage = {"prepare": PREPARE, "teacher": TEACHER, "warmup": WARMUP, "distill": DISTILL, "evaluate": evaluate()}
    for stage, content in by_stage.items():
        write_json(METRICS_DIR / f"{stage}.json", content)
    write_curve(PLOTS_DIR / "teacher.tsv", supervised_curve(2.1, 0.8, 80))
    write_curve(PLOTS_DIR / "warmup.tsv", supervised_curve(5.2, 1.18, 120))
    write_curve(PLOTS_DIR / "distill.tsv", distill_curve())
    write_responses(responses())


def write_responses(rows: list[dict[str, Any]], set_name: str = "test") -> Path:
    """Write evaluation rows as JSON lines."""
    import json

    path = RESPONSES_DIR / f"{set_name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path

"""The result of a pipeline as a few lines of plain text, for the terminal."""

from __future__ import annotations

from pathlib import Path

from tasks.reporting.inputs import MODELS, Document, load_metrics, mean_scores, set_scores

_LABELS = {"teacher": "teacher", "warmup": "warm-up", "student": "student"}


def result_table(root: Path) -> str:
    """Return the table of models, Rouge-L and reverse KL; raises UserError when metrics are missing or malformed."""
    report = load_metrics("report", root)
    scores = mean_scores(set_scores(load_metrics("evaluate", root)))
    rows = [("model", "Rouge-L", "reverse KL to the teacher")]
    for model in MODELS:
        rows.append((_LABELS[model], f"{_rouge(report, model)} ± {scores[model].rougeL_std:.2f}", _kl(report, model)))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _rouge(report: Document, model: str) -> str:
    return f"{report.number(model, 'rougeL'):.2f}"


def _kl(report: Document, model: str) -> str:
    return "-" if model == "teacher" else f"{report.number(model, 'reverse_kl'):.4f}"

"""The report as one HTML page that loads nothing: the same bytes for the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from tasks.reporting.curves import curves
from tasks.reporting.examples import examples
from tasks.reporting.inputs import ReportContent, Score
from tasks.reporting.style import STYLE
from tasks.reporting.tables import amount, data, results, training


def report_page(content: ReportContent) -> str:
    """Return the page."""
    body = "".join(
        [
            "<h1>MiniLLM distillation report</h1>",
            '<p class="muted">A white-box teacher, its student after supervised warm-up, '
            "and the student after distillation by reverse KL.</p>",
            f'<div class="card verdict"><p>{escape(verdict(content.scores))}</p></div>',
            _tiles(content),
            results(content),
            training(content),
            curves(content),
            data(content.metrics["prepare"]),
            examples(content.examples),
            _FOOTER,
        ]
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>MiniLLM distillation report</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def verdict(scores: Mapping[str, Score]) -> str:
    """Return one plain sentence: what distillation did to reverse KL and Rouge-L, and by how much."""
    warmup, student = scores["warmup"], scores["student"]
    assert warmup.reverse_kl is not None and student.reverse_kl is not None
    kl = _change(warmup.reverse_kl, student.reverse_kl, "reverse KL to the teacher", "nats per token", 3, lower=True)
    rouge = _change(warmup.rougeL, student.rougeL, "Rouge-L", "points", 2, lower=False)
    gain, spread = abs(student.rougeL - warmup.rougeL), max(student.rougeL_std, warmup.rougeL_std)
    doubt = "; this difference is within the spread of the sampling seeds" if 0 < gain <= spread else ""
    return f"Compared with the warm-up, distillation {kl}, and {rouge}{doubt}."


def _change(before: float, after: float, name: str, unit: str, decimals: int, lower: bool) -> str:
    if f"{before:.{decimals}f}" == f"{after:.{decimals}f}":
        return f"left {name} unchanged at {after:.{decimals}f} {unit}"
    verb = "improved" if (after < before) == lower else "worsened"
    share = f", {_signed(100 * (after - before) / before, 0)} %" if before else ""
    size = f"{abs(after - before):.{decimals}f} {unit}"
    return f"{verb} {name} by {size} ({before:.{decimals}f} to {after:.{decimals}f}{share})"


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _tiles(content: ReportContent) -> str:
    warmup, student = content.scores["warmup"], content.scores["student"]
    share = content.parameters("student") / content.parameters("teacher")
    sizes = f"{amount(content.parameters('student'))} of {amount(content.parameters('teacher'))}"
    return (
        '<div class="tiles">'
        + _tile("Reverse KL to the teacher, nats per token", warmup.reverse_kl, student.reverse_kl, 3, lower=True)
        + _tile("Rouge-L of samples, points", warmup.rougeL, student.rougeL, 2, lower=False)
        + f'<div class="card tile"><div class="label">Student size</div><div class="big">{share:.0%}</div>'
        f"<small>of the teacher's parameters: {sizes}</small></div></div>"
    )


def _tile(label: str, before: float | None, after: float | None, decimals: int, lower: bool) -> str:
    assert before is not None and after is not None
    change = after - before
    style = "better" if (change < 0) == lower else "worse"
    return (
        f'<div class="card tile"><div class="label">{label}</div>'
        f'<div class="big">{before:.{decimals}f} <span class="arrow">→</span> {after:.{decimals}f}</div>'
        f'<small><span class="{style if change else ""}">{_signed(change, decimals)}</span> '
        "from warm-up to student</small></div>"
    )


_FOOTER = """<footer class="muted"><p><b>Rouge-L</b>: longest common subsequence with the best-matching reference,
F-measure in points (0 to 100); the sampled value is the mean over sampling seeds, ± their standard deviation.
<b>Reverse KL</b>: KL(student || teacher) on the model's own responses, in nats per token; lower is closer to the
teacher. <b>Mean length</b>: tokens of a sampled response. <b>End-token rate</b>: share of sampled responses that closed
with the end token.</p></footer>"""

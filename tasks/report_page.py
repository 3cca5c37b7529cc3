"""The report as one HTML page that loads nothing: texts escaped, figures drawn inline, the same bytes for the same inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from tasks.report_charts import Series, line_chart
from tasks.report_inputs import MODELS, Document, Example, Score
from tasks.report_style import STYLE

LABELS = {"teacher": "Teacher", "warmup": "Warm-up", "student": "Student"}
_MAX_CHARTS = 12
_GREEDY = "greedy"
_NOT_CHARTED = ("step", "is_best")
# Shown first and in this order; other columns of a curve follow by name while there is room.
_FIRST_METRICS = (
    "train/loss",
    "validation/loss",
    "validation/reverse_kl",
    "validation/rougeL",
    "kl/reverse",
    "reward/mean",
    "response/length_mean",
    "policy/clipped_frac",
)
_CAPTIONS = {
    "loss": "Loss, nats per token",
    "train/loss": "Training loss, nats per token",
    "validation/loss": "Validation loss, nats per token",
    "validation/reverse_kl": "Reverse KL on validation prompts, nats per token",
    "validation/rougeL": "Rouge-L on validation prompts, points",
    "validation/length_mean": "Response length on validation prompts, tokens",
    "kl/reverse": "Reverse KL on rollouts, nats per token",
    "reward/mean": "Mean reward, nats per token",
    "response/length_mean": "Response length of rollouts, tokens",
    "policy/clipped_frac": "Share of clipped ratios",
}


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page shows."""

    metrics: Mapping[str, Document]  # by stage
    curves: Mapping[str, list[dict[str, float]]]  # by stage
    set_scores: Mapping[str, Mapping[str, Score]]  # by evaluation set and model
    scores: Mapping[str, Score]  # by model, the mean over the sets
    examples: list[Example]


def report_page(content: ReportContent) -> str:
    """Return the page."""
    body = "".join(
        [
            "<h1>MiniLLM distillation report</h1>",
            '<p class="muted">A white-box teacher, its student after supervised warm-up, '
            "and the student after distillation by reverse KL.</p>",
            f'<div class="card verdict"><p>{escape(verdict(content.scores))}</p></div>',
            _tiles(content),
            _results(content),
            _training(content),
            _curves(content),
            _data(content.metrics["prepare"]),
            _examples(content.examples),
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
    share = _parameters(content, "student") / _parameters(content, "teacher")
    return (
        '<div class="tiles">'
        + _tile("Reverse KL to the teacher, nats per token", warmup.reverse_kl, student.reverse_kl, 3, lower=True)
        + _tile("Rouge-L of samples, points", warmup.rougeL, student.rougeL, 2, lower=False)
        + f'<div class="card tile"><div class="label">Student size</div><div class="big">{share:.0%}</div>'
        "<small>of the teacher's parameters</small></div></div>"
    )


def _tile(label: str, before: float | None, after: float | None, decimals: int, lower: bool) -> str:
    assert before is not None and after is not None
    change = after - before
    style = "better" if (change < 0) == lower else "worse"
    return (
        f'<div class="card tile"><div class="label">{label}</div>'
        f'<div class="big">{before:.{decimals}f} <span class="arrow">→</span> {after:.{decimals}f}</div>'
        f'<small><span class="{style if change else ""}">{_signed(change, decimals)}</span> from warm-up to student</small></div>'
    )


def _parameters(content: ReportContent, model: str) -> float:
    """Return the number of parameters; distillation keeps the warm-up's."""
    return content.metrics["teacher" if model == "teacher" else "warmup"].number("parameters")


def _results(content: ReportContent) -> str:
    names = sorted(content.set_scores)
    evaluate = content.metrics["evaluate"]
    rows = [f"{name} ({evaluate.number('student', name, 'num_rows'):,.0f} rows)" for name in names]
    where = f"evaluation set {rows[0]}" if len(rows) == 1 else f"mean over the evaluation sets {', '.join(rows)}"
    parts = [f'<h2>Results</h2><p class="muted">{escape(where[0].upper() + where[1:])}.</p>']
    parts.append(_score_table(content, content.scores))
    if len(names) > 1:
        parts += [f"<h3>{escape(name)}</h3>{_score_table(content, content.set_scores[name])}" for name in names]
    return "".join(parts)


def _score_table(content: ReportContent, scores: Mapping[str, Score]) -> str:
    header = ["Model", "Parameters", "Rouge-L, sampled", "Rouge-L, greedy", "Reverse KL", "Mean length", "Ended"]
    rows = []
    for model in MODELS:
        score = scores[model]
        rows.append(
            [
                f'<span class="dot {model}"></span>{LABELS[model]}',
                _amount(_parameters(content, model)),
                f"{score.rougeL:.2f} ± {score.rougeL_std:.2f}",
                _optional(score.greedy_rougeL, ".2f"),
                _optional(score.reverse_kl, ".3f"),
                f"{score.length_tokens:.1f}",
                f"{score.eos_rate:.1%}",
            ]
        )
    return _table(header, rows, chosen=len(rows) - 1)


def _table(header: Iterable[str], rows: list[list[str]], chosen: int | None = None) -> str:
    """Return a table of cells that are HTML already."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = [
        f"<tr{' class=chosen' if index == chosen else ''}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for index, row in enumerate(rows)
    ]
    return (
        f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _amount(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.{2 if size == 1e9 else 1}f} {unit}"
    return f"{number:,.0f}"


def _optional(number: float | None, form: str) -> str:
    return "–" if number is None else f"{number:{form}}"


def _training(content: ReportContent) -> str:
    teacher, warmup, distill = (content.metrics[stage] for stage in MODELS_STAGES)
    layers = warmup.optional("kept_layers")
    kept = f"{len(layers)} layers kept: {_ranges(layers)}" if isinstance(layers, list) and layers else "–"
    perplexity = f"perplexity on English {teacher.number('english_perplexity'):.1f}"
    rows = [
        ["teacher", "validation loss", *_from_to(teacher, ("loss_initial",), ("loss",)), perplexity],
        ["warmup", "validation loss", *_from_to(warmup, ("loss_cut",), ("loss",)), kept],
        ["distill", "validation reverse KL", *_from_to(distill, ("initial", "reverse_kl"), ("best", "reverse_kl")), ""],
        ["distill", "validation Rouge-L", *_from_to(distill, ("initial", "rougeL"), ("best", "rougeL")), ""],
    ]
    header = ["Stage", "Measured", "Before", "Published", "At step", "Remark"]
    note = '<p class="muted">Each stage publishes the checkpoint that was best on the validation rows.</p>'
    return f"<h2>Training</h2>{note}{_table(header, [[escape(cell) for cell in row] for row in rows])}"


MODELS_STAGES = ("teacher", "warmup", "distill")


def _from_to(metrics: Document, before: tuple[str, ...], after: tuple[str, ...]) -> list[str]:
    decimals = 2 if after[-1] == "rougeL" else 3
    return [f"{metrics.number(*keys):.{decimals}f}" for keys in (before, after)] + [
        f"{metrics.number('best_step'):.0f}"
    ]


def _ranges(layers: list[int]) -> str:
    """Return sorted numbers as ranges: [0, 1, 2, 5] is "0–2, 5"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _curves(content: ReportContent) -> str:
    parts = [
        '<h2>Curves</h2><p class="muted">The dashed line marks the published checkpoint; names in grey are those in '
        "MLflow and in plots/.</p>"
    ]
    num_left = _MAX_CHARTS
    for stage, style in zip(MODELS_STAGES, MODELS, strict=True):
        charts = _charts(content.curves[stage], style, content.metrics[stage].number("best_step"))[:num_left]
        num_left -= len(charts)
        shown = "".join(charts) or '<p class="muted">No steps were recorded.</p>'
        parts.append(f'<h3><span class="dot {style}"></span>Stage {stage}</h3><div class="charts">{shown}</div>')
    return "".join(parts)


def _charts(curve: list[dict[str, float]], style: str, best_step: float) -> list[str]:
    names = sorted({name for row in curve for name in row} - set(_NOT_CHARTED), key=_chart_order)
    if "train/loss" in names and "validation/loss" in names:
        names = ["loss", *(name for name in names if not name.endswith("/loss"))]
    charts = []
    for name in names:
        sources = {"train/loss": "other", "validation/loss": style} if name == "loss" else {name: style}
        series = [Series(source, colour, _points(curve, source)) for source, colour in sources.items()]
        charts.append(_figure(name, series, best_step))
    return charts


def _chart_order(name: str) -> tuple[int, str]:
    return (_FIRST_METRICS.index(name) if name in _FIRST_METRICS else len(_FIRST_METRICS), name)


def _points(curve: list[dict[str, float]], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in curve if name in row]


def _figure(name: str, series: list[Series], best_step: float) -> str:
    if len(series) > 1:
        keys = "".join(
            f'<span class="key"><span class="dot {line.style}"></span>{escape(line.name)}</span>' for line in series
        )
    else:
        keys = f"<span>{escape(name)}</span>" if name in _CAPTIONS else ""
    caption = escape(_CAPTIONS.get(name, name))
    return f'<figure class="card"><figcaption>{caption}{keys}</figcaption>{line_chart(series, best_step)}</figure>'


def _data(prepare: Document) -> str:
    count = {name: prepare.number("rows", name) for name in ("input", "accepted", "quarantined")}
    summary = f"{count['accepted']:,.0f} of {count['input']:,.0f} rows were accepted, {count['quarantined']:,.0f} quarantined."
    reasons = prepare.optional("reasons") or {}
    reason_rows = [[escape(str(name)), f"{prepare.number('reasons', name):,.0f}"] for name in sorted(reasons)]
    tables = [
        _table(["Split", "Rows"], _split_rows(prepare)),
        _table(["Tokens", "Mean", "95 %", "Longest"], _token_rows(prepare)),
    ]
    if reason_rows:
        tables.append(_table(["Reason for quarantine", "Rows"], reason_rows))
    if prepare.optional("corpus", "blocks"):
        tables.append(_table(["Language-model corpus", ""], _corpus_rows(prepare)))
    return f'<h2>Data</h2><p class="muted">{summary}</p><div class="pair">{"".join(tables)}</div>'


def _split_rows(prepare: Document) -> list[list[str]]:
    rows = [[name, f"{prepare.number('splits', name):,.0f}"] for name in ("train", "validation")]
    return rows + [
        [f"evaluation: {escape(name)}", f"{prepare.number('splits', 'evaluation', name):,.0f}"]
        for name in prepare.names("splits", "evaluation")
    ]


def _token_rows(prepare: Document) -> list[list[str]]:
    return [
        [
            kind,
            *(
                f"{prepare.number('tokens', kind, name):,.{decimals}f}"
                for name, decimals in (("mean", 1), ("p95", 0), ("max", 0))
            ),
        ]
        for kind in ("prompt", "response")
    ]


def _corpus_rows(prepare: Document) -> list[list[str]]:
    return [
        [label, f"{prepare.number('corpus', name):,.0f}"]
        for name, label in (("documents", "documents"), ("blocks", "blocks"), ("tokens", "tokens"))
    ]


def _examples(examples: list[Example]) -> str:
    if not examples:
        return ""
    note = "Rows spread evenly over the evaluation sets; the responses are greedy where there is a greedy pass."
    return f'<h2>Examples</h2><p class="muted">{note}</p>' + "".join(_example(example) for example in examples)


def _example(example: Example) -> str:
    about = " · ".join(filter(None, [example.set_name, f"row {example.row_id}", example.category]))
    given = f'<div class="text given">{_text(example.input)}</div>' if example.input.strip() else ""
    references = "".join(f'<div class="text">{_text(reference)}</div>' for reference in example.references)
    return (
        f'<article class="card example"><header><small>{_text(about)}</small>'
        f'<div class="text ask">{_text(example.instruction)}</div>{given}</header><div class="answers">'
        f'<div><h4><span class="dot other"></span>Reference</h4>{references}</div>'
        + "".join(_answer(model, example.responses[model]) for model in MODELS)
        + "</div></article>"
    )


def _answer(model: str, responses: Mapping[str, str]) -> str:
    shown, *others = sorted(responses, key=lambda name: (name != _GREEDY, name))
    more = "".join(f'<div class="text"><b>{_text(name)}</b> {_text(responses[name])}</div>' for name in others)
    return (
        f'<div><h4><span class="dot {model}"></span>{LABELS[model]}, {_text(shown)}</h4>'
        f'<div class="text">{_text(responses[shown])}</div>'
        + (f"<details><summary>{len(others)} sampled</summary>{more}</details>" if others else "")
        + "</div>"
    )


def _text(text: str) -> str:
    """Return a text of anyone's as HTML; characters that HTML cannot hold become replacement marks."""
    if not text.strip():
        return '<span class="empty">(empty)</span>'
    held = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return escape(held)


_FOOTER = """<footer class="muted"><p><b>Rouge-L</b>: longest common subsequence with the best-matching reference, F-measure
in points (0 to 100); the sampled value is the mean over sampling seeds, ± their standard deviation. <b>Reverse KL</b>:
KL(student || teacher) on the model's own responses, in nats per token; lower is closer to the teacher. <b>Mean length</b>:
tokens of a sampled response. <b>Ended</b>: share of sampled responses that closed with the end token.</p></footer>"""

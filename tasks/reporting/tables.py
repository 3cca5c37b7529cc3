"""The tables of the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tasks.reporting.inputs import LABELS, MODELS, TRAINING_STAGES, Document, ReportContent, Score

_ABSENT = "-"


def results(content: ReportContent) -> str:
    """Return the section of final scores: over all evaluation sets, then set by set."""
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
    header = [
        "Model",
        "Parameters",
        "Rouge-L, sampled",
        "Rouge-L, greedy",
        "Reverse KL",
        "Mean length",
        "End-token rate",
        "Distinct 4-grams",
    ]
    rows = []
    for model in MODELS:
        score = scores[model]
        rows.append(
            [
                f'<span class="dot {model}"></span>{LABELS[model]}',
                amount(content.parameters(model)),
                f"{score.rougeL:.2f} ± {score.rougeL_std:.2f}",
                _optional(score.greedy_rougeL, ".2f"),
                _optional(score.reverse_kl, ".3f"),
                f"{score.length_tokens:.1f}",
                f"{score.eos_rate:.1%}",
                f"{score.distinct_4:.1%}",
            ]
        )
    return _table(header, rows, chosen=len(rows) - 1)


def training(content: ReportContent) -> str:
    """Return the section of what each training stage gained."""
    teacher, warmup, distill = (content.metrics[stage] for stage in TRAINING_STAGES)
    layers = warmup.optional("kept_layers")
    kept = f"{len(layers)} layers kept: {_ranges(layers)}" if isinstance(layers, list) and layers else _ABSENT
    perplexity = f"perplexity on English {teacher.number('english_perplexity'):.1f}"
    rows = [
        ["teacher", "validation loss", *_from_to(teacher, ("loss_initial",), ("loss",)), perplexity],
        ["warmup", "validation loss", *_from_to(warmup, ("loss_cut",), ("loss",)), kept],
        ["distill", "validation reverse KL", *_from_to(distill, ("initial", "reverse_kl"), ("best", "reverse_kl")), ""],
        ["distill", "validation Rouge-L", *_from_to(distill, ("initial", "rougeL"), ("best", "rougeL")), ""],
    ]
    header = ["Stage", "Measured", "Before", "Published", "At step", "Remark"]
    note = '<p class="muted">Each stage publishes the checkpoint that was best on the validation rows.</p>'
    return f"<h2>Training</h2>{note}{_table(header, [[escape(cell) for cell in row] for row in rows], words=(1, 5))}"


def _from_to(metrics: Document, before: tuple[str, ...], after: tuple[str, ...]) -> list[str]:
    decimals = 2 if after[-1] == "rougeL" else 3
    return [f"{metrics.number(*keys):.{decimals}f}" for keys in (before, after)] + [
        f"{metrics.number('best_step'):.0f}"
    ]


def _ranges(layers: list[int]) -> str:
    """Return sorted numbers as ranges: [0, 1, 2, 5] is "0 to 2, 5"."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def data(prepare: Document) -> str:
    """Return the section of the prepared data."""
    count = {name: prepare.number("rows", name) for name in ("input", "accepted", "quarantined")}
    accepted = f"{count['accepted']:,.0f} of {count['input']:,.0f} rows were accepted"
    summary = f"{accepted}, {count['quarantined']:,.0f} quarantined."
    reasons = {name: prepare.number("reasons", name) for name in prepare.optional("reasons") or {}}
    reason_rows = [
        [escape(name), f"{reasons[name]:,.0f}"] for name in sorted(reasons, key=lambda name: (-reasons[name], name))
    ]
    tables = [
        _table(["Split", "Rows"], _split_rows(prepare)),
        _table(["Tokens", "Mean", "95th percentile", "Longest"], _token_rows(prepare)),
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


def _table(header: Sequence[str], rows: list[list[str]], chosen: int | None = None, words: Sequence[int] = ()) -> str:
    """Return a table of cells that are HTML already; `words` are the columns of text beside the first."""

    def line(tag: str, cells: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="words">{cell}</{tag}>' if column in words else f"<{tag}>{cell}</{tag}>"
            for column, cell in enumerate(cells)
        )

    body = "".join(
        f"<tr{' class=chosen' if index == chosen else ''}>{line('td', row)}</tr>" for index, row in enumerate(rows)
    )
    head = line("th", header)
    return f'<div class="card scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _optional(number: float | None, form: str) -> str:
    return _ABSENT if number is None else f"{number:{form}}"


def amount(number: float) -> str:
    """Return a large number in short, with its unit, as HTML."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.{2 if size == 1e9 else 1}f}&nbsp;{unit}"
    return f"{number:,.0f}"

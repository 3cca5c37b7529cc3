"""The example responses of the report; every text in them is someone else's and is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from tasks.reporting.inputs import LABELS, MODELS, Example

_GREEDY = "greedy"


def examples(rows: list[Example]) -> str:
    """Return the section of example responses, side by side with their references."""
    if not rows:
        return ""
    note = "Rows spread evenly over the evaluation sets; the responses are greedy where there is a greedy pass."
    return f'<h2>Examples</h2><p class="muted">{note}</p>' + "".join(_example(row) for row in rows)


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

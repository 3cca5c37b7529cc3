"""What the stages left for the report: their metrics and responses, read with errors that name file and key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.errors import UserError
from tasks.storage import METRICS_DIR, RESPONSES_DIR, read_curve, read_json

MODELS = ("teacher", "warmup", "student")
LABELS = {"teacher": "Teacher", "warmup": "Warm-up", "student": "Student"}
TRAINING_STAGES = ("teacher", "warmup", "distill")  # the stages that make the models, in their order


@dataclass(frozen=True)
class Document:
    """A JSON file; keys are given as paths into it."""

    path: Path
    content: Any

    def value(self, *keys: str) -> Any:
        """Return what stands at a key; raises UserError when it is not there."""
        found = self.optional(*keys)
        if found is None:
            raise UserError(f"{self.path}: {'.'.join(keys)}: missing")
        return found

    def optional(self, *keys: str) -> Any:
        """Return what stands at a key; None when it is not there."""
        found = self.content
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def number(self, *keys: str) -> float:
        """Return the finite number at a key; raises UserError when it is not there or something else."""
        return self._checked_number(self.value(*keys), keys)

    def optional_number(self, *keys: str) -> float | None:
        """Return the finite number at a key, or None when nothing stands there."""
        found = self.optional(*keys)
        return None if found is None else self._checked_number(found, keys)

    def names(self, *keys: str) -> list[str]:
        """Return the sorted keys of the mapping at a key."""
        found = self.value(*keys)
        if not isinstance(found, dict) or not found:
            raise UserError(
                f"{self.path}: {'.'.join(keys)}: a mapping with at least one entry is needed (got {found!r})"
            )
        return sorted(found)

    def _checked_number(self, found: Any, keys: Sequence[str]) -> float:
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
            raise UserError(f"{self.path}: {'.'.join(keys)}: a finite number is needed (got {found!r})")
        return float(found)


@dataclass(frozen=True)
class Score:
    """What one model reached on one evaluation set or on several; Rouge-L in points, reverse KL in nats per token."""

    rougeL: float
    rougeL_std: float
    greedy_rougeL: float | None
    reverse_kl: float | None
    length_tokens: float
    eos_rate: float
    distinct_4: float


@dataclass(frozen=True)
class Example:
    """One evaluation row with the responses of each model, by decoding."""

    set_name: str
    row_id: str
    category: str
    instruction: str
    input: str
    references: list[str]
    responses: dict[str, dict[str, str]]


@dataclass(frozen=True)
class ReportContent:
    """Everything that the page shows."""

    metrics: Mapping[str, Document]  # by stage
    curves: Mapping[str, list[dict[str, float]]]  # by stage
    set_scores: Mapping[str, Mapping[str, Score]]  # by evaluation set and model
    scores: Mapping[str, Score]  # by model, the mean over the sets
    examples: list[Example]

    def parameters(self, model: str) -> float:
        """Return the number of parameters; distillation keeps the warm-up's."""
        return self.metrics["teacher" if model == "teacher" else "warmup"].number("parameters")


def load_metrics(stage: str, root: Path = Path()) -> Document:
    """Return the metrics of a stage."""
    path = METRICS_DIR / f"{stage}.json"
    try:
        return Document(path, read_json(root / path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the stage {stage} makes it (`dvc repro {stage}`)") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def load_curve(path: Path) -> list[dict[str, float]]:
    """Return the rows of a curve; raises UserError when it is missing or has no number where one is needed."""
    try:
        rows = read_curve(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the stage {path.stem} makes it (`dvc repro {path.stem}`)") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not a table of numbers ({error})") from None
    for line, row in enumerate(rows, start=2):
        if "step" not in row:
            raise UserError(f"{path}:{line}: step: missing")
        if not all(math.isfinite(value) for value in row.values()):
            raise UserError(f"{path}:{line}: a finite number is needed in every cell")
    return rows


def set_scores(evaluate: Document) -> dict[str, dict[str, Score]]:
    """Return the scores by evaluation set and model."""
    return {name: {model: _score(evaluate, model, name) for model in MODELS} for name in evaluate.names(MODELS[-1])}


def mean_scores(by_set: dict[str, dict[str, Score]]) -> dict[str, Score]:
    """Return each model's mean over the evaluation sets; every set counts the same."""
    return {model: _mean([scores[model] for scores in by_set.values()]) for model in MODELS}


def _score(evaluate: Document, model: str, set_name: str) -> Score:
    sampled = (model, set_name, "sampled")
    is_student = model != "teacher"
    return Score(
        rougeL=evaluate.number(*sampled, "rougeL"),
        rougeL_std=evaluate.number(*sampled, "rougeL_std"),
        greedy_rougeL=evaluate.optional_number(model, set_name, "greedy", "rougeL"),
        reverse_kl=evaluate.number(model, set_name, "reverse_kl") if is_student else None,
        length_tokens=evaluate.number(*sampled, "length_mean"),
        eos_rate=evaluate.number(*sampled, "eos_rate"),
        distinct_4=evaluate.number(*sampled, "distinct_4"),
    )


def _mean(scores: list[Score]) -> Score:
    def mean(values: list[float]) -> float:
        return math.fsum(values) / len(values)

    def optional_mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if len(known) == len(values) else None

    return Score(
        rougeL=mean([score.rougeL for score in scores]),
        rougeL_std=mean([score.rougeL_std for score in scores]),
        greedy_rougeL=optional_mean([score.greedy_rougeL for score in scores]),
        reverse_kl=optional_mean([score.reverse_kl for score in scores]),
        length_tokens=mean([score.length_tokens for score in scores]),
        eos_rate=mean([score.eos_rate for score in scores]),
        distinct_4=mean([score.distinct_4 for score in scores]),
    )


def load_examples(set_names: list[str], num_examples: int) -> list[Example]:
    """Return examples spread evenly over the rows of all evaluation sets."""
    lines = [entry for name in set_names for entry in _response_lines(name)]
    num_shown = min(num_examples, len(lines))
    return [_example(*lines[index * len(lines) // num_shown]) for index in range(num_shown)]


def _response_lines(set_name: str) -> list[tuple[Path, int, str]]:
    path = RESPONSES_DIR / f"{set_name}.jsonl"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the stage evaluate makes it (`dvc repro evaluate`)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from None
    return [(path, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _example(path: Path, number: int, line: str) -> Example:
    place = Path(f"{path}:{number}")
    try:
        row = Document(place, json.loads(line))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not JSON ({error})") from None
    references = row.value("references")
    if not isinstance(references, list):
        raise UserError(f"{place}: references: a list is needed (got {references!r})")
    return Example(
        set_name=path.stem,
        row_id=str(row.value("row_id")),
        category=str(row.optional("category") or ""),
        instruction=str(row.value("instruction")),
        input=str(row.optional("input") or ""),
        references=[str(reference) for reference in references],
        responses={
            model: {name: str(row.value("responses", model, name)) for name in row.names("responses", model)}
            for model in MODELS
        },
    )

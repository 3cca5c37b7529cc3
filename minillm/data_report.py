"""The data report: how many rows came, where each went and why, and how long they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.config import DataConfig
from minillm.errors import UserError
from minillm.packing import PackedCorpus
from minillm.preparation import RowIndex
from minillm.sources import CORPUS, EVALUATION_PREFIX, TRAIN, VALIDATION
from minillm.splits import SPLIT_OFF_EVALUATION, Assignment

Quarantined = Counter[tuple[str, str]]


def data_report(
    index: RowIndex, assignment: Assignment, quarantined: Quarantined, corpus: PackedCorpus
) -> dict[str, Any]:
    """Return the content of metrics/prepare.json; `quarantined` counts the lines written by file and reason.

    Documents of the corpus count as rows of their file. Token counts are those of the training rows. Corpus tokens
    stand in the blocks or are left: behind the last whole block, or in blocks over max_corpus_blocks.
    """
    files = file_counts(index, assignment, quarantined)
    train = assignment.rows[TRAIN]
    return {
        "rows": {name: sum(counts[name] for counts in files.values()) for name in ("input", "accepted", "quarantined")},
        "reasons": reason_counts(quarantined),
        "splits": split_counts(assignment),
        "tokens": {
            "prompt": length_summary(index.num_prompt_tokens[train]),
            "response": length_summary(index.num_response_tokens[train]),
        },
        "corpus": {
            "documents": len(assignment.rows.get(CORPUS, [])),
            "blocks": len(corpus.blocks),
            "tokens": int(corpus.blocks.size),
            "tokens_left": corpus.num_left,
        },
        "files": files,
    }


def file_counts(index: RowIndex, assignment: Assignment, quarantined: Quarantined) -> dict[str, dict[str, int]]:
    """Return the rows of each file: every one that was read is in a split or in the quarantine."""
    chosen = np.concatenate(list(assignment.rows.values()))
    num_files = len(index.sources)
    num_read = np.bincount(index.source, minlength=num_files)
    num_accepted = np.bincount(index.source[chosen], minlength=num_files)
    counts = {}
    for number, source in enumerate(index.sources):
        num_bad = sum(times for (file, _), times in quarantined.items() if file == source.file)
        read, accepted = int(num_read[number]), int(num_accepted[number])
        assert accepted + num_bad == read, f"{source.file}: {accepted} + {num_bad} rows of {read} accounted for"
        counts[source.file] = {"input": read, "accepted": accepted, "quarantined": num_bad}
    return counts


def reason_counts(quarantined: Quarantined) -> dict[str, int]:
    """Return how often each reason occurs, over all files."""
    reasons: Counter[str] = Counter()
    for (_, reason), number in quarantined.items():
        reasons[reason] += number
    return dict(reasons)


def split_counts(assignment: Assignment) -> dict[str, Any]:
    """Return the number of rows of each split."""
    sizes = {split: len(rows) for split, rows in assignment.rows.items()}
    evaluation = {
        split.removeprefix(EVALUATION_PREFIX): size
        for split, size in sizes.items()
        if split.startswith(EVALUATION_PREFIX)
    }
    return {"train": sizes[TRAIN], "validation": sizes[VALIDATION], "evaluation": evaluation}


def length_summary(lengths: NDArray[Any]) -> dict[str, float]:
    """Return mean, 95th percentile (a length that occurs) and largest length."""
    return {
        "mean": float(lengths.mean()),
        "p95": int(np.percentile(lengths, 95, method="higher")),
        "max": int(lengths.max()),
    }


def check_splits(
    index: RowIndex, assignment: Assignment, quarantined: Quarantined, data: DataConfig, quarantine_path: object
) -> None:
    """Raise UserError when a split that a later stage needs has no row, saying what became of the rows."""
    given = {source.split for source in index.sources if source.split.startswith(EVALUATION_PREFIX)}
    needed = [TRAIN, VALIDATION, *sorted(given or {SPLIT_OFF_EVALUATION})]
    empty = [split for split in needed if not len(assignment.rows.get(split, ()))]
    if empty:
        raise UserError(
            f"data: no row is left for {', '.join(empty)}; {_outcome(index, quarantined)} ({quarantine_path} has "
            f"every line); data.num_evaluation_rows = {data.num_evaluation_rows} and data.num_validation_rows = "
            f"{data.num_validation_rows} rows are split off the training rows first, unless files are given for them"
        )


def _outcome(index: RowIndex, quarantined: Quarantined) -> str:
    reasons = sorted(reason_counts(quarantined).items(), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{number} {reason}" for reason, number in reasons) or "none"
    return f"of {len(index.source)} rows read, {sum(quarantined.values())} are quarantined: {listed}"


def check_corpus(corpus: PackedCorpus, data: DataConfig) -> None:
    """Raise UserError when a corpus was asked for and does not fill one block."""
    if data.corpus_source != "none" and not len(corpus.blocks):
        raise UserError(
            f"data.corpus_source: {data.corpus_source!r} has {corpus.num_left} tokens; one block of "
            f"data.corpus_block_tokens = {data.corpus_block_tokens} is needed"
        )

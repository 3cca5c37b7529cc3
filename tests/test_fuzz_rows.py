"""Preparation of malformed rows: none is lost, moved, changed or accepted by mistake, and none ends the stage."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from minillm.records import HEAD_BYTES
from tasks.storage import EVALUATION_SETS_DIR, QUARANTINE_PATH, TRAIN_PATH, VALIDATION_PATH
from tests.malformed import BOM, malformed_rows
from tests.prepare_stage import (
    rows,
    run,
    workplace,  # noqa: F401 - a fixture for every test here
    write,
)

Text = tuple[str, str, list[str]]
SPLIT_OFF_PATHS = (TRAIN_PATH, VALIDATION_PATH, EVALUATION_SETS_DIR / "test.parquet")


def write_malformed(file: str, num_rows: int, seed: int) -> list[str | None]:
    """Write that many rows, the last without a line end, and return the reason that each must have."""
    reasons = []
    with Path("data/raw", file).open("wb") as stream:
        for number, found in enumerate(malformed_rows(num_rows, seed)):
            stream.write(b"\n" * (number > 0) + found.raw)
            reasons.append(found.reason)
    return reasons


def quarantined(file: str) -> Iterator[dict[str, Any]]:
    with QUARANTINE_PATH.open("rb") as stream:
        yield from (line for line in map(json.loads, stream) if line["file"] == file)


def kept_raw(line: dict[str, Any]) -> bytes:
    return base64.b64decode(line["raw_base64"]) if "raw_base64" in line else bytes(line["raw"].encode())


def check_kept(line: dict[str, Any], raw: bytes) -> None:
    """Check that a quarantine line has a row's bytes, or their head, length and hash."""
    if "raw_num_bytes" not in line:
        assert kept_raw(line) == raw and len(raw) <= HEAD_BYTES
        return
    head = raw[:HEAD_BYTES]
    whole_characters = head.decode("utf-8", "ignore").encode()  # the cut may divide the last one
    assert kept_raw(line) == (head if "raw_base64" in line else whole_characters)
    assert (line["raw_num_bytes"], line["raw_sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())


def accepted_lines(file: str, expected: list[str | None], late_reasons: set[str]) -> list[bytes]:
    """Return the lines that are not in the quarantine, after checking that each that is there stands at its place.

    late_reasons: those that a row without any fault of its own may have.
    """
    refused, accepted = quarantined(file), []
    line = next(refused, None)
    with Path("data/raw", file).open("rb") as stream:  # a binary stream is cut at line feeds alone
        for number, (raw, reason) in enumerate(zip(stream, expected, strict=True), start=1):
            if line is None or line["line"] != number:
                assert not reason, f"line {number} was accepted: {reason}"
                accepted.append(raw)
                continue
            assert line["reason"] == reason or reason is None or (reason == "" and line["reason"] in late_reasons), line
            check_kept(line, raw)
            line = next(refused, None)
    assert line is None
    return accepted


def text_of(raw: bytes) -> Text:
    """Return what a line says, by another parser than the library's."""
    fields = json.loads(raw.removeprefix(BOM).decode())
    output = fields["output"]
    return fields["instruction"], fields.get("input") or "", [output] if isinstance(output, str) else output


def prepared_texts(path: Path) -> list[Text]:
    table = pq.read_table(path, columns=["instruction", "input", "references"])
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def check_training_file(num_rows: int, seed: int) -> None:
    expected = write_malformed("train.jsonl", num_rows, seed)
    report = run(max_train_rows=num_rows // 10)
    accepted = accepted_lines("train.jsonl", expected, {"over max_train_rows"})
    prepared = [text for path in SPLIT_OFF_PATHS for text in prepared_texts(path)]
    assert sorted(prepared) == sorted(map(text_of, accepted))
    assert report["splits"]["train"] == num_rows // 10
    num_over = report["reasons"]["over max_train_rows"]
    num_bad = sum(report["reasons"].values()) - num_over
    assert len(accepted) + num_bad + num_over == report["rows"]["input"] == num_rows
    assert min(len(accepted), num_bad, num_over) > num_rows // 20


@pytest.mark.parametrize("seed", [1, 2])
def test_fault_19_of_ten_thousand_malformed_rows_each_is_accepted_or_kept_with_its_reason(seed: int) -> None:
    check_training_file(10_000, seed)


@pytest.mark.slow
def test_fault_19_of_a_million_malformed_rows_each_is_accepted_or_kept_with_its_reason() -> None:
    check_training_file(1_000_000, seed=3)


def test_fault_19_accepted_rows_of_a_malformed_file_keep_its_order() -> None:
    write("train.jsonl", *rows(10))
    expected = write_malformed("mine.jsonl", 10_000, seed=4)
    report = run(evaluation_files={"mine": "mine.jsonl"})
    accepted = accepted_lines("mine.jsonl", expected, set())
    assert prepared_texts(EVALUATION_SETS_DIR / "mine.parquet") == [text_of(raw) for raw in accepted]
    assert report["files"]["mine.jsonl"] == {
        "input": 10_000,
        "accepted": len(accepted),
        "quarantined": 10_000 - len(accepted),
    }

"""Faults 17, 18 and 20 of the fault matrix, through the whole stage: too long, nothing usable, leaks between splits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.dataset import Example, read_examples
from minillm.errors import UserError
from tasks.storage import EVALUATION_SETS_DIR, PREPARED_DIR, TRAIN_PATH, VALIDATION_PATH
from tests.prepare_stage import (
    quarantine,
    rows,
    run,
    workplace,  # noqa: F401 - a fixture for every test here
    write,
)

SPLIT_PATHS = (TRAIN_PATH, VALIDATION_PATH, EVALUATION_SETS_DIR / "test.parquet")


def prepared_rows() -> list[Example]:
    return [row for path in SPLIT_PATHS for row in read_examples(path)]


def long_row(num_prompt_words: int, num_response_words: int) -> dict[str, Any]:
    return {"instruction": "word " * num_prompt_words, "output": "word " * num_response_words}


def test_fault_17_a_prompt_is_whole_up_to_its_limit_and_quarantined_over_it() -> None:
    # The template adds two words to a prompt.
    write("train.jsonl", *rows(10), long_row(9, 1), long_row(10, 1), long_row(11, 1))
    report = run(max_prompt_tokens=12)
    assert report["reasons"] == {"prompt too long": 1}
    (line,) = quarantine()
    assert (line["line"], line["detail"]) == (13, "13 tokens; data.max_prompt_tokens is 12")
    assert json.loads(line["raw"]) == long_row(11, 1)
    assert sorted(len(row.prompt_ids) for row in prepared_rows())[-3:] == [4, 11, 12]


def test_fault_17_a_response_is_whole_up_to_its_limit_and_quarantined_over_it() -> None:
    # A response has its end token beside its words; a file of its own for evaluation leaves every row to training.
    write("train.jsonl", *rows(10), *(long_row(number, number) for number in (4, 5, 6)))
    write("mine.jsonl", long_row(2, 40))
    report = run(max_response_tokens=6, evaluation_files={"mine": "mine.jsonl"})
    assert report["reasons"] == {"response too long": 1}
    (line,) = quarantine()
    assert (line["line"], line["detail"]) == (13, "7 tokens; data.max_response_tokens is 6")
    assert json.loads(line["raw"]) == long_row(6, 6)
    kept = [*read_examples(TRAIN_PATH), *read_examples(VALIDATION_PATH)]
    assert sorted(len(row.response_ids) for row in kept)[-3:] == [3, 5, 6]
    assert all(row.response_ids[-1] == 0 for row in kept)
    (reference,) = read_examples(EVALUATION_SETS_DIR / "mine.parquet")[0].references
    assert reference == "word " * 40


@pytest.mark.parametrize("file", ["train.jsonl", "train.json", "train.csv", "train.parquet"])
def test_fault_18_an_empty_file_is_refused_before_anything_is_written(file: str) -> None:
    Path("data/raw", file).touch()
    with pytest.raises(UserError, match=rf"^data\.train_files\[0\]: '{file}' is empty$"):
        run(train_files=[file])
    assert not PREPARED_DIR.exists() and not Path("metrics").exists()


def _write_unusable() -> dict[str, int]:
    """Write files of which no row can be used, and return how many rows each has."""
    Path("data/raw/blank.jsonl").write_bytes(b"\n \n\r\n")
    Path("data/raw/bad.jsonl").write_bytes(b'{"instruction": "a", "output": ""}\n\xff\n[]')
    Path("data/raw/bad.json").write_bytes(b'[{"instruction": "a", "output": ""}, null]')
    Path("data/raw/bad.csv").write_bytes(b"instruction,output\n,b\na\n")
    pq.write_table(pa.table({"instruction": ["a", None], "output": ["", "b"]}), "data/raw/bad.parquet")
    return {"blank.jsonl": 3, "bad.jsonl": 3, "bad.json": 2, "bad.csv": 2, "bad.parquet": 2}


@pytest.mark.parametrize("file", ["blank.jsonl", "bad.jsonl", "bad.json", "bad.csv", "bad.parquet"])
def test_fault_18_a_file_of_which_no_row_can_be_used_ends_in_an_error_and_leaves_only_the_reasons(file: str) -> None:
    num_rows = _write_unusable()[file]
    with pytest.raises(UserError, match=rf"no row is left for train, .*of {num_rows} rows read, {num_rows} are quaran"):
        run(train_files=[file])
    assert len(quarantine()) == num_rows and all(line["file"] == file for line in quarantine())
    assert [path.name for path in PREPARED_DIR.rglob("*")] == ["quarantine.jsonl"]
    assert not Path("metrics/prepare.json").exists()


def variants(number: int) -> list[str]:
    """Return one prompt in ways that differ in case, white space, width and composition only."""
    text = f"Caf\u00e9 task {number} stra\u00dfe"
    wide = "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in text)
    return [text, text.upper(), f"  {text}\n", text.replace(" ", "\u00a0 \t"), wide, text.replace("\u00e9", "e\u0301")]


def test_fault_20_no_prompt_is_in_two_splits_however_it_is_written() -> None:
    lines = [
        {"instruction": prompt, "output": f"answer {place}"}
        for number in range(60)
        for place, prompt in enumerate(variants(number))
    ]
    random.Random(1).shuffle(lines)
    write("train.jsonl", *lines)
    run(num_validation_rows=60, num_evaluation_rows=60)
    splits = [{prompt_number(row) for row in read_examples(path)} for path in SPLIT_PATHS]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 60 and min(map(len, splits)) >= 10
    assert len(prepared_rows()) == len(lines)


def prompt_number(row: Example) -> int:
    """Return the number in a prompt, in digits of any width."""
    return int("".join(c for c in row.instruction if c.isdecimal()))


def test_fault_20_a_near_duplicate_of_a_held_out_prompt_is_refused_for_training_with_its_place() -> None:
    write("train.jsonl", *rows(10), *({"instruction": text, "output": text[:9]} for text in variants(7)))
    write("mine.jsonl", {"instruction": variants(7)[0], "output": "y"})
    report = run(evaluation_files={"mine": "mine.jsonl"})
    refused = [(line["line"], line["reason"], line["detail"]) for line in quarantine()]
    assert refused == [(number, "prompt is in an evaluation set", "evaluation/mine") for number in range(11, 17)]
    assert report["splits"] == {"train": 8, "validation": 2, "evaluation": {"mine": 1}}

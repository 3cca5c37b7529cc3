"""A black-box teacher's answers in a file: checked by prepare, before any model trains."""

from __future__ import annotations

import pytest

from minillm.dataset import Answer, read_examples, read_prepared_answers
from minillm.errors import UserError
from tasks.storage import ANSWERS_PATH, TRAIN_PATH
from tests.prepare_stage import (
    rows,
    run,
    workplace,  # noqa: F401 - a fixture for every test here
    write,
)


def test_every_training_row_gets_the_answer_to_its_prompt() -> None:
    write("train.jsonl", *rows(10))
    write("black.jsonl", *[{**row, "output": f"black {row['instruction']}"} for row in reversed(rows(10))])
    run(answers_file="black.jsonl")
    expected = {row.row_id: Answer(f"black {row.instruction}", is_cut=False) for row in read_examples(TRAIN_PATH)}
    assert read_prepared_answers(ANSWERS_PATH) == expected and len(expected) == 5


def test_a_missing_answer_is_counted_and_the_first_is_named() -> None:
    write("train.jsonl", *rows(10))
    write("black.jsonl", *rows(4))
    with pytest.raises(UserError, match=r"black\.jsonl: \d of 5 training rows have no response, the first is row_id"):
        run(answers_file="black.jsonl")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../black.jsonl", "must be a path inside"),
        ("black.txt", "no known extension"),
        ("no.jsonl", "No such"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_before_anything_is_read(name: str, fault: str) -> None:
    write("train.jsonl", *rows(10))
    write("black.txt", *rows(4))
    with pytest.raises(UserError, match=f"data.answers_file: .*{fault}"):
        run(answers_file=name)


def test_without_the_file_there_are_no_answers_and_asking_for_them_says_what_to_do() -> None:
    write("train.jsonl", *rows(10))
    run()
    with pytest.raises(UserError, match=r"answers\.parquet: not there; name data.answers_file and run `dvc repro`"):
        read_prepared_answers(ANSWERS_PATH)

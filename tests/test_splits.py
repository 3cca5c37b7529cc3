"""A prompt is in one split, whatever else is in the data, and every row left out has a reason."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

from minillm.records import RecordFault
from minillm.row_keys import answer_key, normalised_prompt, prompt_key
from minillm.sources import EVALUATION_PREFIX, TRAIN, VALIDATION
from minillm.splits import KEY_DTYPE, Candidates, SplitLimits, assign_splits

TEST = "evaluation/test"


class Candidate(NamedTuple):
    row: int
    split: str
    prompt_key: bytes
    answer_key: bytes
    tokens: int


@dataclass
class Assigned:
    """An assignment as plain lists and a plain dictionary."""

    rows: dict[str, list[int]]
    faults: dict[int, RecordFault]


def candidate(
    row: int, prompt: str, answer: str = "yes", split: str = TRAIN, tokens: int = 5, seed: int = 0
) -> Candidate:
    key = prompt_key(seed, prompt, "")
    return Candidate(row, split, key, answer_key(key, answer), tokens)


def columns(rows: list[Candidate]) -> Candidates:
    names = list(dict.fromkeys(row.split for row in rows))
    return Candidates(
        rows=np.array([row.row for row in rows], np.int64),
        names=names,
        splits=np.array([names.index(row.split) for row in rows], np.int32),
        prompt_keys=np.array([row.prompt_key for row in rows], KEY_DTYPE),
        answer_keys=np.array([row.answer_key for row in rows], KEY_DTYPE),
        num_response_tokens=np.array([row.tokens for row in rows], np.int32),
    )


def assign(
    rows: list[Candidate], evaluation: int = 2, validation: int = 2, maximum: int = 0, tokens: int = 10
) -> Assigned:
    limits = SplitLimits(evaluation, validation, maximum, tokens)
    found = assign_splits(columns(rows), limits, place=lambda row: f"file:{row + 1}")
    return Assigned({split: members.tolist() for split, members in found.rows.items()}, dict(found.faults))


def reasons(assignment: Assigned) -> dict[int, str]:
    return {row: fault.reason for row, fault in assignment.faults.items()}


@pytest.mark.parametrize(
    ("instruction", "context"),
    [
        ("Say  HI.", "now"),
        ("say hi.\u00a0now", ""),
        ("say hi.", " Now\n"),
        ("\uff53ay hi.", "now"),
        ("Say hi.\r\nnow", ""),
    ],
)
def test_prompts_that_differ_in_case_space_or_width_are_the_same(instruction: str, context: str) -> None:
    assert normalised_prompt(instruction, context) == "say hi. now"


def test_a_sharp_s_is_the_same_as_two_and_accents_are_not_dropped() -> None:
    assert normalised_prompt("STRASSE", "") == normalised_prompt("straße", "")
    assert normalised_prompt("cafe\u0301", "") == normalised_prompt("café", "") != normalised_prompt("cafe", "")


def test_the_key_is_the_salted_hash_of_the_normalised_prompt() -> None:
    # printf '17\nsay hi.' | sha256sum
    assert prompt_key(17, "Say hi.", "").hex() == "2f4e5367395507e6da5ec43e94f59962"
    assert prompt_key(18, "Say hi.", "") != prompt_key(17, "Say hi.", "")


def test_rows_with_the_smallest_hashes_are_evaluation_then_validation_then_training() -> None:
    rows = [candidate(number, f"prompt {number}") for number in range(10)]
    order = [row.row for row in sorted(rows, key=lambda row: row.prompt_key)]
    result = assign(rows, evaluation=3, validation=2)
    assert result.rows == {TEST: order[:3], VALIDATION: order[3:5], TRAIN: order[5:]}
    assert result.faults == {}


def test_the_order_of_the_input_decides_nothing() -> None:
    prompts = [f"prompt {number}" for number in range(50)]
    shuffled = random.Random(3).sample(prompts, 50)
    first = assign([candidate(n, prompt) for n, prompt in enumerate(prompts)])
    second = assign([candidate(n, prompt) for n, prompt in enumerate(shuffled)])
    for split, rows in first.rows.items():
        assert [prompts[row] for row in rows] == [shuffled[row] for row in second.rows[split]]


def test_another_seed_chooses_other_rows() -> None:
    chosen = [
        set(assign([candidate(n, f"prompt {n}", seed=seed) for n in range(100)], evaluation=20).rows[TEST])
        for seed in (1, 2)
    ]
    assert chosen[0] != chosen[1]


def test_answers_to_one_prompt_stay_together_even_across_the_cut() -> None:
    rows = [candidate(number, f"prompt {number // 5}", f"answer {number}") for number in range(50)]
    result = assign(rows, evaluation=7, validation=11)
    assert {split: len(members) for split, members in result.rows.items()} == {TEST: 10, VALIDATION: 15, TRAIN: 25}
    prompts = [{row // 5 for row in members} for members in result.rows.values()]
    assert sum(len(split) for split in prompts) == len(set.union(*prompts)) == 10


def test_a_repeated_prompt_and_answer_is_a_duplicate_of_the_first() -> None:
    rows = [candidate(0, "Say hi."), candidate(1, "say  HI."), candidate(2, "Say hi.", "no")]
    result = assign(rows, evaluation=0, validation=0)
    assert result.rows[TRAIN] == [0, 2]
    assert reasons(result) == {1: "duplicate row"}
    assert result.faults[1].detail == "of file:1"


def test_training_rows_whose_prompt_is_held_out_by_a_file_are_refused() -> None:
    rows = [
        candidate(0, "a"),
        candidate(1, "B", "other"),
        candidate(2, "c"),
        candidate(3, "A", split=VALIDATION),
        candidate(4, "d", split=VALIDATION),
        candidate(5, "b", split=VALIDATION),
        candidate(6, "b", split="evaluation/one"),
        candidate(7, "b", split="evaluation/two"),
    ]
    result = assign(rows, evaluation=0, validation=0)
    assert result.rows == {TRAIN: [2], VALIDATION: [3, 4], "evaluation/one": [6], "evaluation/two": [7]}
    assert reasons(result) == dict.fromkeys([0, 1, 5], "prompt is in an evaluation set")
    assert [result.faults[row].detail for row in (0, 1, 5)] == ["validation", "evaluation/two", "evaluation/two"]


def test_given_files_keep_their_order() -> None:
    rows = [candidate(number, f"prompt {number}", split="evaluation/mine") for number in range(20)]
    assert assign(rows, evaluation=0).rows["evaluation/mine"] == list(range(20))


def test_a_long_response_is_refused_for_training_and_validation_but_not_for_evaluation() -> None:
    rows = [candidate(number, f"prompt {number}", tokens=10 + number % 2) for number in range(40)]
    result = assign(rows, evaluation=10, validation=5, tokens=10)
    order = [row.row for row in sorted(rows, key=lambda row: row.prompt_key)]
    assert result.rows[TEST] == order[:10]
    assert any(row % 2 for row in result.rows[TEST])
    assert {row % 2 for split in (TRAIN, VALIDATION) for row in result.rows[split]} == {0}
    assert reasons(result) == {row: "response too long" for row in order[10:] if row % 2}
    assert next(iter(result.faults.values())).detail == "11 tokens; data.max_response_tokens is 10"


def test_a_long_response_in_a_validation_file_is_refused() -> None:
    rows = [candidate(0, "a"), candidate(1, "b", split=VALIDATION, tokens=11), candidate(2, "c", split=VALIDATION)]
    result = assign(rows, evaluation=0, validation=0)
    assert result.rows[VALIDATION] == [2]
    assert reasons(result) == {1: "response too long"}


def test_training_rows_over_the_maximum_are_counted() -> None:
    rows = [candidate(number, f"prompt {number}") for number in range(30)]
    result = assign(rows, evaluation=4, validation=3, maximum=10)
    assert len(result.rows[TRAIN]) == 10
    assert reasons(result) == dict.fromkeys(
        set(range(30)) - {row for rows in result.rows.values() for row in rows}, "over max_train_rows"
    )
    assert len(result.faults) == 13


def test_too_few_rows_fill_the_first_splits_and_leave_none_to_train_on() -> None:
    result = assign([candidate(number, f"prompt {number}") for number in range(3)])
    assert {split: len(rows) for split, rows in result.rows.items()} == {TEST: 2, VALIDATION: 1, TRAIN: 0}


def test_no_candidates_are_no_rows() -> None:
    assert assign([]) == Assigned({TEST: [], VALIDATION: [], TRAIN: []}, {})


def plain_assignment(rows: list[Candidate], limits: SplitLimits) -> Assigned:
    """The rules one row at a time, without given validation or evaluation rows being split off."""
    faults: dict[int, str] = {}
    seen: dict[tuple[str, bytes], int] = {}
    for row in rows:
        first = seen.setdefault((row.split, row.answer_key), row.row)
        if first != row.row:
            faults[row.row] = f"duplicate row of file:{first + 1}"
    kept = [row for row in rows if row.row not in faults]
    for row in kept:
        later = [VALIDATION, EVALUATION_PREFIX] if row.split == TRAIN else [EVALUATION_PREFIX]
        if row.split in (TRAIN, VALIDATION):
            for use in later:
                homes = [o.split for o in kept if o.split.startswith(use) and o.prompt_key == row.prompt_key]
                if homes:
                    faults[row.row] = f"prompt is in an evaluation set {homes[-1]}"
    for row in kept:
        if row.split in (TRAIN, VALIDATION) and row.row not in faults and row.tokens > limits.max_response_tokens:
            detail = f"{row.tokens} tokens; data.max_response_tokens is {limits.max_response_tokens}"
            faults[row.row] = f"response too long {detail}"
    kept = [row for row in kept if row.row not in faults]
    splits = {name: [row.row for row in kept if row.split == name] for name in {row.split for row in rows}}
    pool = [row.row for row in sorted(kept, key=lambda row: (row.prompt_key, row.row)) if row.split == TRAIN]
    faults |= dict.fromkeys(pool[limits.max_train_rows :], "over max_train_rows data.max_train_rows")
    rows_of = {VALIDATION: [], **splits, TRAIN: pool[: limits.max_train_rows]}
    return Assigned(rows_of, {row: RecordFault(text) for row, text in faults.items()})


@pytest.mark.parametrize("seed", range(20))
def test_whole_columns_are_judged_as_one_row_after_the_other_is(seed: int) -> None:
    """Keys that begin alike, end in NUL bytes, or have their high bit set are told apart and put in order."""
    draw = random.Random(seed)
    keys = [
        bytes([draw.choice([0, 1, 127, 128, 255])]) + bytes(14) + bytes([draw.choice([0, 1, 200])]) for _ in range(9)
    ]
    splits = [TRAIN, TRAIN, TRAIN, VALIDATION, "evaluation/one", "evaluation/two", "corpus"]
    rows = [
        Candidate(3 * n, draw.choice(splits), draw.choice(keys), draw.choice(keys), draw.choice([5, 10, 11]))
        for n in range(60)
    ]
    limits = SplitLimits(0, 0, 4, 10)
    found = assign(rows, evaluation=0, validation=0, maximum=4)
    expected = plain_assignment(rows, limits)
    assert {split: members for split, members in found.rows.items()} == expected.rows
    assert {row: f"{fault.reason} {fault.detail}" for row, fault in found.faults.items()} == {
        row: fault.reason for row, fault in expected.faults.items()
    }

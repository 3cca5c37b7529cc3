"""Which split a row belongs to: decided by a salted hash of its normalised prompt, so that no prompt is in two."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minillm.records import RecordFault
from minillm.sources import EVALUATION_PREFIX, TRAIN, VALIDATION

# Cut off the training rows when no evaluation file is given.
SPLIT_OFF_EVALUATION = EVALUATION_PREFIX + "test"
_KEY_BYTES = 16
_OVER_MAX = RecordFault("over max_train_rows", "data.max_train_rows")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What decides about one good row.

    row: its place in the input. split: what its source is for.
    prompt_key, answer_key: hashes of the normalised prompt, and of that with the first reference.
    """

    row: int
    split: str
    prompt_key: bytes
    answer_key: bytes
    num_response_tokens: int


@dataclass(frozen=True)
class SplitLimits:
    """num_evaluation_rows, num_validation_rows: split off the training rows; 0 = none, as files are given.

    max_train_rows: 0 = all. max_response_tokens: of training and validation rows, with the end token.
    """

    num_evaluation_rows: int
    num_validation_rows: int
    max_train_rows: int
    max_response_tokens: int


@dataclass(frozen=True)
class Assignment:
    """rows: rows of each split, in the order of its file. faults: why the other candidates are in none."""

    rows: dict[str, list[int]]
    faults: dict[int, RecordFault]


def normalised_prompt(instruction: str, context: str) -> str:
    """Return a prompt without differences of case, white space or compatibility characters."""
    text = unicodedata.normalize("NFKC", f"{instruction}\n{context}").casefold()
    return " ".join(unicodedata.normalize("NFKC", text).split())


def prompt_key(seed: int, instruction: str, context: str) -> bytes:
    """Return the hash that orders prompts; another seed gives another order."""
    return _key(f"{seed}\n{normalised_prompt(instruction, context)}".encode())


def answer_key(key: bytes, reference: str) -> bytes:
    """Return the hash by which rows count as duplicates: the prompt's key and the exact first reference."""
    return _key(key + reference.encode())


def _key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:_KEY_BYTES]


def assign_splits(candidates: Iterable[Candidate], limits: SplitLimits, place: Callable[[int], str]) -> Assignment:
    """Return the rows of every split; `place` names the file and line of a row.

    Rows split off and training rows stand in hash order: evaluation first, then validation, then training, each
    ending with the last row of a prompt. Rows of given files keep the order of their file.
    An over-long response is refused for training and validation; references of evaluation are text and may be long.
    """
    faults: dict[int, RecordFault] = {}
    splits = _by_split(_without_leaks(_without_duplicates(candidates, place, faults), faults))
    pool = sorted(splits.pop(TRAIN, []), key=lambda candidate: (candidate.prompt_key, candidate.row))
    if limits.num_evaluation_rows:
        splits[SPLIT_OFF_EVALUATION], pool = _cut(pool, limits.num_evaluation_rows)
    pool = _without_long(pool, limits.max_response_tokens, faults)
    if limits.num_validation_rows:
        splits[VALIDATION], pool = _cut(pool, limits.num_validation_rows)
    else:
        splits[VALIDATION] = _without_long(splits.get(VALIDATION, []), limits.max_response_tokens, faults)
    splits[TRAIN] = _at_most(pool, limits.max_train_rows, faults)
    return Assignment({split: [member.row for member in members] for split, members in splits.items()}, faults)


def _by_split(candidates: Iterable[Candidate]) -> dict[str, list[Candidate]]:
    splits: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        splits.setdefault(candidate.split, []).append(candidate)
    return splits


def _kept(
    candidates: Iterable[Candidate], fault_of: Callable[[Candidate], RecordFault | None], faults: dict[int, RecordFault]
) -> list[Candidate]:
    """Return the candidates without a fault, and note the faults of the others."""
    kept = []
    for candidate in candidates:
        fault = fault_of(candidate)
        if fault is None:
            kept.append(candidate)
        else:
            faults[candidate.row] = fault
    return kept


def _without_duplicates(
    candidates: Iterable[Candidate], place: Callable[[int], str], faults: dict[int, RecordFault]
) -> list[Candidate]:
    first: dict[tuple[str, bytes], int] = {}

    def fault_of(candidate: Candidate) -> RecordFault | None:
        row = first.setdefault((candidate.split, candidate.answer_key), candidate.row)
        return None if row == candidate.row else RecordFault("duplicate row", f"of {place(row)}")

    return _kept(candidates, fault_of, faults)


def _without_leaks(candidates: list[Candidate], faults: dict[int, RecordFault]) -> list[Candidate]:
    """Return the candidates but for training and validation prompts that a file given for a later use holds."""
    evaluation = {row.prompt_key: row.split for row in candidates if row.split.startswith(EVALUATION_PREFIX)}
    validation = {row.prompt_key: row.split for row in candidates if row.split == VALIDATION}
    held_out = {TRAIN: validation | evaluation, VALIDATION: evaluation}

    def fault_of(candidate: Candidate) -> RecordFault | None:
        home = held_out.get(candidate.split, {}).get(candidate.prompt_key)
        return None if home is None else RecordFault("prompt is in an evaluation set", home)

    return _kept(candidates, fault_of, faults)


def _without_long(pool: list[Candidate], max_tokens: int, faults: dict[int, RecordFault]) -> list[Candidate]:
    def fault_of(candidate: Candidate) -> RecordFault | None:
        return too_long("response", candidate.num_response_tokens, max_tokens)

    return _kept(pool, fault_of, faults)


def too_long(what: str, num_tokens: int, max_tokens: int) -> RecordFault | None:
    """Return the fault of a prompt or response over its limit, naming the knob, or None."""
    if num_tokens <= max_tokens:
        return None
    return RecordFault(f"{what} too long", f"{num_tokens} tokens; data.max_{what}_tokens is {max_tokens}")


def _cut(pool: list[Candidate], num_rows: int) -> tuple[list[Candidate], list[Candidate]]:
    """Return the first `num_rows` candidates with all other rows of the last prompt among them, and the rest."""
    end = min(num_rows, len(pool))
    while 0 < end < len(pool) and pool[end].prompt_key == pool[end - 1].prompt_key:
        end += 1
    return pool[:end], pool[end:]


def _at_most(pool: list[Candidate], max_rows: int, faults: dict[int, RecordFault]) -> list[Candidate]:
    end = max_rows or len(pool)
    faults.update({candidate.row: _OVER_MAX for candidate in pool[end:]})
    return pool[:end]

"""Which split a row belongs to: decided by a salted hash of its normalised prompt, so that no prompt is in two.

Columns of all rows are held and worked on at once, about 60 bytes a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minillm.records import RecordFault
from minillm.row_keys import KEY_BYTES
from minillm.sources import EVALUATION_PREFIX, TRAIN, VALIDATION

# Cut off the training rows when no evaluation file is given.
SPLIT_OFF_EVALUATION = EVALUATION_PREFIX + "test"
KEY_DTYPE = np.dtype(f"S{KEY_BYTES}")
_DUPLICATE, _LEAK, _LONG, _OVER_MAX = 1, 2, 3, 4

Members = NDArray[np.int64]  # indices of candidates
_NOBODY: Members = np.empty(0, np.int64)


@dataclass(frozen=True)
class Candidates:
    """What decides about the rows that have no fault so far: one element of each array for one row, in input order.

    rows: their places in the input. splits: what their sources are for, each an index into `names`.
    prompt_keys, answer_keys: (N,) of KEY_DTYPE, hashes of the normalised prompt, and of that with the first reference.
    """

    rows: NDArray[np.int64]
    names: Sequence[str]
    splits: NDArray[np.integer[Any]]
    prompt_keys: NDArray[np.bytes_]
    answer_keys: NDArray[np.bytes_]
    num_response_tokens: NDArray[np.integer[Any]]

    def of(self, splits: Iterable[str]) -> NDArray[np.bool_]:
        """Return which have a source for one of the splits."""
        return np.isin(self.splits, [self.names.index(split) for split in splits if split in self.names])


@dataclass(frozen=True)
class SplitLimits:
    """num_evaluation_rows, num_validation_rows: split off the training rows; 0 = none, as files are given.

    max_train_rows: 0 = all. max_response_tokens: of training and validation rows, with the end token.
    """

    num_evaluation_rows: int
    num_validation_rows: int
    max_train_rows: int
    max_response_tokens: int


class Faults(Mapping[int, RecordFault]):
    """Why candidates are in no split, by their places in the input; made into words when asked for."""

    def __init__(self, candidates: Candidates, limits: SplitLimits, place: Callable[[int], str]) -> None:
        self._candidates, self._limits, self._place = candidates, limits, place
        self._reasons = np.zeros(len(candidates.rows), np.int8)  # the first one found; 0 = none
        self._causes = np.zeros(len(candidates.rows), np.int64)

    def add(self, members: Members, reason: int, causes: NDArray[Any] | int = 0) -> None:
        """Note a reason against candidates without one, and what it refers to."""
        self._reasons[members] = reason
        self._causes[members] = causes

    def without(self, members: NDArray[np.bool_]) -> Members:
        """Return those of the candidates that have no fault."""
        return np.flatnonzero(members & (self._reasons == 0))

    def rows(self) -> NDArray[np.int64]:
        """Return the places, ascending."""
        rows: NDArray[np.int64] = self._candidates.rows[self._reasons != 0]
        return rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.rows().tolist())

    def __len__(self) -> int:
        return int(np.count_nonzero(self._reasons))

    def __getitem__(self, row: int) -> RecordFault:
        rows = self._candidates.rows
        member = int(np.searchsorted(rows, row))
        if member == len(rows) or rows[member] != row or not self._reasons[member]:
            raise KeyError(row)
        return self._fault(int(self._reasons[member]), int(self._causes[member]))

    def _fault(self, reason: int, cause: int) -> RecordFault:
        if reason == _DUPLICATE:
            return RecordFault("duplicate row", f"of {self._place(cause)}")
        if reason == _LEAK:
            return RecordFault("prompt is in an evaluation set", self._candidates.names[cause])
        if reason == _LONG:
            return too_long("response", cause, self._limits.max_response_tokens)
        return RecordFault("over max_train_rows", "data.max_train_rows")


@dataclass(frozen=True)
class Assignment:
    """rows: places in the input of each split's rows, in the order of its file. faults: of the other candidates."""

    rows: dict[str, NDArray[np.int64]]
    faults: Faults


def assign_splits(candidates: Candidates, limits: SplitLimits, place: Callable[[int], str]) -> Assignment:
    """Return the rows of every split; `place` names the file and line of a row.

    Rows split off and training rows stand in hash order: evaluation first, then validation, then training, each
    ending with the last row of a prompt. Rows of given files keep the order of their file.
    An over-long response is refused for training and validation; references of evaluation are text and may be long.
    """
    faults = Faults(candidates, limits, place)
    _refuse_duplicates(candidates, faults)
    _refuse_leaks(candidates, faults)
    splits = {name: faults.without(candidates.of([name])) for name in candidates.names}
    keys, lengths = candidates.prompt_keys, (candidates.num_response_tokens, limits.max_response_tokens)
    pool = splits.pop(TRAIN, _NOBODY)
    pool = pool[np.argsort(keys[pool], kind="stable")]
    if limits.num_evaluation_rows:
        splits[SPLIT_OFF_EVALUATION], pool = _cut(pool, keys, limits.num_evaluation_rows)
    pool = _without_long(pool, *lengths, faults)
    if limits.num_validation_rows:
        splits[VALIDATION], pool = _cut(pool, keys, limits.num_validation_rows)
    else:
        splits[VALIDATION] = _without_long(splits.get(VALIDATION, _NOBODY), *lengths, faults)
    splits[TRAIN] = _at_most(pool, limits.max_train_rows, faults)
    return Assignment({split: candidates.rows[members] for split, members in splits.items()}, faults)


def _refuse_duplicates(candidates: Candidates, faults: Faults) -> None:
    """Refuse all but the first of the rows that are the same for one split."""
    order = np.lexsort((candidates.answer_keys, candidates.splits))  # stable: equal ones stay in input order
    is_first = _differs_from_previous(candidates.answer_keys[order]) | _differs_from_previous(candidates.splits[order])
    first = order[np.maximum.accumulate(np.where(is_first, np.arange(len(order)), 0))]
    repeated = ~is_first
    faults.add(order[repeated], _DUPLICATE, candidates.rows[first[repeated]])


def _differs_from_previous(values: NDArray[Any]) -> NDArray[np.bool_]:
    differs = np.ones(len(values), np.bool_)
    differs[1:] = values[1:] != values[:-1]
    return differs


def _refuse_leaks(candidates: Candidates, faults: Faults) -> None:
    """Refuse training and validation prompts that a file given for a later use holds; the last use is named."""
    evaluation = candidates.of(name for name in candidates.names if name.startswith(EVALUATION_PREFIX))
    validation = candidates.of([VALIDATION])
    held_out = {TRAIN: [validation, evaluation], VALIDATION: [evaluation]}
    found = {split: [faults.without(uses) for uses in later] for split, later in held_out.items()}
    for split, groups in found.items():
        _refuse_held_out(candidates, faults, split, np.concatenate(groups))


def _refuse_held_out(candidates: Candidates, faults: Faults, split: str, holders: Members) -> None:
    keys = candidates.prompt_keys
    homes, last = np.unique(keys[holders][::-1], return_index=True)
    members = faults.without(candidates.of([split]))
    members = members[np.isin(keys[members], homes)]
    nearest = np.searchsorted(homes, keys[members])
    faults.add(members, _LEAK, candidates.splits[holders[::-1][last[nearest]]])


def _without_long(pool: Members, num_tokens: NDArray[Any], max_tokens: int, faults: Faults) -> Members:
    num_tokens = num_tokens[pool]
    is_long = num_tokens > max_tokens
    faults.add(pool[is_long], _LONG, num_tokens[is_long])
    return pool[~is_long]


def too_long(what: str, num_tokens: int, max_tokens: int) -> RecordFault:
    """Return the fault of a prompt or response over its limit, naming the knob."""
    return RecordFault(f"{what} too long", f"{num_tokens} tokens; data.max_{what}_tokens is {max_tokens}")


def _cut(pool: Members, keys: NDArray[np.bytes_], num_rows: int) -> tuple[Members, Members]:
    """Return the first `num_rows` candidates with all other rows of the last prompt among them, and the rest."""
    end = min(num_rows, len(pool))
    while 0 < end < len(pool) and keys[pool[end]] == keys[pool[end - 1]]:
        end += 1
    return pool[:end], pool[end:]


def _at_most(pool: Members, max_rows: int, faults: Faults) -> Members:
    end = max_rows or len(pool)
    faults.add(pool[end:], _OVER_MAX)
    return pool[:end]

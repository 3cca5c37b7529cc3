"""The embedded instruction rows: all hand-written ones, then rows drawn in turn from the task families."""

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from minillm.builtin import (
    tasks_classify,
    tasks_facts,
    tasks_lists,
    tasks_reasoning,
    tasks_stories,
    tasks_text,
    tasks_writing,
)
from minillm.builtin.wording import Row

Family = Callable[[Random], Row]

FAMILIES: tuple[Family, ...] = (
    *tasks_text.FAMILIES,
    *tasks_lists.FAMILIES,
    *tasks_stories.FAMILIES,
    *tasks_facts.FAMILIES,
    *tasks_reasoning.FAMILIES,
    *tasks_writing.FAMILIES,
    *tasks_classify.FAMILIES,
)
_HANDWRITTEN_PATH = Path(__file__).with_name("handwritten.jsonl")
# Bounds the work of a request that cannot be met: some families hold millions of rows.
_MAX_ROWS_PER_FAMILY = 300
# A family whose draws repeat earlier rows this often in a row is taken to be used up.
_MAX_DRAWS_PER_ROW = 50


def instruction_rows(num_rows: int, seed: int) -> list[Row]:
    """`num_rows` rows with the keys instruction, input, output and category, no prompt twice.

    The hand-written rows come first, all of them if they fit and a sample otherwise.
    Raises ValueError if `num_rows` is not positive or more than the families yield.
    """
    if num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, got {num_rows}")
    rng = Random(seed)
    rows = handwritten_rows()
    if num_rows <= len(rows):
        return rng.sample(rows, num_rows)
    rows += _generated_rows(num_rows - len(rows), rng, {_prompt_key(row) for row in rows})
    if len(rows) < num_rows:
        raise ValueError(f"num_rows is {num_rows}, but the maximum with seed {seed} is {len(rows)}")
    return rows


def handwritten_rows() -> list[Row]:
    """The hand-written rows in the order of their file."""
    return [json.loads(line) for line in _HANDWRITTEN_PATH.read_text(encoding="utf-8").splitlines()]


def _generated_rows(num_rows: int, rng: Random, taken: set[tuple[str, str]]) -> list[Row]:
    """Up to `num_rows` new rows, one per family and round; adds their prompts to `taken`."""
    rows: list[Row] = []
    families = list(FAMILIES)
    for _ in range(_MAX_ROWS_PER_FAMILY):
        rng.shuffle(families)
        drawn = [(family, _new_row(family, rng, taken)) for family in families[: num_rows - len(rows)]]
        rows += [row for _, row in drawn if row is not None]
        used_up = [family for family, row in drawn if row is None]
        families = [family for family in families if family not in used_up]
    return rows


def _new_row(family: Family, rng: Random, taken: set[tuple[str, str]]) -> Row | None:
    """A row of the family whose prompt is not in `taken` yet, or None when the family is used up."""
    for _ in range(_MAX_DRAWS_PER_ROW):
        row = family(rng)
        key = _prompt_key(row)
        if key not in taken:
            taken.add(key)
            return row
    return None


def _prompt_key(row: Row) -> tuple[str, str]:
    """The prompt without differences of letter case and spacing, by which rows count as equal."""
    instruction, task_input = (" ".join(row[key].casefold().split()) for key in ("instruction", "input"))
    return instruction, task_input

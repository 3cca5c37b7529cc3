"""From spooled rows and their ids to splits, prepared tables and the packed corpus."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from minillm.config import DataConfig
from minillm.dataset import CORPUS_SCHEMA, EXAMPLE_SCHEMA
from minillm.packing import PackedCorpus, pack_documents
from minillm.sources import CORPUS, Source
from minillm.splits import Assignment, Candidate, SplitLimits, assign_splits
from minillm.spool import table_rows

_CHUNK_ROWS = 20_000


@dataclass(frozen=True)
class SpooledRows:
    """Everything that was read: one row of `rows` (ROW_SCHEMA) and of `tokens` (TOKEN_SCHEMA) per record."""

    sources: Sequence[Source]
    rows: pa.Table
    tokens: pa.Table

    def place(self, row: int) -> str:
        """Return the file and line of a row."""
        return f"{self.sources[self.rows['source'][row].as_py()].file}:{self.rows['number'][row].as_py()}"


def assigned(spooled: SpooledRows, data: DataConfig) -> Assignment:
    """Return the split of every good row; sets that are given as files are not split off the training rows."""
    has_evaluation, has_validation = bool(data.evaluation_files), bool(data.validation_file)
    limits = SplitLimits(
        num_evaluation_rows=0 if has_evaluation else data.num_evaluation_rows,
        num_validation_rows=0 if has_validation else data.num_validation_rows,
        max_train_rows=data.max_train_rows,
        max_response_tokens=data.max_response_tokens,
    )
    return assign_splits(candidates(spooled), limits, spooled.place)


def candidates(spooled: SpooledRows) -> Iterator[Candidate]:
    """Yield what decides about each row that has no fault so far."""
    tokens = spooled.tokens
    num_tokens = pc.list_value_length(tokens["response_ids"])
    columns = [spooled.rows["source"], tokens["prompt_key"], tokens["answer_key"], num_tokens]
    table = pa.table(columns, names=["source", "prompt_key", "answer_key", "num_response_tokens"])
    for number, row in enumerate(table_rows(table)):
        split = spooled.sources[row.pop("source")].split
        if row["prompt_key"] is not None:
            yield Candidate(row=number, split=split, **row)


def example_tables(spooled: SpooledRows, chosen: Sequence[int]) -> Iterator[pa.Table]:
    """Yield the chosen rows in their order, as tables of EXAMPLE_SCHEMA."""
    for start in range(0, len(chosen), _CHUNK_ROWS):
        places = pa.array(chosen[start : start + _CHUNK_ROWS], pa.int64())
        columns = {
            "row_id": pa.array(range(start, start + len(places)), pa.int64()),
            **{name: spooled.rows[name].take(places) for name in ("instruction", "input", "references", "category")},
            **{name: spooled.tokens[name].take(places) for name in ("prompt_ids", "response_ids")},
        }
        yield pa.table(columns).cast(EXAMPLE_SCHEMA)


def token_counts(spooled: SpooledRows, name: str, chosen: Sequence[int]) -> NDArray[np.int64]:
    """Return the number of ids in a column of the chosen rows."""
    lengths = pc.list_value_length(spooled.tokens[name]).take(pa.array(chosen, pa.int64()))
    return np.asarray(lengths.to_numpy())


def packed_corpus(spooled: SpooledRows, assignment: Assignment, data: DataConfig) -> PackedCorpus:
    """Return the blocks of the corpus; without a corpus there are none."""
    column = spooled.tokens["response_ids"]
    documents = (column[row].values.to_numpy() for row in assignment.rows.get(CORPUS, []))
    return pack_documents(documents, data.corpus_block_tokens, data.max_corpus_blocks)


def corpus_table(corpus: PackedCorpus) -> pa.Table:
    """Return the blocks as a table of CORPUS_SCHEMA."""
    return pa.table({"token_ids": pa.array(list(corpus.blocks), pa.list_(pa.int32()))}, schema=CORPUS_SCHEMA)

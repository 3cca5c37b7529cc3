"""From spooled rows and their ids to splits, prepared tables and the packed corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from minillm.config import DataConfig
from minillm.dataset import CORPUS_SCHEMA, EXAMPLE_SCHEMA
from minillm.packing import PackedCorpus, pack_documents
from minillm.sources import CORPUS, Source
from minillm.splits import KEY_DTYPE, Assignment, Candidates, SplitLimits, assign_splits
from minillm.spool import Spool

_TABLE_ROWS = 20_000
_MAX_PARTS = 200  # of all splits together, each an open file
_TEXT_COLUMNS = ["instruction", "input", "references", "category"]
_ID_COLUMNS = ["prompt_ids", "response_ids"]


@dataclass(frozen=True)
class SpooledRows:
    """Everything that was read: one row of `rows` (ROW_SCHEMA) and of `tokens` (TOKEN_SCHEMA) per record."""

    sources: Sequence[Source]
    rows: Spool
    tokens: Spool

    def batches(self, row_columns: Sequence[str], token_columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield batches with columns of both."""
        for rows, tokens in zip(self.rows.batches(row_columns), self.tokens.batches(token_columns), strict=True):
            yield pa.Table.from_arrays([*rows.columns, *tokens.columns], [*row_columns, *token_columns])


@dataclass(frozen=True)
class RowIndex:
    """The columns that are held in memory, one element for each record in input order."""

    sources: Sequence[Source]
    source: NDArray[np.int32]
    number: NDArray[np.int64]
    is_good: NDArray[np.bool_]
    prompt_key: NDArray[np.bytes_]
    answer_key: NDArray[np.bytes_]
    num_prompt_tokens: NDArray[np.int32]
    num_response_tokens: NDArray[np.int32]

    def place(self, row: int) -> str:
        """Return the file and line of a row."""
        return f"{self.sources[self.source[row]].file}:{self.number[row]}"

    def candidates(self) -> Candidates:
        """Return what decides about each row that has no fault so far."""
        good = np.flatnonzero(self.is_good)
        names = list(dict.fromkeys(source.split for source in self.sources))
        split_of_source = np.array([names.index(source.split) for source in self.sources], np.int32)
        return Candidates(
            rows=good,
            names=names,
            splits=split_of_source[self.source[good]],
            prompt_keys=self.prompt_key[good],
            answer_keys=self.answer_key[good],
            num_response_tokens=self.num_response_tokens[good],
        )


def row_index(spooled: SpooledRows) -> RowIndex:
    """Return the index of everything that was read."""
    numbers = ["num_prompt_tokens", "num_response_tokens"]
    parts = [
        {
            "is_good": np.asarray(pc.and_(batch["reason"].is_null(), batch["token_reason"].is_null())),
            **{name: _keys(batch[name]) for name in ("prompt_key", "answer_key")},
            **{name: np.asarray(batch[name].fill_null(0)) for name in ("source", "number", *numbers)},
        }
        for batch in spooled.batches(
            ["source", "number", "reason", "prompt_key", "answer_key"], ["token_reason", *numbers]
        )
    ]
    columns: dict[str, Any] = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
    return RowIndex(spooled.sources, **columns)


def _keys(column: pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Return hashes as an array; the key of a row without one is whatever was there."""
    (chunk,) = column.chunks
    start, end = chunk.offset, chunk.offset + len(chunk)
    return np.frombuffer(chunk.buffers()[1], KEY_DTYPE)[start:end].copy()


def assigned(index: RowIndex, data: DataConfig) -> Assignment:
    """Return the split of every good row; sets that are given as files are not split off the training rows."""
    has_evaluation, has_validation = bool(data.evaluation_files), bool(data.validation_file)
    limits = SplitLimits(
        num_evaluation_rows=0 if has_evaluation else data.num_evaluation_rows,
        num_validation_rows=0 if has_validation else data.num_validation_rows,
        max_train_rows=data.max_train_rows,
        max_response_tokens=data.max_response_tokens,
    )
    return assign_splits(index.candidates(), limits, index.place)


@dataclass(frozen=True)
class DealtRows:
    """The rows of every split, dealt to files of consecutive rows, whose own order is still that of the input."""

    parts: Mapping[str, Sequence[Path]]

    def tables(self, split: str) -> Iterator[pa.Table]:
        """Yield the rows of a split in their order, as tables of EXAMPLE_SCHEMA."""
        for path in self.parts[split]:
            with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
                table = reader.read_all()
            yield table.take(pc.sort_indices(table["row_id"])).cast(EXAMPLE_SCHEMA)


def deal_rows(spooled: SpooledRows, splits: Mapping[str, NDArray[np.int64]], directory: Path) -> DealtRows:
    """Deal the rows in one pass over the spools, so that none of them has to be looked up."""
    part_of_row = np.full(spooled.rows.num_rows, -1, np.int32)
    row_ids = np.zeros(spooled.rows.num_rows, np.int64)
    part_rows = max(_TABLE_ROWS, sum(map(len, splits.values())) // _MAX_PARTS)
    parts: dict[str, list[Path]] = {}
    for split, rows in splits.items():
        first = sum(map(len, parts.values()))
        num_parts = -(-len(rows) // part_rows)
        parts[split] = [directory / f"part-{first + number}.arrow" for number in range(num_parts)]
        row_ids[rows] = np.arange(len(rows))
        part_of_row[rows] = first + row_ids[rows] // part_rows
    _write_parts(spooled, part_of_row, row_ids, [path for paths in parts.values() for path in paths])
    return DealtRows(parts)


def _write_parts(
    spooled: SpooledRows, part_of_row: NDArray[np.int32], row_ids: NDArray[np.int64], paths: Sequence[Path]
) -> None:
    start = 0
    with ExitStack() as stack:
        writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        for batch in spooled.batches(_TEXT_COLUMNS, _ID_COLUMNS):
            parts = part_of_row[start : start + batch.num_rows]
            batch = batch.add_column(0, "row_id", [row_ids[start : start + batch.num_rows]])
            for part in np.unique(parts[parts >= 0]).tolist():
                if part not in writers:
                    file = stack.enter_context(pa.OSFile(str(paths[part]), "wb"))
                    writers[part] = stack.enter_context(pa.ipc.new_stream(file, batch.schema))
                writers[part].write_table(batch.take(pa.array(np.flatnonzero(parts == part))))
            start += batch.num_rows


def packed_corpus(spooled: SpooledRows, assignment: Assignment, data: DataConfig) -> PackedCorpus:
    """Return the blocks of the corpus; without a corpus there are none."""
    chosen = assignment.rows.get(CORPUS, np.empty(0, np.int64))
    return pack_documents(_documents(spooled, chosen), data.corpus_block_tokens, data.max_corpus_blocks)


def _documents(spooled: SpooledRows, chosen: NDArray[np.int64]) -> Iterator[NDArray[np.int32]]:
    """Yield the ids of the chosen rows, which stand in input order."""
    start = 0
    for batch in spooled.tokens.batches(["response_ids"]) if len(chosen) else ():
        here = chosen[(chosen >= start) & (chosen < start + batch.num_rows)] - start
        yield from (batch["response_ids"][row].values.to_numpy() for row in here.tolist())
        start += batch.num_rows


def corpus_table(corpus: PackedCorpus) -> pa.Table:
    """Return the blocks as a table of CORPUS_SCHEMA."""
    return pa.table({"token_ids": pa.array(list(corpus.blocks), pa.list_(pa.int32()))}, schema=CORPUS_SCHEMA)

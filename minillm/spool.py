"""Rows on their way through preparation: a temporary Arrow file in input order, mapped instead of held in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

Item = TypeVar("Item")
# Small enough for a steady progress line, large enough for columns to pay.
SPOOL_BATCH_ROWS = 1000


def write_spool(path: Path, schema: pa.Schema, batches: Iterable[list[dict[str, Any]]]) -> None:
    """Write batches of rows in the order they come."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for rows in batches:
            writer.write_table(pa.Table.from_pylist(rows, schema), max_chunksize=SPOOL_BATCH_ROWS)


def open_spool(path: Path) -> pa.Table:
    """Return a spool as a table whose pages the system loads as they are read."""
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def table_rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, of which one batch at a time is in memory."""
    for batch in table.to_batches():
        yield from batch.to_pylist()


def batched(rows: Iterable[Item]) -> Iterator[list[Item]]:
    """Yield rows in lists of SPOOL_BATCH_ROWS, the last one shorter."""
    iterator = iter(rows)
    while batch := list(islice(iterator, SPOOL_BATCH_ROWS)):
        yield batch

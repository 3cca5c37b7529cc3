"""Rows on their way through preparation: a temporary Arrow file, of which one batch at a time is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True)
class Spool:
    """A finished file; it is read, not mapped, so that what was read does not stay in memory."""

    path: Path
    schema: pa.Schema
    num_rows: int

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the batches in the order they were written, with the named columns alone."""
        options = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(name) for name in names])
        with pa.OSFile(str(self.path)) as file, pa.ipc.open_file(file, options=options) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number).select(names)


def write_spool(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Spool:
    """Write batches in the order they come."""
    num_rows = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            num_rows += batch.num_rows
    return Spool(path, schema, num_rows)

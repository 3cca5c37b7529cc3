"""Data preparation at a million rows: read, checked, quarantined, split and written; tokenisation timed beside it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from minillm.config import DataConfig
from minillm.encoding import TOKEN_SCHEMA
from minillm.params import load_params
from minillm.preparation import SpooledRows
from minillm.rows import ROW_SCHEMA, checked_rows
from minillm.sources import open_sources
from minillm.spool import Spool, write_spool
from tasks.schemas import check_rows

NUM_ROWS, NUM_ROWS_SHORT = 1_000_000, 50_000
NUM_TOKENISED = 20_000
_SHARE_BAD = 0.01
_BAD_LINES = ('{"instruction": "cut', '{"instruction": " ", "output": "x"}', '{"instruction": "a", "output": 3}', "")
_FILE = "rows.jsonl"


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return seconds and peak memory of a process that prepares the rows, and how fast rows become ids."""
    num_rows = NUM_ROWS_SHORT if is_short else NUM_ROWS
    with tempfile.TemporaryDirectory(prefix="minillm-benchmark-") as name:
        directory = Path(name)
        num_bytes = _write_rows(directory / _FILE, num_rows)
        found = _in_new_process(_prepare, directory)
        tokenised = _in_new_process(_tokenise, directory)
    return {
        "wall_s": found["wall_s"],
        "peak_rss_mib": found["peak_rss_mib"],
        "rows": num_rows,
        "input_mib": round(num_bytes / 2**20, 1),
        **found,
        **tokenised,
        "cores": os.cpu_count(),
    }


def _write_rows(path: Path, num_rows: int) -> int:
    """Write made-up rows, one in a hundred broken in one of four ways, and return their size."""
    generator = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(generator.choices(letters, k=generator.randint(2, 9))) for _ in range(5000)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            is_bad = generator.random() < _SHARE_BAD
            file.write((_BAD_LINES[number % 4] if is_bad else json.dumps(_row(generator, words))) + "\n")
    return path.stat().st_size


def _row(generator: random.Random, words: list[str]) -> dict[str, str]:
    lengths = generator.randint(6, 20), generator.choice([0, 0, generator.randint(5, 40)]), generator.randint(5, 60)
    instruction, context, output = (" ".join(generator.choices(words, k=length)) for length in lengths)
    return {"instruction": instruction, "input": context, "output": output}


def _in_new_process(target: Any, directory: Path) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(directory, sender))
    process.start()
    sender.close()
    found: dict[str, Any] = receiver.recv()
    process.join()
    return found


def _data(directory: Path) -> DataConfig:
    content = load_params(Path("params.yaml")).data.model_dump()
    content |= {"source": "path", "root": str(directory), "train_files": [_FILE], "corpus_source": "none"}
    return DataConfig.model_validate(content | {"max_train_rows": 0})


def _prepare(directory: Path, sender: Any) -> None:
    """Prepare the rows as the stage does, but with token counts made up from the texts' lengths."""
    from tasks.prepared_files import publish

    start, data = time.perf_counter(), _data(directory)
    sources = open_sources(data, 17)
    rows = write_spool(directory / "rows.arrow", ROW_SCHEMA, checked_rows(sources, check_rows, 17))
    read_s = time.perf_counter() - start
    tokens = write_spool(directory / "tokens.arrow", TOKEN_SCHEMA, _made_up_tokens(rows))
    os.chdir(directory)
    report = publish(SpooledRows(sources, rows, tokens), data, directory)
    wall_s = time.perf_counter() - start
    memory = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found = {"wall_s": round(wall_s, 2), "read_and_check_s": round(read_s, 2), "cpu_s": round(time.process_time(), 2)}
    sender.send(found | {"peak_rss_mib": round(int(memory.split()[1]) / 1024, 1), **report["rows"]})


def _made_up_tokens(rows: Spool) -> Iterator[pa.RecordBatch]:
    for batch in rows.batches(["reason", "num_bytes"]):
        counts = np.minimum(np.asarray(batch["num_bytes"]) // 20, 40)
        empty = pa.array([[]] * batch.num_rows, pa.large_list(pa.int32()))
        nothing = pa.nulls(batch.num_rows)
        columns = [nothing.cast(pa.string()), nothing.cast(pa.large_string()), counts, counts, empty, empty]
        yield pa.RecordBatch.from_arrays([pa.array(column) for column in columns], TOKEN_SCHEMA.names).cast(
            TOKEN_SCHEMA
        )


def _tokenise(directory: Path, sender: Any) -> None:
    """Time how rows become ids with the tokenizer of the delivered params."""
    from minillm.encoding import Encoder, encoded_rows
    from minillm.tokenizers import load_tokenizer

    params = load_params(Path("params.yaml"))
    model = params.teacher_model
    encoder = Encoder(load_tokenizer(model.source, model.location, model.revision), params.data.template, 512)
    lines = (directory / _FILE).read_bytes().split(b"\n")[:NUM_TOKENISED]
    (directory / _FILE).write_bytes(b"\n".join(lines))
    batches = checked_rows(open_sources(_data(directory), 17), check_rows, 17)
    rows = write_spool(directory / "few.arrow", ROW_SCHEMA, batches)
    start = time.perf_counter()
    for _ in encoded_rows(rows, encoder):
        pass
    sender.send({"tokenised_rows_per_s": round(rows.num_rows / (time.perf_counter() - start))})

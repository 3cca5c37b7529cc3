"""Where rows come from: from the data section of the params to named streams of raw records, files checked first."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from minillm.config import REPOSITORY, DataConfig
from minillm.errors import UserError
from minillm.json_arrays import read_json
from minillm.records import RawRecord, RecordFault, decoded, fields_record, read_jsonl, whole_text
from minillm.tables import read_csv, read_parquet

TRAIN = "train"
VALIDATION = "validation"
CORPUS = "corpus"
EVALUATION_PREFIX = "evaluation/"

_READERS = {".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".parquet": read_parquet}
_BUILTIN_COLUMNS = {"instruction": "instruction", "input": "input", "output": "output"}


@dataclass(frozen=True)
class Source:
    """One stream of records.

    file: its name in reports. split: "train", "validation", "evaluation/NAME" or "corpus".
    columns: the source's name of each of our columns. read: starts the stream.
    """

    file: str
    split: str
    columns: Mapping[str, str]
    read: Callable[[], Iterator[RawRecord]]


def open_sources(data: DataConfig, seed: int) -> list[Source]:
    """Return every source that the params name; raises UserError for a file or name that cannot be used."""
    sources = [*_train_sources(data, seed), *_given_sources(data), *_corpus_sources(data)]
    files = {source.file: os.path.realpath(Path(data.root) / source.file) for source in sources}
    paths = [files[source.file] for source in sources]
    repeated = next((file for file, path in files.items() if paths.count(path) > 1), None)
    if repeated is not None:
        raise UserError(f"data: {repeated!r} is named more than once; a file can serve one purpose only")
    return sources


def _train_sources(data: DataConfig, seed: int) -> list[Source]:
    if data.source == "builtin":
        return [Source("builtin", TRAIN, _BUILTIN_COLUMNS, partial(_read_builtin_rows, data.num_builtin_rows, seed))]
    if data.source == "hub":
        return [Source(data.hub_name, TRAIN, data.columns.model_dump(), _hub_reader(data))]
    return [_file_source(data, f"data.train_files[{n}]", TRAIN, file) for n, file in enumerate(data.train_files)]


def _given_sources(data: DataConfig) -> Iterator[Source]:
    if data.validation_file:
        yield _file_source(data, "data.validation_file", VALIDATION, data.validation_file)
    for name, file in data.evaluation_files.items():
        yield _file_source(data, f"data.evaluation_files.{name}", EVALUATION_PREFIX + name, file)


def _corpus_sources(data: DataConfig) -> Iterator[Source]:
    columns = {"text": "text"}
    if data.corpus_source == "builtin":
        yield Source("builtin corpus", CORPUS, columns, _read_builtin_corpus)
    if data.corpus_source == "path":
        readers = {".jsonl": read_jsonl, ".txt": _read_text}
        path = data_path(data.root, "data.corpus_file", data.corpus_file, readers)
        yield Source(data.corpus_file, CORPUS, columns, partial(readers[path.suffix.lower()], path, data.corpus_file))


def _file_source(data: DataConfig, key: str, split: str, file: str) -> Source:
    path = data_path(data.root, key, file, _READERS)
    return Source(file, split, data.columns.model_dump(), partial(_READERS[path.suffix.lower()], path, file))


def data_path(root: str, key: str, file: str, suffixes: Iterable[str]) -> Path:
    """Return the path of a file under the data root that is there, readable and not empty; else raises UserError."""
    if not Path(root).is_dir():
        raise UserError(f"data.root: {root!r} is not a directory")
    _check_confined(root, key, file)
    if Path(file).suffix.lower() not in suffixes:
        raise UserError(f"{key}: {file!r} has no known extension; allowed: {', '.join(suffixes)}")
    _check_readable(root, key, file)
    return Path(root) / file


def _check_confined(root: str, key: str, file: str) -> None:
    """Raise UserError unless a name stays under the root, as written and with its links followed."""
    is_plain = file and not os.path.isabs(file) and ".." not in Path(file).parts and "\0" not in file
    if not is_plain:
        raise UserError(f"{key}: {file!r} must be a path inside data.root ({root}), without '..' and not absolute")
    if not Path(os.path.realpath(Path(root) / file)).is_relative_to(os.path.realpath(root)):
        raise UserError(f"{key}: {file!r} is a link that leaves data.root ({root})")


def _check_readable(root: str, key: str, file: str) -> None:
    """Raise UserError unless the path is a regular file with content; a pipe or device would block or never end."""
    try:
        path = Path(root) / file
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise UserError(f"{key}: {file!r} is not a regular file")
        if state.st_size == 0:
            raise UserError(f"{key}: {file!r} is empty")
        path.open("rb").close()
    except OSError as error:
        raise UserError(f"{key}: {file!r} in {root}: {error.strerror}") from None


def _read_builtin_rows(num_rows: int, seed: int) -> Iterator[RawRecord]:
    from minillm.builtin.instructions import instruction_rows

    for number, row in enumerate(instruction_rows(num_rows, seed), start=1):
        yield fields_record("builtin", number, dict(row))


def _read_builtin_corpus() -> Iterator[RawRecord]:
    from minillm.builtin.corpus import corpus_documents

    for number, document in enumerate(corpus_documents(), start=1):
        yield _document_record("builtin corpus", number, document.encode(), document)


def _read_text(path: Path, file: str) -> Iterator[RawRecord]:
    """Yield a plain-text file as one document."""
    raw = path.read_bytes()
    try:
        yield _document_record(file, 1, raw, decoded(raw).removeprefix("\ufeff"))
    except RecordFault as fault:
        raise UserError(f"{file}: {fault.reason}, {fault.detail}") from None


def _document_record(file: str, number: int, raw: bytes, document: str) -> RawRecord:
    return RawRecord(file, number, whole_text(raw), {"text": document}, None, "")


def _hub_reader(data: DataConfig) -> Callable[[], Iterator[RawRecord]]:
    """Return a reader of a hub repository; a name that `datasets` would take for a local directory is refused."""
    name = data.hub_name
    if not REPOSITORY.fullmatch(name) or Path(name).exists():
        raise UserError(f"data.hub_name: {name!r} is not a hub repository such as 'owner/name', or is a local path")
    return partial(_read_hub, name, data.hub_revision, data.hub_split)


def _read_hub(name: str, revision: str, split: str) -> Iterator[RawRecord]:
    """Yield the rows of one split as they arrive."""
    import datasets

    number = 0
    try:
        rows: Any = datasets.load_dataset(name, revision=revision or None, split=split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield fields_record(name, number, dict(row))
    except Exception as error:  # datasets raises whatever its file systems, parsers and HTTP clients raise
        where = f"split {split!r}, revision {revision or 'default'!r}, after row {number}"
        summary = f"{type(error).__name__}: {error}".split("\n")[0]
        raise UserError(f"data.hub_name: {name!r} ({where}) cannot be read: {summary}") from error

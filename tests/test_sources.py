"""Every named source is checked before a row is read, and no path leaves the data root."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets
import pytest

from minillm.config import DataConfig
from minillm.errors import UserError
from minillm.params import load_params
from minillm.sources import open_sources

PARAMS_PATH = Path(__file__).parent.parent / "params.yaml"
ROW = b'{"instruction": "Say hi.", "output": "Hi."}\n'


def data_config(root: Path, **changes: Any) -> DataConfig:
    defaults = {"root": str(root), "source": "path", "train_files": ["train.jsonl"], "corpus_source": "none"}
    return DataConfig.model_validate({**load_params(PARAMS_PATH).data.model_dump(), **defaults, **changes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    root.mkdir()
    (root / "train.jsonl").write_bytes(ROW)
    (root / "empty.jsonl").touch()
    (root / "rows.xlsx").write_bytes(ROW)
    (root / "folder.jsonl").mkdir()
    (tmp_path / "outside.jsonl").write_bytes(ROW)
    (root / "link_out.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (root / "link_in.jsonl").symlink_to(root / "train.jsonl")
    (root / "link_nowhere.jsonl").symlink_to(root / "nothing")
    (root / "link_dir").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.jsonl")
    return root


@pytest.mark.parametrize(
    ("file", "fault"),
    [
        ("../outside.jsonl", "must be a path inside data.root"),
        ("sub/../../outside.jsonl", "must be a path inside data.root"),
        ("/etc/passwd", "must be a path inside data.root"),
        ("", "must be a path inside data.root"),
        ("a\0.jsonl", "must be a path inside data.root"),
        ("link_out.jsonl", "is a link that leaves data.root"),
        ("link_dir/outside.jsonl", "is a link that leaves data.root"),
        ("link_nowhere.jsonl", "No such file or directory"),
        ("nothing.jsonl", "No such file or directory"),
        ("train.jsonl/more.jsonl", "Not a directory"),
        ("empty.jsonl", "is empty"),
        ("folder.jsonl", "is not a regular file"),
        ("pipe.jsonl", "is not a regular file"),
        ("rows.xlsx", "has no known extension; allowed: .jsonl, .json, .csv, .parquet"),
    ],
)
@pytest.mark.parametrize("key", ["train_files[1]", "evaluation_files.mine"])
def test_a_file_that_cannot_be_used_is_refused_by_key_and_value(root: Path, key: str, file: str, fault: str) -> None:
    changes = (
        {"train_files": ["train.jsonl", file]} if key.startswith("train") else {"evaluation_files": {"mine": file}}
    )
    with pytest.raises(UserError) as error:
        open_sources(data_config(root, **changes), seed=0)
    assert str(error.value).startswith(f"data.{key}: {file!r} ")
    assert fault in str(error.value)


def test_a_link_within_the_root_is_followed(root: Path) -> None:
    (source,) = open_sources(data_config(root, train_files=["link_in.jsonl"]), seed=0)
    (record,) = source.read()
    assert (record.file, record.fields) == ("link_in.jsonl", {"instruction": "Say hi.", "output": "Hi."})


def test_the_root_must_be_a_directory(root: Path) -> None:
    with pytest.raises(UserError, match=r"data\.root: '.*/nowhere' is not a directory"):
        open_sources(data_config(root / "nowhere"), seed=0)


@pytest.mark.parametrize("other", ["train.jsonl", "./train.jsonl"])
def test_one_file_cannot_serve_two_purposes_however_it_is_spelt(root: Path, other: str) -> None:
    with pytest.raises(UserError, match=r"'train\.jsonl' is named more than once"):
        open_sources(data_config(root, evaluation_files={"mine": other}), seed=0)


def test_sources_come_in_the_order_of_the_report(root: Path) -> None:
    for name in ("validation.json", "one.csv", "two.parquet", "corpus.TXT"):
        (root / name).write_bytes(b"x")
    config = data_config(
        root,
        validation_file="validation.json",
        evaluation_files={"one": "one.csv", "two": "two.parquet"},
        corpus_source="path",
        corpus_file="corpus.TXT",
    )
    assert [(source.file, source.split) for source in open_sources(config, seed=0)] == [
        ("train.jsonl", "train"),
        ("validation.json", "validation"),
        ("one.csv", "evaluation/one"),
        ("two.parquet", "evaluation/two"),
        ("corpus.TXT", "corpus"),
    ]


@pytest.mark.parametrize(("raw", "fault"), [(b"a\xffb", "not UTF-8, at byte 2"), (b"a\0b", "NUL byte, at byte 2")])
def test_a_plain_text_corpus_that_is_not_text_is_refused(root: Path, raw: bytes, fault: str) -> None:
    (root / "corpus.txt").write_bytes(raw)
    *_, source = open_sources(data_config(root, corpus_source="path", corpus_file="corpus.txt"), seed=0)
    with pytest.raises(UserError, match=fault):
        list(source.read())


def test_a_plain_text_corpus_is_one_document(root: Path) -> None:
    (root / "corpus.txt").write_bytes("\ufeffOne.\n\nTwo é.\n".encode())
    *_, source = open_sources(data_config(root, corpus_source="path", corpus_file="corpus.txt"), seed=0)
    assert [record.fields for record in source.read()] == [{"text": "One.\n\nTwo é.\n"}]


def test_the_builtin_rows_are_a_training_source_that_any_column_names_fit(root: Path) -> None:
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    (source,) = open_sources(data_config(root, source="builtin", num_builtin_rows=1000, columns=columns), seed=3)
    records = list(source.read())
    assert (source.split, source.columns["output"], len(records)) == ("train", "output", 1000)
    assert all(record.reason is None and record.fields["instruction"].strip() for record in records if record.fields)


@pytest.fixture
def local_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a data set directory that answers to every repository name; what is asked for stays as it was."""
    repository = tmp_path / "hub"
    repository.mkdir()
    load = datasets.load_dataset

    def load_local(name: str, **options: Any) -> Any:
        assert "trust_remote_code" not in options
        assert (name, options.pop("revision")) == ("owner/name", "v1")
        return load(str(repository), cache_dir=str(tmp_path / "cache"), **options)

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    return repository


def hub_config(root: Path, **changes: Any) -> DataConfig:
    return data_config(root, source="hub", hub_name="owner/name", hub_revision="v1", **changes)


def test_rows_of_a_hub_repository_are_streamed_with_their_numbers(root: Path, local_hub: Path) -> None:
    lines = [json.dumps({"instruction": f"task {n}", "context": "", "response": "yes"}) for n in range(5)]
    (local_hub / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    columns = {"instruction": "instruction", "input": "context", "output": "response"}
    (source,) = open_sources(hub_config(root, columns=columns), seed=0)
    records = list(source.read())
    assert [(record.file, record.number) for record in records] == [("owner/name", n) for n in range(1, 6)]
    assert records[3].fields == {"instruction": "task 3", "context": "", "response": "yes"}


def test_a_hub_error_names_repository_split_and_cause(root: Path, local_hub: Path) -> None:
    (local_hub / "train.jsonl").write_bytes(ROW)
    (source,) = open_sources(hub_config(root, hub_split="nonesuch"), seed=0)
    with pytest.raises(
        UserError, match=r"data\.hub_name: 'owner/name' \(split 'nonesuch', revision 'v1', after row 0\)"
    ):
        list(source.read())


@pytest.mark.parametrize("name", ["/etc", "../data", "a/b/c", ".", "owner/../name", "s3://bucket/x", "owner/", "tests"])
def test_a_hub_name_that_is_a_path_is_refused(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PARAMS_PATH.parent)
    with pytest.raises(UserError, match=r"^data\.hub_name: "):
        open_sources(data_config(root, source="hub", hub_name=name), seed=0)

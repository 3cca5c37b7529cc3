"""The prepare stage: every input row is accepted or quarantined with its reason, and outputs depend on inputs only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.config import DataConfig
from minillm.dataset import CORPUS_SCHEMA, EXAMPLE_SCHEMA, read_corpus, read_examples
from minillm.params import load_params
from tasks import prepare
from tasks.storage import (
    CORPUS_PATH,
    EVALUATION_SETS_DIR,
    PREPARED_DIR,
    TRAIN_PATH,
    VALIDATION_PATH,
)
from tests.prepare_stage import (
    REPOSITORY,
    SHARED_DATA,
    TEACHER,
    RecordingTracker,
    quarantine,
    rows,
    run,
    workplace,  # noqa: F401 - a fixture for every test here
    write,
)


def test_good_rows_are_split_tokenised_and_reported() -> None:
    write("train.jsonl", *rows(10))
    report = run()
    assert report == {
        "rows": {"input": 10, "accepted": 10, "quarantined": 0},
        "reasons": {},
        "splits": {"train": 5, "validation": 2, "evaluation": {"test": 3}},
        "tokens": {"prompt": {"mean": 4.0, "p95": 4, "max": 4}, "response": {"mean": 3.0, "p95": 3, "max": 3}},
        "corpus": {"documents": 0, "blocks": 0, "tokens": 0, "tokens_left": 0},
        "files": {"train.jsonl": {"input": 10, "accepted": 10, "quarantined": 0}},
    }
    assert quarantine() == []
    written = [
        *read_examples(TRAIN_PATH),
        *read_examples(VALIDATION_PATH),
        *read_examples(EVALUATION_SETS_DIR / "test.parquet"),
    ]
    assert sorted(row.instruction for row in written) == [f"task {n}" for n in range(10)]
    assert [row.row_id for row in written] == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]
    first = written[0]
    number = first.instruction.removeprefix("task ")
    assert (first.input, first.references, first.category) == ("", [f"answer {number}"], "")
    assert (first.prompt_ids, first.response_ids) == ([6, 4, 1, 11], [6, 1, 0])


def test_the_size_of_chunks_and_parts_changes_no_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.jsonl", *rows(40), b"{", {"instruction": "task 3", "output": "answer 3"}, *rows(20, start=30))

    def outputs() -> dict[Path, list[Any] | bytes]:
        run()
        files = sorted(path for path in PREPARED_DIR.rglob("*") if path.is_file())
        return {
            path: pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_bytes() for path in files
        }

    whole = outputs()
    monkeypatch.setattr("minillm.rows._CHUNK_ROWS", 7)
    monkeypatch.setattr("minillm.preparation._TABLE_ROWS", 4)
    assert outputs() == whole
    assert pq.ParquetFile(TRAIN_PATH).num_row_groups > 5


def test_the_files_have_the_published_layout() -> None:
    write("train.jsonl", *rows(10))
    run()
    for path in (TRAIN_PATH, VALIDATION_PATH, EVALUATION_SETS_DIR / "test.parquet"):
        assert pq.read_schema(path).equals(EXAMPLE_SCHEMA)
    assert pq.read_schema(CORPUS_PATH).equals(CORPUS_SCHEMA)
    assert read_corpus(CORPUS_PATH) == []
    assert sorted(path.name for path in PREPARED_DIR.iterdir()) == [
        "corpus.parquet",
        "evaluation",
        "quarantine.jsonl",
        "train.parquet",
        "validation.parquet",
    ]


def test_every_format_gives_the_same_prepared_rows() -> None:
    table = rows(10)
    write("train.jsonl", *table)
    Path("data/raw/train.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    csv_lines = ["instruction,input,output", *(f"{row['instruction']},,{row['output']}" for row in table)]
    Path("data/raw/train.csv").write_text("\n".join(csv_lines), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(table), "data/raw/train.parquet")
    prepared = []
    for file in ("train.jsonl", "train.json", "train.csv", "train.parquet"):
        assert run(train_files=[file])["files"] == {file: {"input": 10, "accepted": 10, "quarantined": 0}}
        prepared.append(TRAIN_PATH.read_bytes())
    assert len(set(prepared)) == 1


def test_the_same_input_gives_the_same_bytes_and_another_seed_other_splits() -> None:
    write("train.jsonl", *rows(50), b"bad", *rows(2))
    run()
    first = {path: path.read_bytes() for path in sorted(PREPARED_DIR.rglob("*.*"))}
    report = Path("metrics/prepare.json").read_bytes()
    run()
    assert {path: path.read_bytes() for path in sorted(PREPARED_DIR.rglob("*.*"))} == first
    assert Path("metrics/prepare.json").read_bytes() == report
    run(seed=1)
    assert (EVALUATION_SETS_DIR / "test.parquet").read_bytes() != first[EVALUATION_SETS_DIR / "test.parquet"]


def test_no_prompt_is_in_two_splits() -> None:
    lines = [{"instruction": f"task {n % 20}", "output": f"answer {n}"} for n in range(60)]
    write("train.jsonl", *lines)
    run()
    splits = [
        {row.instruction for row in read_examples(path)}
        for path in PREPARED_DIR.rglob("*.parquet")
        if path != CORPUS_PATH
    ]
    assert sum(len(prompts) for prompts in splits) == len(set.union(*splits)) == 20


def test_given_sets_are_used_and_their_prompts_leave_the_training_rows() -> None:
    write("train.jsonl", *rows(10))
    write("validation.jsonl", *rows(2, start=8), *rows(2, start=20))
    write(
        "mine.jsonl", {"instruction": "TASK 0", "output": ["one", "two " * 30]}, {"instruction": "new", "output": "x"}
    )
    report = run(validation_file="validation.jsonl", evaluation_files={"mine": "mine.jsonl"})
    assert report["splits"] == {"train": 7, "validation": 4, "evaluation": {"mine": 2}}
    assert report["files"]["train.jsonl"] == {"input": 10, "accepted": 7, "quarantined": 3}
    assert [(line["line"], line["detail"]) for line in quarantine()] == [
        (1, "evaluation/mine"),
        (9, "validation"),
        (10, "validation"),
    ]
    assert {line["reason"] for line in quarantine()} == {"prompt is in an evaluation set"}
    mine = read_examples(EVALUATION_SETS_DIR / "mine.parquet")
    assert [row.references for row in mine] == [["one", "two " * 30], ["x"]]
    assert not (EVALUATION_SETS_DIR / "test.parquet").exists()


def test_columns_of_another_name_are_mapped() -> None:
    write("train.jsonl", *({"question": f"q {n}", "context": "c", "response": "yes"} for n in range(10)))
    run(columns={"instruction": "question", "input": "context", "output": "response"})
    assert {row.input for row in read_examples(TRAIN_PATH)} == {"c"}


def test_a_corpus_is_packed_and_its_bad_documents_are_quarantined() -> None:
    write("train.jsonl", *rows(10))
    write(
        "corpus.jsonl", {"text": "one two three"}, {"text": ""}, {"text": "x <end>"}, {"text": "a bb ccc dddd e"}, b"{"
    )
    report = run(corpus_source="path", corpus_file="corpus.jsonl")
    assert read_corpus(CORPUS_PATH) == [[3, 3, 5, 0, 1, 2, 3, 4]]
    assert report["corpus"] == {"documents": 2, "blocks": 1, "tokens": 8, "tokens_left": 2}
    assert report["files"]["corpus.jsonl"] == {"input": 5, "accepted": 2, "quarantined": 3}
    assert [line["reason"] for line in quarantine()] == ["text blank", "special token in text", "truncated JSON"]


def test_what_an_earlier_run_left_is_replaced() -> None:
    write("train.jsonl", *rows(10))
    EVALUATION_SETS_DIR.mkdir(parents=True)
    (EVALUATION_SETS_DIR / "old.parquet").touch()
    run()
    assert [path.name for path in EVALUATION_SETS_DIR.iterdir()] == ["test.parquet"]


def test_datasets_and_counts_are_tracked() -> None:
    write("train.jsonl", *rows(10), b"bad")
    tracker = RecordingTracker()
    data = load_params(REPOSITORY / "params.yaml").data.model_dump() | {
        "source": "path",
        "template": "chat",
        "train_files": ["train.jsonl"],
        "corpus_source": "none",
        "num_validation_rows": 2,
        "num_evaluation_rows": 3,
    }
    prepare.run(0, TEACHER, DataConfig.model_validate(data), tracker)  # type: ignore[arg-type]
    assert tracker.datasets == {
        "train": TRAIN_PATH,
        "validation": VALIDATION_PATH,
        "test": EVALUATION_SETS_DIR / "test.parquet",
    }
    assert tracker.metrics == {
        "data/rows_input": 11,
        "data/rows_accepted": 10,
        "data/rows_quarantined": 1,
        "data/train_rows": 5,
        "data/validation_rows": 2,
    }


@pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="../shared/data is not there")
def test_real_dolly_rows_go_through_with_every_row_accounted_for(workplace: Path) -> None:  # noqa: F811
    (workplace / "data/raw/dolly_dev.jsonl").write_bytes((SHARED_DATA / "dolly_dev.jsonl").read_bytes())
    (workplace / "data/raw/self_inst.jsonl").write_bytes((SHARED_DATA / "self_inst.jsonl").read_bytes())
    report = run(
        train_files=["dolly_dev.jsonl"],
        evaluation_files={"self_inst": "self_inst.jsonl"},
        num_validation_rows=100,
        max_prompt_tokens=200,
        max_response_tokens=100,
    )
    files = report["files"]
    assert files["dolly_dev.jsonl"]["input"] == 1000
    assert files["self_inst.jsonl"]["input"] == 252
    assert set(report["reasons"]) == {"prompt too long", "response too long"}
    assert report["splits"]["validation"] == 100
    assert report["tokens"]["response"]["max"] <= 100

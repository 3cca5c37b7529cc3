"""The prepare stage: every input row is accepted or quarantined with its reason, and outputs depend on inputs only."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.config import DataConfig, TeacherModelConfig
from minillm.dataset import CORPUS_SCHEMA, EXAMPLE_SCHEMA, read_corpus, read_examples
from minillm.errors import UserError
from minillm.params import load_params
from minillm.records import HEAD_BYTES
from tasks import prepare
from tasks.storage import (
    CORPUS_PATH,
    EVALUATION_SETS_DIR,
    PREPARED_DIR,
    QUARANTINE_PATH,
    TRAIN_PATH,
    VALIDATION_PATH,
    read_json,
)

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
TEACHER = TeacherModelConfig(source="path", location="unused", revision="")


class WordTokenizer:
    """One id per word: its length; the chat template adds the two words <user> and <assistant>."""

    all_special_tokens = ("<end>",)
    eos_token_id = 0
    chat_template = "words"

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [len(word) for word in text.split()]}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:
        assert not tokenize and add_generation_prompt
        return f"<user> {messages[-1]['content']} <assistant>"


class RecordingTracker:
    """Notes what the stage asks to be tracked."""

    def __init__(self) -> None:
        self.datasets: dict[str, Path] = {}
        self.metrics: dict[str, float] = {}

    def dataset(self, name: str, path: Path) -> None:
        self.datasets[name] = path

    def summary(self, metrics: dict[str, float]) -> None:
        self.metrics |= metrics


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in an empty repository with a tokenizer of words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "load_tokenizer", lambda source, location, revision: WordTokenizer())
    (tmp_path / "data/raw").mkdir(parents=True)
    return tmp_path


def run(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return the report of a run over data/raw/train.jsonl with `changes` to the params."""
    defaults = {
        "source": "path",
        "template": "chat",
        "train_files": ["train.jsonl"],
        "corpus_source": "none",
        "num_validation_rows": 2,
        "num_evaluation_rows": 3,
        "max_prompt_tokens": 12,
        "max_response_tokens": 6,
        "corpus_block_tokens": 8,
    }
    data = load_params(REPOSITORY / "params.yaml").data.model_dump()
    prepare.run(seed, TEACHER, DataConfig.model_validate({**data, **defaults, **changes}), RecordingTracker())  # type: ignore[arg-type]
    return dict(read_json(Path("metrics/prepare.json")))


def rows(number: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"instruction": f"task {n}", "input": "", "output": f"answer {n}"} for n in range(start, start + number)]


def write(file: str, *lines: object) -> None:
    """Write rows, or raw bytes where a line has to be broken."""
    encoded = [line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode() for line in lines]
    Path("data/raw", file).write_bytes(b"".join(line + b"\n" for line in encoded))


def quarantine() -> list[dict[str, Any]]:
    return [json.loads(line) for line in QUARANTINE_PATH.read_text(encoding="utf-8").split("\n")[:-1]]


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


BAD_LINES: list[tuple[object, str]] = [
    (b"", "blank line"),
    (b'{"instruction": "a", "output": "\xff"}', "not UTF-8"),
    (b'{"instruction": "a\x00", "output": "b"}', "NUL byte"),
    (b'{"instruction": "a", "output": "b', "truncated JSON"),
    (b'{"instruction": "a"} trailing', "not JSON"),
    (b"[1]", "not an object"),
    (b'{"instruction": "a", "instruction": "b", "output": "c"}', "duplicate key"),
    (b'{"instruction": "a", "output": NaN}', "NaN or infinity"),
    (b'{"instruction": "a", "output": "\\ud800"}', "unpaired surrogate"),
    (b'{"instruction": "a", "n": ' + b"1" * 5000 + b"}", "integer too long"),
    (b'{"instruction": ' + b"[" * 100_000, "nested too deep"),
    (b'{"instruction": "' + b"x" * 10_000_000 + b'"}', "line too long"),
    ({"output": "b"}, "instruction missing"),
    ({"instruction": 5, "output": "b"}, "instruction not text"),
    ({"instruction": {"text": "a"}, "output": "b"}, "instruction not text"),
    ({"instruction": "\t", "output": "b"}, "instruction blank"),
    ({"instruction": "a", "input": 3, "output": "b"}, "input not text"),
    ({"instruction": "a"}, "output missing"),
    ({"instruction": "a", "output": None}, "output missing"),
    ({"instruction": "a", "output": 1.5}, "output not text"),
    ({"instruction": "a", "output": ""}, "output blank"),
    ({"instruction": "a", "output": []}, "output blank"),
    ({"instruction": "word " * 11, "output": "b"}, "prompt too long"),
    ({"instruction": "a", "output": "stop <end> here"}, "special token in text"),
    ({"instruction": "a", "output": ["fine", "<end>"]}, "special token in text"),
    ({"instruction": "Task  3", "output": "answer 3"}, "duplicate row"),
]


def test_every_kind_of_bad_row_is_quarantined_with_its_line_and_reason_in_order() -> None:
    write("train.jsonl", *rows(10), *(line for line, _ in BAD_LINES))
    report = run()
    expected = [reason for _, reason in BAD_LINES]
    assert [(line["file"], line["line"], line["reason"]) for line in quarantine()] == [
        ("train.jsonl", number, reason) for number, reason in enumerate(expected, start=11)
    ]
    assert report["reasons"] == {reason: expected.count(reason) for reason in set(expected)}
    assert report["rows"] == {"input": 10 + len(expected), "accepted": 10, "quarantined": len(expected)}


def test_quarantined_rows_keep_their_raw_text_bytes_or_head_with_hash() -> None:
    long = '{"instruction": "' + "é" * HEAD_BYTES + '"}'
    write("train.jsonl", *rows(10), b'{"a": "\xff"}', long.encode(), b"[]\r")
    run()
    bytes_line, long_line, text_line = quarantine()
    assert base64.b64decode(bytes_line["raw_base64"]) == b'{"a": "\xff"}\n'
    assert "raw" not in bytes_line
    assert (text_line["raw"], text_line["detail"]) == ("[]\r\n", "list instead")
    raw = long.encode() + b"\n"
    assert long_line["raw"] == raw[:HEAD_BYTES].decode("utf-8", "ignore")
    assert (long_line["raw_num_bytes"], long_line["raw_sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert "raw_num_bytes" not in text_line


def test_a_prompt_at_its_limit_is_accepted_and_one_token_more_is_not() -> None:
    write(
        "train.jsonl", *rows(10), {"instruction": "w " * 10, "output": "b"}, {"instruction": "v " * 11, "output": "b"}
    )
    report = run(max_prompt_tokens=12)
    assert report["reasons"] == {"prompt too long": 1}
    assert quarantine()[0]["detail"] == "13 tokens; data.max_prompt_tokens is 12"


def test_a_thousand_random_injuries_lose_no_row() -> None:
    draws = random.Random(11)
    lines = [injured(draws, json.dumps(row).encode()) for row in rows(1000)]
    write("train.jsonl", *lines)
    report = run()
    assert report["rows"]["input"] == 1000
    assert report["rows"]["quarantined"] == len(quarantine()) > 200
    assert report["rows"]["accepted"] == sum(
        len(read_examples(path)) for path in (TRAIN_PATH, VALIDATION_PATH, EVALUATION_SETS_DIR / "test.parquet")
    )
    numbers = [line["line"] for line in quarantine()]
    assert numbers == sorted(set(numbers))
    assert [raw_bytes(line) for line in quarantine()] == [
        (lines[number - 1] + b"\n")[:HEAD_BYTES] for number in numbers
    ]


def injured(draws: random.Random, line: bytes) -> bytes:
    place = draws.randrange(len(line))
    junk = [
        b"",
        b"\xff",
        b"\x00",
        b'"',
        b"}",
        b"\\",
        b"\\ud800",
        b"[" * 3000,
        b"\r",
        b"1" * 5000,
        b"<end>",
        b"word " * 20,
    ]
    return line[:place] + draws.choice(junk) + line[place + draws.randint(0, 9) :]


def raw_bytes(line: dict[str, Any]) -> bytes:
    return base64.b64decode(line["raw_base64"]) if "raw_base64" in line else bytes(line["raw"].encode())


def test_byte_order_mark_and_carriage_returns_change_nothing() -> None:
    lines = [json.dumps(row).encode() for row in rows(10)]
    write("train.jsonl", *lines)
    run()
    plain = TRAIN_PATH.read_bytes()
    write("train.jsonl", b"\xef\xbb\xbf" + lines[0] + b"\r", *(line + b"\r" for line in lines[1:]))
    run()
    assert TRAIN_PATH.read_bytes() == plain


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


def test_training_rows_over_the_maximum_are_quarantined_not_dropped() -> None:
    write("train.jsonl", *rows(20))
    report = run(max_train_rows=4)
    assert report["splits"]["train"] == 4
    assert report["reasons"] == {"over max_train_rows": 11}


def test_columns_of_another_name_are_mapped() -> None:
    write("train.jsonl", *({"question": f"q {n}", "context": "c", "response": "yes"} for n in range(10)))
    run(columns={"instruction": "question", "input": "context", "output": "response"})
    assert {row.input for row in read_examples(TRAIN_PATH)} == {"c"}


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"instruction": "question", "input": "input", "output": "output"}, r"'question' \(instruction\)"),
        ({"instruction": "instruction", "input": "input", "output": "response"}, r"'response' \(output\)"),
        ({"instruction": "instruction", "input": "context", "output": "output"}, r"'context' \(input\)"),
    ],
)
def test_a_column_that_no_row_has_is_an_error_with_those_present(columns: dict[str, str], fault: str) -> None:
    write("train.jsonl", b"bad", *rows(3))
    message = rf"^train\.jsonl: no row has the column {fault}; it has: 'input', 'instruction', 'output'$"
    with pytest.raises(UserError, match=message):
        run(columns=columns)
    assert not PREPARED_DIR.exists()


def test_a_missing_column_is_found_before_any_row_is_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.jsonl", *rows(10))
    write("mine.jsonl", {"instruction": "a", "answer": "b"})
    monkeypatch.setattr(WordTokenizer, "__call__", None)
    with pytest.raises(UserError, match=r"^mine\.jsonl: no row has the column 'output'"):
        run(evaluation_files={"mine": "mine.jsonl"})


@pytest.mark.parametrize(
    "content", [b"\n\n\n", b"not json\n", b'{"instruction": "a", "output": ""}\n', b"\xef\xbb\xbf\n"]
)
def test_a_file_without_a_good_row_ends_in_an_error_that_counts_the_reasons(content: bytes) -> None:
    Path("data/raw/train.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        run()
    assert "no row is left for train, validation, evaluation/test; " in str(error.value)
    lines = quarantine()
    assert f"are quarantined: {len(lines)} {lines[0]['reason']} (data/prepared/quarantine.jsonl" in str(error.value)
    assert [path.name for path in PREPARED_DIR.rglob("*")] == ["quarantine.jsonl"]
    assert not Path("metrics/prepare.json").exists()


def test_too_few_rows_to_train_on_is_an_error_that_names_the_knobs() -> None:
    write("train.jsonl", *rows(5))
    with pytest.raises(
        UserError, match=r"no row is left for train; .*num_evaluation_rows = 3 .*num_validation_rows = 2 "
    ):
        run()


def test_an_evaluation_set_of_which_nothing_is_left_is_named() -> None:
    write("train.jsonl", *rows(10))
    write("mine.jsonl", {"instruction": "word " * 40, "output": "b"})
    with pytest.raises(UserError, match=r"no row is left for evaluation/mine; of 11 rows read, 1 are quarantined: "):
        run(evaluation_files={"mine": "mine.jsonl"})


@pytest.mark.parametrize(("file", "content"), [("a.json", b"[]"), ("a.csv", b"instruction,output\n")])
def test_a_file_without_rows_is_an_error(file: str, content: bytes) -> None:
    Path("data/raw", file).write_bytes(content)
    with pytest.raises(UserError, match=rf"^{file}: the file has no rows$"):
        run(train_files=[file])


def test_bad_paths_are_refused_before_the_tokenizer_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "load_tokenizer", None)
    with pytest.raises(UserError, match=r"^data\.train_files\[0\]: '\.\./\.\./secret\.jsonl' must be a path inside"):
        run(train_files=["../../secret.jsonl"])


@pytest.mark.parametrize("template", ["chat", "bare_chat"])
def test_a_chat_template_that_is_not_there_is_an_error(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.jsonl", *rows(10))
    monkeypatch.setattr(WordTokenizer, "chat_template", None)
    with pytest.raises(UserError, match=rf"^data\.template: '{template}' needs a chat template"):
        run(template=template)
    assert run(template="alpaca", max_prompt_tokens=40)["rows"]["accepted"] == 10


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


def test_a_corpus_of_less_than_a_block_is_an_error() -> None:
    write("train.jsonl", *rows(10))
    write("corpus.jsonl", {"text": "too short"})
    with pytest.raises(UserError, match=r"^data\.corpus_source: 'path' has 3 tokens; one block of .* = 8 is needed"):
        run(corpus_source="path", corpus_file="corpus.jsonl")


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
def test_real_dolly_rows_go_through_with_every_row_accounted_for(workplace: Path) -> None:
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

"""The prepare stage on rows, files and params that cannot be used."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import TemplateError

from minillm.dataset import read_examples
from minillm.errors import UserError
from minillm.records import HEAD_BYTES
from tasks import prepare
from tasks.storage import (
    EVALUATION_SETS_DIR,
    PREPARED_DIR,
    TRAIN_PATH,
    VALIDATION_PATH,
)
from tests.prepare_stage import (
    WordTokenizer,
    quarantine,
    rows,
    run,
    workplace,  # noqa: F401 - a fixture for every test here
    write,
)

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


def test_fault_19_every_kind_of_bad_row_is_quarantined_with_its_line_and_reason_in_order() -> None:
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


def test_training_rows_over_the_maximum_are_quarantined_not_dropped() -> None:
    write("train.jsonl", *rows(20))
    report = run(max_train_rows=4)
    assert report["splits"]["train"] == 4
    assert report["reasons"] == {"over max_train_rows": 11}


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


def test_a_chat_template_that_refuses_the_prompts_is_an_error_in_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    write("train.jsonl", *rows(10))

    def refuse_system(self: Any, messages: list[dict[str, str]], **options: Any) -> str:
        if messages[0]["role"] == "system":
            raise TemplateError("System role not supported")
        return f"<user> {messages[-1]['content']} <assistant>"

    monkeypatch.setattr(WordTokenizer, "apply_chat_template", refuse_system)
    message = r"^data\.template: 'bare_chat': .* says: System role not supported; use 'chat' or 'alpaca'$"
    with pytest.raises(UserError, match=message):
        run(template="bare_chat")
    assert run(template="chat")["rows"]["accepted"] == 10


def test_a_corpus_of_less_than_a_block_is_an_error() -> None:
    write("train.jsonl", *rows(10))
    write("corpus.jsonl", {"text": "too short"})
    with pytest.raises(UserError, match=r"^data\.corpus_source: 'path' has 3 tokens; one block of .* = 8 is needed"):
        run(corpus_source="path", corpus_file="corpus.jsonl")

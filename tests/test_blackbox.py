from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.blackbox import read_answers
from minillm.dataset import Example
from minillm.errors import UserError


def example(row_id: int, instruction: str, context: str = "") -> Example:
    return Example(row_id, instruction, context, ["reference"], "", [1], [2])


def written(tmp_path: Path, *lines: bytes) -> Path:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def line(instruction: str, output: str, **more: str) -> bytes:
    return json.dumps({"instruction": instruction, "output": output, **more}).encode()


def test_outputs_of_a_file_are_matched_by_prompt_not_by_order(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        b"\xef\xbb\xbf" + line("Sum.", " 3\n", input="1 2"),
        b"",
        line("Of a validation row.", "Left out."),
        b" \t\r",
        line("  Sum.\n", "7", input="\t3 4 "),
        line("Sum.", "None."),
        line("Sum.", "None.", input=" "),
    )
    rows = [example(4, "Sum."), example(7, " Sum.", "3 4"), example(2, "Sum.", "1 2"), example(9, "Sum.")]
    assert read_answers(path, rows) == {4: "None.", 7: "7", 2: " 3\n", 9: "None."}


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (
            b'{"instruction": "a\xff"}',
            "line 2: not UTF-8 (at byte 19 of the line); allowed: a JSON object with the keys",
        ),
        (b'{"instruction": ', "line 2: truncated JSON (Expecting value at character 16); allowed: a JSON object"),
        (b"instruction", "line 2: not JSON (Expecting value at character 1); allowed: a JSON object"),
        (b'["a"]', "line 2: not an object (list instead); allowed: a JSON object"),
        (b'{"output": "b"}', "line 2: the key 'instruction' is missing; allowed: instruction and output in every"),
        (b'{"instruction": "a"}', "line 2: the key 'output' is missing; allowed: instruction and output in every line"),
        (
            b'{"instruction": "a", "output": "b", "context": "c"}',
            "line 2: unknown key 'context' = 'c'; allowed: instruction, input, output",
        ),
        (b'{"instruction": 3, "output": "b"}', "line 2: instruction = 3; allowed: a text"),
        (b'{"instruction": "a", "input": null, "output": "b"}', "line 2: input = None; allowed: a text"),
        (b'{"instruction": "a", "output": ["b"]}', "line 2: output = ['b']; allowed: a text that is not blank"),
        (b'{"instruction": "a", "output": ""}', "line 2: output = ''; allowed: a text that is not blank"),
        (b'{"instruction": "a", "output": " \\n"}', "line 2: output = ' \\n'; allowed: a text that is not blank"),
        (
            b'{"instruction": "Say hi. ", "output": "Hello."}',
            "lines 1 and 2 have different outputs for the instruction 'Say hi. '; allowed: one output for a prompt",
        ),
    ],
)
def test_a_faulty_line_is_refused_by_file_line_key_and_value(tmp_path: Path, raw: bytes, fault: str) -> None:
    path = written(tmp_path, line("Say hi.", "Hi."), raw)
    with pytest.raises(UserError) as error:
        read_answers(path, [example(0, "Say hi.")])
    assert str(error.value).startswith(f"{path}: {fault}")
    assert "\n" not in str(error.value)


def test_prompts_that_are_no_training_rows_may_not_contradict_each_other_either(tmp_path: Path) -> None:
    path = written(tmp_path, line("Say hi.", "Hi."), line("Other.", "One."), line("Other.", "Two."))
    with pytest.raises(UserError, match=r"lines 2 and 3 have different outputs for the instruction 'Other\.'"):
        read_answers(path, [example(0, "Say hi.")])


@pytest.mark.parametrize(
    ("make", "fault"),
    [(lambda path: None, "No such file or directory"), (lambda path: path.mkdir(), "Is a directory")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], None], fault: str) -> None:
    path = tmp_path / "answers.jsonl"
    make(path)
    with pytest.raises(UserError) as error:
        read_answers(path, [example(0, "Say hi.")])
    assert str(error.value) == f"{path}: {fault}; allowed: a readable JSON Lines file"


def test_rows_without_a_response_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, line("Say hi.", "Hi."))
    rows = [example(0, "Say hi."), example(1, "Say\nhi. " + "long " * 50), example(2, "Say hi.", "x")]
    with pytest.raises(UserError) as error:
        read_answers(path, rows)
    start = f"{path}: 2 of 3 training rows have no response, the first is row_id 1, instruction 'Say\\nhi. long long"
    assert str(error.value).startswith(start)
    assert len(str(error.value)) < len(str(path)) + 250

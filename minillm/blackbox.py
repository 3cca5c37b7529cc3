"""A black-box teacher's responses from a file, for the method seqkd."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from minillm.dataset import Example
from minillm.digests import digest
from minillm.errors import UserError
from minillm.records import RawRecord, read_jsonl, shown

Prompt = tuple[str, str]
_KEYS = ("instruction", "input", "output")


def read_answers(path: Path, rows: Sequence[Example]) -> dict[int, str]:
    """Return the file's output for each training row, by `row_id`; raises UserError unless every row has one.

    Prompts match when instruction and input are equal but for surrounding white space. Lines of other prompts are
    checked and left out: with another seed they may be training rows.
    """
    answers = _file_answers(path, {_prompt(row.instruction, row.input) for row in rows})
    missing = [row for row in rows if _prompt(row.instruction, row.input) not in answers]
    if missing:
        raise UserError(
            f"{path}: {len(missing)} of {len(rows)} training rows have no response, the first is row_id"
            f" {missing[0].row_id}, instruction {shown(missing[0].instruction)}; allowed: a line for every training row"
        )
    return {row.row_id: answers[_prompt(row.instruction, row.input)] for row in rows}


def _prompt(instruction: str, context: str) -> Prompt:
    return instruction.strip(), context.strip()


def _file_answers(path: Path, wanted: Collection[Prompt]) -> dict[Prompt, str]:
    """Return the outputs of the wanted prompts; of the others only hashes are held."""
    answers: dict[Prompt, str] = {}
    first: dict[bytes, tuple[int, bytes]] = {}
    for number, fields in _file_lines(path):
        prompt, output = _prompt(fields["instruction"], fields["input"]), fields["output"]
        first_number, first_output = first.setdefault(digest(prompt), (number, digest(output)))
        if first_output != digest(output):
            raise UserError(
                f"{path}: lines {first_number} and {number} have different outputs for the instruction"
                f" {shown(fields['instruction'])}; allowed: one output for a prompt, here {shown(output)}"
            )
        if prompt in wanted:
            answers[prompt] = output
    return answers


def _file_lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield number and checked fields of each line that is not blank."""
    try:
        for record in read_jsonl(path, str(path)):
            if record.reason != "blank line":
                yield record.number, _checked_fields(record)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; allowed: a readable JSON Lines file") from None


def _checked_fields(record: RawRecord) -> dict[str, str]:
    """Return the three texts of a line; raises UserError naming line, key, value and what is allowed."""
    place = f"{record.file}: line {record.number}"
    if record.fields is None:
        fault = f"{record.reason} ({record.detail})" if record.detail else record.reason
        raise UserError(f"{place}: {fault}; allowed: a JSON object with the keys {', '.join(_KEYS)}")
    fields = {"input": "", **record.fields}
    for key, value in fields.items():
        if key not in _KEYS:
            raise UserError(f"{place}: unknown key {shown(key)} = {shown(value)}; allowed: {', '.join(_KEYS)}")
        if not isinstance(value, str) or (key == "output" and not value.strip()):
            allowed = "a text that is not blank" if key == "output" else "a text"
            raise UserError(f"{place}: {key} = {shown(value)}; allowed: {allowed}")
    for key in _KEYS:
        if key not in fields:
            raise UserError(f"{place}: the key {key!r} is missing; allowed: instruction and output in every line")
    return fields

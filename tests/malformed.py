"""Rows as a data set might hold them: good ones, all that have a named fault, and good ones with random injuries.

A row's number stands in its texts with a fixed width, so that an injury cannot turn one row into another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from minillm.records import MAX_ROW_BYTES

BOM = b"\xef\xbb\xbf"
NUM_LONG_ROWS = 3
_JUNK = [b"", b"\xff", b"\x00", b'"', b"}", b"\\", b"\\ud800", b"[" * 300, b"\r", b"<end>", b"word " * 20, BOM, b","]


class MalformedRow(NamedTuple):
    """One row without its line end.

    reason: why it must be quarantined; "" when it must be accepted, None when either may be right.
    """

    raw: bytes
    reason: str | None


Kind = tuple[str | None, Callable[[int], bytes]]


def fields(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row that is good without `changes`."""
    return {"instruction": f"task {number:07}", "input": "", "output": f"answer {number:07}"} | changes


def row(number: int, **changes: Any) -> bytes:
    """Return such a row as JSON; an unpaired surrogate is written as its three bytes."""
    return json.dumps(fields(number, **changes), ensure_ascii=False).encode("utf-8", "surrogatepass")


def _without(number: int, name: str) -> bytes:
    return json.dumps({key: value for key, value in fields(number).items() if key != name}).encode()


def _with(number: int, member: bytes) -> bytes:
    """Return a row with one more member, written as it is given."""
    return row(number)[:-1] + b", " + member + b"}"


def _nested(number: int, depth: int) -> bytes:
    return _with(number, b'"tree": ' + _lists(depth))


def _lists(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


_GOOD: list[Kind] = [
    ("", lambda n: row(n)),
    ("", lambda n: row(n) + b"\r"),
    ("", lambda n: b" \t" + row(n) + b"  "),
    ("", lambda n: row(n, output=[f"answer {n:07}", "another"])),
    ("", lambda n: row(n, input=None, category=7, extra={"deep": [{"er": [1.5, None, True]}]})),
    ("", lambda n: row(n, input="line\u2028separator\u0085and\ufeffmark")),
    ("", lambda n: json.dumps(fields(n, input="\U0001f600 é")).encode()),
    ("", lambda n: _without(n, "input")),
    ("", lambda n: _nested(n, 1 + n % 90)),
]
_NO_JSON: list[Kind] = [
    ("blank line", lambda n: [b"", b" ", b"\t\r"][n % 3]),
    ("not UTF-8", lambda n: row(n, input=["\ud800", "\udfff"][n % 2])),
    ("not UTF-8", lambda n: row(n).replace(b"task", [b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xf5\x80\x80\x80"][n % 4])),
    ("not JSON", lambda n: BOM + row(n)),
    ("not JSON", lambda n: row(n).replace(b": ", b": " + BOM, 1)),
    ("NUL byte", lambda n: row(n).replace(b"task", b"ta\0sk")),
    ("NUL byte", lambda n: row(n, instruction="task\0")),
    ("truncated JSON", lambda n: row(n)[: 1 + n % (len(row(n)) - 1)]),
    ("not JSON", lambda n: row(n) + [b" junk", b"}", b",", row(n), b"\r\r{}"][n % 5]),
    ("not an object", lambda n: [b"[]", b"null", b"true", b"3", b'"text"', b"[" + row(n) + b"]"][n % 6]),
    ("duplicate key", lambda n: _with(n, b'"instruction": "again"')),
    ("duplicate key", lambda n: _with(n, b'"extra": {"a": 1, "a": 1}')),
    ("NaN or infinity", lambda n: _with(n, [b'"x": NaN', b'"x": -Infinity', b'"x": 1e999', b'"x": [NaN]'][n % 4])),
    ("unpaired surrogate", lambda n: _with(n, [b'"x": "\\ud800"', b'"\\udc00": 1', b'"x": [["\\udfff a"]]'][n % 3])),
    ("integer too long", lambda n: _with(n, b'"x": ' + b"9" * 5000)),
    ("nested too deep", lambda n: _nested(n, 100 + n % 1100)),
    ("nested too deep", lambda n: row(n, output="?").replace(b'"?"', _lists(100 + n % 1100))),
]
_NO_INSTRUCTION: list[Kind] = [
    ("instruction missing", lambda n: _without(n, "instruction")),
    ("instruction missing", lambda n: row(n, instruction=None)),
    ("instruction not text", lambda n: row(n, instruction=[n, [f"task {n}"], {"text": "task"}, 1.5, False][n % 5])),
    ("instruction blank", lambda n: row(n, instruction=["", " ", "\u2028", "\r\n"][n % 4])),
    ("input not text", lambda n: row(n, input=[n, ["context"], {}][n % 3])),
    ("output missing", lambda n: _without(n, "output")),
    ("output not text", lambda n: row(n, output=[n, {"text": "answer"}, ["a", 1], [["a"]], [None]][n % 5])),
    ("output blank", lambda n: row(n, output=["", [], ["a", " "]][n % 3])),
    ("category not text", lambda n: row(n, category=[1.5, ["qa"], {}][n % 3])),
    ("special token in text", lambda n: row(n, output="stop <end> here")),
    ("prompt too long", lambda n: row(n, instruction=f"task {n:07} " + "word " * 20)),
]


def malformed_rows(num_rows: int, seed: int) -> Iterator[MalformedRow]:
    """Yield rows of every kind in random order: the first behind a byte order mark, a few of over a megabyte.

    A third is good and a third has random injuries; some of the rest repeat the good row before them.
    """
    draws = random.Random(seed)
    long_rows = {draws.randrange(1, num_rows) for _ in range(NUM_LONG_ROWS)}
    yield MalformedRow(BOM + row(0), "")
    last_good = row(0)
    for number in range(1, num_rows - 1):
        if number in long_rows:
            found = MalformedRow(row(number, input="x" * (MAX_ROW_BYTES + number)), "line too long")
        elif draws.random() < 0.02:
            found = MalformedRow(last_good, "duplicate row")
        else:
            found = _drawn_row(draws, number)
        last_good = found.raw.strip() if found.reason == "" else last_good
        yield found
    yield MalformedRow(row(num_rows), "")


def _drawn_row(draws: random.Random, number: int) -> MalformedRow:
    if draws.random() < 0.0005:
        return MalformedRow(_nested(number, 100_000), "nested too deep")
    kinds = draws.choice([_GOOD, _GOOD, _NO_JSON + _NO_INSTRUCTION, [(None, row)], [(None, row)]])
    reason, make = draws.choice(kinds)
    return MalformedRow(make(number) if reason is not None else _injured(draws, row(number)), reason)


def _injured(draws: random.Random, raw: bytes) -> bytes:
    """Return a row after one to three random injuries, none of which adds a line feed."""
    for _ in range(draws.randint(1, 3)):
        place = draws.randrange(len(raw) + 1)
        byte = bytes([draws.randrange(11, 256)])
        raw = raw[:place] + draws.choice([*_JUNK, byte, byte]) + raw[place + draws.randint(0, 9) :]
    return raw

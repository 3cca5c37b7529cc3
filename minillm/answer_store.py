"""Where a black-box teacher's answers are kept: JSON lines that are only ever added to."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from minillm.dataset import Answer
from minillm.errors import UserError


@dataclass(frozen=True)
class AnswerStore:
    """Answers by key, in memory those that a call wants, on disk all that were ever given."""

    path: Path
    answers: dict[str, Answer]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def append(self, key: str, answer: Answer) -> None:
        """Keep an answer; a line that cannot be written whole is taken back, so that none follows a torn one."""
        rest = json.dumps({"key": key, "response": answer.text, "is_cut": answer.is_cut}).encode() + b"\n"
        with self.lock, self.path.open("ab", buffering=0) as stream:
            end = stream.tell()
            try:
                while rest:
                    rest = rest[stream.write(rest) :]
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(end)
                raise
            self.answers[key] = answer


def stored_answers(path: Path, wanted: Collection[str]) -> dict[str, Answer]:
    """Return the stored answers to the wanted questions, and cut off a last line that a kill left torn."""
    answers: dict[str, Answer] = {}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        stream.seek(0)
        end = 0
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                stream.truncate(end)
                break
            end += len(line)
            key, answer = _stored_answer(path, number, line)
            if key in wanted:
                answers[key] = answer
    return answers


def _stored_answer(path: Path, number: int, line: bytes) -> tuple[str, Answer]:
    try:
        record = json.loads(line)
        return str(record["key"]), Answer(str(record["response"]), is_cut=bool(record["is_cut"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(
            f"{path}: line {number} is no stored answer; remove the line, or the file to ask anew"
        ) from None

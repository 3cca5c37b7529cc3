"""The prepare stage run over small files with a tokenizer of words: for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest

from minillm.config import DataConfig, TeacherModelConfig
from minillm.params import load_params
from tasks import prepare
from tasks.storage import (
    QUARANTINE_PATH,
    read_json,
)

REPOSITORY = Path(__file__).parent.parent
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
TEACHER = TeacherModelConfig(source="path", location="unused", revision="")


class WordTokenizer:
    """One id per word: its length; the chat template adds the two words <user> and <assistant>."""

    all_special_tokens = ("<end>",)
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    eos_token_id = 0
    chat_template = "words"

    def __call__(
        self, texts: list[str], add_special_tokens: bool, return_attention_mask: bool
    ) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[len(word) for word in text.split()] for text in texts]}

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

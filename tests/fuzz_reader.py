"""Coverage-guided fuzzing of the reader of JSON Lines: `python -m tests.fuzz_reader --seconds 60` (needs atheris)."""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import sys
import tempfile
from pathlib import Path

ATHERIS = "atheris==3.0.0"
_MAX_INPUT_BYTES = 4096
_NUM_SEED_ROWS = 400


def check_reader(content: bytes) -> None:
    """Raise AssertionError unless each line of a content has fields that say what it says, or a reason."""
    from minillm.records import json_record, raw_lines

    lines = io.BytesIO(content).readlines()
    texts = list(raw_lines(io.BytesIO(content)))
    assert [text.head for text in texts] == lines
    for number, text in enumerate(texts, start=1):
        record = json_record("fuzz", number, text)
        assert (record.fields is None) == bool(record.reason)
        if record.fields is not None:
            assert record.fields == json.loads(text.head.decode("utf-8-sig" if number == 1 else "utf-8"))
            json.dumps(record.fields, ensure_ascii=False, allow_nan=False).encode("utf-8")


def fuzz(seconds: int, corpus_dir: Path) -> None:
    """Try contents until the time is up, then end the process: with 0, or another code after the first failure.

    The library is imported here and not before, as only code imported in the block tells which branches it took.
    """
    import atheris

    with atheris.instrument_imports(include=["minillm.records"]):
        from tests.malformed import malformed_rows
    for number, found in enumerate(malformed_rows(_NUM_SEED_ROWS, seed=1)):
        (corpus_dir / f"{number}.jsonl").write_bytes(found.raw[:_MAX_INPUT_BYTES])
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_INPUT_BYTES}",
        f"-artifact_prefix={corpus_dir}/",
        "-seed=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus_dir)], check_reader)
    atheris.Fuzz()


def main() -> None:
    """Fuzz for as long as the command line says, starting from malformed rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    seconds = parser.parse_args().seconds
    if importlib.util.find_spec("atheris") is None:
        sys.exit(f"fuzz_reader: atheris is not installed; `pip install {ATHERIS}`")
    fuzz(seconds, Path(tempfile.mkdtemp(prefix="fuzz-reader-")))


if __name__ == "__main__":
    main()

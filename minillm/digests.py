"""Fingerprints of values and files, to compare them without holding them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path


def digest(value: object) -> bytes:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()


def content_sha256(path: Path) -> str:
    """Return the sha256 of a file, or of the names and contents of a directory's files."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = [f"{_file_sha256(file)}  {file.relative_to(path).as_posix()}\n" for file in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return _file_sha256(path)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

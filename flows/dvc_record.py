"""A dvc.lock that a kill cut while DVC wrote it: recognised, and put aside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tasks.integrity import move_aside
from tasks.lineage import LOCK_PATH

# All scalars stay text. Made in C where it can be: a run looks before each stage, and ruamel takes a fifth of a second.
_LOADER: Any = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
_CONFLICT = b"<<<<<<<"  # of git, for the user to resolve


class _Stage(BaseModel):
    cmd: Annotated[str, Field(min_length=1)] | list[str]
    deps: list[dict[str, Any]] = []
    params: dict[str, dict[str, Any]] = {}
    outs: list[dict[str, Any]] = []


class _Record(BaseModel):
    version: Literal["2.0"] = Field(alias="schema")
    stages: dict[str, _Stage] = {}


_RECORD = TypeAdapter(_Record)


def put_aside_broken_record(root: Path) -> str | None:
    """Move a dvc.lock that a kill cut while DVC wrote it; return what was done.

    DVC writes it in place, and then refuses to read it. Without one it knows finished stages from its run cache.
    """
    path = root / LOCK_PATH
    text = path.read_bytes() if path.exists() else None
    if text is None or _CONFLICT in text or is_record(text):
        return None
    target = move_aside(path, root)
    return f"moved {LOCK_PATH} to {target.relative_to(root)}: a killed run cut it; DVC restores finished stages"


def is_record(text: bytes) -> bool:
    """Return whether a dvc.lock is whole, or cut where DVC does not mind: behind a line, and by its LOCKFILE_SCHEMA.

    DVC would read one that is cut within an output's checksum, and then run that stage instead of restoring it.
    """
    try:
        _RECORD.validate_python(_LOADER(text).get_single_data())
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError):
        return False
    return text.endswith(b"\n")

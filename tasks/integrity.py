"""Are a stage's inputs the bytes that other stages made? DVC takes a file for unchanged by its size and time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from minillm.errors import DamagedError
from minillm.params import read_yaml
from tasks.lineage import LOCK_PATH, UNDER_DVC, file_md5
from tasks.storage import STATE_DIR

DAMAGED_DIR = STATE_DIR / "damaged"
_OBJECTS, _DIRECTORY = "files/md5", ".dir"


def check_inputs(inputs: Sequence[str]) -> None:
    """Raise DamagedError when an input that a stage made is not what dvc.lock records for it.

    It is then moved to state/damaged, and so is every damaged object of DVC's cache: the next run restores what is
    whole and makes the rest anew. A stage that was started by hand may be given other inputs and is not checked.
    """
    if UNDER_DVC not in os.environ or not LOCK_PATH.exists():
        return
    for output, md5 in _recorded_outputs().items():
        path = Path(output)
        if path.exists() and _is_part(output, inputs) and output_md5(path) != md5:
            damaged = _first_damaged(path, md5)
            for kept in damaged_objects(cache_dir()):
                move_aside(kept)
            move_aside(path)
            raise DamagedError(
                f"{damaged}: not what the stage that made it wrote (dvc.lock: {output}, md5 {md5}); "
                f"{output} is now in {DAMAGED_DIR}; run again, and DVC restores it or makes it anew"
            )


def output_md5(path: Path) -> str | None:
    """Return what DVC calls the md5 of a file, or of a directory: that of the list of its files."""
    if not path.is_dir():
        return file_md5(path)
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())
    entries = [{"md5": file_md5(file), "relpath": name} for name, file in files]
    return _text_md5(json.dumps(entries, sort_keys=True)) + _DIRECTORY


def damaged_objects(cache: Path) -> list[Path]:
    """Return the objects of DVC's cache whose contents do not have the md5 that they are named by."""
    objects = sorted((cache / _OBJECTS).glob("??/*"))
    return [path for path in objects if file_md5(path) != path.parent.name + path.name.removesuffix(_DIRECTORY)]


def cache_dir() -> Path:
    """Return DVC's cache, which settings of this repository, user or machine may have put anywhere."""
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    return Path(done.stdout.strip() if done.returncode == 0 else ".dvc/cache")  # where no DVC is there is none


def cached_files(md5: str) -> dict[str, Path] | None:
    """Return the objects of DVC's cache that make up a directory, by name; None when one is missing or damaged."""
    objects = cache_dir() / _OBJECTS
    try:
        entries: list[dict[str, str]] = json.loads((objects / md5[:2] / md5[2:]).read_bytes())
    except OSError:
        return None
    files = {entry["relpath"]: objects / entry["md5"][:2] / entry["md5"][2:] for entry in entries}
    is_whole = all(file_md5(files[entry["relpath"]]) == entry["md5"] for entry in entries)
    return files if is_whole else None


def move_aside(path: Path, root: Path = Path()) -> Path:
    """Move a damaged file or directory of a repository to its state/damaged, and return where it is."""
    target = root / DAMAGED_DIR / f"{time.time_ns()}-{path.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(path, target)  # DVC's cache may be on another disk
    return target


def _recorded_outputs() -> dict[str, str]:
    stages: Mapping[str, Any] = read_yaml(LOCK_PATH).get("stages", {})
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}


def _is_part(output: str, inputs: Sequence[str]) -> bool:
    path = PurePosixPath(output)
    return any(path.is_relative_to(name) or PurePosixPath(name).is_relative_to(path) for name in inputs)


def _first_damaged(path: Path, md5: str) -> Path:
    """Return the first file of an output that is not as recorded; the output itself when DVC's list does not tell."""
    try:
        entries: list[dict[str, str]] = json.loads((cache_dir() / _OBJECTS / md5[:2] / md5[2:]).read_bytes())
        return next(path / entry["relpath"] for entry in entries if file_md5(path / entry["relpath"]) != entry["md5"])
    except (OSError, ValueError, StopIteration):
        return path


def _text_md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()

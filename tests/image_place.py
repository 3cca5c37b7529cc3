"""A directory laid out as the image lays out /pipeline: the Dockerfile's own commands of its user, run here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.compose_file import DOCKERFILE, TEXT, parsed

VOLUMES = [
    place.removeprefix("/pipeline/")
    for volume in parsed(TEXT)["services"]["worker"]["volumes"]
    if (place := volume.partition(":")[2]).startswith("/pipeline/")
]


def user_commands() -> list[str]:
    """Return what the Dockerfile runs as the image's user."""
    lines = DOCKERFILE.partition("\nUSER ")[2].replace("\\\n", " ").splitlines()
    return [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ")]


def lay_out(files: Path, root: Path, home: Path) -> Path:
    """Return a new directory with copies of files, made what the image makes of them; raises when a command fails.

    Git knows nobody there, and reads no settings but those of this home.
    """
    home.mkdir(parents=True, exist_ok=True)
    shutil.copytree(files, root, ignore=shutil.ignore_patterns(".git", "state", "dvc.lock"))
    for place in VOLUMES:
        (root / place).mkdir(exist_ok=True)
    for command in user_commands():
        here = re.sub("/pipeline|/home/minillm", lambda match: str(root if match[0] == "/pipeline" else home), command)
        subprocess.run(["sh", "-ec", here], cwd=root, env=image_environment(home), check=True, capture_output=True)
    return root


def image_environment(home: Path) -> dict[str, str]:
    """Return an environment whose only settings of git are those of a home."""
    return {**os.environ, "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1", "XDG_CONFIG_HOME": str(home / ".config")}


def outside_volumes(root: Path) -> dict[str, tuple[int, bytes]]:
    """Return what the read-only part of a laid out image has: times and contents of its files."""
    paths = [path for path in root.rglob("*") if path.relative_to(root).parts[0] not in VOLUMES and path.is_file()]
    return {str(path): (path.lstat().st_mtime_ns, path.read_bytes()) for path in paths if not path.is_symlink()}

"""Short commands of DVC: what is up to date, and what they print."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from flows.dvc_lock import clear_up
from flows.environment import child_environment
from minillm.errors import UserError
from tasks.tracking_store import without_secrets

_LOCAL_SETTINGS = Path(".dvc/config.local")
_NO_GIT = "[core]\n    no_scm = true\n"


def is_up_to_date(root: Path, *stages: str) -> bool:
    """Return whether `dvc status`, of some stages or of all, is clean."""
    done = subprocess.run(
        dvc_command("status", "--quiet", *stages), cwd=root, env=child_environment({}), capture_output=True
    )
    return done.returncode == 0


def first_stages_up_to_date(root: Path, names: Sequence[str], on_line: Callable[[str], None]) -> list[str]:
    """Return the stages, of those named in graph order, that come before the first one that is stale.

    One question for all: `dvc repro` of each would take half a second of processor time to find that out.
    """
    for message in clear_up(root):
        on_line(message)
    stale = stale_stages(root, *names)
    return list(itertools.takewhile(lambda name: name not in stale, names))


def stale_stages(root: Path, *names: str) -> set[str]:
    """Return the stages, of those named or of all, that `dvc status` does not call up to date."""
    return set(json.loads(dvc(root, "status", "--json", *names).splitlines()[-1]))


def dvc(root: Path, *arguments: str) -> str:
    """Return what a short DVC command printed; raises UserError with its last line when it fails."""
    done = subprocess.run(
        dvc_command(*arguments), cwd=root, env=child_environment({}), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        words = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["it failed"]
        told = [line.removeprefix("ERROR: ") for line in words if line.startswith("ERROR: ")] or words[-1:]
        raise UserError(f"dvc {' '.join(arguments[:2])}: {without_secrets(told[-1])}")
    return done.stdout.strip()


def dvc_command(*arguments: str) -> list[str]:
    """Return the command line of this environment's DVC."""
    return [sys.executable, "-m", "dvc", *arguments]


def allow_no_git(root: Path) -> str | None:
    """Let DVC work in a copy of the files that is no git repository, such as an image; return what was done."""
    if not (root / ".dvc").is_dir():
        raise UserError(f"{root}: no .dvc directory; run this in the root of the repository")
    settings = root / _LOCAL_SETTINGS
    if any((directory / ".git").exists() for directory in (root, *root.resolve().parents)) or settings.exists():
        return None
    settings.write_text(_NO_GIT, encoding="utf-8")
    return f"not a git repository: DVC works, but not `dvc exp` and its diff commands (set in {_LOCAL_SETTINGS})"

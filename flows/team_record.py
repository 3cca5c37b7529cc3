"""What `.servers/team.json` says of the team that was started last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from flows.servers import SERVERS_DIR
from tasks.storage import read_json, write_json

_RECORD_PATH = SERVERS_DIR / "team.json"


@dataclass(frozen=True)
class TeamRecord:
    """A team by its id, its supervisor, and where its pages are."""

    team: str
    supervisor_id: int  # process id; meant when that process carries the team's id
    is_up: bool  # every part was well once
    pages: Mapping[str, str]


def write_record(root: Path, record: TeamRecord) -> None:
    """Write the record of a team in place of the last one."""
    write_json(root / _RECORD_PATH, asdict(record))


def read_record(root: Path) -> TeamRecord | None:
    """Return the record of the team that was started last; None when there was none, or it was taken down."""
    try:
        return TeamRecord(**read_json(root / _RECORD_PATH))
    except FileNotFoundError:
        return None


def remove_record(root: Path) -> None:
    """Forget the team that was started last."""
    (root / _RECORD_PATH).unlink(missing_ok=True)

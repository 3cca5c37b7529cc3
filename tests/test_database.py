"""One setting puts the records of Prefect and MLflow into PostgreSQL, and its password nowhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from flows.database import DATABASE_VARIABLE, make_databases, postgres
from flows.servers import free_port, own_servers
from minillm.errors import UserError
from minillm.params import load_params
from tests.imports import ROOT
from tests.postgres_place import ENCODED, PASSWORD, USER, running_postgres
from tests.team_repository import make_team_repository, team_up
from tests.test_exposure import ask
from tests.test_team import let_end, of_team, started_run


@pytest.fixture(scope="module")
def authority() -> Iterator[str]:
    with running_postgres() as authority:
        yield authority


@pytest.mark.parametrize("text", ["", "sqlite"])
def test_files_are_kept_unless_a_server_is_named(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, text)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert postgres() is None
    prefect, mlflow = own_servers(load_params(ROOT / "params.yaml").tracking)
    assert "PREFECT_SERVER_DATABASE_CONNECTION_URL" not in prefect.environment
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"].startswith("sqlite:")


def test_both_servers_are_told_their_database_by_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, f"postgresql://{ENCODED}@db.example:5433/")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    prefect, mlflow = own_servers(load_params(ROOT / "params.yaml").tracking)
    url = prefect.environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"]
    assert url == f"postgresql+asyncpg://{ENCODED}@db.example:5433/prefect"
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == f"postgresql+psycopg://{ENCODED}@db.example:5433/mlflow"
    assert not any("word" in part for part in (*prefect.command, *mlflow.command, repr(postgres())))


@pytest.mark.parametrize(
    "text",
    [
        "mysql://me:secret@host",
        "postgresql://me:secret@host:port",
        "postgresql://me:secret@host/other",
        "postgresql://me:secret@host?sslmode=off&password=secret",
        "postgresql://me:secret#1@host",
        "postgresql://me:50%secret@host",
        "postgresql://host",
        "me:secret@host",
    ],
)
def test_a_wrong_value_is_one_line_without_the_password(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, text)
    with pytest.raises(UserError, match=r"^MINILLM_DATABASE: `sqlite` or postgresql://USER:PASSWORD@HOST:PORT") as told:
        postgres()
    assert "secret" not in str(told.value) and "host" in str(told.value)


def test_a_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv(DATABASE_VARIABLE, f"postgresql://me:secret@127.0.0.1:{port}")
    with pytest.raises(UserError, match=rf"^MINILLM_DATABASE: PostgreSQL at 127\.0\.0\.1:{port}: .*refused") as told:
        make_databases()
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


def test_a_wrong_password_is_one_line(authority: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, f"postgresql://{USER}:secret@{authority.rpartition('@')[2]}")
    with pytest.raises(UserError, match="password authentication failed") as told:
        make_databases()
    assert "secret" not in str(told.value) and "\n" not in str(told.value)


def test_databases_are_made_once(authority: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATABASE_VARIABLE, f"postgresql://{authority}")
    make_databases()
    make_databases()
    with psycopg.connect(f"postgresql://{authority}/postgres") as connection:
        names = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
    assert {"prefect", "mlflow"} <= names


@pytest.mark.pipeline
@pytest.mark.slow
def test_a_team_keeps_its_records_in_postgres(authority: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_team_repository(tmp_path / "root")
    monkeypatch.setenv(DATABASE_VARIABLE, f"postgresql://{authority}")
    with team_up(root, monkeypatch) as team:
        assert let_end(team, started_run(team)) == "Completed"
        created = ask(f"{team.mlflow}/api/2.0/mlflow/experiments/create", {"name": "of the team"})
        assert created.status == 200 and json.loads(created.text)["experiment_id"]
        assert not any(PASSWORD in word or ENCODED in word for process in of_team(root) for word in process.cmdline())
    assert not (root / "mlflow.db").exists() and not list((root / ".servers").rglob("*.db"))
    with psycopg.connect(f"postgresql://{authority}/prefect") as connection:
        assert connection.execute("SELECT state_type FROM flow_run").fetchall() == [("COMPLETED",)]
    with psycopg.connect(f"postgresql://{authority}/mlflow") as connection:
        assert ("of the team",) in connection.execute("SELECT name FROM experiments").fetchall()
    logs = {path.name: path.read_text() for path in (root / ".servers").rglob("*.log")}
    assert [name for name, text in logs.items() if PASSWORD in text or ENCODED in text] == []
    assert os.environ[DATABASE_VARIABLE]

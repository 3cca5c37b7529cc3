"""A secret in the environment is used, and is written nowhere: the real pipeline, its servers and all files."""

from __future__ import annotations

import base64
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from flows.environment import child_environment
from flows.servers import free_port, mlflow_server, prefect_server, running
from tests.fake_endpoint import FakeEndpoint
from tests.test_exposure import PREFECT_READ, ask
from tests.tiny_pipeline import new_repository, set_knob

MLFLOW, KEY, PREFECT = (f"canary-{token_hex(12)}" for _ in range(3))  # new ones, so that not even this file has them
PREFECT_LOGIN = f"admin:{PREFECT}"
SEQKD = {"method": "seqkd", "seqkd.source": "endpoint", "seqkd.endpoint_model": "m", "seqkd.key_variable": "CANARY_KEY"}


def forms(login: str) -> list[bytes]:
    """Return a secret as it is, and the user and the secret as a request header has them."""
    return [login.partition(":")[2].encode(), base64.b64encode(login.encode())]


FORMS = [form for login in (f"me:{MLFLOW}", f"Bearer:{KEY}", PREFECT_LOGIN) for form in forms(login)]


def leaks(root: Path) -> list[str]:
    """Return the files that hold a secret, whatever they are: logs, databases, caches, git's own."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(path.relative_to(root)) for path in files if any(form in path.read_bytes() for form in FORMS))


def has_leak(text: str) -> bool:
    return any(form in text.encode() for form in FORMS)


def test_fault_29_the_search_would_find_a_secret(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "a.db").execute("create table t (x)").connection.commit()
    with sqlite3.connect(tmp_path / "a.db") as database:
        database.execute("insert into t values (?)", (f"http://me:{MLFLOW}@host",))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/log").write_bytes(b"Authorization: Basic " + forms(PREFECT_LOGIN)[1])
    (tmp_path / "c").write_text("canary-0123")
    assert leaks(tmp_path) == ["a.db", "b/log"]
    assert has_leak(f"x{KEY}y") and not has_leak("***")


@pytest.fixture
def root(tmp_path: Path, endpoint: FakeEndpoint) -> Path:
    root = new_repository(tmp_path / "root")
    for knob, value in {**SEQKD, "seqkd.endpoint": endpoint.address}.items():
        set_knob(root, f"distill.{knob}", value)
    return root


@pytest.fixture
def urls(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """Prefect, which asks for the login, and MLflow; what a user's shell would export is in the environment."""
    monkeypatch.chdir(root)
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", PREFECT_LOGIN)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", PREFECT_LOGIN)
    monkeypatch.setenv("CANARY_KEY", KEY)
    prefect, mlflow = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    monkeypatch.setenv("PREFECT_API_URL", f"{prefect}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.replace("://", f"://me:{MLFLOW}@"))
    with running(root, [prefect_server(prefect), mlflow_server(mlflow, "sqlite:///mlflow.db")]):
        yield prefect, mlflow


def run(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", *command]
    return subprocess.run(arguments, cwd=root, env=child_environment({}), capture_output=True, text=True, timeout=900)


@pytest.mark.pipeline
@pytest.mark.slow
def test_fault_29_no_secret_is_in_any_file_database_or_output(
    root: Path, urls: tuple[str, str], endpoint: FakeEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefect, _ = urls
    assert ask(f"{prefect}/api/flows/", None).status == 401
    assert ask(f"{prefect}{PREFECT_READ}", {}).status in (401, 403)
    done = run(root, "flows", "prepare", "teacher", "warmup", "distill")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    outputs = [done.stdout, done.stderr]

    # The secrets were in use: each service was reached, and had what it asks for.
    assert {headers["authorization"] for _, headers, _ in endpoint.requests} == {f"Bearer {KEY}"}
    with sqlite3.connect(root / "mlflow.db") as database:
        assert {"teacher", "distill"} <= {name for (name,) in database.execute("select name from runs")}
    with sqlite3.connect(root / ".servers/prefect/prefect.db") as database:
        assert database.execute("select state_type from flow_run").fetchall() == [("COMPLETED",)]

    # Errors tell as little: a tracking server that is gone, and an endpoint that repeats the key.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{MLFLOW}@127.0.0.1:{free_port()}")
    endpoint.reply = lambda prompt: (401, {}, f"wrong key {KEY}".encode())
    (root / "state/distill/answers.jsonl").unlink(missing_ok=True)
    set_knob(root, "distill.rollout.top_p", 0.9)
    failed = run(root, "tasks", "distill")
    assert failed.returncode == 2 and "HTTP 401 wrong key ***" in failed.stderr
    outputs += [failed.stdout, failed.stderr]

    assert not any(map(has_leak, outputs))
    assert leaks(root) == []

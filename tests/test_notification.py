"""A run that fails makes one request to the web hook, and the hook's address is written nowhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flows.processes import wait_until
from minillm.errors import UserError
from tests.team_repository import make_team_repository, minillm, team_up

SECRET = "canary-hook-5f1c"


class Sink(ThreadingHTTPServer):
    """Keeps what is posted to it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[tuple[str, str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{SECRET}"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Sink)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, self.headers["Content-Type"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as sink:
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        yield sink
        sink.shutdown()


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"hooks.here/{SECRET}",
        f"ftp://h/{SECRET}",
        f"https:///{SECRET}",
        f"http://h:port/{SECRET}",
        f"http://h/ {SECRET}",
    ],
)
def test_a_wrong_address_is_one_line(url: str) -> None:
    from flows.notification import notify

    with pytest.raises(
        UserError, match=r"^--url: an address http://HOST/\.\.\. or https://HOST/\.\.\. is needed"
    ) as told:
        notify(url)
    assert SECRET not in str(told.value)


def test_without_a_server_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_PORT", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    done = minillm(tmp_path, "notify", "--off")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: no Prefect server at http://127.0.0.1:1/api; `make up` starts it\n"


@pytest.mark.pipeline
@pytest.mark.slow
def test_a_failed_run_makes_one_request_until_it_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: Sink
) -> None:
    root = make_team_repository(tmp_path / "root")
    (root / "fail").write_text("distill")
    with team_up(root, monkeypatch) as team:
        for _ in range(2):  # the second changes what the first has made
            told = minillm(root, "notify", "--url", sink.url)
            assert (told.returncode, told.stdout.endswith("are told to http://127.0.0.1\n")) == (0, True), told.stderr
        failed = team.start_run()
        assert wait_until(lambda: bool(team.state(failed).is_failed()) and bool(sink.received), 120.0)
        (root / "fail").unlink()
        good = team.start_run()
        assert wait_until(lambda: bool(team.state(good).is_completed()), 120.0)
        assert minillm(root, "notify", "--off").stdout == "nobody is told of failed runs\n"
        assert minillm(root, "notify", "--off").returncode == 0
        with team.client() as client:
            assert len(client.read_automations()) == 1  # that of lost runs
    [(path, kind, body)] = sink.received
    assert (path, kind) == (f"/{SECRET}", "application/json")
    text = json.loads(body)["text"]
    assert "of here: Failed. stage distill failed with exit code 255" in text and f"{team.prefect}/" in text
    files = [path for path in (root / ".servers").rglob("*") if path.is_file()]
    assert [path.name for path in files if SECRET.encode() in path.read_bytes()] == []

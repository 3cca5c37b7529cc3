"""What a page of another site, or another machine, can do to the servers of `make ui`: nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.environment import child_environment
from flows.guarded_prefect import is_own
from flows.servers import free_port, mlflow_server, prefect_server, running
from tests.imports import ROOT
from tests.scratch_repository import make_scratch_repository

EVIL = "http://evil.example"
PREFECT_READ, MLFLOW_READ = "/api/flow_runs/filter", "/ajax-api/2.0/mlflow/runs/search"
PREFECT_WRITE, MLFLOW_WRITE = "/api/flows/", "/api/2.0/mlflow/experiments/create"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def answer(status: int, response: Any) -> Answer:
    return Answer(status, {name.lower(): value for name, value in response.headers.items()}, response.read().decode())


def ask(url: str, body: Any = None, **headers: str) -> Answer:
    """Return the answer to a GET, or to a POST when there is a body; `_` in a header's name stands for `-`."""
    sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    data = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=data, headers=sent), timeout=30) as response:
            return answer(response.status, response)
    except urllib.error.HTTPError as error:
        return answer(error.code, error)


@dataclass(frozen=True)
class Pages:
    root: Path
    prefect: str
    mlflow: str
    process_ids: list[int]

    def csrf(self) -> dict[str, str]:
        token = json.loads(ask(f"{self.prefect}/api/csrf-token?client=page").text)["token"]
        return {"Prefect_Csrf_Token": token, "Prefect_Csrf_Client": "page"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    """Both servers as `make ui` starts them, in a repository of quick fake stages."""
    root = make_scratch_repository(tmp_path_factory.mktemp("pages"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
            patch.delenv(name, raising=False)
        urls = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]
        servers = [prefect_server(urls[0]), mlflow_server(urls[1], "sqlite:///mlflow.db")]
        with running(root, servers) as processes:
            yield Pages(root, urls[0], urls[1], [process.pid for process in processes])


@pytest.mark.pipeline
def test_both_listen_on_loopback_only(pages: Pages) -> None:
    trees = [[process, *process.children(recursive=True)] for process in map(psutil.Process, pages.process_ids)]
    connections = [connection for tree in trees for process in tree for connection in process.net_connections()]
    listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {f"http://127.0.0.1:{address.port}" for address in listening} == {pages.prefect, pages.mlflow}


@pytest.mark.pipeline
@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.1.2.3", "evil.example:4200"])
def test_a_name_that_resolves_to_this_machine_opens_nothing(pages: Pages, host: str) -> None:
    for url in (pages.prefect + PREFECT_READ, pages.prefect + "/", pages.mlflow + MLFLOW_READ):
        assert ask(url, {}, Host=host).status == 403


@pytest.mark.pipeline
@pytest.mark.parametrize("origin", [EVIL, "null", "https://127.0.0.1", "http://localhost.evil.example:4200"])
def test_a_page_of_another_site_changes_nothing_and_reads_nothing(pages: Pages, origin: str) -> None:
    csrf = pages.csrf()  # which such a page cannot get
    assert ask(pages.prefect + PREFECT_WRITE, {"name": "evil"}, Origin=origin, **csrf).status == 403
    if origin != "https://127.0.0.1":  # MLflow lets the pages of other servers on this machine in; docs/security.md
        assert ask(pages.mlflow + MLFLOW_WRITE, {"name": "evil"}, Origin=origin).status == 403
    for url in (f"{pages.prefect}/api/flows/", f"{pages.mlflow}/api/2.0/mlflow/experiments/search?max_results=9"):
        assert "access-control-allow-origin" not in ask(url, Origin=EVIL).headers
    assert json.loads(ask(pages.prefect + "/api/flows/filter", {}, **csrf).text) == []
    assert ask(pages.mlflow + "/api/2.0/mlflow/experiments/get-by-name?experiment_name=evil").status == 404


@pytest.mark.pipeline
def test_a_websocket_of_another_site_is_refused(pages: Pages) -> None:
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    address = pages.prefect.replace("http:", "ws:") + "/api/events/in"
    connect(address, origin=pages.prefect, proxy=None).close()
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin=EVIL, proxy=None)


@pytest.mark.pipeline
def test_prefect_takes_no_change_without_a_csrf_token(pages: Pages) -> None:
    refused = ask(pages.prefect + PREFECT_WRITE, {"name": "evil"})
    assert (refused.status, "CSRF" in refused.text) == (403, True)


@pytest.mark.pipeline
def test_no_page_can_be_framed(pages: Pages) -> None:
    for url in (pages.prefect, pages.mlflow):
        assert ask(url + "/").headers["x-frame-options"] == "SAMEORIGIN"


@pytest.mark.pipeline
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_the_pages_own_requests_are_answered(pages: Pages, name: str) -> None:
    """Those of Prefect's page go to 127.0.0.1 whatever name the page was opened by; MLflow's go where it came from."""
    origin, mlflow = (url.replace("127.0.0.1", name) for url in (pages.prefect, pages.mlflow))
    settings = json.loads(ask(f"{origin}/ui-settings").text)
    assert (settings["api_url"], settings["csrf_enabled"]) == (f"{pages.prefect}/api", True)
    runs = ask(pages.prefect + PREFECT_READ, {"limit": 3}, Origin=origin, **pages.csrf())
    assert (runs.status, runs.headers["access-control-allow-origin"]) == (200, origin)
    assert ask(mlflow + MLFLOW_READ, {"experiment_ids": ["0"]}, Origin=mlflow).status == 200
    assert "<!doctype html>" in ask(mlflow + "/").text.lower()


@pytest.mark.pipeline
def test_prefects_page_sends_the_token(pages: Pages) -> None:
    import prefect

    scripts = (Path(prefect.__file__).parent / "server/ui_v2_build/assets").glob("*.js")
    assert any("Prefect-Csrf-Token" in path.read_text(encoding="utf-8") for path in scripts)


@pytest.mark.pipeline
def test_a_flow_run_still_works_on_this_server(pages: Pages) -> None:
    environment = child_environment({"PYTHONPATH": str(ROOT), "PREFECT_API_URL": f"{pages.prefect}/api"})
    command = [sys.executable, "-m", "flows", "prepare", "distill"]
    done = subprocess.run(command, cwd=pages.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "starting one for this run" not in done.stdout
    runs = json.loads(ask(pages.prefect + PREFECT_READ, {}, **pages.csrf()).text)
    assert [run["state_type"] for run in runs] == ["COMPLETED"]
    artifacts = json.loads(ask(pages.prefect + "/api/artifacts/filter", {}, **pages.csrf()).text)
    assert {"stages", "distill-progress"} <= {artifact["key"] for artifact in artifacts}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Host": "127.0.0.1:4200"}, True),
        ({"Host": "localhost:8000"}, True),
        ({"Host": "LOCALHOST"}, True),
        ({"Host": "127.0.0.1:4200", "Origin": "http://localhost:4200"}, True),
        ({"Host": "127.0.0.1:4200", "Origin": "http://localhost:4201"}, False),
        ({"Host": "127.0.0.1:4200", "Origin": "null"}, False),
        ({"Host": "evil.example"}, False),
        ({"Host": "localhost@evil.example"}, False),
        ({"Host": "[::1"}, False),
        ({"Host": ""}, False),
        ({}, False),
    ],
)
def test_a_request_is_judged_by_host_and_origin(headers: dict[str, str], expected: bool) -> None:
    assert is_own([(name.encode(), value.encode()) for name, value in headers.items()], 4200) is expected


def test_two_hosts_or_one_wrong_origin_are_refused() -> None:
    host = (b"host", b"localhost")
    assert not is_own([host, host], 4200)
    assert not is_own([host, (b"origin", b"http://localhost:4200"), (b"origin", EVIL.encode())], 4200)


def test_no_password_of_a_store_is_on_a_command_line() -> None:
    uri = "postgresql://me:secret@db.example/mlflow"
    server = mlflow_server("http://127.0.0.1:5000", uri)
    assert "secret" not in " ".join(server.command)
    assert server.environment["MLFLOW_BACKEND_STORE_URI"] == uri

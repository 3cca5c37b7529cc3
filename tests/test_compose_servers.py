"""The services of compose.yaml as processes of this machine: logins on, other sites out, no secret written anywhere."""

from __future__ import annotations

import base64
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import psycopg
import pytest

from flows.automations import lost_runs
from flows.secrets import SECRET_NAMES, write_secrets
from flows.servers import free_port
from tests.compose_file import TEXT, Machine, env_values, parsed
from tests.postgres_place import program, running_postgres
from tests.scratch_repository import make_scratch_repository
from tests.test_exposure import EVIL, MLFLOW_READ, MLFLOW_WRITE, PREFECT_READ, PREFECT_WRITE, Answer, ask


@dataclass(frozen=True)
class Team:
    """The services prefect, mlflow and worker, running; what setup said, and what a browser here would say."""

    machine: Machine
    setup: subprocess.CompletedProcess[str]
    database: str  # user, password, host and port
    prefect: str
    mlflow: str
    page_ports: tuple[str, str]

    def login(self, secret: str) -> str:
        return base64.b64encode(f"admin:{self.machine.values[secret]}".encode()).decode()

    def ask_prefect(self, path: str, body: Any = None, **headers: str) -> Answer:
        login = {"Authorization": f"Basic {self.login('MINILLM_PREFECT_PASSWORD')}"}
        token = json.loads(ask(f"{self.prefect}/api/csrf-token?client=page", **login).text)["token"]
        csrf = {"Prefect_Csrf_Token": token, "Prefect_Csrf_Client": "page"}
        return ask(self.prefect + path, body, **login, **csrf, **headers)

    def ask_mlflow(self, path: str, body: Any = None, **headers: str) -> Answer:
        login = {"Authorization": f"Basic {self.login('MINILLM_MLFLOW_PASSWORD')}"}
        return ask(self.mlflow + path, body, **login, **headers)


def make_databases(database: str) -> None:
    """Do what the image of the service postgres does when its volume is new."""
    service = parsed(TEXT)["services"]["postgres"]["environment"]
    with psycopg.connect(f"postgresql://{database}/postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {service['POSTGRES_DB']}")
        connection.execute(parsed(TEXT)["configs"]["second-database"]["content"])


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Prefect, MLflow and the worker by the file's commands; the ports that browsers name are not those listened on."""
    if find_spec("flask_wtf") is None:
        pytest.skip("MLflow's logins need Flask-WTF: pip install --no-deps -r requirements-servers.lock")
    directory = tmp_path_factory.mktemp("team")
    env_path = tmp_path_factory.mktemp("shell") / ".env"
    write_secrets(env_path, is_renewed=False)
    values = env_values(env_path)
    page_ports = str(free_port()), str(free_port())
    for place in ("tmp", "home/minillm"):
        (directory / place).mkdir(parents=True)
    values |= {"PREFECT_PORT": page_ports[0], "MLFLOW_PORT": page_ports[1]}
    with ExitStack() as stack:
        database = stack.enter_context(running_postgres("minillm", values["MINILLM_POSTGRES_PASSWORD"]))
        make_databases(database)
        ports = {port: free_port() for port in ("4200", "5000", "8080")}
        machine = Machine(directory, {**ports, "5432": int(database.rpartition(":")[2])}, values)
        processes = {name: stack.enter_context(machine.started(name)) for name in ("prefect", "mlflow")}
        for name, process in processes.items():
            machine.wait(name, process)
        setup = machine.run("setup", *machine.command("setup"))
        machine.wait("worker", stack.enter_context(machine.started("worker")))
        yield Team(
            machine,
            setup,
            database,
            f"http://127.0.0.1:{ports['4200']}",
            f"http://127.0.0.1:{ports['5000']}",
            page_ports,
        )


@pytest.mark.pipeline
def test_without_a_login_nothing_is_shown(team: Team) -> None:
    wrong = base64.b64encode(b"admin:wrong-password").decode()
    for headers in ({}, {"Authorization": f"Basic {wrong}"}):
        for path in ("/api/flows/", "/api/csrf-token?client=page", "/api/admin/settings"):
            assert ask(team.prefect + path, **headers).status == 401
        assert ask(team.prefect + PREFECT_READ, {}, **headers).status in (401, 403)
        for path in ("/", "/signup", "/api/2.0/mlflow/experiments/get?experiment_id=0"):
            assert ask(team.mlflow + path, **headers).status == 401
        assert ask(team.mlflow + MLFLOW_READ, {"experiment_ids": ["0"]}, **headers).status == 401
    assert ask(f"{team.mlflow}/").headers["www-authenticate"].startswith("Basic")  # a browser asks for both
    assert json.loads(ask(f"{team.prefect}/ui-settings").text)["auth"] == "BASIC"  # so does Prefect's page


@pytest.mark.pipeline
@pytest.mark.parametrize("token", [None, "admin:wrong-password"])
def test_without_a_login_no_event_is_streamed(team: Team, token: str | None) -> None:
    from websockets.exceptions import ConnectionClosed, InvalidStatus
    from websockets.sync.client import Subprotocol, connect

    address = team.prefect.replace("http:", "ws:") + "/api/events/out"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, proxy=None)
    with connect(address, proxy=None, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send(json.dumps({"type": "auth", "token": token}))
        with pytest.raises(ConnectionClosed, match="1008"):
            socket.recv(timeout=10)


@pytest.mark.pipeline
def test_with_a_login_the_pages_own_requests_are_answered(team: Team) -> None:
    host, origin = f"localhost:{team.page_ports[0]}", f"http://localhost:{team.page_ports[0]}"
    runs = team.ask_prefect(PREFECT_READ, {"limit": 3}, Host=host, Origin=origin)
    assert (runs.status, runs.headers["access-control-allow-origin"]) == (200, origin)
    settings = json.loads(ask(f"{team.prefect}/ui-settings").text)
    assert (settings["api_url"], settings["csrf_enabled"]) == (f"http://127.0.0.1:{team.page_ports[0]}/api", True)
    host = f"127.0.0.1:{team.page_ports[1]}"
    assert team.ask_mlflow("/", Host=host).status == 200
    assert team.ask_mlflow(MLFLOW_READ, {"experiment_ids": ["0"]}, Host=host, Origin=f"http://{host}").status == 200


@pytest.mark.pipeline
def test_another_host_or_origin_is_refused_even_with_a_login(team: Team) -> None:
    assert team.ask_prefect("/api/version", Host="prefect:4200").status == 200  # as workers call them
    assert team.ask_mlflow("/", Host=f"mlflow:{team.machine.ports['5000']}").status == 200
    for host in ("evil.example", "10.1.2.3", "prefect.evil.example", "mlflow"):
        assert team.ask_prefect(PREFECT_READ, {}, Host=host).status == 403
    for host in ("evil.example", "10.1.2.3", "prefect", "127.0.0.1.evil.example"):
        assert team.ask_mlflow("/", Host=host).status == 403
    for origin in (EVIL, "null", team.prefect):  # the port that is listened on is not the page's
        assert team.ask_prefect(PREFECT_WRITE, {"name": "evil"}, Origin=origin).status == 403
    for origin in (EVIL, "null"):
        assert team.ask_mlflow(MLFLOW_WRITE, {"name": "evil"}, Origin=origin).status == 403
    assert ask(team.prefect + PREFECT_WRITE, {"name": "evil"}).status == 403  # no CSRF token


@pytest.mark.pipeline
def test_a_new_user_of_mlflow_sees_nothing_until_somebody_grants_it(team: Team) -> None:
    user = {"username": "new", "password": "a-long-password"}
    assert team.ask_mlflow("/api/2.0/mlflow/users/create", user).status == 200
    login = {"Authorization": "Basic " + base64.b64encode(b"new:a-long-password").decode()}
    assert ask(f"{team.mlflow}/api/2.0/mlflow/experiments/get?experiment_id=0", **login).status == 403
    assert team.ask_mlflow("/api/2.0/mlflow/experiments/get?experiment_id=0").status == 200


@pytest.mark.pipeline
def test_setup_makes_pools_deployments_and_automations_and_a_second_one_doubles_nothing(team: Team) -> None:
    again = team.machine.run("setup", *team.machine.command("setup"))
    assert (team.setup.returncode, again.returncode) == (0, 0), team.setup.stderr + again.stderr
    made = {
        kind: sorted(entry["name"] for entry in json.loads(team.ask_prefect(f"/api/{kind}/filter", {}).text))
        for kind in ("work_pools", "deployments", "automations")
    }
    assert made["work_pools"] == ["cpu", "gpu"]
    assert made["deployments"] == ["gpu", "nightly", "on-demand"]
    assert made["automations"] == [lost_runs().name]
    [pool, _] = sorted(
        json.loads(team.ask_prefect("/api/work_pools/filter", {}).text), key=lambda entry: str(entry["name"])
    )
    assert pool["status"] == "READY"  # its worker, which is logged in, asks for runs
    for text in (team.setup.stdout, team.setup.stderr, again.stdout, again.stderr):
        assert not any(form in text.encode() for form in forms(team))


RECORD = """
from pathlib import Path
from mlflow import MlflowClient
client = MlflowClient()
run = client.create_run("0", run_name="from the worker")
Path("artifact.txt").write_text("proxied")
client.log_artifact(run.info.run_id, "artifact.txt")
print(run.info.artifact_uri.partition(":")[0], [file.path for file in client.list_artifacts(run.info.run_id)])
"""


@pytest.mark.pipeline
def test_the_worker_reaches_both_and_no_secret_is_in_any_log_or_database(team: Team) -> None:
    machine = team.machine
    root = make_scratch_repository(machine.directory / "scratch")
    done = machine.run("worker", sys.executable, "-m", "flows", "prepare", "distill", directory=root)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "starting one for this run" not in done.stdout
    assert f"View at http://127.0.0.1:{team.page_ports[0]}/" in done.stdout + done.stderr
    runs = json.loads(team.ask_prefect(PREFECT_READ, {}).text)
    assert [run["state_type"] for run in runs] == ["COMPLETED"]
    recorded = machine.run("worker", sys.executable, "-c", RECORD, directory=root)
    assert recorded.stdout.strip() == "mlflow-artifacts ['artifact.txt']", recorded.stderr
    stored = list((machine.directory / "var/lib/mlflow/artifacts").rglob("artifact.txt"))
    assert [path.read_text() for path in stored] == ["proxied"]
    with sqlite3.connect(machine.directory / "var/lib/mlflow/basic_auth.db") as database:
        assert {"admin"} <= {name for (name,) in database.execute("select username from users")}

    for text in (done.stdout, done.stderr, recorded.stdout, recorded.stderr):
        assert not any(form in text.encode() for form in forms(team))
    files = [path for path in machine.directory.rglob("*") if path.is_file() and not path.is_symlink()]
    read = {str(path.relative_to(machine.directory)): path.read_bytes() for path in files}
    for name in ("prefect", "mlflow"):
        command = [program("pg_dump"), "--inserts", f"--dbname=postgresql://{team.database}/{name}"]
        read[f"database {name}"] = subprocess.run(command, check=True, capture_output=True).stdout
    assert b"COMPLETED" in read["database prefect"] and b"from the worker" in read["database mlflow"]
    assert {"prefect.log", "mlflow.log", "worker.log", "var/lib/mlflow/basic_auth.db"} <= set(read)
    assert not {"var/lib/prefect/prefect.db", "var/lib/mlflow/mlflow.db"} & set(read)
    assert [name for name, content in read.items() if any(form in content for form in forms(team))] == []


def forms(team: Team) -> list[bytes]:
    """Return every secret as it is and as a request header has it."""
    plain = [team.machine.values[name].encode() for name in SECRET_NAMES]
    return plain + [team.login(name).encode() for name in SECRET_NAMES]

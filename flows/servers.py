"""`python -m flows.servers` (`make ui`): MLflow and Prefect together in the foreground, on loopback, until Ctrl-C."""

from __future__ import annotations

import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import STDOUT, Popen
from urllib.parse import urlsplit

from flows.database import make_databases, postgres
from flows.environment import child_environment, mlflow_url, prefect_url
from flows.guarded_prefect import LOOPBACK_HOST, own_origins
from flows.processes import exit_on_sigterm, process_group, wait_until
from minillm.config import TrackingConfig
from minillm.errors import UserError
from minillm.params import load_params
from tasks.tracking_store import is_server, tracking_uri

SERVERS_DIR = Path(".servers")
_START_TIMEOUT_S = 180.0  # a new database takes 10 to 30 s on two busy cores
_POLL_S = 1.0
_MLFLOW_HOSTS = "127.0.0.1,127.0.0.1:*,localhost,localhost:*"  # any port: a tunnel may have its own


class ServerError(UserError):
    """A server that cannot be started, in one line."""


@dataclass(frozen=True)
class Server:
    """A server or worker of this repository: how to start it and where it says that it is well."""

    name: str
    url: str
    health_path: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def log_path(self) -> Path:
        """Return where its lines go."""
        return SERVERS_DIR / f"{self.name}.log"


def prefect_server(url: str) -> Server:
    """Return the Prefect server at a loopback url; its files are in .servers/prefect. See docs/security.md."""
    port, database = _port(url), postgres()
    environment = {
        "PREFECT_HOME": str((SERVERS_DIR / "prefect").resolve()),
        # Without this the pages of a server on another port ask port 4200 for their data.
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": ",".join(own_origins(port)),
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        # In memory a restart would lose the slots of runs, and Prefect ends a run whose slot is lost.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        **({"PREFECT_SERVER_DATABASE_CONNECTION_URL": database.prefect_url} if database else {}),
    }
    command = [sys.executable, "-m", "flows.guarded_prefect", str(port)]
    return Server("prefect", url, "/api/health", command, environment)


def mlflow_server(url: str, store_uri: str) -> Server:
    """Return the MLflow server at a loopback url, on the store that stages write to directly.

    Artifacts keep their local paths, as a stage without a server records them, and are read from there.
    """
    options = ["--host", LOOPBACK_HOST, "--port", str(_port(url)), "--workers", "1"]
    pages = ["--allowed-hosts", _MLFLOW_HOSTS, "--cors-allowed-origins", ",".join(own_origins(_port(url)))]
    artifacts = ["--no-serve-artifacts", "--default-artifact-root", str(Path("mlartifacts").resolve())]
    command = [sys.executable, "-m", "mlflow", "server", *options, *pages, *artifacts]
    # The address may hold a password, and every user of the machine can read command lines.
    environment = {"MLFLOW_BACKEND_STORE_URI": store_uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Server("mlflow", url, "/health", command, environment)


def own_servers(tracking: TrackingConfig) -> list[Server]:
    """Return the servers of this repository; a tracking server that is somewhere else is none of them."""
    prefect, store_uri, database = prefect_server(prefect_url()), tracking_uri(tracking), postgres()
    if is_server(store_uri):
        return [prefect]
    return [prefect, mlflow_server(mlflow_url(tracking), database.mlflow_uri if database else store_uri)]


@contextmanager
def running(root: Path, servers: Sequence[Server]) -> Iterator[list[Popen[str]]]:
    """Yield the processes of servers that answer their health checks; they end with the block."""
    for server in servers:
        require_free_port(server)
    with ExitStack() as stack:
        processes = [stack.enter_context(started(root, server)) for server in servers]
        for server, process in zip(servers, processes, strict=True):
            wait_for_health(server, process)
        yield processes


def answers(url: str, timeout_s: float = 2.0) -> bool:
    """Return whether a page is there; proxies are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK_HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(root: Path, server: Server, is_again: bool = False) -> Iterator[Popen[str]]:
    """Yield the process of a server that may not be well yet; its log begins anew, unless it is started again."""
    path = root / server.log_path
    path.parent.mkdir(parents=True, exist_ok=True)
    environment = child_environment(server.environment)
    with (
        path.open("a" if is_again else "w", encoding="utf-8") as log,
        process_group(server.command, root, environment, log, STDOUT) as process,
    ):
        yield process


def require_free_port(server: Server) -> None:
    """Raise ServerError when somebody listens where a server shall."""
    port = _port(server.url)
    with socket.socket() as probe:
        if probe.connect_ex((LOOPBACK_HOST, port)) == 0:
            variable = f"{server.name.upper()}_PORT"
            raise ServerError(f"port {port} is in use; stop what listens there, or choose another: {variable}=...")


def wait_for_health(server: Server, process: Popen[str]) -> None:
    """Return when a server is well; raises ServerError when it ends or takes too long."""
    url = server.url + server.health_path
    wait_until(lambda: process.poll() is not None or answers(url), _START_TIMEOUT_S)
    if process.poll() is not None or not answers(url):
        raise ServerError(f"{server.name} did not start; its last words are in {server.log_path}")


def _port(url: str) -> int:
    return urlsplit(url).port or 0


def _watch(servers: Sequence[Server], processes: Sequence[Popen[str]]) -> None:
    """Return never; raises ServerError when a server ends."""
    while True:
        for server, process in zip(servers, processes, strict=True):
            if process.poll() is not None:
                raise ServerError(f"{server.name} ended with exit code {process.returncode}; see {server.log_path}")
        time.sleep(_POLL_S)


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; a server that cannot run is a one-line error."""
    exit_on_sigterm()
    root = Path.cwd()
    try:
        tracking = load_params(root / "params.yaml").tracking
        mlflow_page, servers = mlflow_url(tracking), own_servers(tracking)
        make_databases()
        print("starting the servers, which takes about 20 s ...", flush=True)
        with running(root, servers) as processes:
            print(f"MLflow   {mlflow_page}\nPrefect  {prefect_url()}\nCtrl-C stops them", flush=True)
            _watch(servers, processes)
    except KeyboardInterrupt:
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

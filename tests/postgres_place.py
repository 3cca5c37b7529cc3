"""A PostgreSQL server of its own for tests, where its programs are installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from flows.processes import process_group, wait_until
from flows.servers import free_port

USER, PASSWORD = "team", "p@ss %/word"
ENCODED = f"{USER}:p%40ss%20%25%2Fword"
_START_S = 60.0


def program(name: str) -> str:
    """Return the path of one of PostgreSQL's programs; skips the test where it is not installed."""
    places = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed")
    return found


@contextmanager
def running_postgres(name: str = USER, password: str = PASSWORD) -> Iterator[str]:
    """Yield user, password, host and port, as in an address, of a server that lives as long as the block.

    The server refuses to run as root; then it runs as the user postgres.
    """
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        directory, port = Path(place), free_port()
        (directory / "password").write_text(password)
        if user:
            for path in (directory, directory / "password"):
                shutil.chown(path, "postgres", "postgres")
        options = [f"--username={name}", f"--pwfile={directory}/password", "--auth=scram-sha-256", "--no-sync"]
        made = [*user, program("initdb"), f"--pgdata={directory}/data", *options]
        subprocess.run(made, cwd="/", check=True, capture_output=True)
        settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off"]
        command = [*user, program("postgres"), "-D", f"{directory}/data", "-p", str(port)]
        command += [word for setting in settings for word in ("-c", setting)]
        with process_group(command, Path("/"), os.environ, subprocess.DEVNULL, subprocess.DEVNULL):
            ready = [program("pg_isready"), "--host=127.0.0.1", f"--port={port}", "--quiet"]
            assert wait_until(lambda: subprocess.run(ready).returncode == 0, _START_S)
            yield f"{name}:{quote(password, safe='')}@127.0.0.1:{port}"

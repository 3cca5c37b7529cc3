"""`python -m flows [STAGE ...]`: run the pipeline under Prefect, on the server that is up or on one of its own."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.environment import LASTING_PAGES_VARIABLE, PREFECT_CLIENT, child_environment, prefect_url
from flows.graph import select_stages
from flows.processes import STAGE_GRACE_S, exit_on_sigterm, process_group
from flows.servers import SERVERS_DIR, answers, free_port, prefect_server, running
from minillm.errors import UserError
from minillm.params import load_params

_USER_ERROR_EXIT = 2
_INTERRUPTED_EXIT = 130
_FLOW_GRACE_S = STAGE_GRACE_S + 15  # the flow ends its stage, then tells the server


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code of one run: 0 done, 1 a stage failed, 2 a mistake found before any stage started."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="stages of dvc.yaml; none = all")
    options = parser.parse_args(arguments)
    exit_on_sigterm()
    root = Path.cwd()
    try:
        load_params(root / "params.yaml")
        select_stages(root, options.stages)
        with _prefect_server(root) as environment:
            return _run(root, options.stages, environment)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return _USER_ERROR_EXIT
    except KeyboardInterrupt:
        print("interrupted; run again to go on", file=sys.stderr)
        return _INTERRUPTED_EXIT


@contextmanager
def _prefect_server(root: Path) -> Iterator[dict[str, str]]:
    """Yield the variables that name the Prefect server that is up, or one that lives as long as the block."""
    api_url = os.environ.get("PREFECT_API_URL") or f"{prefect_url()}/api"
    if answers(f"{api_url}/health"):
        yield {"PREFECT_API_URL": api_url}
        return
    server = prefect_server(f"http://127.0.0.1:{free_port()}")
    print(f"no Prefect server at {api_url}; starting one for this run (`make ui` starts a lasting one) ...", flush=True)
    with running(root, [server]):
        yield {"PREFECT_API_URL": f"{server.url}/api", LASTING_PAGES_VARIABLE: prefect_url()}


def _run(root: Path, stages: list[str], server: dict[str, str]) -> int:
    """Return the exit code of the flow, run in a process that has sent its last log lines when we stop the server."""
    home = str((root / SERVERS_DIR / "prefect").resolve())
    environment = child_environment({**PREFECT_CLIENT, "PREFECT_HOME": home, **server})
    command = [sys.executable, "-m", "flows.run", *stages]
    with process_group(command, root, environment, stdout=None, stderr=None, grace_s=_FLOW_GRACE_S) as process:
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())

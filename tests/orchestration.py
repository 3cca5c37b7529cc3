"""Processor time that orchestration takes of each stage: `python -m tests.orchestration` prints one JSON object.

The real pipeline runs in a repository with a tiny teacher, against a Prefect server, with every stage to run and then
with nothing to do. Weighed beside it and not counted: the stages' own processes, the check of the model directories
before the first stage (the embedded default has none), and what the server takes of the same time without a run.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
import pytest
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from flows.environment import PREFECT_CLIENT, child_environment
from flows.graph import stage_order
from flows.processes import wait_until
from flows.servers import free_port, prefect_server, running
from tests.team_repository import Team, team_up
from tests.tiny_pipeline import commit, new_repository, set_knob

_NUM_ROUNDS = 3
_IDLE_S = 20.0
_TIMEOUT_S = 120.0
_WRITERS = {"worker": "prefect.flow_runs.worker", "run": "prefect.flow_runs"}  # loggers, in the order of their lines
_COST_FILE = "state/costs"
_WRAPPER = f"""
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open({_COST_FILE!r}, "a") as file:
    print(used.ru_utime + used.ru_stime, file=file)
sys.exit(code)
"""
_LOAD = "from pathlib import Path; from minillm.params import load_params; params = load_params(Path('params.yaml'))"
_CHECK = (
    f"{_LOAD}; from minillm.preflight import check_models; check_models(params.teacher_model, params.student_model)"
)


@dataclass(frozen=True)
class _Place:
    """The repository, with what its processes need, and its running server."""

    root: Path
    environment: Mapping[str, str]
    server: psutil.Process

    def cost(self, *arguments: str) -> tuple[float, float, float]:
        """Return the processor seconds of a Python command and of the server, its seconds, and the stages' own."""
        costs = self.root / _COST_FILE
        costs.unlink(missing_ok=True)
        before, start_s = self._used_s(), time.monotonic()
        command, environment = [sys.executable, *arguments], child_environment(self.environment)
        subprocess.run(command, cwd=self.root, env=environment, check=True, capture_output=True)
        wall_s, used_s = time.monotonic() - start_s, self._used_s() - before
        return used_s, wall_s, sum(map(float, costs.read_text().split())) if costs.exists() else 0.0

    def idle_share(self) -> float:
        """Return how much of a processor the server takes without a run."""
        before = self._used_s()
        time.sleep(_IDLE_S)
        return (self._used_s() - before) / _IDLE_S

    def _used_s(self) -> float:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        times = [one.cpu_times() for one in [self.server, *self.server.children(recursive=True)]]
        return ended.ru_utime + ended.ru_stime + sum(one.user + one.system for one in times)


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="minillm-") as directory, chdir(directory):
        root = new_repository(Path(directory))
        _weigh_stages(root)
        server = prefect_server(f"http://127.0.0.1:{free_port()}")
        environment = {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_HOME": str(root / ".servers/prefect")}
        with running(root, [server]) as [process]:
            place = _Place(root, {**PREFECT_CLIENT, **environment}, psutil.Process(process.pid))
            rounds = [_round(place, seed) for seed in range(_NUM_ROUNDS)]
        waits_s = _waits_of_deployed_runs(root)
    print(json.dumps({"medians": _medians(rounds), "rounds": rounds, "deployed_first_line_s": waits_s}, indent=1))


def _weigh_stages(root: Path) -> None:
    """Have each stage's command write down what its own processes took."""
    (root / "cost.py").write_text(_WRAPPER, encoding="utf-8")
    graph = (root / "dvc.yaml").read_text(encoding="utf-8")
    (root / "dvc.yaml").write_text(graph.replace("cmd: python ", "cmd: python -S cost.py python "), encoding="utf-8")
    commit(root, "weighed")


def _round(place: _Place, seed: int) -> dict[str, float]:
    set_knob(place.root, "seed", seed)
    num_stages, idle_share = len(stage_order(place.root)), place.idle_share()
    full_s, full_wall_s, stages_s = place.cost("-m", "flows.run")
    check_s = place.cost("-c", _CHECK)[0] - place.cost("-c", _LOAD)[0]
    idle_s, idle_wall_s, _ = place.cost("-m", "flows.run")
    repro_s, repro_wall_s, _ = place.cost("-m", "dvc", "repro")
    all_stages_s = full_s - stages_s - check_s - full_wall_s * idle_share
    found = {
        "cpu_s_per_stage": (all_stages_s - idle_s) / num_stages,
        "cpu_s_per_stage_with_start_and_end": all_stages_s / num_stages,
        "stages_cpu_s": stages_s,
        "model_check_cpu_s": check_s,
        "server_idle_share": idle_share,
        "pipeline_wall_s": full_wall_s,
        "idle_pipeline_cpu_s": idle_s,
        "idle_pipeline_wall_s": idle_wall_s,
        "idle_dvc_repro_cpu_s": repro_s,
        "idle_dvc_repro_wall_s": repro_wall_s,
    }
    return {name: round(value, 3) for name, value in found.items()}


def _waits_of_deployed_runs(root: Path) -> dict[str, list[float]]:
    """Return the seconds from the page's button Submit to a run's first lines, with the team of `make up`."""
    with pytest.MonkeyPatch.context() as patch, team_up(root, patch) as team:
        waits_s = [_waits_of_a_run(team) for _ in range(_NUM_ROUNDS)]
    return {writer: [one[writer] for one in waits_s] for writer in _WRITERS}


def _waits_of_a_run(team: Team) -> dict[str, float]:
    start_s = time.monotonic()
    run = team.start_run("pipeline/on-demand")
    lines = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run]))
    with team.client() as client:

        def wait_s(writer: str) -> float:
            assert wait_until(lambda: any(line.name == writer for line in client.read_logs(lines)), _TIMEOUT_S)
            return round(time.monotonic() - start_s, 1)

        waits_s = {name: wait_s(writer) for name, writer in _WRITERS.items()}
        assert wait_until(lambda: client.read_flow_run(run).state.is_final(), _TIMEOUT_S)
    return waits_s


def _medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in rounds) for name in rounds[0]}


if __name__ == "__main__":
    main()

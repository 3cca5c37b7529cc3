"""One DVC experiment in the workspace, recorded in MLflow under the experiment's name."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Mapping
from pathlib import Path

from flows.compare_variants import Setting, set_param_arguments
from flows.dvc_lock import clear_up
from flows.dvc_process import dvc_command
from flows.environment import child_environment
from flows.finish import record_outcomes, registry_line
from flows.processes import STAGE_GRACE_S, group_members, process_group, wait_until
from flows.reproduction import DvcError, Reproduction, StageRun, end_leftovers
from minillm.config import Params
from minillm.errors import UserError
from minillm.params import load_params
from tasks.tracking_store import RUN_NAME_VARIABLE


def run_experiment(root: Path, name: str, settings: Mapping[str, Setting]) -> Params:
    """Run `dvc exp run --name NAME` with some knobs set, and return the params that it ran with.

    What DVC has in its cache is not run again. The workspace ends with the experiment's params.yaml and outputs.
    """
    # An experiment of an earlier call gives up its name; its outputs stay in the cache.
    subprocess.run(dvc_command("exp", "remove", name), cwd=root, env=child_environment({}), capture_output=True)
    environment = {"MINILLM_PIPELINE_KEY": str(uuid.uuid4()), RUN_NAME_VARIABLE: name}
    arguments = ("exp", "run", "--name", name, *set_param_arguments(settings))
    stages = _run_dvc(root, arguments, environment)
    params = load_params(root / "params.yaml")
    record_outcomes(params, stages, environment)
    if registered := registry_line(params, environment):
        print(registered, flush=True)
    return params


def _run_dvc(root: Path, arguments: tuple[str, ...], environment: Mapping[str, str]) -> dict[str, StageRun]:
    """Run a DVC command, pass on its lines, and return what it did with each stage."""
    for message in clear_up(root):
        print(message, flush=True)
    command = dvc_command(*arguments)
    with process_group(command, root, child_environment(environment), subprocess.PIPE, None) as process:
        try:
            end_leftovers(process)
            return Reproduction(process).read_all(_show)
        except DvcError as error:
            words = f"dvc {' '.join(arguments[:2])} ended with exit code {error.exit_code}; its lines are above"
            raise UserError(words) from None
        except BaseException:
            _interrupt(process)
            raise


def _show(line: str) -> None:
    print(line, flush=True)


def _interrupt(process: subprocess.Popen[str]) -> None:
    """Let DVC and its stage end as after Ctrl-C: ended by SIGTERM, `dvc exp run` leaves git's HEAD detached."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        wait_until(lambda: not group_members(process.pid), STAGE_GRACE_S)

"""The flow that a GPU worker runs: one stage, on one device, in a workspace that it shares or receives."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Completed, Failed

from flows.graph import select_stages
from flows.hand_over import received
from flows.overlay import PARAMS_NAME
from flows.placement import checkout_mark
from flows.reproduction import StageRun, reproduction
from flows.request import StageRequest
from flows.stage_task import STAGE_FLOW, done_message, run_stage, stage_environment
from flows.waiting import Say, waited_for
from flows.worktree import workspace_path
from minillm.errors import UserError
from minillm.params import load_params
from tasks.tracking_store import STORE_VARIABLE, shared_uri


@flow(name=STAGE_FLOW, retries=0, persist_result=False)  # type: ignore[untyped-decorator]
def stage(request: StageRequest) -> Any:
    """Bring one stage up to date; ends in a state whose message says what was done."""
    say, checkout = get_run_logger().info, Path.cwd()
    try:
        store = shared_uri(load_params(checkout / PARAMS_NAME).tracking, checkout)
        with device_slot(say), _workspace(checkout, request, say) as path:
            [name] = select_stages(path, [request.stage])
            environment = {**stage_environment(request.origin), STORE_VARIABLE: store}
            with reproduction(path, [name], environment) as work:
                state = run_stage.with_options(name=name, task_run_name=name)(name, work, return_state=True)
            if not state.is_completed():
                raise UserError(state.message)
    except UserError as error:
        return Failed(message=str(error))
    return Completed(message=done_message(StageRun(**state.result())))


@contextmanager
def device_slot(say: Say) -> Iterator[None]:
    """Hold the device of this worker, the first of CUDA_VISIBLE_DEVICES, against every other stage on this machine.

    A file that the kernel unlocks when its holder dies: Prefect's own limits stay taken for minutes after a SIGKILL.
    """
    device = re.sub(r"[^A-Za-z0-9-]", "", os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]) or "0"
    path = Path(tempfile.gettempdir()) / f"minillm-{os.getuid()}-device-{device}.lock"
    with waited_for(path, f"device {device} is at work for another run; waiting for it", say):
        yield


@contextmanager
def _workspace(checkout: Path, request: StageRequest, say: Say) -> Iterator[Path]:
    is_own = request.checkout == checkout_mark(checkout)
    if request.experiment:
        if is_own:
            raise UserError(f"{checkout}: the checkout of the pipeline itself; ask for hand_over: shared disk")
        with received(checkout, request.experiment, request.stage, say) as path:
            yield path
    elif is_own:
        with chdir(workspace_path(checkout, request.workspace)):
            yield Path.cwd()
    else:
        raise UserError(f"{checkout}: not the checkout of the pipeline; ask for hand_over: remotes")

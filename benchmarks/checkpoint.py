"""A checkpoint of the benchmarks' student and its optimizer: written to the disk, and read with every sum checked."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import interleaved
from benchmarks.workload import STUDENT_LAYERS, smol_model, the_compute
from minillm.checkpoint import Checkpoints, model_tensors, optimizer_tensors
from minillm.params import load_params
from minillm.types import TrainingState

_MIB = 2**20


def measure(num_threads: int, num_rounds: int, short: bool) -> dict[str, Any]:
    """Return seconds of writing and reading, and the share of a run that `checkpoint.every_s` makes of the former."""
    compute = the_compute(num_threads)
    state = _state(smol_model(STUDENT_LAYERS, compute, seed=0))
    every_s = load_params(Path("params.yaml")).checkpoint.every_s
    with tempfile.TemporaryDirectory(dir=".") as name:  # on the disk of the repository: /tmp may lie in memory
        kept, best = Checkpoints(Path(name) / "run"), Path(name) / "best"
        best.mkdir()
        (best / "config.json").write_text("{}")
        times = interleaved({"write": partial(kept.save, state, best), "read": kept.newest}, num_rounds)
    found = {part: measured.summary() for part, measured in times.items()}
    share = found["write"]["wall_s"] / every_s
    return {"state_mib": _size_mib(state), **found, "share_of_time": round(share, 4)}


def _state(model: Any) -> TrainingState:
    """Return what a training loop would hand over: weights, and the moments of AdamW after a step."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return TrainingState(1, {"model": model_tensors(model), "optimizer": optimizer_tensors(optimizer)}, {})


def _size_mib(state: TrainingState) -> float:
    tensors = [tensor for group in state.tensors.values() for tensor in group.values()]
    return round(sum(tensor.numel() * tensor.element_size() for tensor in tensors) / _MIB, 1)

"""How much noise rows add to a gradient when they share who picks each token, on the models of a finished run.

The same prompts are answered again and again under other seeds, each time with a number of patterns for all rows. The
noise is the trace of the covariance of the policy's gradient, single-step term included. `tests/shared_draws.py` has
the same exactly, on a toy of three tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from benchmarks.workload import the_compute
from minillm.dataset import read_examples
from minillm.device import Compute
from minillm.distiller import make_actors
from minillm.errors import UserError
from minillm.generation import Decoding
from minillm.gradients import put_away
from minillm.methods import make_method
from minillm.methods.interface import DistillData, Run
from minillm.models import load_saved
from minillm.params import load_params
from minillm.tokenizers import load_saved_tokenizer
from minillm.update import Updater
from tasks.storage import TEACHER_DIR, TRAIN_PATH, WARMUP_DIR

NUM_ROWS, NUM_ROWS_SHORT = 64, 16


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return the noise under some numbers of patterns, as a multiple of that with one for every row.

    num_rounds: gradients under each.
    """
    if num_rounds < 2:
        raise UserError(f"benchmarks draws: --rounds {num_rounds}: noise takes at least 2")
    compute, num_rows = the_compute(num_threads), NUM_ROWS_SHORT if is_short else NUM_ROWS
    run = _run(compute, num_rows)
    patterns = sorted({1, num_rows // 16, num_rows})
    noise = {number: _noise(run, number, num_rounds) for number in patterns}
    independent = mean(noise[num_rows])
    return {
        "noise": {str(number): round(mean(found) / independent, 3) for number, found in noise.items()},
        "standard_error": {str(number): round(_error(found) / independent, 3) for number, found in noise.items()},
        "rows": num_rows,
        "teacher_mix_alpha": run.config.rollout.teacher_mix_alpha,
        "baseline": run.config.minillm.baseline,
        "gradients": num_rounds,
        "arithmetic": str(compute),
    }


def _run(compute: Compute, num_rows: int) -> Run:
    absent = next((path for path in (WARMUP_DIR, TEACHER_DIR, TRAIN_PATH) if not path.exists()), None)
    if absent is not None:
        raise UserError(f"benchmarks draws: {absent} is not there: finish a run first (make run)")
    delivered = load_params(Path("params.yaml")).distill
    config = delivered.model_dump() | {"method": "minillm"}
    config["objective"]["language_model_weight"] = 0.0
    config["rollout"] |= {"rollouts_per_phase": num_rows, "batch_size": num_rows}
    config["optimizer"]["minibatch_size"] = num_rows
    distill = type(delivered).model_validate(config)
    tokenizer, rollout = load_saved_tokenizer(WARMUP_DIR), distill.rollout
    lengths = rollout.max_response_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id
    decoding = Decoding(0, 0, num_rows, rollout.temperature, 0, 1.0, *lengths)
    student = load_saved(WARMUP_DIR, torch.float32, compute.device)
    actors = make_actors(student, load_saved(TEACHER_DIR, compute.dtype, compute.device), compute)
    data = DistillData(read_examples(TRAIN_PATH), torch.empty(0, 2, dtype=torch.long), {})
    return Run(actors, data, distill, 0, decoding, tokenizer, compute)


def _noise(run: Run, mask_groups: int, num_gradients: int) -> list[float]:
    """Return the squared distance of each gradient from their mean, scaled so that the mean of them is the noise."""
    gradients = torch.stack([_gradient(run, mask_groups, seed) for seed in range(num_gradients)])
    gradients -= gradients.mean(dim=0)
    scale = num_gradients / (num_gradients - 1)
    return [scale * float(gradient.double().square().sum()) for gradient in gradients]


def _gradient(run: Run, mask_groups: int, seed: int) -> Tensor:
    """Return the gradient of a minibatch of responses to the same prompts, drawn under a seed."""
    drawn = replace(run, decoding=replace(run.decoding, seed=seed, mask_groups=mask_groups))
    method, parameters = make_method(drawn), list(run.actors.student.parameters())
    texts, _ = method.collect(1)
    put_away(parameters)
    Updater(drawn, method).accumulate(texts, list(range(len(texts.response_ids))))
    return torch.cat([parameter.grad.flatten() for parameter in parameters])


def _error(values: list[float]) -> float:
    return stdev(values) / math.sqrt(len(values))

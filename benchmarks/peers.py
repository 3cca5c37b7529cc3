"""A distillation step against those of TRL's trainers: the same models, prompts and numbers of tokens, in float32.

Every trainer runs in processes of its own, in turns. A step draws a response to each of 16 prompts and updates the
student once. Ours mixes the teacher in and has the long-term term beside the exact reverse KL; theirs have that alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from statistics import median
from typing import Any

from minillm.errors import UserError

PEERS = ("DistillationTrainer", "GKDTrainer")
NUM_STEPS = 3  # measured, after one that is not
_REQUIREMENTS = "requirements-benchmarks.lock"


def measure(num_threads: int, num_rounds: int, is_short: bool) -> dict[str, Any]:
    """Return our CPU seconds a step and our peak memory as shares of each peer's, medians over the rounds."""
    missing = [name for name in ("trl", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"benchmarks peers: {missing[0]} is not installed: pip install --no-deps -r {_REQUIREMENTS}")
    names = ("ours", *PEERS)
    num_rounds = 1 if is_short else num_rounds
    rounds = [{name: _in_new_process(name, num_threads) for name in names} for _ in range(num_rounds)]
    return {
        "cpu_share": {peer: _share(rounds, peer, "cpu_s") for peer in PEERS},
        "memory_share": {peer: _share(rounds, peer, "peak_rss_mib") for peer in PEERS},
        "step": {name: {key: _median(rounds, name, key) for key in rounds[0][name]} for name in names},
        "rounds": len(rounds),
        "arithmetic": "cpu in float32",
    }


def _share(rounds: list[dict[str, dict[str, float]]], peer: str, key: str) -> float:
    return round(float(median(each["ours"][key] / each[peer][key] for each in rounds)), 3)


def _median(rounds: list[dict[str, dict[str, float]]], name: str, key: str) -> float:
    return round(float(median(each[name][key] for each in rounds)), 3)


def _in_new_process(name: str, num_threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.peer_step", name, str(num_threads), str(NUM_STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"benchmarks peers: {name} failed: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found

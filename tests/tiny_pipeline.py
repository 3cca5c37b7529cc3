"""A repository of the real pipeline on a tiny random teacher."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from flows.environment import child_environment
from minillm.embedded import load_embedded_tokenizer
from minillm.models import save_model
from tests.imports import ROOT

_SFT = {"num_steps": 2, "batch_size": 4, "micro_batch_tokens": 64, "validate_every_steps": 1}
_OVERLAY: dict[str, Any] = {
    "teacher_model": {"source": "path", "location": "tiny-teacher"},
    "student_model": {"num_layers": 2, "num_calibration_rows": 8},
    "data": {
        "num_builtin_rows": 1000,
        "num_validation_rows": 8,
        "num_evaluation_rows": 9,
        "max_train_rows": 64,
        "corpus_block_tokens": 32,
        "max_corpus_blocks": 8,
    },
    "teacher": {"sft": _SFT},
    "warmup": {"sft": _SFT},
    "distill": {
        "num_phases": 2,
        "rollout": {"rollouts_per_phase": 4, "batch_size": 4, "max_response_tokens": 6},
        "optimizer": {"minibatch_size": 2, "micro_batch_tokens": 64, "learning_rate": 3.0e-5},
        "validation": {"every_phases": 1, "num_rows": 4},
    },
    "evaluate": {"batch_size": 4, "sampling_seeds": [10, 20], "max_response_tokens": 6},
    "report": {"num_examples": 2},
}


def tiny_teacher(directory: Path) -> None:
    """Save a random Llama of a few thousand weights a layer under the embedded tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_embedded_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        save_model(LlamaForCausalLM(config), tokenizer, directory)


def command(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        arguments, cwd=root, env=child_environment({}), capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0 or not check, f"{arguments}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result


def dvc(root: Path, *arguments: str) -> str:
    return command(root, sys.executable, "-m", "dvc", *arguments).stdout


def set_knob(root: Path, path: str, value: Any) -> None:
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    *parents, key = path.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    section[key] = value
    yaml.dump(content, root / "params.yaml")


def new_repository(root: Path) -> Path:
    """Return a git repository with this project's tracked files, the tiny teacher and tiny params."""
    files = command(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    tiny_teacher(root / "tiny-teacher")
    with (root / "configs/tiny.yaml").open("w") as file:
        YAML().dump(_OVERLAY, file)
    command(root, sys.executable, "-m", "tasks", "preset", "tiny")
    with (root / ".gitignore").open("a") as file:
        file.write("/tiny-teacher/\n")
    command(root, "git", "init", "--quiet")
    commit(root, "start")
    return root


def commit(root: Path, message: str) -> None:
    command(root, "git", "add", "--all")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command(root, "git", *identity, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `make run`'s command has run once, committed; to be copied, not changed."""
    root = new_repository(tmp_path_factory.mktemp("finished"))
    result = command(root, sys.executable, "-m", "flows.local")
    assert "reports/report.html" in result.stdout
    commit(root, "run")
    return root

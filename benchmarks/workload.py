"""What is timed: random models of SmolLM2-135M's shape, left-padded prompts, responses of full length.

Nothing ends early and the same share of tokens falls to the teacher in every round, for timing only: the pipeline draws
both at random.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from minillm.dataset import Example
from minillm.device import Compute, choose_compute
from minillm.distiller import make_actors
from minillm.generation import Decoding
from minillm.methods.interface import DistillData, Run
from minillm.padding import pad_left
from minillm.params import load_params
from minillm.types import PromptBatch, Texts

TEACHER_LAYERS, STUDENT_LAYERS = 30, 10
NUM_PROMPT_TOKENS, LARGEST_PADDING = 64, 31
VOCABULARY = 49_152
NO_END = -1


def smol_model(num_layers: int, compute: Compute, *, seed: int, vocabulary: int = VOCABULARY) -> Any:
    """Return a random model with the layers and widths of SmolLM2-135M, in float32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=num_layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
        attn_implementation="eager" if compute.device.type == "cpu" else "sdpa",
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval().to(compute.device)


def the_compute(num_threads: int) -> Compute:
    """Return the arithmetic that the pipeline chooses by itself on this machine."""
    return choose_compute("auto", "auto", num_threads, Compute.loss_memory_mib, Compute.gradient_checkpointing)


def machine() -> dict[str, Any]:
    """Return what figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def prompt_batch(num_rows: int, compute: Compute, *, seed: int = 1) -> PromptBatch:
    """Return prompts of 64 columns with up to 31 of padding."""
    ids, mask = pad_left(_prompts(num_rows, seed), 0)
    return PromptBatch(ids.to(compute.device), mask.to(compute.device), list(range(num_rows)))


def _prompts(num_rows: int, seed: int) -> list[list[int]]:
    generator = random.Random(seed)
    lengths = [NUM_PROMPT_TOKENS - generator.randint(0, LARGEST_PADDING) for _ in range(num_rows)]
    lengths[0] = NUM_PROMPT_TOKENS
    return [[generator.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]


def random_texts(num_rows: int, num_tokens: int, compute: Compute, *, seed: int = 1) -> Texts:
    """Return the prompts with random responses of full length."""
    prompts = prompt_batch(num_rows, compute, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (num_rows, num_tokens), generator=generator).to(compute.device)
    return Texts(prompts.prompt_ids, prompts.prompt_mask, ids, torch.ones_like(ids, dtype=torch.bool))


def uniforms(num_rows: int, num_tokens: int) -> Tensor:
    """Return the draws of a rollout."""
    return torch.rand(num_rows, num_tokens, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def teacher_picks(num_rows: int, num_tokens: int, alpha: float) -> Tensor:
    """Return which tokens (B, T) fall to the teacher: the rounded share, in random places that all rows share."""
    picks = [place < round(alpha * num_tokens) for place in range(num_tokens)]
    random.Random(3).shuffle(picks)
    return torch.tensor(picks).expand(num_rows, -1)


def prompt_rows(num_rows: int, *, seed: int = 1) -> list[Example]:
    """Return training rows with prompts as those of `prompt_batch`."""
    return [Example(row, "", "", [""], "", ids, [3]) for row, ids in enumerate(_prompts(num_rows, seed))]


def distill_run(student: Any, teacher: Any, compute: Compute, *, rows: Sequence[Example] = (), **changes: Any) -> Run:
    """Return a run of method minillm: the recipe of params.yaml and changes to it, without a language-model loss."""
    config = load_params(Path("params.yaml")).distill
    content = config.model_dump() | {"method": "minillm"}
    content["objective"]["language_model_weight"] = 0.0
    for name, value in changes.items():
        content[name] = {**content[name], **value} if isinstance(value, dict) else value
    config = type(config).model_validate(content)
    rollout = config.rollout
    decoding = Decoding(17, 0, rollout.batch_size, 1.0, 0, 1.0, rollout.max_response_tokens, NO_END, 0)
    data = DistillData(rows, torch.empty(0, 2, dtype=torch.long), {})
    return Run(make_actors(student, teacher, compute), data, config, 17, decoding, None, compute)

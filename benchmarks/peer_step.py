"""Steps of one trainer in a process of its own: `python -m benchmarks.peer_step NAME THREADS STEPS`."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.workload import LARGEST_PADDING, NUM_PROMPT_TOKENS, STUDENT_LAYERS, TEACHER_LAYERS, smol_model
from minillm.device import Compute
from minillm.embedded import load_embedded_tokenizer
from minillm.padding import pad_left

NUM_ROWS, NUM_TOKENS = 16, 64
LEARNING_RATE = 1e-6
FLOAT32 = Compute(torch.device("cpu"), torch.float32)


class StepClock:
    """Notes what steps take by the clock of all cores and by the wall's."""

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []
        self.start()

    def start(self) -> None:
        """Begin a step."""
        self._start = time.process_time(), time.perf_counter()

    def stop(self) -> None:
        """End a step and begin the next."""
        self.cpu_s.append(time.process_time() - self._start[0])
        self.wall_s.append(time.perf_counter() - self._start[1])
        self.start()


def main(name: str, num_threads: int, num_steps: int) -> None:
    """Run one step unmeasured and then some, and print their medians and the peak memory as JSON."""
    if num_threads:
        torch.set_num_threads(num_threads)
    tokenizer, clock = load_embedded_tokenizer(), StepClock()
    prompts = [_prompt(tokenizer, random.Random(row)) for row in range(NUM_ROWS * (num_steps + 1))]
    run = {"ours": _run_ours, "DistillationTrainer": _run_distillation, "GKDTrainer": _run_gkd}[name]
    run(tokenizer, prompts, num_steps + 1, clock)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    found = {"cpu_s": median(clock.cpu_s[1:]), "wall_s": median(clock.wall_s[1:])}
    print(json.dumps(found | {"peak_rss_mib": int(peak.split()[1]) / 1024}))


def _prompt(tokenizer: Any, generator: random.Random) -> list[int]:
    """Return ids that are those of their own text, so that trainers that take text see the same tokens."""
    length = NUM_PROMPT_TOKENS - generator.randint(0, LARGEST_PADDING)
    ids: list[int] = []
    while len(ids) < length:
        grown = [*ids, generator.randrange(3, len(tokenizer))]
        if tokenizer(tokenizer.decode(grown), add_special_tokens=False)["input_ids"] == grown:
            ids = grown
    return ids


def _models(attention: str) -> tuple[Any, Any]:
    student, teacher = (smol_model(layers, FLOAT32, seed=layers) for layers in (STUDENT_LAYERS, TEACHER_LAYERS))
    for model in (student, teacher):
        model.set_attn_implementation(attention)
    return student, teacher


def _run_ours(tokenizer: Any, prompts: list[list[int]], num_steps: int, clock: StepClock) -> None:
    from benchmarks.workload import distill_run
    from minillm.allocator import keep_freed_memory
    from minillm.dataset import Example
    from minillm.distiller import distill

    keep_freed_memory()  # as the pipeline does
    rows = [Example(row, "", "", [""], "", ids, [3]) for row, ids in enumerate(prompts)]
    run = distill_run(
        *_models("eager"),
        FLOAT32,
        rows=rows,
        num_phases=num_steps,
        inner_epochs=1,
        rollout={"rollouts_per_phase": NUM_ROWS, "batch_size": NUM_ROWS, "max_response_tokens": NUM_TOKENS},
        optimizer={"minibatch_size": NUM_ROWS, "micro_batch_tokens": NUM_ROWS * (NUM_PROMPT_TOKENS + NUM_TOKENS)},
        validation={"every_phases": num_steps},
    )
    reports = distill(run, lambda actors: {"validation/reverse_kl": 0.0})
    next(reports)
    clock.start()
    for _ in reports:
        clock.stop()


def _trainer_options(directory: str, num_steps: int) -> dict[str, Any]:
    """Return settings of transformers' Trainer: plain steps and nothing beside them, in their faster mode."""
    return {
        "output_dir": directory,
        "max_steps": num_steps,
        "per_device_train_batch_size": NUM_ROWS,
        "learning_rate": LEARNING_RATE,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _callback(clock: StepClock) -> Any:
    from transformers import TrainerCallback

    class Timed(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            clock.start()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            clock.stop()

    return Timed()


def _run_distillation(tokenizer: Any, prompts: list[list[int]], num_steps: int, clock: StepClock) -> None:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer  # type: ignore[import-not-found,unused-ignore]

    student, teacher = _models("sdpa")
    with tempfile.TemporaryDirectory() as directory:
        settings = DistillationConfig(
            **_trainer_options(directory, num_steps),
            max_completion_length=NUM_TOKENS,
            generation_kwargs={"min_new_tokens": NUM_TOKENS},
        )
        data = Dataset.from_list([{"prompt": tokenizer.decode(ids)} for ids in prompts])
        trainer = DistillationTrainer(
            student, teacher, settings, data, processing_class=tokenizer, callbacks=[_callback(clock)]
        )
        trainer.train()


def _run_gkd(tokenizer: Any, prompts: list[list[int]], num_steps: int, clock: StepClock) -> None:
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # type: ignore[import-not-found,unused-ignore]

    student, teacher = _models("sdpa")
    with tempfile.TemporaryDirectory() as directory:
        settings = GKDConfig(
            **_trainer_options(directory, num_steps), lmbda=1.0, beta=1.0, temperature=1.0, max_new_tokens=NUM_TOKENS
        )
        trainer = GKDTrainer(
            student,
            teacher,
            settings,
            data_collator=_collated,
            train_dataset=Dataset.from_list([{"ids": ids} for ids in prompts]),
            processing_class=tokenizer,
            callbacks=[_callback(clock)],
        )
        trainer.generation_config.min_new_tokens = NUM_TOKENS
        trainer.train()


def _collated(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Return prompts as the trainer samples from; what it would train on off policy is never used."""
    ids, mask = pad_left([row["ids"] for row in rows], 0)
    return {
        "prompts": ids,
        "prompt_attention_mask": mask.long(),
        "input_ids": ids,
        "attention_mask": mask.long(),
        "labels": ids,
    }


if __name__ == "__main__":
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))

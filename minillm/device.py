"""Where and in which arithmetic models run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from minillm.allocator import keep_freed_memory
from minillm.errors import UserError


@dataclass(frozen=True)
class Compute:
    """A device and the dtype of matrix products on it; losses and log-probabilities stay in float32.

    loss_memory_mib: of the logits that a loss keeps alive at a time.
    gradient_checkpointing: layers of a trained model run again in the backward pass instead of keeping what it needs.
    """

    device: torch.device
    dtype: torch.dtype
    loss_memory_mib: int = 192
    gradient_checkpointing: bool = False

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run matrix products of float32 models in `dtype`."""
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            yield

    def __str__(self) -> str:
        return f"{self.device.type} in {str(self.dtype).removeprefix('torch.')}"


def choose_compute(
    device: Literal["auto", "cpu", "cuda"],
    precision: Literal["auto", "float32", "bfloat16"],
    num_threads: int,
    loss_memory_mib: int,
    gradient_checkpointing: bool,
) -> Compute:
    """Return the device and dtype to use; set the number of CPU threads (0 keeps all cores) and how memory is kept."""
    if num_threads:
        torch.set_num_threads(num_threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("params.yaml: runtime.device: 'cuda', but this machine shows no CUDA device; use auto or cpu")
    name = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if name == "cpu":
        keep_freed_memory()
    if precision == "auto":
        precision = "bfloat16" if _has_fast_bfloat16(name) else "float32"
    return Compute(torch.device(name), getattr(torch, precision), loss_memory_mib, gradient_checkpointing)


def _has_fast_bfloat16(device_name: str) -> bool:
    if device_name == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

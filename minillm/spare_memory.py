"""Memory of the largest tensors of a CPU, kept from one use to the next.

Freed, it would go back to the system (`minillm.allocator` keeps what is smaller), which clears all of its pages again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_NUM_KEPT = 2  # as many as are lent at a time: logits of the student and of the teacher
_spare: list[Tensor] = []


@contextmanager
def lent(shape: tuple[int, ...], like: Tensor) -> Iterator[Tensor]:
    """Lend a contiguous tensor of a shape, of the type and on the device of another; its numbers mean nothing."""
    if like.device.type != "cpu":
        yield like.new_empty(shape)  # the library keeps what is freed there
        return
    num_bytes = torch.Size(shape).numel() * like.element_size()
    memory = _taken(num_bytes)
    try:
        yield memory[:num_bytes].view(like.dtype).view(shape)
    finally:
        if len(_spare) < _NUM_KEPT:
            _spare.append(memory)


def _taken(num_bytes: int) -> Tensor:
    """Return flat bytes, at least so many, that no one else has; what is too small goes."""
    memory = _spare.pop() if _spare else None
    if memory is not None and len(memory) >= num_bytes:
        return memory
    del memory
    with torch.inference_mode(False):  # whoever is lent it later may be in another mode
        return torch.empty(num_bytes, dtype=torch.uint8)

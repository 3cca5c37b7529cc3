"""Memory of the largest tensors of a CPU, kept from one use to the next.

Freed, it would go back to the system (`minillm.allocator` keeps what is smaller), which clears all of its pages again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_spare: list[Tensor] = []  # one at most: the largest that was lent so far


@contextmanager
def lent(num_bytes: int, device: torch.device) -> Iterator[Tensor]:
    """Lend flat bytes (num_bytes,), whose content means nothing, to one user at a time."""
    if device.type != "cpu":
        yield torch.empty(num_bytes, dtype=torch.uint8, device=device)  # the library keeps what is freed there
        return
    memory = _spare.pop() if _spare else torch.empty(0)
    if len(memory) < num_bytes:
        del memory  # before there is more
        with torch.inference_mode(False):  # whoever is lent it later may be in another mode
            memory = torch.empty(num_bytes, dtype=torch.uint8)
    try:
        yield memory[:num_bytes]
    finally:
        _spare[:] = [max([memory, *_spare], key=len)]


def give_back() -> None:
    """Give what is kept back to the system."""
    _spare.clear()

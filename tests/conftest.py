"""One thread for the tiny models of the tests: more only wait for each other, endlessly on a machine that is busy."""

from __future__ import annotations

import torch

torch.set_num_threads(1)

"""What evaluation found for a model, kept by the content of all that it depends on: nothing is decoded twice.

Comparing many students of one teacher, and running again after an interruption, would otherwise repeat the same draws.
Kept outside every output; a key that matches gives the same bytes as decoding anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from minillm.digests import content_sha256, digest
from minillm.failpoints import failpoint
from minillm.kernels.compiled import arithmetic as kernel_arithmetic
from minillm.params import read_yaml
from tasks.storage import STATE_DIR, write_json

_KEPT_DIR = STATE_DIR / "evaluate"
_GRAPH_PATH = Path("dvc.yaml")


@dataclass(frozen=True)
class Judgement:
    """Responses by decoding, a row each, and the reverse KL to the teacher (nats per token; None for itself)."""

    responses: dict[str, list[list[int]]]
    reverse_kl: float | None


def judgement_key(inputs: Iterable[Path], settings: Mapping[str, Any]) -> str:
    """Return a hash of the inputs' contents, the settings, the code of the stage and the arithmetic of this machine."""
    code = [Path(name) for name in read_yaml(_GRAPH_PATH)["stages"]["evaluate"]["deps"] if name.endswith(".py")]
    contents = [content_sha256(path) for path in (*inputs, *code)]
    arithmetic = [
        torch.__version__,
        transformers.__version__,
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.cuda.get_device_name() if torch.cuda.is_available() else kernel_arithmetic(),
    ]
    return digest([contents, dict(settings), arithmetic]).hex()


def kept(key: str, judge: Callable[[], Judgement]) -> Judgement:
    """Return the judgement of that key, made and kept if there is none, or one that is damaged."""
    path = _KEPT_DIR / f"{key}.json"
    found = _read(path)
    if found is None:
        found = _in_order(judge())
        content = asdict(found)
        write_json(path, {"sha256": digest(content).hex(), "judgement": content})
        failpoint("judgement.kept")
    return found


def _in_order(judgement: Judgement) -> Judgement:
    """Return it with its decodings by name, as they come back from a file: their order reaches the outputs."""
    return Judgement(dict(sorted(judgement.responses.items())), judgement.reverse_kl)


def _read(path: Path) -> Judgement | None:
    try:
        record = json.loads(path.read_bytes())
        content = record["judgement"]
        return Judgement(**content) if record["sha256"] == digest(content).hex() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Checkpoints of a training loop: directories that appear whole, are verified when read, and keep a predecessor.

A checkpoint is written beside its place, synced file by file, sealed by a manifest of sha256 sums, synced and renamed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from minillm.digests import content_sha256
from minillm.durable import sync
from minillm.errors import DamagedError, UserError
from minillm.failpoints import failpoint
from minillm.types import TrainingState

_log = logging.getLogger(__name__)

_MANIFEST, _VALUES, _BEST = "MANIFEST.json", "values.json", "best"
_SCHEMA = 1
_NUM_KEPT = 2


class Checkpoints:
    """The checkpoints of one run, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def save(self, state: TrainingState, best: Path) -> None:
        """Write a checkpoint with links to the files of the best weights so far, then drop all but the last two."""
        path = self._directory / f"step-{state.step:08d}"
        temporary = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _write(temporary, state, best)
            shutil.rmtree(path, ignore_errors=True)  # a damaged one that a new run has passed again
            failpoint("checkpoint.before_rename")
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        failpoint("checkpoint.after_rename")
        sync(self._directory)
        self._prune(path)

    def newest(self) -> tuple[TrainingState, Path] | None:
        """Return the newest checkpoint that is whole, and where its best weights lie; None when there is none.

        A damaged one is passed over with a warning. Raises UserError when there are some and all are damaged.
        """
        self._drop_unfinished()
        reasons = []
        for path in reversed(self._paths()):
            try:
                return _read(path), path / _BEST
            except DamagedError as error:
                reasons.append(f"{path}: {error}")
                _log.warning("checkpoint passed over: %s", reasons[-1])
        if reasons:
            raise UserError(f"no checkpoint is whole; remove {self._directory} to start anew: {'; '.join(reasons)}")
        return None

    def drop(self) -> None:
        """Remove all of them."""
        for path in self._paths():
            self._remove(path)

    def _paths(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"))

    def _drop_unfinished(self) -> None:
        for path in self._directory.glob(".step-*.tmp"):
            shutil.rmtree(path)

    def _prune(self, latest: Path) -> None:
        """Drop those of before the last two, and those of later steps, which were damaged and passed over."""
        kept = [path for path in self._paths() if path.name <= latest.name][-_NUM_KEPT:]
        for path in [path for path in self._paths() if path not in kept]:
            failpoint("checkpoint.before_prune")
            self._remove(path)

    def _remove(self, path: Path) -> None:
        doomed = path.with_name(f".{path.name}.tmp")
        os.replace(path, doomed)  # so that a kill leaves no half of a checkpoint under its name
        shutil.rmtree(doomed)


def _write(directory: Path, state: TrainingState, best: Path) -> None:
    for name, write in _files(state):
        write(directory / name)
        sync(directory / name)
        failpoint("checkpoint.file_written")
    (directory / _BEST).mkdir()
    for path in sorted(best.iterdir()):
        sync(path)
        os.link(path, directory / _BEST / path.name)
    sync(directory / _BEST)
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    sums = {path.relative_to(directory).as_posix(): content_sha256(path) for path in files}
    manifest = {"schema": _SCHEMA, "step": state.step, "sha256": sums}
    failpoint("checkpoint.before_manifest")
    (directory / _MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True), encoding="utf-8")
    sync(directory / _MANIFEST)
    sync(directory)


def _files(state: TrainingState) -> Iterator[tuple[str, Callable[[Path], object]]]:
    for group, tensors in state.tensors.items():
        kept = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        yield f"{group}.safetensors", partial(save_file, kept)
    yield _VALUES, partial(_write_text, json.dumps(dict(state.values)))


def _write_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _read(path: Path) -> TrainingState:
    manifest = _manifest(path)
    for name, expected in manifest["sha256"].items():
        if not (path / name).is_file():
            raise DamagedError(f"{name} is missing")
        if content_sha256(path / name) != expected:
            raise DamagedError(f"{name} is not as it was written")
    try:
        tensors = {file.stem: load_file(file) for file in sorted(path.glob("*.safetensors"))}
        return TrainingState(manifest["step"], tensors, json.loads((path / _VALUES).read_text(encoding="utf-8")))
    except (OSError, SafetensorError, ValueError) as error:
        raise DamagedError(str(error)) from error


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{_MANIFEST}: {error}") from error
    if manifest.get("schema") != _SCHEMA or path.name != f"step-{manifest.get('step', -1):08d}":
        raise DamagedError(f"{_MANIFEST} does not fit: {manifest!r:.200}")
    return manifest


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimizer's state, by place of the parameter and name of the value."""
    states = optimizer.state_dict()["state"]
    return {f"{place}.{name}": value for place, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take a state that `optimizer_tensors` returned."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        place, _, name = key.partition(".")
        states.setdefault(int(place), {})[name] = value
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def model_tensors(model: Any) -> dict[str, Tensor]:
    """Return a model's weights by name, tied ones once."""
    return dict(model.named_parameters())


@torch.no_grad()
def restore_model(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Take weights that `model_tensors` returned."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != tensors.keys():
        raise UserError(f"checkpoint: other weights than the model's: {sorted(parameters.keys() ^ tensors.keys())[:3]}")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])

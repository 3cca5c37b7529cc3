"""What a model directory may hold, checked before a library reads it: whole weights as data, and never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from minillm.errors import UserError

Source = Literal["embedded", "path", "hub"]

_NEEDED = ("config.json", "tokenizer.json")
_PICKLES = {".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}
_CODE = {".py", ".pyc", ".so"}


def check_location(source: Source, location: str) -> None:
    """Raise UserError unless a location can be what its source says; a hub's name must not be found on the disk.

    Libraries take a name for a directory when there is one, which would then be read unchecked.
    """
    if source == "path":
        check_model_directory(Path(location))
    if source == "hub" and Path(location).exists():
        raise UserError(f"{location}: source 'hub' names a repository, and this is a local path; use source 'path'")


def check_model_directory(directory: Path) -> None:
    """Raise UserError unless the directory holds configuration, tokenizer and whole safetensors, and no code."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model directory")
    for name in _NEEDED:
        if not (directory / name).is_file():
            raise UserError(f"{directory}: {name} is missing; a model directory needs it")
    _refuse_code(directory)
    shards = _tensors_of_shards(directory)
    missing = [name for name in shards if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{directory}: weights are missing: {', '.join(missing)} (safetensors only)")
    for name, tensors in shards.items():
        _check_shard(directory / name, tensors)


def check_num_layers(kept: int, there: int) -> None:
    """Raise UserError when a student is to keep more layers than the teacher has."""
    if kept > there:
        raise UserError(f"params.yaml: student_model.num_layers = {kept}; the teacher has {there} layers")


def _refuse_code(directory: Path) -> None:
    """Raise UserError for files that could run when a library loads them, and for orders to do so."""
    for path in sorted(directory.glob("*config.json")):
        if "auto_map" in _read_object(path):
            raise UserError(f"{path}: auto_map asks to run code from the model; that is never done")
    for path in sorted([*directory.iterdir(), *directory.glob("custom_generate/*")]):
        if path.suffix.lower() in _PICKLES | _CODE:
            kind = "code" if path.suffix.lower() in _CODE else "pickles"
            raise UserError(f"{path}: {kind} from a model is never loaded (safetensors only); remove the file")
    if (directory / "adapter_config.json").exists():
        raise UserError(f"{directory}/adapter_config.json: an adapter; merge it into its model and remove the file")


def _tensors_of_shards(directory: Path) -> dict[str, set[str]]:
    """Return the names of the weight files, with those of the tensors that an index promises in each."""
    path = directory / "model.safetensors.index.json"
    if not path.is_file():
        return {"model.safetensors": set()}
    shards: dict[str, set[str]] = {}
    weight_map = _read_object(path).get("weight_map")
    for tensor, name in weight_map.items() if isinstance(weight_map, dict) else ():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{path}: weight_map: {name!r} is no safetensors file of this directory")
        shards.setdefault(name, set()).add(tensor)
    if not shards:
        raise UserError(f"{path}: weight_map: a mapping from tensors to files is needed")
    return dict(sorted(shards.items()))


def _check_shard(path: Path, tensors: set[str]) -> None:
    """Raise UserError unless a weight file is as long as its header says and has the tensors; reads the header only."""
    try:
        with safe_open(path, framework="pt") as file:
            absent = sorted(tensors - set(file.keys()))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None
    if absent:
        raise UserError(f"{path}: tensor {absent[0]!r} is missing; the index says that it is in this file")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed, got {type(content).__name__}")
    return content

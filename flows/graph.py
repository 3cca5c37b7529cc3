"""The order of the stages, read from dvc.yaml, which is the only graph."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import Any

from minillm.errors import UserError
from minillm.params import read_yaml

GRAPH_NAME = "dvc.yaml"
_OUTPUT_KEYS = ("outs", "metrics", "plots")


def stage_order(root: Path) -> list[str]:
    """Return the names of all stages of dvc.yaml, each after the stages whose outputs it reads."""
    stages = read_yaml(root / GRAPH_NAME)["stages"]
    outputs = {name: _paths(stage, _OUTPUT_KEYS) for name, stage in stages.items()}
    inputs = {name: _paths(stage, ("deps",)) for name, stage in stages.items()}
    before = {
        name: [other for other in stages if other != name and _meet(inputs[name], outputs[other])] for name in stages
    }
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise UserError(f"{GRAPH_NAME}: the stages {' -> '.join(error.args[1])} depend on each other") from None


def select_stages(root: Path, names: Iterable[str]) -> list[str]:
    """Return the named stages in graph order, or all when none is named; an unknown name raises UserError."""
    order = stage_order(root)
    wanted = set(names)
    unknown = sorted(wanted - set(order))
    if unknown:
        raise UserError(f"unknown stage {unknown[0]!r}; {GRAPH_NAME} has: {', '.join(order)}")
    return [name for name in order if name in wanted] if wanted else order


def made_paths(root: Path) -> tuple[list[str], list[str]]:
    """Return the outputs that DVC keeps in its cache, and those that it does not."""
    paths: dict[bool, list[str]] = {True: [], False: []}
    for stage in read_yaml(root / GRAPH_NAME)["stages"].values():
        for entry in (entry for key in _OUTPUT_KEYS for entry in stage.get(key, ())):
            name, options = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
            paths[options.get("cache", True)].append(name)
    return paths[True], paths[False]


def _paths(stage: dict[str, Any], keys: tuple[str, ...]) -> list[PurePosixPath]:
    """Return the paths under the keys of a stage; an entry is a path, or a mapping from one path to its options."""
    entries = [entry for key in keys for entry in stage.get(key, ())]
    return [PurePosixPath(entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]


def _meet(inputs: list[PurePosixPath], outputs: list[PurePosixPath]) -> bool:
    return any(wanted.is_relative_to(made) or made.is_relative_to(wanted) for wanted in inputs for made in outputs)

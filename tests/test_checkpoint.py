"""Checkpoints: what was saved comes back bit by bit, or not at all."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm import failpoints
from minillm.checkpoint import Checkpoints, optimizer_tensors, restore_optimizer
from minillm.errors import UserError
from minillm.optimization import make_optimizer
from minillm.types import TrainingState
from tests import tiny


@pytest.fixture
def best(tmp_path: Path) -> Path:
    directory = tmp_path / "best"
    directory.mkdir()
    (directory / "weights").write_bytes(bytes(range(256)))
    return directory


def state(step: int) -> TrainingState:
    generator = torch.Generator().manual_seed(step)
    tensors = {"a": torch.randn(3, 2, generator=generator), "b": torch.tensor(float(step))}
    return TrainingState(step, {"model": tensors, "optimizer": {"0.step": tensors["b"]}}, {"best": math.inf, "n": step})


def assert_same(found: TrainingState, expected: TrainingState) -> None:
    assert (found.step, found.values) == (expected.step, expected.values)
    assert found.tensors.keys() == expected.tensors.keys()
    for group, tensors in expected.tensors.items():
        assert all(torch.equal(found.tensors[group][name], tensor) for name, tensor in tensors.items())


def test_the_newest_of_two_kept_checkpoints_comes_back(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.newest() is None
    for step in (3, 4, 10):
        checkpoints.save(state(step), best)
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["step-00000004", "step-00000010"]
    found = checkpoints.newest()
    assert found is not None
    assert_same(found[0], state(10))
    assert (found[1] / "weights").read_bytes() == bytes(range(256))


def test_the_best_weights_of_a_checkpoint_outlive_those_of_later_steps(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    (best / "weights").unlink()
    (best / "weights").write_bytes(b"later")
    found = checkpoints.newest()
    assert found is not None and (found[1] / "weights").read_bytes() == bytes(range(256))


FILES = ["model.safetensors", "optimizer.safetensors", "values.json", "best/weights", "MANIFEST.json"]


def cut(content: bytes) -> bytes:
    return content[:-1]


def emptied(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [cut, emptied, None], ids=["cut", "empty", "missing"])
def test_fault_04_a_damaged_checkpoint_is_passed_over_aloud(
    file: str, damage: Any, tmp_path: Path, best: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    checkpoints.save(state(4), best)
    path = tmp_path / "run/step-00000004" / file
    content = path.read_bytes()
    path.unlink()  # the best weights are linked: writing in place would damage both checkpoints
    if damage is not None:
        path.write_bytes(damage(content))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest()
    assert found is not None
    assert_same(found[0], state(3))
    assert "step-00000004" in caplog.text and Path(file).name in caplog.text


def test_fault_04_one_that_was_passed_over_is_not_one_of_the_two_kept(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    for step in (3, 10):
        checkpoints.save(state(step), best)
    (tmp_path / "run/step-00000010/MANIFEST.json").write_text("{}")
    found = checkpoints.newest()
    assert found is not None and found[0].step == 3
    checkpoints.save(state(4), best)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["step-00000003", "step-00000004"]


def test_fault_04_any_flipped_bit_of_the_tensors_is_noticed(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    checkpoints.save(state(4), best)
    path = tmp_path / "run/step-00000004/model.safetensors"
    content = path.read_bytes()
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        found = checkpoints.newest()
        assert found is not None and found[0].step == 3
    path.write_bytes(content)
    found = checkpoints.newest()
    assert found is not None and found[0].step == 4


def test_fault_04_with_every_checkpoint_damaged_nothing_starts_anew_in_silence(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    (tmp_path / "run/step-00000003/MANIFEST.json").write_text("{}")
    with pytest.raises(UserError, match=r"no checkpoint is whole; remove .*run to start anew: .*step-00000003"):
        checkpoints.newest()


PLACES = ["checkpoint.file_written", "checkpoint.before_manifest", "checkpoint.before_rename"]


@pytest.mark.parametrize("place", PLACES)
def test_fault_03_a_full_disk_leaves_the_checkpoint_before_and_no_half_of_another(
    place: str, tmp_path: Path, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    monkeypatch.setattr(failpoints, "_plan", f"{place}:1:enospc")
    monkeypatch.setattr(failpoints, "_times_passed", 0)
    with pytest.raises(OSError, match="no space left"):
        checkpoints.save(state(4), best)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000003"]
    checkpoints.save(state(4), best)
    found = checkpoints.newest()
    assert found is not None and found[0].step == 4


def test_fault_02_leftovers_of_a_kill_are_dropped(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    (tmp_path / "run/.step-00000004.tmp").mkdir()
    (tmp_path / "run/.step-00000004.tmp/model.safetensors").write_bytes(b"half")
    assert checkpoints.newest() is not None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["step-00000003"]


def test_fault_04_a_manifest_of_another_step_is_not_trusted(tmp_path: Path, best: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(state(3), best)
    path = tmp_path / "run/step-00000003/MANIFEST.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 5}))
    with pytest.raises(UserError, match="does not fit"):
        checkpoints.newest()


def test_a_restored_optimizer_takes_the_same_steps() -> None:
    def steps(model: Any, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            optimizer.zero_grad()
            model(torch.tensor([[3, 4, number + 5]])).logits.square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.01
            optimizer.step()

    whole, split = tiny.tiny_llama(1), tiny.tiny_llama(1)
    settings = {"beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1}
    steps(whole, make_optimizer(whole, **settings), range(6))
    first = make_optimizer(split, **settings)
    steps(split, first, range(3))
    kept = {name: tensor.clone() for name, tensor in optimizer_tensors(first).items()}
    second = make_optimizer(split, **settings)
    restore_optimizer(second, kept)
    steps(split, second, range(3, 6))
    assert all(torch.equal(*pair) for pair in zip(whole.parameters(), split.parameters(), strict=True))

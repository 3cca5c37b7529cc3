from __future__ import annotations

from pathlib import Path

import pytest

from tasks import judgements
from tasks.judgements import Judgement, judgement_key, kept

FOUND = Judgement({"seed-10": [[1, 2], [3]], "greedy": [[4], []]}, 0.1 + 0.2)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  evaluate:\n    deps: [model, code.py]\n")
    (tmp_path / "code.py").write_text("a = 1\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_bytes(b"weights")
    return tmp_path


def never() -> Judgement:
    raise AssertionError("judged again")


def test_a_kept_judgement_comes_back_to_the_last_bit_and_is_not_made_again(project: Path) -> None:
    assert kept("key", lambda: FOUND) == FOUND
    assert kept("key", never) == FOUND
    with pytest.raises(AssertionError, match="judged again"):
        kept("other", never)


def test_a_kept_judgement_has_its_decodings_in_the_order_of_one_just_made(project: Path) -> None:
    made, found = kept("key", lambda: FOUND), kept("key", never)
    assert list(made.responses) == list(found.responses) == ["greedy", "seed-10"]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff"])
def test_a_damaged_one_is_made_again(project: Path, damage: bytes) -> None:
    kept("key", lambda: FOUND)
    (path,) = Path("state/evaluate").iterdir()
    path.write_bytes(damage)
    assert kept("key", lambda: FOUND) == FOUND
    assert kept("key", never) == FOUND


def test_a_changed_number_is_noticed(project: Path) -> None:
    kept("key", lambda: FOUND)
    (path,) = Path("state/evaluate").iterdir()
    path.write_text(path.read_text().replace("3", "5", 1))
    with pytest.raises(AssertionError, match="judged again"):
        kept("key", never)


def test_the_key_hangs_on_weights_code_settings_and_arithmetic(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(temperature: float = 1.0) -> str:
        return judgement_key([Path("model")], {"temperature": temperature})

    keys = [key(), key(0.5)]
    (project / "model/weights").write_bytes(b"others!")
    keys.append(key())
    (project / "code.py").write_text("a = 2\n")
    keys.append(key())
    monkeypatch.setattr(judgements.torch, "get_num_threads", lambda: 77)
    keys.append(key())
    monkeypatch.setattr(judgements, "kernel_arithmetic", lambda: "another compiler's")
    keys.append(key())
    assert len(set(keys)) == 6 and key() == keys[-1]

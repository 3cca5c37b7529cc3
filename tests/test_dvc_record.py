"""A dvc.lock that a kill cut costs no stage, wherever the cut is."""

from __future__ import annotations

from pathlib import Path

import pytest
import voluptuous
from dvc.exceptions import DvcException
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.utils.serialize import parse_yaml

from flows.dvc_process import is_up_to_date
from flows.dvc_record import is_record, put_aside_broken_record
from flows.reproduction import reproduce
from tests.scratch_repository import make_scratch_repository

_RECORD = """\
schema: '2.0'
stages:
  prepare:
    cmd: python -m tasks prepare
    deps:
    - path: data/raw
      hash: md5
      md5: 77222f96f0692d4a0b69be50a74b8e9.dir
      size: 117
      nfiles: 1
    outs:
    - path: run.sh
      hash: md5
      md5: 7706b73ece341a7218c14623ae6a939e
      size: 3859
      isexec: true
    params:
      params.yaml:
        data:
          files: {}
          root: data/räw
          text: "a\\n"
  second:
    cmd:
    - echo 1
    - echo 2
"""


def dvc_reads(text: bytes) -> bool:
    try:
        COMPILED_LOCKFILE_SCHEMA(parse_yaml(text.decode(), "dvc.lock"))
    except (DvcException, voluptuous.Invalid, UnicodeDecodeError):
        return False
    return True


def test_fault_07_a_record_is_kept_only_when_it_is_cut_behind_a_line_and_dvc_reads_it() -> None:
    whole = _RECORD.encode()
    cuts = [whole[:length] for length in range(len(whole) + 1)]
    kept = [text for text in cuts if is_record(text)]
    assert kept == [text for text in cuts if text.endswith(b"\n") and dvc_reads(text)]
    assert whole in kept and len(kept) == _RECORD.count("\n") - 8  # lines that open a mapping or list of what follows


def test_fault_07_a_cut_within_a_checksum_runs_no_stage_again(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path)
    reproduce(root, None, lambda line: None, {})
    whole = (root / "dvc.lock").read_bytes()
    checksum = whole.index(b"md5: ", whole.index(b"- path: distilled.txt"))
    (root / "dvc.lock").write_bytes(whole[: checksum + 20])
    assert "ran" not in {run.outcome for run in reproduce(root, None, lambda line: None, {}).values()}
    assert (root / "dvc.lock").read_bytes() == whole and is_up_to_date(root)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_fault_07_a_record_that_a_kill_cut_costs_no_stage(tmp_path: Path, share: float) -> None:
    root, lines = make_scratch_repository(tmp_path), list[str]()
    reproduce(root, None, lines.append, {})
    whole = (root / "dvc.lock").read_bytes()
    (root / "dvc.lock").write_bytes(whole[: int(share * len(whole))])
    runs = reproduce(root, None, lines.append, {})
    assert "ran" not in {run.outcome for run in runs.values()} and is_up_to_date(root)
    assert (root / "dvc.lock").read_bytes() == whole
    if share == 0:
        assert any("moved dvc.lock to state/damaged/" in line for line in lines)


def test_a_record_with_a_conflict_is_the_users_to_resolve(tmp_path: Path) -> None:
    text = "<<<<<<< HEAD\nschema: '2.0'\n=======\n>>>>>>> other\n"
    (tmp_path / "dvc.lock").write_text(text)
    assert put_aside_broken_record(tmp_path) is None and (tmp_path / "dvc.lock").read_text() == text

"""The order of the stages comes from dvc.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.graph import select_stages, stage_order
from minillm.errors import UserError

_REPOSITORY = Path(__file__).parents[1]


def _write_graph(root: Path, stages: str) -> Path:
    (root / "dvc.yaml").write_text(f"stages:\n{stages}")
    return root


def test_the_real_pipeline_goes_from_data_to_report() -> None:
    assert stage_order(_REPOSITORY) == ["prepare", "teacher", "warmup", "distill", "evaluate", "report"]


def test_a_stage_comes_after_those_it_reads_however_the_file_is_ordered(tmp_path: Path) -> None:
    root = _write_graph(
        tmp_path,
        """
  last: {cmd: x, deps: [middle.json, a/b/part.txt], outs: [z]}
  middle: {cmd: x, deps: [plot.tsv], metrics: [middle.json: {cache: false}]}
  first: {cmd: x, outs: [a/b], plots: [plot.tsv: {cache: false}]}
""",
    )
    assert stage_order(root) == ["first", "middle", "last"]


def test_names_that_only_begin_alike_do_not_depend_on_each_other(tmp_path: Path) -> None:
    root = _write_graph(
        tmp_path,
        """
  reader: {cmd: x, deps: [models/teacher2], outs: [models/other]}
  teacher: {cmd: x, deps: [models/other], outs: [models/teacher]}
""",
    )
    assert stage_order(root) == ["reader", "teacher"]


def test_a_selection_is_put_in_graph_order() -> None:
    assert select_stages(_REPOSITORY, ["report", "prepare", "distill"]) == ["prepare", "distill", "report"]


def test_no_selection_means_every_stage() -> None:
    assert select_stages(_REPOSITORY, []) == stage_order(_REPOSITORY)


def test_an_unknown_stage_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown stage 'distil'; dvc.yaml has: prepare, teacher, warmup, distill"):
        select_stages(_REPOSITORY, ["distil"])


def test_a_circle_is_named(tmp_path: Path) -> None:
    root = _write_graph(tmp_path, "  a: {cmd: x, deps: [b], outs: [a]}\n  b: {cmd: x, deps: [a], outs: [b]}\n")
    with pytest.raises(UserError, match=r"the stages a -> b -> a depend on each other|b -> a -> b"):
        stage_order(root)

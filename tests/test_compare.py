"""The comparison: its variants, arguments, numbers and figure, by hand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, get_args

import pytest
from ruamel.yaml import YAML

from flows import compare
from flows.compare_figure import comparison_figure
from flows.compare_results import Results, Row, markdown_page, table_rows, text_table
from flows.compare_variants import DEFAULT_VARIANTS, VARIANTS, Run, planned_runs, set_param_arguments, with_settings
from minillm.config import Params
from minillm.distill_config import DistillConfig
from minillm.params import load_params, parse_params, read_yaml
from tasks.runner import COST_DIR, recorded_cost
from tests.compare_example import ROOT, make_repository, stand_in, state, write_metrics, write_params
from tests.scratch_repository import set_param


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml, in which `dvc exp run` is replaced by something quick."""
    return make_repository(tmp_path, monkeypatch)


def record_of(rouge: float, reverse_kl: float, distinct: float, cpu_s: float | None) -> dict[str, Any]:
    return {
        "models": {
            "teacher": {"rougeL": 60.0, "distinct_4": 0.9},
            "warmup": {"rougeL": 40.0, "distinct_4": 0.7, "reverse_kl": 1.5},
            "student": {"rougeL": rouge, "distinct_4": distinct, "reverse_kl": reverse_kl},
        },
        "cost": None if cpu_s is None else {"cpu_s": cpu_s},
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_knob_of_a_variant_is_in_the_params_file_and_takes_the_value(variant: str) -> None:
    content = read_yaml(ROOT / "params.yaml")
    run = Run(variant, 18)
    params = parse_params(with_settings(content, run.settings), variant).model_dump()
    texts = [text.partition("=") for text in set_param_arguments(run.settings)[1::2]]
    assert [key for key, _, _ in texts] == list(run.settings)
    for key, _, text in texts:
        found = params
        for part in key.split("."):
            found = found[part]
        assert found == run.settings[key] == YAML(typ="safe").load(text)


def test_every_method_is_compared_and_every_ablation_differs_from_minillm() -> None:
    assert get_args(DistillConfig.model_fields["method"].annotation) == DEFAULT_VARIANTS
    settings = [tuple(values.items()) for values in VARIANTS.values()]
    assert len(set(settings)) == len(settings)


def test_a_knob_that_is_not_there_is_no_knob() -> None:
    with pytest.raises(KeyError, match=r"distill\.methd"):
        with_settings({"distill": {"method": "kd"}}, {"distill.methd": "kd"})


def test_runs_go_seed_by_seed_and_none_twice() -> None:
    names = [run.name for run in planned_runs(["kd", "sft", "kd"], ["18", "17", "18"])]
    assert names == ["compare-kd-18", "compare-sft-18", "compare-kd-17", "compare-sft-17"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--variants", "kd", "dk"],
            "error: unknown variant 'dk'; known: sft, kd, seqkd, reverse_kd, gkd, minillm, grpo, ",
        ),
        (["--seeds", "17", "x"], "error: seed 'x': an integer from 0 to 2147483647 is needed"),
        (["--seeds", "-1"], "error: seed '-1': an integer from 0 to 2147483647 is needed"),
        (["--seeds", "2147483648"], "error: seed '2147483648': an integer"),
    ],
)
def test_a_wrong_argument_ends_in_one_line_before_anything_runs(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert compare.main(arguments) == 2
    output = capsys.readouterr()
    [line] = output.err.splitlines()
    assert line.startswith(message) and output.out == ""


def test_a_variant_that_the_params_do_not_allow_is_refused_before_anything_runs(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_params(root, {"distill.method": "kd", "distill.rollout.top_k": 50})
    before = state(root)
    assert compare.main(["--variants", "kd", "minillm"]) == 2
    output = capsys.readouterr()
    [line] = output.err.splitlines()
    assert line.startswith("error: minillm: params.yaml: distill: ") and "top_k" in line and output.out == ""
    assert state(root) == before


def test_the_table_has_means_and_deviations_over_seeds() -> None:
    """By hand: 50, 52 have mean 51 and deviation sqrt(2); 1.0, 1.2: 1.1 and 0.1414; 0.5, 0.6: 0.55; one cost: 90."""
    records = {
        Run("minillm", 18): record_of(52.0, 1.2, 0.6, 90.0),
        Run("minillm", 17): record_of(50.0, 1.0, 0.5, None),
        Run("kd", 17): record_of(45.0, 1.3, 0.4, None),
    }
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text_table(table_rows(records)).splitlines()]
    assert rows[0] == ["variant", "Rouge-L", "reverse KL", "distinct-4", "training, CPU s", "seeds"]
    assert rows[2:] == [
        ["kd", "45.00", "1.300", "0.400", "-", "1"],
        ["minillm", "51.00 ± 1.41", "1.100 ± 0.141", "0.550", "90", "2"],
        ["warm-up", "40.00 ± 0.00", "1.500 ± 0.000", "0.700", "-", "2"],
        ["teacher", "60.00 ± 0.00", "-", "0.900", "-", "2"],
    ]
    page = markdown_page(table_rows(records), records, "compare.svg")
    assert "Not every variant has run under every seed" in page and "- `kd`: `distill.method: kd`" in page


def test_metrics_are_means_over_sets_and_a_cost_is_that_of_this_run_or_else_the_one_known(root: Path) -> None:
    run, cost_path = Run("kd", 17), root / COST_DIR / "distill.json"
    write_metrics(root, {"teacher": 60.0, "warmup": 40.0, "student": 50.0})
    Results(root).add(run, "digest", since_s=time.time())
    record = Results(root).record(run, "digest")
    assert record is not None and record["cost"] is None
    assert record["models"]["student"] == {"rougeL": 50.0, "reverse_kl": 1.0, "distinct_4": pytest.approx(0.6)}
    assert record["models"]["teacher"] == {"rougeL": 60.0, "distinct_4": pytest.approx(0.6)}
    cost_path.parent.mkdir(parents=True)
    cost_path.write_text(json.dumps({"wall_s": 3.0, "cpu_s": 5.0, "peak_rss_mib": 7.0}))
    for start_s, digest, expected in (
        (0.0, "digest", 5.0),
        (time.time() + 9, "digest", 5.0),
        (time.time() + 9, "x", None),
    ):
        Results(root).add(run, digest, start_s)
        record = Results(root).record(run, digest)
        assert record is not None and (record["cost"] and record["cost"]["cpu_s"]) == expected
    assert Results(root).record(run, "digest") is None


def test_a_later_call_shows_the_runs_of_earlier_ones_that_had_the_same_params(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["--variants", "kd", "--seeds", "17", "18"]) == 0
    assert compare.main(["--variants", "sft", "--seeds", "17"]) == 0
    rows = [line.split()[1] for line in (root / "reports/compare.md").read_text().splitlines() if line.startswith("|")]
    assert rows[2:] == ["sft", "kd", "warm-up", "teacher"]
    set_param(root, "distill.num_phases", 5)
    assert compare.main(["--variants", "gkd", "--seeds", "17"]) == 0
    assert "| kd " not in (root / "reports/compare.md").read_text()
    assert set(json.loads((root / "metrics/compare.json").read_text())) == {"kd", "sft", "gkd"}
    assert "`dvc exp apply compare-gkd-17`" in capsys.readouterr().out


def test_a_missing_score_and_params_edited_meanwhile_fail_a_run_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoiling(root: Path, name: str, settings: dict[str, Any]) -> Params:
        stand_in(root, name, settings)
        path = root / "metrics/evaluate.json"
        path.write_text(path.read_text().replace("distinct_4", "distinct_3"))
        if name.startswith("compare-kd"):
            write_params(root, {"distill.num_phases": 3})
        return load_params(root / "params.yaml")

    monkeypatch.setattr(compare, "run_experiment", spoiling)
    assert compare.main(["--variants", "sft", "kd", "--seeds", "17"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "failed: sft, seed 17: metrics/evaluate.json: teacher.a.sampled.distinct_4: missing",
        "failed: kd, seed 17: params.yaml was edited while it ran",
    ]
    assert not (root / "reports/compare.md").exists()


@pytest.mark.parametrize("num_seeds", [1, 3])
def test_the_figure_is_well_formed_and_goes_from_the_best_variant_down(num_seeds: int) -> None:
    def row(name: str, rouge: float, has_distance: bool = True) -> Row:
        seeds = [rouge + seed for seed in range(num_seeds)]
        return Row(name, seeds, [value / 40 for value in seeds] if has_distance else [], [0.5], [])

    rows = [row("kd", 45.0), row("gkd", 52.0), row("sft", 41.0), row("warm-up", 40.0), row("teacher", 60.0, False)]
    svg = ElementTree.fromstring(comparison_figure(rows))
    texts = [element.text or "" for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ("kd", "gkd", "sft")] == ["gkd", "kd", "sft"]
    assert sum(text.startswith("teacher ") for text in texts) == 1  # the teacher has no distance to itself
    assert sum(text.startswith("warm-up ") for text in texts) == 2
    assert any(text == ("52.00" if num_seeds == 1 else "53.00 ± 1.00") for text in texts)
    places = [float(x) for x in re.findall(r'(?:cx|x)="([\d.]+)"', comparison_figure(rows))]
    assert all(0 <= x <= 980 for x in places)


def test_the_cost_of_a_stage_counts_its_children_and_only_a_stage_that_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    busy = "import time\nwhile time.process_time() < 0.4: pass"
    with recorded_cost("distill"):
        subprocess.run([sys.executable, "-c", busy], check=True)
    cost = json.loads((tmp_path / "state/cost/distill.json").read_text())
    assert set(cost) == {"wall_s", "cpu_s", "peak_rss_mib"}
    assert 0.4 <= cost["cpu_s"] < 2 and cost["wall_s"] >= 0.4 and 5 < cost["peak_rss_mib"] < 16_000
    with pytest.raises(RuntimeError), recorded_cost("teacher"):
        raise RuntimeError
    assert not (tmp_path / "state/cost/teacher.json").exists()

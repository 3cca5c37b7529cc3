"""The report: its numbers, its escaping, its independence of everything but its inputs, and its errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minillm.config import ReportConfig
from minillm.errors import UserError
from tasks.report import run
from tasks.reporting.inputs import Score
from tasks.reporting.page import verdict
from tasks.result_table import result_table
from tasks.storage import write_json
from tasks.tracking import Tracker
from tests import report_example as inputs

PAGE = Path("reports/report.html")
ROOT = Path(__file__).parent.parent


class Recorder(Tracker):
    """A tracker that remembers."""

    def __init__(self) -> None:
        super().__init__(None, [])
        self.metrics: dict[str, float] = {}
        self.artifacts: list[Path] = []

    def summary(self, metrics: Mapping[str, float]) -> None:
        self.metrics |= metrics

    def artifact(self, path: Path) -> None:
        self.artifacts.append(path)


@pytest.fixture(autouse=True)
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    inputs.write_inputs()


def page(num_examples: int = 12) -> str:
    run(ReportConfig(num_examples=num_examples), Recorder())
    return PAGE.read_text(encoding="utf-8")


def rows_of(html: str) -> list[list[str]]:
    """Return the texts of all table rows of a page."""
    found = re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in found]
    return [[re.sub(r"<[^>]+>", "", cell).replace("&nbsp;", " ") for cell in row] for row in cells]


def test_the_headline_table_has_the_evaluated_values() -> None:
    rows = rows_of(page())
    assert ["Teacher", "134.5 M", "58.13 ± 0.40", "64.63", "-", "13.2", "96.4%", "87.1%"] in rows
    assert ["Warm-up", "99.1 M", "43.50 ± 0.55", "50.00", "0.613", "13.2", "96.4%", "87.1%"] in rows
    assert ["Student", "99.1 M", "47.25 ± 0.61", "53.75", "0.422", "13.2", "96.4%", "87.1%"] in rows


def test_training_and_data_tables_have_the_stages_values() -> None:
    rows = rows_of(page())
    assert ["teacher", "validation loss", "2.134", "0.871", "60", "perplexity on English 22.4"] in rows
    assert ["warmup", "validation loss", "5.200", "1.243", "120", "20 layers kept: 0 to 8, 10, 12, 20 to 28"] in rows
    assert ["distill", "validation reverse KL", "0.645", "0.401", "20", ""] in rows
    assert ["prompt_too_long", "41"] in rows and ["evaluation: test", "250"] in rows
    assert ["prompt", "47.3", "88", "128"] in rows and ["tokens", "131,072"] in rows


def test_report_json_is_the_mean_over_the_sets() -> None:
    content = inputs.evaluate()
    for model, rouge, kl in (("teacher", 50.0, None), ("warmup", 40.496, 0.5869), ("student", 41.749, 0.5781)):
        content[model]["unseen"] = inputs.score(rouge, 0.2, kl)
    write_json(Path("metrics/evaluate.json"), content)
    inputs.write_responses(inputs.responses()[:7], "unseen")
    tracker = Recorder()
    run(ReportConfig(num_examples=3), tracker)
    # (58.126 + 50) / 2, (43.504 + 40.496) / 2, (0.6131 + 0.5869) / 2, (47.251 + 41.749) / 2, (0.4219 + 0.5781) / 2
    assert json.loads(Path("metrics/report.json").read_text()) == {
        "teacher": {"rougeL": 54.063},
        "warmup": {"rougeL": 42.0, "reverse_kl": 0.6},
        "student": {"rougeL": 44.5, "reverse_kl": 0.5},
    }
    assert tracker.metrics == {
        "final/teacher_rougeL": 54.063,
        "final/warmup_rougeL": 42.0,
        "final/warmup_reverse_kl": 0.6,
        "final/student_rougeL": 44.5,
        "final/student_reverse_kl": 0.5,
    }
    assert tracker.artifacts == [PAGE]
    rows = rows_of(PAGE.read_text())
    assert ["Student", "99.1 M", "44.50 ± 0.41", "51.00", "0.500", "13.2", "96.4%", "87.1%"] in rows
    assert ["Student", "99.1 M", "41.75 ± 0.20", "48.25", "0.578", "13.2", "96.4%", "87.1%"] in rows


def test_without_a_greedy_pass_a_sample_is_shown() -> None:
    content = inputs.evaluate()
    rows = inputs.responses()[:1]
    for model, scores in content.items():
        del scores["test"]["greedy"]
        del rows[0]["responses"][model]["greedy"]
    write_json(Path("metrics/evaluate.json"), content)
    inputs.write_responses(rows)
    html = page()
    assert "Student, seed-10" in html and "1 sampled" in html
    assert ["Student", "99.1 M", "47.25 ± 0.61", "-", "0.422", "13.2", "96.4%", "87.1%"] in rows_of(html)


@pytest.mark.parametrize("key", ["instruction", "input", "category", "row_id", "references", "responses"])
def test_text_of_an_example_is_escaped(key: str) -> None:
    attack = "</div><script>alert(1)</script><img src=x onerror=alert(2)>"
    rows: list[dict[str, Any]] = inputs.responses()[:1]
    whole = {"references": [attack], "responses": {model: {"greedy": attack} for model in rows[0]["responses"]}}
    rows[0][key] = whole.get(key, attack)
    inputs.write_responses(rows)
    html = page()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not [tag for tag in Tags.of(html) if tag in ("script", "img")]


class Tags(HTMLParser):
    """Collects the names of tags and the attributes that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    @classmethod
    def of(cls, html: str) -> list[str]:
        parser = cls()
        parser.feed(html)
        return parser.names

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag not in ("meta", "line", "path", "circle"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "path", "circle"):
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = page()
    parser = Tags()
    parser.feed(html)
    assert parser.open == [] and parser.links == []
    assert "url(" not in html and "@import" not in html and "http://" not in html and "https://" not in html
    assert "default-src 'none'" in html


def test_bad_characters_leave_a_page_that_can_be_read() -> None:
    rows = inputs.responses()[:1]
    rows[0]["responses"]["student"]["greedy"] = "a\x00b\x1b[31m\ud800c\u202e"
    inputs.write_responses(rows)
    html = page()
    assert "a\ufffdb\ufffd[31m\ufffdc\ufffd" in html


def test_equal_inputs_give_equal_bytes() -> None:
    first = page().encode()
    PAGE.unlink()
    code = "from minillm.config import ReportConfig; from tasks.report import run; from tasks.tracking import Tracker; "
    call = "run(ReportConfig(num_examples=12), Tracker(None, []))"
    for seed in ("1", "2"):
        environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "TZ": f"Etc/GMT+{seed}"}
        subprocess.run([sys.executable, "-c", code + call], env=environment, check=True)
        assert PAGE.read_bytes() == first


def test_the_stage_needs_no_torch_and_no_mlflow() -> None:
    code = "import sys, tasks.report, tasks.result_table; assert not {'torch', 'mlflow', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT)}, check=True)


@pytest.mark.parametrize(("num_examples", "shown"), [(0, 0), (1, 1), (5, 5), (250, 250), (900, 250)])
def test_as_many_examples_as_asked_and_there_are(num_examples: int, shown: int) -> None:
    ids = re.findall(r"row (\d{5})", page(num_examples))
    assert len(set(ids)) == len(ids) == shown
    if shown == 5:
        assert ids == ["00000", "00050", "00100", "00150", "00200"]


def score(rouge: float, std: float, kl: float) -> Score:
    return Score(rouge, std, None, kl, 10.0, 1.0, 0.5)


@pytest.mark.parametrize(
    ("warmup", "student", "sentence"),
    [
        (
            score(40, 0.1, 0.5),
            score(42, 0.1, 0.4),
            "improved reverse KL to the teacher by 0.100 nats per token (0.500 to 0.400, \N{MINUS SIGN}20 %), "
            "and improved Rouge-L by 2.00 points (40.00 to 42.00, +5 %).",
        ),
        (
            score(40, 0.1, 0.4),
            score(39, 0.1, 0.5),
            "worsened reverse KL to the teacher by 0.100 nats per token (0.400 to 0.500, +25 %), "
            "and worsened Rouge-L by 1.00 points (40.00 to 39.00, \N{MINUS SIGN}2 %).",
        ),
        (
            score(40, 0.1, 0.4),
            score(40, 0.1, 0.4),
            "left reverse KL to the teacher unchanged at 0.400 nats per token, "
            "and left Rouge-L unchanged at 40.00 points.",
        ),
        (
            score(40, 0.8, 0.5),
            score(40.5, 0.3, 0.4),
            "improved reverse KL to the teacher by 0.100 nats per token (0.500 to 0.400, \N{MINUS SIGN}20 %), and "
            "improved Rouge-L by 0.50 points (40.00 to 40.50, +1 %); "
            "this difference is within the spread of the sampling seeds.",
        ),
    ],
)
def test_the_verdict_says_what_happened(warmup: Score, student: Score, sentence: str) -> None:
    text = verdict({"teacher": warmup, "warmup": warmup, "student": student})
    assert text == f"Compared with the warm-up, distillation {sentence}"


def test_the_result_table_is_plain_text() -> None:
    page()
    assert result_table(Path()).splitlines() == [
        "model         Rouge-L  reverse KL to the teacher",
        "------------------------------------------------",
        "teacher  58.13 ± 0.40                          -",
        "warm-up  43.50 ± 0.55                     0.6131",
        "student  47.25 ± 0.61                     0.4219",
    ]


def without(content: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return a copy of nested mappings that lacks one key."""
    copy = json.loads(json.dumps(content))
    place = copy
    for key in keys[:-1]:
        place = place[key]
    del place[keys[-1]]
    return copy


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("metrics/evaluate.json", None, "metrics/evaluate.json: no such file; the stage evaluate makes it"),
        ("metrics/distill.json", "{", "metrics/distill.json: not JSON"),
        ("metrics/teacher.json", "[]", "metrics/teacher.json: parameters: missing"),
        (
            "metrics/evaluate.json",
            json.dumps(without(inputs.evaluate(), "warmup", "test", "reverse_kl")),
            "metrics/evaluate.json: warmup.test.reverse_kl: missing",
        ),
        (
            "metrics/evaluate.json",
            json.dumps(inputs.evaluate() | {"teacher": {"test": inputs.score(float("nan"), 0, None)}}),
            "metrics/evaluate.json: teacher.test.sampled.rougeL: a finite number is needed (got nan)",
        ),
        (
            "metrics/evaluate.json",
            json.dumps(inputs.evaluate() | {"student": {}}),
            "metrics/evaluate.json: student: a mapping with at least one entry is needed (got {})",
        ),
        ("plots/warmup.tsv", None, "plots/warmup.tsv: no such file; the stage warmup makes it"),
        ("plots/warmup.tsv", "step\ttrain/loss\n1\tlow\n", "plots/warmup.tsv: not a table of numbers"),
        ("plots/warmup.tsv", "step\ttrain/loss\n1\tinf\n", "plots/warmup.tsv:2: a finite number is needed"),
        ("plots/warmup.tsv", "step\ttrain/loss\n\t1.0\n", "plots/warmup.tsv:2: step: missing"),
        ("outputs/responses/test.jsonl", None, "outputs/responses/test.jsonl: no such file"),
        ("outputs/responses/test.jsonl", "{}\n", "outputs/responses/test.jsonl:1: references: missing"),
        ("outputs/responses/test.jsonl", "\n{\n", "outputs/responses/test.jsonl:2: not JSON"),
    ],
)
def test_a_missing_or_malformed_input_is_named(path: str, text: str | None, fault: str) -> None:
    Path(path).unlink() if text is None else Path(path).write_text(text)
    with pytest.raises(UserError, match=re.escape(fault)):
        page()
    assert not PAGE.exists()


def test_empty_curves_and_no_corpus_leave_a_page() -> None:
    Path("plots/teacher.tsv").write_text("step\n")
    write_json(Path("metrics/prepare.json"), without(inputs.PREPARE, "corpus"))
    html = page()
    assert "No steps were recorded." in html and "Language-model corpus" not in html

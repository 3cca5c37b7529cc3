"""The command line `minillm` on a finished repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from tests.imports import ROOT
from tests.tiny_pipeline import command

COMMANDS = (
    "run",
    "stage",
    "compare",
    "status",
    "generate",
    "chat",
    "doctor",
    "promote",
    "compare-page",
    "up",
    "down",
    "notify",
)


def minillm(root: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.path.insert(0, '.'); from flows.cli import app; app()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=root, input=text, capture_output=True, text=True, timeout=300
    )


def test_help_names_every_command_and_loads_no_heavy_library() -> None:
    code = (
        "import sys\nfrom flows.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'mlflow', 'prefect', 'transformers', 'pandas', 'dvc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(f" {name} " in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0 and f"minillm {name}" in shown.output and "xample" in shown.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage", "distil"], "unknown stage 'distil'"),
        (["generate", "Hello", "--model", "nowhere"], "nowhere: no such model"),
        (["compare", "--variants", "kdd"], "unknown variant 'kdd'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 and words in done.output and "Traceback" not in done.output


def test_the_doctor_outside_a_repository_says_where_to_call_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor"])
    assert (done.exit_code, done.output) == (
        2,
        f"error: {tmp_path}: no dvc.yaml; run this in the root of the repository\n",
    )


@pytest.mark.pipeline
def test_models_answer_and_the_state_is_shown(finished_project: Path) -> None:
    said = [
        minillm(
            finished_project, "generate", "Name a colour.", "--max-tokens", "5", "--temperature", "1", "--seed", seed
        )
        for seed in ("1", "1", "2")
    ]
    assert [done.returncode for done in said] == [0, 0, 0], said[0].stderr
    assert said[0].stdout == said[1].stdout != said[2].stdout
    talk = minillm(finished_project, "chat", "--max-tokens", "3", "--model", "teacher", text="Hello\n\nAgain\n")
    assert talk.returncode == 0 and talk.stdout.count("\n") >= 2
    status = minillm(finished_project, "status")
    assert "up to date" in status.stdout and "reverse KL to the teacher" in status.stdout
    stage = minillm(finished_project, "stage", "report")
    assert stage.returncode == 0 and "didn't change, skipping" in stage.stdout
    assert command(finished_project, "git", "status", "--short").stdout == ""

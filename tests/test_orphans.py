"""A plain `dvc repro` that is killed leaves no stage behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from flows.processes import wait_until
from tests.imports import ROOT

STAGE = """
    import os, sys, time
    from pathlib import Path
    import tasks.__main__ as program
    def stage(name):
        Path("starting").write_text(str(os.getpid()))
        os.replace("starting", "started")
        time.sleep(600)
    program.run_stage = stage
    code = 1
    try:
        code = program.main(["report"])
    except SystemExit as error:
        code = error.code
    Path("ended").write_text(str(code))
"""
FAKE_DVC = "import subprocess, sys; subprocess.run(f\"/bin/sh -c '{sys.executable} stage.py; true'\", shell=True)"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_fault_09_a_stage_ends_when_the_dvc_above_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "stage.py").write_text(textwrap.dedent(STAGE))
    (tmp_path / "dvc").mkdir()
    (tmp_path / "dvc/__init__.py").touch()
    (tmp_path / "dvc/__main__.py").write_text(FAKE_DVC)
    with subprocess.Popen([sys.executable, "-m", "dvc"], cwd=tmp_path) as dvc:
        assert wait_until(lambda: (tmp_path / "started").exists(), 60.0)
        stage = psutil.Process(int((tmp_path / "started").read_text()))
        try:
            dvc.send_signal(number)
            assert wait_until(lambda: (tmp_path / "ended").exists(), 20.0)
            assert (tmp_path / "ended").read_text() == "143"
            assert wait_until(lambda: not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE, 20.0)
        finally:
            if stage.is_running():
                stage.kill()


def test_fault_09_a_stage_whose_dvc_died_while_it_was_loading_ends_at_once() -> None:
    code = "import tasks.__main__ as program; program.run_stage = print; program.main(['report'])"
    environment = {**os.environ, "DVC_STAGE": "report"}  # which DVC sets, and no DVC is above
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "")


def test_a_stage_started_by_hand_watches_nobody() -> None:
    code = "import threading; from tasks.orphans import end_with_dvc; end_with_dvc(); print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"

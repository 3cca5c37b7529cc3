"""A small repository with the real params.yaml, whose stages are quick fakes: for the tests of the flows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from flows.environment import child_environment

_REPOSITORY = Path(__file__).parents[1]
_PARAMS_PATH = _REPOSITORY / "params.yaml"
_STAGE = """
import json, os, shutil, sys, time
from pathlib import Path

name, inputs, output = sys.argv[1], sys.argv[2:-1], Path(sys.argv[-1])
start_s = time.time()
print("pipeline key:", os.environ.get("MINILLM_PIPELINE_KEY"))
print("interpreter directory:", Path(shutil.which("python")).parent)
print(f"{name}: 1/2 (50%) 4.00/s ETA 0:01", flush=True)
if Path("fail").exists() and Path("fail").read_text() == name:
    sys.exit("the fake stage was told to fail")
if Path("sleep").exists() and Path("sleep").read_text() == name:
    Path("starting").write_text(str(os.getpid()))
    os.replace("starting", "started")
    for _ in range(6000):
        if not Path("sleep").exists():
            break
        time.sleep(0.1)
text = name + "".join(Path(path).read_text() for path in inputs)
if Path("knobs-matter").exists() and name == "distill":
    text += Path("params.yaml").read_text().split("num_phases: ")[1].split()[0]
output.parent.mkdir(exist_ok=True)
output.write_text(text)
print(f"{name}: 2/2 (100%) 4.00/s ETA 0:00", flush=True)
if journal := os.environ.get("MINILLM_TEST_JOURNAL"):
    with open(journal, "a") as file:
        file.write(json.dumps([name, os.getcwd(), start_s, time.time()]) + chr(10))
if name == "report":
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/report.json").write_text(json.dumps({"student": {"rougeL": 25.5}, "num_rows": 3}))
"""
_GRAPH = """
stages:
  report:
    cmd: python stage.py report distilled.txt reports/report.html
    deps: [distilled.txt]
    params: [report]
    outs: [reports/report.html]
    metrics:
      - metrics/report.json: {cache: false}
  distill:
    cmd: python stage.py distill prepared/rows.txt distilled.txt
    deps: [prepared/rows.txt]
    params: [distill]
    outs: [distilled.txt]
  prepare:
    cmd: python stage.py prepare prepared/rows.txt
    params: [seed]
    outs: [prepared]
"""


def make_scratch_repository(root: Path) -> Path:
    """Return a new git and DVC repository whose dvc.yaml names the stages last to first."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "stage.py").write_text(_STAGE)
    (root / "dvc.yaml").write_text(_GRAPH)
    (root / "params.yaml").write_text(_PARAMS_PATH.read_text())
    run_in(root, "git", "init", "--quiet")
    run_in(root, sys.executable, "-m", "dvc", "init", "--quiet")
    for name in (".gitignore", ".dvcignore"):  # MLflow keeps a copy of dvc.yaml, which is no part of the graph
        (root / name).write_text((_REPOSITORY / name).read_text())
    return root


def commit_all(root: Path) -> Path:
    """Commit all files, and return the repository."""
    run_in(root, "git", "add", "--all")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    run_in(root, "git", *identity, "commit", "--quiet", "--message", "start")
    return root


def set_param(root: Path, key: str, value: float) -> None:
    """Set one value, named by its dotted key, in the repository's params.yaml."""
    path, yaml = root / "params.yaml", YAML()
    content = yaml.load(path)
    *sections, name = key.split(".")
    section = content
    for part in sections:
        section = section[part]
    assert name in section
    section[name] = value
    yaml.dump(content, path)


def run_in(root: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in the repository; it must succeed."""
    return subprocess.run(command, cwd=root, env=child_environment({}), check=True, capture_output=True, text=True)

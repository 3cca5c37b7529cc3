"""compose.yaml without an engine: its variables filled in, and its services as processes of this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows.processes import process_group, wait_until
from tests.imports import ROOT

TEXT = (ROOT / "compose.yaml").read_text()
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
_START_TIMEOUT_S = 180.0


def parsed(text: str) -> Any:
    """Return the content of a compose file, merge keys applied."""
    return YAML(typ="safe", pure=True).load(text)


def filled_in(text: str, values: Mapping[str, str]) -> str:
    """Return a text with its variables replaced; raises KeyError for one that is demanded and not there."""

    def value(match: re.Match[str]) -> str:
        name, operator, default = match.groups()
        if operator == "?" and not values.get(name):
            raise KeyError(f"{name}: {default}")
        return values.get(name) or default or ""

    return VARIABLE.sub(value, text)


def env_values(path: Path) -> dict[str, str]:
    """Return what an .env file says."""
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def image_environment() -> dict[str, str]:
    """Return the variables that the last stage of the Dockerfile sets, but PATH."""
    lines = DOCKERFILE.rpartition("\nFROM ")[2].replace("\\\n", " ").splitlines()
    pairs = " ".join(line.removeprefix("ENV ") for line in lines if line.startswith("ENV ")).split()
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs) if name != "PATH"}


@dataclass(frozen=True)
class Machine:
    """A place where services run as processes: what the file calls PLACE is a directory, NAME:PORT a free port here."""

    directory: Path
    ports: Mapping[str, int]  # in the container -> here
    values: Mapping[str, str]  # what .env and the shell would say

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service's process: the image's, the file's, and where this Python is."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
        modules = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        image = {variable: self._here(value) for variable, value in image_environment().items()}
        return {**image, **self._service(name)["environment"], "PATH": path, "PYTHONPATH": modules}

    @contextmanager
    def started(self, name: str) -> Iterator[subprocess.Popen[str]]:
        """Yield the process of a service, which may not be well yet; its lines are in DIRECTORY/NAME.log."""
        directory = self._directory(name)
        with (
            (self.directory / f"{name}.log").open("w") as log,
            process_group(self.command(name), directory, self.environment(name), log, subprocess.STDOUT) as process,
        ):
            yield process

    def wait(self, name: str, process: subprocess.Popen[str]) -> None:
        """Wait until the service's own health check says that it is well."""
        wait_until(lambda: process.poll() is not None or self.is_well(name), _START_TIMEOUT_S)
        assert process.poll() is None and self.is_well(name), (self.directory / f"{name}.log").read_text()[-3000:]

    def is_well(self, name: str) -> bool:
        """Return what the service's health check says."""
        kind, *command = self._service(name)["healthcheck"]["test"]
        assert kind == "CMD"
        return self.run(name, *command).returncode == 0

    def command(self, name: str) -> list[str]:
        """Return the command line of a service."""
        return list(self._service(name)["command"])

    def run(self, name: str, *command: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Run a command to its end in the environment of a service."""
        environment = self.environment(name)
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300)

    def _directory(self, name: str) -> Path:
        directory = Path(self._service(name)["working_dir"])
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def _service(self, name: str) -> Any:
        return parsed(filled_in(self._here(TEXT), self.values))["services"][name]

    def _here(self, text: str) -> str:
        """Return a text with the container's places, names and ports replaced by ours, before any secret is in it."""
        places = {place: str(self.directory) + place for place in ("/var/lib", "/tmp", "/home/minillm")}
        names = {f"http://{name}:": "http://127.0.0.1:" for name in ("prefect", "mlflow")}
        names["@postgres:"] = "@127.0.0.1:"
        table = {"/pipeline": str(ROOT), "0.0.0.0": "127.0.0.1", **places, **names}
        ports = {port: str(here) for port, here in self.ports.items()}
        found = "|".join([*map(re.escape, table), *(rf"\b{port}\b" for port in ports)])
        return re.sub(found, lambda match: {**table, **ports}[match[0]], text)

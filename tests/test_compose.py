"""compose.yaml: what a container may do, which secrets it is told, and where they come from."""

from __future__ import annotations

import json
import os
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flows.environment import NO_PICKLES, TELEMETRY_OFF
from flows.secrets import SECRET_NAMES, main
from flows.workers import worker
from minillm.params import read_yaml
from tests.compose_file import DOCKERFILE, TEXT, VARIABLE, env_values, filled_in, image_environment, parsed
from tests.imports import ROOT

SERVICES: dict[str, Any] = parsed(TEXT)["services"]
PLACEHOLDERS = dict.fromkeys(SECRET_NAMES, "x")
SECRET_VARIABLE = re.compile(r"PASSWORD|SECRET|AUTH_STRING|KEY|TOKEN")
# Which service is told which secret; everything else about it is that the service cannot read it.
TOLD = {
    "postgres": {"MINILLM_POSTGRES_PASSWORD"},
    "prefect": {"MINILLM_PREFECT_PASSWORD", "MINILLM_POSTGRES_PASSWORD"},
    "mlflow": {"MINILLM_MLFLOW_PASSWORD", "MINILLM_MLFLOW_SECRET_KEY", "MINILLM_POSTGRES_PASSWORD"},
    "setup": {"MINILLM_PREFECT_PASSWORD"},
    "worker": {"MINILLM_PREFECT_PASSWORD", "MINILLM_MLFLOW_PASSWORD"},
    "worker-gpu": {"MINILLM_PREFECT_PASSWORD", "MINILLM_MLFLOW_PASSWORD"},
}
each_service = pytest.mark.parametrize("name", SERVICES)
each_worker = pytest.mark.parametrize("name", ["worker", "worker-gpu"])
each_of_our_image = pytest.mark.parametrize("name", [name for name in SERVICES if name != "postgres"])


def test_the_file_follows_the_compose_specification() -> None:
    package = find_spec("check_jsonschema")
    if package is None or not package.submodule_search_locations:
        pytest.skip("check-jsonschema, which carries the schema, is not installed")
    import jsonschema

    schema = Path(package.submodule_search_locations[0]) / "builtin_schemas/vendor/compose-spec.json"
    jsonschema.validate(parsed(filled_in(TEXT, PLACEHOLDERS)), json.loads(schema.read_text()))


def test_it_has_the_six_services_and_the_gpu_one_is_asked_for_by_profile() -> None:
    assert {name: service.get("profiles") for name, service in SERVICES.items()} == {
        **dict.fromkeys(("postgres", "prefect", "mlflow", "setup", "worker")),
        "worker-gpu": ["gpu"],
    }


@each_service
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert (
        service["user"] == ("999:999" if name == "postgres" else "10001:10001")
        and service["read_only"] is True
        and service["init"] is True
    )
    assert service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "devices", "pid", "ipc", "network_mode", "env_file"} & set(service)
    assert "/tmp" in service["tmpfs"]
    assert service["restart"] == ("no" if name == "setup" else "unless-stopped")
    assert name == "setup" or service["healthcheck"]["test"][0] == "CMD"


@each_service
def test_ports_are_published_on_loopback_only(name: str) -> None:
    ports = {"prefect": ["127.0.0.1:4200:4200"], "mlflow": ["127.0.0.1:5000:5000"]}
    assert [filled_in(port, {}) for port in SERVICES[name].get("ports", [])] == ports.get(name, [])
    chosen = {"PREFECT_PORT": "14200", "MLFLOW_PORT": "15000"}
    moved = [filled_in(port, chosen) for port in SERVICES[name].get("ports", [])]
    assert moved == [port.replace("127.0.0.1:", "127.0.0.1:1") for port in ports.get(name, [])]


@each_worker
def test_a_worker_can_write_every_output_of_the_graph(name: str) -> None:
    keys = ("outs", "metrics", "plots")
    stages = read_yaml(ROOT / "dvc.yaml")["stages"].values()
    entries = [entry for stage in stages for key in keys for entry in stage.get(key, ())]
    outputs = [Path("/pipeline") / (entry if isinstance(entry, str) else next(iter(entry))) for entry in entries]
    volumes = [volume.partition(":")[2] for volume in SERVICES[name]["volumes"]]
    assert len(outputs) > 10
    assert [path for path in outputs if not any(path.is_relative_to(volume) for volume in volumes)] == []


@each_of_our_image
def test_it_writes_to_volumes_of_its_own_that_the_image_has_made_for_its_user(name: str) -> None:
    """Two workers on one workspace would take each other's DVC locks for those of the dead."""
    volumes = {other: dict(volume.split(":") for volume in SERVICES[other].get("volumes", ())) for other in SERVICES}
    named, places = volumes[name].keys(), volumes.pop(name).values()
    assert set(named) <= set(parsed(TEXT)["volumes"]) and not any(named & other.keys() for other in volumes.values())
    made = re.search(r"RUN mkdir -p ([^&]*)", DOCKERFILE.rpartition("\nFROM ")[2])
    assert made is not None
    made_places = [os.path.join("/pipeline", path) for path in made[1].replace("\\\n", " ").split()]
    assert all(any(path == place or path.startswith(f"{place}/") for path in made_places) for place in places)


@each_worker
def test_a_workers_repository_is_in_a_volume_and_takes_up_the_images_code(name: str) -> None:
    assert any(volume.endswith(":/pipeline/.git") for volume in SERVICES[name]["volumes"])
    assert SERVICES[name]["command"][:3] == ["python", "-m", "flows.container"]


@each_worker
def test_a_worker_asks_and_is_heard_of_as_often_as_one_of_make_up(name: str) -> None:
    ours = worker("cpu", {}, "http://127.0.0.1:9").environment
    for variable in ("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "PREFECT_WORKER_QUERY_SECONDS"):
        assert SERVICES[name]["environment"][variable] == ours[variable]


@each_worker
def test_pools_and_deployments_are_there_before_a_worker(name: str) -> None:
    assert SERVICES[name]["depends_on"] == {
        "setup": {"condition": "service_completed_successfully"},
        "mlflow": {"condition": "service_healthy"},
    }
    assert SERVICES["setup"]["depends_on"] == {"prefect": {"condition": "service_healthy"}}


def test_the_images_user_has_a_name_which_dvc_asks_for() -> None:
    assert re.search(r"^RUN useradd --uid 10001 .* minillm$", DOCKERFILE, flags=re.MULTILINE)


@each_of_our_image
def test_telemetry_and_pickles_are_off(name: str) -> None:
    environment = {**image_environment(), **SERVICES[name]["environment"]}
    wanted = {**TELEMETRY_OFF, **NO_PICKLES}
    kind = "MLFLOW" if name == "prefect" else "PREFECT_SERVER"  # settings of the other server do not matter here
    assert {key: environment.get(key) for key in wanted if not key.startswith(kind)} == {
        key: value for key, value in wanted.items() if not key.startswith(kind)
    }


@each_service
def test_every_secret_comes_from_the_env_file_and_reaches_who_needs_it_only(name: str) -> None:
    environment: dict[str, str] = SERVICES[name]["environment"]
    secret = [value for key, value in environment.items() if SECRET_VARIABLE.search(key)]
    assert secret and all(re.fullmatch(r"(admin:)?\$\{MINILLM_\w+:\?run make secrets\}", value) for value in secret)
    used = {match[1] for match in VARIABLE.finditer(json.dumps(SERVICES[name])) if match[2] == "?"}
    assert used == TOLD[name]
    assert not any(
        "MINILLM_" in word for word in SERVICES[name].get("command", ())
    )  # every user can read command lines


def test_the_database_is_reached_by_its_two_users_only_and_has_both_databases() -> None:
    assert "ports" not in SERVICES["postgres"] and "build" not in SERVICES["postgres"]
    assert parsed(TEXT)["configs"]["second-database"]["content"] == "CREATE DATABASE mlflow;"
    for name in ("prefect", "mlflow"):
        assert SERVICES[name]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
        [address] = [value for value in SERVICES[name]["environment"].values() if "@postgres:5432/" in value]
        assert re.fullmatch(
            rf"postgresql\+\w+://minillm:\$\{{MINILLM_\w+:\?run make secrets\}}@postgres:5432/{name}", address
        )


def test_every_variable_is_demanded_or_has_a_default_that_the_docs_name() -> None:
    without_comments = re.sub(r"(^|\s)#.*", "", TEXT)
    assert without_comments.count("$") == len(list(VARIABLE.finditer(without_comments)))
    used = {(match[1], match[2], match[3]) for match in VARIABLE.finditer(without_comments)}
    usage = (ROOT / "docs/usage.md").read_text()
    assert {name for name, operator, _ in used if operator == "?"} == set(SECRET_NAMES)
    for name, operator, default in used - {(name, "?", "run make secrets") for name in SECRET_NAMES}:
        assert operator == "-" and f"`{name}` ({default})" in usage, name


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_nothing_starts_without_secrets(name: str) -> None:
    with pytest.raises(KeyError, match=f"{name}: run make secrets"):
        filled_in(TEXT, {**PLACEHOLDERS, name: ""})


def test_secrets_are_random_private_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    path, first = tmp_path / ".env", env_values(tmp_path / ".env")
    assert path.stat().st_mode & 0o777 == 0o600 and set(first) == set(SECRET_NAMES)
    assert main([]) == 2 and env_values(path) == first
    path.write_text(f"PREFECT_PORT=4201\n{path.read_text()}")
    assert main(["--renew"]) == 0
    renewed = env_values(path)
    assert renewed.pop("PREFECT_PORT") == "4201" and path.stat().st_mode & 0o777 == 0o600
    values = {*first.values(), *renewed.values()}
    assert len(values) == 2 * len(SECRET_NAMES) and all(len(value) >= 43 for value in values)
    shown = capsys.readouterr()
    assert not any(value in shown.out + shown.err for value in values)
    assert [entry.name for entry in tmp_path.iterdir()] == [".env"]


def test_git_and_the_image_leave_the_env_file_out() -> None:
    ignored = ["git", "check-ignore", "--quiet", "--no-index", ".env"]
    assert subprocess.run(ignored, cwd=ROOT).returncode == 0
    assert ".env" in (ROOT / ".dockerignore").read_text().splitlines()

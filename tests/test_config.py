from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import YAMLError as DvcYamlError
from dvc.utils.serialize import parse_yaml

from minillm.errors import UserError
from minillm.params import ConfigError, load_params, parse_params, read_yaml
from tasks.preset import apply_preset
from tests.imports import ROOT

CONTENT = read_yaml(ROOT / "params.yaml")

GKD = CONTENT["distill"]["gkd"]
FEW_PHASES = {"method": "gkd", "num_phases": 4}
OBJECTIVE = CONTENT["distill"]["objective"] | {"language_model_weight": 0.0}
SEQKD = CONTENT["distill"]["seqkd"]


def refused(change: Callable[[Any], Any]) -> str:
    content = copy.deepcopy(CONTENT)
    change(content)
    with pytest.raises(ConfigError) as caught:
        parse_params(content, "params.yaml")
    return str(caught.value)


def put(path: str, value: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        *parents, key = path.split(".")
        for parent in parents:
            content = content[parent]
        content[key] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("distill.rollout.teacher_mix_alpa", 0.2, "did you mean 'teacher_mix_alpha'?"),
        ("sed", 1, "did you mean 'seed'?"),
        ("distill.rollout.teacher_mix_alpha", 1.0, "less than 1 (got 1.0)"),
        ("distill.rollout.teacher_mix_alpha", math.nan, "finite number (got nan)"),
        ("distill.optimizer.learning_rate", math.inf, "finite number (got inf)"),
        ("distill.optimizer.learning_rate", "1e-5", "valid number (got '1e-5')"),
        ("distill.optimizer.learning_rate", True, "valid number (got True)"),
        ("seed", True, "valid integer (got True)"),
        ("seed", -1, "greater than or equal to 0 (got -1)"),
        ("seed", 1.0, "valid integer (got 1.0)"),
        ("distill.objective.importance", "per-token", "'per_token', 'per_decision' or 'none' (got 'per-token')"),
        ("distill.objective.length_normalize", "yes", "valid boolean (got 'yes')"),
        ("distill.method", "dpo", "'kd', 'seqkd', 'reverse_kd', 'gkd', 'minillm' or 'grpo' (got 'dpo')"),
        ("distill.kd.data_weight", 1.5, "less than or equal to 1 (got 1.5)"),
        ("distill.kd.clip_high", 0.3, "unknown key; known keys: data_weight"),
        ("distill.gkd.on_policy_share", -0.1, "greater than or equal to 0 (got -0.1)"),
        ("distill.gkd.divergence", {"name": "jsd", "beta": 1.1}, "jsd.beta"),
        (
            "distill.gkd.divergence",
            {"name": "jsd", "beta": 0.5, "skew": 0.1},
            "jsd.skew: unknown key; known keys: name, beta",
        ),
        (
            "distill.gkd.divergence",
            {"name": "forward_kl", "beta": 0.5},
            "forward_kl.beta: unknown key; known keys: name",
        ),
        ("distill.gkd.divergence", {"name": "skewed_reverse_kl", "skew": 1.0}, "less than 1 (got 1.0)"),
        ("distill.gkd.divergence", {"name": "alpha_beta", "alpha": -0.1, "beta": 0.7}, "alpha_beta.alpha"),
        ("distill.gkd.divergence", {"name": "alpha_beta", "alpha": 0.0, "beta": 0.0}, "alpha and beta are both 0"),
        ("distill.gkd.divergence", {"name": "hellinger"}, "one of forward_kl, reverse_kl, total_variation, skewed"),
        ("distill.gkd.divergence", {"beta": 0.5}, "a mapping with a name is needed, one of forward_kl"),
        ("distill.gkd.divergence", ["jsd"], "a mapping with a name is needed, one of forward_kl"),
        ("distill.gkd.divergence", None, "a mapping with a name is needed, one of forward_kl"),
        ("distill.gkd.divergence", {"name": "alpha_beta", "alpha": 1e-6, "beta": 0.7}, "allowed: 0, or at least 0.001"),
        ("distill.grpo.group_size", 1, "greater than or equal to 2 (got 1)"),
        ("distill.objective.task_reward", "bleu", "'none' or 'rougeL' (got 'bleu')"),
        ("distill.rollout.top_p", 0.0, "greater than 0 (got 0.0)"),
        ("distill.seqkd.endpoint", "ftp://x/v1", "allowed: http:// or https://, a host, a port, a path"),
        ("distill.seqkd.endpoint", "http://me:secret@x/v1", "no user or password in the address"),
        ("distill.seqkd.endpoint", " http://x/v1", "allowed: http:// or https://, a host"),
        ("distill.seqkd.endpoint", "http://x:99999/v1", "allowed: http:// or https://, a host"),
        ("distill.seqkd.endpoint", "http://x/v1?a=1", "allowed: http:// or https://, a host"),
        ("distill.seqkd.key_variable", "a b", "distill.seqkd.key_variable"),
        ("evaluate.sets", ["../x"], "evaluate.sets.0: allowed: letters, digits"),
        ("evaluate.sets", ["mine"], "evaluate.sets: no set 'mine'; by data.evaluation_files: test"),
        ("evaluate.sampling_seeds", [], "at least 1 item"),
        ("evaluate.sampling_seeds", [10, 10], "each seed may stand there once"),
        ("tracking.experiment", "a b", "tracking.experiment: allowed: letters"),
        ("tracking.registered_model", "a/b", "tracking.registered_model: allowed: letters"),
        ("tracking.champion_metric", "rougeL", "tracking.champion_metric: Input should be 'final/student_rougeL' or"),
        ("data.evaluation_files", {"../x": "a.jsonl"}, "data.evaluation_files"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_key(path: str, value: Any, expected: str) -> None:
    message = refused(put(path, value))
    assert "\n" not in message
    assert message.startswith(f"params.yaml: {path}") or path in message
    assert expected in message


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("distill.optimizer.minibatch_size", 48, "optimizer.minibatch_size = 48 does not divide"),
        ("distill.minillm.group_size", 7, "minillm.group_size = 7 does not divide rollout.rollouts_per_phase"),
        ("distill.minillm.baseline", "group_mean", "minillm.group_size is 1; baseline 'group_mean' needs at least 2"),
        ("distill.objective.task_reward_weight", 0.5, "task_reward_weight is unused: task_reward is 'none'"),
        ("distill.rollout.mask_groups", 65, "rollout.mask_groups = 65 is more than the rows of a batch"),
        ("distill.rollout.top_k", 5, "rollout.top_k = 5, top_p = 1.0: method 'minillm' needs 0"),
        ("distill.objective.max_refills", 2, "max_refills = 2 is unused: group_size is 1"),
        ("teacher_model.source", "path", "location is empty"),
        ("data.source", "path", "train_files is empty"),
        ("data.source", "hub", "hub_name is empty"),
        ("data.corpus_source", "none", "needs a corpus"),
    ],
)
def test_values_that_do_not_fit_together_are_refused(path: str, value: Any, expected: str) -> None:
    assert expected in refused(put(path, value))


def test_a_password_in_an_address_is_not_repeated() -> None:
    assert "s3cret" not in refused(put("distill.seqkd.endpoint", "http://me:s3cret@h/v1"))


@pytest.mark.parametrize("method", ["sft", "kd", "seqkd", "reverse_kd", "gkd", "minillm", "grpo"])
def test_every_method_runs_from_the_delivered_params(method: str) -> None:
    content = copy.deepcopy(CONTENT)
    put("distill.method", method)(content)
    assert parse_params(content, "params.yaml").distill.method == method


@pytest.mark.parametrize(
    ("method", "path", "value", "expected"),
    [
        ("grpo", "distill.objective.importance", "per_decision", "method 'grpo' knows per_token and none"),
        ("grpo", "distill.grpo.group_size", 7, "grpo.group_size = 7 does not divide"),
        ("grpo", "distill.rollout.top_p", 0.9, "method 'grpo' needs 0 and 1.0"),
        ("seqkd", "distill.seqkd.source", "file", "data.answers_file is empty"),
        ("seqkd", "distill.seqkd.source", "endpoint", "seqkd.endpoint or endpoint_model is empty"),
        ("seqkd", "distill.seqkd", SEQKD | {"source": "file", "greedy": True}, "seqkd.greedy is unused"),
        ("seqkd", "distill.seqkd.endpoint_model", "m", "seqkd.endpoint_model is unused: source is 'teacher'"),
        ("seqkd", "distill.seqkd.key_variable", "KEY", "seqkd.key_variable is unused: source is 'teacher'"),
        ("gkd", "distill.gkd", GKD | {"on_policy_share": 0.0, "replay_capacity": 9}, "gkd.replay_capacity is unused"),
        ("seqkd", "data.answers_file", "a.jsonl", "data.answers_file is unused: distill.seqkd.source is 'teacher'"),
        ("gkd", "distill.gkd.share_step", 0.1, "gkd.share_step is unused: on_policy_share is 1"),
        (
            "gkd",
            "distill",
            CONTENT["distill"] | {"method": "gkd", "num_phases": 1, "gkd": GKD | {"replay_capacity": 9}},
            "gkd.replay_capacity is unused: num_phases is 1",
        ),
        (
            "gkd",
            "distill",
            CONTENT["distill"]
            | {"method": "gkd", "num_phases": 4, "gkd": GKD | {"on_policy_share": 0.5, "share_step": 0.1}},
            "gkd.share_step is unused: validation.every_phases = 4",
        ),
        ("grpo", "distill.objective.task_reward", "rougeL", "task_reward 'rougeL' is unused: task_reward_weight is 0"),
        ("grpo", "distill.objective.task_reward_weight", 1.0, "task_reward_weight is unused: task_reward is 'none'"),
        ("minillm", "distill.objective", OBJECTIVE | {"language_model_teacher_share": 0.5}, "teacher_share is unused"),
    ],
)
def test_knobs_that_do_not_fit_the_method_are_refused(method: str, path: str, value: Any, expected: str) -> None:
    def change(content: Any) -> None:
        put("distill.method", method)(content)
        put(path, value)(content)

    assert expected in refused(change)


@pytest.mark.parametrize(
    ("method", "path", "value"),
    [
        ("gkd", "distill.rollout.top_p", 0.9),
        ("kd", "data.corpus_source", "none"),
        ("kd", "distill.minillm.group_size", 7),
        ("kd", "distill.minillm.baseline", "group_mean"),
        ("kd", "distill.seqkd.source", "endpoint"),
        ("kd", "distill.objective.task_reward_weight", 0.5),
    ],
)
def test_what_a_method_does_not_read_cannot_refuse_it(method: str, path: str, value: Any) -> None:
    content = copy.deepcopy(CONTENT)
    put("distill.method", method)(content)
    put(path, value)(content)
    assert parse_params(content, "params.yaml").distill.method == method


def test_a_missing_knob_is_named() -> None:
    assert refused(lambda content: content["report"].pop("num_examples")).startswith(
        "params.yaml: report.num_examples: missing"
    )


def test_each_fault_has_its_own_line() -> None:
    def change(content: Any) -> None:
        content["seed"] = "x"
        content["evaluate"]["batch_size"] = 0

    assert len(refused(change).splitlines()) == 2


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    return path


def test_a_duplicate_key_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"params\.yaml:2: .*seed"):
        load_params(write(tmp_path, "seed: 1\nseed: 2\n"))


def test_broken_yaml_is_one_line_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^params\.yaml:\d+: [^\n]+$"):
        load_params(write(tmp_path, "seed: [1\n"))


def test_what_dvc_cannot_read_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path, "data:\n  train_files: [a:b.jsonl]\n")
    with pytest.raises(DvcYamlError):
        parse_yaml(path.read_text(), str(path))
    with pytest.raises(ConfigError, match=r"^params\.yaml:2: found unexpected ':'; .* needs quotes"):
        read_yaml(path)
    quoted = write(tmp_path, 'data:\n  train_files: ["a:b.jsonl"]\n')
    assert read_yaml(quoted) == parse_yaml(quoted.read_text(), str(quoted)) == {"data": {"train_files": ["a:b.jsonl"]}}


@pytest.mark.parametrize("text", ["", "- 1\n", "text\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="a mapping of sections is needed"):
        load_params(write(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    ["seed: 2024-13-45\n", "seed: !!int abc\n", "seed: \x07\n", "seed: " + "[" * 3000, 'seed: "\\UFFFFFFFF"\n'],
    ids=["date", "tag", "control character", "nested", "escape"],
)
def test_yaml_that_cannot_be_read_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^params\.yaml[^\n]+$"):
        load_params(write(tmp_path, text))


def test_a_directory_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read as YAML: .*directory"):
        load_params(tmp_path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent\\.yaml: no such file"):
        load_params(tmp_path / "absent.yaml")


def test_scientific_notation_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert read_yaml(write(tmp_path, "a: 1e-5\nb: 0x10\nc: yes\n")) == {"a": 1e-05, "b": 16, "c": "yes"}


def scratch_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    return tmp_path


def test_a_preset_changes_its_knobs_and_keeps_every_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = scratch_project(tmp_path, monkeypatch)
    (root / "configs/warm.yaml").write_text("distill:\n  rollout: {temperature: 1.5}\nseed: 3\n")
    assert "distill.rollout.temperature: 1.0 -> 1.5" in apply_preset("warm")
    changed = load_params(root / "params.yaml")
    assert (changed.distill.rollout.temperature, changed.seed) == (1.5, 3)
    before, after = (ROOT / "params.yaml").read_text(), (root / "params.yaml").read_text()
    assert [line.split("#")[1:] for line in before.splitlines()] == [line.split("#")[1:] for line in after.splitlines()]


def test_a_preset_replaces_a_section_with_variants_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = scratch_project(tmp_path, monkeypatch)
    (root / "configs/skew.yaml").write_text("distill: {gkd: {divergence: {name: skewed_forward_kl, skew: 0.1}}}\n")
    apply_preset("skew")
    divergence = load_params(root / "params.yaml").distill.gkd.divergence
    assert divergence.model_dump() == {"name": "skewed_forward_kl", "skew": 0.1}


def test_a_preset_replaces_a_knob_that_is_a_mapping_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = scratch_project(tmp_path, monkeypatch)
    (root / "configs/mine.yaml").write_text("data: {evaluation_files: {mine: mine.jsonl, more: more.jsonl}}\n")
    (root / "configs/other.yaml").write_text("data: {evaluation_files: {other: other.jsonl}}\n")
    apply_preset("mine")
    apply_preset("other")
    assert load_params(root / "params.yaml").data.evaluation_files == {"other": "other.jsonl"}


def test_a_preset_with_an_unknown_knob_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = scratch_project(tmp_path, monkeypatch)
    (root / "configs/bad.yaml").write_text("distill: {phases: 3}\n")
    with pytest.raises(ConfigError, match=r"distill\.phases: unknown key"):
        apply_preset("bad")
    assert (root / "params.yaml").read_text() == (ROOT / "params.yaml").read_text()


@pytest.mark.parametrize("text", ["", "- 1\n", "1: 2\n", "a: [1\n"])
def test_a_preset_that_is_no_mapping_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    root = scratch_project(tmp_path, monkeypatch)
    (root / "configs/bad.yaml").write_text(text)
    with pytest.raises(UserError, match=r"bad\.yaml[^\n]*$"):
        apply_preset("bad")


def test_a_preset_onto_a_broken_params_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = scratch_project(tmp_path, monkeypatch)
    (root / "configs/warm.yaml").write_text("seed: 3\n")
    (root / "params.yaml").write_text("seed: [1\n")
    with pytest.raises(ConfigError, match=r"^params\.yaml:\d+: [^\n]+$"):
        apply_preset("warm")


def test_the_documented_way_to_set_a_divergence_works(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    overrides = re.findall(r"-S '([^']+)'", (ROOT / "docs/methods.md").read_text())
    assert len(overrides) == 2
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    apply_overrides(tmp_path / "params.yaml", overrides)
    divergence = load_params(tmp_path / "params.yaml").distill.gkd.divergence
    assert divergence.model_dump() == {"name": "alpha_beta", "alpha": 0.2, "beta": 0.7}

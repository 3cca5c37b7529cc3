"""Students in MLflow's registry: a version each, the newest @candidate, the best @champion with its weights.

A version is found by its student's md5 before it is made, so that a record that is delivered twice counts once. Who
moves @champion then looks again at all who came in meanwhile: of several at once none can undo a better one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minillm.errors import UserError
from tasks.loadable_model import write_link, write_loadable
from tasks.promotion import Decision, Version, judged
from tasks.storage import STATE_DIR
from tasks.student_record import student_files

CHAMPION, CANDIDATE = "champion", "candidate"
_MD5, _MODEL, _LOADABLE, _EXTERNAL = "dvc.md5", "logged_model", "loadable", "mlflow.model.isExternal"
_IS, _IS_NOT = "is @champion: ", "is not @champion: "
_NUM_ROUNDS = 20  # in which others move the alias too


class Registry:
    """The versions of one registered model, compared by one metric. Its methods raise what MLflow raises."""

    def __init__(self, client: Any, name: str, metric: str) -> None:
        self._client, self._name, self._metric = client, name, metric

    def versions(self) -> list[Version]:
        """Return all versions, the oldest first."""
        found = self._client.search_model_versions(f"name = '{self._name}'")
        return sorted((self._version(entry) for entry in found), key=lambda version: version.number)

    def number(self, alias: str) -> int | None:
        """Return the version that has an alias, None when none has."""
        found = self._client.search_registered_models(f"name = '{self._name}'")
        number = found[0].aliases.get(alias) if found else None
        return None if number is None else int(number)

    def decision(self, md5: str) -> Decision | None:
        """Return what was decided upon a student, None when nothing was yet."""
        version = next((version for version in self.versions() if version.md5 == md5), None)
        if version is None or version.decision is None:
            return None
        was_promoted = version.decision.startswith(_IS)
        reason = version.decision.removeprefix(_IS if was_promoted else _IS_NOT)
        return Decision(self._name, version.number, was_promoted, reason)

    def register(self, ids: Mapping[str, str], student: Mapping[str, Any]) -> None:
        """Have a version of a student with how it was judged, move the aliases, and note what was decided."""
        if not self._client.search_registered_models(f"name = '{self._name}'"):
            self._client.create_registered_model(self._name)
        number = self._known(student["md5"]) or self._made(ids, student)
        self._tag(number, _judgement(student))
        self._move_candidate()
        mine = self._at(number)
        if mine.decision is None:
            words = self._settle(number)
            self._tag(number, {"decision": words, self._decision_tag(mine.evaluation): words})  # the last word ends it

    def promote(self, number: int) -> None:
        """Make a version the champion by hand; raises UserError when there is none such, or its files are lost."""
        if number not in [version.number for version in self.versions()]:
            raise UserError(f"{self._name} has no version {number}")
        if not self._at(number).is_loadable and not self._copy_weights(number):
            raise UserError(f"version {number} of {self._name}: {_lost(number)}")
        self._set_alias(CHAMPION, number)
        self._tag(number, {"promoted_by_hand": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})

    def _settle(self, number: int) -> str:
        """Move @champion by the rule until it stays, and return in words what was decided upon a version.

        Others that are undecided when this begins, or come in later, count too: their alias may have been overwritten.
        """
        settled = {version.number for version in self.versions() if version.decision is not None}
        won = ""
        for _ in range(_NUM_ROUNDS):
            versions = {version.number: version for version in self.versions()}
            champion = versions.get(self.number(CHAMPION) or 0)
            is_better, reason = judged(self._metric, versions[number], champion)
            if is_better and not versions[number].is_loadable:
                if not self._copy_weights(number):
                    return _IS_NOT + _lost(number)
                continue
            contenders = [one for one in versions.values() if one.number not in settled and one.is_loadable]
            best = reduce(self._better, contenders, champion)
            if best == champion:
                break
            assert best is not None
            self._set_alias(CHAMPION, best.number)
            won = reason if best.number == number else won
        if champion and champion.number == number:
            return _IS + (won or f"{self._metric} {champion.value:.4f}")
        return _IS_NOT + reason

    def _better(self, champion: Version | None, student: Version) -> Version | None:
        return student if judged(self._metric, student, champion)[0] else champion

    def _known(self, md5: str) -> int | None:
        return next((version.number for version in self.versions() if version.md5 == md5), None)

    def _made(self, ids: Mapping[str, str], student: Mapping[str, Any]) -> int:
        """Return a new version, or that of another registrar who made one of the same student at the same time."""
        model = self._link(ids, student)
        tags = {**student["tags"], _MD5: student["md5"], _MODEL: model.model_id, **_judgement(student)}
        made = self._client.create_model_version(
            self._name,
            source=model.artifact_location,
            run_id=ids["parent"],
            model_id=model.model_id,
            tags=tags,
            description=_description(student),
        )
        first = self._known(student["md5"])
        if first is not None and first < int(made.version):
            self._client.delete_model_version(self._name, made.version)
            return first
        return int(made.version)

    def _link(self, ids: Mapping[str, str], student: Mapping[str, Any]) -> Any:
        """Return a logged model without files that says where DVC has them; found by its name and run, or made."""
        condition = f"name = '{self._name}' AND source_run_id = '{ids['parent']}'"
        there = self._client.search_logged_models([ids["experiment"]], condition)
        found = next((model for model in there if model.tags.get(_MD5) == student["md5"]), None)
        tags = {**student["tags"], _MD5: student["md5"], _EXTERNAL: "true"}
        model = found or self._client.create_logged_model(
            ids["experiment"], name=self._name, source_run_id=ids["parent"], model_type="causal-lm", tags=tags
        )
        with TemporaryDirectory(dir=STATE_DIR) as directory:
            write_link(Path(directory), model.model_id, ids["parent"])
            self._client.log_model_artifacts(model.model_id, directory)
        self._client.finalize_logged_model(model.model_id, "READY")
        self._measure(ids["parent"], model.model_id, student)
        return model

    def _measure(self, run_id: str, model_id: str, student: Mapping[str, Any]) -> None:
        """Give a logged model the final metrics, as the very points that its run has where it has them."""
        from mlflow.entities import Metric

        points = []
        for name, value in student["finals"].items():
            same = [point for point in self._client.get_metric_history(run_id, name) if point.value == value]
            time_ms, step = (same[-1].timestamp, same[-1].step) if same else (student["time_ms"], 0)
            points.append(Metric(name, value, time_ms, step, model_id=model_id))
        self._client.log_batch(run_id, metrics=points)

    def _copy_weights(self, number: int) -> bool:
        """Make a version loadable, unless its student's files are lost; return whether it is."""
        entry = self._client.get_model_version(self._name, str(number))
        files, model_id = student_files(entry.tags[_MD5]), entry.tags[_MODEL]
        if files is None:
            return False
        with TemporaryDirectory(dir=STATE_DIR) as directory:
            write_loadable(Path(directory), files, model_id, entry.run_id)
            self._client.log_model_artifacts(model_id, directory)
        self._client.set_logged_model_tags(model_id, {_EXTERNAL: "false"})
        self._tag(number, {_LOADABLE: "true"})
        return True

    def _move_candidate(self) -> None:
        newest = None
        for _ in range(_NUM_ROUNDS):
            before, newest = newest, self.versions()[-1].number
            if newest == before:
                break
            self._set_alias(CANDIDATE, newest)

    def _set_alias(self, alias: str, number: int) -> None:
        self._client.set_registered_model_alias(self._name, alias, str(number))

    def _tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Set the tags of a version that are not there yet with that value."""
        known = self._client.get_model_version(self._name, str(number)).tags
        for name, value in tags.items():
            if known.get(name) != value:
                self._client.set_model_version_tag(self._name, str(number), name, value)

    def _at(self, number: int) -> Version:
        return self._version(self._client.get_model_version(self._name, str(number)))

    def _version(self, entry: Any) -> Version:
        tags, prefix = entry.tags, f"{self._metric}/"
        evaluation = tags.get(_evaluation_tag(self._metric))
        return Version(
            number=int(entry.version),
            md5=tags.get(_MD5, ""),
            evaluation=evaluation,
            values={name.removeprefix(prefix): float(tags[name]) for name in tags if name.startswith(prefix)},
            decision=tags.get(self._decision_tag(evaluation)),
            is_loadable=_LOADABLE in tags,
        )

    def _decision_tag(self, evaluation: str | None) -> str:
        return f"decision/{self._metric}/{evaluation}"


def _evaluation_tag(metric: str) -> str:
    return f"evaluation/{metric}"


def _judgement(student: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that say how a student was judged last, and, kept for later, on which evaluation."""
    tags: dict[str, str] = {}
    for metric, evaluation in student["evaluations"].items():
        value = repr(student["finals"][metric])
        tags |= {metric: value, f"{metric}/{evaluation}": value, _evaluation_tag(metric): evaluation}
    return tags


def _description(student: Mapping[str, Any]) -> str:
    finals = "".join(f"\n- {name} {value:.4f}" for name, value in sorted(student["finals"].items()))
    return f"The student of DVC with md5 `{student['md5']}` (`dvc.lock`: `{student['path']}`).{finals}"


def _lost(number: int) -> str:
    return f"its files are neither at hand nor in DVC's cache: `dvc pull`, then `minillm promote --version {number}`"

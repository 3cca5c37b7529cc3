"""What is wrong with the models that params name, told before any stage spends time."""

from __future__ import annotations

from pathlib import Path

from minillm.config import StudentModelConfig, TeacherModelConfig


def check_models(teacher: TeacherModelConfig, student: StudentModelConfig) -> None:
    """Raise UserError unless the model directories are whole and teacher and student share a vocabulary.

    Reads no weights and asks no hub: a model that comes from one is checked by the stage that loads it.
    """
    configs: tuple[TeacherModelConfig | StudentModelConfig, ...] = (teacher, student)
    directories = [Path(config.location) for config in configs if config.source == "path"]
    if not directories:
        return
    from minillm.models import check_weights  # which loads torch and transformers
    from minillm.tokenizers import check_same_vocabulary, load_tokenizer

    for directory in directories:
        check_weights(directory)
    if student.source == "path" and teacher.source != "hub":
        own = load_tokenizer(teacher.source, teacher.location, teacher.revision)
        check_same_vocabulary(own, load_tokenizer("path", student.location, student.revision))

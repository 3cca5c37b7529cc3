"""What is wrong with the models that params name, told before any stage spends time."""

from __future__ import annotations

from pathlib import Path

from minillm.config import StudentModelConfig, TeacherModelConfig
from minillm.model_directory import check_num_layers

EMBEDDED_LAYERS = 30


def check_models(teacher: TeacherModelConfig, student: StudentModelConfig) -> None:
    """Raise UserError unless model directories are whole, vocabularies shared and the teacher has layers enough.

    Reads no weights and asks no hub: a model that comes from one is checked by the stage that loads it.
    """
    configs: tuple[TeacherModelConfig | StudentModelConfig, ...] = (teacher, student)
    directories = [Path(config.location) for config in configs if config.source == "path"]
    if teacher.source == "embedded" and student.source == "cut":
        check_num_layers(student.num_layers, EMBEDDED_LAYERS)
    if not directories:
        return
    from minillm.models import checked_config  # which loads torch and transformers
    from minillm.tokenizers import check_same_vocabulary, load_tokenizer

    models = {directory: checked_config(directory) for directory in directories}
    if teacher.source == "path" and student.source == "cut":
        check_num_layers(student.num_layers, models[Path(teacher.location)].num_hidden_layers)
    if student.source == "path" and teacher.source != "hub":
        own = load_tokenizer(teacher.source, teacher.location, teacher.revision)
        check_same_vocabulary(own, load_tokenizer("path", student.location, student.revision))

"""The files by which MLflow's flavors `transformers` and `pyfunc` load a student: its own, and one that says how.

Written from files: nothing is loaded, unpickled or run for it. MLflow's `save_model` wants the model in memory; given a
path it fails with this transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

_OF_MODEL = ("config.json", "generation_config.json")  # beside the weights; all other files are the tokenizer's


def write_link(directory: Path, model_id: str, run_id: str) -> None:
    """Write what makes MLflow say, when someone loads the model, that its files are elsewhere."""
    from mlflow.models import Model

    model = Model(model_id=model_id, run_id=run_id, metadata={"mlflow.model.isExternal": True})
    model.save(str(directory / "MLmodel"))


def write_loadable(directory: Path, files: Mapping[str, Path], model_id: str, run_id: str) -> None:
    """Write links to a model's files, by name, in the places where the flavor `transformers` looks for them.

    It takes classes of the library itself, so that no code of the model would be trusted.
    """
    from mlflow import pyfunc
    from mlflow.models import Model

    for name, path in files.items():
        is_of_model = name in _OF_MODEL or ".safetensors" in name
        target = directory / ("model" if is_of_model else "components/tokenizer") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path.resolve())
    model = Model(model_id=model_id, run_id=run_id)
    model.add_flavor(
        "transformers",
        task="text-generation",
        instance_type="TextGenerationPipeline",
        pipeline_model_type="AutoModelForCausalLM",
        model_binary="model",
        components=["tokenizer"],
        tokenizer_type="AutoTokenizer",
        source_model_name="",
        transformers_version=version("transformers"),
    )
    pyfunc.add_to_model(model, loader_module="mlflow.transformers")
    model.save(str(directory / "MLmodel"))

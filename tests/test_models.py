from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from minillm.errors import UserError
from minillm.model_directory import check_model_directory
from minillm.models import (
    check_context,
    check_corpus,
    checked_config,
    cut_head_to_tokenizer,
    load_saved,
    num_parameters,
    save_model,
)
from minillm.tokenizers import check_same_vocabulary, load_saved_tokenizer
from tests import tiny
from tests.saved_model import WORDS, save_tiny, word_tokenizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def test_a_saved_model_is_loaded_with_the_same_weights_and_tokenizer(saved: Path) -> None:
    loaded = load_saved(saved, torch.float32, torch.device("cpu"))
    original = tiny.tiny_llama(1)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in original.state_dict().items())
    tokenizer = load_saved_tokenizer(saved)
    assert tokenizer("w3 w7")["input_ids"] == [4, 8] and tokenizer.eos_token_id == 0
    assert not [path for path in saved.parent.iterdir() if path != saved]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_fault_15_a_missing_file_of_a_model_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_saved(saved, torch.float32, torch.device("cpu"))


def test_fault_15_a_missing_shard_is_named(saved: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="model-00002-of-00002"):
        check_model_directory(saved)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/model.safetensors", "pytorch_model.bin", 3])
def test_fault_15_an_index_names_safetensors_of_its_own_directory(saved: Path, name: Any) -> None:
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"index\.json: weight_map: .* is no safetensors file of this directory"):
        check_model_directory(saved)


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {}}])
def test_fault_15_an_index_without_files_is_refused(saved: Path, content: Any) -> None:
    (saved / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"index\.json: weight_map: a mapping from tensors to files is needed"):
        check_model_directory(saved)


def test_fault_15_a_tensor_that_the_index_promises_is_named_with_its_file(saved: Path) -> None:
    names = [*load_file(saved / "model.safetensors"), "model.layers.7.gone"]
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors: tensor 'model\.layers\.7\.gone' is missing"):
        check_model_directory(saved)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_fault_15_no_weight_is_ever_made_up(tmp_path: Path, architecture: str) -> None:
    directory = tmp_path / "model"
    save_model(tiny.ARCHITECTURES[architecture](1), word_tokenizer(WORDS), directory)
    weights = load_file(directory / "model.safetensors")
    checked_config(directory)
    for dropped in weights:
        kept = {name: value for name, value in weights.items() if name != dropped}
        save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"model: \d tensors are missing or of another shape, the first: "):
            load_saved(directory, torch.float32, torch.device("cpu"))
        with pytest.raises(UserError, match=r"model: \d tensors are missing or of another shape, the first: "):
            checked_config(directory)


def test_fault_15_a_path_is_loaded_or_refused_without_asking_a_hub(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **options: asked.append(arguments))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    load_saved(saved, torch.float32, torch.device("cpu"))
    load_saved_tokenizer(saved)
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match="weights are missing"):
        load_saved(saved, torch.float32, torch.device("cpu"))
    # Of a directory that is not there transformers would ask the hub, `local_files_only` or not.
    for load in (load_saved_tokenizer, lambda path: load_saved(path, torch.float32, torch.device("cpu"))):
        with pytest.raises(UserError, match="owner/name: no such model directory"):
            load(Path("owner/name"))
    assert asked == []


def test_fault_15_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such model directory"):
        check_model_directory(tmp_path / "absent")


def test_fault_14_equal_vocabularies_pass_and_the_first_differing_token_is_named() -> None:
    teacher = word_tokenizer(["<end>", "a", "b", "c"])
    check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "b", "c"]))
    with pytest.raises(UserError, match="token 'b' has id 2 in the teacher and 3 in the student"):
        check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "c", "b"]))
    with pytest.raises(UserError, match="token 'c' has id 3 in the teacher and None in the student"):
        check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "b"]))
    with pytest.raises(UserError, match="end responses differently"):
        check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "b", "c"], end="c"))
    other = word_tokenizer(["<end>", "a", "b", "c"])
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(UserError, match=r"cut 'In 1984, 31 of 250\.' into different tokens \(7 and 5\)"):
        check_same_vocabulary(teacher, other)


def test_fault_14_a_padded_head_is_cut_to_the_tokenizer_and_keeps_its_logits() -> None:
    model = tiny.tiny_llama(1)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(ids).logits
    cut_head_to_tokenizer(model, word_tokenizer(WORDS[:290]))
    with torch.no_grad():
        after = model(ids).logits
    assert after.shape[-1] == 290 and torch.allclose(after, before[..., :290], atol=1e-6)
    with pytest.raises(UserError, match="290 output rows, its tokenizer ids up to 299"):
        cut_head_to_tokenizer(model, word_tokenizer(WORDS))


def test_tied_weights_count_once() -> None:
    gpt2 = tiny.tiny_gpt2(1)  # ties its head to its embeddings
    tensors = {id(parameter): parameter.numel() for parameter in gpt2.parameters()}
    assert num_parameters(gpt2) == sum(tensors.values())
    assert gpt2.get_output_embeddings().weight is gpt2.get_input_embeddings().weight


def without_layer(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    kept = {name: value for name, value in weights.items() if ".layers.1." not in name}
    save_file(kept, saved / "model.safetensors", metadata={"format": "pt"})


def of_another_shape(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def truncated(saved: Path) -> None:
    content = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(content[: len(content) // 2])


def emptied(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"")


def config_cut(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": "lla')


def config_list(saved: Path) -> None:
    (saved / "config.json").write_text("[]")


def config_without_type(saved: Path) -> None:
    (saved / "config.json").write_text("{}")


@pytest.mark.parametrize(
    "damage", [without_layer, of_another_shape, truncated, emptied, config_cut, config_list, config_without_type]
)
def test_fault_15_a_damaged_model_is_one_line_that_names_its_place(saved: Path, damage: Any) -> None:
    damage(saved)
    with pytest.raises(UserError) as caught:
        load_saved(saved, torch.float32, torch.device("cpu"))
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_one_line_that_names_its_place(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"model: the tokenizer cannot be loaded: "):
        load_saved_tokenizer(saved)


def test_positions_that_hang_on_the_longest_text_of_a_batch_are_refused() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = tiny.llama_like(LlamaConfig, LlamaForCausalLM, rope_parameters=rope | factors)(1)
    check_context(model, 64, "student")
    with pytest.raises(UserError, match="up to 65 tokens, the model at most 64"):
        check_context(model, 65, "student")


def test_texts_longer_than_the_models_positions_are_refused() -> None:
    check_corpus(tiny.tiny_gpt2(1), 128, "student")
    with pytest.raises(UserError, match="student: blocks of the corpus have 129 tokens, the model at most 128;"):
        check_corpus(tiny.tiny_gpt2(1), 129, "student")
    check_context(tiny.tiny_gpt2(1), 128, "student")
    with pytest.raises(UserError, match="student: prompt and response together have up to 129 tokens, the model"):
        check_context(tiny.tiny_gpt2(1), 129, "student")

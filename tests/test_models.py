from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.errors import UserError
from minillm.models import check_context, cut_head_to_tokenizer, load_saved, num_parameters, save_model
from minillm.tokenizers import check_model_directory, check_same_vocabulary, load_saved_tokenizer
from tests import tiny


def word_tokenizer(words: list[str], end: str = "<end>") -> Any:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[-1]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=end)


WORDS = ["<end>", *(f"w{index}" for index in range(tiny.NUM_TOKENS - 1))]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tiny.tiny_llama(1), word_tokenizer(WORDS), tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_is_loaded_with_the_same_weights_and_tokenizer(saved: Path) -> None:
    loaded = load_saved(saved, torch.float32, torch.device("cpu"))
    original = tiny.tiny_llama(1)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in original.state_dict().items())
    tokenizer = load_saved_tokenizer(saved)
    assert tokenizer("w3 w7")["input_ids"] == [4, 8] and tokenizer.eos_token_id == 0
    assert not [path for path in saved.parent.iterdir() if path != saved]


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_of_a_model_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_saved(saved, torch.float32, torch.device("cpu"))


def test_a_missing_shard_is_named(saved: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="model-00002-of-00002"):
        check_model_directory(saved)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such model directory"):
        check_model_directory(tmp_path / "absent")


def test_a_model_that_brings_its_own_code_is_refused(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    marker = saved / "ran"
    (saved / "canary.py").write_text(f"open({str(marker)!r}, 'w').write('x')\n")
    (saved / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "canary.X"}}))
    with pytest.raises(UserError, match="auto_map"):
        load_saved(saved, torch.float32, torch.device("cpu"))
    assert not marker.exists()


def test_pickled_weights_are_not_a_substitute(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors only"):
        check_model_directory(saved)


def test_equal_vocabularies_pass_and_the_first_differing_token_is_named() -> None:
    teacher = word_tokenizer(["<end>", "a", "b", "c"])
    check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "b", "c"]))
    with pytest.raises(UserError, match="token 'b' has id 2 in the teacher and 3 in the student"):
        check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "c", "b"]))
    with pytest.raises(UserError, match="token 'c' has id 3 in the teacher and None in the student"):
        check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "b"]))
    with pytest.raises(UserError, match="end responses differently"):
        check_same_vocabulary(teacher, word_tokenizer(["<end>", "a", "b", "c"], end="c"))


def test_a_padded_head_is_cut_to_the_tokenizer_and_keeps_its_logits() -> None:
    model = tiny.tiny_llama(1)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model(ids).logits
    cut_head_to_tokenizer(model, word_tokenizer(WORDS[:290]))
    with torch.no_grad():
        after = model(ids).logits
    assert after.shape[-1] == 290 and torch.allclose(after, before[..., :290], atol=1e-6)
    with pytest.raises(UserError, match="290 output rows, its tokenizer 300 tokens"):
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
def test_a_damaged_model_is_one_line_that_names_its_place(saved: Path, damage: Any) -> None:
    damage(saved)
    with pytest.raises(UserError) as caught:
        load_saved(saved, torch.float32, torch.device("cpu"))
    assert str(saved) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_tokenizer_is_one_line_that_names_its_place(saved: Path) -> None:
    (saved / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"model: the tokenizer cannot be loaded: "):
        load_saved_tokenizer(saved)


def test_a_head_with_an_unknown_transform_is_refused(tmp_path: Path) -> None:
    from transformers import GraniteConfig, GraniteForCausalLM

    sizes = {"vocab_size": tiny.NUM_TOKENS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = GraniteConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, logits_scaling=8.0)
    save_model(GraniteForCausalLM(config), word_tokenizer(WORDS), tmp_path / "granite")
    with pytest.raises(UserError, match="GraniteForCausalLM transforms its logits in a way that is not supported"):
        load_saved(tmp_path / "granite", torch.float32, torch.device("cpu"))


def test_texts_longer_than_the_models_positions_are_refused() -> None:
    check_context(tiny.tiny_gpt2(1), 128, "student")
    with pytest.raises(UserError, match="student: prompt and response together have up to 129 tokens, the model"):
        check_context(tiny.tiny_gpt2(1), 129, "student")

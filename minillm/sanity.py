"""Is this a language model at all? Perplexity on plain English, against the same words shuffled."""

from __future__ import annotations

import random
from typing import Any

import torch

from minillm.device import Compute
from minillm.errors import UserError
from minillm.logprobs import head_logits, token_logprobs

_ENGLISH = (
    "The old lighthouse stood on a rocky point at the edge of the bay. Every evening the keeper climbed the narrow "
    "stairs, lit the lamp and watched the ships come home. In winter the waves were so high that they covered the "
    "windows with salt, and he could hear the wind all night. When the weather was good, children from the village "
    "came to visit him, and he told them stories about the sea, about storms and about the people he had saved.",
    "Water is made of two elements, hydrogen and oxygen. When it is heated to one hundred degrees it begins to boil "
    "and turns into steam, and when it is cooled below zero it freezes and becomes ice. Plants take water from the "
    "soil through their roots, and the sun gives them the energy they need to grow. Without water there would be no "
    "life on Earth, because every living cell needs it.",
)
_SHUFFLE_SEED = 7
_LARGEST_PERPLEXITY = 60.0  # SmolLM2-135M-Instruct has 20 to 24 on plain English
_SMALLEST_SHUFFLED_FACTOR = 5.0  # and about 100 times that on shuffled words


def english_perplexity(model: Any, tokenizer: Any, compute: Compute, shuffled: bool = False) -> float:
    """Return exp of the mean next-token loss over two short English texts, or over their words in random order."""
    losses = [_loss(model, tokenizer, _shuffled(text) if shuffled else text, compute) for text in _ENGLISH]
    total, count = (sum(column) for column in zip(*losses, strict=True))
    return float(torch.tensor(total / count).exp())


def _shuffled(text: str) -> str:
    words = text.split()
    random.Random(_SHUFFLE_SEED).shuffle(words)
    return " ".join(words)


@torch.no_grad()
def _loss(model: Any, tokenizer: Any, text: str, compute: Compute) -> tuple[float, int]:
    limit = getattr(model.config, "max_position_embeddings", None)
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"][:limit]], device=compute.device)
    with compute.autocast():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        logprobs = token_logprobs(head_logits(model, hidden[:, :-1]), ids[:, 1:])
    return -float(logprobs.sum()), logprobs.numel()


def require_sane_english(plain: float, shuffled: float) -> None:
    """Raise UserError unless the embedded teacher's perplexities are those of a working English model."""
    if not plain < _LARGEST_PERPLEXITY:
        raise UserError(
            f"embedded teacher: perplexity {plain:.1f} on plain English, at most {_LARGEST_PERPLEXITY:.0f} expected; "
            "the converted weights or the tokenizer are wrong"
        )
    if not shuffled > _SMALLEST_SHUFFLED_FACTOR * plain:
        raise UserError(
            f"embedded teacher: perplexity {plain:.1f} on plain English and {shuffled:.1f} on the same words shuffled; "
            f"at least {_SMALLEST_SHUFFLED_FACTOR:.0f} times more expected; the model does not read word order"
        )

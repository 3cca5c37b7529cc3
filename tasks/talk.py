"""Ask a model that the pipeline made, and see its answer as it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from minillm.errors import UserError
from minillm.models import load_saved
from minillm.params import load_params
from minillm.prompts import prompt_text, text_ids
from minillm.tokenizers import load_saved_tokenizer
from tasks.storage import STUDENT_DIR, TEACHER_DIR, WARMUP_DIR

MODELS = {"teacher": TEACHER_DIR, "warmup": WARMUP_DIR, "student": STUDENT_DIR}


class Manner(NamedTuple):
    """How an answer is drawn: at most so many tokens; temperature 0 takes the likeliest token each time."""

    max_tokens: int
    temperature: float
    seed: int


class Speaker:
    """A model with the template that it was trained with."""

    def __init__(self, model: str) -> None:
        directory = MODELS.get(model, Path(model))
        if not directory.is_dir():
            raise UserError(f"{directory}: no such model; there are {', '.join(MODELS)}, and directories")
        self._tokenizer = load_saved_tokenizer(directory)
        self._template = load_params(Path("params.yaml")).data.template
        self._model = load_saved(directory, torch.float32, torch.device("cpu"))

    def answer(self, instruction: str, context: str, manner: Manner) -> None:
        """Write the answer to standard output piece by piece, with a line feed at its end."""
        from transformers import TextStreamer

        prompt = prompt_text(self._tokenizer, self._template, instruction, context)
        ids = torch.tensor(text_ids(self._tokenizer, [prompt]))
        torch.manual_seed(manner.seed)
        drawing: dict[str, Any] = {"do_sample": False}
        if manner.temperature > 0:
            drawing = {"do_sample": True, "temperature": manner.temperature, "top_k": 0, "top_p": 1.0}
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=manner.max_tokens,
            eos_token_id=self._tokenizer.eos_token_id,
            pad_token_id=self._tokenizer.pad_token_id,
            streamer=TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True),
            **drawing,
        )

"""By what rows are told apart: salted hashes of a prompt without its accidents of case and white space."""

from __future__ import annotations

import hashlib
import unicodedata

KEY_BYTES = 16


def normalised_prompt(instruction: str, context: str) -> str:
    """Return a prompt without differences of case, white space or compatibility characters."""
    text = f"{instruction}\n{context}"
    if text.isascii():
        text = text.lower()
    else:
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(text.split())


def prompt_key(seed: int, instruction: str, context: str) -> bytes:
    """Return the hash that orders prompts; another seed gives another order."""
    return _key(f"{seed}\n{normalised_prompt(instruction, context)}".encode())


def answer_key(key: bytes, reference: str) -> bytes:
    """Return the hash by which rows count as duplicates: the prompt's key and the exact first reference."""
    return _key(key + reference.encode())


def _key(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:KEY_BYTES]

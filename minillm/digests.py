"""Short fingerprints of values, to compare them without holding them."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> bytes:
    """Return the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()

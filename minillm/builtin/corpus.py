"""Plain-text documents from the language reference that ships with every CPython."""

import re
from pydoc_data.topics import topics

_MIN_DOCUMENT_CHARS = 200
_UNDERLINE = re.compile(r"^[*=\-~^]{3,}\n", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")


def corpus_documents() -> list[str]:
    """The reference's topics in the order of their keys, less underlines, repeated and very short topics.

    The text depends on the Python version, not on the machine.
    """
    documents = dict.fromkeys(_cleaned(topics[key]) for key in sorted(topics))
    return [document for document in documents if len(document) >= _MIN_DOCUMENT_CHARS]


def _cleaned(text: str) -> str:
    return _BLANK_LINES.sub("\n\n", _UNDERLINE.sub("", text)).strip()

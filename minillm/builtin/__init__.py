"""The embedded default data: instruction rows and plain-text documents that need no download."""

from minillm.builtin.corpus import corpus_documents
from minillm.builtin.instructions import instruction_rows

__all__ = ["corpus_documents", "instruction_rows"]

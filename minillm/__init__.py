"""MiniLLM: distil a white-box teacher language model into a small student (arXiv:2306.08543)."""

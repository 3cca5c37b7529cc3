"""How good a model's responses are: overlap with references, and distance from the teacher."""

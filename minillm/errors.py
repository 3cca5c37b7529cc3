"""Errors that end a stage in one line: their text says what is wrong, where, and what is allowed."""


class DamagedError(RuntimeError):
    """A file whose contents are not those that were written."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient that is not a finite number; the weights are still those of the last good step."""


class UserError(ValueError):
    """A mistake in parameters, data or files; shown in one line, without a traceback."""

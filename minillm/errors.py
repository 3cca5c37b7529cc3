"""Errors that end a stage in one line: their text says what is wrong, where, and what is allowed."""


class DamagedError(RuntimeError):
    """A file whose contents are not those that were written."""


class NonFiniteError(RuntimeError):
    """A loss, a gradient or a prediction that is not a finite number; nothing was updated by it."""


class UserError(ValueError):
    """A mistake in parameters, data or files; shown in one line, without a traceback."""

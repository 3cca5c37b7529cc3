"""Errors that a user can mend: their text names the file, line or key, the value and what is allowed."""


class UserError(ValueError):
    """A mistake in parameters, data or files; shown in one line, without a traceback."""

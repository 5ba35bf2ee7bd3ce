"""Errors shown as one line, without a traceback."""


class UserError(ValueError):
    """Something outside the program is wrong: a file, the disk, the data. The message names it and the remedy."""

    def __init__(self, message: str) -> None:
        # A worker process of a data loader hands over its traceback as the message.
        super().__init__(message.rpartition(f'{type(self).__module__}.{type(self).__name__}: ')[2].rstrip())


class DataError(UserError):
    """One sample is wrong, which one process alone sees."""

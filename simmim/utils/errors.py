"""Exceptions for mistakes that the user can fix."""


class UserError(ValueError):
    """A value that cannot work; its message is one line: the value, the constraint, what to do.

    Commands print it without a traceback and exit with code 2.
    """


class UnreadableImageError(UserError):
    """An image that cannot be read, or that the run refuses; another may take its place.

    `reason` says why, without the image's name.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class DoesNotFitError(UserError):
    """A run that needs more memory than there is; its message has several lines: plan and solutions."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if the message is empty."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__

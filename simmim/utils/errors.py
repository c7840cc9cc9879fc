"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """A value that cannot work. The message is one line: the value, the constraint, the way out.

    Commands print it without a traceback and exit with code 2.
    """


class UnreadableImageError(UserError):
    """One image that cannot be read, or that its run refuses; others may take its place.

    `reason` is why, without the image's name.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class DoesNotFitError(UserError):
    """A run that needs more memory than there is. The message has several lines: the plan, ways out."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__

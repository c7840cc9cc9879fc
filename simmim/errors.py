"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """A value that cannot work. The message is one line: the value, the constraint, the way out.

    Commands print it without a traceback and exit with code 2.
    """


class DoesNotFitError(UserError):
    """A run that needs more memory than there is. The message has several lines: the plan, ways out."""

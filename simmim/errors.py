"""The one exception for mistakes that the user can mend."""


class UserError(ValueError):
    """A value that cannot work. The message is one line: the value, the constraint, the way out.

    Commands print it without a traceback and exit with code 2.
    """

"""The one exception that users see."""


class InputError(Exception):
    """The recipe or the input is wrong (exit code 2).

    The message says what was given, what was expected and what to change.
    """

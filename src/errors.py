"""What can go wrong by no fault of the program."""


class UserError(ValueError):
    """Something that the person who runs the program can mend: a setting, a table, a checkpoint, a learning rate.

    The message is one line that says what is wrong, where, and the way out; the scripts print it and exit with code 1.
    """


class StoppedError(UserError):
    """Training was told to stop before its end; a sweep ends with it."""

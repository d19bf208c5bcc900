"""What can go wrong by no fault of the program."""


class UserError(ValueError):
    """Something that the person who runs the program can fix: a setting, a table, a checkpoint, a learning rate.

    The message is one line that says what is wrong, where, and the way out; the scripts print it and exit with code 1.
    """


class StoppedError(UserError):
    """Training was told to stop before its end; a sweep ends with it.

    Args:
        message: as above.
        signal: the number of the signal that said so; the scripts exit with 128 and that.
        can_resume: whether there is a checkpoint to resume from.
    """

    def __init__(self, message: str, signal: int, can_resume: bool = False) -> None:
        super().__init__(message)
        self.signal = int(signal)
        self.can_resume = can_resume

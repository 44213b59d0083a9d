"""The two errors of asr: what a user can cause ends in one line, not in a traceback.

The message of an error is that line: which file or setting, what is wrong, what to do. The command line prints it
behind ``asr:`` and exits with its ``status``: 1 an input or a run failed, 2 an argument, override, recipe or model
is wrong and no work was started.
"""


class AsrError(Exception):
    """A failure with a one-line explanation (a run that diverged, a full disk).

    Args:
        message: which file or setting, what is wrong, what to do; a line break in it becomes a space.
        status: exit status of the command line, 1 or 2.
    """

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(" ".join(message.split("\n")))
        self.status = status


class InputError(AsrError):
    """Something the user gave is wrong: a file, a manifest line, a setting, a model."""

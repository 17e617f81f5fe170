"""The exceptions that end a command: a user's mistake, and a failed process with its exit code."""


class ExamError(Exception):
    """A mistake in a command, a file or an environment: observed → required → way out.

    The command line prints the message alone and exits with code 2; every other exception is a
    bug and keeps its traceback.
    """


class ExitError(Exception):
    """The end of a command whose message another process has printed."""

    def __init__(self, code: int) -> None:
        """Keep the exit code."""
        super().__init__(f"exit code {code}")
        self.code = code

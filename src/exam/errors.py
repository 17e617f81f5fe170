"""The one exception a user can cause."""


class ExamError(Exception):
    """A mistake in a command, a file or an environment: observed → required → way out.

    The command line prints the message alone and exits with code 2; every other exception is a
    bug and keeps its traceback.
    """

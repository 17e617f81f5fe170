"""`python -m exam.bundle ckpt=… out=… [--rehearse] [--hours 9]`."""

import sys

from exam.cli import main

FLAGS = {"--rehearse": "rehearse=true", "--hours": "hours="}


def translated(arguments: list[str]) -> list[str]:
    """The flags as the values that they stand for."""
    found: list[str] = []
    for argument in arguments:
        if found and found[-1] == FLAGS["--hours"]:
            found[-1] += argument
        else:
            found.append(FLAGS.get(argument, argument))
    return found


if __name__ == "__main__":
    sys.argv[1:] = translated(sys.argv[1:])
    sys.exit(main("bundle"))

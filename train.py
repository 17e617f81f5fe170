"""The command `exam train`, started from a clone."""

import sys

try:
    from exam.cli import main
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))

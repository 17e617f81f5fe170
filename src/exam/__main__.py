"""`python -m exam COMMAND …`: the command `exam`, also under `torchrun`."""

import sys

from exam.cli import main

if __name__ == "__main__":
    sys.exit(main())

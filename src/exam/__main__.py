"""`python -m exam VERB …`: the verbs without a clone, also under `torchrun`."""

import sys

from exam.cli import main
from exam.config import ROOTS
from exam.runtime import complain

if __name__ == "__main__":
    verb = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if verb not in ROOTS:
        complain(f"{verb or 'Nothing'} is no verb.\nThere are: {', '.join(ROOTS)}.")
        sys.exit(2)
    sys.exit(main(verb))

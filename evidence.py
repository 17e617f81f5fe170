"""The verb `evidence`: see `python evidence.py --help`."""

from exam.cli import evidence

if __name__ == "__main__":
    evidence()

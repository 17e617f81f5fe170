"""The verb `stress`: see `python stress.py --help`."""

from exam.cli import stress

if __name__ == "__main__":
    stress()

"""The verb `generate`: see `python generate.py --help`."""

from exam.cli import generate

if __name__ == "__main__":
    generate()

"""The verb `infer`: see `python infer.py --help`."""

from exam.cli import infer

if __name__ == "__main__":
    infer()

"""The verb `retrieve`: see `python retrieve.py --help`."""

from exam.cli import retrieve

if __name__ == "__main__":
    retrieve()

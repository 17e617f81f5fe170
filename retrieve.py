"""The verb `retrieve`: see `python retrieve.py --help`."""

try:
    from exam.cli import retrieve
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    retrieve()

"""The verb `evidence`: see `python evidence.py --help`."""

try:
    from exam.cli import evidence
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    evidence()

"""The verb `stress`: see `python stress.py --help`."""

try:
    from exam.cli import stress
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    stress()

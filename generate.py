"""The verb `generate`: see `python generate.py --help`."""

try:
    from exam.cli import generate
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    generate()

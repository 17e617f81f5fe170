"""The verb `infer`: see `python infer.py --help`."""

try:
    from exam.cli import infer
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    infer()

"""The verb `train`: see `python train.py --help`."""

try:
    from exam.cli import train
except ModuleNotFoundError as error:
    raise SystemExit(f"{error}.\nRun: make setup && . .venv/bin/activate") from None

if __name__ == "__main__":
    train()

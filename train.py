"""The verb `train`: see `python train.py --help`."""

from exam.cli import train

if __name__ == "__main__":
    train()

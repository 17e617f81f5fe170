"""Where a test runs: on the CPU among the fast tests, on a CUDA GPU in `make test-gpu`."""

import pytest
import torch

NEEDED = ("accelerate", "datasets", "hydra", "omegaconf", "peft", "platformdirs", "transformers")
for name in NEEDED:
    pytest.importorskip(name)


def missing_gpus(number: int = 1) -> str:
    """Why a test of so many GPUs cannot run here; empty where it can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    count = torch.cuda.device_count()
    return "" if count >= number else f"{number} CUDA GPU(s) needed, {count} there"


def needs_gpus(number: int = 1) -> list[pytest.MarkDecorator]:
    """The marks of a test that needs GPUs."""
    reason = missing_gpus(number)
    return [pytest.mark.gpu, pytest.mark.skipif(bool(reason), reason=reason)]


def on_gpu(*values: object) -> object:
    """Parameters of a test that runs on a GPU alone."""
    return pytest.param(*values, marks=needs_gpus())


DEVICES = ["cpu", on_gpu("cuda")]
FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NEAR = {"fp32": 1e-3, "bf16": 5e-2, "fp16": 1e-2}  # of the values' norm


def trainer_on(device: str, dtype: str = "fp32", **values: object) -> dict[str, object]:
    """The Trainer's arguments for a device and a number format."""
    return {
        "use_cpu": device == "cpu",
        "bf16": dtype == "bf16",
        "fp16": dtype == "fp16",
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",  # else a second training in one folder would go on with the first
        **values,
    }


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """How far values are from others, in units of the others' norm."""
    ours, theirs = (x.detach().double().cpu() for x in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())

"""Adversarial weight perturbation.

Wu, Xia and Wang, "Adversarial Weight Perturbation Helps Robust Generalization" (2020): the loss
is lowered where the weights are, and also at a point nearby where it is higher.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

TINY = 1e-6


@contextmanager
def perturbed(model: nn.Module, adv_lr: float, adv_eps: float | None) -> Iterator[None]:
    """Shift every weight matrix along its gradient; afterwards, whatever happens, it is as before.

    A matrix w with gradient g moves by `adv_lr · ‖w‖ · g / ‖g‖`, each of its values by at most
    `adv_eps` times itself. Only directions count, so neither accumulation nor a scaled loss
    changes the shift. Biases and normalisations stay where they are.
    """
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    try:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is None or weight.dim() < 2:
                    continue
                before = weight.detach().clone()
                kept.append((weight, before))
                length = adv_lr * (weight.norm() + TINY) / (weight.grad.norm() + TINY)
                weight.add_(weight.grad.to(weight.dtype) * length)
                if adv_eps is not None:
                    limit = adv_eps * before.abs()
                    weight.clamp_(before - limit, before + limit)
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)

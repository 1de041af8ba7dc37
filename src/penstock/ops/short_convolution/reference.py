"""The convolution as it is defined, a step at a time."""

import torch
from torch import Tensor


def short_convolution(x: Tensor, weight: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last inputs."""
    outputs = []
    for x_t in x.unbind(1):
        window = torch.cat([state, x_t.unsqueeze(1)], 1)
        outputs.append((window * weight.mT).sum(1))
        state = window[:, 1:]
    return (torch.stack(outputs, 1) if outputs else x), state

"""A causal convolution along time, each channel alone, a few tokens wide."""

import torch
from torch import Tensor


def short_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Convolve each channel of `x` with its own taps, looking back only.

    $$ y_t = b + \sum_{i=0}^{W-1} w_i \odot x_{t-W+1+i} $$

    Args:
        x: inputs `(B, T, D)`.
        weight: taps `(D, W)`, the last for the present token.
        bias: `(D)`.
        initial_state: the `W - 1` inputs before these, `(B, W - 1, D)`; zeros where None.

    Returns:
        Outputs `(B, T, D)` and the last `W - 1` inputs.
    """
    past = weight.shape[1] - 1
    if initial_state is None:
        initial_state = x.new_zeros(x.shape[0], past, x.shape[2])
    padded = torch.cat((initial_state.to(x.dtype), x), dim=1)
    y = x * weight[:, past]
    for tap in range(past):
        y = y + padded[:, tap : tap + x.shape[1]] * weight[:, tap]
    return y if bias is None else y + bias, padded[:, padded.shape[1] - past :]

"""Parts of RWKV-4: the shift by a token, and the mean of values whose weights fade with age."""

from typing import Any

import torch
from torch import Tensor, nn

from penstock.ops.linear_recurrence import linear_recurrence

NOTHING = -1e30
"""The logarithm of the scale of sums that nothing has been added to."""


class Shift(nn.Module):
    r"""A mix of each token with the one before it: $\mu \odot x_t + (1 - \mu) \odot x_{t-1}$.

    Args:
        dim: width of the stream.
        device: where the parameters live.
        dtype: their type.
    """

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.arange(dim, device=device, dtype=dtype) / dim)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Return the mix of `x` and the tokens `before` them, both `(B, T, dim)`."""
        return before + self.share * (x - before)


def weighted_mean(k: Tensor, v: Tensor, rate: Tensor, bonus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the means of the values so far, weighted by the exponentials of their keys, which fade with age.

    $$ y_t = \frac{\sum_{j<t} e^{-(t-1-j) w + k_j} v_j + e^{u + k_t} v_t}{\sum_{j<t} e^{-(t-1-j) w + k_j} + e^{u + k_t}} $$

    Sums are kept relative to their largest term, so that no key is too large.

    Args:
        k: keys `(B, T, dim)`.
        v: values `(B, T, dim)`.
        rate: how fast a weight fades, the `w` `(dim)`.
        bonus: what is added to the key of the present token, the `u` `(dim)`.
        state: numerator, denominator and the logarithm of their scale `(B, 3, dim)`.
    """
    age = rate * torch.arange(k.shape[1] + 1, device=k.device, dtype=k.dtype).unsqueeze(-1)
    sums, scale = state[:, :2], state[:, 2:]
    with torch.no_grad():
        scales = torch.cat((scale, k + age[1:]), dim=1).cummax(1).values - age
    decay = (scales[:, :-1] - scales[:, 1:] - rate).exp().unsqueeze(2)
    written = (k - scales[:, 1:]).exp().unsqueeze(2) * torch.stack((v, torch.ones_like(v)), dim=2)
    held, last = linear_recurrence(decay, written, sums)
    past = torch.cat((sums.unsqueeze(1), held[:, :-1]), dim=1)
    top = torch.maximum(scales[:, :-1], k + bonus)
    old, new = (scales[:, :-1] - top).exp(), (k + bonus - top).exp()
    y = (old * past[:, :, 0] + new * v) / (old * past[:, :, 1] + new)
    return y, torch.cat((last, scales[:, -1:]), dim=1)

"""Rotary positions."""

import torch
from torch import Tensor


def rotary(x: Tensor, offset: int | Tensor = 0, base: float = 10000.0) -> Tensor:
    r"""Rotate each pair of channels of `x` `(B, T, H, D) -> (B, T, H, D)` by an angle that grows with the position.

    $$ (x_i, x_{i+D/2})_t \to R(t\,\omega_i)\,(x_i, x_{i+D/2})_t, \qquad \omega_i = b^{-2i/D} $$

    As in LLaMA, channel `i` is paired with `i + D // 2`; "RoFormer: Enhanced Transformer with Rotary Position Embedding"
    (arXiv 2104.09864, sec. 3.2.2) pairs neighbours, which is the same up to the order of the channels. An odd last channel
    stays as it is. Angles are in float32 at least.

    Args:
        x: queries or keys.
        offset: position of the first token, or that of each token, `(T,)` or `(B, T)`.
        base: the longest wavelength is about `2 * pi * base` tokens.
    """
    if not isinstance(offset, Tensor):
        offset = torch.arange(offset, offset + x.shape[1], device=x.device)
    return turn(x, *angles(offset, x, base))


def angles(places: Tensor, x: Tensor, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the angles at `places` `(...)`, each `(..., 1, D // 2)`, for `x` `(B, T, H, D)`."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    rate = base ** (-torch.arange(half, device=x.device, dtype=wide) / max(half, 1))
    angle = (places.unsqueeze(-1) * rate).unsqueeze(-2)
    return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `x` `(B, T, H, D)` rotated by angles as `angles` gives them."""
    half = x.shape[-1] // 2
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)

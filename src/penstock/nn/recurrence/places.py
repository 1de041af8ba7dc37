"""Places in an image, for layers that read it as a sequence of patches."""

import torch
from torch import Tensor

from penstock.ops.attention import rotary


def rotary_image(x: Tensor, height: int, width: int) -> Tensor:
    """Rotate the first half of the channels by the row and the second half by the column, as `rotary` does by the position.

    Args:
        x: queries or keys of the patches, row by row: `(B, height * width, H, D) -> (B, height * width, H, D)`.
        height: number of rows.
        width: number of columns.
    """
    half = x.shape[-1] // 2
    rows, columns = x.unflatten(1, (height, width)).split((half, x.shape[-1] - half), dim=-1)
    by_row = rotary(rows.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], width)).transpose(1, 2)
    by_column = rotary(columns.flatten(0, 1)).unflatten(0, (x.shape[0], height))
    return torch.cat((by_row, by_column), dim=-1).flatten(1, 2)

"""Running statistics of one gate, kept on its device: nothing is read from it while the model runs."""

import math
from typing import Any

import torch
from torch import Tensor

from penstock.core.ranges import Range
from penstock.inspect.rows import Row

BINS = 16
UNITS = 4096


class Statistics:
    """What was seen of one gate.

    All state is tensors that are changed in place, so that a compiled graph can hold the hook.

    Args:
        path: of the gate in the model.
        mechanism: it belongs to.
        stated: its range as on the card, or an empty text.
        shares: whether it shares out one unit over its last axis.
        device: where it runs.
        every: how many rows there are to one that is looked at.
        keep: whether to keep the latest values.
    """

    def __init__(
        self, path: str, mechanism: str, stated: str, *, shares: bool, device: torch.device, every: int, keep: bool
    ) -> None:
        self.path, self.mechanism, self.stated = path, mechanism, stated
        self.every, self.keep = every, keep
        span = Range.parse(stated) if stated else Range(-math.inf, math.inf)
        self.shares = shares or span.is_share
        self.judged = self.shares or (span.low >= 0 and span.high <= 1)
        self.low = span.low if math.isfinite(span.low) else -4.0
        self.high = span.high if math.isfinite(span.high) else max(4.0, self.low + 1)
        wide = torch.float32 if device.type == "mps" else torch.float64
        with torch.inference_mode(False):
            self.sums = torch.zeros(4, dtype=wide, device=device)
            self.counts = [torch.zeros((), dtype=torch.int64, device=device) for _ in range(4)]
            self.least = torch.full((), math.inf, device=device)
            self.most = torch.full((), -math.inf, device=device)
            self.histogram = torch.zeros(BINS, dtype=torch.int64, device=device)
            self.units = torch.zeros(UNITS, dtype=wide, device=device)
            self.widths = torch.tensor([UNITS + 1, 0], device=device)
            self.last: Tensor | None = None

    @torch.no_grad()
    def see(self, _gate: Any, _inputs: Any, openness: Tensor) -> None:
        """Take in what passes the gate; a forward hook."""
        if self.keep:
            self.last = openness.detach().clone()
        rows = openness.detach().to(self.sums.device).reshape(-1, openness.shape[-1] if openness.dim() else 1)
        x = rows[:: self.every].float()
        if x.numel() == 0:
            return
        entropy, judged = self.undecidedness(x)
        parts = (x.sum(dtype=self.sums.dtype), (x < 0.1).sum(), (x > 0.9).sum(), entropy)
        self.sums.add_(torch.stack([part.to(self.sums) for part in parts]))
        for total, more in zip(self.counts, (1, x.shape[0], x.numel(), judged), strict=True):
            total.add_(more)
        least, most = x.aminmax()
        self.least.copy_(torch.minimum(self.least, least))
        self.most.copy_(torch.maximum(self.most, most))
        place = ((x - self.low) * (BINS / (self.high - self.low))).long().clamp(0, BINS - 1).flatten()
        self.histogram.scatter_add_(0, place, torch.ones_like(place))
        width = x.shape[-1]
        self.widths[0].clamp_(max=width)
        self.widths[1].clamp_(min=width)
        if width <= UNITS:
            self.units[:width].add_(x.sum(0, dtype=self.sums.dtype))

    def undecidedness(self, x: Tensor) -> tuple[Tensor, int]:
        """Return the summed entropy of the rows or values of `x`, each between 0 and 1, and how many there are."""
        if not self.judged:
            return x.new_zeros(()), 0
        if self.shares:
            shares = x.clamp_min(0) / x.clamp_min(0).sum(-1, keepdim=True).clamp_min(1e-12)
            return torch.special.entr(shares).sum() / math.log(max(2, x.shape[-1])), x.shape[0]
        open_ = x.clamp(0, 1)
        return (torch.special.entr(open_) + torch.special.entr(1 - open_)).sum() / math.log(2), x.numel()

    def row(self) -> Row | None:
        """Read the statistics, or return None where the gate was not called."""
        calls, rows, count, judged = (int(total) for total in self.counts)
        if not count:
            return None
        total, closed, opened, entropy = self.sums.tolist()
        narrow, wide = self.widths.tolist()
        means = self.units[:wide] / rows if narrow == wide <= UNITS else None
        return Row(
            path=self.path,
            mechanism=self.mechanism,
            range=self.stated,
            calls=calls,
            count=count,
            mean=total / count,
            least=self.least.item(),
            most=self.most.item(),
            closed=closed / count,
            open=opened / count,
            entropy=entropy / judged if judged else None,
            load=None if means is None else (means.min().item(), means.max().item()),
            histogram=self.histogram.tolist(),
            bins=(self.low, self.high),
        )

r"""GateSkip: soft gates on what each branch adds to the stream, by which tokens are ranked and skipped at inference.

$$ y_t = x_t + g_t \odot f(x)_t \text{ if } \bar g_t \text{ is within the budget, else } x_t, \qquad
   g_t = \sigma(W h_t + b), \quad \bar g_t = \tfrac1D \sum_c g_{tc} $$

with $h$ what the branch reads, without a gradient, and $L = \lambda \operatorname{mean}(g^2)$.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from penstock.core import Gate, Halting, NonNegative, Share, Size, Skip, mechanism
from penstock.nn.skipping.tokens import AbstractTokenSkip, Block, Keys, Select, read
from penstock.ops.linear import Linear


@mechanism(
    "gateskip",
    paper="laitenberger2025gateskip",
    at="the gates on the outputs of attention and MLP; defaults of the authors' code",
    gates={"keep": "{0, 1}", "gate": "(0, 1)"},
    traits={"skips"},
    example={"dim": 8, "budget": 0.5},
)
class GateSkip(AbstractTokenSkip, Skip):
    r"""GateSkip: residual gates that start nearly open, and a budget for each branch: `(B, T, dim) -> (B, T, dim)`.

    A budget of 1 is the gated model, not the one without gates. The paper lowers the budget over fine-tuning: set `budget`.
    Tokens that are skipped give keys and values, of the stream as it passes them; the authors' code also has a form that
    copies those of the layer below.

    Args:
        dim: width of the stream.
        budget: share of the tokens that each branch computes.
        select: the `top` of each sequence, or the tokens whose mean gate reaches a `level` that
            `penstock.models.calibrate` sets; all until then.
        keys: whether attention sees `all` tokens, as in the paper, or those it was `kept` for only.
        grain: a gate for each channel, or one for each token.
        sparsity: weight of the mean squared gate in the loss.
        layers: how many layers the model has: the loss is the mean over their branches.
        device: where the parameters live.
        dtype: their type.
    """

    by_branch = True

    def __init__(
        self,
        dim: Size,
        budget: Share = 0.75,
        select: Select = "top",
        keys: Keys = "all",
        *,
        grain: Literal["channel", "token"] = "channel",
        sparsity: NonNegative = 0.1,
        layers: Size = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(budget, select, keys, device=device, dtype=dtype)
        self.dim, self.sparsity = dim, sparsity / (2 * layers)
        self.to_gate = Linear(dim, dim if grain == "channel" else 1, device=device, dtype=dtype)
        torch.nn.init.normal_(self.to_gate.weight, std=0.01)
        torch.nn.init.constant_(self.to_gate.bias, 5.0)
        self.gate = Gate()

    def forward(self, x: Tensor, block: Block) -> tuple[Tensor, Halting]:
        """Apply `block` to the tokens of `x` `(batch, time, dim)` that are within the budget."""
        self.check_shape(x, "batch time dim")
        seen = read(block, x)
        gate = self.gate(torch.sigmoid(self.to_gate(seen.detach())))
        keep = self.choose(gate.mean(-1), getattr(block, "start", 0))
        losses = {"sparsity": self.sparsity * gate.square().sum() / max(1, gate.numel())} if self.training else {}
        y = self.compute(x, block, keep, gate, seen)
        return y, Halting(keep, keep.sum() / max(1, keep.numel()), dict(self.losses(losses)))

"""Experts in two levels for several tasks: some for all tasks, some for a group of like tasks, some for a single one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penstock.core import ConfigError, FieldInteraction, Gate, ShapeError, Size, mechanism
from penstock.ops.linear import Linear


def drawn(place: Mapping[str, Any], *shape: int) -> nn.Parameter:
    """Return maps `(..., out, in)` drawn as those of a linear layer are."""
    return nn.Parameter(torch.empty(shape, **place).uniform_(-1, 1) / shape[-1] ** 0.5)


class FeatureGates(nn.Module):
    """For each of `count` groups of experts a view of its own of the features: `(B, count, width) -> (B, count, width)`."""

    def __init__(self, count: int, width: int, rank: int, views: int, place: Mapping[str, Any]) -> None:
        super().__init__()
        self.to_share = drawn(place, count, views, width)
        self.down = drawn(place, count, views, rank, width)
        self.up = nn.Parameter(torch.zeros(count, views, width, rank, **place))

    def openness(self, v: Tensor) -> Tensor:
        """Return by how much each feature is multiplied, 0 to 2."""
        shares = torch.einsum("bcw,cvw->bcv", v, self.to_share).softmax(-1)
        low = torch.einsum("bcw,cvrw->bcvr", v, self.down)
        return 2 * (torch.sigmoid(torch.einsum("bcvr,cvwr->bcvw", low, self.up)) * shares.unsqueeze(-1)).sum(2)


class Experts(nn.Module):
    """`count` groups of `size` experts, Swish of a normalized map: `(B, count, width) -> (B, count, size, hidden)`."""

    def __init__(self, count: int, size: int, width: int, hidden: int, place: Mapping[str, Any]) -> None:
        super().__init__()
        self.weight = drawn(place, count, size, hidden, width)
        self.norm = nn.BatchNorm1d(count * size * hidden, eps=1e-3, **place)

    def forward(self, v: Tensor) -> Tensor:
        """Compute every expert of every group."""
        y = torch.einsum("bcw,cehw->bceh", v, self.weight)
        if self.training and not len(v):
            return y
        return F.silu(self.norm(y.flatten(1)).unflatten(1, y.shape[1:]))


def own_share(logits: Tensor) -> Tensor:
    """Return the weights of a group's own experts: a softmax, or a sigmoid where there is only one."""
    return logits.softmax(-1) if logits.shape[-1] > 1 else torch.sigmoid(logits)


@mechanism(
    "home",
    paper="wang2024home",
    at="expert normalization and Swish, hierarchy mask, feature-gate and self-gate",
    gates={
        "feature_gate": "(0, 2); 1 leaves a feature as it is",
        "task_feature_gate": "(0, 2); 1 leaves a feature as it is",
        "shared_gate": "[0, 1]; sums to 1 over all experts of the first level",
        "group_gate": "[0, 1]; sums to 1 over the shared experts and a group's own",
        "task_gate": "[0, 1]; sums to 1 over the shared, the group's and the task's own experts",
        "self_gate": "[0, 1]",
        "task_self_gate": "[0, 1]",
    },
    example={"fields": 3, "dim": 2, "groups": [2, 1], "hidden": 4, "experts": 2, "rank": 2},
)
class HoME(FieldInteraction):
    r"""Hierarchy of experts for groups of tasks, each with a gradient of its own: `(B, fields, dim) -> (B, tasks)` logits.

    $$ z_c = \sum_n g^c_n E^{\{s, c\}}_n + \sum_n h^c_n E^c_n, \qquad
       z_s = \sum_n g^s_n E^{\text{all}}_n + \sum_n h^s_n E^s_n, \qquad
       o_t = \sum_n g^t_n E'^{\{s, c, t\}}_n + \sum_n h^t_n E'^t_n, $$
    $$ E(v) = \operatorname{swish}\big( \operatorname{BN}(W (v \odot f)) \big), \qquad
       f = 2 \sum_i \operatorname{softmax}(V v)_i\, \sigma(B_i A_i v) $$

    Experts are normalized over the batch, so that none is dead or louder than others. The first level has shared experts and
    those of each group of tasks; the second has shared ones on $z_s$, and on $z_c$ the group's and each task's own. $f$ is a
    view of the features for each group of experts; $h$, a self-gate, leads past the gate $g$ to a group's own experts. What
    the paper's self-gates read was not to be found; here it is what their experts read, before its gate.

    Args:
        fields: number of fields.
        dim: width of each.
        groups: how many tasks each group has.
        hidden: width of the experts.
        experts: how many experts are shared, and how many each group and each task has.
        rank: of the maps of the feature gates.
        views: how many such maps each mixes.
        device: where the parameters live.
        dtype: their type.
    """

    gives_logits = True
    group: Tensor

    def __init__(
        self,
        fields: Size,
        dim: Size,
        groups: Sequence[int] = (2, 2),
        *,
        hidden: Size = 64,
        experts: Size = 2,
        rank: Size = 8,
        views: Size = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if not groups or not all(isinstance(size, int) and size > 0 for size in groups):
            raise ConfigError(f"{self.name}: groups must be numbers of tasks of at least 1, got groups={groups!r}")
        self.fields, self.dim, self.of = fields, dim, [c for c, size in enumerate(groups) for _ in range(size)]
        place, kinds, tasks, wide = {"device": device, "dtype": dtype}, 1 + len(groups), sum(groups), fields * dim
        self.shape, self.width = (kinds, experts), tasks
        self.view = FeatureGates(kinds, wide, rank, views, place)
        self.experts = Experts(kinds, experts, wide, hidden, place)
        self.to_shared_gate = Linear(wide, kinds * experts, **place)
        self.to_group_gate = Linear(wide, len(groups) * 2 * experts, **place)
        self.to_self_gate = Linear(wide, kinds * experts, **place)
        self.task_view = FeatureGates(kinds + tasks, hidden, rank, views, place)
        self.task_experts = Experts(kinds + tasks, experts, hidden, hidden, place)
        self.to_task_gate = drawn(place, tasks, 3 * experts, 2 * hidden)
        self.to_task_self_gate = drawn(place, tasks, experts, hidden)
        self.tower, self.out = drawn(place, tasks, hidden, hidden), drawn(place, tasks, hidden)
        self.feature_gate, self.task_feature_gate, self.shared_gate, self.group_gate = Gate(), Gate(), Gate(), Gate()
        self.task_gate, self.self_gate, self.task_self_gate = Gate(), Gate(), Gate()

    def first_level(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is known for all tasks `(B, hidden)` and for each group `(B, groups, hidden)`."""
        kinds, size = self.shape
        seen = v.unsqueeze(1).expand(-1, kinds, -1)
        e = self.experts(seen * self.feature_gate(self.view.openness(seen)))
        own = (self.self_gate(own_share(self.to_self_gate(v).unflatten(1, self.shape))).unsqueeze(-1) * e).sum(2)
        g = self.shared_gate(self.to_shared_gate(v).softmax(-1)).unflatten(1, self.shape)
        shared = (g.unsqueeze(-1) * e).sum((1, 2)) + own[:, 0]
        g = self.group_gate(self.to_group_gate(v).unflatten(1, (kinds - 1, 2 * size)).softmax(-1)).unsqueeze(-1)
        pairs = torch.cat((e[:, :1].expand(-1, kinds - 1, -1, -1), e[:, 1:]), 2)
        return shared, (g * pairs).sum(2) + own[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each task from the fields `x` `(B, fields, dim)`."""
        self.check_shape(x, "batch fields dim")
        if self.training and len(x) == 1:
            raise ShapeError(f"{self.name}: in training x must have more than one example, got {tuple(x.shape)}")
        shared, groups = self.first_level(x.flatten(1))
        mine, kinds = groups[:, self.of], self.shape[0]
        seen = torch.cat((shared.unsqueeze(1), groups, mine), 1)
        e = self.task_experts(seen * self.task_feature_gate(self.task_view.openness(seen)))
        both = torch.cat((mine, shared.unsqueeze(1).expand_as(mine)), -1)
        g = self.task_gate(torch.einsum("btw,tew->bte", both, self.to_task_gate).softmax(-1))
        h = self.task_self_gate(own_share(torch.einsum("btw,tew->bte", mine, self.to_task_self_gate)))
        own = e[:, kinds:]
        three = torch.cat((e[:, :1].expand_as(own), e[:, 1:kinds][:, self.of], own), 2)
        o = (g.unsqueeze(-1) * three).sum(2) + (h.unsqueeze(-1) * own).sum(2)
        return (F.silu(torch.einsum("btw,thw->bth", o, self.tower)) * self.out).sum(-1)

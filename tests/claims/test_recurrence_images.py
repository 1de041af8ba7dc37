"""What the gates of linear attention over images do."""

from itertools import pairwise

import pytest
import torch
from torch import nn

import penstock
from penstock.ops import gated_linear_attention
from penstock.testing.harness import gates_held, perturb


def layer(name, **arguments):
    torch.manual_seed(0)
    module = penstock.build(name, **arguments).double()
    perturb(module)
    return module


def image(channels=8):
    return torch.randn(2, channels, 3, 4, dtype=torch.float64)


@pytest.mark.claim("vig")
def test_without_decay_each_patch_reads_half_of_all_and_half_of_itself_again():
    vig, u = layer("vig", channels=8, heads=2), torch.randn(2, 12, 8, dtype=torch.float64)
    nn.init.constant_(vig.to_decay[1].bias, 800.0)
    q, k, v = vig.project(u).split((4, 4, 8), dim=-1)
    q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in (q, k, v))
    weights = q @ k.mT / 2**0.5
    whole = (weights + weights.diagonal(dim1=-2, dim2=-1).diag_embed()) @ v / 2
    torch.testing.assert_close(vig.scan_both_ways(u), whole.transpose(1, 2))


@pytest.mark.claim("vig")
def test_both_directions_at_once_are_the_mean_of_two_scans():
    vig, u = layer("vig", channels=8, heads=2, temperature=1.0), torch.randn(2, 12, 8, dtype=torch.float64)
    q, k, v = (part.unflatten(-1, (2, -1)) for part in vig.project(u).split((4, 4, 8), dim=-1))
    ahead, back = nn.functional.logsigmoid(vig.to_decay(u)).unflatten(-1, (2, 2, -1)).unbind(2)
    first = gated_linear_attention(q, k, v, ahead)[0]
    second = gated_linear_attention(*(part.flip(1) for part in (q, k, v, back)))[0].flip(1)
    torch.testing.assert_close(vig.scan_both_ways(u), (first + second) / 2)


@pytest.mark.claim("vig")
def test_the_gate_is_between_all_of_the_image_and_a_neighborhood():
    vig, x = layer("vig", channels=8, heads=2), image().requires_grad_()
    for openness, reached in ((1.0, 12), (0.0, 4)):
        with gates_held(nn.ModuleList([vig.mix]), openness):
            (grad,) = torch.autograd.grad(vig(x)[0, :, 0, 0].pow(2).sum(), x)
        assert int(grad[0].abs().sum(0).gt(0).sum()) == reached


def removed(lina, name):
    """Close a gate of the place in the first row and second column."""
    with torch.no_grad():
        getattr(lina, name)[:, 0, 1] = 0


@pytest.mark.claim("lina")
def test_a_closed_key_gate_takes_the_token_out_of_the_attention():
    lina = layer("lina", channels=8, heads=2, size=4)
    q, k, v = torch.rand(3, 2, 12, 2, 4, dtype=torch.float64) + 0.1
    others = [0, *range(2, 12)]
    closed = torch.ones(12, 1, 1, dtype=torch.float64)
    closed[1] = 0
    without = lina.attend(q, k[:, others], v[:, others])
    torch.testing.assert_close(lina.attend(q, closed * k, v), without, rtol=1e-5, atol=1e-5)
    assert (lina.attend(q, k, closed * v) - without).abs().max() > 0.01


@pytest.mark.claim("lina")
def test_no_pixel_of_a_token_with_a_closed_key_gate_is_seen_from_beyond_the_convolution():
    lina, x = layer("lina", channels=8, heads=2, size=6), torch.randn(1, 8, 6, 6, dtype=torch.float64).requires_grad_()
    (before,) = torch.autograd.grad(lina(x)[0, :, 5, 5].sum(), x)
    removed(lina, "key_openness")
    (after,) = torch.autograd.grad(lina(x)[0, :, 5, 5].sum(), x)
    assert before[0, :, 0, 1].abs().max() > 0
    assert not after[0, :, 0, 1].any()


@pytest.mark.claim("lina-subtraction")
def test_weights_of_the_subtraction_norm_sum_to_one_and_may_be_negative():
    lina = layer("lina-subtraction", channels=8, heads=2)
    q, k = 5 * torch.rand(2, 1, 12, 2, 4, dtype=torch.float64)
    weights = lina.attend(q, k, torch.eye(12, dtype=torch.float64).unsqueeze(1).expand(1, 12, 2, 12))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 12, 2, dtype=torch.float64))
    assert weights.min() < 0


def shares(nala, q, k):
    """Return the weights that queries give to keys, without the rotation, `(queries, keys)`."""
    queries, keys = (torch.cat(halves, dim=-1) for halves in nala.features(q, k))
    weights = queries @ keys.mT
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.claim("nalaformer")
def test_longer_queries_read_from_fewer_keys_on_average():
    nala = layer("nalaformer", channels=16, heads=1)
    for seed in range(5):
        torch.manual_seed(seed)
        q, k = torch.randn(2, 64, 16, dtype=torch.float64)
        q = q / q.norm(dim=-1, keepdim=True)
        entropies = []
        for norm in (0.1, 0.5, 1.0, 2.0):
            p = shares(nala, norm * q, k)
            entropies.append(float(-torch.special.xlogy(p, p).sum(-1).mean()))
        assert all(more > less + 0.02 for more, less in pairwise(entropies)), entropies


@pytest.mark.claim("nalaformer")
def test_a_query_of_zero_reads_nothing_and_has_a_gradient():
    nala, x = layer("nalaformer", channels=8, heads=2), image()
    with torch.no_grad():
        nala.project.weight[:8] = 0
        nala.project.bias[:8] = 0
    y = nala(x)
    y.sum().backward()
    near = nala.local(nala.project(x.flatten(2).mT)[..., 16:].mT.unflatten(2, (3, 4))).flatten(2).mT
    alone = nala.out(nala.norm(near) * nn.functional.silu(nala.to_gate(x.flatten(2).mT))).mT.unflatten(2, (3, 4))
    torch.testing.assert_close(y, alone)
    assert nala.project.weight.grad.isfinite().all()

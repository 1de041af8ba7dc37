import math

import pytest
import torch
from torch.utils import _pytree as pytree

from penstock.ops.attention import Cache, append, attend, causal_attention, default_heads, rotary
from penstock.ops.attention.cache import Storage


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_rotary_angles_depend_on_the_distance_only():
    q, k = draw(1, 1, 1, 6), draw(1, 1, 1, 6)

    def score(t, s):
        return (rotary(q, t) * rotary(k, s)).sum()

    torch.testing.assert_close(score(7, 4), score(103, 100))
    assert not torch.allclose(score(7, 4), score(7, 5))


def test_rotary_turns_the_first_pair_by_one_radian_a_token_and_leaves_an_odd_channel():
    x = torch.zeros(1, 3, 1, 5, dtype=torch.float64)
    x[..., 0] = x[..., 4] = 1
    y = rotary(x, offset=1)[0, :, 0]
    for t in range(3):
        torch.testing.assert_close(y[t], torch.tensor([math.cos(t + 1), 0, math.sin(t + 1), 0, 1], dtype=torch.float64))


@pytest.mark.parametrize("prefix", [0, 1, 6])
@pytest.mark.parametrize("new", [1, 4])
def test_attention_after_a_prefix_equals_the_rows_of_the_whole(prefix, new):
    q, k, v = draw(2, prefix + new, 4, 6), draw(2, prefix + new, 2, 6), draw(2, prefix + new, 2, 3)
    whole = causal_attention(q, k, v)
    torch.testing.assert_close(causal_attention(q[:, prefix:], k, v), whole[:, prefix:])


def test_a_group_of_heads_shares_neighboring_keys():
    q, k, v = draw(2, 5, 6, 4), draw(2, 5, 2, 4), draw(2, 5, 2, 4)
    repeated = causal_attention(q, k.repeat_interleave(3, 2), v.repeat_interleave(3, 2))
    torch.testing.assert_close(causal_attention(q, k, v), repeated)


def test_a_prompt_can_be_continued_in_two_ways():
    cache = append(None, draw(1, 3, 1, 2), draw(1, 3, 1, 2))
    with torch.no_grad():
        cache = append(cache, draw(1, 1, 1, 2), draw(1, 1, 1, 2))
        ways = [(draw(1, 1, 1, 2), draw(1, 1, 1, 2)) for _ in range(2)]
        caches = [append(cache, *way) for way in ways]
    for way, grown in zip(ways, caches, strict=True):
        for new, held, before in zip(way, grown, cache, strict=True):
            assert torch.equal(held, torch.cat((before, new), 1))


def test_the_storage_doubles_so_that_a_token_costs_no_copy_of_its_past(monkeypatch):
    made = []
    plain = Storage.__init__
    monkeypatch.setattr(Storage, "__init__", lambda self, *given: (made.append(1), plain(self, *given))[1])
    cache = append(None, draw(1, 1, 1, 2), draw(1, 1, 1, 2))
    with torch.no_grad():
        for _ in range(1000):
            cache = append(cache, draw(1, 1, 1, 2), draw(1, 1, 1, 2))
    assert cache.keys.shape[1] == 1001
    assert len(made) <= 11


def test_a_mapped_cache_goes_on_like_the_one_it_came_from():
    with torch.no_grad():
        cache = append(append(None, draw(2, 3, 1, 2), draw(2, 3, 1, 2)), draw(2, 1, 1, 2), draw(2, 1, 1, 2))
        swapped = pytree.tree_map(lambda x: x.flip(0), cache)
        new = draw(2, 1, 1, 2)
        assert isinstance(swapped, Cache)
        assert torch.equal(append(swapped, new, new).keys, torch.cat((cache.keys.flip(0), new), 1))
        assert torch.equal(append(cache, new, new).keys, torch.cat((cache.keys, new), 1))


def test_gradients_reach_the_keys_in_the_cache():
    q, k, v = draw(1, 4, 2, 4), draw(1, 4, 2, 4).requires_grad_(), draw(1, 4, 2, 4)
    _, cache = attend(q[:, :3], k[:, :3], v[:, :3])
    y, _ = attend(q[:, 3:], k[:, 3:], v[:, 3:], cache)
    whole, _ = attend(q, k, v)
    expected = torch.autograd.grad(whole[:, 3:].sum(), k)[0]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), k)[0], expected)
    assert expected[:, 0].abs().max() > 0


@pytest.mark.parametrize(
    ("dim", "heads"), [(1, 1), (7, 1), (32, 1), (64, 2), (96, 3), (100, 2), (128, 4), (512, 8), (768, 12)]
)
def test_default_heads_divide_the_width(dim, heads):
    assert default_heads(dim) == heads

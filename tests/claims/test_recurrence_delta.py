"""What the papers of the delta rule say of it, on states that are set by hand, and the limits in which layers are others."""

import pytest
import torch
import torch.nn.functional as F

import penstock
from penstock.nn.recurrence.delta import DeltaNet, GatedDeltaNet
from penstock.ops import gated_delta_rule, gated_linear_attention
from penstock.testing.harness import gates_held, seeded

KEYS = 8


def told(pairs, *, beta, log_decay):
    """Write `(key, value)` pairs in turn, then ask for every key; return what is read, `(keys, values)`."""
    k = torch.eye(KEYS)[[key for key, _ in pairs]].view(1, -1, 1, KEYS)
    v = torch.eye(KEYS)[[value for _, value in pairs]].view(1, -1, 1, KEYS)
    decay = torch.tensor(log_decay).view(1, -1, 1, 1)
    state = gated_delta_rule(k, k, v, decay, torch.full((1, len(pairs), 1), beta), scale=1.0)[1]
    return state[0, 0]


@pytest.mark.claim("deltanet")
def test_a_key_written_again_is_overwritten_where_plain_linear_attention_adds():
    pairs, never = [(0, 1), (2, 3), (0, 5)], [0.0, 0.0, 0.0]
    read = told(pairs, beta=1.0, log_decay=never)
    assert torch.equal(read[0], F.one_hot(torch.tensor(5), KEYS).float())
    assert torch.equal(read[2], F.one_hot(torch.tensor(3), KEYS).float())
    k = torch.eye(KEYS)[[0, 2, 0]].view(1, 3, 1, KEYS)
    v = torch.eye(KEYS)[[1, 3, 5]].view(1, 3, 1, KEYS)
    added = gated_linear_attention(k, k, v, torch.zeros(()), scale=1.0)[1][0, 0]
    assert added[0, 1] == added[0, 5] == 1


@pytest.mark.claim("gated-deltanet")
def test_one_token_clears_the_memory_which_the_delta_rule_alone_cannot():
    pairs = [(0, 1), (2, 3), (4, 5)]
    cleared = told(pairs, beta=1.0, log_decay=[0.0, 0.0, float("-inf")])
    assert torch.equal(cleared[4], F.one_hot(torch.tensor(5), KEYS).float())
    assert not cleared[[0, 2]].any()
    assert told(pairs, beta=1.0, log_decay=[0.0, 0.0, 0.0])[[0, 2]].any()


@pytest.mark.claim("gated-deltanet")
def test_without_decay_it_is_the_delta_rule():
    gated, plain = (cls(dim=8, heads=2, dtype=torch.float64) for cls in (GatedDeltaNet, DeltaNet))
    shared = {name: value for name, value in gated.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(shared, strict=False)
    heads = []
    for layer in (gated, plain):
        layer.read_out = lambda o, x: heads.append(o) or x
    with seeded(0):
        x = torch.randn(2, 9, 8, dtype=torch.float64)
    gated.decay.decay.register_forward_hook(lambda *_: torch.ones(2, 9, 2, dtype=torch.float64))
    gated(x), plain(x)
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-12, atol=1e-12)


@pytest.mark.claim("gated-deltanet")
def test_keys_that_differ_make_it_gated_linear_attention_with_written_values():
    with seeded(0):
        v, decay, beta = torch.randn(1, KEYS, 1, 4), -torch.rand(1, KEYS, 1, 1), torch.rand(1, KEYS, 1)
    k = torch.eye(KEYS).view(1, KEYS, 1, KEYS)
    with seeded(1):
        q = torch.randn(1, KEYS, 1, KEYS)
    ours = gated_delta_rule(q, k, v, decay, beta)[0]
    torch.testing.assert_close(ours, gated_linear_attention(q, k, beta.unsqueeze(-1) * v, decay)[0])


@pytest.mark.claim("deltanet")
def test_a_closed_write_gate_writes_nothing():
    layer = penstock.build("deltanet", dim=8, heads=2)
    x = torch.randn(2, 9, 8)
    with gates_held(layer, 0.0):
        assert not layer.extend(x, None)[1][3].any()

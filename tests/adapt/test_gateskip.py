"""What GateSkip does with a budget: branches share it out in training as in decoding, and a single token is decided fast."""

import pytest
import torch

pytest.importorskip("transformers")

from cases import batch, labels, small

from penstock import adapt


def gated(**words):
    model = small("llama")
    handle = adapt.insert(model, adapt.GateSkip(0.5, **words))
    for part in handle.parts.values():
        torch.nn.init.normal_(part.to_gate.weight, std=0.3)
    return model, handle


def test_branches_share_out_the_budget_by_the_batch_before():
    model, handle = gated(grain="token", share="model")
    model.train()
    kept = {}
    for alias, part in handle.parts.items():
        part.keep.register_forward_hook(lambda _, __, mask, alias=alias: kept.update({alias: mask.float().mean().item()}))
    shares = []
    for _ in range(2):
        model(**batch("llama"), **labels("llama")).loss.backward()
        cost = sum(part.cost for part in handle.parts.values())
        shares.append(sum(kept[alias] * part.cost for alias, part in handle.parts.items()) / cost)
    assert shares[0] == 1  # no batch before
    assert abs(shares[1] - 0.5) < 0.1
    assert max(kept.values()) - min(kept.values()) > 0.3
    assert len({part.level.item() for part in handle.parts.values()}) == 1


@pytest.mark.parametrize("grain", ["token", "channel"])
def test_a_single_token_is_decided_as_many_are(grain):
    model, handle = gated(grain=grain)
    handle.calibrate([batch("llama")], budgets=(0.5,))
    part = handle.parts["layers.1.mlp"]
    found = []
    with torch.no_grad():
        for x in torch.randn(20, 1, 1, 32):
            gate, keep = part.decide(x)
            one = part.single(x)
            found.append(bool(keep))
            torch.testing.assert_close(torch.as_tensor(one).expand_as(gate), gate * keep)
            outcome = model.model.layers[1].mlp(x)
            assert bool(outcome.any()) == bool(keep)
    assert 0 < sum(found) < 20
    assert part.single(torch.randn(1, 2, 32)) is None

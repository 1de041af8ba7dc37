"""What sparse activations do in language models that were trained, on text, at toy scale."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from toy import next_token_loss, read_text

from penstock.adapt import CATS, CHESS, insert
from penstock.bench.tasks.text import Text
from penstock.core import auxiliary_losses
from penstock.inspect import ppl_sparsity
from penstock.models import LanguageModel
from penstock.nn.skipping.inputs import SparseLinear

TEXT = Text(length=32, held_out=200)


@cache
def trained(seed=0):
    torch.manual_seed(seed)
    model = LanguageModel(256, 64, 2)
    return model, read_text(model, seed, steps=200)


def given(model):
    """Return what the gate's map of each layer is given on text held out."""
    seen = []
    hooks = [block.channel.to_gate.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for block in model.blocks()]
    with torch.no_grad():
        model(next(TEXT.evaluation("valid", 50)).inputs)
    for hook in hooks:
        hook.remove()
    return [x.flatten(0, 1).double() for x in seen]


def error(weight, x, sparsity, *, informed):
    layer = SparseLinear(*weight.T.shape, sparsity, informed=informed, top=True, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(weight)
        return (layer(x) - F.linear(x, weight)).square().sum(-1)


@pytest.mark.slow
@pytest.mark.claim("wina")
@pytest.mark.parametrize("sparsity", [0.5, 0.65])
def test_turned_so_that_its_columns_are_orthogonal_a_trained_map_errs_less(sparsity):
    """The paper turns the stream first, so that the columns of a weight are its singular vectors times singular values.

    Over seeds 0 to 4 (120 steps), in both layers, no row is mapped worse than by its inputs' sizes alone, and the mean
    squared error is 0.70 to 0.79 of that, and 0.45 to 0.66 of what sizes alone give before turning. Without turning, as
    `WINA` leaves a model, the norms of columns hardly differ and neither do the losses: over the same seeds (200 steps)
    the mean loss grows by 0.120 with WINA and 0.115 with TEAL at 0.5, by 0.304 and 0.308 at 0.65, by 0.603 and 0.607 at 0.8.
    """
    model, _ = trained()
    for block, x in zip(model.blocks(), given(model), strict=True):
        weight = block.channel.to_gate.weight.detach().double()
        turn = torch.linalg.svd(weight, full_matrices=False).Vh.T
        plain = error(weight, x, sparsity, informed=False)
        by_size, informed = (error(weight @ turn, x @ turn, sparsity, informed=how) for how in (False, True))
        assert (informed <= by_size + 1e-9).all()
        assert informed.mean() < 0.85 * by_size.mean()
        assert informed.mean() < 0.75 * plain.mean()


@pytest.mark.slow
@pytest.mark.claim("chess")
def test_levels_by_channel_cost_a_trained_model_less_than_one_level_for_all():
    """At half the activations, over seeds 0 to 4, the loss grows by 0.007 to 0.014 with CHESS and 0.010 to 0.020 with CATS.

    It grows less at each seed but the last, where it grows by 0.0007 more; the means are 0.011 and 0.014.
    """
    model, dense = trained()
    data = [TEXT.batch("train", 100, step, 16).inputs for step in range(4)]
    inputs, targets = next(TEXT.evaluation("valid", 200))[:2]
    grown = {}
    for method in (CHESS, CATS):
        changed = insert(model, method(0.5))
        changed.calibrate(data, budgets=())
        with torch.no_grad():
            grown[method.name] = next_token_loss(model, inputs, targets).item() - dense
        changed.remove()
    assert 0 < grown["chess"] < grown["cats"] < 0.05


@pytest.mark.slow
@pytest.mark.claim("mohd")
def test_a_share_of_many_hidden_dimensions_is_worth_more_than_fewer_or_all_of_them():
    """The loss in nats at seeds 0 to 4 with half of 256 dimensions, with a dense layer of 128, and with one of 256.

    2.289, 2.407, 2.335; 2.335, 2.356, 2.347; 2.288, 2.331, 2.344; 2.334, 2.389, 2.355; 2.289, 2.342, 2.308. As many hidden
    dimensions are active as in the layer of 128; but fusion reaches all of them, so that the second map is computed whole,
    and a token costs as much as with the layer of 256 (33.8 and 32.8 thousand products a layer).
    """
    inputs, targets = next(TEXT.evaluation("valid", 200))[:2]
    kinds = {"mohd": {"hidden": 256, "active": 0.5}, "ffn-swish": {"hidden": 128}}
    found = {}
    for kind, sizes in kinds.items():
        torch.manual_seed(0)
        model = LanguageModel(256, 64, 2, channel={"mechanism": kind, **sizes})
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for step in range(200):
            for group in optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / 200)
            optimizer.zero_grad()
            with auxiliary_losses(model) as losses:
                loss = next_token_loss(model, *TEXT.batch("train", 0, step, 16)[:2])
            (loss + losses.total()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            found[kind] = next_token_loss(model.eval(), inputs, targets).item()
    assert found["mohd"] < found["ffn-swish"] - 0.05


@pytest.mark.slow
@pytest.mark.claim("ppl-sparsity")
def test_rectified_neurons_grow_sparser_with_data_and_smooth_ones_do_not():
    """The share of neurons that 1% of perplexity needs, after 25 and after 200 steps, at seeds 0, 1 and 2.

    With ReLU 0.21, 0.23 and 0.27, then 0.16, 0.14 and 0.13; with SiLU 0.35, 0.42 and 0.23, then 0.63, 0.61 and 0.59. In
    between neither goes one way only: of eight measurements over 400 steps `fit_law` explains 0.49 and 0.77 of the variance
    with ReLU, seeds 0 and 1, and 0.23 with SiLU, seed 0, at limits that mean nothing. The laws do not hold at this scale.
    """
    inputs, targets = next(TEXT.evaluation("valid", 100))[:2]
    data, ratios = [TEXT.batch("train", 99, 0, 16).inputs], {}
    for channel in ("ffn", "ffn-swish"):
        torch.manual_seed(0)
        model = LanguageModel(256, 64, 2, channel={"mechanism": channel, "hidden": 256})
        optimizer, ratios[channel] = torch.optim.Adam(model.parameters(), lr=3e-3), []
        for step in range(200):
            optimizer.zero_grad()
            next_token_loss(model, *TEXT.batch("train", 0, step, 16)[:2]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step + 1 in (25, 200):
                ratios[channel].append(ppl_sparsity(model, lambda m: next_token_loss(m, inputs, targets), data).ratio)
    assert ratios["ffn"][1] < ratios["ffn"][0]
    assert ratios["ffn-swish"][1] > ratios["ffn-swish"][0]
    assert ratios["ffn"][1] < ratios["ffn-swish"][1] / 2

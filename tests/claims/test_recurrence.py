"""What the gates of recurrences do, at toy scale."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from toy import fit

import penstock
from penstock.models import Classifier, LanguageModel

KEYS, VALUES, TIMES = 4, 8, 20


@pytest.mark.claim("gla")
def test_without_decay_it_is_linear_attention():
    gla = penstock.build("gla", dim=16, heads=2).double()
    nn.init.constant_(gla.to_decay[1].bias, 800.0)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    q, k, v = (project(x).unflatten(-1, (2, -1)).transpose(1, 2) for project in (gla.to_query, gla.to_key, gla.to_value))
    o = ((q @ k.mT).tril() @ v / 2).transpose(1, 2)
    torch.testing.assert_close(gla(x), gla.output(o, x))


@pytest.mark.claim("gla")
def test_a_closed_decay_leaves_the_present_token_only():
    gla = penstock.build("gla", dim=16, heads=2, temperature=1.0).double()
    nn.init.constant_(gla.to_decay[1].bias, -800.0)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    alone = torch.cat([gla(x[:, t : t + 1]) for t in range(9)], dim=1)
    torch.testing.assert_close(gla(x), alone)


class Recall(nn.Module):
    """A GLA layer that reads one-hot keys, values and marks, and names the value that is asked for last."""

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(KEYS + VALUES + 2, 32)
        self.gla = penstock.build("gla", dim=32, heads=1)
        self.name = nn.Linear(32, VALUES)

    def forward(self, x):
        return self.name(self.gla(self.read(x))[:, -1])


def segments(size):
    """Draw keys whose values change at each reset mark, and last a question for a key of the last segment."""
    reset = torch.rand(size, TIMES) < 0.15
    reset[:, -KEYS - 1 :] = False
    segment, keys = reset.cumsum(1), torch.randint(KEYS, (size, TIMES))
    table = torch.randint(VALUES, (size, TIMES + 1, KEYS))
    values = table[torch.arange(size).unsqueeze(1), segment, keys]
    asked = torch.multinomial(((segment == segment[:, -1:]) & ~reset).float(), 1)
    x = torch.zeros(size, TIMES + 1, KEYS + VALUES + 2)
    x[:, :-1, :KEYS] = F.one_hot(keys, KEYS)
    x[:, :-1, KEYS : KEYS + VALUES] = F.one_hot(values, VALUES)
    x[:, :-1][reset] = 0
    x[:, :-1, -2] = reset
    x[:, -1, :KEYS] = F.one_hot(keys.gather(1, asked)[:, 0], KEYS)
    x[:, -1, -1] = 1
    return x, values.gather(1, asked)[:, 0]


def learn_recall(*, forgets):
    model = Recall()
    if not forgets:
        model.gla.to_decay.requires_grad_(False)
        nn.init.zeros_(model.gla.to_decay[1].weight)
        nn.init.constant_(model.gla.to_decay[1].bias, 60.0)
    fit(model, lambda step: segments(32), lambda model, x, y: F.cross_entropy(model(x), y), steps=300, learning_rate=1e-2)
    x, y = segments(1000)
    decays = []
    model.gla.decay.register_forward_hook(lambda gate, given, openness: decays.append(openness.detach()))
    with torch.no_grad():
        right = (model(x).argmax(-1) == y).float().mean().item()
    return right, decays[0].flatten(2).mean(-1), x


@pytest.mark.slow
@pytest.mark.claim("gla")
def test_it_forgets_what_the_input_says_is_over_and_keeps_the_rest():
    """Right answers over five seeds: 0.89 to 1.00 (four above 0.99), and 0.59 to 0.78 where nothing decays.

    The decay is 0.30 to 0.35 at a reset and 0.85 to 0.88 at a pair that is written.
    """
    right, decay, x = learn_recall(forgets=True)
    reset, written = x[..., -2] > 0, (x[..., :KEYS].sum(-1) > 0) & (x[..., -1] == 0)
    assert right > 0.97
    assert decay[reset].mean() < 0.5
    assert decay[written].mean() > 0.75
    assert learn_recall(forgets=False)[0] < 0.85


@pytest.mark.claim("hgrn")
def test_the_bound_is_zero_at_the_first_layer_and_rises_below_one():
    model = LanguageModel(8, 6, 5, "hgrn", None)
    mixers = [block.mixer for block in model.layers]
    with torch.no_grad():
        mixers[0].bounds.normal_(std=3)
        bounds = torch.stack([mixer.lower_bound() + torch.zeros(6) for mixer in mixers])
    assert not bounds[0].any()
    assert (bounds.diff(dim=0) > 0).all()
    assert (bounds < 1).all()
    fresh = LanguageModel(8, 6, 5, "hgrn", None).layers[3].mixer
    torch.testing.assert_close(fresh.lower_bound(), torch.full((6,), 3 / 5))


@pytest.mark.claim("hgrn")
def test_without_turn_and_imaginary_part_it_is_the_real_version():
    full = penstock.build("hgrn", dim=4, layer=1, layers=2).double()
    nn.init.zeros_(full.theta)
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    c, f = F.silu(full.to_candidate(x)), torch.sigmoid(full.to_forget(x)) / 2 + 0.5
    real = penstock.build("hgrn-real", dim=4, layer=1, layers=2).double()
    held, _ = full.recur(f, c, None)
    for part, candidate in enumerate((c[..., 0::2], c[..., 1::2])):
        torch.testing.assert_close(held[..., 4 * part : 4 * part + 4], real.recur(f, candidate, None)[0])


def first_of_many(size, delay):
    """Draw sequences whose first token is asked for at their end."""
    x = torch.randint(4, 8, (size, delay + 1))
    y = torch.randint(4, (size,))
    x[:, 0], x[:, -1] = y, 8
    return x, y


def learn_delay(mixer, seed):
    """Return the share of right answers, and the mean forget gate of each layer."""
    torch.manual_seed(seed)
    model = Classifier(4, 16, 3, mixer, None, vocabulary=9, per_position=True)
    fit(
        model,
        lambda step: first_of_many(32, 40),
        lambda model, x, y: F.cross_entropy(model(x)[:, -1], y),
        steps=350,
        learning_rate=1e-2,
    )
    forget = []
    for block in model.layers:
        block.mixer.forget.register_forward_hook(lambda gate, given, f: forget.append(f.mean().item()))
    x, y = first_of_many(500, 40)
    with torch.no_grad():
        return (model(x)[:, -1].argmax(-1) == y).float().mean().item(), forget


@pytest.mark.slow
@pytest.mark.claim("hgrn")
def test_bounds_that_rise_with_depth_carry_over_a_long_delay():
    """Right answers after 40 tokens, over five seeds: all; where every bound is 0, chance at three seeds and all at two.

    Forget gates are 0.46 to 0.54 open in the first layer, 0.64 to 0.68 in the second, 0.83 to 0.91 in the third; without
    bounds they stay at a half.
    """
    bounded, free = (
        [learn_delay(mixer, seed) for seed in range(3)] for mixer in ("hgrn", {"mechanism": "hgrn", "layer": 0})
    )
    assert min(right for right, _ in bounded) > 0.95
    assert sum(right for right, _ in free) / 3 < 0.8
    for (_, rising), (_, level) in zip(bounded, free, strict=True):
        assert rising[0] < rising[1] < rising[2]
        assert max(level) < 0.65
